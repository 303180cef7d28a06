"""The port to a broker: what streamjobs asks of Kafka, and nothing more.

Implemented by `streamjobs.kafka` (a cluster, or librdkafka's embedded one) and by `streamjobs.testing.MemoryBroker`; all of
them pass `tests/conformance`. Instants are float seconds since the epoch, durations float seconds, offsets integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from streamjobs.core.record import Header, Record
from streamjobs.errors import BrokerError


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Commit(NamedTuple):
    """A consumer group's position in one partition: the next offset to read, and up to 4,095 characters of metadata."""

    offset: int
    metadata: str = ""


class Start(NamedTuple):
    """Where an assigned partition begins. `fetch=False`: keep it assigned, but fetch nothing (it is held for a reason)."""

    offset: int
    fetch: bool = True


class Message(Protocol):
    """A record as it was read. The shape of `confluent_kafka.Message`, so that the hot path needs no wrapper."""

    def __len__(self) -> int:
        """The value's size in bytes; 0 without one."""
        ...

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[Header] | None: ...

    def timestamp(self) -> tuple[int, int]:
        """(type, ms since the epoch); type 2 is the broker's append time, 1 the client's create time, 0 none."""
        ...


Ack = Callable[[BrokerError | None, Message], object] | Callable[[Any, BrokerError | None, Message], object]
"""`ack(error, message)`, or `ack(about, error, message)` where it was sent with something to know it by (one object for a whole batch's
acknowledgements, and not one for each). Called once per sent record, by whichever thread polls the producer: append to a queue, do
nothing else."""

Committed = Callable[[Mapping[TopicPartition, BrokerError | None]], None]


class Listener(Protocol):
    """What a group's consumer tells its owner; called inside `fetch`, on the thread that called it. Must not raise."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Partitions that are now ours, and where each starts. All of them must be in the answer."""
        ...

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions that leave when this returns; they may still be committed with `commit_now`."""
        ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions that others may own already: commit nothing."""
        ...


class Consumer(Protocol):
    """One member of a group, or (group None) a reader of explicit partitions. Only its owner's thread may call it."""

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None: ...

    def member_id(self) -> str:
        """By which its group knows it, or will know it; "" while that is not settled."""
        ...

    def rejoin(self) -> None:
        """Leaves the group and joins it anew, in later fetches: all partitions are revoked, then assigned again."""
        ...

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        """Read exactly these partitions from these offsets, without a group's assignment; {} releases all."""
        ...

    def fetch(self, limit: int, timeout: float) -> list[Message]:
        """At most `limit` records: waits up to `timeout` for the first, then takes what has arrived, never waiting for more.

        Serves callbacks and heartbeats; call it at least every `max_poll_interval`, with limit 0 to serve them only.
        Never raises for what a broker did: that is in `faults()`.
        """
        ...

    def faults(self) -> list[tuple[TopicPartition | None, BrokerError]]:
        """What went wrong since the last call, oldest first; with its partition where it concerns one."""
        ...

    def pause(self, partitions: Sequence[TopicPartition]) -> None: ...
    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def committed(self, partitions: Sequence[TopicPartition], timeout: float = 10.0) -> dict[TopicPartition, Commit | None]:
        """Raises BrokerError; None: the group has no commit there."""
        ...

    def commit_soon(self, offsets: Mapping[TopicPartition, Commit], done: Committed) -> None:
        """Asks for a commit; `done` is called inside a later `fetch` with each partition's error or None."""
        ...

    def commit_now(self, offsets: Mapping[TopicPartition, Commit], timeout: float = 10.0) -> dict[TopicPartition, BrokerError]:
        """Commits and waits; the answer holds only the partitions that failed (the others are committed)."""
        ...

    def log_bounds(self, partition: TopicPartition, timeout: float = 10.0) -> tuple[int, int]:
        """(log start offset, end offset) as the broker says now. Raises BrokerError."""
        ...

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offsets at which reading goes on: past what `fetch` returned and, at the end of what is readable, past the gaps
        behind it (transaction markers, aborted or compacted records), which no record ever shows."""
        ...

    def group_metadata(self) -> Any:
        """Opaque: for `TransactionalProducer.send_offsets`; read it on the owner's thread right before use.

        Raises BrokerError where it would pass unchecked: whoever is not a member has no say in what the group has read."""
        ...

    def close(self) -> None:
        """Leaves the group (without a commit of its own) and frees everything; bounded in time."""
        ...


class Producer(Protocol):
    """Idempotent, acks=all, murmur2 partitioner. May be called by any thread of the process that built it."""

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        """Queues a record. Raises BrokerError `_QUEUE_FULL` (poll, then try again) or `MSG_SIZE_TOO_LARGE` at once.

        `about`: what `ack` is told first, if anything (see `Ack`).
        `alone`: it shares no batch. Kafka refuses a batch whole for one record in it, or for the size of all; only of a record that
        was alone in its batch does `MSG_SIZE_TOO_LARGE` say that it is too large itself. A transactional producer's queue is full for
        it until what was sent before is out, and for others until it is."""
        ...

    def poll(self, timeout: float = 0.0) -> int:
        """Serves acknowledgements; returns how many were served."""
        ...

    def flush(self, timeout: float) -> int:
        """Waits until all is acknowledged or failed; returns how many records are still open."""
        ...

    def fatal(self) -> BrokerError | None:
        """The error that made this producer unusable, if one did: build another one and send open records again."""
        ...

    def close(self, timeout: float = 10.0) -> None: ...


class TransactionalProducer(Producer, Protocol):
    """One per owner of a transactional id; every call may raise BrokerError.

    `fatal` (`_FENCED`: another one took over, or the transaction was open for too long): this producer is done, and whether its
    transaction was committed only the group's offsets tell. `abortable`: call `abort`. `retriable`, of `init`, `commit` and
    `abort`: call the same again, and nothing else, until it is answered.
    """

    def init(self, timeout: float = 30.0) -> None:
        """Aborts what an earlier owner of the id left open, and fences it."""
        ...

    def begin(self) -> None: ...
    def send_offsets(self, offsets: Mapping[TopicPartition, Commit], group_metadata: Any, timeout: float = 10.0) -> None: ...
    def commit(self, timeout: float = 10.0) -> None: ...
    def abort(self, timeout: float = 10.0) -> None: ...


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be or is. `config` holds what is set explicitly; `id` is 16 bytes (empty in a plan)."""

    name: str
    partitions: int
    replication: int = 1
    config: Mapping[str, str] = field(default_factory=dict)
    id: bytes = b""


@dataclass(frozen=True, slots=True)
class Cluster:
    """`protocols`: the group protocols it speaks, of {"consumer", "classic"}; `version` is text such as "4.4" or ""."""

    id: str
    brokers: tuple[str, ...]
    protocols: frozenset[str]
    version: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """`assignment`: what the coordinator believes that it has; `target`: what it should have, None: that is not told (classic)."""

    id: str
    client_id: str
    host: str
    instance: str | None
    assignment: tuple[TopicPartition, ...]
    target: tuple[TopicPartition, ...] | None


@dataclass(frozen=True, slots=True)
class Group:
    """`state`: Kafka's word in lower case (`stable`, `empty`, `dead`, …); `protocol`: `consumer`, `classic` or ""."""

    name: str
    state: str
    protocol: str
    members: tuple[Member, ...]


At = Literal["earliest", "latest"] | float
"""A place in a log: its start, its end, or the first record appended at or after an instant."""

Isolation = Literal["read_committed", "read_uncommitted"]


class Admin(Protocol):
    """Questions and orders to the cluster. May be called by any thread; every method may raise BrokerError."""

    def cluster(self) -> Cluster: ...

    def topics(self, names: Iterable[str] | None = None, *, config: bool = False) -> dict[str, Topic]:
        """The existing ones of `names` (None: all). `config=True` also reads what is set explicitly."""
        ...

    def create_topics(self, topics: Sequence[Topic]) -> dict[str, BrokerError | None]: ...
    def add_partitions(self, topic: str, total: int) -> None: ...
    def alter_topic_config(self, topic: str, config: Mapping[str, str]) -> None: ...
    def delete_topics(self, names: Sequence[str]) -> None: ...

    def delete_records(self, before: Mapping[TopicPartition, int]) -> dict[TopicPartition, BrokerError | None]:
        """Deletes what lies below each offset."""
        ...

    def offsets(
        self, partitions: Sequence[TopicPartition], at: At, isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        """Where each log starts, ends, or reaches an instant (the end offset when no record is that young)."""
        ...

    def committed(self, group: str, partitions: Sequence[TopicPartition] | None = None) -> dict[TopicPartition, Commit]:
        """The group's commits (None: all of them); partitions without one are absent."""
        ...

    def alter_committed(self, group: str, offsets: Mapping[TopicPartition, Commit]) -> None:
        """Only an empty group's can be altered: with a live member BrokerError `UNKNOWN_MEMBER_ID`."""
        ...

    def group_names(self) -> list[str]:
        """All consumer groups of the cluster, ours or not; BrokerError if a part of the cluster does not tell its own."""
        ...

    def groups(self, names: Sequence[str]) -> dict[str, Group]: ...
    def set_group_config(self, group: str, config: Mapping[str, str]) -> None: ...


#: How members of a group agree on who has what: KIP-848, or the one before it.
GroupProtocol = Literal["consumer", "classic"]


class Broker(Protocol):
    """Makes clients of one cluster. `lacks` names what it can't do, from the closed list of DESIGN.md §8."""

    lacks: frozenset[str]

    def consumer(
        self, group: str | None, *, instance: str | None = None, isolation: Isolation = "read_committed", patient: bool = False
    ) -> Consumer:
        """A member of `group` (`instance`: static membership), or with None a reader. `patient`: it mostly waits for the next record,
        which comes at once all the same, and seldom for other partitions than before, which may come half a second later (a member's
        a tenth); so it costs less while it waits. Raises BrokerError."""
        ...

    def producer(self, *, within: float | None = None) -> Producer:
        """`within`: a record that is not delivered so many seconds after it was sent is given up (else: nine)."""
        ...

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer: ...
    def admin(self) -> Admin: ...
    def protocol(self) -> GroupProtocol:
        """The group protocol of its consumers. Raises BrokerError when the cluster has to be asked and is silent."""
        ...

    def close(self) -> None: ...
