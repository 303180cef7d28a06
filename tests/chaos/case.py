"""The history in the order in which the checker asks for it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.chaos.history import Committed, Fault, Handling, History, Place, Rule, Stored

#: Broker's instants are whole milliseconds, and a release is as exact as that.
CLOCK_S = 0.005
#: After a fault has ended a process needs so long to notice what it missed (heartbeats, reconnects).
RECOVERY_S = 8.0
#: A member that fell silent is missed after the session timeout; its partitions move then.
SESSION_S = 6.0
#: What has ended is committed within this time while all is well: ticks, the patience with events, the pause for large maps.
COMMIT_S = 4.0

#: Faults with which a worker can't reach its brokers.
AWAY = frozenset({"cut-network", "restart-broker", "kill-broker", "freeze-broker", "lose-broker", "freeze-leader", "move-leaders"})
#: Faults with which a worker is told to stop.
TOLD = frozenset({"term-worker", "remove-worker"})


class Setback(NamedTuple):
    """A commit that takes back what an earlier one said."""

    before: Committed
    after: Committed
    offsets: tuple[int, ...]


class Case:
    """Indexes over one history. Nothing here decides; `checker` does."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.faults = sorted(history.faults, key=lambda fault: fault.began)
        self.rules = history.rules
        self.setbacks: list[Setback] = []
        self._known_spells: dict[int, list[tuple[float, float]]] = {}
        self._index_stored()
        self._index_handlings()
        self.covered = dict(self._coverage())
        self.born = {fault.pids[0]: fault.began for fault in self.faults if fault.name == "join"}
        self.acknowledged = {p.id: p for p in history.publications if p.place is not None}

    def _index_stored(self) -> None:
        self.stored: dict[Place, Stored] = {record.place: record for record in self.history.stored}
        self.records_of: dict[str, list[Stored]] = defaultdict(list)
        for record in sorted(self.history.stored, key=lambda record: record.appended):
            self.records_of[record.id].append(record)

    def _index_handlings(self) -> None:
        self.starts: dict[tuple[Place, int], list[Handling]] = defaultdict(list)
        self.ends: dict[tuple[Place, int], list[Handling]] = defaultdict(list)
        self.handlings_of: dict[str, list[Handling]] = defaultdict(list)
        for line in sorted(self.history.handlings, key=lambda line: line.at):
            side = self.starts if line.what == "start" else self.ends
            side[line.place, line.run].append(line)
            self.handlings_of[line.id].append(line)
        self.handled = {place for place, _ in self.starts}

    # Commits ----------------------------------------------------------------------------------------------------------

    def _coverage(self) -> Iterator[tuple[Place, float]]:
        """When each record was first said to be finished; `setbacks` are collected on the way."""
        by_partition: dict[tuple[str, str, int], list[Committed]] = defaultdict(list)
        for commit in self.history.commits:
            by_partition[commit.group, commit.topic, commit.partition].append(commit)
        offsets: dict[tuple[str, int], list[int]] = defaultdict(list)
        for place in self.stored:
            offsets[place.topic, place.partition].append(place.offset)
        for (_, topic, partition), commits in by_partition.items():
            present = sorted(offsets[topic, partition])
            self._find_setbacks(commits, set(present))
            for offset, at in _first_covered(commits, present):
                yield Place(topic, partition, offset), at

    def _find_setbacks(self, commits: Sequence[Committed], present: set[int]) -> None:
        before: set[int] = set()
        for last, commit in zip([None, *commits], commits):
            now = {offset for start, stop in commit.finished for offset in range(start, stop) if offset in present}
            if last is not None and not commit.cut:
                taken_back = {o for o in before if o >= commit.base} - now
                taken_back |= {o for o in range(commit.base, last.base) if o in present and o not in now}
                if taken_back or commit.base < last.base:
                    self.setbacks.append(Setback(last, commit, tuple(sorted(taken_back))))
            before = now

    def was_set_right(self, setback: Setback) -> bool:
        """Whether a broker was away with the older commit in its hands, and the owner, who can't know, said it anew soon."""
        before, after, _ = setback
        trouble = any(fault.name in AWAY for fault in self.hits(None, after.at - COMMIT_S, after.at))
        told = [c for c in self.history.commits if (c.group, c.topic, c.partition) == (after.group, after.topic, after.partition)]
        return trouble and any(after.at <= c.at <= after.at + COMMIT_S and c.base >= before.base for c in told if c is not after)

    def handed_over(self, before: Handling, ended: float, again: float) -> bool:
        """Whether a run ended after the last commit of an owner that had let go of the partition: it started nothing there since.

        An owner that was told to stop waits longer than any job takes: it has no such excuse.
        """
        where = before.place[:2]
        last = max((c.at for c in self.history.commits if (c.topic, c.partition) == where and c.at <= ended + CLOCK_S), default=0.0)
        told = any(f.name in TOLD for f in self.hits(before.pid, before.at, again))
        return before.at <= last and not told and not self._works_on(before.pid, where, last, again)

    def _works_on(self, pid: int, where: tuple[str, int], since: float, until: float) -> bool:
        mine = (line for line in self.history.handlings if line.pid == pid and line.what == "start" and line.place[:2] == where)
        return any(since < line.at < until for line in mine)

    # Faults -----------------------------------------------------------------------------------------------------------

    def hits(self, pid: int | None, since: float, until: float, *, abrupt: bool = False) -> Iterator[Fault]:
        """Faults that a process (None: any) could feel between two instants, later ones first."""
        for fault in reversed(self.faults):
            touched = pid is None or not fault.pids or pid in fault.pids
            if touched and fault.began <= until and since <= fault.ended + RECOVERY_S and (fault.abrupt or not abrupt):
                yield fault

    def died(self, pid: int, since: float, until: float) -> bool:
        return any(fault.dies and pid in fault.pids and since <= fault.ended + CLOCK_S for fault in self.hits(pid, since, until))

    def asleep(self, pid: int, since: float, until: float) -> bool:
        """Whether a live process was frozen or cut off at `since` and had no time to learn of it until `until`."""
        spells = self._spells(pid)
        return any(began - CLOCK_S <= since and until <= ended + RECOVERY_S for began, ended in spells)

    def _spells(self, pid: int) -> list[tuple[float, float]]:
        """When a process was frozen or cut off; what follows before it could recover is one spell with what was before."""
        if pid not in self._known_spells:
            spells: list[tuple[float, float]] = []
            for fault in self.faults:
                if not fault.abrupt or fault.dies or (fault.pids and pid not in fault.pids):
                    continue
                if spells and fault.began <= spells[-1][1] + RECOVERY_S:
                    spells[-1] = spells[-1][0], max(spells[-1][1], fault.ended)
                else:
                    spells.append((fault.began, fault.ended))
            self._known_spells[pid] = spells
        return self._known_spells[pid]

    def no_broker(self, pid: int, since: float, until: float) -> bool:
        """Whether the brokers were out of a process's reach at any time between two instants."""
        away = (f for f in self.hits(pid, since, until, abrupt=True) if f.name in AWAY)
        return any(f.began <= until and since <= f.ended + RECOVERY_S for f in away)

    def lost_a_process(self, pid: int, since: float, until: float) -> bool:
        """Whether a process of this supervisor was killed between two instants: another one is being started then."""
        own = {kin for f in self.faults if pid in f.pids and f.name not in AWAY for kin in f.pids}
        return any(f.dies and since <= f.began <= until and own & set(f.pids) for f in self.faults)

    def unsettled(self, since: float, until: float) -> bool:
        """Whether partitions may have moved between two instants: any fault, and a session timeout after it."""
        return any(True for _ in self.hits(None, since - SESSION_S, until))

    # Jobs -------------------------------------------------------------------------------------------------------------

    def rule(self, job_type: str) -> Rule:
        return self.rules.get(job_type, Rule(job_type))

    def job_ids(self) -> list[str]:
        """Every job that was acknowledged or is stored, in the order of its first record."""
        return list(dict.fromkeys([*self.acknowledged, *(record.id for record in self.history.stored)]))

    def succeeded(self, job_id: str) -> list[Handling]:
        return [line for line in self.handlings_of[job_id] if line.what == "succeeded"]

    def letters(self, job_id: str) -> list[Stored]:
        return [record for record in self.records_of[job_id] if record.role == "dead"]

    def finished_at(self, record: Stored) -> float | None:
        """When a commit was first allowed to say that this record is finished; None: never."""
        return min(self._finishes(record), default=None)

    def _finishes(self, record: Stored) -> Iterator[float]:
        for (place, _), ends in ((key, self.ends.get(key, ())) for key in self._runs_at(record)):
            yield from (end.at for end in ends if end.what == "succeeded" and place == record.place)
        for other in self.records_of[record.id]:
            if other.place != record.place and _follows(other, record):
                yield other.appended
            elif _is_copy(record, other):
                yield 0.0

    def _runs_at(self, record: Stored) -> Iterable[tuple[Place, int]]:
        """A key_strict job runs again at its place, so runs above the record's own count, too."""
        last = record.run + self.rule(record.type).attempts if self.rule(record.type).order == "key_strict" else record.run
        return [(record.place, run) for run in range(record.run, last + 1)]


def _follows(other: Stored, record: Stored) -> bool:
    """Whether `other` is what became of `record`: its letter, its next run, or the same run moved on."""
    if other.role == "dead":
        return other.run >= record.run
    if other.appended < record.appended:
        return False
    if record.role == "delay":
        return (other.run, other.holds) == (record.run, record.holds)
    return (other.run, other.holds) > (record.run, record.holds)


def _is_copy(record: Stored, other: Stored) -> bool:
    """Whether an earlier record of the same partition is the same run of the same job."""
    same = (other.place.topic, other.place.partition) == (record.place.topic, record.place.partition)
    earlier = same and other.place.offset < record.place.offset
    return earlier and record.role != "delay" and (other.run, other.holds) == (record.run, record.holds)


def _first_covered(commits: Sequence[Committed], present: Sequence[int]) -> Iterator[tuple[int, float]]:
    """For each offset that holds a record: when the first commit said that it is finished."""
    known: set[int] = set()
    at = 0
    for commit in commits:
        while at < len(present) and present[at] < commit.base:
            if present[at] not in known:
                yield present[at], commit.at
            known.discard(present[at])
            at += 1
        for start, stop in commit.finished:
            for offset in range(max(start, commit.base), stop):
                if offset not in known:
                    known.add(offset)
                    yield offset, commit.at
