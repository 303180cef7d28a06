"""Quarantine: where suspects run, each alone in a child process, with a strike charged before it starts.

    suspect ──order: strikes + 1, acknowledged──▶ runs alone ──an end that is seen──▶ the strike is taken back
                                                       │ death
                                                       ▼
                                          the strike stays; run + 1, attempt + 1

*Bites*: a container that runs out of memory takes child, worker and supervisor with it; a strike that is written after a death is
never written, and the job kills one container after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from streamjobs.broker import Message, Producer
from streamjobs.core.control import Desired, suspect_key, suspect_value
from streamjobs.core.dispatch import QUARANTINE
from streamjobs.core.poison import SUSPECT_S
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.job import Job
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors.child import Load
from streamjobs.worker.executors.processes import Batch, Child, Keeper, Processes
from streamjobs.worker.marks import Mark, Marks, Row

logger = logging.getLogger(__name__)

#: How long to wait before an order that was refused is written again.
AGAIN_S = 0.5
#: How long an end is kept from its loop until the strike is taken back: many times what a broker takes that answers at all.
ORDER_S = 2.0


class Orders:
    """What a worker orders about the suspects of its group. Any thread may use it."""

    def __init__(self, producer: Callable[[], Producer], topic: str, group: str, actor: str, now: Callable[[], float]) -> None:
        self._producer = producer
        self._topic = topic
        self._group = group
        self._actor = actor
        self._now = now

    def suspect(self, marks: Collection[Mark], known: Desired, give_up: Callable[[], bool]) -> None:
        """Orders that all of these are suspects, and waits until that is acknowledged, however long it takes.

        One that stands is kept: it has strikes, perhaps.
        """
        new = [mark for mark in marks if known.suspect(self._group, *mark[:3], self._now()) is None]
        acks = [self._send(self._order(*mark, 0, "ran when its worker process died")) for mark in new]
        for mark, acked in zip(new, acks, strict=True):
            while not acked.wait_for(self._producer, give_up) and not give_up():
                acked = self._send(self._order(*mark, 0, "ran when its worker process died"))

    def charge(self, job: Job, give_up: Callable[[], bool]) -> bool:
        """One strike more than the job has, acknowledged before it starts; False: given up, and it must not start."""
        while not give_up():
            record = self._order(job.topic, job.partition, job.offset, job.run, job.strikes + 1, "charged before its start")
            if self._send(record).wait_for(self._producer, give_up):
                return True
        return False

    def take_back(self, job: Job, give_up: Callable[[], bool]) -> None:
        """The strike for a start whose end was seen; acknowledged, or given up. What failed and has older strikes stays a suspect until
        its next record, which carries them, is acknowledged."""
        (self.acquit if job.error is None or job.strikes == 0 else self.note)(job).wait_for(self._producer, give_up)

    def note(self, job: Job) -> _Acked:
        """The strikes that it has now."""
        return self._send(self._order(job.topic, job.partition, job.offset, job.run, job.strikes, "strikes that stand"))

    def acquit(self, job: Job) -> _Acked:
        """It is no suspect any more: it ended well, or what becomes of it is settled."""
        return self._send(self._record(suspect_key(self._group, job.topic, job.partition, job.offset), None))

    def _order(self, topic: str, partition: int, offset: int, run: int, strikes: int, reason: str) -> Record:
        now = self._now()
        value = suspect_value(run=run, strikes=strikes, actor=self._actor, reason=reason, at=now, until=now + SUSPECT_S)
        return self._record(suspect_key(self._group, topic, partition, offset), value)

    def _record(self, key: str, value: bytes | None) -> Record:
        return Record(self._topic, value, key.encode(), partition=0)

    def _send(self, record: Record) -> _Acked:
        acked = _Acked()
        try:
            self._producer().send(record, acked)
        except BrokerError as error:
            acked(error, None)
        return acked


class _Acked:
    """The acknowledgement of one order."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BrokerError | None = None

    def __call__(self, error: BrokerError | None, _: Message | None) -> None:
        self._error = error
        self._done.set()

    def wait_for(self, producer: Callable[[], Producer], give_up: Callable[[], bool]) -> bool:
        """False: refused, or given up."""
        while not self._done.is_set() and not give_up():
            producer().poll(0.01)
        if self._error is None:
            return self._done.is_set()
        logger.warning("an order about a suspect can't be written (%s); nothing of it starts before that", self._error)
        self._done.clear()
        self._done.wait(AGAIN_S)
        return False


class Warden(Keeper):
    """Keeps the one child in which suspects run."""

    def __init__(self, orders: Orders, load: Load, gate: Gate, marks: Marks, row: Row, stopping: threading.Event) -> None:
        super().__init__(load, gate, marks, row, stopping)
        self._orders = orders
        self._strikes = 0  # those of the job that runs, before it started

    def _run_heads(self, chunk: Chunk, heads: list[Job], child: Child) -> None:
        for job in heads:
            chunk.current = job
            if self._gate.bars(job) or not self._charge(job):
                chunk.returned.append(job)
                continue
            self._strikes = job.strikes
            logger.warning("%r is a suspect (strikes: %d): it runs alone", job, job.strikes)
            self._run(chunk, [job], [(0, 0)], child)
            if job not in chunk.done:
                self._orders.note(job)

    def _charge(self, job: Job) -> bool:
        if self._orders.charge(job, lambda: self._gate.bars(job) or self._stopping.is_set()):
            return True
        self._orders.note(job)
        return False

    def _end(self, chunk: Chunk, batch: Batch, index: int) -> None:
        """Takes the strike back, unless the child died of the job; then the loop hears of the end.

        *Bites*, the other way round: the loop settles it at once, and the worker is killed in the middle of that. The strike stands,
        for a job that had ended; the third time it is buried as poison, and it never did any harm.
        """
        job = batch.jobs[index]
        if job.strikes == self._strikes:
            until = time.monotonic() + ORDER_S
            self._orders.take_back(job, lambda: self._stopping.is_set() or time.monotonic() > until)
        super()._end(chunk, batch, index)


class Quarantine(Processes):
    """Runs suspects one by one, whatever executor their job types ask for."""

    kind = QUARANTINE

    def __init__(self, gate: Gate, load: Load, marks: Marks, orders: Orders) -> None:
        super().__init__(1, gate, load, marks)
        self.orders = orders

    def _keeper(self, row: Row) -> Keeper:
        return Warden(self.orders, self._load, self._gate, self._marks, row, self._stopping)
