"""Admitting: what a loop does with each record that arrives: run it, wait for its time, put it aside, bury it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from streamjobs.broker import Message
from streamjobs.core.control import Desired
from streamjobs.core.delay import HOLD_MINUTES, Climb, Run, on_receive
from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Partition
from streamjobs.core.lifecycle import Failure, Reason
from streamjobs.core.offsets import Tracker
from streamjobs.core.poison import convicted, in_crowd, open_strikes
from streamjobs.core.record import Meta
from streamjobs.job import Job
from streamjobs.worker.decode import Decoder, Undecodable
from streamjobs.worker.settle import Cause, Open, Routes, Settler, held_record, letter_record
from streamjobs.worker.sleepers import Sleepers

logger = logging.getLogger(__name__)

#: So many identities are remembered per partition, and those of unfinished jobs; the oldest are forgotten so many at a time.
COPIES, FORGET = 20_000, 10_000
_DECODE_LABELS = {"undecodable": "payload", "type_unknown": "header", "schema_unknown": "schema", "tombstone": "payload"}


class Counting(Protocol):
    def count(self, name: str, *labels: str, by: float = 1) -> None: ...


class Arrivals:
    """The records of one loop that arrived and are not in a lane yet. One owner: the loop's thread.

    `settle` gets jobs that are over without a run.
    """

    def __init__(
        self,
        *,
        app: str,
        group: str,
        routes: Routes,
        decoder: Decoder,
        dispatcher: Dispatcher[Job],
        settler: Settler,
        sleepers: Sleepers,
        desired: Callable[[], Desired],
        now: Callable[[], float],
        metrics: Counting,
        settle: Callable[[Job, Failure], None],
        learn_schemas: Callable[[Callable[[], None]], None],
        hold_s: float,
    ) -> None:
        self._app = app
        self._group = group
        self._routes = routes
        self._decoder = decoder
        self._dispatcher = dispatcher
        self._settler = settler
        self._sleepers = sleepers
        self._desired = desired
        self._now = now
        self._metrics = metrics
        self._settle = settle
        self._learn_schemas = learn_schemas
        self._hold_s = hold_s
        self._unknown: list[Undecodable] = []
        self._learned: SimpleQueue[bool] = SimpleQueue()
        self.crowds: set[Partition] = set()
        """Partitions whose jobs are suspects because owner after owner died there."""

    def receive(self, messages: Sequence[Message], partitions: Mapping[tuple[str, int], Partition]) -> dict[Partition, int]:
        """Takes a batch; returns how many records of each partition were new."""
        wary = bool(self.crowds) or self._desired().anything_suspected
        touched: dict[Partition, int] = {}
        for where, run in _runs(messages):
            home = partitions.get(where)
            if home is not None:  # else it is not ours any more (edge 6)
                touched[home] = touched.get(home, 0) + self._receive_run(run, home, wary)
        return {home: count for home, count in touched.items() if count}

    def _receive_run(self, messages: Sequence[Message], home: Partition, wary: bool) -> int:
        decode, add, receive = self._decoder.decode, self._dispatcher.add, home.tracker.receive
        count = 0
        for message in messages:
            if not receive(message.offset()):
                continue  # finished before
            count += 1
            job = decode(message, home)
            if job.meta is None and not (wary or home.parked):
                add(job)  # what is no job has a meta
            elif isinstance(job, Job):
                self._admit(job)
            else:
                self._refuse(job)
        return count

    def _admit(self, job: Job) -> None:
        """A job whose headers say more than type and id: a copy, expired, cancelled, not due yet, or ready.

        A parked one keeps its place, whatever its due time. *Bites*: it has started at an owner whose clock is ahead; here it is due
        in three seconds, and the next job of its key starts first.
        """
        meta, home, now = job.full_meta, job.home, self._now()
        if meta.origin and self._is_copy(job):
            home.tracker.finish(job.offset)
            return
        if self._is_over(job, now):
            return
        parked = home.parked.get(job.offset)
        if parked is not None:
            job.run += parked.starts
            job.attempt += parked.starts
        if self._is_poison(job, now):
            return
        if parked is not None:
            self._dispatcher.add(job)
            return
        came_down = bool(meta.next)
        step = on_receive(
            now, job.due, job.appended_at, came_down=came_down, waiting=home.waiting, moves=meta.holds, hold_s=self._hold_s
        )
        if isinstance(step, Run):
            self._dispatcher.add(job)
        elif isinstance(step, Climb):
            self.hold(job.message, home, meta, job.due, meta.reason or "delayed")
        else:
            home.waiting += 1
            self._sleepers.wake_at(step.until, job, self._is_due)

    def _is_copy(self, job: Job) -> bool:
        """The same run of the same job, received twice in one epoch of a partition (PROTOCOLS §1)."""
        meta, copies = job.full_meta, job.home.copies
        identity = (meta.origin, meta.run, meta.holds)
        if identity in copies:
            logger.info("%r is a copy of the record at offset %d: skipped", job, copies[identity])
            return True
        copies[identity] = job.offset
        if len(copies) % FORGET == 0 and len(copies) > COPIES:
            _forget_oldest(copies, job.home.tracker)
        return False

    def _is_over(self, job: Job, now: float) -> bool:
        """Expired, cancelled or skipped by an order: settled without a run."""
        meta, desired = job.full_meta, self._desired()
        if meta.expires and now > meta.expires:
            self._settle(job, Failure("expired", "it did not start in time"))
        elif desired.cancelled(self._app, job.id, job.first_appended_at, now):
            self._settle(job, Failure("cancelled", "cancelled by an order"))
        elif (desired.skip_up_to(self._group, job.origin, now) or 0) >= job.run:
            job.home.tracker.finish(job.offset)
        else:
            return False
        return True

    def _is_poison(self, job: Job, now: float) -> bool:
        """A job that may kill its worker is to run alone; one that did it too often is settled without a start (PROTOCOLS §9)."""
        home = job.home
        order = self._desired().suspect(self._group, home.topic, home.number, job.offset, now)
        strikes = open_strikes(job.strikes, order, job.appended_at, crowd=self._in_crowd(home))
        if strikes is None:
            return False
        job.strikes = job.full_meta.strikes = strikes
        if convicted(strikes):
            job.kind = QUARANTINE  # so that the order about it is taken away with it
            self._settle(job, Failure("poison", f"its process died {strikes} times while nothing else ran in it"))
            return True
        if QUARANTINE in self._dispatcher.ready:
            job.kind = QUARANTINE
        return False

    def _in_crowd(self, home: Partition) -> bool:
        if home not in self.crowds:
            return False
        if in_crowd(home.beginning, home.tracker.base, home.crowd):
            home.crowd += 1
            return True
        self.crowds.discard(home)
        return False

    def _is_due(self, job: Job) -> None:
        job.home.waiting -= 1
        if not self._is_over(job, self._now()):
            self._dispatcher.add(job)

    def forget_stale(self) -> None:
        """Drops what waits of partitions that have left."""
        self._unknown = [bad for bad in self._unknown if bad.home.epoch >= 0]
        self.crowds = {home for home in self.crowds if home.epoch >= 0}

    # What is no job ---------------------------------------------------------------------------------------------------

    def _refuse(self, bad: Undecodable) -> None:
        if bad.kind == "tombstone":
            logger.warning("%s/%d@%d has no value: skipped", bad.home.topic, bad.home.number, bad.message.offset())
            self._metrics.count("decode_errors_total", bad.home.queue, _DECODE_LABELS[bad.kind])
            bad.home.tracker.finish(bad.message.offset())
        elif bad.kind == "schema_unknown":
            self._learn(bad)
        else:
            self._put_aside(bad)

    def _learn(self, bad: Undecodable) -> None:
        """Its schema may have come after the last look at the schema topic: look again, then decide (PROTOCOLS §14)."""
        self._unknown.append(bad)
        if len(self._unknown) == 1:
            self._learn_schemas(lambda: self._learned.put(True))

    @property
    def learning(self) -> bool:
        """Records wait for a look at the schema topic."""
        return bool(self._unknown)

    def take_learned(self) -> None:
        """Decides over the records that waited for a look at the schema topic, once it has been taken."""
        if self._learned.empty():
            return
        self._learned.get_nowait()
        waiting, self._unknown = self._unknown, []
        for bad in waiting:
            job = self._decoder.decode(bad.message, bad.home)
            if isinstance(job, Job):
                self._admit(job)
            else:
                self._put_aside(job)

    def _put_aside(self, bad: Undecodable) -> None:
        """What another version of the code may know waits in the ladder for an hour; the rest is a letter at once."""
        self._metrics.count("decode_errors_total", bad.home.queue, _DECODE_LABELS[bad.kind])
        holds = bad.meta.holds if bad.meta.reason == bad.kind else 0
        if bad.kind == "undecodable" or holds >= len(HOLD_MINUTES):
            self._bury(bad)
            return
        minutes = HOLD_MINUTES[holds]
        where = f"{bad.home.topic}/{bad.home.number}@{bad.message.offset()}"
        logger.warning("%s: %s; it waits %d min for a worker that knows it", where, bad.error, minutes)
        self.hold(bad.message, bad.home, bad.meta, self._now() + 60 * minutes, bad.kind)

    def _bury(self, bad: Undecodable) -> None:
        cause = Cause(Reason(bad.kind), bad.error, run=bad.meta.run, attempt=bad.meta.attempt)
        record = letter_record(self._routes, bad.message, bad.home, bad.meta, cause)
        logger.error("%s/%d@%d is a dead letter: %s", bad.home.topic, bad.home.number, bad.message.offset(), bad.error)
        self._settler.settle(Open(bad.home, bad.message.offset(), record, lambda: self._buried(bad)))

    def _buried(self, bad: Undecodable) -> None:
        bad.home.tracker.finish(bad.message.offset())
        self._metrics.count("dead_letters_total", bad.home.queue, "_unknown", bad.kind)

    def hold(self, message: Message, home: Partition, meta: Meta, due: float, reason: str) -> None:
        """Moves a record to the ladder without a new run."""
        record = held_record(self._routes, message, home, meta, due, reason, self._now())
        offset = message.offset()
        self._settler.settle(Open(home, offset, record, lambda: home.tracker.finish(offset)))


def _forget_oldest(copies: dict[tuple[str, int, int], int], tracker: Tracker) -> None:
    """Whose offsets are finished. *Bites*: asked whether the base has passed them, a slow job at the base keeps them all, and every
    record that comes looks through them once more."""
    for identity in list(itertools.islice(copies, FORGET)):
        if not tracker.is_open(copies[identity]):
            del copies[identity]


def _runs(messages: Sequence[Message]) -> Iterator[tuple[tuple[str, int], Sequence[Message]]]:
    """What lies together of one partition: a batch comes partition by partition, so to look for the border costs least."""
    topic, number, began = "", -1, 0
    for place, message in enumerate(messages):
        if message.partition() != number or message.topic() != topic:
            if place:
                yield (topic, number), messages[began:place]
            topic, number, began = message.topic(), message.partition(), place
    yield (topic, number), messages[began:]
