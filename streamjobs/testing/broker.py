"""The in-memory broker, and the hooks by which a test makes its world go wrong."""

from __future__ import annotations

from streamjobs.broker import GroupProtocol, Isolation, Topic, TopicPartition
from streamjobs.core.clock import Clock
from streamjobs.errors import BrokerError
from streamjobs.testing.admin import MemoryAdmin
from streamjobs.testing.clock import SystemTime
from streamjobs.testing.consumer import MemoryConsumer
from streamjobs.testing.faults import Fault, Operation, broker_error
from streamjobs.testing.log import MemoryMessage
from streamjobs.testing.producer import MemoryProducer, MemoryTransactionalProducer
from streamjobs.testing.state import Limits, State


class MemoryBroker:
    """A broker in this process: partitions, groups, transactions, compaction, errors, as Kafka has them.

    It passes the same conformance tests as the adapter to Kafka, and lacks nothing. Topics are not made on
    first use: see `create`. With a `ManualClock` nothing blocks, and every time-out happens when the test
    says so; with the default (the machine's clock) `fetch` and `flush` wait as they do with Kafka. Any thread
    may use it.

    :param clock: for append times (`now`) and time-outs (`monotonic`).
    :param seed: decides topic ids, and where the first keyless record of a topic goes.
    :param session_timeout: seconds until a killed member's partitions are given to others; a group's own
        `consumer.session.timeout.ms` goes before it.
    :param max_poll_interval: seconds without `fetch` until a member is expelled.
    :param message_timeout: seconds until a record that can't be delivered fails.
    :param transaction_timeout: seconds until an open transaction is aborted and its producer fenced.
    :param queue_limit: records that a producer may have without acknowledgement.
    """

    lacks: frozenset[str] = frozenset()

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        seed: int = 0,
        brokers: int = 1,
        session_timeout: float = 10.0,
        max_poll_interval: float = 300.0,
        message_timeout: float = 9.0,
        transaction_timeout: float = 10.0,
        max_message_bytes: int = 1_048_576,
        queue_limit: int = 100_000,
    ) -> None:
        self.clock: Clock = clock or SystemTime()
        limits = Limits(
            session_timeout,
            max_poll_interval,
            message_timeout,
            transaction_timeout,
            max_message_bytes,
            queue_limit,
            brokers,
        )
        self._state = State(self.clock, seed, limits)

    # -- the port

    def consumer(
        self, group: str | None, *, instance: str | None = None, isolation: Isolation = "read_committed", patient: bool = False
    ) -> MemoryConsumer:
        return MemoryConsumer(self._state, group, instance, isolation)

    def producer(self, *, within: float | None = None) -> MemoryProducer:
        return MemoryProducer(self._state, within=within)

    def transactional_producer(self, transactional_id: str) -> MemoryTransactionalProducer:
        return MemoryTransactionalProducer(self._state, transactional_id)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self._state)

    def protocol(self) -> GroupProtocol:
        return "consumer"

    def close(self) -> None:
        """Frees nothing: what is in memory can still be looked at."""

    # -- for tests: arrange and look

    def create(self, name: str, partitions: int = 1, **config: str) -> None:
        """Makes a topic; options with underscores: `cleanup_policy="compact"`. Raises BrokerError."""
        options = {option.replace("_", "."): value for option, value in config.items()}
        error = self.admin().create_topics([Topic(name, partitions, config=options)])[name]
        if error:
            raise error

    def records(self, topic: str, isolation: Isolation = "read_committed") -> list[MemoryMessage]:
        """What can be read of a topic now, by partition and offset. Raises BrokerError if it is missing."""
        with self._state.lock:
            logs = self._state.topic(topic).logs
            return [
                message for log in logs for message in log.read(log.start, len(log.records), isolation)[0]
            ]

    # -- for tests: what brokers do in their own time

    def compact(self, topic: str) -> None:
        """Keeps the last record of each key, as Kafka's cleaner does at some time; the others become gaps."""
        with self._state.lock:
            for log in self._state.topic(topic).logs:
                log.compact(self.clock.now())

    def expire_records(self, topic: str) -> None:
        """Deletes what is older than the topic's `retention.ms`."""
        with self._state.lock:
            for log in self._state.topic(topic).logs:
                log.expire(self.clock.now())

    def expire_commits(self, group: str, *partitions: TopicPartition) -> None:
        """Forgets commits (without `partitions`: all of the group), as after `offsets.retention.minutes`."""
        with self._state.lock:
            commits = self._state.group(group).commits
            for partition in partitions or tuple(commits):
                commits.pop(partition, None)

    # -- for tests: what goes wrong

    def fail(
        self,
        operation: Operation,
        *,
        topic: str | None = None,
        error: str | BrokerError = "_TRANSPORT",
        times: int | None = 1,
        applied: bool = False,
    ) -> Fault:
        """Lets the next calls of one kind fail, counted per record sent, per partition committed or fetched.

        :param operation: `send` (the error is in the acknowledgement), `fetch` (in `faults()`), `commit`,
            `committed`, `transaction` (init, send_offsets, commit, abort) or `admin`.
        :param topic: only where it is concerned.
        :param error: a BrokerError, or Kafka's name of one; a fatal one makes a producer unusable.
        :param times: None: until the returned fault's `lift()`.
        :param applied: for `send` and `commit`: the broker does it, and only its answer is lost.
        """
        wanted = error if isinstance(error, BrokerError) else broker_error(error, "injected by a test")
        with self._state.lock:
            return self._state.faults.add(Fault(operation, wanted, topic, times, applied))

    def down(self, *topics: str) -> None:
        """Makes the broker, or only some topics, unreachable.

        Records wait and time out, `fetch` returns nothing, commits and admin calls fail. Nobody is expelled
        from a group meanwhile.
        """
        with self._state.lock:
            self._state.down(topics)

    def up(self, *topics: str) -> None:
        """Ends `down`; records that are still waiting are delivered."""
        with self._state.lock:
            self._state.up(topics)

    def kill(self, *clients: MemoryConsumer | MemoryProducer) -> None:
        """Cuts clients off for good, as SIGKILL or a cut cable does.

        A consumer's partitions are given to others after the session timeout; a producer's waiting records
        are lost, and what its open transaction wrote is aborted after the transaction timeout.
        """
        with self._state.lock:
            for client in clients:
                client.cut()
