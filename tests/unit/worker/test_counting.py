"""What a worker tells of itself: every metric that the documents promise, and what each says at a given moment."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App, Reject, Retry
from streamjobs.core.record import Record
from streamjobs.telemetry.catalogue import METRICS
from streamjobs.telemetry.metrics import Snapshot, merge
from streamjobs.testing.app import Testing
from tests.documentation import ROOT

OnMemory = Callable[[App], Testing]
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")


def told(t: Testing) -> Snapshot:
    return merge(t.process.snapshots())


def names(seen: Snapshot) -> set[str]:
    return {name for series in (seen.counters, seen.histograms, seen.gauges) for name, _ in series}


def committed(t: Testing) -> None:
    """All jobs are run, their offsets asked for at a tick, and the answer heard in a later turn."""
    for _ in range(3):
        t.run()
        t.advance(1)


def shop(work: Callable[[int], None]) -> App:
    app = App("shop")

    @app.job(queue="mails", name="count", retry=Retry(attempts=2))
    def count(n: int) -> None:
        work(n)

    return app


def test_every_metric_of_a_worker_is_told(on_memory: OnMemory) -> None:
    """*Bites*: seven of them stood in the catalogue, the documents and an alert, and nobody ever counted them."""

    def work(n: int) -> None:
        seen.append(told(t))
        if n == 2:
            raise ValueError("no")
        if n == 3:
            raise Reject("never")

    seen: list[Snapshot] = []
    app = shop(work)
    t = on_memory(app)
    t.produce(Record("jobs.mails", b"garbage"))
    for n in (1, 2, 3):
        app.job_types["count"].publish(n=n)
    t.run(raise_errors=False)
    homes = list(t.process.loops[0].poller.partitions.values())
    homes[0].full = homes[1].full = homes[1].barred = True
    seen.append(told(t))

    of_workers = {metric.name for metric in METRICS.values() if metric.process == "worker"}
    by_the_supervisor = {"worker_process_deaths_total"}
    assert of_workers - names(merge(seen)) == by_the_supervisor
    paused = {labels: value for (name, labels), value in seen[-1].gauges.items() if name == "partitions_paused"}
    assert paused == {("mails", "backpressure"): 1, ("mails", "held"): 1}


def test_waits_of_a_queue_are_of_one_group_in_both_tiers(on_memory: OnMemory) -> None:
    """As all that is told of a queue, and as `streamjobs lag` names it; not Kafka's `shop.retry`."""

    def work(_: int) -> None:
        raise ValueError("again")

    app = shop(work)
    t = on_memory(app)
    app.job_types["count"].publish(n=1)
    t.run(raise_errors=False)

    waits = {labels for name, labels in told(t).histograms if name == "queue_wait_seconds"}
    assert waits == {("mails", "shop", "count", "main"), ("mails", "shop", "count", "retry")}


def test_counters_that_alerts_watch_begin_at_0(on_memory: OnMemory) -> None:
    """*Bites*: `increase()` sees nothing in a series that begins with 500 deleted jobs."""
    t = on_memory(shop(lambda _: None))
    counters = told(t).counters

    watched = set(re.findall(r"increase\(streamjobs_(\w+)", ALERTS)) - {"worker_process_deaths_total"}
    assert watched == {"jobs_deleted_total", "dead_letters_total", "commits_total", "lifecycle_events_dropped_total"}
    assert {name for (name, _), value in counters.items() if value == 0} >= watched
    assert counters["jobs_deleted_total", ("mails", "shop")] == 0
    assert counters["dead_letters_total", ("mails", "count", "exhausted")] == 0
    assert counters["dead_letters_total", ("mails", "_unknown", "undecodable")] == 0
    assert counters["commits_total", ("shop.retry", "error")] == 0


def test_gauges_tell_what_runs_and_what_waits(on_memory: OnMemory) -> None:
    """Of five jobs, one runs, for ten seconds by now, and four have not started."""

    def work(n: int) -> None:
        t.clock.advance(10)
        seen.append(told(t).gauges)

    seen: list[dict[Any, float]] = []
    app = shop(work)
    t = on_memory(app)
    app.job_types["count"].options(key="k").publish_many([{"n": n} for n in range(5)])
    t.run()

    assert [gauges["jobs_running", ("mails", "count")] for gauges in seen] == [1] * 5
    assert [gauges["oldest_running_seconds", ("mails",)] for gauges in seen] == [pytest.approx(10)] * 5
    assert seen[0]["jobs_buffered", ("mails",)] == 4
    assert [(gauges["worker_slots_busy", ("shop",)], gauges["worker_slots", ("shop",)]) for gauges in seen] == [(1, 1)] * 5
    after = told(t).gauges
    assert after["worker_slots_busy", ("shop",)] == after["jobs_buffered", ("mails",)] == 0
    assert not [labels for name, labels in after if name in ("jobs_running", "oldest_running_seconds")]


def test_commits_are_counted_and_timed(on_memory: OnMemory) -> None:
    """One that the broker refuses is an error, whatever becomes of the next."""
    app = shop(lambda _: None)
    t = on_memory(app)
    app.job_types["count"].publish(n=1)
    committed(t)
    before = told(t).counters
    assert before["commits_total", ("shop", "ok")] > 0
    assert before["commits_total", ("shop", "error")] == 0

    t.broker.fail("commit", topic="jobs.mails", error="REBALANCE_IN_PROGRESS")
    app.job_types["count"].publish(n=2)
    committed(t)
    seen = told(t)
    assert seen.counters["commits_total", ("shop", "error")] > 0
    counts, _ = seen.histograms["commit_duration_seconds", ("shop",)]
    assert sum(counts) == seen.counters["commits_total", ("shop", "ok")] + seen.counters["commits_total", ("shop", "error")]
