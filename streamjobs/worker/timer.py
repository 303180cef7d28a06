"""The timer: moves what waits in the delay ladder down its tiers and out of it. It runs no handler.

It reads every existing ladder topic of its app, keeps heads in memory until they are released, and finishes an offset only when
the record is acknowledged where it goes. One record that can't leave pins only its own offset.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue

from streamjobs.broker import Message, TopicPartition
from streamjobs.core.assignment import AlarmKind, Beginning
from streamjobs.core.delay import NextTier, on_release, on_undeliverable, release_at
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Meta, Record, replaced
from streamjobs.core.topics import timer_group
from streamjobs.errors import BrokerError, HeaderError
from streamjobs.worker import Stopped
from streamjobs.worker.commit import Committer, Ticking
from streamjobs.worker.decode import lenient
from streamjobs.worker.poll import Poller
from streamjobs.worker.settle import Open, Settler, identity
from streamjobs.worker.shared import Shared, commit_answered
from streamjobs.worker.sleepers import Sleepers, earliest
from streamjobs.worker.transact import Gathered, Transactor

logger = logging.getLogger(__name__)

BATCH = 500
#: So many records of one ladder partition are held at most: the timer reads 40 of them, and a record takes 2.6 kB of memory. More
#: are moved no faster (measured: 20,000 a second with 250, 500 and 2,500).
HELD = 500
#: How often it looks for ladder topics that it does not read yet.
TOPICS_S = 30.0
#: How often an undeliverable destination is tried.
TRY_S = 1.0


class Waiting:
    """A record in a tier."""

    __slots__ = ("epoch", "home", "message", "meta")

    def __init__(self, home: Partition, message: Message, meta: Meta) -> None:
        self.home = home
        self.epoch = home.epoch
        self.message = message
        self.meta = meta


class Timer:
    """One member of the app's timer group; `turn` does one round."""

    name = "timer"

    def __init__(self, shared: Shared) -> None:
        self.group = timer_group(shared.app)
        self.metrics = shared.new_metrics(self.group, "delay")
        self.turned_at = shared.clock.monotonic()
        self.moved = 0
        self.undeliverable: dict[str, BrokerError] = {}
        self.topic_ids: SimpleQueue[Mapping[str, bytes]] = SimpleQueue()
        self._shared = shared
        self._desired = shared.view()
        self._now = shared.clock.now
        self._mono = shared.clock.monotonic
        self._waiting: Sleepers[Waiting] = Sleepers(shared.clock)
        self._tried: dict[str, float] = {}
        self._tiers: dict[str, float] = {}
        self._looked = 0.0
        self._idle_s = 0.001
        gathered = None if shared.transactions is None else Gathered(shared.producer, self._mono)
        self.settler = gathered or Settler(shared.producer, self._mono)
        self.poller = Poller(
            shared.broker.consumer(self.group, patient=True),
            self.group,
            admin=shared.admin,
            names=shared.routes.names,
            desired=self._desired,
            limits=replace(shared.admission, window=min(HELD, shared.admission.window)),
            owner=self,
            clock=shared.clock,
        )
        told = functools.partial(commit_answered, self.metrics, self.group)
        how = Ticking(shared.tick_s, self._mono, self._committed, session_s=shared.session_timeout_s, answered=told)
        if gathered is None or shared.transactions is None:
            self.committer = Committer(self.poller, shared.producer, how)
        else:
            self.committer = Transactor(self.poller, gathered, shared.transactions, how)

    def subscribe(self) -> None:
        """Reads every ladder topic that its app has now, those of tiers that left the settings too."""
        self._looked = self._mono()
        names = self._shared.routes.names
        roles = {topic: names.role(topic) for topic in self._shared.admin.topics()}
        ours = {topic: role for topic, role in roles.items() if role and role.kind == "delay" and role.app == self._shared.app}
        found = {topic: self._shared.routes.ladder.seconds(role.tier) for topic, role in ours.items()}
        if found and found.keys() != self._tiers.keys():
            self._tiers = found
            self.poller.subscribe(found)

    @property
    def topics(self) -> Collection[str]:
        """What it reads. Any thread may ask: another tier makes another dictionary."""
        return self._tiers.keys()

    def run(self, stop: Callable[[], bool]) -> None:
        """Turns until `stop()`, then drains. Raises Stopped."""
        self.committer.begin()
        self.subscribe()
        try:
            while not stop():
                self.turn()
        except Stopped:
            self.poller.consumer.close()
            raise
        self.drain()

    def turn(self) -> bool:
        """One round; True: something happened."""
        self.turned_at = self._mono()
        self._desired()  # takes in what was ordered: nobody else asks while nothing is moved
        self.poller.admit_again()
        happened = self.settler.serve() + self._fetch()
        happened += 0 if self.committer.doubts() else self._waiting.wake()
        settled = self.settler.settled
        if self.committer.due():
            self.poller.tend_membership()
            if not self.topic_ids.empty():
                self.poller.topics_seen(self.topic_ids.get_nowait())
            self.committer.tick([])
        else:
            self.committer.advance()
        happened += self.settler.settled - settled
        if self._mono() - self._looked > TOPICS_S:
            self._look_for_topics()
        longest_s = self._shared.longest_wait(at_rest=self.idle)
        self._idle_s = 0.001 if happened else min(longest_s, self._idle_s * 2)
        return bool(happened)

    def _look_for_topics(self) -> None:
        try:
            self.subscribe()
        except BrokerError as error:
            logger.warning("can't look for ladder topics: %s", error)

    @property
    def idle(self) -> bool:
        return not self.settler.open

    def next_due(self) -> float | None:
        """When the next record is released, or tried again; epoch seconds."""
        tried = self.settler.next_try()
        return earliest(self._waiting.next_due(), None if tried is None else self._now() + tried)

    def drain(self) -> None:
        """Commits what was moved and leaves; what waits, waits for the next owner."""
        self.leaving(list(self.poller.partitions.values()))
        self.poller.consumer.close()

    # Receiving --------------------------------------------------------------------------------------------------------

    def _fetch(self) -> int:
        wait = 0.001 if self.settler.unacknowledged else self._idle_s
        due = self._waiting.next_due()
        if due is not None and not self.committer.doubted:
            wait = min(wait, max(0.0, due - self._now()))
        messages = self.poller.fetch(BATCH, wait)
        for tp, error in self.poller.faults:
            self._take_fault(tp, error)
        self.poller.faults = []
        now = self._now()
        touched: dict[Partition, int] = {}
        for message in messages:
            home = self.poller.partitions.get((message.topic(), message.partition()))
            if home is not None and home.tracker.receive(message.offset()):
                touched[home] = touched.get(home, 0) + 1
                self._wait(home, message, now)
        if touched:
            self.poller.weigh(messages, touched)
            self.poller.admit(touched)
        return len(messages)

    def _wait(self, home: Partition, message: Message, now: float) -> None:
        try:
            meta = Meta.parse(message.headers())
        except HeaderError as error:
            logger.error("%s/%d@%d: %s; it is moved on at once", home.topic, home.number, message.offset(), error)
            meta = lenient(message.headers())
        at = release_at(meta.due, message.timestamp()[1] / 1000, self._tiers.get(home.topic, 60.0), now)
        self._waiting.wake_at(at, Waiting(home, message, meta), self._move)

    def _take_fault(self, tp: TopicPartition | None, error: BrokerError) -> None:
        if error.fatal:
            raise Stopped(f"the timer of {self._shared.app} can't go on: {error}") from error
        if error.code == "_AUTO_OFFSET_RESET" and tp is not None:
            self.poller.begin_again([tp])
        else:
            logger.warning("timer of %s%s: %s", self._shared.app, f" on {tp.topic}/{tp.partition}" if tp else "", error)

    # Releasing --------------------------------------------------------------------------------------------------------

    def _move(self, waiting: Waiting) -> None:
        message, meta, home = waiting.message, waiting.meta, waiting.home
        step = on_release(self._now(), meta.due, self._shared.routes.ladder)
        topic = self._shared.routes.names.delay(self._shared.app, step.tier) if isinstance(step, NextTier) else meta.next
        item = Open(home, message.offset(), self._record(waiting, topic), lambda: self._moved(waiting, item.record.topic))
        if not isinstance(step, NextTier):
            item.retreat = lambda failing_s, error: self._retreat(waiting, failing_s, error)
            refused = self._refused(meta.next)
            if refused is not None:
                item.record = self._retreat(waiting, math.inf, refused) or item.record
        self.settler.settle(item)

    def _record(self, waiting: Waiting, topic: str) -> Record:
        """The same record, further on; of a publisher's delay it is told from now on where the job came from."""
        message = waiting.message
        partition = self._shared.routes.partition(topic, message.key(), waiting.meta.job_id.encode())
        headers = replaced(message.headers(), identity(message, waiting.home, waiting.meta))
        return Record(topic, message.value(), message.key(), headers, partition)

    def _refused(self, destination: str) -> BrokerError | None:
        """A destination is checked against the registrations, never against code: a rolling deploy's old timer does not know
        the new queue. One that is known to be undeliverable is tried by one record a second."""
        if destination in self._desired().registered_topics():
            known = self.undeliverable.get(destination)
            if known is not None and self._mono() - self._tried.get(destination, -math.inf) >= TRY_S:
                self._tried[destination] = self._mono()
                return None
            return known
        return BrokerError("UNKNOWN_TOPIC_OR_PART", f"{destination or 'an empty sj_next'} is no registered topic")

    def _moved(self, waiting: Waiting, topic: str) -> None:
        waiting.home.tracker.finish(waiting.message.offset())
        self.moved += 1
        self.undeliverable.pop(topic, None)

    def _retreat(self, waiting: Waiting, failing_s: float, error: BrokerError) -> Record | None:
        """Back into a tier with a new due time, so that the next record can pass; None: it is tried again where it is.

        At once where a minute has passed for others of its destination, or would pass for all behind it. *Bites*: a queue's topic is
        gone; a window full of its jobs holds up every other queue's delays for a minute, and then the next window does.
        """
        destination, now = waiting.meta.next, self._now()
        if destination in self.undeliverable or (waiting.home.full and not error.retriable):
            failing_s = math.inf
        step = on_undeliverable(now, now - failing_s, self._shared.routes.ladder)
        if step is None:
            return None
        if destination not in self.undeliverable:
            logger.error("undeliverable: delayed jobs can't reach %s: %s; each is tried again every minute", destination, error)
        self.undeliverable[destination] = error
        record = self._record(waiting, self._shared.routes.names.delay(self._shared.app, step.tier))
        return Record(record.topic, record.value, record.key, replaced(record.headers, {"sj_due": step.due}), record.partition)

    # Rebalances -------------------------------------------------------------------------------------------------------

    def gauge(self) -> None:
        """Sets the gauges of this moment; called where metrics are read."""
        progress_at = self._now() - (self._mono() - self.turned_at)
        self.metrics.set("worker_last_progress_timestamp_seconds", progress_at, self.group, "delay")

    def arrived(self, partition: Partition, beginning: Beginning) -> None:
        """*Bites*: somebody gives a ladder topic a retention; delayed jobs and retries go, and no alert knows of it."""
        for alarm in beginning.alarms:
            if alarm.kind is AlarmKind.JOBS_DELETED:
                self.metrics.count("jobs_deleted_total", partition.topic, self.group, by=alarm.count)

    def leaving(self, partitions: Sequence[Partition]) -> None:
        deadline = self._mono() + 2.0
        while any(home.open for home in partitions) and self._mono() < deadline:
            self.settler.wait(0.05)
            self.settler.serve()
        self.committer.commit_now(partitions, [], timeout=2.0)

    def gone(self, partitions: Sequence[Partition], *, lost: bool) -> None:
        going = {TopicPartition(home.topic, home.number) for home in partitions}
        self.settler.forget(going)
        self.committer.forget(going)
        self._waiting.forget_stale()

    def _committed(self, home: Partition) -> None:
        if not home.started:
            home.started = True
            self._shared.mark_started(self.group, home)
