"""The loop: one consumer's road from poll to commit (DESIGN.md §2). Main and retry topics have one each, of this class.

A turn takes results, settles, wakes what is due, fetches, hands out and commits. Nothing else touches the loop's state.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from streamjobs.broker import Admin, Broker, Producer, TopicPartition
from streamjobs.core.assignment import Admission, AlarmKind, Beginning, Why
from streamjobs.core.clock import Clock
from streamjobs.core.control import Desired
from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Partition
from streamjobs.core.lifecycle import Failure, Outcome, Reason, Settlement, decide
from streamjobs.core.offsets import Parked
from streamjobs.core.poison import convicted
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.job import Job, JobType, Outbox, Timeout
from streamjobs.telemetry.events import EventBatch, Packet
from streamjobs.worker import Stopped
from streamjobs.worker.admit import HOLD_MINUTES, Arrivals
from streamjobs.worker.commit import Committer, Ticking
from streamjobs.worker.decode import Decoder
from streamjobs.worker.execute import Execution
from streamjobs.worker.executors import Chunk, Executor
from streamjobs.worker.holds import Breakers, Holds
from streamjobs.worker.marks import Marks
from streamjobs.worker.poll import Poller
from streamjobs.worker.quarantine import Orders
from streamjobs.worker.settle import (
    Cause,
    Open,
    Routes,
    Settler,
    classify,
    letter_record,
    retry_record,
)
from streamjobs.worker.transact import DECIDED, Family, Gathered, Telling, Transactions, Transactor, is_gone

logger = logging.getLogger(__name__)

BATCH = 250
IDLE_POLL_S = 0.05
#: How often a loop looks after its running jobs: time-outs, stuck chunks, cancellations.
WATCH_S = 0.05
#: A held job lets a runnable one of its key wait for so long, then it moves to the ladder.
HELD_S = 30.0
#: How long the settlements of jobs that hang in threads may take at the end of a drain.
ZOMBIES_S = 5.0
#: How often, and how many at a time, held jobs that are in the way are moved: a loop with 10,000 of them still turns.
TEND_S = 0.5
TEND_JOBS = 500
#: `key_strict`: the longest backoff in place, and how long a failing head may block its key.
STRICT_BACKOFF_S = 60.0
STRICT_BLOCK_S = 600.0


class Gatherer(Protocol):
    """What a loop counts; see `telemetry/catalogue.py` for names and labels."""

    def observe(self, jobs: Sequence[Job]) -> None: ...
    def count(self, name: str, *labels: str, by: float = 1) -> None: ...
    def set(self, name: str, value: float, *labels: str) -> None: ...
    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None: ...
    def snapshot(self) -> Any: ...


@dataclass
class Shared:
    """What the loops of one process share. Built once, by the process."""

    app: str
    group: str
    worker_id: str
    broker: Broker
    admin: Admin
    routes: Routes
    clock: Clock
    breakers: Breakers
    executors: Mapping[str, Executor]
    job_types: Mapping[str, JobType[Any, Any]]
    decoder: Decoder
    producer: Callable[[], Producer]
    view: Callable[[], Callable[[], Desired]]
    """Makes a loop's own view of the desired state."""
    new_metrics: Callable[[str, str], Gatherer]
    admission: Admission
    learn_schemas: Callable[[Callable[[], None]], None]
    """Reads the schema topic up to its end in the background, then calls back."""
    take_away: Callable[[Iterable[str]], None]
    """Takes orders off the control topic that are carried out."""
    mark_started: Callable[[str, Partition], None]
    """Writes that a group has committed in a partition (PROTOCOLS §3)."""
    marks: Marks
    """Where executors note what they start."""
    suspects: Orders
    recycling: Callable[[], bool] = lambda: False
    """Whether the process ends because threads hang in it, or it has grown too large (PROTOCOLS §15)."""
    events_mode: Any = "all"
    hold_s: float = 5.0
    credit: int = 1000
    tick_s: float = 0.5
    drain_s: float = 25.0
    max_poll_interval_s: float = 300.0
    session_timeout_s: float = 10.0
    instance: str | None = None
    dead_hooks: Sequence[Callable[[Job, str], Any]] = ()
    errors: list[BaseException] | None = None
    """Where handlers' exceptions are kept for a test; None: nowhere."""
    idle_poll_s: float = IDLE_POLL_S
    transactions: Transactions | None = None
    """Of a transactional app; None: settlements and commits are acknowledged one after the other."""
    outbox: Outbox | None = None
    """Of a transactional app: where its handlers' child jobs are until their runs are settled."""


class Loop:
    """One loop of a worker process. `turn` does one round; `run` turns until it is told to stop."""

    def __init__(self, name: str, group: str, topics: Collection[str], shared: Shared) -> None:
        self.name = name
        self.group = group
        self.topics = frozenset(topics)
        self.turned_at = self._progressed = shared.clock.monotonic()
        self.draining = False
        self.finished = 0
        self.tier = "main" if name == "main" else "retry"
        self.metrics = shared.new_metrics(group, self.tier)
        self._shared = shared
        self._desired = shared.view()
        self._now = shared.clock.now
        self._mono = shared.clock.monotonic
        self._dispatcher: Dispatcher[Job] = Dispatcher(shared.executors)
        self._idle_s = 0.001
        self._watched = self._tended = 0.0
        self._told: set[tuple[int, int]] = set()
        self._fresh: list[Partition] = []  # arrived, and not committed yet
        self.events = EventBatch(shared.worker_id, shared.group, shared.events_mode)
        self._outbox = shared.outbox
        self._children: dict[Job, Sequence[Record]] = {}  # of runs that ended with a signal and are about to be settled
        gathered = None if shared.transactions is None else Gathered(shared.producer, self._mono)
        self.settler = gathered or Settler(shared.producer, self._mono)
        self.poller = Poller(
            shared.broker.consumer(group, instance=shared.instance and f"{shared.instance}-{name}"),
            group,
            admin=shared.admin,
            names=shared.routes.names,
            desired=self._desired,
            limits=shared.admission,
            owner=self,
            now=self._now,
        )
        self.execution = Execution(
            shared.executors,
            self._dispatcher,
            self._mono,
            finished=self._ended,
            returned=self._returned,
            overdue=self._overdue,
            wavers=shared.breakers.wavers,
        )
        self.arrivals = Arrivals(
            app=shared.app,
            group=shared.group,
            routes=shared.routes,
            decoder=shared.decoder,
            dispatcher=self._dispatcher,
            settler=self.settler,
            desired=self._desired,
            now=self._now,
            metrics=self.metrics,
            settle=self._settle,
            learn_schemas=shared.learn_schemas,
            hold_s=shared.hold_s,
        )
        self.holds = Holds(shared.app, shared.breakers, self._desired, self._now)
        self._queues = {role.queue for topic in topics if (role := shared.routes.names.role(topic))}
        self.topic_ids: SimpleQueue[Mapping[str, bytes]] = SimpleQueue()
        self.committer = self._new_committer(gathered)

    def _new_committer(self, gathered: Gathered | None) -> Committer:
        shared = self._shared
        how = Ticking(shared.tick_s, self._mono, self._committed, self._events_dropped)
        if gathered is None or shared.transactions is None:
            return Committer(self.poller, shared.producer, how)
        return Transactor(self.poller, gathered, shared.transactions, how, Telling(self.events, self._event_record, self._now))

    # Life -------------------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> bool:
        """Turns until `stop()`, then drains. False: work was abandoned at drain. Raises Stopped."""
        self.committer.begin()
        self.poller.subscribe(self.topics)
        try:
            while not stop():
                self.turn()
        except Stopped:
            self.poller.consumer.close()  # or its partitions wait for its session to time out
            raise
        return self.drain(self._mono() + self._shared.drain_s)

    def turn(self) -> bool:
        """One round; True: something happened."""
        self.turned_at = self._mono()
        enough = self._has_enough()
        happened = taken = self.execution.take_results(wait=enough)
        happened += self.settler.serve()
        happened += self.arrivals.wake()
        self.poller.admit_again()
        if not (taken and enough):
            happened += self._fetch()
        if not self.draining:
            self.execution.hand_out(self._why_held())
            if self.execution.out and not self._dispatcher.count():
                time.sleep(0)  # a thread that was woken gets the interpreter now, not when this one next waits
        if self.execution.out or not self._dispatcher.count():
            self._progressed = self.turned_at
        happened += self._tick()
        if self.turned_at - self._watched >= WATCH_S:
            self._watched = self.turned_at
            self.execution.watch()
            self._tend_holds()
        self._idle_s = 0.001 if happened else min(self._shared.idle_poll_s, self._idle_s * 2)
        return bool(happened)

    def drain(self, deadline: float) -> bool:
        """Admits nothing more, keeps polling, ends what runs, commits and leaves the group. False: something was abandoned."""
        self.draining = True
        self.execution.recall()
        while (self._worth_waiting() or self.settler.open) and self._mono() < deadline:
            self._give_up_idle_topics()
            self.turn()
        self._settle_zombies()
        abandoned = [job for job in self.execution.running() if not job.outcome]
        for job in abandoned:
            logger.warning("%r is abandoned: it still ran when the drain time was over; another worker will run it again", job)
        self.committer.commit_now(list(self.poller.partitions.values()), self._event_records(), timeout=2.0)
        self.poller.consumer.close()
        for home in self.poller.partitions.values():
            home.epoch = home.serving = -1
        return not abandoned

    def _give_up_idle_topics(self) -> None:
        """Other workers get at once the topics of which nothing runs here; single partitions can't be given up without leaving the
        group, and with it what still runs."""
        busy = {job.home.topic for job in self.execution.running()} | {home.topic for home in self.poller.partitions.values() if home.open}
        if busy and busy < self.topics:
            logger.info("draining: only %s still needed", ", ".join(sorted(busy)))
            self.topics = frozenset(busy)
            self.poller.subscribe(busy)

    def _worth_waiting(self) -> bool:
        """Whether anything runs that may still end: not what is settled as timed out, nor, in a recycle, what hangs."""
        return any(not self._hopeless(chunk) for chunk in self.execution.out)

    def _hopeless(self, chunk: Chunk) -> bool:
        hangs = chunk.zombie is not None and chunk.zombie is chunk.current
        return hangs and (self._shared.recycling() or bool(chunk.zombie and chunk.zombie.outcome))

    def _settle_zombies(self) -> None:
        """Threads that are past their timeouts end with the process. *Bites*: settled as nothing, such a job starts as attempt 1 in
        the next process, and hangs there, for ever (PROTOCOLS §15)."""
        for job in self.zombies():
            if not job.outcome and job.epoch == job.home.epoch:
                self._time_out(job)
        deadline = self._mono() + ZOMBIES_S
        while self.settler.open and self._mono() < deadline:
            self.turn()

    def zombies(self) -> list[Job]:
        """Jobs that run in threads, past their timeouts. Any thread may ask."""
        return [chunk.zombie for chunk in list(self.execution.out) if chunk.zombie is not None and chunk.zombie is chunk.current]

    def known(self) -> Desired:
        """What the control topic asks for; to be asked from outside only before it runs."""
        return self._desired()

    def stalled_for(self) -> float:
        """For how long (s) jobs have been ready while none was out: a worker that polls and makes no progress is not healthy."""
        return self._mono() - self._progressed

    @property
    def idle(self) -> bool:
        """Nothing runs, waits to run, or is being settled."""
        waiting = self._dispatcher.count() or self.settler.unacknowledged or self.arrivals.learning
        return not (self.execution.out or waiting)

    def next_due(self) -> float | None:
        """When the next job that waits in memory is due, or the next settlement is tried again; epoch seconds."""
        due, tried = self.arrivals.next_due(), self.settler.next_try()
        if tried is None:
            return due
        return min(self._now() + tried, due or math.inf)

    # Results ----------------------------------------------------------------------------------------------------------

    def _ended(self, jobs: Sequence[Job]) -> None:
        """Jobs that ran to an end, in the order of their ends."""
        self._shared.breakers.ended(jobs, self._now())
        if self._outbox is not None:
            jobs = self._settle_parents(jobs, self._outbox)
        succeeded = []
        for job in jobs:
            home = job.home
            if job.epoch != home.epoch or job.outcome:
                continue  # its partition left while it ran, or it was settled as timed out: this end means nothing
            if job.error is not None:
                self._failed(job)
                continue
            job.outcome = "succeeded"
            home.tracker.finish(job.offset)
            if home.parked:
                home.parked.pop(job.offset, None)
            succeeded.append(job)
        if succeeded:
            self._tell(succeeded)

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

    def _returned(self, jobs: Sequence[Job]) -> None:
        """Jobs that were handed out and not started; the cancelled ones among them are settled."""
        for job in jobs:
            if job.cancelled and job.epoch == job.home.epoch:
                self._settle(job, Failure("cancelled", "cancelled before it started"))
                if not job.job_type.strict:
                    self._dispatcher.stopped(job)
        self._dispatcher.give_back([job for job in jobs if not job.cancelled])

    def _tell(self, jobs: Sequence[Job], *, told: bool = False) -> None:
        """Events and metrics of jobs that reached their outcome; `told`: their events went with the transaction that settled them."""
        self.finished += len(jobs)
        if not told:
            self.events.add(jobs)
        self.metrics.observe(jobs)

    def _overdue(self, chunk: Chunk, job: Job) -> None:
        """A thread can't be ended: a job past its timeout is told of once, and settled if its type says so."""
        timeout_s = job.job_type.timeout_s
        late = timeout_s is not None and chunk.kind == "threads" and self._now() >= job.started_at + timeout_s
        if not late or chunk.zombie is job:
            return
        chunk.zombie = job
        logger.warning("%r runs longer than its timeout of %g s; a thread can't be ended", job, timeout_s)
        if job.job_type.on_timeout == "retry":
            self._time_out(job)

    def _time_out(self, job: Job) -> None:
        """Settles a job while its thread still runs it."""
        job.error = Timeout(f"it ran longer than {job.job_type.timeout_s:g} s")
        job.duration_s = self._now() - job.started_at
        if self._outbox is not None:
            self._outbox.close([job])
        self._failed(job)

    # Settling ---------------------------------------------------------------------------------------------------------

    def _failed(self, job: Job) -> None:
        if self._shared.errors is not None and job.error is not None and isinstance(job.error, Exception):
            self._shared.errors.append(job.error)
        if convicted(job.strikes):
            self._settle(job, Failure("poison", f"its process died {job.strikes} times while nothing else ran in it"))
        else:
            self._settle(job, classify(job))

    def _settle(self, job: Job, failure: Failure) -> None:
        now = self._now()
        job.failure = failure
        settlement = decide(
            failure, job.job_type.retry, run=job.run, attempt=job.attempt, origin=job.origin, now=now
        )
        if settlement.due is not None and job.job_type.strict and self._park(job, settlement, now):
            self._send_from_place(job)
            return
        job.outcome = settlement.outcome.value
        job.due_again = settlement.due or 0.0
        if settlement.letter is not None:
            self._bury(job, settlement.letter)
        elif settlement.due is not None:
            record = retry_record(self._shared.routes, job, settlement, failure, now)
            self._begin(job, record, lambda: self._settled(job, acked=True), lambda: self._too_large(job))
        elif job in self._children:
            self._begin(job, None, lambda: self._settled(job, acked=True))
        else:
            self._settled(job)

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
        self.settler.settle(item)

    def _send_from_place(self, job: Job) -> None:
        """`key_strict`: the job was snoozed and keeps its place; its child jobs go out with the commit that counts this start."""
        children = self._children.pop(job, ())
        if children:
            self.settler.settle(Family(job.home, -1, None, children, lambda: None))

    def _settled(self, job: Job, *, acked: bool = False) -> None:
        """What the settlement asked for (if anything) is acknowledged: the offset is finished."""
        home = job.home
        home.tracker.finish(job.offset)
        self._tell([job], told=acked and self._shared.transactions is not None)
        if job.kind == QUARANTINE:
            self._shared.suspects.acquit(job)
        if job.job_type.strict:
            home.parked.pop(job.offset, None)
            self._dispatcher.stopped(job)

    def _bury(self, job: Job, reason: Reason) -> None:
        text = job.failure.reason if job.failure else ""
        job.letter = reason.value
        cause = Cause(reason, job.error, text, job.run, job.attempt, {"sj_strikes": job.strikes} if job.strikes else {})
        record = letter_record(self._shared.routes, job.message, job.home, job.full_meta, cause)
        self._begin(job, record, lambda: self._buried(job, reason))

    def _buried(self, job: Job, reason: Reason) -> None:
        self._settled(job, acked=True)
        for hook in self._shared.dead_hooks:
            try:
                hook(job, reason.value)
            except Exception:
                logger.exception("an on_dead hook failed for %r; the letter is kept all the same", job)

    def _too_large(self, job: Job) -> Record:
        """A retry that the topic refuses for its size becomes a letter (PROTOCOLS §2)."""
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
        home.parked[job.offset] = Parked(job.offset, parked.starts + 1, blocked_s)
        home.tracker.touch()  # else a crash forgets how often it started, unless another job has finished since
        job.run, job.attempt = settlement.run, settlement.attempt
        job.error = None
        job.children = ()
        job.kind = job.job_type.kind
        if job.strikes and QUARANTINE in self._shared.executors:
            job.kind = QUARANTINE
            self._shared.suspects.note(job)
        self.arrivals.wake_at(due, job)
        return True

    # Fetching ---------------------------------------------------------------------------------------------------------

    def _has_enough(self) -> bool:
        """Whether no slot would gain by another batch now: then results are waited for, and nothing is read while they come.

        *Bites*: of one hot key a single job is ready, however many wait behind it; read on for more that are ready, the partition
        fills up, is paused and resumed, and what the client had fetched ahead is thrown away each time.
        """
        if not self.execution.saturated():
            return False
        unfinished = sum([home.tracker.unfinished - home.waiting for home in self.poller.partitions.values()])
        return bool(unfinished > self._shared.credit)

    def _fetch(self) -> int:
        ready = self._dispatcher.count()
        closed = self.draining or self.committer.overdue
        limit = 0 if closed else max(0, min(BATCH, self._shared.credit - ready))
        messages = self.poller.fetch(limit, self._fetch_wait(ready))
        if self.poller.faults:
            self._take_faults()
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self.committer.commit_first(fresh)
        self.arrivals.take_learned()
        if messages:
            touched = self.arrivals.receive(messages, self.poller.partitions)
            self.poller.weigh(messages, touched)
            self.poller.admit(touched)
            for home, count in touched.items():
                self.metrics.count("jobs_received_total", home.queue, self.tier, by=count)
        return len(messages)

    def _fetch_wait(self, ready: int) -> float:
        """How long to wait for records: not at all with work at hand, shortly while jobs wait behind their keys."""
        if ready:
            return 0.0
        wait = 0.001 if self.settler.unacknowledged else self._idle_s
        due = self.arrivals.next_due()
        if due is not None:
            wait = min(wait, max(0.0, due - self._now()))
        waiting = self._behind_keys() or (QUARANTINE in self._shared.executors and self._dispatcher.count(QUARANTINE))
        return min(wait, 0.001) if self.execution.out and waiting else wait

    def _behind_keys(self) -> bool:
        return any(home.lanes for home in self.poller.partitions.values())

    # Holding ----------------------------------------------------------------------------------------------------------

    def _why_held(self) -> Callable[[Job], str | None] | None:
        """Asked for each job that is handed out, while anything may not run now."""
        return self.holds.why if self.holds.anything() else None

    def _tend_holds(self) -> None:
        """Releases what may run again, lets one job try a broken type, and moves held jobs that are in the way."""
        held = self._dispatcher.held
        probed = self.holds.probe(held)
        if probed is not None:
            held[probed][0].probe = True
            self._dispatcher.release(probed, limit=1)
        for reason in [reason for reason, jobs in held.items() if jobs and self.holds.why(jobs[0]) != reason]:
            self._dispatcher.release(reason)
        if held and self._mono() - self._tended >= TEND_S:
            self._tended = self._mono()
            self._move_to_ladder(self._in_the_way()[:TEND_JOBS])
        self.poller.bar({queue for queue in self._queues if self.holds.queue_held(queue, self._types_of(queue))})

    def _types_of(self, queue: str) -> list[str]:
        return [name for name, job_type in self._shared.job_types.items() if job_type.queue == queue]

    def _in_the_way(self) -> list[Job]:
        """Held jobs that use half of a limit of their partition, or let a runnable job of their key wait for 30 s."""
        now = self._mono()
        found = []
        pressed = {home for home in self.poller.partitions.values() if self.poller.used(home) >= 0.5}
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
        return isinstance(behind, Job) and behind.job_type is not job.job_type and self.holds.why(behind) is None

    def _move_to_ladder(self, jobs: Collection[Job]) -> None:
        """The same run, no attempt charged; they come back after 1, 2, 4, 8, 10, 10 … minutes, never past the hold's end."""
        self._dispatcher.let_go(jobs)
        for job in jobs:
            self._move(job)

    def _move(self, job: Job) -> None:
        meta, until = job.full_meta, self.holds.until(job)
        due = self._now() + 60 * HOLD_MINUTES[min(meta.holds, len(HOLD_MINUTES) - 1)]
        job.due_again = due if until is None else min(due, until)
        job.outcome = "held"
        self.arrivals.hold(job.message, job.home, meta, job.due_again, "held")
        self.events.add([job])
        self._dispatcher.stopped(job)

    # Ticking ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> int:
        settled = self.settler.settled
        if self.committer.due():
            self.poller.obey_orders()
            if not self.topic_ids.empty():
                self.poller.topics_seen(self.topic_ids.get_nowait())
            self.committer.tick(self._event_records())
        else:
            self.committer.advance()
        return self.settler.settled - settled

    def _event_records(self) -> list[tuple[Record, int]]:
        if self.events.mode == "off":
            return []
        self._tell_started()
        if self._shared.transactions is not None:
            return []  # each transaction takes its own
        return [(self._event_record(packet), packet.events) for packet in self.events.take(self._now())]

    def _event_record(self, packet: Packet) -> Record:
        return Record(self._shared.routes.names.events, packet.value, self._shared.worker_id.encode())

    def _tell_started(self) -> None:
        """Jobs that run at this tick and were not told of yet."""
        running = [job for job in self.execution.running() if job.started_at]
        fresh = [job for job in running if (job.epoch, job.offset) not in self._told]
        self._told = {(job.epoch, job.offset) for job in running}
        if fresh:
            self.events.started(fresh)

    def _events_dropped(self, count: int) -> None:
        self.events.drop(count)
        self.metrics.count("lifecycle_events_dropped_total", self._shared.group, "timeout", by=count)

    def _committed(self, home: Partition) -> None:
        """After the first acknowledged commit, a mark says that the group has worked here (PROTOCOLS §3); a seek order that is
        carried out and committed is taken away, with those that it overtook."""
        if not home.started:
            home.started = True
            self._shared.mark_started(self.group, home)
        if home.beginning.why is Why.SOUGHT and not home.sought_told:
            home.sought_told = True
            keys = self._desired().seek_keys(self.group, home.topic, home.number, home.beginning.sought)
            self._shared.take_away(keys)

    def gauge(self) -> None:
        """Sets the gauges of this moment; called where metrics are read."""
        homes = list(self.poller.partitions.values())
        self.metrics.replace("jobs_running", _counted((job.queue, job.type) for job in self.execution.running()))
        self.metrics.replace("partitions_assigned", _counted((home.queue, self.tier) for home in homes))
        self.metrics.replace("partitions_paused", _counted((home.queue, "backpressure") for home in homes if home.full))
        age_s = self._mono() - self.turned_at
        self.metrics.set("worker_last_progress_timestamp_seconds", self._now() - age_s, self.group, self.tier)

    # Rebalances: called inside `poller.fetch` -------------------------------------------------------------------------

    def arrived(self, partition: Partition, beginning: Beginning) -> None:
        partition.place = self._shared.marks.place(partition.topic, partition.number)
        self._fresh.append(partition)
        for head in beginning.parked:
            partition.parked[head.offset] = head
        if beginning.suspects:
            self.arrivals.crowds.add(partition)
            logger.warning("%r: %d owners in a row died here: its jobs run one by one", partition, beginning.takeovers)
        for alarm in beginning.alarms:
            if alarm.kind is AlarmKind.JOBS_DELETED:
                self.metrics.count("jobs_deleted_total", partition.queue, self._shared.group, by=alarm.count)
        self.metrics.count("rebalances_total", self.group, "assigned")

    def leaving(self, partitions: Sequence[Partition]) -> None:
        """Starts nothing more of them, waits for what runs, settles, and commits; the partitions that stay go on."""
        shared = self._shared
        budget = min(shared.drain_s, shared.max_poll_interval_s / 2, shared.session_timeout_s / 2)
        deadline = self._mono() + budget
        for home in partitions:
            home.serving = -1
        going = set(partitions)
        self.execution.recall()
        while self._mono() < deadline - min(2.0, budget / 2) and self._busy(going):
            self.execution.take_results(wait=True)
            self.execution.harvest_all()
            self.settler.serve()
            self.arrivals.wake()
            self.execution.hand_out(self._why_held())
        self.execution.harvest_all()
        self.committer.commit_now(partitions, self._event_records(), timeout=min(2.0, budget / 2))

    def _busy(self, going: set[Partition]) -> bool:
        return any(job.home in going for job in self.execution.running()) or any(home.open for home in going)

    def gone(self, partitions: Sequence[Partition], *, lost: bool) -> None:
        going = {TopicPartition(home.topic, home.number) for home in partitions}
        for home in partitions:
            home.serving = -1
            self._dispatcher.drop(home)
        self.settler.forget(going)
        if self._shared.transactions is not None:
            self.events.forget(is_gone)
        self.arrivals.forget_stale()
        self.metrics.count("rebalances_total", self.group, "lost" if lost else "revoked", by=len(partitions))

    def _take_faults(self) -> None:
        faults, self.poller.faults = self.poller.faults, []
        for tp, error in faults:
            self._take_fault(tp, error)

    def _take_fault(self, tp: TopicPartition | None, error: BrokerError) -> None:
        if error.fatal:
            raise Stopped(f"the consumer of group {self.group} can't go on: {error}") from error
        if error.code == "_AUTO_OFFSET_RESET" and tp is not None:
            # What it wanted to read is not in the log (deleted, truncated): decide anew where it begins.
            self.poller.begin_again([tp])
            return
        logger.warning("group %s%s: %s", self.group, f" on {tp.topic}/{tp.partition}" if tp else "", error)


def _counted(labels: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    return {of: float(count) for of, count in Counter(labels).items()}
