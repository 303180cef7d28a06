"""Ended: a list of runs that reached an outcome, column by column: read once, for offsets, events and metrics alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from streamjobs.core.record import Meta


class TypeOfJob(Protocol):
    @property
    def name(self) -> str: ...


class Home(Protocol):
    """The partition that a job was read from."""

    @property
    def topic(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def topic_id(self) -> bytes: ...
    @property
    def retry(self) -> bool: ...


class FinishedJob(Protocol):
    """What telemetry reads of a job. What is read of every job should be a plain attribute; the rest may be
    computed.

    `error_type`, `error_message`, `reason` and `due_again` are read only of jobs that did not succeed.
    """

    @property
    def job_type(self) -> TypeOfJob: ...
    @property
    def home(self) -> Home: ...
    @property
    def offset(self) -> int: ...
    @property
    def run(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def raw_id(self) -> bytes:
        """Its id in UTF-8."""
        ...

    @property
    def meta(self) -> Meta | None:
        """Its headers where they were read in full; None: it has none that say more than type and id."""
        ...

    @property
    def started_at(self) -> float: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def outcome(self) -> str:
        """One of `KINDS`."""
        ...

    @property
    def first_appended_at(self) -> float:
        """When the broker appended the job's first record; read only where `meta` is known."""
        ...

    @property
    def error_type(self) -> str: ...
    @property
    def error_message(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def due_again(self) -> float: ...


class Ended(list[FinishedJob]):
    """The jobs, and of each its offset, its duration and its wait.

    `alike`: neighbours that share partition, type, run, attempt and outcome, as (the first of them, how many): mostly all do.
    `plain`: none has headers that say more than type and id. `lots`: what `alike` is, given where all are plain; then neither need be found
    out.
    """

    __slots__ = ("alike", "durations", "offsets", "plain", "waits")

    def __init__(self, jobs: Sequence[FinishedJob], lots: list[tuple[FinishedJob, int]] | None = None) -> None:
        super().__init__(jobs)
        self.offsets = [job.offset for job in jobs]
        self.durations = [job.duration_s for job in jobs]
        self.waits = [job.wait_s for job in jobs]
        self.plain = lots is not None or [job.meta for job in jobs].count(None) == len(jobs)
        self.alike = list(_alike(jobs)) if lots is None else lots

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
