"""What waits in the memory of a loop or a timer until it is due."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from streamjobs.core.clock import Clock
from streamjobs.core.dispatch import Partition


class Sleeper(Protocol):
    """Something that was read in one epoch of a partition."""

    home: Partition
    epoch: int


S = TypeVar("S", bound=Sleeper)


class SetBack:
    """Notices that the wall's clock was set back: what is waited for by it in memory is then to be computed anew.

    *Bites*: a clock that was an hour ahead is put right. What was to wait for three seconds more waits for an hour and three seconds; in
    a tier it fills up the timer's memory, and all that is behind it waits, too.
    """

    #: Less is no more than two clocks that were read one after the other, or are slewed.
    NOTICED_S = 1.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = clock.now() - clock.monotonic()

    def by(self) -> float:
        """By how many seconds since the last time that it said so; 0.0: it was not, or was set forward, which ends waits sooner."""
        ahead = self._clock.now() - self._clock.monotonic()
        back = self._ahead - ahead
        if 0.0 < back < self.NOTICED_S:
            return 0.0
        self._ahead = ahead
        return max(0.0, back)


class Sleepers(Generic[S]):
    """One owner: the thread of its loop or timer. A clock that is set back makes nothing wait for longer."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._set_back = SetBack(clock)
        self._due: list[tuple[float, int, S, Callable[[Any], object]]] = []
        self._number = itertools.count()

    def wake_at(self, at: float, entry: S, then: Callable[[Any], object]) -> None:
        """`then(entry)` is called then (epoch seconds), unless its partition has left."""
        self._compute_anew()
        heapq.heappush(self._due, (at, next(self._number), entry, then))

    def _compute_anew(self) -> None:
        back_s = self._set_back.by()
        if back_s:
            self._due = [(at - back_s, number, entry, then) for at, number, entry, then in self._due]

    def next_due(self) -> float | None:
        """When the next one is due, epoch seconds."""
        return self._due[0][0] if self._due else None

    def wake(self) -> int:
        """Wakes those that are due; returns how many."""
        if not self._due:
            return 0
        self._compute_anew()
        now, woken = self._now(), 0
        while self._due and self._due[0][0] <= now:
            _, _, entry, then = heapq.heappop(self._due)
            if entry.epoch == entry.home.epoch:
                woken += 1
                then(entry)
        return woken

    def hasten(self, which: Callable[[S], bool]) -> None:
        """These are due now."""
        self._due = [(0.0 if which(entry) else at, number, entry, then) for at, number, entry, then in self._due]
        heapq.heapify(self._due)

    def forget_stale(self) -> None:
        """Drops those of partitions that have left."""
        self._due = [due for due in self._due if due[2].epoch == due[2].home.epoch]
        heapq.heapify(self._due)

    def __iter__(self) -> Iterator[S]:
        return (entry for _, _, entry, _ in self._due)


def earliest(*instants: float | None) -> float | None:
    """The first of them; None says never."""
    return min((at for at in instants if at is not None), default=None)
