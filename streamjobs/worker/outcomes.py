"""What a run's end asks for: finished, a record to write, or (`key_strict`) its place kept."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from streamjobs.core import duration
from streamjobs.core.delay import STRICT_BACKOFF_S, STRICT_BLOCK_S
from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Entry
from streamjobs.core.lifecycle import Failure, Outcome, Reason, Settlement, decide
from streamjobs.core.offsets import Parked
from streamjobs.core.poison import convicted
from streamjobs.core.record import Record
from streamjobs.job import Job, Outbox, Timeout
from streamjobs.telemetry.ended import Ended, FinishedJob
from streamjobs.telemetry.events import EventBatch
from streamjobs.worker.executors import Chunk
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.settle import Cause, Open, Settler, classify, letter_record, retry_record
from streamjobs.worker.shared import Gatherer, Shared
from streamjobs.worker.sleepers import Sleepers
from streamjobs.worker.transact import DECIDED, Family

logger = logging.getLogger(__name__)

#: What the log tells of, and how loudly; snoozed, cancelled and expired jobs went as somebody wanted.
LEVELS = {
    "failed": logging.WARNING,
    "discarded": logging.WARNING,
    "rejected": logging.WARNING,
    "retry_after": logging.INFO,
    "poison": logging.ERROR,
}
#: So long after its timeout a job that still runs hangs, by its executor; a child process is killed. And why it can't be ended.
PATIENCE_S = {"threads": 0.0, "aio": 10.0}
NO_END = {"threads": "a thread can't be ended", "aio": "it blocks the event loop, or goes on although it is cancelled"}
#: Whose traceback is logged: what no handler raised on purpose.
UNWANTED = ("failed", "discarded")


class Outcomes:
    """Gives every run of one loop its one outcome. One owner: the loop's thread."""

    def __init__(
        self,
        shared: Shared,
        settler: Settler,
        dispatcher: Dispatcher[Job],
        sleepers: Sleepers[Entry],
        events: EventBatch,
        metrics: Gatherer,
    ) -> None:
        self.finished = 0
        self._shared = shared
        self._settler = settler
        self._dispatcher = dispatcher
        self._sleepers = sleepers
        self._events = events
        self._metrics = metrics
        self._now = shared.clock.now
        self._outbox = shared.outbox
        self._children: dict[Job, Sequence[Record]] = {}  # of runs that ended with a signal and are about to be settled

    def ended(self, jobs: Sequence[Job]) -> None:
        """Jobs that ran to an end, chunk by chunk, each in the order of its ends."""
        lots = _lots(jobs)
        sound = bool(lots) or [job.error for job in jobs].count(None) == len(jobs)
        self._shared.breakers.ended(jobs, self._shared.clock.monotonic(), sound=sound)
        others = jobs if self._outbox is None else self._settle_parents(jobs, self._outbox)
        if lots and others is jobs:
            for job in jobs:
                job.outcome = "succeeded"
            self._succeeded(Ended(jobs, lots))
        else:
            self._ended_each(others)

    def _ended_each(self, jobs: Sequence[Job]) -> None:
        succeeded = []
        for job in jobs:
            home = job.home
            if job.epoch != home.epoch or job.outcome:
                continue  # its partition left while it ran, or it was settled as timed out: this end means nothing
            if job.error is not None:
                self._failed(job)
                continue
            job.outcome = "succeeded"
            if home.parked:
                home.parked.pop(job.offset, None)
            succeeded.append(job)
        if succeeded:
            self._succeeded(Ended(succeeded))

    def _succeeded(self, ended: Ended) -> None:
        for job, place in ended.runs():
            job.home.tracker.finish_many(ended.offsets[place])  # type: ignore[attr-defined]
        self._tell(ended)  # type: ignore[arg-type]

    def _settle_parents(self, jobs: Sequence[Job], outbox: Outbox) -> Sequence[Job]:
        """Runs that published child jobs: what they published goes where their offset does, or nowhere. The other jobs."""
        children = outbox.close(jobs)
        for job, records in children.items():
            if job.epoch != job.home.epoch or job.outcome:
                continue
            if job.error is None:
                job.outcome = "succeeded"
                self._children[job] = records
                self._begin(job, None, lambda job=job: self._succeeded_with_children(job))  # type: ignore[misc]
            elif isinstance(job.error, DECIDED):
                self._children[job] = records
        return [job for job in jobs if job not in children or job.error is not None] if children else jobs

    def _succeeded_with_children(self, job: Job) -> None:
        job.home.tracker.finish(job.offset)
        job.home.parked.pop(job.offset, None)
        self._tell([job], told=True)

    def returned(self, jobs: Sequence[Job]) -> None:
        """Jobs that were handed out and not started; those among them that are cancelled, or have expired since they came, are settled."""
        back, now = [], self._now()
        for job in jobs:
            if job.cancelled:
                self._end_unstarted(job, Failure("cancelled", "cancelled before it started"))
            elif job.is_expired(now):
                self._end_unstarted(job, Failure("expired", "it did not start in time"))
            else:
                back.append(job)
        self._dispatcher.give_back(back)

    def _end_unstarted(self, job: Job, why: Failure) -> None:
        if job.epoch == job.home.epoch:
            self.settle(job, why)
            if not job.job_type.strict:
                self._dispatcher.stopped(job)

    def _tell(self, jobs: Sequence[Job], *, told: bool = False) -> None:
        """Events and metrics of jobs that reached their outcome; `told`: their events went with the transaction that settled them."""
        self.finished += len(jobs)
        if not told:
            self._events.add(jobs)
        self._metrics.observe(jobs)

    def overdue(self, chunk: Chunk, job: Job) -> None:
        """A thread can't be ended: a job past its timeout is told of once, and settled if its type says so. Nor can an async handler that takes
        no notice of its end.

        Also one that was cancelled, or whose partition has left. *Bites*: it hangs, its partition goes to another worker before its
        timeout, and its slot is gone for as long as the process lives, without a word.
        """
        timeout_s, patience_s = job.job_type.timeout_s, PATIENCE_S.get(chunk.kind)
        if timeout_s is None or patience_s is None or chunk.zombie is job or chunk.elapsed(job) < timeout_s + patience_s:
            return
        chunk.zombie = job
        logger.warning("%r runs longer than its timeout of %g s; %s", job, timeout_s, NO_END[chunk.kind])
        if job.job_type.on_timeout == "retry" and chunk.kind == "threads" and not job.cancelled:
            self.time_out(job)

    def time_out(self, job: Job) -> None:
        """Settles a job while its thread still runs it."""
        job.error = Timeout(f"it ran longer than {job.job_type.timeout_s:g} s")
        job.duration_s = max(0.0, self._now() - job.started_at)  # the clock may have been set back
        if self._outbox is not None:
            self._outbox.close([job])
        self._failed(job)

    # Settling ---------------------------------------------------------------------------------------------------------

    def _failed(self, job: Job) -> None:
        if self._shared.errors is not None and job.error is not None and isinstance(job.error, Exception):
            self._shared.errors.append(job.error)
        if convicted(job.strikes):
            self.settle(job, Failure("poison", f"its process died {job.strikes} times while nothing else ran in it"))
        else:
            self.settle(job, classify(job))

    def settle(self, job: Job, failure: Failure) -> None:
        now = self._now()
        job.failure = failure
        settlement = decide(
            failure, job.job_type.retry, run=job.run, attempt=job.attempt, origin=job.origin, now=now
        )
        _log(job, failure, settlement, now)
        if settlement.due is not None and job.job_type.strict and self._park(job, settlement, now):
            self._send_from_place(job)
            return
        job.outcome = settlement.outcome.value
        job.due_again = settlement.due or 0.0
        if settlement.letter is not None:
            self._bury(job, settlement.letter)
        elif settlement.due is not None:
            record = retry_record(self._shared.routes, job, settlement, failure, now)
            then = functools.partial(self._let_go, job, acked=True)
            reason = failure.error_type or failure.kind
            self._begin(job, *self._traced(job, record, then, reason, delay_s=settlement.due - now), lambda: self._too_large(job))
        elif job in self._children:
            self._begin(job, None, lambda: self._let_go(job, acked=True))
        else:
            self._let_go(job)

    def _begin(
        self, job: Job, record: Record | None, then: Callable[[], object], too_large: Callable[[], Record] | None = None
    ) -> None:
        """Begins a settlement with this record and the run's child jobs."""
        children = self._children.pop(job, ())
        if children:
            item: Open = Family(job.home, job.offset, record, children, then, too_large)
        else:
            assert record is not None
            item = Open(job.home, job.offset, record, then, too_large)
        item.job = job
        self._settler.settle(item)

    def _send_from_place(self, job: Job) -> None:
        """`key_strict`: the job was snoozed and keeps its place; its child jobs go out with the commit that counts this start."""
        children = self._children.pop(job, ())
        if children:
            self._settler.settle(Family(job.home, -1, None, children, lambda: None))

    def _settled(self, job: Job, *, acked: bool = False) -> None:
        """What the settlement asked for (if anything) is acknowledged: the offset is finished."""
        home = job.home
        home.tracker.finish(job.offset)
        self._tell([job], told=acked and self._shared.transactions is not None)
        if job.kind == QUARANTINE:
            self._shared.suspects.acquit(job)
        home.parked.pop(job.offset, None)  # also of a type that is not strict any more
        if job.job_type.strict:
            self._dispatcher.stopped(job)

    def _let_go(self, job: Job, *, acked: bool = False) -> None:
        self._settled(job, acked=acked)
        self._forget_frames(job)

    def _forget_frames(self, job: Job) -> None:
        """Unless a test wants to see its error."""
        if self._shared.errors is None:
            forget_frames(job.error)

    def _bury(self, job: Job, reason: Reason) -> None:
        text = job.failure.reason if job.failure else ""
        job.letter = reason.value
        cause = Cause(reason, job.error, text, job.run, job.attempt, {"sj_strikes": job.strikes} if job.strikes else {})
        record = letter_record(self._shared.routes, job.message, job.home, job.full_meta, cause)
        then = functools.partial(self._buried, job, reason)
        self._begin(job, *self._traced(job, record, then, reason.value, letter=True))

    def _traced(
        self, job: Job, record: Record, then: Callable[[], object], reason: str, **more: Any
    ) -> tuple[Record, Callable[[], object]]:
        """The record in the trace of the run that it comes of; and what to do once it is acknowledged, with which its span ends."""
        again = self._shared.trace_again
        if again is None or not job.traceparent:
            return record, then
        headers, done = again(record.topic, record.headers, job_id=job.id, run=job.traceparent, reason=reason, **more)

        def acked() -> None:
            done()
            then()

        return record._replace(headers=headers), acked

    def _buried(self, job: Job, reason: Reason) -> None:
        self._settled(job, acked=True)
        calls = [self._call(hook, job, reason) for hook in self._shared.dead_hooks]
        if not any(calls):
            self._forget_frames(job)

    def _call(self, hook: Callable[[Job, str], Any], job: Job, reason: Reason) -> bool:
        """Whatever it raises, a signal too, the loop goes on; an async one runs where async handlers do, and nobody waits for it: True."""

        def failed(error: BaseException) -> None:
            logger.error("an on_dead hook failed for %r; the letter is kept all the same", job, exc_info=_told(error))

        try:
            result = hook(job, reason.value)
        except BaseException as error:  # noqa: BLE001 (see above)
            failed(error)
            return False
        if not inspect.isawaitable(result):
            return False
        aio = self._shared.executors["aio"]
        assert isinstance(aio, Aio)
        aio.call(result, failed)
        return True

    def _too_large(self, job: Job) -> Record:
        """A retry that the topic refuses for its size becomes a letter."""
        job.outcome, job.letter = Outcome.DEAD.value, Reason.TOO_LARGE.value
        cause = Cause(Reason.TOO_LARGE, job.error, run=job.run, attempt=job.attempt)
        return letter_record(self._shared.routes, job.message, job.home, job.full_meta, cause)

    def _park(self, job: Job, settlement: Settlement, now: float) -> bool:
        """`key_strict`: the job keeps its place and runs again in place; False: it has blocked its key for too long."""
        home = job.home
        parked = home.parked.get(job.offset) or Parked(job.offset, 0, 0.0)
        due = min(settlement.due or now, now + STRICT_BACKOFF_S)
        blocked_s = parked.blocked_s + (due - now) + job.duration_s
        if blocked_s > STRICT_BLOCK_S:
            job.outcome = Outcome.DEAD.value
            self._bury(job, Reason.EXHAUSTED)
            return True
        again = self._shared.decoder.decode(job.message, home)  # the handler may have changed its arguments
        if not isinstance(again, Job):
            job.outcome, job.error = Outcome.DEAD.value, again.error
            job.failure = Failure("discarded", str(again.error), error_type=type(again.error).__name__)
            self._bury(job, Reason.UNDECODABLE)
            return True
        home.parked[job.offset] = Parked(job.offset, parked.starts + 1, blocked_s)
        home.tracker.touch()  # else a crash forgets how often it started, unless another job has finished since
        self._tell_in_place(job, settlement, due)
        job.run, job.attempt, job.lot, job.args = settlement.run, settlement.attempt, None, again.args
        job.due = due  # from then on it waits; its backoff was no wait
        job.started_at = job.duration_s = job.wait_s = 0.0
        self._forget_frames(job)
        job.error = None
        job.children = ()
        job.kind = job.job_type.kind
        if job.strikes and QUARANTINE in self._shared.executors:
            job.kind = QUARANTINE
            self._shared.suspects.note(job)
        self._sleepers.wake_at(due, job, self._dispatcher.again)
        return True

    def _tell_in_place(self, job: Job, settlement: Settlement, due: float) -> None:
        """A run that ended with nothing to settle: its event goes with the commit that counts this start."""
        job.outcome, job.due_again = settlement.outcome.value, due
        self._tell([job])
        job.outcome, job.due_again = "", 0.0


def _lots(jobs: Sequence[Job]) -> list[tuple[FinishedJob, int]]:
    """What a list of jobs mostly is: one lot, or two of which the batch had the end and the beginning; as (the first of each, how many). Empty
    where anything is different about any job: it failed, is by itself, is settled as timed out, or its partition has left, or has something
    parked."""
    lots = [job.lot for job in jobs if job.error is None and not job.outcome]
    if not lots or len(lots) < len(jobs):
        return []
    count = lots.count(lots[0])
    found = [(jobs[0], count)]
    if count < len(jobs):
        rest = lots[count:]
        if lots[0] in rest or rest.count(rest[0]) < len(rest):
            return []
        found.append((jobs[count], len(rest)))
    if any(first.lot is None or first.home.parked or first.epoch != first.home.epoch for first, _ in found):
        return []
    return found  # type: ignore[return-value]


def _log(job: Job, failure: Failure, settlement: Settlement, now: float) -> None:
    """Tells of a run that did not end well. The type is part of the message, so that one that fails a thousand times a second does not
    hide the others (`telemetry.log.Repeats`)."""
    level = LEVELS.get(failure.kind)
    if level is None or not logger.isEnabledFor(level):
        return
    if settlement.letter is not None:
        then = f"it becomes a dead letter ({settlement.letter.value})"
    else:
        delay_s = (settlement.due or now) - now
        then = f"it runs again in {duration.text(min(delay_s, STRICT_BACKOFF_S) if job.job_type.strict else delay_s)}"
    why = f"{failure.error_type}: {failure.reason}" if failure.error_type else failure.reason
    message = job.type.replace("%", "%%") + ": %s; attempt %d of %d, %s"
    error = job.error if failure.kind in UNWANTED else None
    logger.log(level, message, why, job.attempt, job.max_attempts, then, exc_info=_told(error), extra={"job": job})


def _told(error: BaseException | None) -> Any:
    """For the log, which would ask whether the exception is true; its class may have an answer of its own."""
    return None if error is None else (type(error), error, error.__traceback__)


def forget_frames(error: BaseException | None) -> None:
    """Of an error that is told of. *Bites*: it knows the frames that it came through; they know the job, and all that ran in one list with
    it; and the job knows its error. So all of these, their records and their arguments live until the garbage collector comes, which is
    seldom (measured: 350 MB after 900 failed runs of jobs of 200 kB)."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        BaseException.with_traceback(each, None)  # a frozen dataclass lets nobody set its attributes
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
