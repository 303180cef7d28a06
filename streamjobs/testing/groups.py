"""A consumer group's coordinator in memory: members, who owns what, commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streamjobs.broker import Commit, Group, TopicPartition
from streamjobs.broker import Member as MemberView
from streamjobs.testing.faults import broker_error
from streamjobs.testing.log import Transaction

Partitions = Callable[[Iterable[str]], dict[TopicPartition, bytes]]
"""The existing partitions of some topics, each with its topic's id."""


@dataclass(eq=False, slots=True)
class Member:
    """One consumer in a group. Instants are the clock's monotonic ones.

    `owned`: partitions it was given and has not returned, with their topic's id; `owned_since`: the
    generation that gave them. `silent_since`: it sends no heartbeat any more, being killed or, if `released`,
    a static member that closed and may come back.
    """

    id: str
    topics: frozenset[str]
    polled: float
    instance: str | None = None
    silent_since: float | None = None
    released: bool = False
    generation: int = 0
    owned: dict[TopicPartition, bytes] = field(default_factory=dict)
    owned_since: dict[TopicPartition, int] = field(default_factory=dict)


class GroupCoordinator:
    """Assigns cooperatively: a partition is given only after its old owner returned it, or was expelled.

    Source of the protocol: KIP-848 (a target assignment, which each member approaches with its heartbeats).
    """

    def __init__(
        self, name: str, partitions: Partitions, session_timeout: float, max_poll_interval: float
    ) -> None:
        self.name = name
        self.members: dict[str, Member] = {}
        self.commits: dict[TopicPartition, Commit] = {}
        self.config: dict[str, str] = {}
        self._partitions = partitions
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval
        self._target: dict[TopicPartition, str] = {}
        self._generation = 0
        self._pending: dict[Transaction, dict[TopicPartition, Commit]] = {}

    @property
    def session_timeout(self) -> float:
        configured = self.config.get("consumer.session.timeout.ms")
        return int(configured) / 1000 if configured else self._session_timeout

    # -- membership

    def join(self, member: Member) -> bool:
        """False: another one holds its static instance id and has neither closed nor timed out."""
        holder = self._holder(member.instance)
        if holder is not None and not holder.released:
            return False
        if holder is not None:
            del self.members[holder.id]
            self._target = {
                tp: member.id if owner == holder.id else owner for tp, owner in self._target.items()
            }
        self.members[member.id] = member
        self.retarget()
        return True

    def leave(self, member: Member, now: float) -> None:
        """A static member keeps its partitions for a session timeout, in case it comes back."""
        if member.instance is None:
            self._remove(member)
        else:
            member.silent_since, member.released = now, True

    def expire(self, now: float) -> bool:
        """Expels the silent and the stuck; whether there were any."""
        expired = [member for member in self.members.values() if self._expired(member, now)]
        for member in expired:
            self._remove(member)
        return bool(expired)

    def spare(self, now: float) -> None:
        """Starts every timer again, as a coordinator does that was away itself."""
        for member in self.members.values():
            member.polled = now
            member.silent_since = None if member.silent_since is None else now

    def holds(self, member: Member) -> bool:
        return self.members.get(member.id) is member

    def _holder(self, instance: str | None) -> Member | None:
        named = (member for member in self.members.values() if member.instance == instance)
        return next(named, None) if instance else None

    def _expired(self, member: Member, now: float) -> bool:
        if member.silent_since is not None:
            return now - member.silent_since >= self.session_timeout
        return now - member.polled >= self._max_poll_interval

    def _remove(self, member: Member) -> None:
        if self.holds(member):
            del self.members[member.id]
            self.retarget()

    # -- assignment

    def retarget(self) -> None:
        """Decides anew who should own what; after a change of members, subscriptions or topics."""
        subscriptions = {member.id: member.topics for member in self.members.values()}
        wanted = frozenset().union(*subscriptions.values())
        target = spread(self._partitions(wanted), subscriptions, self._target)
        if target != self._target:
            self._generation += 1
        self._target = target

    def to_return(self, member: Member) -> list[TopicPartition]:
        """What a member owns and should not: it is another one's now, or its topic is gone or another one."""
        current = self._partitions({tp.topic for tp in member.owned})
        return sorted(
            tp
            for tp, topic_id in member.owned.items()
            if self._target.get(tp) != member.id or current.get(tp) != topic_id
        )

    def returned(self, member: Member, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            member.owned.pop(partition, None)
            member.owned_since.pop(partition, None)

    def claim(self, member: Member) -> list[TopicPartition]:
        """Gives a member what should be its own and nobody owns any more."""
        taken = {tp for other in self.members.values() for tp in other.owned}
        free = sorted(tp for tp, owner in self._target.items() if owner == member.id and tp not in taken)
        current = self._partitions({tp.topic for tp in free})
        member.owned.update({tp: current[tp] for tp in free})
        member.owned_since.update(dict.fromkeys(free, self._generation))
        member.generation = self._generation
        return free

    def describe(self) -> Group:
        if not self.members:
            return Group(self.name, "empty", "consumer", ())
        members = tuple(self._view(member) for member in self.members.values())
        owned = {tp: member.id for member in self.members.values() for tp in member.owned}
        return Group(self.name, "stable" if owned == self._target else "reconciling", "consumer", members)

    def _view(self, member: Member) -> MemberView:
        target = tuple(sorted(tp for tp, owner in self._target.items() if owner == member.id))
        return MemberView(member.id, "memory", "127.0.0.1", member.instance, tuple(sorted(member.owned)), target)

    # -- commits

    def check_generation(self, member: Member, generation: int, partitions: Iterable[TopicPartition]) -> None:
        """Raises BrokerError if one who knows only that generation may not commit these partitions.

        An older generation may commit what the member has owned without a break since (KIP-1251).
        """
        if not self.holds(member):
            raise broker_error("UNKNOWN_MEMBER_ID", f"the consumer is no member of {self.name} any more")
        kept = (member.owned_since.get(tp, generation + 1) <= generation for tp in partitions)
        if generation != member.generation and not all(kept):
            raise broker_error("ILLEGAL_GENERATION", "partitions have moved since group_metadata() was read")

    def hold(self, transaction: Transaction, offsets: Mapping[TopicPartition, Commit]) -> None:
        """Commits that become visible when their transaction is committed."""
        if transaction not in self._pending:
            self._pending[transaction] = {}
            transaction.groups.append(self._settle)
        self._pending[transaction].update(offsets)

    def unstable(self, partitions: Iterable[TopicPartition]) -> bool:
        """Whether an open transaction may change one of these commits."""
        asked = set(partitions)
        return any(not asked.isdisjoint(offsets) for offsets in self._pending.values())

    def forget(self, topic: str) -> None:
        """Drops the commits of a topic that was deleted."""
        self.commits = {tp: commit for tp, commit in self.commits.items() if tp.topic != topic}

    def _settle(self, transaction: Transaction) -> None:
        offsets = self._pending.pop(transaction)
        if transaction.state == "committed":
            self.commits.update(offsets)


def spread(
    partitions: Iterable[TopicPartition],
    subscriptions: Mapping[str, frozenset[str]],
    current: Mapping[TopicPartition, str],
) -> dict[TopicPartition, str]:
    """An owner for each partition: the current one where that is fair, else the least loaded.

    Of members that may take the same topics, none has two partitions more than another.
    """
    held: dict[str, list[TopicPartition]] = {member: [] for member in subscriptions}
    for tp in sorted(partitions):
        eligible = [member for member in subscriptions if tp.topic in subscriptions[member]]
        owner = current.get(tp)
        if owner in eligible:
            held[owner].append(tp)
    placed = {tp for tps in held.values() for tp in tps}
    for tp in sorted(set(partitions) - placed):
        eligible = [member for member in subscriptions if tp.topic in subscriptions[member]]
        if eligible:
            held[min(eligible, key=lambda member: len(held[member]))].append(tp)
    while move := _unfair(held, subscriptions):
        tp, giver, taker = move
        held[giver].remove(tp)
        held[taker].append(tp)
    return {tp: member for member, tps in held.items() for tp in tps}


def _unfair(
    held: Mapping[str, Sequence[TopicPartition]], subscriptions: Mapping[str, frozenset[str]]
) -> tuple[TopicPartition, str, str] | None:
    """A partition that should move from a member that has at least two more to one that may take it."""
    by_load = sorted(held, key=lambda member: len(held[member]))
    for giver in reversed(by_load):
        for taker in by_load:
            if len(held[giver]) < len(held[taker]) + 2:
                break
            if movable := [tp for tp in held[giver] if tp.topic in subscriptions[taker]]:
                return movable[-1], giver, taker
    return None
