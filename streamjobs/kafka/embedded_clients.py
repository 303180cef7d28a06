"""Clients of the embedded broker: what differs from a real one (see `embedded.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka.cimpl import TopicPartition as ClientPartition

from streamjobs.broker import (
    At,
    Cluster,
    Commit,
    Committed,
    Group,
    Isolation,
    Listener,
    Member,
    Start,
    Topic,
    TopicPartition,
)
from streamjobs.errors import BrokerError
from streamjobs.kafka.admin import REQUEST_TIMEOUT, KafkaAdmin
from streamjobs.kafka.consumer import KafkaConsumer, Partitions
from streamjobs.kafka.embedded import PARTITIONS, SCHEME, EmbeddedBroker, Membership, refused, topic_id
from streamjobs.kafka.errors import as_broker_error

#: What Kafka accepts as a commit's metadata: `offset.metadata.max.bytes` less one, in UTF-16 units.
MAX_METADATA = 4_095
_TOO_LARGE = BrokerError("OFFSET_METADATA_TOO_LARGE", f"commit offsets: more than {MAX_METADATA} characters of metadata")


class EmbeddedConsumer(KafkaConsumer):
    """Says whether it is a member, and of what, and refuses the metadata that Kafka would refuse."""

    def __init__(self, config: Mapping[str, Any], membership: Membership) -> None:
        super().__init__(config)
        self._membership = membership

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        super().subscribe(topics, listener)
        self._membership.tell(sorted(self._starts))

    def member_id(self) -> str:
        return self._membership.id

    def _on_assign(self, client: Any, partitions: list[ClientPartition]) -> None:
        super()._on_assign(client, partitions)
        self._guarded(lambda: self._membership.tell(sorted(self._starts)))

    def _forget(self, partitions: Partitions) -> None:
        super()._forget(partitions)
        if self._listener is not None and not self._closing:
            self._guarded(lambda: self._membership.tell(sorted(self._starts)))

    def commit_soon(self, offsets: Mapping[TopicPartition, Commit], done: Committed) -> None:
        too_large = _too_large(offsets)
        fitting = {where: commit for where, commit in offsets.items() if where not in too_large}
        super().commit_soon(fitting, lambda results: done({**results, **too_large}))

    def _commit(self, offsets: Mapping[TopicPartition, Commit]) -> dict[TopicPartition, BrokerError]:
        too_large = _too_large(offsets)
        fitting = {where: commit for where, commit in offsets.items() if where not in too_large}
        return {**(super()._commit(fitting) if fitting else {}), **too_large}

    def close(self) -> None:
        super().close()
        self._membership.end()


class EmbeddedAdmin(KafkaAdmin):
    _describes = False  # the mock cluster can't; and its coordinator never moves

    def __init__(self, config: Mapping[str, Any], broker: EmbeddedBroker) -> None:
        super().__init__(config)
        self._broker = broker

    def cluster(self) -> Cluster:
        return replace(super().cluster(), version=SCHEME)

    def _protocols(self, broker: int) -> frozenset[str]:
        return frozenset({"classic", "consumer"})

    def topics(self, names: Iterable[str] | None = None, *, config: bool = False) -> dict[str, Topic]:
        # All are listed: to ask for one by its name would create it.
        with as_broker_error("list topics"):
            found = self._client.list_topics(timeout=REQUEST_TIMEOUT).topics
        wanted = set(found) if names is None else set(names)
        return {
            name: Topic(name, len(topic.partitions), 1, {}, topic_id(name))
            for name, topic in sorted(found.items())
            if name in wanted
        }

    def create_topics(self, topics: Sequence[Topic]) -> dict[str, BrokerError | None]:
        existing = self.topics([topic.name for topic in topics])
        return {topic.name: self._create(topic.name, topic.name in existing) for topic in topics}

    def _create(self, name: str, exists: bool) -> BrokerError | None:
        if exists:
            return BrokerError("TOPIC_ALREADY_EXISTS", f"create topic {name}: it exists")
        with as_broker_error(f"create topic {name}"):
            self._client.list_topics(name, timeout=REQUEST_TIMEOUT)
        return None

    def add_partitions(self, topic: str, total: int) -> None:
        raise refused(f"add partitions (every topic has {PARTITIONS})")

    def alter_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        raise refused("configure topics")

    def delete_topics(self, names: Sequence[str]) -> None:
        raise refused("delete topics")

    def delete_records(self, before: Mapping[TopicPartition, int]) -> dict[TopicPartition, BrokerError | None]:
        return dict.fromkeys(before, refused("delete records"))

    def offsets(
        self, partitions: Sequence[TopicPartition], at: At, isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        if at in ("earliest", "latest"):
            return super().offsets(partitions, at, isolation)
        return self._offsets_at(partitions, float(at), super().offsets(partitions, "earliest"))

    def _offsets_at(
        self, partitions: Sequence[TopicPartition], at: float, starts: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        """The mock cluster doesn't look for instants, so the partitions (5 MiB at most) are read."""
        found: dict[TopicPartition, int] = {}
        ends = super().offsets(partitions, "latest")
        reader = self._broker.consumer(None)
        deadline = time.monotonic() + REQUEST_TIMEOUT
        try:
            reader.assign(starts)
            while len(found) < len(ends) and time.monotonic() < deadline:
                for message in reader.fetch(1000, 0.05):
                    where = TopicPartition(message.topic(), message.partition())
                    if message.timestamp()[1] >= at * 1000:
                        found.setdefault(where, message.offset())
                found = {
                    **{where: ends[where] for where, position in reader.positions(ends).items() if position >= ends[where]},
                    **found,
                }
        finally:
            reader.close()
        return {where: found.get(where, end) for where, end in ends.items()}

    # -- groups -----------------------------------------------------------------------------------------------------

    def committed(self, group: str, partitions: Sequence[TopicPartition] | None = None) -> dict[TopicPartition, Commit]:
        if partitions is None:
            partitions = [TopicPartition(name, p) for name, t in self.topics().items() for p in range(t.partitions)]
        return super().committed(group, partitions)

    def alter_committed(self, group: str, offsets: Mapping[TopicPartition, Commit]) -> None:
        if self._broker.members.living(group):
            raise BrokerError("UNKNOWN_MEMBER_ID", f"change the commits of group {group}: it has live members")
        try:
            super().alter_committed(group, offsets)
        except BrokerError as error:
            if error.code != "UNKNOWN_MEMBER_ID":
                raise
            self._commit_as_member(group, offsets)

    def _commit_as_member(self, group: str, offsets: Mapping[TopicPartition, Commit]) -> None:
        """The mock cluster takes commits of a group that once had members only from a member: so one joins for a moment."""
        member = self._broker.consumer(group)
        joined = _Joined()
        try:
            member.subscribe(sorted({topic for topic, _ in offsets}), joined)
            deadline = time.monotonic() + REQUEST_TIMEOUT
            while not joined.done and time.monotonic() < deadline:
                member.fetch(0, 0.05)
            for error in member.commit_now(offsets).values():
                raise error
        finally:
            member.close()

    def group_names(self) -> list[str]:
        return [name for name in self._broker.members.groups() if name]

    def groups(self, names: Sequence[str]) -> dict[str, Group]:
        return {name: self._group(name) for name in names}

    def _group(self, name: str) -> Group:
        members = tuple(_member(found) for found in self._broker.members.living(name))
        if members:
            return Group(name, "stable", self._broker.protocol(), members)
        known = name in self._broker.members.groups() or bool(self.committed(name))
        return Group(name, "empty" if known else "dead", "", ())

    def set_group_config(self, group: str, config: Mapping[str, str]) -> None:
        """Accepted, and without effect: the mock cluster's session timeouts are its own."""


class _Joined:
    """Listens for the first assignment and has nothing of it fetched."""

    done = False

    def assigned(self, partitions: Partitions) -> Mapping[TopicPartition, Start]:
        self.done = True
        return {where: Start(0, fetch=False) for where in partitions}

    def revoked(self, partitions: Partitions) -> None:
        self.done = True

    def lost(self, partitions: Partitions) -> None:
        self.done = True


def _too_large(offsets: Mapping[TopicPartition, Commit]) -> dict[TopicPartition, BrokerError]:
    return {where: _TOO_LARGE for where, commit in offsets.items() if len(commit.metadata.encode("utf-16-le")) > 2 * MAX_METADATA}


def _member(found: Mapping[str, Any]) -> Member:
    assignment = tuple(TopicPartition(topic, partition) for topic, partition in found["assignment"])
    return Member(found["id"], found["client_id"], "/127.0.0.1", found["instance"], assignment, target=assignment)
