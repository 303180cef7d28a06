"""What waits in the memory of its loop until it is due."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from streamjobs.core.dispatch import Entry


class Sleepers:
    """One owner: the loop's thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: list[tuple[float, int, Entry, Callable[[Any], object]]] = []
        self._number = itertools.count()

    def wake_at(self, at: float, entry: Entry, then: Callable[[Any], object]) -> None:
        """`then(entry)` is called then (epoch seconds), unless its partition has left."""
        heapq.heappush(self._due, (at, next(self._number), entry, then))

    def next_due(self) -> float | None:
        """When the next one is due, epoch seconds."""
        return self._due[0][0] if self._due else None

    def wake(self) -> int:
        """Wakes those that are due; returns how many."""
        if not self._due or self._due[0][0] > self._now():
            return 0
        now, woken = self._now(), 0
        while self._due and self._due[0][0] <= now:
            _, _, entry, then = heapq.heappop(self._due)
            if entry.epoch == entry.home.epoch:
                woken += 1
                then(entry)
        return woken

    def hasten(self, which: Callable[[Entry], bool]) -> None:
        """These are due now."""
        self._due = [(0.0 if which(entry) else at, number, entry, then) for at, number, entry, then in self._due]
        heapq.heapify(self._due)

    def forget_stale(self) -> None:
        """Drops those of partitions that have left."""
        self._due = [due for due in self._due if due[2].epoch == due[2].home.epoch]
        heapq.heapify(self._due)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, _, entry, _ in self._due)
