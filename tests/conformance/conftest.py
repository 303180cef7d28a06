"""One suite for every implementation of `streamjobs.broker.Broker`.

`broker` and `group_broker` run a test on each of them; what an implementation `lacks` selects, by `needs`, the tests that are
not asked of it. There is no other exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from streamjobs.broker import Broker, Commit, Consumer, Message, Producer, Start, Topic, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.kafka.embedded import LACKS, PARTITIONS

Wait = Callable[..., None]

#: With Kafka's defaults a KIP-848 group needs 5 to 10 seconds for each step of a rebalance.
QUICK = {"consumer.heartbeat.interval.ms": "1000", "consumer.session.timeout.ms": "6000"}

LACKING = {"embedded": LACKS}
_CLUSTERS = ["memory", "embedded", "kafka"]
_GROUP_CLUSTERS = ["memory", "embedded", "kafka-consumer", "kafka-classic"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked_for_too_much = [item for item in items if _lacking(item)]
    if asked_for_too_much:
        config.hook.pytest_deselected(items=asked_for_too_much)
        items[:] = [item for item in items if item not in asked_for_too_much]
    for item in items:
        if _cluster_of(item).startswith("kafka"):
            item.add_marker("broker")


def _lacking(item: pytest.Item) -> bool:
    needed = {name for mark in item.iter_markers("needs") for name in mark.args}
    return bool(needed & LACKING.get(_cluster_of(item), frozenset()))


def _cluster_of(item: pytest.Item) -> str:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return str(parameters.get("broker") or parameters.get("group_broker") or "")


@pytest.fixture(params=_CLUSTERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=_GROUP_CLUSTERS)
def group_broker(request: pytest.FixtureRequest) -> Broker:
    """For what concerns members of a group: a real broker with both group protocols."""
    name, _, protocol = request.param.partition("-")
    found: Broker = request.getfixturevalue("kafka_with")(protocol=protocol) if protocol else request.getfixturevalue(name)
    return found


class Member:
    """A member of a group that tells what happened to it: the listener and the loop in one."""

    def __init__(self, broker: Broker, group: str, topics: Sequence[str], *, start: int = 0, commit: bool = False) -> None:
        self.start = start
        self.commit = commit  # what was read, at every revoke
        self.holds: Callable[[TopicPartition], bool] = lambda _: False
        self.owned: set[TopicPartition] = set()
        self.told: list[tuple[str, list[TopicPartition]]] = []
        self.records: list[Message] = []
        self.faults: list[tuple[TopicPartition | None, BrokerError]] = []
        self.refused: dict[TopicPartition, BrokerError] = {}
        self.consumer: Consumer = broker.consumer(group)
        self.consumer.subscribe(topics, self)

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        self.told.append(("assigned", sorted(partitions)))
        self.owned.update(partitions)
        committed = self.consumer.committed(partitions)
        return {where: Start(self._start(committed[where]), fetch=not self.holds(where)) for where in partitions}

    def _start(self, commit: Commit | None) -> int:
        return self.start if commit is None else commit.offset

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("revoked", sorted(partitions)))
        if self.commit:
            read = {where: Commit(self.next_of(where), "handed over") for where in partitions}
            self.refused = self.consumer.commit_now(read)
        self.owned.difference_update(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.told.append(("lost", sorted(partitions)))
        self.owned.difference_update(partitions)

    def turn(self, limit: int = 100, timeout: float = 0.02) -> None:
        self.records += self.consumer.fetch(limit, timeout)
        self.faults += self.consumer.faults()

    def offsets(self, where: TopicPartition) -> list[int]:
        return [m.offset() for m in self.records if (m.topic(), m.partition()) == where]

    def next_of(self, where: TopicPartition) -> int:
        return max(self.offsets(where), default=-1) + 1

    def codes(self) -> list[str]:
        return [error.code for _, error in self.faults]


class World:
    """A broker, and what a test makes on it."""

    def __init__(self, broker: Broker, prefix: str, wait: Wait, stack: ExitStack) -> None:
        self.broker = broker
        self.admin = broker.admin()
        self.prefix = prefix
        self._wait = wait
        self._stack = stack
        self._topics = 0
        self._producer: Producer | None = None

    def topic(self, partitions: int = PARTITIONS, **config: str) -> str:
        """Makes a topic; options with underscores."""
        self._topics += 1
        name = f"{self.prefix}.t{self._topics}"
        options = {key.replace("_", "."): value for key, value in config.items()}
        assert self.admin.create_topics([Topic(name, partitions, config=options)]) == {name: None}
        return name

    def send(self, topic: str, *values: bytes | None, key: bytes | None = None, partition: int = 0) -> list[Message]:
        """Sends values to one partition (`partition=-1`: by the key) and returns what was acknowledged."""
        return self.send_all([Record(topic, value, key, (), partition) for value in values])

    def send_all(self, records: Sequence[Record]) -> list[Message]:
        acked: list[Message] = []
        errors: list[BrokerError] = []
        for record in records:
            self.producer.send(record, lambda error, message: errors.append(error) if error else acked.append(message))
        assert self.producer.flush(20) == 0
        assert not errors
        return acked

    @property
    def producer(self) -> Producer:
        if self._producer is None:
            self._producer = self.broker.producer()
            self._stack.callback(self._producer.close)
        return self._producer

    def reader(self, starts: Mapping[TopicPartition, int], **options: Any) -> Consumer:
        """A consumer without a group, reading these partitions."""
        reader = self.broker.consumer(None, **options)
        self._stack.callback(reader.close)
        reader.assign(starts)
        return reader

    def read(self, reader: Consumer, count: int, timeout: float = 20.0) -> list[Message]:
        """At least `count` records."""
        found: list[Message] = []
        self._wait(lambda: len(found) >= count, timeout, lambda: found.extend(reader.fetch(100, 0.05)))
        return found

    def member(self, topics: str | Sequence[str], group: str = "", **options: Any) -> Member:
        names = [topics] if isinstance(topics, str) else topics
        with suppress(BrokerError):  # a broker whose minimum is higher is only slower
            self.admin.set_group_config(group or self.group, QUICK)
        member = Member(self.broker, group or self.group, names, **options)
        self._stack.callback(member.consumer.close)
        return member

    @property
    def group(self) -> str:
        return f"{self.prefix}.g"

    def turn(self, fact: Callable[[], object], *members: Member, timeout: float = 60.0) -> None:
        """Turns these members' loops until the fact holds."""
        self._wait(fact, timeout, lambda: [member.turn() for member in members])


@pytest.fixture
def world(request: pytest.FixtureRequest, prefix: str, wait_until: Wait) -> Iterator[World]:
    name = "group_broker" if "group_broker" in request.fixturenames else "broker"
    with ExitStack() as stack:
        yield World(request.getfixturevalue(name), prefix, wait_until, stack)
