"""Jobs that wait in the memory of their loop until they are due."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from streamjobs.job import Job


class Sleepers:
    """One owner: the loop's thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._due: list[tuple[float, int, Job]] = []
        self._number = itertools.count()

    def wake_at(self, at: float, job: Job) -> None:
        """The job is due then (epoch seconds), unless its partition has left."""
        heapq.heappush(self._due, (at, next(self._number), job))

    def next_due(self) -> float | None:
        """When the next one is due, epoch seconds."""
        return self._due[0][0] if self._due else None

    def wake(self) -> list[Job]:
        """Those that are due now."""
        now, woken = self._now(), []
        while self._due and self._due[0][0] <= now:
            job = heapq.heappop(self._due)[2]
            if job.epoch == job.home.epoch:
                woken.append(job)
        return woken

    def forget_stale(self) -> None:
        """Drops those of partitions that have left."""
        self._due = [entry for entry in self._due if entry[2].epoch == entry[2].home.epoch]
        heapq.heapify(self._due)
