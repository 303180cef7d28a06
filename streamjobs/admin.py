"""Orders and questions of operators: one place behind the command line, the monitor and the dashboard.

What writes comes in two steps: a plan that can be shown, and an application that looks again and acts on what
is the case then. Every application leaves a record in the audit topic.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from streamjobs import audit, orders
from streamjobs.backlog import Reading, positions
from streamjobs.broker import Admin, Commit, Group, Member, Topic, TopicPartition
from streamjobs.core import control
from streamjobs.core.control import Desired
from streamjobs.core.lag import Position
from streamjobs.core.offsets import Mark, decode, encode
from streamjobs.core.topics import Role
from streamjobs.deployment import Deployment, consumed
from streamjobs.errors import BrokerError, ProvisionError, UsageError

# --- groups -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupLag:
    """A consumer group of ours, and where it stands in each topic that it reads."""

    group: Group
    topics: Mapping[str, Mapping[int, Position]]

    @property
    def pending(self) -> int:
        return sum(place.pending for places in self.topics.values() for place in places.values())


def groups(app: Deployment, names: Collection[str] = ()) -> list[GroupLag]:
    """The app's own groups and those registered on its queues, or the named ones. Raises BrokerError."""
    desired = orders.read(app.broker, app.names)
    admin = app.broker.admin()
    pairs = [pair for pair in _group_topics(app, desired) if not names or pair[0] in names]
    existing = admin.topics({topic for _, topic in pairs}) if pairs else {}
    readings = [Reading(group, existing[name], _role(app, name)) for group, name in pairs if name in existing]
    known = admin.groups(sorted({group for group, _ in pairs})) if pairs else {}
    found: dict[str, dict[str, Mapping[int, Position]]] = {}
    for reading, places in zip(readings, positions(admin, readings, desired), strict=True):
        found.setdefault(reading.consumer, {})[reading.topic.name] = places
    return [GroupLag(known.get(name, Group(name, "dead", "", ())), topics) for name, topics in found.items()]


def _group_topics(app: Deployment, desired: Desired) -> list[tuple[str, str]]:
    """Our own (group, topic) pairs, and all that are registered on the app's queues."""
    queues = set(app.queues())
    others = [pair for pair in sorted(desired.registrations()) if _role(app, pair[1]).queue in queues]
    return list(dict.fromkeys([*consumed(app), *others]))


# --- seek ---------------------------------------------------------------------------------------------------

To = Literal["earliest", "latest", "reported"] | float
"""Where a group shall stand: the log's start, its end, the base in the last worker report, or the first
record appended at or after an instant."""


@dataclass(frozen=True, slots=True)
class Move:
    """One partition. `before`: where the group stands (None: it has no commit). `begins`: where it would begin without a commit."""

    partition: TopicPartition
    before: int | None
    to: int
    begins: int = 0

    @property
    def again(self) -> int:
        """So many offsets are read again; their jobs run a second time."""
        return max(0, self.before - self.to) if self.before is not None else 0

    @property
    def skipped(self) -> int:
        """So many offsets are passed over; unfinished jobs among them never run."""
        return max(0, self.to - (self.begins if self.before is None else self.before))


@dataclass(frozen=True, slots=True)
class SeekPlan:
    """`live`: the group has members, so the partitions' owners carry it out; else the admin API does. `standing`:
    where the group is there already. `unread`: topics that none of its members reads now, so that nobody carries it out there before
    one does."""

    group: str
    to: To
    moves: tuple[Move, ...]
    live: bool
    missing: tuple[TopicPartition, ...] = ()
    standing: tuple[TopicPartition, ...] = ()
    unread: tuple[str, ...] = ()


def plan_seek(
    app: Deployment,
    group: str,
    to: To,
    *,
    topics: Collection[str] = (),
    partitions: Collection[int] = (),
    reported: Mapping[TopicPartition, int] | None = None,
) -> SeekPlan:
    """Where a group's commits would move. `group` is Kafka's (`billing`, `billing.retry`, `billing.timer`).

    `topics`: some of those that it is registered on (none named: all), `partitions`: some of their
    partitions. `reported`: the bases of the last worker reports; partitions that are not in it are `missing`.
    Raises UsageError, ProvisionError (one of the topics is missing), BrokerError.
    """
    admin = app.broker.admin()
    desired = orders.read(app.broker, app.names)
    chosen = _chosen(desired, admin, group, topics, partitions)
    committed = admin.committed(group, chosen)
    targets = _targets(admin, chosen, to, reported or {})
    state = admin.groups([group]).get(group)
    live = bool(state and state.members)
    begins = _begins(admin, desired, group, [tp for tp in chosen if tp not in committed])
    moves = [
        Move(tp, committed[tp].offset if tp in committed else None, targets[tp], begins.get(tp, 0))
        for tp in chosen
        if tp in targets
    ]
    ordered = {tp for tp in chosen if desired.seek_keys(group, *tp, desired.offset)}
    standing = _standing(admin, [move for move in moves if move.partition not in ordered], committed, live)
    missing = tuple(tp for tp in chosen if tp not in targets)
    moves = [move for move in moves if move.partition not in standing]
    unread = _unread(moves, state.members) if state else ()
    return SeekPlan(group, to, tuple(moves), live, missing, tuple(standing), unread)


def apply_seek(
    app: Deployment, approved: SeekPlan, *, reason: str, reported: Mapping[TopicPartition, int] | None = None
) -> tuple[SeekPlan, str]:
    """Moves the partitions of an approved plan to where it says, as that is now; returns what was ordered,
    and a complaint or "".

    Owners are ordered to: a commit that an outsider makes is overwritten by the owner's next one. Only an
    empty group is altered directly; if a worker joined in the meantime, that is refused, and the order is
    left for the owner instead. Raises ProvisionError, BrokerError.
    """
    wanted = [move.partition for move in approved.moves]
    now = plan_seek(
        app,
        approved.group,
        approved.to,
        topics={tp.topic for tp in wanted},
        partitions={tp.partition for tp in wanted},
        reported=reported,
    )
    moves = tuple(move for move in now.moves if move.partition in set(wanted))
    live = bool(moves) and (now.live or not _altered(app, approved.group, moves))
    if live:
        _order_seek(app, approved.group, moves, reason)
    done = SeekPlan(approved.group, approved.to, moves, live, now.missing, unread=now.unread)
    result = "ok: left to the owners" if live else "ok"
    target = f"{approved.group} to {approved.to}: " + ", ".join(sorted({tp.topic for tp in wanted}))
    return done, audit.record(app, audit.Entry("group seek", target, len(moves), result, reason))


def _chosen(
    desired: Desired, admin: Admin, group: str, topics: Collection[str], partitions: Collection[int]
) -> list[TopicPartition]:
    registered = {name for reader, name in desired.registrations() if reader == group}
    unknown = sorted(set(topics) - registered)
    if unknown or not registered:
        where = f"on {unknown[0]}" if unknown else "anywhere"
        has = ", ".join(sorted(registered)) or "nothing: see `streamjobs group list`"
        raise UsageError(f"group {group} is not registered {where}; it is on {has}")
    wanted = sorted(topics or registered)
    found = admin.topics(wanted)
    for name in wanted:
        if name not in found:
            raise ProvisionError(
                f"topic {name}, on which group {group} is registered, is missing: `streamjobs topic plan` shows what is; "
                "name the topics that are there to move it in those"
            )
    _check_partitions(found, partitions)
    return [
        TopicPartition(name, number)
        for name, topic in sorted(found.items())
        for number in range(topic.partitions)
        if not partitions or number in partitions
    ]


def _check_partitions(found: Mapping[str, Topic], wanted: Collection[int]) -> None:
    most = max((topic.partitions for topic in found.values()), default=0)
    absent = sorted(number for number in wanted if not 0 <= number < most)
    if absent:
        has = ", ".join(f"{name} has 0 to {topic.partitions - 1}" for name, topic in sorted(found.items()))
        raise UsageError(f"there is no partition {absent[0]}: {has}")


def _begins(
    admin: Admin, desired: Desired, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Where a group begins that has no commit."""
    if not partitions:
        return {}
    ids = {name: topic.id for name, topic in admin.topics({tp.topic for tp in partitions}).items()}
    starts = admin.offsets(partitions, "earliest")
    ends = admin.offsets(partitions, "latest", "read_uncommitted")
    return {
        tp: desired.beginning(group, tp.topic, ids[tp.topic], tp.partition, (starts[tp], ends[tp])).offset
        for tp in partitions
    }


def _unread(moves: Iterable[Move], members: Sequence[Member]) -> tuple[str, ...]:
    """*Bites*: workers of another queue keep the group alive; an order waits for owners that this topic does not have."""
    read = {tp.topic for member in members for tp in (*member.assignment, *(member.target or ()))}
    return tuple(sorted({move.partition.topic for move in moves} - read)) if members else ()


def _targets(
    admin: Admin, chosen: Sequence[TopicPartition], to: To, reported: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    if to != "reported":
        return admin.offsets(chosen, to) if chosen else {}
    known = [tp for tp in chosen if tp in reported]
    starts = admin.offsets(known, "earliest") if known else {}
    ends = admin.offsets(known, "latest") if known else {}
    return {tp: max(starts[tp], min(reported[tp], ends[tp])) for tp in known}


def _standing(
    admin: Admin, moves: Iterable[Move], committed: Mapping[TopicPartition, Commit], live: bool
) -> list[TopicPartition]:
    """Where a move would change nothing. *Bites*: the group is committed where it shall go, but jobs beyond are
    marked as finished, or the owner finished some since: left alone, they would not run again."""
    same = [move for move in moves if move.before == move.to]
    if not same:
        return []
    topics = admin.topics(sorted({move.partition.topic for move in same}))
    ends = admin.offsets([move.partition for move in same], "latest")
    return [move.partition for move in same if _stands(move, topics[move.partition.topic], ends, committed, live)]


def _stands(
    move: Move, topic: Topic, ends: Mapping[TopicPartition, int], committed: Mapping[TopicPartition, Commit], live: bool
) -> bool:
    found = committed[move.partition]
    mark = decode(*found)
    if mark is None or mark.topic_id4 != topic.id[:4]:
        return False
    return ends[move.partition] <= move.to or (not live and found == _commit(move, topic, committed))


def _altered(app: Deployment, group: str, moves: Sequence[Move]) -> bool:
    """Orders that are still open go first: one that outlived this would send the next owner elsewhere."""
    admin = app.broker.admin()
    desired = orders.read(app.broker, app.names)
    keys = [key for move in moves for key in desired.seek_keys(group, *move.partition, desired.offset)]
    orders.write(app.broker, app.names, dict.fromkeys(keys))
    names = sorted({move.partition.topic for move in moves})
    topics = admin.topics(names) if names else {}
    old = admin.committed(group, [move.partition for move in moves])
    commits = {move.partition: _commit(move, topics[move.partition.topic], old) for move in moves}
    try:
        admin.alter_committed(group, commits)
    except BrokerError as error:
        if error.code == "UNKNOWN_MEMBER_ID":
            return False
        raise
    return True


def _commit(move: Move, topic: Topic, old: Mapping[TopicPartition, Commit]) -> Commit:
    """The last seek order's number is kept: else the next owner takes an old order for a new one."""
    before = old.get(move.partition)
    mark = decode(*before) if before else None
    sought = mark.sought if mark else -1
    return Commit(move.to, encode(move.to, Mark(topic.id[:4], clean=True, sought=sought)))


def _order_seek(app: Deployment, group: str, moves: Sequence[Move], reason: str) -> None:
    """An offset as a number, not "latest": what was shown is what happens, however late it is read."""
    now, order = app.clock.now(), uuid.uuid4().hex
    wanted = {
        control.seek_key(group, *move.partition, order): control.seek_value(
            to=move.to, actor=audit.actor(), reason=reason, at=now, until=now + SEEK_UNTIL_S
        )
        for move in moves
    }
    orders.write(app.broker, app.names, wanted)


#: A seek order that no owner carried out is void after a day: a group that starts next month must not jump.
SEEK_UNTIL_S = 86_400.0


# --- trim: the janitor --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """Records [start, before) of a partition: older than the history, and finished by everybody."""

    partition: TopicPartition
    start: int
    before: int

    @property
    def count(self) -> int:
        return self.before - self.start


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a topic (partition None) or a partition keeps records that are older than the history."""

    topic: str
    partition: int | None
    group: str
    message: str
    kind: str = "janitor_blocked"


@dataclass(frozen=True, slots=True)
class TrimPlan:
    cuts: tuple[Cut, ...]
    blocked: tuple[Blocked, ...]

    @property
    def count(self) -> int:
        return sum(cut.count for cut in self.cuts)


@dataclass(slots=True)
class Trimmed:
    done: list[Cut] = field(default_factory=list)
    failed: list[tuple[Cut, BrokerError]] = field(default_factory=list)
    complaint: str = ""


def plan_trim(app: Deployment, *, topics: Collection[str] = ()) -> TrimPlan:
    """What is older than `history` and finished by every group that has a say. Raises
    BrokerError, and UsageError for a topic in which no jobs pass by.

    A say have the groups that are registered on a topic and every other that has a commit there. In doubt
    nothing is deleted: no registered group, one without a commit, a commit in an earlier topic of that name.
    *Bites*: a queue whose workers start in two weeks is finished by all of its groups, of which there are
    none.
    """
    existing = app.broker.admin().topics()
    found = _trimmable(app, existing, topics)
    _check_topics(app, existing, found, topics)
    return _planned_trim(app, found)


def _planned_trim(app: Deployment, found: Sequence[Topic]) -> TrimPlan:
    horizon = app.clock.now() - app.settings.history
    admin = app.broker.admin()
    desired = orders.read(app.broker, app.names)
    commits = _all_commits(admin, found, desired)
    cuts: list[Cut] = []
    blocked: list[Blocked] = []
    registered, old_of = desired.registered_topics(), _old(admin, found, horizon)
    for topic in found:
        old = old_of[topic.name]
        objections = list(_objections(topic, registered.get(topic.name, ()), old, commits))
        blocked += objections or _held_back(old, commits)
        cuts += [] if objections else _cuts(old, commits)
    return TrimPlan(tuple(cuts), tuple(blocked))


def apply_trim(app: Deployment, approved: TrimPlan, *, reason: str = "") -> Trimmed:
    """Deletes what of the approved plan may still be deleted, as things are now. Raises BrokerError, also
    (`UNSUPPORTED_VERSION`) on a broker that can't delete records."""
    if "delete_records" in app.broker.lacks:
        raise BrokerError(
            "UNSUPPORTED_VERSION", "this broker can't delete records; the embedded one forgets by itself"
        )
    agreed = {cut.partition: cut.before for cut in approved.cuts}
    left = _trimmable(app, app.broker.admin().topics(), {tp.topic for tp in agreed}) if agreed else []
    fresh = _planned_trim(app, left)
    trimmed = Trimmed()
    starts = {cut.partition: cut.start for cut in fresh.cuts}
    before = {
        cut.partition: min(cut.before, agreed[cut.partition]) for cut in fresh.cuts if cut.partition in agreed
    }
    errors = app.broker.admin().delete_records(before) if before else {}
    for partition, offset in before.items():
        cut = Cut(partition, starts[partition], offset)
        error = errors.get(partition)
        if error is None:
            trimmed.done.append(cut)
        else:
            trimmed.failed.append((cut, error))
    trimmed.complaint = _note_trim(app, trimmed, reason)
    return trimmed


def _note_trim(app: Deployment, trimmed: Trimmed, reason: str) -> str:
    if not trimmed.done and not trimmed.failed:
        return ""
    target = ", ".join(sorted({cut.partition.topic for cut in trimmed.done}))
    result = f"{len(trimmed.failed)} partitions failed" if trimmed.failed else "ok"
    return audit.record(
        app, audit.Entry("topic trim", target, sum(cut.count for cut in trimmed.done), result, reason)
    )


def _trimmable(app: Deployment, existing: Mapping[str, Topic], wanted: Collection[str]) -> list[Topic]:
    """Everything in which jobs pass by. Compacted topics are tables: nothing in them is ever merely old."""
    return [
        topic
        for name, topic in sorted(existing.items())
        if _role(app, name).kind in ("main", "retry", "delay") and (not wanted or name in wanted)
    ]


def _check_topics(
    app: Deployment, existing: Mapping[str, Topic], found: Sequence[Topic], wanted: Collection[str]
) -> None:
    known = {topic.name for topic in found}
    absent = sorted(set(wanted) - known)
    if not absent:
        return
    name, everything = absent[0], [topic.name for topic in _trimmable(app, existing, ())]
    near = [app.names.main(name)] if app.names.main(name) in everything else get_close_matches(name, everything, n=1)
    if app.names.role(name) and name in existing:
        raise UsageError(f"nothing in {name} is ever merely old: only topics in which jobs pass by are trimmed")
    has = f"there is {', '.join(everything)}" if everything else "there is none; `streamjobs topic apply` makes them"
    raise UsageError(f"no topic {name!r} can be trimmed: " + (f"did you mean {near[0]}?" if near else has))


_Commits = Mapping[TopicPartition, Mapping[str, Commit]]


def _all_commits(
    admin: Admin, topics: Iterable[Topic], desired: Desired
) -> dict[TopicPartition, dict[str, Commit]]:
    names = {topic.name for topic in topics}
    everyone = {*admin.group_names(), *(group for group, name in desired.registrations() if name in names)}
    found: dict[TopicPartition, dict[str, Commit]] = {}
    for group in sorted(everyone) if names else ():
        for partition, commit in admin.committed(group).items():
            if partition.topic in names:
                found.setdefault(partition, {})[group] = commit
    return found


_Old = dict[TopicPartition, tuple[int, int]]
"""Where each partition starts, and where its younger records begin; only those that hold older ones."""


def _old(admin: Admin, topics: Sequence[Topic], horizon: float) -> dict[str, _Old]:
    """By topic."""
    partitions = [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]
    starts = admin.offsets(partitions, "earliest")
    young = admin.offsets(partitions, horizon)
    found: dict[str, _Old] = {topic.name: {} for topic in topics}
    for tp in partitions:
        if starts[tp] < young[tp]:
            found[tp.topic][tp] = starts[tp], young[tp]
    return found


def _objections(
    topic: Topic, registered: Collection[str], old: Iterable[TopicPartition], commits: _Commits
) -> Iterable[Blocked]:
    for partition in old:
        if not registered:
            text = f"no group is registered on {topic.name}, so nobody can say which jobs are finished"
            yield Blocked(topic.name, None, "", text)
            return
        for group in sorted(registered):
            message = _objection(topic, partition, group, commits.get(partition, {}).get(group))
            if message:
                yield Blocked(topic.name, partition.partition, group, message)


def _objection(topic: Topic, partition: TopicPartition, group: str, commit: Commit | None) -> str:
    where = f"{partition.topic}/{partition.partition}"
    if commit is None:
        return f"group {group} is registered on {where} and has no commit there"
    mark = decode(*commit)
    if mark is None:
        return f"the commit of group {group} on {where} does not say which topic it belongs to"
    if mark.topic_id4 != topic.id[:4]:
        return f"the commit of group {group} on {where} belongs to an earlier topic of this name"
    return ""


def _cuts(old: Mapping[TopicPartition, tuple[int, int]], commits: _Commits) -> Iterable[Cut]:
    for partition, (start, young) in old.items():
        _, base = _slowest(commits[partition])
        if base > start:
            yield Cut(partition, start, min(base, young))


def _held_back(old: Mapping[TopicPartition, tuple[int, int]], commits: _Commits) -> Iterable[Blocked]:
    for partition, (_, young) in old.items():
        group, base = _slowest(commits[partition])
        if base < young:
            where = f"{partition.topic}/{partition.partition}"
            text = f"group {group} has not finished offset {base} of {where}, which is older"
            yield Blocked(partition.topic, partition.partition, group, text)


def _slowest(commits: Mapping[str, Commit]) -> tuple[str, int]:
    return min(((group, commit.offset) for group, commit in commits.items()), key=lambda pair: pair[1])


def _role(app: Deployment, topic: str) -> Role:
    return app.names.role(topic) or Role("audit")
