"""The summary: counts by job type, percentiles, errors, and how deep the queues were."""

from __future__ import annotations

import json

import pytest

from streamjobs.backlog import Backlog, QueueLag
from streamjobs.core.lag import Position
from streamjobs.demo.judge import Letter, Verdict
from streamjobs.demo.ledger import Entry
from streamjobs.demo.summary import (
    ErrorRow,
    Summary,
    error_rows,
    percentile,
    queue_rows,
    runs_by_process,
    type_rows,
)
from streamjobs.telemetry.events import Event

LEDGER = [
    Entry("started", 1, 0, "a", "mail", 1, 1),
    Entry("ended", 1, 0, "a", "mail", 1, 1),
    Entry("started", 1, 0, "b", "mail", 1, 1),
    Entry("failed", 1, 0, "b", "mail", 1, 1, "ValueError"),
    Entry("started", 1, 0, "b", "mail", 2, 2),
    Entry("failed", 1, 0, "b", "mail", 2, 2, "ValueError"),
    Entry("started", 1, 0, "b", "mail", 3, 1),
    Entry("ended", 1, 0, "b", "mail", 3, 1),
    Entry("started", 1, 0, "c", "sms", 1, 1),
    Entry("failed", 1, 0, "c", "sms", 1, 1, "Reject"),
]
DEAD = [
    Letter("b", 2, "exhausted", "mail", "ValueError"),
    Letter("c", 1, "rejected", "sms", "Reject"),
    Letter("x", 1, "undecodable", "", "DecodeError"),
]
PUBLISHED = {"a": "mail", "b": "mail", "c": "sms", "x": ""}


def event(kind: str, job_type: str, wait_s: float, duration_s: float = 1.0, started_at: float = 100.0) -> Event:
    return Event(
        kind, "id", job_type, "q", "g", "origin", 1, 1, "t", 0, 0, 101.0,
        started_at=started_at, duration_s=duration_s, wait_s=wait_s,
    )  # fmt: skip


def test_each_job_type_is_counted_by_what_was_acknowledged_noted_and_buried() -> None:
    mail, sms, garbage = type_rows(PUBLISHED, LEDGER, DEAD, {"b": 1}, [])

    assert (mail.job_type, mail.published, mail.succeeded, mail.retried, mail.dead, mail.replayed) == ("mail", 2, 2, 1, 1, 1)
    assert (sms.job_type, sms.published, sms.succeeded, sms.retried, sms.dead, sms.replayed) == ("sms", 1, 0, 0, 1, 0)
    assert (garbage.job_type, garbage.published, garbage.succeeded, garbage.dead) == (None, 1, 0, 1)


def test_times_are_those_of_runs_that_are_over() -> None:
    told = [event("succeeded", "mail", wait / 100) for wait in range(1, 101)]
    told += [event("started", "mail", 50), event("expired", "mail", 60, started_at=0.0), event("retried", "sms", 7, 8)]

    mail, sms, garbage = type_rows(PUBLISHED, LEDGER, DEAD, {}, told)

    assert mail.wait_s == {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    assert mail.run_s == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert (sms.wait_s["p50"], sms.run_s["p99"]) == (7, 8)
    assert set(garbage.wait_s.values()) == {None}


def test_errors_are_counted_with_what_nobody_could_read() -> None:
    assert error_rows(LEDGER, DEAD) == [
        ErrorRow("ValueError", "mail", 2),
        ErrorRow("Reject", "sms", 1),
        ErrorRow("DecodeError", None, 1),
    ]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 50, None), ([3.0], 1, 3.0), ([3.0, 1.0], 50, 1.0), ([3.0, 1.0, 2.0], 50, 2.0), ([3.0, 1.0], 99, 3.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: int, expected: float | None) -> None:
    assert percentile(values, share) == expected


def look(at: float, main: tuple[int, int], retry: tuple[int, int]) -> Backlog:
    """One queue's main and retry topics, each as (base, end) of its one partition."""
    lags = [
        QueueLag("q", "g", "main", "jobs.q", {0: Position(*main)}, {}, []),
        QueueLag("q", "g", "retry", "jobs.q.g.retry", {0: Position(*retry)}, {}, []),
    ]
    lags.append(QueueLag("another", "g", "main", "jobs.another", {0: Position(0, 99)}, {}, []))
    return Backlog(tuple(lags), {"1s": 3}, at)


def test_a_queue_is_as_deep_as_its_main_and_retry_topics_together() -> None:
    looks = [look(0, (0, 0), (0, 0)), look(1, (0, 10), (0, 0)), look(2, (5, 10), (0, 4)), look(3, (10, 10), (4, 4))]

    another, row = queue_rows(looks, points=3)

    assert row.peak == 10
    assert row.series.pending == [10, 9, 0]
    assert row.series.growth == [10, -1, -9]
    assert (another.queue, another.peak, another.series.growth) == ("another", 99, [0, 0, 0])


def test_as_data_it_is_json() -> None:
    summary = Summary(
        type_rows(PUBLISHED, LEDGER, DEAD, {"b": 1}, []),
        error_rows(LEDGER, DEAD),
        queue_rows([look(0, (0, 1), (0, 0)), look(1, (0, 3), (0, 0))]),
        3,
        1,
        runs_by_process(LEDGER),
        Verdict({"c": "it never ran"}, {}),
        12.34,
    )

    data = json.loads(json.dumps(summary.as_data()))

    assert data["jobs"][0]["published"] == 2
    assert data["errors"][0] == {"error_type": "ValueError", "job_type": "mail", "count": 2}
    assert data["queues"][1]["pending"] == [3]
    assert (data["standing"], data["runs_by_process"]) == (1, {"1": 5})
    assert (data["verdict"], data["lost"], data["took_s"]) == ("lost 1, unexplained 0", {"c": "it never ran"}, 12.3)
