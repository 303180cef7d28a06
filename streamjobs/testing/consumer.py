"""A consumer of a MemoryBroker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from streamjobs.broker import Commit, Committed, Isolation, Listener, Message, Start, TopicPartition
from streamjobs.errors import BrokerError
from streamjobs.testing.faults import broker_error
from streamjobs.testing.groups import GroupCoordinator, Member
from streamjobs.testing.log import PartitionLog, metadata_units
from streamjobs.testing.state import Link, State

MAX_METADATA_UNITS = 4095


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """Which member of which group sends offsets to a transaction, as of which generation (KIP-447)."""

    group: str
    member: Member | None
    generation: int


@dataclass(slots=True)
class Position:
    """Where reading goes on. `stalled`: after an error, until a seek."""

    offset: int
    topic_id: bytes
    paused: bool = False
    stalled: bool = False


class MemoryConsumer:
    """See `streamjobs.broker.Consumer`.

    Raises RuntimeError when two threads use it at once: with Kafka, the second would hang behind the first.
    """

    def __init__(self, state: State, group: str | None, instance: str | None, isolation: Isolation) -> None:
        self._state = state
        self._link = Link(state)
        self._group_name = group
        self._instance = instance
        self._isolation = isolation
        self._topics: frozenset[str] | None = None
        self._listener: Listener | None = None
        self._member: Member | None = None
        self._fenced = False
        self._rejoining = False
        self._positions: dict[TopicPartition, Position] = {}
        self._faults: list[tuple[TopicPartition | None, BrokerError]] = []
        self._outcomes: list[Callable[[], None]] = []
        self._closed = False
        self._user: int | None = None

    # -- what is read

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        with self._alone():
            self._coordinator()
            self._topics, self._listener = frozenset(topics), listener

    def member_id(self) -> str:
        return self._member.id if self._member else ""

    def rejoin(self) -> None:
        with self._alone():
            self._rejoining = True

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        with self._alone():
            ids = self._state.partitions({tp.topic for tp in starts})
            self._positions = {tp: Position(offset, ids.get(tp, b"")) for tp, offset in starts.items()}

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._set_paused(partitions, True)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._set_paused(partitions, False)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        with self._alone():
            position = self._position(partition)
            position.offset, position.stalled = offset, False

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._alone():
            return {partition: self._position(partition).offset for partition in partitions}

    def log_bounds(self, partition: TopicPartition, timeout: float = 10.0) -> tuple[int, int]:
        with self._alone():
            self._link.reach(timeout, partition.topic)
            log = self._state.log(partition)
            return log.start, log.readable(self._isolation)

    def _set_paused(self, partitions: Sequence[TopicPartition], paused: bool) -> None:
        with self._alone():
            for partition in partitions:
                if partition in self._positions:
                    self._positions[partition].paused = paused

    def _position(self, partition: TopicPartition) -> Position:
        if partition not in self._positions:
            raise broker_error("_STATE", f"{partition.topic}/{partition.partition} is not assigned")
        return self._positions[partition]

    # -- fetching

    def fetch(self, limit: int, timeout: float) -> list[Message]:
        until, known = time.monotonic() + timeout, len(self._faults)
        with self._alone(locked=False):
            while True:
                seen = self._state.version
                self._serve()
                messages = self._take(limit)
                if messages or len(self._faults) > known or not self._state.wait(seen, until):
                    return messages

    def faults(self) -> list[tuple[TopicPartition | None, BrokerError]]:
        with self._alone():
            faults, self._faults = self._faults, []
            return faults

    def _take(self, limit: int) -> list[Message]:
        with self._state.lock:
            found: list[Message] = []
            if not self._link.up():
                return found
            if fault := self._state.faults.hit("fetch"):
                self._faults.append((None, fault.error))
                return found
            for partition, position in list(self._positions.items()):
                if len(found) < limit and not position.paused and not position.stalled:
                    self._take_from(partition, position, limit, found)
            return found

    def _take_from(
        self, partition: TopicPartition, position: Position, limit: int, found: list[Message]
    ) -> None:
        """What gave records goes to the end of the row: a full partition must not starve the others."""
        log = self._readable_log(partition, position)
        if log is None:
            return
        messages, position.offset = log.read(position.offset, limit - len(found), self._isolation)
        if messages:
            found += messages
            self._positions[partition] = self._positions.pop(partition)

    def _readable_log(self, partition: TopicPartition, position: Position) -> PartitionLog | None:
        if not self._link.up(partition.topic):
            return None
        if fault := self._state.faults.hit("fetch", partition.topic):
            self._faults.append((partition, fault.error))
            return None
        topic = self._state.topics.get(partition.topic)
        if topic is None or topic.id != position.topic_id:
            self._stall(partition, position, "UNKNOWN_TOPIC_OR_PART")
            return None
        log = topic.logs[partition.partition]
        if not log.start <= position.offset <= log.end:
            self._stall(partition, position, "_AUTO_OFFSET_RESET")
            return None
        return log

    def _stall(self, partition: TopicPartition, position: Position, code: str) -> None:
        """One error, then silence, as librdkafka does with `auto.offset.reset=error`."""
        position.stalled = True
        self._faults.append((partition, broker_error(code, f"offset {position.offset} can't be read")))

    # -- the group

    def _serve(self) -> None:
        """Heartbeat and callbacks; these run without the lock."""
        with self._state.lock:
            self._state.tick()
            outcomes, self._outcomes = self._outcomes, []
            expelled = self._poll()
        for tell in outcomes:
            self._guarded(tell)
        if expelled:
            self._give_up()
        if self._rejoining:
            self._rejoining = False
            self._give_back()
        if self._topics is not None and self._link.up() and not self._fenced:
            self._rebalance(self._topics)

    def _poll(self) -> bool:
        """Whether the group has expelled this member since its last poll."""
        if self._member is None:
            return False
        self._member.polled = self._state.clock.monotonic()
        return self._link.up() and not self._coordinator().holds(self._member)

    def _give_up(self) -> None:
        lost, self._positions, self._member = sorted(self._positions), {}, None
        self._faults.append((None, broker_error("_MAX_POLL_EXCEEDED", "fetch was not called for too long")))
        listener = self._listener
        if lost and listener is not None:
            self._guarded(lambda: listener.lost(lost))

    def _give_back(self) -> None:
        """All partitions, and the membership."""
        if self._member is not None:
            self._hand_over(self._member, sorted(self._member.owned))
            with self._state.lock:
                self._leave()
                self._member = None

    def _rebalance(self, topics: frozenset[str]) -> None:
        """One step towards the group's target: return what is to be returned, then claim what is free."""
        with self._state.lock:
            member = self._joined(topics)
            leaving = self._coordinator().to_return(member) if member else []
        if member is None:
            return
        self._hand_over(member, leaving)
        with self._state.lock:
            arriving = self._coordinator().claim(member)
        if arriving:
            self._begin(member, self._starts_of(arriving))

    def _joined(self, topics: frozenset[str]) -> Member | None:
        """This consumer as a member of its group, subscribed to these topics; None: it was refused."""
        if self._member is None:
            return self._join(topics)
        if self._member.topics != topics:
            self._member.topics = topics
            self._coordinator().retarget()
            self._state.changed()
        return self._member

    def _join(self, topics: frozenset[str]) -> Member | None:
        name, now = self._state.new_name("member"), self._state.clock.monotonic()
        member = Member(name, topics, now, self._instance)
        if self._coordinator().join(member):
            self._member = member
            self._state.changed()
        else:
            self._fenced = True
            text = f"instance {self._instance} is a live member of {self._group_name}"
            self._faults.append((None, broker_error("UNRELEASED_INSTANCE_ID", text, fatal=True)))
        return self._member

    def _hand_over(self, member: Member, leaving: Sequence[TopicPartition]) -> None:
        """Others get these partitions only after the callback."""
        listener = self._listener
        if not leaving or listener is None:
            return
        self._guarded(lambda: listener.revoked(leaving))
        with self._state.lock:
            for partition in leaving:
                self._positions.pop(partition, None)
            self._coordinator().returned(member, leaving)
            self._state.changed()

    def _starts_of(self, arriving: Sequence[TopicPartition]) -> dict[TopicPartition, Start]:
        """What the listener answers; what it does not know is held: nothing is read at a guess."""
        starts = {partition: Start(0, fetch=False) for partition in arriving}
        listener = self._listener
        if listener is not None:
            self._guarded(lambda: starts.update(listener.assigned(arriving)))
        return starts

    def _begin(self, member: Member, starts: Mapping[TopicPartition, Start]) -> None:
        with self._state.lock:
            for tp, start in starts.items():
                self._positions[tp] = Position(
                    start.offset, member.owned.get(tp, b""), paused=not start.fetch
                )

    def _guarded(self, callback: Callable[[], None]) -> None:
        """A callback must not raise; one that does becomes a fault, as it would with Kafka."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - it is reported, and would stop the rebalance half way
            text = f"a callback raised {type(error).__name__}: {error}"
            self._faults.append((None, broker_error("_APPLICATION", text)))

    def _coordinator(self) -> GroupCoordinator:
        if self._group_name is None:
            raise broker_error("_UNKNOWN_GROUP", "this consumer has no group")
        return self._state.group(self._group_name)

    # -- commits

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, Commit | None]:
        with self._alone(locked=False):
            self._link.reach(timeout)
            if not self._state.wait_until(lambda: not self._coordinator().unstable(partitions), timeout):
                raise broker_error("_TIMED_OUT", "an open transaction may change these commits")
            with self._state.lock:
                self._state.faults.strike("committed", *sorted({tp.topic for tp in partitions}))
                return {tp: self._coordinator().commits.get(tp) for tp in partitions}

    def commit_soon(self, offsets: Mapping[TopicPartition, Commit], done: Committed) -> None:
        with self._alone():
            outcome = {tp: self._try_commit(tp, commit) for tp, commit in offsets.items()}
            self._outcomes.append(lambda: done(outcome))

    def commit_now(
        self, offsets: Mapping[TopicPartition, Commit], timeout: float = 10.0
    ) -> dict[TopicPartition, BrokerError]:
        with self._alone(locked=False):
            self._state.wait_until(self._link.up, timeout)
            with self._state.lock:
                outcome = {tp: self._try_commit(tp, commit) for tp, commit in offsets.items()}
        return {tp: error for tp, error in outcome.items() if error}

    def group_metadata(self) -> GroupMetadata:
        with self._alone():
            if self._member is None:
                raise broker_error("UNKNOWN_MEMBER_ID", "not, or no longer, a member of the group")
            return GroupMetadata(self._coordinator().name, self._member, self._member.generation)

    def _try_commit(self, partition: TopicPartition, commit: Commit) -> BrokerError | None:
        fault = self._state.faults.hit("commit", partition.topic)
        if fault and not fault.applied:
            return fault.error
        error = self._commit_error(partition, commit)
        if error is None:
            self._coordinator().commits[partition] = commit
            self._state.changed()
        return fault.error if fault else error

    def _commit_error(self, partition: TopicPartition, commit: Commit) -> BrokerError | None:
        """Whether the partition is the member's own is not looked at: Kafka does not either."""
        self._state.tick()
        if not self._link.up():
            return broker_error("_TIMED_OUT", "the memory broker is down, or this consumer was killed")
        if not self._may_commit():
            return broker_error("UNKNOWN_MEMBER_ID", "this consumer is no member of the group (any more)")
        if metadata_units(commit) > MAX_METADATA_UNITS:
            return broker_error("OFFSET_METADATA_TOO_LARGE", f"more than {MAX_METADATA_UNITS} UTF-16 units")
        if partition not in self._state.partitions([partition.topic]):
            return broker_error(
                "UNKNOWN_TOPIC_OR_PART", f"{partition.topic}/{partition.partition} does not exist"
            )
        return None

    def _may_commit(self) -> bool:
        """A member, or anybody while the group is empty."""
        group = self._coordinator()
        return group.holds(self._member) if self._member else not group.members

    # -- the end

    def close(self) -> None:
        if self._closed:
            return
        with self._alone():
            self._leave()
            self._closed = True

    def cut(self) -> None:
        """See `MemoryBroker.kill`; any thread may call it."""
        self._link.cut()
        if self._member:
            self._member.silent_since = self._state.clock.monotonic()

    def _leave(self) -> None:
        """Without callbacks: whoever closes has settled and committed what it wanted to."""
        self._state.tick()
        if self._member is not None and self._link.up():
            self._coordinator().leave(self._member, self._state.clock.monotonic())
            self._state.changed()

    # -- one thread

    @contextmanager
    def _alone(self, *, locked: bool = True) -> Iterator[None]:
        me, outer = threading.get_ident(), self._user
        if outer not in (None, me):
            raise RuntimeError("two threads use one consumer at once: only its owner may call it")
        if self._closed:
            raise RuntimeError("the consumer is closed")
        self._user = me
        try:
            if locked:
                with self._state.lock:
                    yield
            else:
                yield
        finally:
            self._user = outer
