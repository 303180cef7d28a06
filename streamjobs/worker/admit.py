"""Admitting: what a loop does with each record that arrives: run it, wait for its time, put it aside, drop it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from streamjobs.broker import Message
from streamjobs.core.control import Desired
from streamjobs.core.delay import Climb, Run, on_receive
from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Entry, Partition
from streamjobs.core.lifecycle import Failure
from streamjobs.core.offsets import Tracker
from streamjobs.core.poison import convicted, in_crowd, open_strikes
from streamjobs.job import Job
from streamjobs.telemetry.events import EventBatch
from streamjobs.worker.decode import Decoder
from streamjobs.worker.refusals import Counting, Refusals
from streamjobs.worker.settle import Routes, Settler
from streamjobs.worker.sleepers import Sleepers

logger = logging.getLogger(__name__)

#: So many identities are remembered per partition, and those of unfinished jobs; the oldest are forgotten so many at a time.
COPIES, FORGET = 20_000, 10_000


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
        sleepers: Sleepers[Entry],
        desired: Callable[[], Desired],
        now: Callable[[], float],
        metrics: Counting,
        events: EventBatch,
        settle: Callable[[Job, Failure], None],
        learn_schemas: Callable[[Callable[[], None]], None],
        hold_s: float,
    ) -> None:
        self._app = app
        self._group = group
        self._decoder = decoder
        self._dispatcher = dispatcher
        self._sleepers = sleepers
        self._desired = desired
        self._now = now
        self._settle = settle
        self._hold_s = hold_s
        self.refusals = Refusals(
            app=app,
            routes=routes,
            decoder=decoder,
            dispatcher=dispatcher,
            settler=settler,
            sleepers=sleepers,
            desired=desired,
            now=now,
            metrics=metrics,
            learn_schemas=learn_schemas,
            hold_s=hold_s,
            admit=self._admit,
            enter=self._enter,
            events=events,
        )
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
        receive = home.tracker.receive
        if not home.tracker.receive_run(messages[0].offset(), messages[-1].offset(), len(messages)):
            messages = [message for message in messages if receive(message.offset())]  # the others are finished
        taken = 0
        while taken < len(messages):
            plain = [] if wary or home.parked else self._decoder.decode_plain(messages[taken:], home)
            self._add_all(plain)
            taken += len(plain)
            if taken < len(messages):
                self._receive_any(messages[taken], home)
                taken += 1
        return taken

    def _add_all(self, plain: list[Job]) -> None:
        """They are asked for only while orders stand by which any of them could be over."""
        desired = self._desired()
        if desired.anything_cancelled or desired.anything_skipped:
            now = self._now()
            plain = [job for job in plain if not self._is_over(job, now)]
        if plain:
            self._dispatcher.add_all(plain)

    def _receive_any(self, message: Message, home: Partition) -> None:
        job = self._decoder.decode(message, home)
        if isinstance(job, Job):
            self._admit(job)
        else:
            self.refusals.refuse(job)

    def _admit(self, job: Job) -> None:
        """A job whose headers say more than type and id: a copy, expired, cancelled, not due yet, or ready.

        A parked one keeps its place, whatever its due time. *Bites*: it has started at an owner whose clock is ahead; here it is due
        in three seconds, and the next job of its key starts first.
        """
        meta, home, now = job.full_meta, job.home, self._now()
        if self._is_done_with(job, now):
            return
        if job.offset in home.parked:
            self._dispatcher.add(job)
            return
        came_down = bool(meta.next)
        step = on_receive(
            now, job.due, job.appended_at, came_down=came_down, waiting=home.waiting, moves=meta.holds, hold_s=self._hold_s
        )
        if isinstance(step, Run):
            self._dispatcher.add(job)
        elif isinstance(step, Climb):
            self.refusals.hold(job.message, home, meta, job.due, meta.reason or "delayed")
        else:
            home.waiting += 1
            self._sleepers.wake_at(step.until, job, self._is_due)

    def _enter(self, job: Job) -> None:
        """A job that could not be read before, and has its place, at the head of its lane. It may be due in a moment only."""
        now = self._now()
        if self._is_done_with(job, now):
            return
        if job.due > now:
            self._sleepers.wake_at(job.due, job, self._dispatcher.again)
        else:
            self._dispatcher.again(job)

    def _is_done_with(self, job: Job, now: float) -> bool:
        """Whether it is not to run: a copy, over, or poison. Else what it counts is up to date."""
        home = job.home
        if job.full_meta.origin and self._is_copy(job):
            self._skip(job)
            return True
        if self._is_over(job, now):
            return True
        parked = home.parked.get(job.offset)
        if parked is not None:
            job.run += parked.starts
            job.attempt += parked.starts
        return self._is_poison(job, now)

    def _skip(self, job: Job) -> None:
        job.home.tracker.finish(job.offset)
        job.home.parked.pop(job.offset, None)
        self._dispatcher.stopped(job)

    def _is_copy(self, job: Job) -> bool:
        """The same run of the same job, received twice in one epoch of a partition."""
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
        desired = self._desired()
        if job.is_expired(now):
            self._settle(job, Failure("expired", "it did not start in time"))
        elif desired.cancelled(self._app, job.id, job.first_appended_at, now):
            self._settle(job, Failure("cancelled", "cancelled by an order"))
        elif (desired.skip_up_to(self._group, job.origin, now) or 0) >= job.run:
            self._skip(job)
        else:
            return False
        return True

    def _is_poison(self, job: Job, now: float) -> bool:
        """A job that may kill its worker is to run alone; one that did it too often is settled without a start."""
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
        self.refusals.forget_stale()
        self.crowds = {home for home in self.crowds if home.epoch >= 0}


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
