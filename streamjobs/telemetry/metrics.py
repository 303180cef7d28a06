"""Metrics of one process: gathered from lists of jobs, added up over loops and processes, exposed to
Prometheus.

Every loop has a `Metrics` of its own. `merge` adds up the snapshots of loops, `Totals` those of processes; a
scrape reads a snapshot and never asks a broker. Nothing is global: families are made fresh at each scrape, so
that what vanished is not exposed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from operator import add
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streamjobs.core.record import is_utf8
from streamjobs.telemetry.catalogue import METRICS, OTHER, REASONS, UNKNOWN_TYPE, Metric
from streamjobs.telemetry.ended import Ended, FinishedJob

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

Series = tuple[str, tuple[str, ...]]
"""A metric's name, and the values of its labels in the order of the catalogue."""

#: Outcomes after which a job is over; after the others it runs again.
COMPLETED = frozenset(("succeeded", "rejected", "dead", "cancelled", "expired"))
#: Outcomes that are failures, and what follows.
_ACTIONS = {"retried": "retry", "rejected": "dead_letter", "dead": "dead_letter"}
#: What names a failure without an exception.
_SIGNALS = {"retried": "RetryAfter", "rejected": "Reject"}
_ERROR_TYPES, _LABEL = 50, 200


class Snapshot(NamedTuple):
    """What a process has counted, as plain data that can be pickled. Histograms: counts by bucket (the last:
    beyond), sum."""

    counters: dict[Series, float]
    histograms: dict[Series, tuple[tuple[int, ...], float]]
    gauges: dict[Series, float]


EMPTY = Snapshot({}, {}, {})


class Range(NamedTuple):
    """What is known of many values without looking at each again."""

    lowest: float
    highest: float
    total: float
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        ordered = sorted(values)  # takes half as long as `min` and `max`
        return cls(ordered[0], ordered[-1], sum(values), len(values))

    def plus(self, other: Range) -> Range:
        """Of the sums of as many pairs; their range may be narrower."""
        return Range(self.lowest + other.lowest, self.highest + other.highest, self.total + other.total, self.number)


class Histogram:
    """Counts by bucket; takes many values at once."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, values: list[float], known: Range | None = None) -> None:
        """Values of one list mostly share a bucket: then two comparisons a value are all there is; with their `known` range, none."""
        if values and not self.within(known or Range.of(values)):
            self._spread(values)

    def within(self, values: Range) -> bool:
        """As `observe`, of values of which no more is known than their range; False (and no effect): they may be of several buckets."""
        bucket = bisect_left(self.bounds, values.lowest)
        if bisect_left(self.bounds, values.highest) != bucket:
            return False
        self.counts[bucket] += values.number
        self.total += values.total
        return True

    def add(self, value: float, count: int) -> None:
        """As `observe`, of one value so many times."""
        self.total += value * count
        self.counts[bisect_left(self.bounds, value)] += count

    def _spread(self, values: list[float]) -> None:
        self.total += sum(values)
        values = sorted(values)
        start = 0
        for bucket in range(bisect_left(self.bounds, values[0]), bisect_left(self.bounds, values[-1])):
            end = bisect_right(values, self.bounds[bucket], start)
            self.counts[bucket] += end - start
            start = end
        self.counts[bisect_left(self.bounds, values[-1])] += len(values) - start


class PublishedType(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def queue(self) -> str: ...


_Key = tuple[str, str, str]  # queue, job type, outcome


class _Group(NamedTuple):
    """The series of jobs of one queue, type and outcome."""

    attempts: Series
    completed: Series | None
    runs: Histogram
    waits: Histogram
    end_to_end: Histogram | None
    attempts_per_job: Histogram | None


class Metrics:
    """What one loop, or one publisher, counts. Any thread may call it: there is a lock a call, and a call
    takes a list.

    `tier`: main or retry. `job_types`: the registry; other types share one label.
    """

    def __init__(self, group: str = "", tier: str = "main", job_types: Collection[str] = ()) -> None:
        self.group = group
        self.tier = tier
        self._job_types = job_types
        self._lock = threading.Lock()
        self._counters: defaultdict[Series, float] = defaultdict(float)
        self._histograms: dict[Series, Histogram] = {}
        self._gauges: dict[Series, float] = {}
        self._groups: dict[_Key, _Group] = {}
        self._error_types = _ErrorTypes()

    # Jobs ---------------------------------------------------------------------------------------------------

    def observe(self, jobs: Sequence[FinishedJob]) -> None:
        """Runs that reached an outcome: one call for each list of results."""
        if not jobs:
            return
        with self._lock:
            for key, ended in _grouped(Ended.of(jobs)):
                self._observe(key, ended)

    def _observe(self, key: _Key, ended: Ended) -> None:
        group = self._groups.get(key) or self._new_group(key)
        self._counters[group.attempts] += len(ended)
        if group.completed is not None:
            self._counters[group.completed] += len(ended)
        outcome = key[2]
        if outcome != "succeeded":
            self._observe_failures(group.attempts[1], ended)
            # Cancelled, expired, unreadable: it may never have run.
            ended = Ended([job for job in ended if job.started_at])
        if ended:
            _observe_times(group, ended)
        if group.attempts_per_job is not None:
            for job, count in ended.alike:
                group.attempts_per_job.add(job.attempt, count)

    def _new_group(self, key: _Key) -> _Group:
        queue, given_type, outcome = key
        job_type = given_type if given_type in self._job_types else UNKNOWN_TYPE
        over = outcome in COMPLETED
        group = self._groups[key] = _Group(
            attempts=_series("attempts_total", queue, job_type, outcome),
            completed=_series("jobs_completed_total", queue, job_type, outcome) if over else None,
            runs=self._histogram(
                "execution_duration_seconds", queue, job_type, "error" if outcome in _ACTIONS else "ok"
            ),
            waits=self._histogram("queue_wait_seconds", queue, self.group, job_type, self.tier),
            end_to_end=self._histogram("end_to_end_seconds", queue, job_type) if over else None,
            attempts_per_job=self._histogram("attempts_per_job", queue) if over else None,
        )
        return group

    def _observe_failures(self, labels: tuple[str, ...], jobs: Sequence[FinishedJob]) -> None:
        queue, job_type, outcome = labels
        action = _ACTIONS.get(outcome)
        if action is None:
            return
        for job in jobs:
            error_type = self._error_types.label(queue, job.error_type or _SIGNALS.get(outcome, OTHER))
            self._counters["failures_total", (queue, job_type, error_type, action)] += 1
            if action == "dead_letter":
                reason = job.reason if job.reason in REASONS else OTHER
                self._counters["dead_letters_total", (queue, job_type, reason)] += 1

    def published(self, job_type: PublishedType, count: int, failed: int, took_s: float | None) -> None:
        """Jobs handed to the broker in one go, how many of them it refused, and how long that took (None: nobody waited for it)."""
        name = job_type.name if job_type.name in self._job_types else UNKNOWN_TYPE
        with self._lock:
            self._counters[_series("jobs_published_total", job_type.queue, name, "ok")] += count - failed
            if failed:
                self._counters[_series("jobs_published_total", job_type.queue, name, "error")] += failed
            if took_s is not None:
                self._histogram("publish_duration_seconds", job_type.queue).observe([took_s])

    # Everything else ----------------------------------------------------------------------------------------

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Adds to a counter of the catalogue (name without prefix). Raises ValueError for what the catalogue
        does not have."""
        with self._lock:
            self._counters[_series(name, *labels)] += by

    def time(self, name: str, seconds: float, *labels: str) -> None:
        """Adds one value to a histogram. Raises ValueError as `count` does."""
        with self._lock:
            self._histogram(name, *labels).observe([seconds])

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge. Raises ValueError as `count` does."""
        with self._lock:
            self._gauges[_series(name, *labels)] = value

    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None:
        """Sets all series of a gauge at once: those that are not named are gone. Raises ValueError as `count`
        does."""
        fresh = {_series(name, *labels): value for labels, value in values.items()}
        with self._lock:
            for series in [series for series in self._gauges if series[0] == name]:
                del self._gauges[series]
            self._gauges.update(fresh)

    def prepare(self, queue: str, job_types: Collection[str]) -> None:
        """Exposes the counters of a queue's jobs and letters as 0 before the first: `rate()` does not see a
        series begin at 1."""
        with self._lock:
            for job_type, outcome in product(job_types, COMPLETED):
                self._counters[_series("jobs_completed_total", queue, job_type, outcome)] += 0
            for job_type, reason in product((*job_types, UNKNOWN_TYPE), REASONS):
                self._counters[_series("dead_letters_total", queue, job_type, reason)] += 0

    def snapshot(self) -> Snapshot:
        """A copy, for any thread and any process."""
        with self._lock:
            histograms = {series: (tuple(h.counts), h.total) for series, h in self._histograms.items()}
            return Snapshot(dict(self._counters), histograms, dict(self._gauges))

    def _histogram(self, name: str, *labels: str) -> Histogram:
        series = _series(name, *labels)
        found = self._histograms.get(series)
        if found is None:
            found = self._histograms[series] = Histogram(METRICS[name].buckets)
        return found


class _ErrorTypes:
    """The first error types of each queue, which have a label of their own for good.

    *Bites*: the one seen longest ago makes room, and what it counted moves to `_OTHER`: what `rate()` has seen of it, it sees there once
    more. And were it to come back, `_OTHER` would fall, which Prometheus takes for a restart, and counts all of it again.
    """

    def __init__(self) -> None:
        self._named: defaultdict[str, set[str]] = defaultdict(set)

    def label(self, queue: str, error_type: str) -> str:
        """Also `_OTHER`: a name that no scrape could carry, for then it would carry nothing at all."""
        named = self._named[queue]
        if error_type not in named and error_type != OTHER:
            if len(named) >= _ERROR_TYPES or len(error_type) > _LABEL or not is_utf8(error_type):
                return OTHER
            named.add(error_type)
        return error_type


def _series(name: str, *labels: str) -> Series:
    metric = METRICS.get(name)
    if metric is None or len(metric.labels) != len(labels):
        wanted = (
            "it is not in the catalogue"
            if metric is None
            else f"its labels are {', '.join(metric.labels) or 'none'}"
        )
        raise ValueError(f"metric {name} with labels {labels}: {wanted}")
    return name, labels


def _grouped(ended: Ended) -> Iterable[tuple[_Key, Ended]]:
    """By queue, type and outcome: mostly all share them."""
    groups: defaultdict[_Key, list[FinishedJob]] = defaultdict(list)
    for job, place in ended.runs():
        groups[job.home.queue, job.job_type.name, job.outcome] += ended[place]
    return [(key, ended if len(groups) == 1 else Ended(jobs)) for key, jobs in groups.items()]


def _observe_times(group: _Group, ended: Ended) -> None:
    """A job without headers of ours was neither delayed nor run before: from end to end it waited and ran, nothing else."""
    waits, durations = Range.of(ended.waits), Range.of(ended.durations)
    group.waits.observe(ended.waits, waits)
    group.runs.observe(ended.durations, durations)
    if group.end_to_end is not None and not (ended.plain and group.end_to_end.within(waits.plus(durations))):
        group.end_to_end.observe(_end_to_end(ended))


def _end_to_end(ended: Ended) -> list[float]:
    if ended.plain:
        return list(map(add, ended.waits, ended.durations))
    return [max(0.0, job.started_at + job.duration_s - job.first_appended_at) for job in ended]


# Adding up --------------------------------------------------------------------------------------------------


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of several loops or processes: counters and histograms added up, gauges joined as the
    catalogue says."""
    merged = Snapshot({}, {}, {})
    for snapshot in snapshots:
        for series, value in snapshot.counters.items():
            merged.counters[series] = merged.counters.get(series, 0) + value
        for series, (counts, total) in snapshot.histograms.items():
            known, sum_known = merged.histograms.get(series, ((0,) * len(counts), 0.0))
            merged.histograms[series] = tuple(map(add, known, counts)), sum_known + total
        for series, value in snapshot.gauges.items():
            known_value = merged.gauges.get(series)
            merged.gauges[series] = (
                value if known_value is None else _joined(METRICS[series[0]], known_value, value)
            )
    return merged


def _joined(metric: Metric, one: float, other: float) -> float:
    if metric.joined == "sum":
        return one + other
    return max(one, other) if metric.joined == "max" else min(one, other)


class Totals:
    """What all processes of a worker have counted, the ended ones included: a counter must not fall when a
    process ends.

    Any thread may call it. A process is named by whatever tells its lives apart (slot and pid).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = EMPTY
        self._error_types = _ErrorTypes()
        self._living: dict[Hashable, Snapshot] = {}

    def report(self, process: Hashable, snapshot: Snapshot) -> None:
        """The latest from a living process."""
        with self._lock:
            self._living[process] = self._bounded(snapshot)

    def ended(self, process: Hashable) -> None:
        """Its gauges go with it, what it counted stays."""
        with self._lock:
            last = self._living.pop(process, EMPTY)
            self._ended = merge([self._ended, last._replace(gauges={})])

    def snapshot(self) -> Snapshot:
        with self._lock:
            return merge([self._ended, *self._living.values()])

    def _bounded(self, snapshot: Snapshot) -> Snapshot:
        """Each loop and process names its own error types: together they keep to the bound again."""
        counters: dict[Series, float] = {}
        for (name, labels), value in snapshot.counters.items():
            series = name, labels
            if name == "failures_total":
                queue, job_type, error_type, action = labels
                series = name, (queue, job_type, self._error_types.label(queue, error_type), action)
            counters[series] = counters.get(series, 0) + value
        return snapshot._replace(counters=counters)


# Prometheus -------------------------------------------------------------------------------------------------


class Collector:
    """A snapshot as Prometheus families; registered where a user has a registry, or used by `exposition`."""

    def __init__(self, source: Callable[[], Snapshot]) -> None:
        self._source = source

    def collect(self) -> Iterator[Family]:
        snapshot = self._source()
        by_name: defaultdict[str, list[Series]] = defaultdict(list)
        for series in sorted((*snapshot.counters, *snapshot.histograms, *snapshot.gauges)):
            by_name[series[0]].append(series)
        for name, series_of_metric in by_name.items():
            yield _family(METRICS[name], series_of_metric, snapshot)


def _family(metric: Metric, series_of_metric: list[Series], snapshot: Snapshot) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.type == "histogram":
        histogram = HistogramMetricFamily(metric.full_name, metric.meaning, labels=metric.labels)
        for series in series_of_metric:
            counts, total = snapshot.histograms[series]
            histogram.add_metric(series[1], _cumulative(metric.buckets, counts), total)
        return histogram
    make = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    values = snapshot.counters if metric.type == "counter" else snapshot.gauges
    family = make(metric.full_name, metric.meaning, labels=metric.labels)
    for series in series_of_metric:
        family.add_metric(series[1], values[series])
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    return list(zip([*map(str, bounds), "+Inf"], accumulate(counts)))


def exposition(source: Callable[[], Snapshot], accept: str = "") -> tuple[bytes, str]:
    """A scrape's body and content type: OpenMetrics if the `Accept` header asks for it, else Prometheus' text
    format."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(source))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
