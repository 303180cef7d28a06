"""Producers of a MemoryBroker: a plain one and a transactional one."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamjobs.broker import Ack, Commit, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.testing.consumer import MAX_METADATA_UNITS, GroupMetadata
from streamjobs.testing.faults import broker_error, to_abort
from streamjobs.testing.log import MemoryMessage, Transaction, metadata_units, size
from streamjobs.testing.state import Link, State, TransactionalId, error_of

log = logging.getLogger("streamjobs.testing")

#: What retry and dead-letter headers may add to a job of the largest size.
_HEADROOM = 65_536


@dataclass(slots=True)
class Outgoing:
    record: Record
    ack: Callable[..., object] | None  # what it is about is bound to it
    deadline: float


@dataclass(slots=True)
class Answer:
    ack: Callable[..., object] | None
    error: BrokerError | None
    message: MemoryMessage

    def tell(self) -> None:
        """An exception out of an acknowledgement would surface in whoever polls: it is logged instead."""
        try:
            if self.ack is not None:
                self.ack(self.error, self.message)
        except Exception:
            log.exception("an acknowledgement callback failed")


class MemoryProducer:
    """See `streamjobs.broker.Producer`. A record is stored by `send`, always alone, and acknowledged by `poll`."""

    def __init__(self, state: State, *, within: float | None = None) -> None:
        self._state = state
        self._within = state.limits.message_timeout if within is None else within
        self._link = Link(state)
        self._waiting: deque[Outgoing] = deque()
        self._answers: deque[Answer] = deque()
        self._fatal: BrokerError | None = None
        with state.lock:
            state.senders.append(self)

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        if ack is not None and about is not None:
            ack = partial(ack, about)
        with self._state.lock:
            self._check(record)
            deadline = self._state.clock.monotonic() + self._within
            self._waiting.append(Outgoing(record, ack, deadline))
            self.deliver()

    def poll(self, timeout: float = 0.0) -> int:
        until, served = time.monotonic() + timeout, 0
        while True:
            seen = self._state.version
            served += self._serve()
            if served or not self._state.wait(seen, until):
                return served

    def flush(self, timeout: float) -> int:
        until = time.monotonic() + timeout
        while True:
            seen = self._state.version
            self._serve()
            if not self._open or not self._state.wait(seen, until):
                return self._open

    def fatal(self) -> BrokerError | None:
        return self._fatal

    def close(self, timeout: float = 10.0) -> None:
        self.flush(timeout)
        with self._state.lock:
            if self in self._state.senders:
                self._state.senders.remove(self)
            self._waiting.clear()

    def cut(self) -> None:
        """See `MemoryBroker.kill`."""
        self._link.cut()

    def deliver(self) -> None:
        """Stores what can be stored; what can't reach the broker waits for its time-out. Needs the lock."""
        waiting, self._waiting = self._waiting, deque()
        for item in waiting:
            if self._fatal or self._state.clock.monotonic() >= item.deadline:
                self._answer(
                    item,
                    self._fatal or broker_error("_MSG_TIMED_OUT", "the record was not delivered in time"),
                )
            elif self._link.up(item.record.topic):
                self._store(item)
            else:
                self._waiting.append(item)

    @property
    def _open(self) -> int:
        return len(self._waiting) + len(self._answers)

    def _check(self, record: Record) -> None:
        if self._fatal:
            raise self._fatal
        if self._open >= self._state.limits.queue:
            raise broker_error(
                "_QUEUE_FULL", f"{self._open} records are not acknowledged yet: poll, then try again"
            )
        if size(record) > self._state.limits.max_message_bytes + _HEADROOM:
            raise broker_error("MSG_SIZE_TOO_LARGE", f"a record of {size(record)} bytes")

    def _store(self, item: Outgoing) -> None:
        fault = self._state.faults.hit("send", item.record.topic)
        if fault and not fault.applied:
            return self._answer(item, fault.error)
        try:
            message = self._state.append(item.record, self._transaction_of_send())
        except BrokerError as error:
            return self._answer(item, error)
        self._answer(item, fault.error if fault else None, message)

    def _transaction_of_send(self) -> Transaction | None:
        return None

    def _answer(
        self, item: Outgoing, error: BrokerError | None, message: MemoryMessage | None = None
    ) -> None:
        if error and error.fatal:
            self._fatal = error
        failed = MemoryMessage(item.record, item.record.partition)
        self._answers.append(Answer(item.ack, error, failed if message is None else message))
        self._state.changed()

    def _serve(self) -> int:
        with self._state.lock:
            self._state.tick()
            self.deliver()
            answers, self._answers = self._answers, deque()
        for answer in answers:
            answer.tell()
        return len(answers)


class MemoryTransactionalProducer(MemoryProducer):
    """See `streamjobs.broker.TransactionalProducer`.

    A transaction open for longer than the broker's `transaction_timeout` is aborted, and its producer fenced.
    """

    def __init__(self, state: State, transactional_id: str) -> None:
        super().__init__(state)
        self._id = transactional_id
        self._epoch = 0
        self._transaction: Transaction | None = None
        self._failed: BrokerError | None = None

    def init(self, timeout: float = 30.0) -> None:
        self._link.reach(timeout)
        with self._state.lock:
            self._state.faults.strike("transaction")
            self._epoch = self._state.fence(self._id)

    def begin(self) -> None:
        with self._state.lock:
            owner = self._owner()
            if self._transaction is not None:
                raise broker_error("_STATE", "a transaction is open already")
            self._transaction = Transaction(self._state.clock.monotonic())
            owner.open, self._failed = self._transaction, None

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        with self._state.lock:
            self._owner()
            self._opened()
            super().send(record, ack, about)

    def send_offsets(
        self, offsets: Mapping[TopicPartition, Commit], group_metadata: GroupMetadata, timeout: float = 10.0
    ) -> None:
        self._link.reach(timeout)
        with self._state.lock:
            self._owner()
            transaction = self._opened()
            self._state.faults.strike("transaction")
            self._failed = self._failed or error_of(lambda: self._check_offsets(offsets, group_metadata))
            if self._failed:
                raise to_abort(self._failed)
            self._state.group(group_metadata.group).hold(transaction, offsets)

    def commit(self, timeout: float = 10.0) -> None:
        self._opened()
        self._state.wait_until(self._all_delivered, timeout)
        self._link.reach(timeout)
        with self._state.lock:
            owner = self._owner()
            if self._waiting:
                raise broker_error("_TIMED_OUT", "records of the transaction are not delivered yet")
            if self._failed:
                raise to_abort(self._failed)
            self._state.faults.strike("transaction")
            self._end(owner, self._opened(), commit=True)
        self._serve()

    def abort(self, timeout: float = 10.0) -> None:
        self._opened()
        self._link.reach(timeout)
        with self._state.lock:
            owner = self._owner()
            self._state.faults.strike("transaction")
            self._purge()
            self._end(owner, self._opened(), commit=False)
        self._serve()

    def _owner(self) -> TransactionalId:
        """Raises `_FENCED` if the transactional id has another owner now, `_STATE` before `init`."""
        self._state.tick()
        if not self._epoch:
            raise broker_error("_STATE", "init() comes first")
        owner = self._state.transactional_ids[self._id]
        if owner.epoch != self._epoch:
            text = f"transactional id {self._id} was taken over, or its transaction was open for too long"
            self._fatal = broker_error("_FENCED", text)
        if self._fatal:
            raise self._fatal
        return owner

    def _opened(self) -> Transaction:
        if self._transaction is None:
            raise broker_error("_STATE", "no transaction is open")
        return self._transaction

    def _transaction_of_send(self) -> Transaction | None:
        self._owner()
        return self._opened()

    def _answer(
        self, item: Outgoing, error: BrokerError | None, message: MemoryMessage | None = None
    ) -> None:
        self._failed = self._failed or error
        super()._answer(item, error, message)

    def _all_delivered(self) -> bool:
        self.deliver()
        return not self._waiting

    def _purge(self) -> None:
        while self._waiting:
            self._answer(self._waiting.popleft(), broker_error("_PURGE_QUEUE", "the transaction was aborted"))

    def _end(self, owner: TransactionalId, transaction: Transaction, *, commit: bool) -> None:
        transaction.end("committed" if commit else "aborted")
        owner.open = self._transaction = None
        self._state.changed()

    def _check_offsets(self, offsets: Mapping[TopicPartition, Commit], metadata: GroupMetadata) -> None:
        """Only a member may commit; who never was one is not checked (KIP-447)."""
        if any(metadata_units(commit) > MAX_METADATA_UNITS for commit in offsets.values()):
            raise broker_error("OFFSET_METADATA_TOO_LARGE", f"more than {MAX_METADATA_UNITS} UTF-16 units")
        if metadata.member is not None:
            group = self._state.group(metadata.group)
            group.check_generation(metadata.member, metadata.generation, offsets)
