"""Every metric there is: name, type, labels, meaning. The docs' table is made from it, and tests hold alerts
and dashboards to it.

Conventions: prefix `streamjobs_`, base units, `_total` for counters. No label may grow without bound: never a
job id, key, offset, host, member, error message or trace id; a job type only from the registry, an error type
only the first fifty of a queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]
Joined = Literal["sum", "max", "min"]

PREFIX = "streamjobs_"

#: What stands in a label for a job type that no code declares, and for an error type beyond the bound.
UNKNOWN_TYPE = "_unknown"
OTHER = "_OTHER"

#: Why a job is a dead letter: the labels of `dead_letters_total`.
REASONS = frozenset(
    (
        "rejected",
        "exhausted",
        "discarded",
        "undecodable",
        "schema_unknown",
        "type_unknown",
        "poison",
        "too_large",
    )
)

# Upper bounds in seconds. A: calls to the broker. B: runs; jobs last longer than requests. C: waits; a wait
# is not distributed like a run, and everything beyond the last bound would be one number. D: from publish to
# the end.
CALL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
RUN = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
)
WAIT = (
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
    14400.0,
    86400.0,
)
END_TO_END = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
ATTEMPTS = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is without the prefix, as the code says it.

    `joined`: how a gauge's values of several loops or processes become one. `buckets`: a histogram's upper
    bounds.
    """

    name: str
    type: Type
    labels: tuple[str, ...]
    meaning: str
    process: Literal["worker", "monitor"]
    joined: Joined = "sum"
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus has it."""
        return PREFIX + self.name


def _counter(
    name: str, labels: str, meaning: str, process: Literal["worker", "monitor"] = "worker"
) -> Metric:
    return Metric(name, "counter", tuple(labels.split()), meaning, process)


def _histogram(
    name: str,
    labels: str,
    buckets: tuple[float, ...],
    meaning: str,
    process: Literal["worker", "monitor"] = "worker",
) -> Metric:
    return Metric(name, "histogram", tuple(labels.split()), meaning, process, buckets=buckets)


def _gauge(name: str, labels: str, meaning: str, joined: Joined = "sum") -> Metric:
    return Metric(name, "gauge", tuple(labels.split()), meaning, "worker", joined)


def _watched(name: str, labels: str, meaning: str) -> Metric:
    return Metric(name, "gauge", tuple(labels.split()), meaning, "monitor", "max")


_WORKER = (
    _counter(
        "jobs_published_total",
        "queue job_type outcome",
        "Jobs handed to the broker, or to the transaction of the run that publishes them, but for what handlers in child processes publish; "
        "outcome ok or error.",
    ),
    _histogram(
        "publish_duration_seconds",
        "queue",
        CALL,
        "From publish to the broker's acknowledgement; none in a transaction, nor in child processes.",
    ),
    _counter("jobs_received_total", "queue tier", "Records received; tier main or retry."),
    _counter(
        "attempts_total",
        "queue job_type outcome",
        "Runs that ended, by outcome; a retried job counts each time.",
    ),
    _counter(
        "jobs_completed_total",
        "queue job_type outcome",
        "Jobs that are over: succeeded, rejected, dead, cancelled or expired; each once.",
    ),
    _counter(
        "failures_total",
        "queue job_type error_type action",
        "Runs that failed, by class of error; action retry or dead_letter.",
    ),
    _counter("dead_letters_total", "queue job_type reason", "Dead letters written, by reason."),
    _histogram(
        "execution_duration_seconds", "queue job_type result", RUN, "How long runs took; result ok or error."
    ),
    _histogram(
        "queue_wait_seconds",
        "queue group job_type tier",
        WAIT,
        "From when a job could have run to its start; asked-for delay and backoff are no wait.",
    ),
    _histogram(
        "end_to_end_seconds",
        "queue job_type",
        END_TO_END,
        "From the append of a job's first record to its end; of undelayed first runs: wait + run.",
    ),
    _histogram("attempts_per_job", "queue", ATTEMPTS, "Attempts that completed jobs took."),
    _gauge("jobs_running", "queue job_type", "Jobs in a handler right now."),
    _gauge(
        "oldest_running_seconds", "queue", "For how long the longest running job has been running.", "max"
    ),
    _gauge("jobs_buffered", "queue", "Jobs received and not started: ready, or behind their key."),
    _gauge("worker_slots", "group", "How many jobs can run at a time."),
    _gauge("worker_slots_busy", "group", "How many do."),
    _gauge("partitions_assigned", "queue tier", "Partitions that this worker owns."),
    _gauge(
        "partitions_paused",
        "queue reason",
        "Owned partitions that are not fetched; reason backpressure (enough is received) or held (nothing may run).",
    ),
    _counter(
        "rebalances_total",
        "group event",
        "Changes of a member's partitions; event assigned, revoked or lost.",
    ),
    _counter("commits_total", "group outcome", "Commits of offsets; outcome ok or error."),
    _histogram("commit_duration_seconds", "group", CALL, "From asking for a commit to its answer."),
    _counter(
        "decode_errors_total",
        "queue reason",
        "Records that can't be run; reason header (no such job type, or one that can't be read), schema (nobody knows it) or payload.",
    ),
    _counter(
        "lifecycle_events_dropped_total",
        "group reason",
        "Events that no reader will see; reason timeout or error.",
    ),
    _counter(
        "jobs_deleted_total",
        "queue group",
        "Records that retention deleted before they had run: lost work; of the delay ladder, queue is its topic.",
    ),
    _gauge(
        "worker_last_progress_timestamp_seconds",
        "group tier",
        "When the loop that is furthest behind last went round, seconds since the epoch; tier main, retry or delay (the timer).",
        "min",
    ),
    _gauge("worker_info", "version python group", "Always 1; what runs.", "max"),
    _counter("worker_process_deaths_total", "group", "Worker processes that ended without being told to."),
)

_MONITOR = (
    _watched(
        "queue_pending_jobs",
        "queue group tier",
        "Jobs that wait or run, exactly, from offsets; tier main or retry.",
    ),
    _watched("delayed_jobs", "app", "Jobs in an app's delay ladder, exactly, from offsets."),
    _watched("queue_delayed_jobs", "queue group", "About how many of them belong to a queue, from events."),
    _watched(
        "queue_oldest_pending_age_seconds", "queue group tier", "Age of the oldest job that is not finished."
    ),
    _watched(
        "queue_pending_older_than",
        "queue group age",
        "At least this many pending jobs are older than 60, 300, 900, 3600 s.",
    ),
    _watched("queue_end_offset_sum", "queue group tier", "End offsets, added up: what arrives."),
    _watched("queue_committed_offset_sum", "queue group tier", "Committed offsets, added up: what leaves."),
    _watched(
        "queue_growth_jobs_per_second", "queue group window", "Arriving minus leaving; window 1m, 5m or 15m."
    ),
    _watched("queue_drain_eta_seconds", "queue group", "When it will be empty; +Inf never, absent unknown."),
    _watched("queue_partition_skew_ratio", "queue group", "Pending of the fullest partition over the mean."),
    _watched(
        "consumer_lag_offsets", "group topic partition", "End offset minus committed offset of one partition."
    ),
    _watched(
        "queue_status",
        "queue group status",
        "1 for its status: ok, falling_behind, stalled, no_consumer, paused, long_running, rewound,"
        " lso_stuck, retention_risk, unknown.",
    ),
    _watched("group_members", "group", "Members of a consumer group."),
    _watched("group_state", "group state", "1 for its state."),
    _watched("queue_paused", "queue group", "1 while an order pauses the queue."),
    _watched(
        "queue_retention_used_ratio", "queue group", "Lag over the log's length, where retention is finite."
    ),
    _watched("dead_letters", "queue group", "Letters that need a decision."),
    _watched("dead_letter_oldest_age_seconds", "queue group", "Age of the oldest of them."),
    _watched("lso_stuck_seconds", "topic", "For how long an open transaction has hidden what follows it."),
    _histogram("monitor_collect_duration_seconds", "", CALL, "How long a collection took.", "monitor"),
    _watched(
        "monitor_last_success_timestamp_seconds",
        "",
        "When the last collection succeeded, seconds since the epoch.",
    ),
    _watched(
        "status_store_lag_events", "", "Records of the events topic that the status store has not read."
    ),
    _counter(
        "admin_actions_total", "action outcome", "Orders given; outcome ok, denied or error.", "monitor"
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_WORKER, *_MONITOR)}


def series_of(metric: Metric) -> tuple[str, ...]:
    """The names under which Prometheus has it: what alerts and dashboards may ask for."""
    if metric.type == "histogram":
        return tuple(f"{metric.full_name}_{suffix}" for suffix in ("bucket", "count", "sum"))
    return (metric.full_name,)


def markdown(metrics: Iterable[Metric] = tuple(METRICS.values())) -> str:
    """The table for the docs."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(metric.labels) or "–"
        lines.append(f"| `{metric.full_name}` | {metric.type} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"
