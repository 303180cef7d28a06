"""Ended: a list of runs that reached an outcome, column by column: read once, for offsets, events and metrics alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamjobs.telemetry.events import FinishedJob


class Ended(list["FinishedJob"]):
    """The jobs, and of each its offset, its duration and its wait.

    `alike`: neighbours that share partition, type, run, attempt and outcome, as (the first of them, how many): mostly all do.
    `plain`: none has headers that say more than type and id.
    """

    __slots__ = ("alike", "durations", "offsets", "plain", "waits")

    def __init__(self, jobs: Sequence[FinishedJob]) -> None:
        super().__init__(jobs)
        self.offsets = [job.offset for job in jobs]
        self.durations = [job.duration_s for job in jobs]
        self.waits = [job.wait_s for job in jobs]
        self.plain = [job.meta for job in jobs].count(None) == len(jobs)
        self.alike = list(_alike(jobs))

    @classmethod
    def of(cls, jobs: Sequence[FinishedJob]) -> Ended:
        """As they are, if their columns were read before."""
        return jobs if isinstance(jobs, cls) else cls(jobs)

    def runs(self) -> Iterator[tuple[FinishedJob, slice]]:
        """Of each of `alike` the first, and where they are."""
        start = 0
        for first, count in self.alike:
            yield first, slice(start, start + count)
            start += count


def _alike(jobs: Sequence[FinishedJob]) -> Iterator[tuple[FinishedJob, int]]:
    if not jobs:
        return
    first, began = jobs[0], 0
    home, job_type, run, attempt, outcome = first.home, first.job_type, first.run, first.attempt, first.outcome
    for place, job in enumerate(jobs):
        if (
            job.home is not home
            or job.run != run
            or job.attempt != attempt
            or job.job_type is not job_type
            or job.outcome != outcome
        ):  # fmt: skip
            yield first, place - began
            first, began = job, place
            home, job_type, run, attempt, outcome = job.home, job.job_type, job.run, job.attempt, job.outcome
    yield first, len(jobs) - began
