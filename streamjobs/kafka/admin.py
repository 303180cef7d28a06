"""Questions and orders to a cluster over confluent_kafka's AdminClient. Every call is bounded in time."""

from __future__ import annotations

import base64
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has them, but does not say so in __all__
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    ConsumerGroupDescription,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)
from confluent_kafka.cimpl import KafkaError, KafkaException, NewPartitions, NewTopic
from confluent_kafka.cimpl import TopicPartition as ClientPartition

from streamjobs.broker import At, Cluster, Commit, Group, Isolation, Member, Topic, TopicPartition
from streamjobs.errors import OUT_OF_REACH, BrokerError
from streamjobs.kafka.coordinators import CLIENT_TIMEOUT_S, Coordinators, unless_no_group
from streamjobs.kafka.errors import ADVICE, Contact, as_broker_error, persistently, translated
from streamjobs.kafka.forks import never_free, tell_of_forks
from streamjobs.kafka.log import QuietLog

REQUEST_TIMEOUT = 15.0
#: The client itself ends a request before that.
ANSWER_TIMEOUT = REQUEST_TIMEOUT * 2
#: Of the first call: refused all through the second of them, it ends. In the first one, `localhost` may be tried at an address at
#: which nobody listens before the right one.
FIRST_WINDOWS = (0.5, 1.0)
#: A new topic is known to all brokers within so long; a caller that reads what it made must not be told that it is missing.
VISIBLE_TIMEOUT = 5.0
COORDINATOR_MOVES = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")
#: And so much longer for each of many: a broker makes their directories one by one.
EACH_VISIBLE_S = 0.01
#: A request creates topics of so many records in the controller's log: a fifth of what it makes at most (Kafka's
#: `QuorumController.MAX_RECORDS_PER_USER_OP`), so that it is done in time.
RECORDS_AT_ONCE = 2_000
#: The broker's word for what group protocols it speaks.
PROTOCOLS = "group.coordinator.rebalance.protocols"

_ISOLATION = {
    "read_committed": IsolationLevel.READ_COMMITTED,
    "read_uncommitted": IsolationLevel.READ_UNCOMMITTED,
}
_STATES = {"preparing_rebalancing": "preparing_rebalance", "completing_rebalancing": "completing_rebalance"}
_ABSENT = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"})

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class KafkaAdmin:
    """Implements `streamjobs.broker.Admin`. May be called by any thread; in a forked child it begins anew."""

    _describes = True  # groups

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._begin()
        tell_of_forks(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._built: AdminClient | None = None
        self._coordinators = Coordinators(self._build)
        self._contact = Contact(str(self._config.get("bootstrap.servers", "")))

    def forked(self) -> None:
        """*Bites*: a child that asks the parent's client, such as for the partitions of a topic, waits for ever."""
        never_free(self._built)
        self._coordinators.forked()
        self._begin()

    def _build(self) -> AdminClient:
        config: dict[str, Any] = {**self._config, "error_cb": self._contact.heard}
        with as_broker_error("start an admin client"):
            return AdminClient(config, logger=QuietLog())

    @property
    def _client(self) -> AdminClient:
        with self._lock:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _asked(self, ask: Callable[[float], Answer], doing: str) -> Answer:
        """What `ask` answers within the time that it is given; it may be called again."""
        with self._contact.as_broker_error(doing):
            answer = ask(ANSWER_TIMEOUT) if self._contact.met else self._first(ask, doing)
        self._contact.met = True
        return answer

    def _first(self, ask: Callable[[float], Answer], doing: str) -> Answer:
        """*Bites*: somebody forgets to start the broker, or mistypes its address; the client tries for 15 seconds and says that time is
        up. So who has met no broker yet and is refused by all of them waits no longer; one that is silent has the whole time."""
        for patience in FIRST_WINDOWS:
            self._contact.listen_again()
            try:
                return ask(patience)
            except TimeoutError:
                pass
            except KafkaException as error:
                if error.args[0].name() not in OUT_OF_REACH:
                    raise  # that is an answer
            self._client.poll(0)
        if self._contact.refused:
            raise self._contact.refusal(doing)
        return ask(ANSWER_TIMEOUT)

    def _result(self, future: Future[Answer], doing: str) -> Answer:
        return self._asked(future.result, doing)

    def _metadata(self, doing: str) -> ClusterMetadata:
        return self._asked(lambda timeout: self._client.list_topics(timeout=min(timeout, REQUEST_TIMEOUT)), doing)

    def _error(self, future: Future[Any], doing: str) -> BrokerError | None:
        try:
            self._result(future, doing)
        except BrokerError as error:
            return error
        return None

    def _unless_absent(self, future: Future[Answer], doing: str) -> Answer | None:
        try:
            return self._result(future, doing)
        except BrokerError as error:
            if error.code in _ABSENT:
                return None
            raise

    # -- the cluster ------------------------------------------------------------------------------------------------

    def cluster(self) -> Cluster:
        # From metadata, which any broker gives: DescribeCluster asks the controller, and one that has just died for long.
        found = self._metadata("describe the cluster")
        brokers = {broker.id: f"{broker.host}:{broker.port}" for broker in found.brokers.values()}
        return Cluster(found.cluster_id or "", tuple(brokers.values()), self._protocols(min(brokers, default=0)))

    def _protocols(self, broker: int) -> frozenset[str]:
        """Whoever may not ask for a broker's configuration is told of the protocol that all brokers speak."""
        try:
            config = self._describe(ConfigResource(ResourceType.BROKER, str(broker)))
        except BrokerError:
            return frozenset({"classic"})
        names = str(config[PROTOCOLS].value).split(",") if PROTOCOLS in config else []
        return frozenset({"classic"} | ({"consumer"} & {name.strip() for name in names}))

    def _describe(self, resource: ConfigResource) -> dict[str, ConfigEntry]:
        asked = self._client.describe_configs([resource], request_timeout=REQUEST_TIMEOUT)
        return self._result(asked[resource], f"read the configuration of {resource.name}")

    def _alter(self, kind: ResourceType, name: str, config: Mapping[str, str]) -> None:
        entries = [ConfigEntry(key, str(value), incremental_operation=AlterConfigOpType.SET) for key, value in config.items()]
        resource = ConfigResource(kind, name, incremental_configs=entries)
        asked = self._client.incremental_alter_configs([resource], request_timeout=REQUEST_TIMEOUT)
        self._result(asked[resource], f"change the configuration of {name}")

    # -- topics -----------------------------------------------------------------------------------------------------

    def topics(self, names: Iterable[str] | None = None, *, config: bool = False) -> dict[str, Topic]:
        wanted = self._all_topics() if names is None else sorted(set(names))
        if not wanted:
            return {}
        asked = self._client.describe_topics(TopicCollection(wanted), request_timeout=REQUEST_TIMEOUT)
        described = {name: self._unless_absent(future, f"describe topic {name}") for name, future in asked.items()}
        found = {name: topic for name, topic in described.items() if topic is not None}
        configs = self._topic_configs(found) if config else {}
        return {name: _topic(topic, configs.get(name, {})) for name, topic in found.items()}

    def _all_topics(self) -> list[str]:
        return sorted(self._metadata("list topics").topics)

    def _topic_configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        asked = self._client.describe_configs(resources, request_timeout=REQUEST_TIMEOUT)
        doing = "read the configuration of topics"
        return {resource.name: _explicit(self._result(future, doing)) for resource, future in asked.items()}

    def create_topics(self, topics: Sequence[Topic]) -> dict[str, BrokerError | None]:
        results: dict[str, BrokerError | None] = {}
        for portion in _portions(topics):
            new = [NewTopic(t.name, t.partitions, t.replication, config=dict(t.config)) for t in portion]
            asked = self._client.create_topics(new, request_timeout=REQUEST_TIMEOUT, operation_timeout=REQUEST_TIMEOUT)
            results |= {name: self._error(future, f"create topic {name}") for name, future in asked.items()}
        self._await_topics({t.name: t.partitions for t in topics if results[t.name] is None})
        return results

    def add_partitions(self, topic: str, total: int) -> None:
        asked = self._client.create_partitions(
            [NewPartitions(topic, total)], request_timeout=REQUEST_TIMEOUT, operation_timeout=REQUEST_TIMEOUT
        )
        self._result(asked[topic], f"add partitions to {topic}")
        self._await_topics({topic: total})

    def alter_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        self._alter(ResourceType.TOPIC, topic, config)
        wanted = {key: str(value) for key, value in config.items()}
        _await(lambda: wanted.items() <= self._topic_configs([topic])[topic].items())

    def delete_topics(self, names: Sequence[str]) -> None:
        if not names:
            return
        asked = self._client.delete_topics(list(names), request_timeout=REQUEST_TIMEOUT, operation_timeout=REQUEST_TIMEOUT)
        for name, future in asked.items():
            self._result(future, f"delete topic {name}")
        _await(lambda: not self.topics(names))

    def _await_topics(self, partitions: Mapping[str, int]) -> None:
        def visible() -> bool:
            found = self.topics(partitions)
            return all(name in found and found[name].partitions >= count for name, count in partitions.items())

        _await(visible, VISIBLE_TIMEOUT + EACH_VISIBLE_S * len(partitions))

    def delete_records(self, before: Mapping[TopicPartition, int]) -> dict[TopicPartition, BrokerError | None]:
        if not before:
            return {}
        asked = self._client.delete_records(
            [ClientPartition(t, p, offset) for (t, p), offset in before.items()],
            request_timeout=REQUEST_TIMEOUT,
            operation_timeout=REQUEST_TIMEOUT,
        )
        return {TopicPartition(p.topic, p.partition): self._error(future, "delete records") for p, future in asked.items()}

    def offsets(
        self, partitions: Sequence[TopicPartition], at: At, isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        found = persistently(lambda: self._list_offsets(partitions, _spec(at), isolation), VISIBLE_TIMEOUT)
        after_the_end = [where for where, offset in found.items() if offset < 0]
        return {**found, **(self.offsets(after_the_end, "latest", isolation) if after_the_end else {})}

    def _list_offsets(
        self, partitions: Sequence[TopicPartition], spec: OffsetSpec, isolation: Isolation
    ) -> dict[TopicPartition, int]:
        asked = self._client.list_offsets(
            {ClientPartition(*where): spec for where in partitions},
            isolation_level=_ISOLATION[isolation],
            request_timeout=REQUEST_TIMEOUT,
        )
        try:
            return {
                TopicPartition(p.topic, p.partition): self._result(future, f"list offsets of {p.topic}/{p.partition}").offset
                for p, future in asked.items()
            }
        except BrokerError as error:
            raise self._why_no_leader(partitions) if error.code == "_NOENT" else error from None

    def _why_no_leader(self, partitions: Sequence[TopicPartition]) -> BrokerError:
        """The client says the same of partitions that don't exist and of those whose replicas are all away. *Bites*: a broker is lost, a
        worker starts meanwhile, takes that for a mistake, and ends instead of asking again."""
        known = self.topics({where.topic for where in partitions})
        missing = [f"{topic}/{number}" for topic, number in partitions if topic not in known or number >= known[topic].partitions]
        if missing:
            return BrokerError("UNKNOWN_TOPIC_OR_PART", f"list offsets: there is no {missing[0]}: {ADVICE['UNKNOWN_TOPIC_OR_PART']}")
        topic, number = partitions[0]
        text = f"list offsets of {topic}/{number} and {len(partitions) - 1} more: no replica is there to lead them"
        return BrokerError("LEADER_NOT_AVAILABLE", text, retriable=True)

    # -- groups -----------------------------------------------------------------------------------------------------

    def committed(self, group: str, partitions: Sequence[TopicPartition] | None = None) -> dict[TopicPartition, Commit]:
        if partitions is not None and not partitions:
            return {}
        which = None if partitions is None else [ClientPartition(*where) for where in partitions]
        wanted = [ConsumerGroupTopicPartitions(group, which)]
        found = self._ask_coordinator(
            f"read the commits of group {group}",
            lambda client: client.list_consumer_group_offsets(wanted, request_timeout=CLIENT_TIMEOUT_S)[group],
            unless_no_group,
            describe=group if self._describes else None,
        )
        return {} if found is None else _commits(group, found.topic_partitions or [])

    def alter_committed(self, group: str, offsets: Mapping[TopicPartition, Commit]) -> None:
        if not offsets:
            return
        partitions = [ClientPartition(t, p, commit.offset, commit.metadata) for (t, p), commit in offsets.items()]
        wanted = [ConsumerGroupTopicPartitions(group, partitions)]
        doing = f"change the commits of group {group}"
        self._ask_coordinator(
            doing,
            lambda client: client.alter_consumer_group_offsets(wanted, request_timeout=CLIENT_TIMEOUT_S)[group],
            lambda asked, patience_s: _unless_refused(asked.result(patience_s)),
        )

    def group_names(self) -> list[str]:
        """*Bites*: one broker of three stands still, the others answer, and the groups that it coordinates are missing from the list; the
        janitor deletes what these have not read. So an answer that lacks a broker's part is none."""
        return persistently(self._group_names, VISIBLE_TIMEOUT, COORDINATOR_MOVES)

    def _group_names(self) -> list[str]:
        doing = "list the groups of all brokers"
        listed = self._result(self._client.list_consumer_groups(request_timeout=REQUEST_TIMEOUT), doing)
        if listed.errors:
            self._client.poll(0)  # tells what it heard of its brokers: the errors don't name theirs
            raise self._contact.told(_kafka_error(listed.errors[0]), f"{doing} ({len(listed.errors)} did not tell)")
        return sorted(group.group_id for group in listed.valid or [])

    def groups(self, names: Sequence[str]) -> dict[str, Group]:
        if not names:
            return {}
        return self._ask_coordinator(
            f"describe group {' and '.join(names)}",
            lambda client: client.describe_consumer_groups(list(names), request_timeout=CLIENT_TIMEOUT_S),
            lambda asked, patience_s: {name: _group(name, unless_no_group(future, patience_s)) for name, future in asked.items()},
        )

    def _ask_coordinator(
        self,
        doing: str,
        question: Callable[[AdminClient], Asked],
        answer: Callable[[Asked, float], Answer],
        describe: str | None = None,
    ) -> Answer:
        """*Bites*: the first group of a new cluster, or one whose coordinator moves; which broker it is, the brokers don't agree on for a
        moment, and `lag` ends with NOT_COORDINATOR."""
        if not self._contact.met:
            self._metadata(doing)  # the first call has a patience of its own

        def ask() -> Answer:
            with self._contact.as_broker_error(doing):
                return self._coordinators.ask(question, answer, describe)

        return persistently(ask, VISIBLE_TIMEOUT, COORDINATOR_MOVES)

    def set_group_config(self, group: str, config: Mapping[str, str]) -> None:
        self._alter(ResourceType.GROUP, group, config)


def _portions(topics: Sequence[Topic]) -> Iterator[list[Topic]]:
    """As many as one request may create. *Bites*: an app of a thousand queues has three thousand topics, the controller refuses a request
    that makes more than 10,000 records, and none of them is created."""
    portion: list[Topic] = []
    records = 0
    for topic in topics:
        own = 1 + topic.partitions + len(topic.config)
        if portion and records + own > RECORDS_AT_ONCE:
            yield portion
            portion, records = [], 0
        portion.append(topic)
        records += own
    if portion:
        yield portion


def _await(condition: Callable[[], bool], timeout: float = VISIBLE_TIMEOUT) -> None:
    """Best effort: brokers learn of a change one after the other, and a question may reach any of them."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _topic(described: TopicDescription, config: Mapping[str, str]) -> Topic:
    replication = min((len(p.replicas) for p in described.partitions), default=0)
    return Topic(described.name, len(described.partitions), replication, config, _id_bytes(str(described.topic_id)))


def _id_bytes(text: str) -> bytes:
    """Kafka writes a topic id as 22 characters of URL-safe base64 without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _explicit(config: Mapping[str, ConfigEntry]) -> dict[str, str]:
    own: Any = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    return {name: str(entry.value) for name, entry in config.items() if entry.source == own}


def _spec(at: At) -> Any:
    if at == "earliest":
        return OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    if at == "latest":
        return OffsetSpec.latest()  # type: ignore[no-untyped-call]
    # Not below 0: to Kafka -1 is the end of the log, and other negative numbers are something else again.
    return OffsetSpec.for_timestamp(max(0, math.ceil(round(float(at) * 1000, 3))))


def _commits(group: str, found: Iterable[ClientPartition]) -> dict[TopicPartition, Commit]:
    commits = {}
    for partition in found:
        if partition.error is not None:
            raise translated(partition.error, f"read the commits of group {group}")
        if partition.offset >= 0:
            commits[TopicPartition(partition.topic, partition.partition)] = Commit(partition.offset, partition.metadata or "")
    return commits


def _kafka_error(error: Any) -> KafkaError:
    """The client gives a part's error as it is, and promises an exception around it."""
    found: KafkaError = error.args[0] if isinstance(error, KafkaException) else error
    return found


def _unless_refused(altered: ConsumerGroupTopicPartitions) -> None:
    """*Bites*: a coordinator that moves says so of each partition, not of the group."""
    for found in altered.topic_partitions or []:
        if found.error is not None:
            raise KafkaException(found.error)


def _group(name: str, found: ConsumerGroupDescription | None) -> Group:
    if found is None:
        return Group(name, "dead", "", ())
    state = found.state.name.lower()
    protocol = "" if state == "dead" else found.type.name.lower()
    if state == "unknown" and protocol == "consumer":
        state = "reconciling"  # the client has no word for it, nor for the moment before, "assigning"
    members = tuple(_member(member) for member in found.members)
    return Group(name, _STATES.get(state, state), protocol if protocol != "unknown" else "", members)


def _member(found: Any) -> Member:
    target = None if found.target_assignment is None else _places(found.target_assignment)
    return Member(found.member_id, found.client_id, found.host, found.group_instance_id or None, _places(found.assignment), target)


def _places(assignment: Any) -> tuple[TopicPartition, ...]:
    return tuple(sorted(TopicPartition(p.topic, p.partition) for p in assignment.topic_partitions))
