"""Which job may run next: lanes, fairness between keys, credit (DESIGN.md §4).

A lane is a linked list: `Partition.lanes` maps a lane's key to its *last* entry, and `Entry.next` leads from each to the one
behind it. Only the loop writes `next`; the thread that runs a lane follows it without a lock and reports where it stopped:

    loop:    last.next = entry              thread:  runs `last`, reads last.next → None, reports "stopped at last"
    loop:    stopped(last): last.next is set → `entry` is ready; else the lane is dropped

Whichever comes first, exactly one of the two runs `entry`: the thread if it saw `next` in time, else the loop, which handles the
report after it wrote `next`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

#: The executor in which suspects run, one by one; what waits for it costs no credit.
QUARANTINE = "quarantine"

#: The kind of entries that can't be read yet: no executor runs them. They take their places in their lanes, and cost no credit.
UNREAD = "unread"


class Partition:
    """An assigned partition, as its loop sees it. One owner: the loop's thread; other threads only read `serving`.

    `epoch` is -1 once the partition is gone: no entry received before may write anything from then on. `serving` is the epoch
    whose entries may start: it ends before `epoch` does, while a revoked partition's running jobs are waited for.
    """

    __slots__ = (
        "barred",
        "beginning",
        "committed_at",
        "committed_version",
        "copies",
        "crowd",
        "epoch",
        "fetching",
        "full",
        "lanes",
        "number",
        "open",
        "parked",
        "place",
        "queue",
        "retry",
        "running",
        "serving",
        "size",
        "sought_told",
        "started",
        "topic",
        "topic_id",
        "tracker",
        "waiting",
    )  # fmt: skip

    def __init__(self, topic: str, number: int, queue: str, *, retry: bool, topic_id: bytes, epoch: int, tracker: Any) -> None:
        self.topic = topic
        self.number = number
        self.queue = queue
        self.retry = retry
        self.topic_id = topic_id
        self.epoch = epoch
        self.serving = epoch
        self.tracker = tracker
        self.lanes: dict[bytes, Entry] = {}
        self.running = 0  # handed to an executor, not yet back
        self.open = 0  # settlements not yet acknowledged
        self.size = 0.0  # bytes of an unfinished job's value, on average
        self.waiting = 0  # in memory until they are due
        self.full = False  # admission stopped
        self.barred = False  # nothing of its queue may run now, so nothing is fetched
        self.fetching = True  # False: nothing is read or committed, for a reason such as a lost commit
        self.committed_version = -1
        self.committed_at = 0.0
        self.started = False  # the `started` mark is written
        self.copies: dict[tuple[str, int, int], int] = {}
        self.parked: dict[int, Any] = {}
        self.beginning: Any = None  # how this epoch began
        self.place = 0  # its number in the table of what runs
        self.crowd = 0  # jobs that are suspects only because owners died here again and again
        self.sought_told = False  # the seek order that it began with is taken away

    def __repr__(self) -> str:
        return f"Partition({self.topic}/{self.number}, epoch {self.epoch})"


class Entry:
    """What a dispatcher moves: one record of one epoch of a partition, in its lane (None: none)."""

    __slots__ = ("epoch", "home", "kind", "lane", "next", "offset")

    home: Partition
    epoch: int
    offset: int
    lane: bytes | None
    next: Entry | None
    kind: str
    """The executor that runs it: `threads`, `aio`, `processes`, or `quarantine`; `unread`: none can yet."""


E = TypeVar("E", bound=Entry)


class Dispatcher(Generic[E]):
    """The jobs of one loop that could run now, fair between keys: first ready, first out; a lane shows only its head."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.ready: dict[str, deque[E]] = {kind: deque() for kind in (*kinds, UNREAD)}
        self._counted = [ready for kind, ready in self.ready.items() if kind not in (QUARANTINE, UNREAD)]
        self._laned: set[Partition] = set()  # have lanes, or had
        self.held: dict[str, deque[E]] = {}
        """Entries that may not run now, by reason; each is still the head of its lane."""

    def add(self, entry: E) -> None:
        """Takes an entry that is due: it is ready, or waits behind its key."""
        self.add_all((entry,))

    def add_all(self, entries: Sequence[E]) -> None:
        """As `add`, of each; all are of one partition."""
        home, kind = entries[0].home, entries[0].kind
        append, lanes = self.ready[kind].append, home.lanes
        lane_of = lanes.setdefault
        for entry in entries:
            lane = entry.lane
            if lane is not None:
                last = lane_of(lane, entry)  # mostly the lane is empty: then one look at it is all
                if last is not entry:
                    lanes[lane] = last.next = entry
                    continue
            if entry.kind is not kind:
                kind = entry.kind
                append = self.ready[kind].append
            append(entry)
        if lanes:
            self._laned.add(home)

    def take(self, kind: str, limit: int, why_held: Callable[[E], str | None] | None = None) -> list[E]:
        """Up to `limit` ready entries of an executor; those of partitions that have left or are leaving are dropped.

        `why_held`: given while anything may not run now; an entry for which it has a reason is set aside.
        """
        ready = self.ready[kind]
        taken: list[E] = []
        while ready and len(taken) < limit:
            first = _served(self._first(ready, limit - len(taken)))
            taken += first if why_held is None else self._set_aside(first, why_held)
        return taken

    @staticmethod
    def _first(ready: deque[E], count: int) -> list[E]:
        """Takes so many from the front: all at once where that is all there is."""
        if len(ready) > count:
            return [ready.popleft() for _ in range(count)]
        first = list(ready)
        ready.clear()
        return first

    def _set_aside(self, entries: Iterable[E], why_held: Callable[[E], str | None]) -> list[E]:
        """Those that may run now."""
        free = []
        for entry in entries:
            reason = why_held(entry)
            if reason is None:
                free.append(entry)
            else:
                self.held.setdefault(reason, deque()).append(entry)
        return free

    def release(self, reason: str, limit: int | None = None) -> list[E]:
        """Entries that are no longer held for this reason (the first `limit`) are ready, and first in turn."""
        held = self.held.get(reason, deque())
        free = [held.popleft() for _ in range(len(held) if limit is None else min(limit, len(held)))]
        if not held:
            self.held.pop(reason, None)
        self.give_back(free)
        return free

    def stopped(self, entry: E) -> None:
        """A lane was run up to and with this entry: what is behind it is ready now, or the lane is empty and dropped."""
        self.stopped_all((entry,))

    def stopped_all(self, entries: Iterable[E]) -> None:
        """As `stopped`, of each."""
        for entry in entries:
            home, lane, behind = entry.home, entry.lane, entry.next
            if lane is None or entry.epoch != home.epoch:
                continue
            if behind is not None:
                self.ready[behind.kind].append(behind)  # type: ignore[arg-type]
            else:
                last = home.lanes.pop(lane, None)  # another one, if this entry never was in its lane
                if last is not None and last is not entry:
                    home.lanes[lane] = last

    def all_stopped(self) -> bool:
        """Every lane that was run has stopped, for nothing is out. So where nothing is unfinished, lanes are empty, and dropped together. True:
        that was everywhere, and nobody need be told which ones stopped."""
        for home in list(self._laned):
            if home.epoch < 0 or not home.tracker.unfinished:  # of what has left, all is the next owner's
                home.lanes.clear()
                self._laned.discard(home)
        return not self._laned

    def again(self, entry: E) -> None:
        """A head that kept its place is ready again."""
        self.ready[entry.kind].append(entry)

    def replace(self, head: Entry, by: E) -> None:
        """Another entry takes the place of a lane's head that is neither ready nor out."""
        by.lane, by.next = head.lane, head.next
        if head.lane is not None and by.home.lanes.get(head.lane) is head:
            by.home.lanes[head.lane] = by

    def give_back(self, entries: Iterable[E]) -> None:
        """Entries that were handed out and not started: first in turn again, in their order."""
        for entry in reversed(list(entries)):
            if entry.epoch == entry.home.serving:
                self.ready[entry.kind].appendleft(entry)

    def withdraw(self, which: Callable[[E], bool]) -> list[E]:
        """Takes these away from what is ready or held; each is still the head of its lane."""
        found = [entry for entry in self.heads() if which(entry)]
        self.let_go(found)
        for ready in self.ready.values() if found else ():
            kept = [entry for entry in ready if not which(entry)]
            ready.clear()
            ready.extend(kept)
        return found

    def heads(self) -> list[E]:
        """All that is ready or held."""
        return [entry for waiting in (*self.ready.values(), *self.held.values()) for entry in waiting]

    def let_go(self, entries: Iterable[E]) -> None:
        """Entries that are held no longer, and are not ready either."""
        going = set(entries)
        for reason in list(self.held):
            kept = deque(entry for entry in self.held[reason] if entry not in going)
            if kept:
                self.held[reason] = kept
            else:
                del self.held[reason]

    def drop(self, partition: Partition) -> None:
        """Forgets all that waits of a partition that is gone."""
        partition.lanes = {}
        for ready in (*self.ready.values(), *self.held.values()):
            if any(entry.home is partition for entry in ready):
                kept = [entry for entry in ready if entry.home is not partition]
                ready.clear()
                ready.extend(kept)

    def count(self, kind: str | None = None) -> int:
        """Ready entries: what counts against the loop's credit."""
        if kind is not None:
            return len(self.ready[kind])
        return sum(map(len, self._counted))


def _served(entries: list[E]) -> list[E]:
    """Those whose partition has not left; mostly all are of one."""
    homes = [entry.home for entry in entries]
    if homes.count(homes[0]) == len(homes):
        return entries if homes[0].serving == entries[0].epoch else []
    return [entry for entry in entries if entry.epoch == entry.home.serving]


class Parallelism:
    """How many chunks to have out, found by trying.

    Loop and threads that all want the interpreter fight for it: no-op jobs run fastest one chunk at a time, 20 ms waits with every
    slot filled. So it starts at 1. It doubles when a wait for results missed with work waiting, or when the process burned less
    than half a core in 50 ms although work waits (results that trickle in every millisecond make no wait miss). It halves when
    it burned more than 85 %, or when nothing is out but jobs that wait for nothing: then more only stand in each other's way.

    The whole process counts, not the threads alone. *Bites*: one write of a no-op handler takes 30 ms, so more chunks go out; now
    threads and loop fight, each job seems to take a millisecond, every wait misses, and the threads, who get a third of the core,
    look idle: 50,000 jobs a second instead of 190,000, for as long as there is work *(measured)*.
    """

    BUSY, IDLE = 0.85, 0.5
    LOOK_S = 0.05

    def __init__(self, slots: int) -> None:
        self.limit = max(1, slots + slots // 2)
        self.value = 1
        self._since = 0.0
        self._burned_s = 0.0
        self._calm = True
        self._busy = False

    def missed(self) -> None:
        """Waited 2 ms for a result in vain, with work waiting."""
        if not self._busy:
            self.value = min(self.limit, self.value * 2)

    def returned(self, burned_s: float, now: float, *, calm: bool = False, waiting: bool = False) -> None:
        """A chunk came back. `burned_s`: the process's processor time since its start; `now`: monotonic seconds.

        `calm`: it was one of jobs that wait for nothing, and so is all that is out. `waiting`: more could run.
        """
        self._calm = self._calm and calm
        passed = now - self._since
        if passed < self.LOOK_S:
            return
        used = burned_s - self._burned_s
        self._busy = used > self.BUSY * passed
        if self._calm or self._busy:
            self.value = max(1, self.value // 2)
        elif waiting and used < self.IDLE * passed:
            self.missed()
        self._since, self._burned_s, self._calm = now, burned_s, True


class Inline:
    """Whether brief jobs may run in their loop's own thread: as long as they don't wait there.

    *Bites*: one job in 500 of a type that takes 2 µs waits 10 ms for a lock, so the type still passes for brief; the loop, and all
    other jobs, wait with it each time, where a thread more would have gone on with them.
    """

    LOOK_S, WAITED = 0.05, 0.25
    LONG_S = 0.01
    WAITS = 3
    DOUBT_S, MAX_DOUBT_S = 1.0, 30.0

    def __init__(self) -> None:
        self._begin()
        self._doubt_s = self.DOUBT_S
        self._until = -math.inf

    def _begin(self) -> None:
        self._ran_s = self._waited_s = 0.0
        self._waits = 0

    def allowed(self, now: float) -> bool:
        return now >= self._until

    def ran(self, took_s: float, waited_s: float, now: float) -> None:
        """A chunk ran there for `took_s`, and waited for `waited_s` of it. After 50 ms of such it is decided anew: if a quarter
        was waiting, in three chunks or more, none runs there for a second; for twice as long, up to 30 s, if it is found so again at once.

        A chunk is 2 ms of work. What it takes beyond 10 ms counts as waiting, whatever it did: everybody else waited for it.

        *Bites*, with one chunk: on a busy machine another thread loses its processor while it has the interpreter, a chunk waits for it
        for 13 ms, and for seconds each batch is handed to a thread, a third slower.
        """
        lost_s = max(waited_s, took_s - self.LONG_S)
        self._ran_s += took_s
        self._waited_s += lost_s
        self._waits += lost_s >= self.WAITED * took_s
        if self._ran_s < self.LOOK_S:
            return
        if self._waited_s < self.WAITED * self._ran_s:
            self._doubt_s = self.DOUBT_S
            self._begin()
        elif self._waits >= self.WAITS:
            self._until = now + self._doubt_s
            self._doubt_s = min(self.MAX_DOUBT_S, 2 * self._doubt_s)
            self._begin()


CHUNK_S = 0.002
CHUNK_MAX = 250


def chunk_size(mean_s: float | None) -> int:
    """Jobs in a chunk: 2 ms of work by the mean duration so far, 1 … 250; one by one while nothing is known."""
    if mean_s is None:
        return 1
    return max(1, min(CHUNK_MAX, int(CHUNK_S / max(mean_s, 1e-7))))
