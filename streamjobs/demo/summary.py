"""What the demo tells at its end, as data: counts from outside of the layer, times from its lifecycle events.

Published: acknowledged by the broker. Succeeded and retried: by the handlers' ledger. Dead: letters on the tables before the
replay. Wait and run times: of the runs that the events topic tells of; a wait begins when the job could have run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from streamjobs.backlog import Backlog
from streamjobs.core.lag import Sample, Series, series
from streamjobs.demo.judge import UNSEEN, Letter, Verdict
from streamjobs.demo.ledger import Entry
from streamjobs.telemetry.events import KINDS, Event

#: Steps of the charts.
POINTS = 24

Times = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One job type, or (None) the records that belong to none. `wait_s`, `run_s`: p50, p95 and p99 in seconds."""

    job_type: str | None
    published: int
    succeeded: int
    retried: int
    dead: int
    replayed: int
    wait_s: Times
    run_s: Times


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Failed runs, and records that could not be read, by error."""

    error_type: str
    job_type: str | None
    count: int


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue's main and retry topics over time, from broker offsets; `series` has columns of equal length."""

    queue: str
    peak: int
    series: Series


@dataclass(frozen=True, slots=True)
class Summary:
    """`standing`: dead letters that are left. `peak_delayed`: the most that waited in the delay ladder at once."""

    jobs: Sequence[TypeRow]
    errors: Sequence[ErrorRow]
    queues: Sequence[QueueRow]
    peak_delayed: int
    standing: int
    runs_by_process: Mapping[int, int]
    verdict: Verdict
    took_s: float

    def as_data(self) -> dict[str, object]:
        """For JSON."""
        return {
            "jobs": [asdict(row) for row in self.jobs],
            "errors": [asdict(row) for row in self.errors],
            "queues": [{"queue": row.queue, "peak": row.peak, **row.series._asdict()} for row in self.queues],
            "peak_delayed": self.peak_delayed,
            "standing": self.standing,
            "runs_by_process": dict(self.runs_by_process),
            "took_s": round(self.took_s, 1),
            "lost": dict(self.verdict.lost),
            "unexplained": dict(self.verdict.unexplained),
            "verdict": self.verdict.line,
        }


def type_rows(
    published: Mapping[str, str],
    ledger: Sequence[Entry],
    dead: Sequence[Letter],
    replayed: Mapping[str, int],
    events: Iterable[Event],
) -> list[TypeRow]:
    """A row for each job type. `published`: job → its type ("" if it has none); `replayed`: letters put back, by job."""
    names = list(dict.fromkeys(published.values()))
    over = [event for event in events if KINDS[event.kind].ends and event.started_at]
    return [
        TypeRow(
            name or None,
            published=sum(found == name for found in published.values()),
            succeeded=len({entry.job for entry in ledger if entry.what == "ended" and entry.job_type == name}),
            retried=sum(entry.what == "started" and entry.attempt > 1 and entry.job_type == name for entry in ledger),
            dead=sum(letter.job_type == name for letter in dead),
            replayed=sum(count for job, count in replayed.items() if published.get(job) == name),
            wait_s=_times([event.wait_s for event in over if event.job_type == name]),
            run_s=_times([event.duration_s for event in over if event.job_type == name]),
        )
        for name in names
    ]


def runs_by_process(ledger: Iterable[Entry]) -> dict[int, int]:
    """How many runs each worker process started, by pid."""
    return dict(Counter(entry.pid for entry in ledger if entry.what == "started"))


def error_rows(ledger: Iterable[Entry], dead: Iterable[Letter]) -> list[ErrorRow]:
    """The most frequent ones first."""
    failed = Counter((entry.error_type, entry.job_type) for entry in ledger if entry.what == "failed")
    failed.update((letter.error_type, letter.job_type) for letter in dead if letter.reason in UNSEEN)
    return [ErrorRow(error, job_type or None, count) for (error, job_type), count in failed.most_common()]


def queue_rows(looks: Sequence[Backlog], points: int = POINTS) -> list[QueueRow]:
    """How each queue went from the first look to the last."""
    queues = sorted({lag.queue for look in looks for lag in look.queues})
    return [_queue_row(queue, looks, points) for queue in queues]


def _queue_row(queue: str, looks: Sequence[Backlog], points: int) -> QueueRow:
    samples = [sample_of(look, queue) for look in looks]
    return QueueRow(queue, max((sample.pending for sample in samples), default=0), series(samples, points))


def sample_of(look: Backlog, queue: str) -> Sample:
    """One look at a queue, its main and retry topics together."""
    positions = {
        (lag.topic, number): position
        for lag in look.queues
        if lag.queue == queue
        for number, position in lag.positions.items()
    }
    return Sample(look.taken, positions)


def _times(values: list[float]) -> Times:
    return {f"p{share}": percentile(values, share) for share in (50, 95, 99)}


def percentile(values: Sequence[float], share: int) -> float | None:
    """The smallest value that `share` percent do not exceed (nearest rank), to the microsecond; None: there are no values."""
    if not values:
        return None
    return round(sorted(values)[math.ceil(share / 100 * len(values)) - 1], 6)
