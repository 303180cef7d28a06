"""Holds: which jobs may not run now, and why: pauses that operators ordered, and breakers;
and what becomes of those that wait for it."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from streamjobs.broker import Message
from streamjobs.core.breaker import Breaker
from streamjobs.core.clock import Clock
from streamjobs.core.control import Desired
from streamjobs.core.delay import HOLD_MINUTES
from streamjobs.core.dispatch import Dispatcher, Partition
from streamjobs.core.record import Meta
from streamjobs.job import Cancel, Job, JobCancelled, Reject, Snooze
from streamjobs.telemetry.events import EventBatch
from streamjobs.worker.executors import Gate
from streamjobs.worker.poll import Poller

logger = logging.getLogger(__name__)

#: Ends that say nothing about whether the handler works.
_NEUTRAL = (Reject, Snooze, Cancel, JobCancelled)
#: A held job lets a runnable one of its key wait for so long, then it moves to the ladder.
HELD_S = 30.0
#: How often, and how many at a time, held jobs that are in the way are moved: a loop with 10,000 of them still turns.
TEND_S = 0.5
TEND_JOBS = 500


class Breakers:
    """One breaker a job type, for all loops of a process; the only thing of holds that they share, so it has a lock. `now`: monotonic
    seconds. *Bites*, by the wall's clock: it is set back by an hour, and for that long nothing of an open type is tried."""

    def __init__(self, gate: Gate) -> None:
        self._breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
        self._lock = threading.Lock()
        self._gate = gate

    def ended(self, jobs: Sequence[Job], now: float, *, sound: bool) -> None:
        """Runs that ended, before they are settled. `sound`: none of them failed."""
        if sound and not self._breakers:
            return
        with self._lock:
            for job in jobs:
                if not isinstance(job.error, _NEUTRAL):
                    self._end(job.type, job.error is not None, now)

    def _end(self, job_type: str, failed: bool, now: float) -> None:
        if not failed and job_type not in self._breakers:
            return
        breaker = self._breakers[job_type]
        before = breaker.state
        breaker.ended([failed], now)
        if breaker.state != before:
            logger.warning("breaker of %s: %s", job_type, _SAYS[breaker.state].format(breaker.wait_s))
        if breaker.calm:
            del self._breakers[job_type]
        self._set_gate()

    def _set_gate(self) -> None:
        self._gate.held = frozenset(name for name, breaker in self._breakers.items() if breaker.state != "closed")

    def wavers(self, job_type: str) -> bool:
        """Whether runs of the type failed lately: then few of them are handed out at once."""
        return job_type in self._breakers

    @property
    def open(self) -> frozenset[str]:
        """Job types that are held now. Any thread may ask."""
        return self._gate.held

    def shuts(self, job_type: str, now: float) -> bool:
        """Whether no job of the type may run now, not even one to try."""
        if job_type not in self._gate.held:
            return False
        with self._lock:
            breaker = self._breakers.get(job_type)
            return breaker is not None and not breaker.probe_due(now)

    def wants_probe(self, job_type: str, now: float) -> bool:
        """Whether one job of the type may run now, to see."""
        with self._lock:
            breaker = self._breakers.get(job_type)
            return breaker is not None and breaker.wants_probe(now)


class Holds:
    """What one loop may not run now, by reason. One owner: the loop's thread; it asks per batch, and per job only while
    anything is held at all."""

    def __init__(self, app: str, breakers: Breakers, desired: Callable[[], Desired], clock: Clock) -> None:
        self._app = app
        self._breakers = breakers
        self._desired = desired
        self._now, self._mono = clock.now, clock.monotonic

    def anything(self) -> bool:
        return bool(self._breakers.open) or self._desired().anything_paused

    def judge(self) -> Callable[[Job], str | None] | None:
        """`why`, while anything may not run now: to be asked for each job that is handed out."""
        return self.why if self.anything() else None

    def why(self, job: Job) -> str | None:
        """The reason for which a job may not run now; None: it may."""
        if job.type in self._breakers.open and not job.probe:
            return f"breaker/{job.type}"
        desired = self._desired()
        if not desired.anything_paused:
            return None
        key = job.message.key()
        order = desired.paused(job.home.queue, job.type, key, self._now(), app=self._app)
        return None if order is None else f"paused/{order.key}"

    def until(self, job: Job) -> float | None:
        """When what holds the job ends by itself, epoch seconds; None: nobody knows."""
        order = self._desired().paused(job.home.queue, job.type, job.message.key(), self._now(), app=self._app)
        return None if order is None else order.until

    def probe(self, reasons: Iterable[str]) -> str | None:
        """The reason of which one held job should run now, to see whether its type works again."""
        for reason in reasons:
            kind, _, job_type = reason.partition("/")
            if kind == "breaker" and self._breakers.wants_probe(job_type, self._mono()):
                return reason
        return None

    def queue_held(self, queue: str, job_types: Iterable[str]) -> bool:
        """Whether nothing of a queue may run: then it is not even fetched.

        A queue whose breakers are open is read once a probe is due. *Bites*: the breaker opens when the last job at hand has failed;
        of a queue that is not read no job is held, so none is tried, and it is never read again.
        """
        desired = self._desired()
        now = self._now()
        if desired.anything_paused and desired.queue_paused(queue, now) is not None:
            return True
        names = list(job_types)
        return bool(names) and all(self._held_type(name, desired, now) for name in names)

    def _held_type(self, name: str, desired: Desired, now: float) -> bool:
        return self._breakers.shuts(name, self._mono()) or (desired.anything_paused and desired.type_paused(self._app, name, now) is not None)



class HeldJobs:
    """The jobs of one loop that were set aside because they may not run now. One owner: the loop's thread.

    `types_of`: the names of the job types of each queue that it reads; `hold`: moves a record to the ladder; `returned`: takes jobs
    that were not started.
    """

    def __init__(
        self,
        holds: Holds,
        dispatcher: Dispatcher[Job],
        poller: Poller,
        events: EventBatch,
        clock: Clock,
        *,
        types_of: Mapping[str, Collection[str]],
        hold: Callable[[Message, Partition, Meta, float, str], None],
        returned: Callable[[Sequence[Job]], None],
    ) -> None:
        self._holds = holds
        self._dispatcher = dispatcher
        self._poller = poller
        self._events = events
        self._now = clock.now
        self._mono = clock.monotonic
        self._types_of = types_of
        self._hold = hold
        self._returned = returned
        self._tended = 0.0

    def tend(self) -> None:
        """Releases what may run again, lets one job try a broken type, and moves held jobs that are in the way."""
        held = self._dispatcher.held
        probed = self._holds.probe(held)
        if probed is not None:
            self._end_expired()
        if probed is not None and probed in held:
            held[probed][0].probe = True
            self._dispatcher.release(probed, limit=1)
        for reason in [reason for reason, jobs in held.items() if jobs and self._holds.why(jobs[0]) != reason]:
            self._dispatcher.release(reason)
        if held and self._mono() - self._tended >= TEND_S:
            self._tended = self._mono()
            self._end_expired()
            self._move_to_ladder(self._in_the_way()[:TEND_JOBS])
        self._poller.bar({queue for queue, names in self._types_of.items() if self._holds.queue_held(queue, names)})

    def _end_expired(self) -> None:
        """*Bites*: the breaker tries its type with a job that has expired, which no handler sees; half a minute later with the next one."""
        now = self._now()
        expired = [job for jobs in self._dispatcher.held.values() for job in jobs if job.is_expired(now)]
        self._dispatcher.let_go(expired)
        self._returned(expired)

    def _in_the_way(self) -> list[Job]:
        """Held jobs that use half of a limit of their partition, or let a runnable job of their key wait for 30 s."""
        now = self._mono()
        found = []
        pressed = {home for home in self._poller.partitions.values() if self._poller.used(home) >= 0.5}
        for job in [job for jobs in self._dispatcher.held.values() for job in jobs]:
            job.held_since = job.held_since or now
            if job.job_type.strict:
                continue  # it never leaves its place
            if job.home in pressed or (now - job.held_since > HELD_S and self._blocks(job)):
                found.append(job)
        return found

    def _blocks(self, job: Job) -> bool:
        """Whether the job behind a held one could run: one of the same type and key is held for the same reason."""
        behind = job.next
        return isinstance(behind, Job) and behind.job_type is not job.job_type and self._holds.why(behind) is None

    def _move_to_ladder(self, jobs: Collection[Job]) -> None:
        """The same run, no attempt charged; they come back after 1, 2, 4, 8, 10, 10 … minutes, never past the hold's end."""
        self._dispatcher.let_go(jobs)
        for job in jobs:
            self._move(job)

    def _move(self, job: Job) -> None:
        meta, until = job.full_meta, self._holds.until(job)
        due = self._now() + 60 * HOLD_MINUTES[min(meta.holds, len(HOLD_MINUTES) - 1)]
        job.due_again = due if until is None else min(due, until)
        job.outcome = "held"
        self._hold(job.message, job.home, meta, job.due_again, "held")
        self._events.add([job])
        self._dispatcher.stopped(job)


_SAYS = {
    "open": "open, its jobs are held; one is tried in {:g} s",
    "half_open": "half-open, one job is tried",
    "closed": "closed, its jobs run again",
}
