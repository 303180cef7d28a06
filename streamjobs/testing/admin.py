"""The admin client of a MemoryBroker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from streamjobs.broker import At, Cluster, Commit, Group, Isolation, Topic, TopicPartition
from streamjobs.errors import BrokerError
from streamjobs.testing.faults import broker_error
from streamjobs.testing.log import MemoryTopic, PartitionLog
from streamjobs.testing.state import State, error_of

_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")

#: Which options a topic and a group have, so that a misspelt one is refused as Kafka refuses it.
_TOPIC_OPTION_NAMES = """
    cleanup.policy compression.gzip.level compression.lz4.level compression.type compression.zstd.level
    delete.retention.ms errors.deadletterqueue.group.enable file.delete.delay.ms flush.messages flush.ms
    follower.replication.throttled.replicas index.interval.bytes leader.replication.throttled.replicas
    local.retention.bytes local.retention.ms max.compaction.lag.ms max.message.bytes
    message.timestamp.after.max.ms message.timestamp.before.max.ms message.timestamp.type
    min.cleanable.dirty.ratio min.compaction.lag.ms min.insync.replicas preallocate remote.copy.disable
    remote.log.delete.on.disable remote.storage.enable retention.bytes retention.ms segment.bytes
    segment.index.bytes segment.jitter.ms segment.ms unclean.leader.election.enable
"""
_TOPIC_OPTIONS = frozenset(_TOPIC_OPTION_NAMES.split())
_GROUP_OPTION_NAMES = """
    consumer.heartbeat.interval.ms consumer.session.timeout.ms share.auto.offset.reset
    share.heartbeat.interval.ms share.isolation.level share.record.lock.duration.ms
    share.session.timeout.ms streams.heartbeat.interval.ms streams.num.standby.replicas
    streams.session.timeout.ms
"""
_GROUP_OPTIONS = frozenset(_GROUP_OPTION_NAMES.split())


class MemoryAdmin:
    """See `streamjobs.broker.Admin`. While the broker is down, all raise BrokerError `_TRANSPORT`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def cluster(self) -> Cluster:
        with self._reached():
            names = tuple(f"memory:{number}" for number in range(1, self._state.limits.brokers + 1))
            return Cluster("memory", names, frozenset({"consumer", "classic"}))

    # -- topics

    def topics(self, names: Iterable[str] | None = None, *, config: bool = False) -> dict[str, Topic]:
        wanted = None if names is None else list(names)
        with self._reached(*wanted or ()):
            existing = self._state.topics
            chosen = sorted(existing) if wanted is None else [name for name in wanted if name in existing]
            return {name: _described(existing[name], config) for name in chosen}

    def create_topics(self, topics: Sequence[Topic]) -> dict[str, BrokerError | None]:
        with self._reached(*(topic.name for topic in topics)):
            outcome = {topic.name: self._create(topic) for topic in topics}
            self._state.topics_changed()
            return outcome

    def add_partitions(self, topic: str, total: int) -> None:
        with self._reached(topic):
            found = self._state.topic(topic)
            if total <= len(found.logs):
                raise broker_error(
                    "INVALID_PARTITIONS", f"topic {topic} has {len(found.logs)} partitions already"
                )
            found.grow(total)
            self._state.topics_changed()

    def alter_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        with self._reached(topic):
            found = self._state.topic(topic)
            _check_options(config, _TOPIC_OPTIONS)
            found.config.update(config)

    def delete_topics(self, names: Sequence[str]) -> None:
        """A topic's commits go with it, in every group."""
        with self._reached(*names):
            missing = [name for name in names if self._state.topics.pop(name, None) is None]
            for group in self._state.groups.values():
                for name in names:
                    group.forget(name)
            self._state.topics_changed()
            for name in missing:
                self._state.topic(name)

    def _create(self, topic: Topic) -> BrokerError | None:
        error = error_of(lambda: self._check_plan(topic))
        if error is None:
            self._state.topics[topic.name] = MemoryTopic(
                topic.name, self._state.new_id(), topic.partitions, topic.replication, topic.config
            )
        return error

    def _check_plan(self, topic: Topic) -> None:
        if not _NAME.fullmatch(topic.name):
            raise broker_error("TOPIC_EXCEPTION", f"{topic.name!r} can't be a topic's name")
        if topic.name in self._state.topics:
            raise broker_error("TOPIC_ALREADY_EXISTS", f"topic {topic.name} exists")
        if topic.partitions < 1:
            raise broker_error("INVALID_PARTITIONS", f"{topic.partitions} partitions")
        if not 1 <= topic.replication <= self._state.limits.brokers:
            raise broker_error("INVALID_REPLICATION_FACTOR", f"{self._state.limits.brokers} brokers")
        _check_options(topic.config, _TOPIC_OPTIONS)

    # -- records and offsets

    def delete_records(
        self, before: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, BrokerError | None]:
        with self._reached(*(tp.topic for tp in before)):
            outcome = {tp: self._delete_records(tp, offset) for tp, offset in before.items()}
            self._state.changed()
            return outcome

    def offsets(
        self, partitions: Sequence[TopicPartition], at: At, isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        with self._reached(*(tp.topic for tp in partitions)):
            return {tp: _offset(self._state.log(tp), at, isolation) for tp in partitions}

    def _delete_records(self, partition: TopicPartition, offset: int) -> BrokerError | None:
        return error_of(lambda: self._trimmable(partition, offset).trim(offset))

    def _trimmable(self, partition: TopicPartition, offset: int) -> PartitionLog:
        log = self._state.log(partition)
        if log.topic.compacted:
            raise broker_error(
                "POLICY_VIOLATION", f"topic {partition.topic} is compacted: write tombstones instead"
            )
        if not 0 <= offset <= log.end:
            raise broker_error(
                "OFFSET_OUT_OF_RANGE", f"{partition.topic}/{partition.partition} ends at {log.end}"
            )
        return log

    # -- groups

    def committed(
        self, group: str, partitions: Sequence[TopicPartition] | None = None
    ) -> dict[TopicPartition, Commit]:
        with self._reached():
            known = self._state.groups.get(group)
            commits = known.commits if known else {}
            return {
                tp: commits[tp]
                for tp in (sorted(commits) if partitions is None else partitions)
                if tp in commits
            }

    def alter_committed(self, group: str, offsets: Mapping[TopicPartition, Commit]) -> None:
        with self._reached():
            if self._state.group(group).members:
                raise broker_error("UNKNOWN_MEMBER_ID", f"group {group} has live members: stop them first")
            for partition in offsets:
                self._state.log(partition)
            self._state.group(group).commits.update(offsets)

    def group_names(self) -> list[str]:
        with self._reached():
            return self._state.known_groups()

    def groups(self, names: Sequence[str]) -> dict[str, Group]:
        with self._reached():
            known = self._state.known_groups()
            return {
                name: self._describe(name) if name in known else Group(name, "dead", "", ()) for name in names
            }

    def set_group_config(self, group: str, config: Mapping[str, str]) -> None:
        with self._reached():
            _check_options(config, _GROUP_OPTIONS)
            self._state.group(group).config.update(config)

    def _describe(self, name: str) -> Group:
        return self._state.groups[name].describe()

    @contextmanager
    def _reached(self, *topics: str) -> Iterator[None]:
        """The lock, if the broker is up and no fault hits."""
        with self._state.lock:
            self._state.tick()
            if not self._state.connected():
                raise broker_error("_TRANSPORT", "the memory broker is down")
            self._state.faults.strike("admin", *topics)
            yield


def _described(topic: MemoryTopic, config: bool) -> Topic:
    shown = dict(topic.config) if config else {}
    return Topic(topic.name, len(topic.logs), topic.replication, shown, topic.id)


def _offset(log: PartitionLog, at: At, isolation: Isolation) -> int:
    if at == "earliest":
        return log.start
    if at == "latest":
        return log.readable(isolation)
    return log.offset_at(float(at), isolation)


def _check_options(config: Mapping[str, str], known: frozenset[str]) -> None:
    for name, value in config.items():
        if name not in known:
            raise broker_error("INVALID_CONFIG", f"unknown option {name}")
        if name.endswith((".ms", ".bytes")) and not re.fullmatch(r"-?\d+", value):
            raise broker_error("INVALID_CONFIG", f"{name} is a number, not {value!r}")
    if config.get("message.timestamp.type", "CreateTime") not in ("CreateTime", "LogAppendTime"):
        raise broker_error("INVALID_CONFIG", "message.timestamp.type is CreateTime or LogAppendTime")
    if not {"compact", "delete"} >= set(config.get("cleanup.policy", "delete").replace(" ", "").split(",")):
        raise broker_error("INVALID_CONFIG", "cleanup.policy is made of compact and delete")
