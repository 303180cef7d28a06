"""What all clients of a MemoryBroker share: one lock, topics, groups, transactions, faults."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from streamjobs.broker import TopicPartition
from streamjobs.core.clock import Clock
from streamjobs.core.partitioner import partition_of
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.testing.clock import ManualClock
from streamjobs.testing.faults import Faults, broker_error
from streamjobs.testing.groups import GroupCoordinator
from streamjobs.testing.log import MemoryMessage, MemoryTopic, PartitionLog, Transaction, size

#: While a client waits with the system's clock, timers of the broker are looked at this often.
_TIMER_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds, sizes in bytes."""

    session_timeout: float
    max_poll_interval: float
    message_timeout: float
    transaction_timeout: float
    max_message_bytes: int
    queue: int
    brokers: int


class Sender(Protocol):
    def deliver(self) -> None: ...


@dataclass(slots=True)
class TransactionalId:
    """Its newest owner's epoch, and that one's open transaction."""

    epoch: int = 0
    open: Transaction | None = None


class State:
    """Call every method but `wait` and `wait_until` with `lock` held."""

    def __init__(self, clock: Clock, seed: int, limits: Limits) -> None:
        self.clock = clock
        self.limits = limits
        self.lock = threading.Condition(threading.RLock())
        self.version = 0
        self.topics: dict[str, MemoryTopic] = {}
        self.groups: dict[str, GroupCoordinator] = {}
        self.transactional_ids: dict[str, TransactionalId] = {}
        self.faults = Faults()
        self.senders: list[Sender] = []
        self._random = random.Random(seed)
        self._spread: dict[str, int] = {}
        self._down = False
        self._down_topics: set[str] = set()
        self._names = 0

    # -- time

    def wait(self, seen: int, until: float) -> bool:
        """For a change since version `seen`; False when `until` has come, or at once with a manual clock."""
        with self.lock:
            if isinstance(self.clock, ManualClock):
                return False
            left = until - time.monotonic()
            if left > 0 and self.version == seen:
                self.lock.wait(min(left, _TIMER_S))
            return left > 0

    def wait_until(self, fact: Callable[[], bool], timeout: float) -> bool:
        """Whether a fact holds, or comes to hold in time. It is asked with the lock held."""
        until = time.monotonic() + timeout
        while True:
            with self.lock:
                seen = self.version
                self.tick()
                if fact():
                    return True
            if not self.wait(seen, until):
                return False

    def tick(self) -> None:
        """Does what is due: expels members, aborts transactions that were open for too long."""
        if self._down:
            return
        now = self.clock.monotonic()
        expelled = [group.expire(now) for group in self.groups.values()]
        if any(expelled) | self._abort_expired(now):
            self.changed()

    def changed(self) -> None:
        """Wakes whoever waits."""
        self.version += 1
        self.lock.notify_all()

    # -- the way to the broker

    def connected(self, topic: str | None = None) -> bool:
        return not self._down and topic not in self._down_topics

    def down(self, topics: Iterable[str]) -> None:
        names = set(topics)
        self._down_topics |= names
        self._down = self._down or not names
        self.changed()

    def up(self, topics: Iterable[str]) -> None:
        names = set(topics)
        self._down_topics = self._down_topics - names if names else set()
        if self._down and not names:
            self._down = False
            for group in self.groups.values():
                group.spare(self.clock.monotonic())
        for sender in list(self.senders):
            sender.deliver()
        self.changed()

    # -- topics

    def topic(self, name: str) -> MemoryTopic:
        """Raises BrokerError `UNKNOWN_TOPIC_OR_PART`."""
        if found := self.topics.get(name):
            return found
        raise broker_error(
            "UNKNOWN_TOPIC_OR_PART", f"topic {name} does not exist: create it with admin().create_topics()"
        )

    def log(self, partition: TopicPartition) -> PartitionLog:
        logs = self.topic(partition.topic).logs
        if 0 <= partition.partition < len(logs):
            return logs[partition.partition]
        raise broker_error("UNKNOWN_TOPIC_OR_PART", f"topic {partition.topic} has {len(logs)} partitions")

    def partitions(self, topics: Iterable[str]) -> dict[TopicPartition, bytes]:
        existing = (self.topics[name] for name in topics if name in self.topics)
        return {tp: topic.id for topic in existing for tp in topic.partitions}

    def new_id(self) -> bytes:
        return self._random.randbytes(16)

    def new_name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}-{self._names}"

    def topics_changed(self) -> None:
        for group in self.groups.values():
            group.retarget()
        self.changed()

    def append(self, record: Record, transaction: Transaction | None = None) -> MemoryMessage:
        """Stores a record. Raises BrokerError if the topic does not take it."""
        topic = self.topic(record.topic)
        if size(record) > int(topic.option("max.message.bytes")):
            raise broker_error(
                "MSG_SIZE_TOO_LARGE", f"topic {topic.name} takes {topic.option('max.message.bytes')} bytes"
            )
        if record.key is None and topic.compacted:
            raise broker_error("INVALID_RECORD", f"topic {topic.name} is compacted: its records need a key")
        log = topic.logs[self._partition(record, len(topic.logs))]
        message = log.append(record, self.clock.now(), transaction)
        self.changed()
        return message

    def _partition(self, record: Record, count: int) -> int:
        """Without key or partition: in turn, so that a few records reach all partitions."""
        if record.partition >= count:
            raise broker_error("_UNKNOWN_PARTITION", f"topic {record.topic} has {count} partitions")
        if record.partition >= 0:
            return record.partition
        if record.key is not None:
            return partition_of(record.key, count)
        turn = self._spread.setdefault(record.topic, self._random.randrange(count))
        self._spread[record.topic] = turn + 1
        return turn % count

    # -- groups

    def group(self, name: str) -> GroupCoordinator:
        if name not in self.groups:
            limits = self.limits
            self.groups[name] = GroupCoordinator(
                name, self.partitions, limits.session_timeout, limits.max_poll_interval
            )
        return self.groups[name]

    def known_groups(self) -> list[str]:
        return sorted(name for name, group in self.groups.items() if group.members or group.commits)

    # -- transactions

    def fence(self, transactional_id: str) -> int:
        """A new epoch for a new owner; what the old one left open is aborted."""
        owner = self.transactional_ids.setdefault(transactional_id, TransactionalId())
        self._abort(owner)
        owner.epoch += 1
        return owner.epoch

    def _abort_expired(self, now: float) -> bool:
        owners = self.transactional_ids.values()
        expired = [o for o in owners if o.open and now - o.open.started >= self.limits.transaction_timeout]
        for owner in expired:
            self._abort(owner)
            owner.epoch += 1
        return bool(expired)

    def _abort(self, owner: TransactionalId) -> None:
        if owner.open is not None:
            owner.open.end("aborted")
            owner.open = None
            self.changed()


class Link:
    """One client's way to the broker."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._is_cut = False

    def up(self, topic: str | None = None) -> bool:
        return not self._is_cut and self._state.connected(topic)

    def cut(self) -> None:
        self._is_cut = True
        self._state.changed()

    def reach(self, timeout: float, topic: str | None = None) -> None:
        """Waits until the broker can be reached. Raises BrokerError `_TIMED_OUT`."""
        if not self._state.wait_until(lambda: self.up(topic), timeout):
            raise broker_error("_TIMED_OUT", "the memory broker is down, or this client was killed")


def error_of(call: Callable[[], object]) -> BrokerError | None:
    """The BrokerError that a call raised, if it did."""
    try:
        call()
    except BrokerError as error:
        return error
    return None
