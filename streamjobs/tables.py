"""Compacted topics as tables: read to an end that is fixed at the beginning, written and acknowledged."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from streamjobs.broker import Ack, Broker, Consumer, Isolation, Message, Producer, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError

#: Up to this many records a table is held in memory whole; a longer one is read twice instead (see `live`).
SMALL = 10_000
#: Seconds without any progress after which a read or a write is given up.
PATIENCE = 30.0

_BATCH = 1000

Bounds = Mapping[TopicPartition, tuple[int, int]]
"""Log start and end offset of each partition."""


class Row(NamedTuple):
    """What a table holds for a key. `appended` is the broker's append time."""

    value: bytes
    offset: int
    appended: float


def bounds(broker: Broker, topic: str) -> dict[TopicPartition, tuple[int, int]]:
    """Where each partition starts and ends now, open transactions included; {}: there is no such topic."""
    admin = broker.admin()
    found = admin.topics([topic]).get(topic)
    if found is None:
        return {}
    partitions = [TopicPartition(topic, number) for number in range(found.partitions)]
    starts = admin.offsets(partitions, "earliest")
    ends = admin.offsets(partitions, "latest", "read_uncommitted")
    return {tp: (starts[tp], ends[tp]) for tp in partitions}


def read_table(
    broker: Broker, topic: str, *, isolation: Isolation = "read_committed", patience: float = PATIENCE
) -> dict[bytes, Row]:
    """What the table holds: the newest value of each key, without those that a tombstone took away.

    Raises BrokerError, also (`_TIMED_OUT`) when nothing more arrives for `patience` seconds before the end.
    """
    rows: dict[bytes, Row] = {}
    for message in changes(broker, bounds(broker, topic), isolation=isolation, patience=patience):
        key, value = message.key(), message.value()
        if value is None:
            rows.pop(key or b"", None)
        else:
            rows[key or b""] = Row(value, message.offset(), appended(message))
    return rows


def live(
    broker: Broker,
    topic: str,
    *,
    within: Bounds | None = None,
    isolation: Isolation = "read_committed",
    patience: float = PATIENCE,
) -> Iterator[Message]:
    """The newest record of each key that no tombstone took away, in the order of offsets within a partition.

    A small table comes out of one pass. A long one is read twice, partition by partition: first to learn
    which offset is the newest of each key (about 100 bytes of memory a key of one partition), then to yield
    those records, so that a caller who only counts or copies needs no memory for values. Both passes end at
    `within` (default: the bounds at the call).
    """
    limits = bounds(broker, topic) if within is None else within
    if sum(end - start for start, end in limits.values()) <= SMALL:
        yield from _held(changes(broker, limits, isolation=isolation, patience=patience))
        return
    for partition, limit in limits.items():
        only = {partition: limit}
        newest = _newest(changes(broker, only, isolation=isolation, patience=patience))
        for message in changes(broker, only, isolation=isolation, patience=patience):
            if newest.get(hash(message.key())) == message.offset():
                yield message


def changes(
    broker: Broker, limits: Bounds, *, isolation: Isolation = "read_committed", patience: float = PATIENCE
) -> Iterator[Message]:
    """Every record within the limits, old versions and tombstones too; each partition in its order."""
    unread = {tp: end for tp, (start, end) in limits.items() if start < end}
    if not unread:
        return
    reader = broker.consumer(None, isolation=isolation)
    try:
        reader.assign({tp: limits[tp][0] for tp in unread})
        yield from _until(reader, unread, patience)
    finally:
        reader.close()


def appended(message: Message) -> float:
    """The record's timestamp (on topics of ours: the broker's append time)."""
    return message.timestamp()[1] / 1000


def write(producer: Producer, records: Iterable[Record], timeout: float = 10.0) -> None:
    """Returns when all records are acknowledged. Raises the first BrokerError; others may be stored then."""
    failed: list[BrokerError] = []
    unanswered = 0

    def ack(error: BrokerError | None, _: Message) -> None:
        nonlocal unanswered
        unanswered -= 1
        if error is not None:
            failed.append(error)

    deadline = time.monotonic() + timeout
    for record in records:
        unanswered += 1
        _send(producer, record, ack, deadline)
    while unanswered and not failed and time.monotonic() < deadline:
        producer.poll(0.1)
    if failed:
        raise failed[0]
    if unanswered:
        raise BrokerError(
            "_TIMED_OUT", f"{unanswered} records were not acknowledged within {timeout:g} s", retriable=True
        )


def write_once(broker: Broker, records: Iterable[Record], timeout: float = 10.0) -> None:
    """`write` with a producer of its own, for commands that write a handful of records and end."""
    producer = broker.producer()
    try:
        write(producer, records, timeout)
    finally:
        producer.close(timeout)


def _until(reader: Consumer, unread: dict[TopicPartition, int], patience: float) -> Iterator[Message]:
    deadline = time.monotonic() + patience
    while unread:
        arrived = reader.fetch(_BATCH, 0.2)
        for message in arrived:
            if message.offset() < unread.get(TopicPartition(message.topic(), message.partition()), 0):
                yield message
        reached = [tp for tp, position in reader.positions(unread).items() if position >= unread[tp]]
        for tp in reached:
            del unread[tp]
        reader.pause(reached)
        _raise_fatal(reader)
        if arrived or reached:
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            raise _stuck(unread, patience)


def _raise_fatal(reader: Consumer) -> None:
    for _, error in reader.faults():
        if error.fatal or not error.retriable:
            raise error


def _stuck(unread: Mapping[TopicPartition, int], patience: float) -> BrokerError:
    tp, end = next(iter(unread.items()))
    text = f"reading {tp.topic}/{tp.partition} up to offset {end} made no progress for {patience:g} s"
    return BrokerError("_TIMED_OUT", text, retriable=True)


def _send(producer: Producer, record: Record, ack: Ack, deadline: float) -> None:
    while True:
        try:
            return producer.send(record, ack)
        except BrokerError as error:
            if error.code != "_QUEUE_FULL" or time.monotonic() > deadline:
                raise
            producer.poll(0.1)


def _held(messages: Iterable[Message]) -> list[Message]:
    newest: dict[bytes | None, Message] = {}
    for message in messages:
        newest.pop(message.key(), None)
        if message.value() is not None:
            newest[message.key()] = message
    return list(newest.values())


def _newest(messages: Iterable[Message]) -> dict[int, int]:
    """Offsets by the keys' 64-bit hashes: in one of 40 million tables of a million keys two are equal."""
    newest: dict[int, int] = {}
    for message in messages:
        if message.value() is None:
            newest.pop(hash(message.key()), None)
        else:
            newest[hash(message.key())] = message.offset()
    return newest
