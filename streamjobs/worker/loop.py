"""The loop: one consumer's road from poll to commit (DESIGN.md §2). Main and retry topics have one each, of this class.

A turn takes results, settles, wakes what is due, fetches, hands out and commits. Nothing else touches the loop's state.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from queue import SimpleQueue

from streamjobs.broker import TopicPartition
from streamjobs.core.assignment import AlarmKind, Beginning, Why
from streamjobs.core.control import Desired
from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Entry, Partition
from streamjobs.errors import BrokerError
from streamjobs.job import Job
from streamjobs.telemetry.events import EventBatch
from streamjobs.worker import Stopped
from streamjobs.worker.admit import Arrivals
from streamjobs.worker.cancels import Cancels
from streamjobs.worker.commit import Committer, Ticking
from streamjobs.worker.execute import Execution
from streamjobs.worker.executors import Chunk
from streamjobs.worker.holds import HeldJobs, Holds
from streamjobs.worker.outcomes import Outcomes
from streamjobs.worker.poll import Poller
from streamjobs.worker.reporting import Reporting
from streamjobs.worker.settle import Settler
from streamjobs.worker.shared import Shared, commit_answered
from streamjobs.worker.sleepers import Sleepers, earliest
from streamjobs.worker.transact import Gathered, Telling, Transactor, is_gone
from streamjobs.worker.turns import Turns

logger = logging.getLogger(__name__)

BATCH = 250
#: How often a loop looks after its running jobs: time-outs, stuck chunks, cancellations.
WATCH_S = 0.05
#: One wait for acknowledgements while partitions leave and nothing runs.
LEAVING_WAIT_S = 0.05
#: How often the last commit is tried at least, and how long it is between two tries.
LAST_TRIES, LAST_AGAIN_S = 3, 0.2
#: How long the settlements of jobs that hang in threads may take at the end of a drain.
ZOMBIES_S = 5.0


class Loop:
    """One loop of a worker process. `turn` does one round; `run` turns until it is told to stop."""

    def __init__(self, name: str, group: str, topics: Collection[str], shared: Shared) -> None:
        self.name = name
        self.group = group
        self.topics = frozenset(topics)
        self.tier = "main" if name == "main" else "retry"
        self.metrics = shared.new_metrics(shared.group, self.tier)
        self.events = EventBatch(shared.worker_id, shared.group, shared.events_mode)
        self.turns = Turns()
        self.topic_ids: SimpleQueue[Mapping[str, bytes]] = SimpleQueue()
        self.draining = self._begun = False
        self._stop: Callable[[], bool] = lambda: False
        self._shared = shared
        self._desired = shared.view()
        self._now, self._mono = shared.clock.now, shared.clock.monotonic
        self.turned_at = self._progressed = self._mono()
        self._idle_s = 0.001
        self._watched = self._fetched = 0.0
        self._fresh: list[Partition] = []  # arrived, and not committed yet
        self._dispatcher: Dispatcher[Job] = Dispatcher(shared.executors)
        self._sleepers: Sleepers[Entry] = Sleepers(shared.clock)
        gathered = None if shared.transactions is None else Gathered(shared.producer, self._mono)
        self.settler = gathered or Settler(shared.producer, self._mono)
        self.outcomes = Outcomes(shared, self.settler, self._dispatcher, self._sleepers, self.events, self.metrics)
        self.poller = self._new_poller()
        self.execution = self._new_execution()
        self._reporting = Reporting(shared, self.events, self.metrics, self.execution.running)
        self.arrivals = self._new_arrivals()
        self.holds = Holds(shared.app, shared.breakers, self._desired, shared.clock)
        self._held = self._new_held()
        self._cancels = self._new_cancels()
        self.committer = self._new_committer(gathered)

    def _new_poller(self) -> Poller:
        shared = self._shared
        return Poller(
            shared.broker.consumer(
                self.group, instance=shared.instance and f"{shared.instance}-{self.name}", patient=self.tier == "retry"
            ),
            self.group,
            admin=shared.admin,
            names=shared.routes.names,
            desired=self._desired,
            limits=shared.admission,
            owner=self,
            clock=shared.clock,
        )

    def _new_execution(self) -> Execution:
        return Execution(
            self._shared.executors,
            self._dispatcher,
            self._mono,
            finished=self.outcomes.ended,
            returned=self.outcomes.returned,
            overdue=self.outcomes.overdue,
            wavers=self._shared.breakers.wavers,
            run_inline=None if self._shared.run_inline is None else self._run_inline,
            inline_kinds=("threads", "aio") if self._shared.transactions is None else ("threads",),
        )

    def _run_inline(self, chunk: Chunk) -> None:
        """In this thread; or, of async handlers, in the event loop's, which turns this loop then as long as there is one after the other.

        *Bites*, in this thread whichever it is: the event loop's turns, and finds brief jobs with `def` handlers. They run where an event loop
        runs already, so their own `asyncio.run()` fails, and one that blocks holds up all async handlers of the process.
        """
        assert self._shared.run_inline is not None
        if chunk.kind == "aio":
            chunk.inline = True
            self.turns.lend_with(chunk, self._shared.executors[chunk.kind].submit, self._turn_elsewhere)
        elif self.turns.borrowed:
            self._shared.executors[chunk.kind].submit(chunk)
        else:
            with self.turns.lent():
                self._shared.run_inline(chunk)

    def _turn_elsewhere(self) -> None:
        """Between two chunks, in the event loop's thread; unless what failed might call a hook of the user's there, which may block."""
        failed = any(job.error is not None for chunk in self.execution.out for job in chunk.done)
        if not (failed or self.settler.open or self._stop()):
            self.turn()

    def _new_arrivals(self) -> Arrivals:
        shared = self._shared
        return Arrivals(
            app=shared.app,
            group=shared.group,
            routes=shared.routes,
            decoder=shared.decoder,
            dispatcher=self._dispatcher,
            settler=self.settler,
            sleepers=self._sleepers,
            desired=self._desired,
            now=self._now,
            metrics=self.metrics,
            events=self.events,
            settle=self.outcomes.settle,
            learn_schemas=shared.learn_schemas,
            hold_s=shared.hold_s,
        )

    def _new_held(self) -> HeldJobs:
        queues = {role.queue for topic in self.topics if (role := self._shared.routes.names.role(topic))}
        job_types = self._shared.job_types.items()
        return HeldJobs(
            self.holds,
            self._dispatcher,
            self.poller,
            self.events,
            self._shared.clock,
            types_of={queue: [name for name, job_type in job_types if job_type.queue == queue] for queue in queues},
            hold=self.arrivals.refusals.hold,
            returned=self.outcomes.returned,
        )

    def _new_cancels(self) -> Cancels:
        return Cancels(
            self._shared.app,
            self._desired,
            self._now,
            dispatcher=self._dispatcher,
            sleepers=self._sleepers,
            execution=self.execution,
            heads=self._heads,
            returned=self.outcomes.returned,
        )

    def _heads(self) -> Iterable[Entry | None]:
        return (*self._dispatcher.heads(), *self._sleepers, *self.execution.heads(), *self.settler.jobs(), *self.arrivals.refusals.heads)

    def _new_committer(self, gathered: Gathered | None) -> Committer:
        shared = self._shared
        told = functools.partial(commit_answered, self.metrics, self.group)
        how = Ticking(shared.tick_s, self._mono, self._committed, self._reporting.dropped, shared.session_timeout_s, told)
        if gathered is None or shared.transactions is None:
            return Committer(self.poller, shared.producer, how)
        return Transactor(self.poller, gathered, shared.transactions, how, Telling(self.events, self._reporting.record, self._now))

    # Life -------------------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> bool:
        """Turns until `stop()`, then drains. False: work was abandoned at drain. Raises Stopped, and TakenOver: called again, in another
        thread, it goes on."""
        self._stop = stop
        try:
            if not self._begun:
                self._begun = True
                self.committer.begin()
                self.poller.subscribe(self.topics)
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
        happened += self._sleepers.wake()
        self._cancels.obey()
        self.poller.admit_again()
        if taken or not enough or self.turned_at - self._fetched >= WATCH_S:
            self._fetched = self.turned_at
            happened += self._fetch()
        if not self.draining:
            self._hand_out(inline=True)
            if self.execution.elsewhere and not self._dispatcher.count():
                time.sleep(0)  # a thread that was woken gets the interpreter now, not when this one next waits
        if self.execution.out or not self._dispatcher.count() or self.committer.doubted:
            self._progressed = self.turned_at
        happened += self._tick()
        if self.turned_at - self._watched >= WATCH_S:
            self._watched = self.turned_at
            self.execution.watch()
            self._held.tend()
        self._idle_s = 0.001 if happened else min(self._shared.longest_wait(at_rest=self._at_rest()), self._idle_s * 2)
        return bool(happened)

    def _at_rest(self) -> bool:
        """Whether nothing is under way, the next commit included."""
        homes = self.poller.partitions.values()
        uncommitted = any(home.committed_version != home.tracker.version for home in homes if home.fetching)
        return self.idle and not self.settler.open and not uncommitted

    def _hand_out(self, *, inline: bool = False) -> None:
        """Gives out what may run; takes back what was not begun while partitions may be another's. Raises TakenOver if `inline`."""
        if self.committer.doubts():
            self.execution.recall()
        elif not self.draining:
            self.execution.hand_out(self.holds.judge(), inline=inline)

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
        uncommitted = self._commit_for_good(deadline)
        unsettled = self.settler.open
        if unsettled:
            logger.warning("%d settlements are left: what they asked for could not be written; those jobs run again", unsettled)
        self.poller.consumer.close()
        for home in self.poller.partitions.values():
            home.epoch = home.serving = -1
        return not (abandoned or uncommitted or unsettled)

    def _commit_for_good(self, deadline: float) -> list[Partition]:
        """Commits until it is done, or the drain time over and a few tries made. What is left uncommitted: its finished jobs run again."""
        for tried in itertools.count(1):
            homes = list(self.poller.partitions.values())
            self.committer.commit_now(homes, self._reporting.records(), timeout=2.0)
            left = [home for home in homes if home.fetching and home.epoch >= 0 and home.committed_version != home.tracker.version]
            if not left or (tried >= LAST_TRIES and self._mono() >= deadline):
                break
            self.poller.fetch(0, LAST_AGAIN_S)
        for home in left:
            logger.warning("%s/%d could not be committed: what was finished there since the last commit runs again", home.topic, home.number)
        return left

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
        the next process, and hangs there, for ever."""
        late = [job for job in self.zombies() if not job.outcome and job.epoch == job.home.epoch]
        for job in late:
            self.outcomes.time_out(job)
        deadline = self._mono() + ZOMBIES_S
        while late and self.settler.open and self._mono() < deadline:
            self.turn()

    def zombies(self) -> list[Job]:
        """Jobs that run in threads, past their timeouts. Any thread may ask."""
        return [chunk.zombie for chunk in list(self.execution.out) if chunk.zombie is not None and chunk.zombie is chunk.current]

    @property
    def finished(self) -> int:
        """So many runs have reached their outcome."""
        return self.outcomes.finished

    def known(self) -> Desired:
        """What the control topic asks for; to be asked from outside only before it runs."""
        return self._desired()

    def stalled_for(self) -> float:
        """For how long (s) jobs have been ready while none was out: a worker that polls and makes no progress is not healthy."""
        return self._mono() - self._progressed

    @property
    def idle(self) -> bool:
        """Nothing runs, waits to run, or is being settled."""
        waiting = self._dispatcher.count() or self.settler.unacknowledged or self.arrivals.refusals.learning
        return not (self.execution.out or waiting)

    def next_due(self) -> float | None:
        """When the next job that waits in memory is due, or the next settlement is tried again; epoch seconds."""
        tried = self.settler.next_try()
        return earliest(self._sleepers.next_due(), None if tried is None else self._now() + tried)

    # Fetching ---------------------------------------------------------------------------------------------------------

    def _has_enough(self) -> bool:
        """Whether no slot would gain by another batch now: then results are waited for, and another batch is read when some have
        come, while no thread wants the interpreter; without any only now and then, for the group's sake.

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
        self.arrivals.refusals.look_again()
        if messages:
            touched = self.arrivals.receive(messages, self.poller.partitions)
            self.poller.weigh(messages, touched)
            self.poller.admit(touched)
            for home, count in touched.items():
                self.metrics.count("jobs_received_total", home.queue, self.tier, by=count)
        return len(messages)

    def _fetch_wait(self, ready: int) -> float:
        """How long to wait for records: not at all with work at hand, or in a thread that is not its own; shortly while jobs wait
        behind their keys."""
        if self.turns.borrowed or (ready and not self.committer.doubted):
            return 0.0
        wait = 0.001 if self.settler.unacknowledged else self._idle_s
        due = self._sleepers.next_due()
        if due is not None:
            wait = min(wait, max(0.0, due - self._now()))
        waiting = self._behind_keys() or (QUARANTINE in self._shared.executors and self._dispatcher.count(QUARANTINE))
        return min(wait, 0.001) if self.execution.out and waiting else wait

    def _behind_keys(self) -> bool:
        return any(home.lanes for home in self.poller.partitions.values())

    # Ticking ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> int:
        settled = self.settler.settled
        if self.committer.due():
            self.poller.obey_orders()
            self.poller.tend_membership()
            if not self.topic_ids.empty():
                self.poller.topics_seen(self.topic_ids.get_nowait())
            self.committer.tick(self._reporting.records())
        else:
            self.committer.advance()
        return self.settler.settled - settled

    def _committed(self, home: Partition) -> None:
        """After the first acknowledged commit, a mark says that the group has worked here; a seek order that is
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
        running, now = self.execution.running(), self._now()
        self.metrics.replace("jobs_running", _counted((job.queue, job.type) for job in running))
        ages = sorted(((job.queue,), max(0.0, now - job.started_at)) for job in running if job.started_at)
        self.metrics.replace("oldest_running_seconds", dict(ages))  # of each queue the last of them, which is the longest
        self.metrics.set("worker_slots_busy", len(running), self._shared.group)
        self.metrics.replace("jobs_buffered", _buffered(homes, running))
        self.metrics.replace("partitions_assigned", _counted((home.queue, self.tier) for home in homes))
        paused = [(home.queue, "held" if home.barred else "backpressure") for home in homes if home.barred or home.full]
        self.metrics.replace("partitions_paused", _counted(paused))
        age_s = self._mono() - self.turned_at
        self.metrics.set("worker_last_progress_timestamp_seconds", now - age_s, self.group, self.tier)

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
        budget = self._revoke_budget()
        deadline = self._mono() + budget
        for home in partitions:
            home.serving = -1
        going = set(partitions)
        self.execution.recall()
        while self._mono() < deadline - min(2.0, budget / 2) and self._busy(going):
            # *Bites*: it waits a minute for a job, as it is allowed to; to its supervisor, and to whoever asks /healthz, it stands still,
            # and is killed with all that runs in it.
            self.turned_at = self._progressed = self._mono()
            self.execution.take_results(wait=True)
            self.execution.harvest_all()
            if not self.execution.out:
                self.settler.wait(LEAVING_WAIT_S)
            self.settler.serve()
            self._sleepers.wake()
            self._hand_out()
        self.execution.harvest_all()
        self.committer.commit_now(partitions, self._reporting.records(), timeout=min(2.0, budget / 2))

    def _revoke_budget(self) -> float:
        """How long (s) leaving partitions may take. A classic member's coordinator expects an answer within its session; and a member that
        leaves to join anew sends no heartbeats."""
        shared = self._shared
        budget = min(shared.drain_s, shared.max_poll_interval_s / 2)
        hurried = self.poller.rejoining or shared.broker.protocol() == "classic"
        return min(budget, shared.session_timeout_s / 2) if hurried else budget

    def _busy(self, going: set[Partition]) -> bool:
        return any(job.home in going for job in self.execution.running()) or any(home.open for home in going)

    def gone(self, partitions: Sequence[Partition], *, lost: bool) -> None:
        going = {TopicPartition(home.topic, home.number) for home in partitions}
        for home in partitions:
            home.serving = -1
            self._dispatcher.drop(home)
        self.settler.forget(going)
        self.committer.forget(going)
        if self._shared.transactions is not None:
            self.events.forget(is_gone)
        self._sleepers.forget_stale()
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


def _buffered(homes: Iterable[Partition], running: Iterable[Job]) -> dict[tuple[str, ...], float]:
    """What of each queue was received and has not started: neither what runs, nor what is being settled, nor what is not due yet."""
    found = {(home.queue,): 0.0 for home in homes}
    for home in homes:
        found[home.queue,] += home.tracker.unfinished - home.open - home.waiting
    for job in running:
        if (job.queue,) in found:
            found[job.queue,] -= 1
    return {of: max(0.0, count) for of, count in found.items()}


def _counted(labels: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    return {of: float(count) for of, count in Counter(labels).items()}
