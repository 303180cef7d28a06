"""Topics in memory: records at offsets, transactions, what is kept of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from streamjobs.broker import Commit, Isolation, TopicPartition
from streamjobs.core.record import Header, Record

#: Kafka's own defaults, except that the append time is the broker's.
DEFAULTS = {
    "cleanup.policy": "delete",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "LogAppendTime",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
}

#: A record batch's header, and what a record in it needs at least (Kafka's message format v2).
_BATCH_BYTES = 61
_RECORD_BYTES = 12

_CREATE_TIME, _APPEND_TIME = 1, 2
#: The offset of a record that no log has taken.
NO_OFFSET = -1001


class MemoryMessage:
    """A record as it was read, in the shape of `confluent_kafka.Message`."""

    __slots__ = ("_headers", "_key", "_offset", "_partition", "_timestamp", "_topic", "_value", "transaction")

    def __init__(
        self, record: Record, partition: int, offset: int = NO_OFFSET, timestamp: tuple[int, int] = (0, 0)
    ) -> None:
        self._topic = record.topic
        self._partition = partition
        self._offset = offset
        self._key = record.key
        self._value = record.value
        self._headers = list(record.headers) or None
        self._timestamp = timestamp
        self.transaction: Transaction | None = None

    def __len__(self) -> int:
        return len(self._value or b"")

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[Header] | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return self._timestamp

    def error(self) -> None:
        return None

    def __repr__(self) -> str:
        return f"<{self._topic}/{self._partition}/{self._offset} key={self._key!r} value={self._value!r}>"


@dataclass(eq=False, slots=True)
class Transaction:
    """Records and commits that become visible together or never."""

    started: float
    state: Literal["open", "committed", "aborted"] = "open"
    logs: list[PartitionLog] = field(default_factory=list)
    groups: list[PendingOffsets] = field(default_factory=list)

    def end(self, state: Literal["committed", "aborted"]) -> None:
        self.state = state
        for log in self.logs:
            log.end_transaction(self)
        for settle in self.groups:
            settle(self)


PendingOffsets = Callable[[Transaction], None]
"""Applies a group's commits of a transaction that ended, or drops them."""


class PartitionLog:
    """The records of one partition. Offsets without a record are gaps: markers, aborted, compacted."""

    def __init__(self, topic: MemoryTopic, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.records: list[MemoryMessage] = []
        self.start = 0
        self.end = 0
        self._open: dict[Transaction, int] = {}

    def append(self, record: Record, now: float, transaction: Transaction | None = None) -> MemoryMessage:
        kind = (
            _APPEND_TIME if self.topic.option("message.timestamp.type") == "LogAppendTime" else _CREATE_TIME
        )
        message = MemoryMessage(record, self.partition, self.end, (kind, round(now * 1000)))
        if transaction is not None:
            message.transaction = transaction
            if transaction not in self._open:
                self._open[transaction] = self.end
                transaction.logs.append(self)
        self.records.append(message)
        self.end += 1
        return message

    def end_transaction(self, transaction: Transaction) -> None:
        """Writes the marker, which takes an offset and is never read."""
        if self._open.pop(transaction, None) is not None:
            self.end += 1

    def readable(self, isolation: Isolation) -> int:
        """The first offset that can't be read yet: the end, or the first one of an open transaction."""
        if isolation == "read_uncommitted" or not self._open:
            return self.end
        return min(self._open.values())

    def read(self, position: int, limit: int, isolation: Isolation) -> tuple[list[MemoryMessage], int]:
        """At most `limit` records from `position`, and the position behind (at the end: behind its gaps)."""
        readable = self.readable(isolation)
        found: list[MemoryMessage] = []
        for index in range(self._index(position), len(self.records)):
            message = self.records[index]
            if message.offset() >= readable:
                break
            if len(found) == limit:
                return found, max(position, found[-1].offset() + 1) if found else position
            if isolation == "read_uncommitted" or not _aborted(message):
                found.append(message)
        return found, max(position, readable)

    def offset_at(self, instant: float, isolation: Isolation) -> int:
        """The first record appended at or after an instant, or the end of what is readable."""
        readable, since = self.readable(isolation), math.ceil(instant * 1000 - 0.001)
        younger = (m.offset() for m in self.records if m.timestamp()[1] >= since and m.offset() < readable)
        return next(younger, readable)

    def trim(self, before: int) -> None:
        """Deletes what lies below an offset."""
        self.start = max(self.start, before)
        del self.records[: self._index(before)]

    def expire(self, now: float) -> None:
        """Deletes what is older than `retention.ms`."""
        kept_ms = int(self.topic.option("retention.ms"))
        if kept_ms >= 0:
            self.trim(self.offset_at(now - kept_ms / 1000, "read_uncommitted"))

    def compact(self, now: float) -> None:
        """Keeps the last record of each key; a tombstone only for `delete.retention.ms`."""
        stable = self.readable("read_committed")
        dead_ms = now * 1000 - int(self.topic.option("delete.retention.ms"))
        settled = [m for m in self.records if m.offset() < stable and not _aborted(m)]
        last = {m.key(): m for m in settled}
        kept = [
            m
            for m in settled
            if last[m.key()] is m and not (m.value() is None and m.timestamp()[1] <= dead_ms)
        ]
        self.records = kept + self.records[self._index(stable) :]

    def _index(self, offset: int) -> int:
        return bisect_left(self.records, offset, key=MemoryMessage.offset)


class MemoryTopic:
    """A topic: its id (16 bytes, new with every creation), its explicit configuration, its partitions."""

    def __init__(
        self, name: str, topic_id: bytes, partitions: int, replication: int, config: Mapping[str, str]
    ) -> None:
        self.name = name
        self.id = topic_id
        self.replication = replication
        self.config = dict(config)
        self.logs: list[PartitionLog] = []
        self.grow(partitions)

    def grow(self, total: int) -> None:
        self.logs += [PartitionLog(self, partition) for partition in range(len(self.logs), total)]

    def option(self, name: str) -> str:
        return self.config.get(name, DEFAULTS.get(name, ""))

    @property
    def compacted(self) -> bool:
        return "compact" in self.option("cleanup.policy")

    @property
    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self.name, log.partition) for log in self.logs]


def size(record: Record) -> int:
    """About as many bytes as the record needs in a batch of its own; headers count."""
    headers = sum(len(name) + len(value or b"") + 4 for name, value in record.headers)
    return _BATCH_BYTES + _RECORD_BYTES + len(record.key or b"") + len(record.value or b"") + headers


def metadata_units(commit: Commit) -> int:
    """The length of a commit's metadata as Kafka counts it: in UTF-16 units."""
    return len(commit.metadata.encode("utf-16-le")) // 2


def _aborted(message: MemoryMessage) -> bool:
    return message.transaction is not None and message.transaction.state == "aborted"
