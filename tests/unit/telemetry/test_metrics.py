from __future__ import annotations

import pickle
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streamjobs.core.lifecycle import Outcome, Reason
from streamjobs.core.record import Meta
from streamjobs.telemetry import catalogue
from streamjobs.telemetry.catalogue import METRICS, OTHER, UNKNOWN_TYPE
from streamjobs.telemetry.metrics import (
    COMPLETED,
    Collector,
    Histogram,
    Metrics,
    Snapshot,
    Totals,
    exposition,
    merge,
)

Make = Callable[..., Any]


def gatherer(tier: str = "main") -> Metrics:
    return Metrics("billing", tier, {"send_invoice", "remind"})


def counted(snapshot: Snapshot, name: str) -> dict[tuple[str, ...], float]:
    return {labels: value for (of, labels), value in snapshot.counters.items() if of == name}


def scraped(snapshot: Snapshot) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    text = exposition(lambda: snapshot)[0].decode()
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


# -- gathering -----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(0, 20_000)), max_size=5))
def test_values_land_in_the_bucket_that_bounds_them(lists: list[list[float]]) -> None:
    histogram = Histogram(catalogue.RUN)
    for values in lists:
        histogram.observe(list(values))

    expected = [0] * (len(catalogue.RUN) + 1)
    for value in (value for values in lists for value in values):
        expected[bisect_left(catalogue.RUN, value)] += 1
    assert histogram.counts == expected
    assert histogram.total == pytest.approx(sum(value for values in lists for value in values))


def test_a_value_on_a_bound_is_within_it() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe([1.0, 2.0, 2.5, 0.5])

    assert histogram.counts == [2, 1, 1]


def test_a_list_of_jobs_is_counted_by_queue_type_and_outcome(job: Make) -> None:
    metrics = gatherer()
    metrics.observe(
        [job(), job(), job(type="remind"), job(queue="mails"), job(outcome="retried", error_type="Timeout")]
    )
    seen = metrics.snapshot()

    assert counted(seen, "attempts_total") == {
        ("invoices", "send_invoice", "succeeded"): 2,
        ("invoices", "remind", "succeeded"): 1,
        ("mails", "send_invoice", "succeeded"): 1,
        ("invoices", "send_invoice", "retried"): 1,
    }
    assert ("invoices", "send_invoice", "retried") not in counted(seen, "jobs_completed_total")
    assert sum(counted(seen, "jobs_completed_total").values()) == 4


def test_a_job_that_retries_completes_once(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(outcome="retried")])
    metrics.observe([job(outcome="succeeded", attempt=2)])
    seen = metrics.snapshot()

    assert sum(counted(seen, "attempts_total").values()) == 2
    assert counted(seen, "jobs_completed_total") == {("invoices", "send_invoice", "succeeded"): 1}
    assert seen.histograms["attempts_per_job", ("invoices",)] == ((0, 1, 0, 0, 0, 0, 0), 2.0)


def test_failures_are_counted_by_error_and_what_follows(job: Make) -> None:
    metrics = gatherer()
    metrics.observe(
        [
            job(outcome="retried", error_type="Timeout"),
            job(outcome="dead", error_type="KeyError", reason="exhausted"),
            job(outcome="rejected", reason="rejected"),
            job(outcome="snoozed"),
            job(outcome="cancelled"),
        ]
    )
    seen = metrics.snapshot()

    assert counted(seen, "failures_total") == {
        ("invoices", "send_invoice", "Timeout", "retry"): 1,
        ("invoices", "send_invoice", "KeyError", "dead_letter"): 1,
        ("invoices", "send_invoice", "Reject", "dead_letter"): 1,
    }
    assert counted(seen, "dead_letters_total") == {
        ("invoices", "send_invoice", "exhausted"): 1,
        ("invoices", "send_invoice", "rejected"): 1,
    }


def test_what_never_ran_is_in_no_histogram(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(outcome="expired", started_at=0.0, wait_s=9.0)])
    seen = metrics.snapshot()

    assert counted(seen, "jobs_completed_total") == {("invoices", "send_invoice", "expired"): 1}
    assert all(sum(counts) == 0 for counts, _ in seen.histograms.values())


def test_the_wait_knows_its_tier_and_group(job: Make) -> None:
    metrics = gatherer("retry")
    metrics.observe([job(wait_s=0.3)])

    counts, total = metrics.snapshot().histograms[
        "queue_wait_seconds", ("invoices", "billing", "send_invoice", "retry")
    ]
    assert (sum(counts), total) == (1, 0.3)


def test_from_end_to_end_a_retried_job_counts_from_its_first_record(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(wait_s=2.0, duration_s=1.0)])
    metrics.observe(
        [
            job(
                meta=Meta("send_invoice", attempt=2),
                started_at=1500.0,
                duration_s=1.0,
                first_appended_at=1000.0,
            )
        ]
    )

    _, total = metrics.snapshot().histograms["end_to_end_seconds", ("invoices", "send_invoice")]
    assert total == 3.0 + 501.0


def test_an_empty_list_counts_nothing() -> None:
    metrics = gatherer()
    metrics.observe([])

    assert metrics.snapshot() == Snapshot({}, {}, {})


def test_published_jobs_are_counted_with_those_that_were_refused() -> None:
    metrics = gatherer()
    metrics.published(SimpleNamespace(name="send_invoice", queue="invoices"), 10, 0, 0.02)
    metrics.published(SimpleNamespace(name="send_invoice", queue="invoices"), 5, 2, 0.02)
    seen = metrics.snapshot()

    assert counted(seen, "jobs_published_total") == {
        ("invoices", "send_invoice", "ok"): 13,
        ("invoices", "send_invoice", "error"): 2,
    }
    assert seen.histograms["publish_duration_seconds", ("invoices",)][0][2] == 2


# -- bounds --------------------------------------------------------------------------------------------------


def test_job_types_that_no_code_declares_share_a_label(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(type=f"foreign-{n}") for n in range(100)])

    assert counted(metrics.snapshot(), "attempts_total") == {("invoices", UNKNOWN_TYPE, "succeeded"): 100}


def test_error_types_are_bounded_and_none_is_lost(job: Make) -> None:
    metrics = gatherer()
    for n in range(120):
        metrics.observe(
            [job(outcome="retried", error_type=f"Error{n}"), job(outcome="retried", error_type="Common")]
        )
    failures = counted(metrics.snapshot(), "failures_total")
    names = {labels[2] for labels in failures}

    assert len(names) == 51 and {"Common", OTHER, "Error0"} <= names
    assert "Error119" not in names
    assert failures["invoices", "send_invoice", "Common", "retry"] == 120
    assert sum(failures.values()) == 240


@pytest.mark.parametrize("name", ["half a \udc80 pair", "x" * 100_000])
def test_an_error_of_an_impossible_name_spoils_no_scrape(name: str, job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(outcome="retried", error_type=name), job(outcome="retried", error_type='E "1"\n')])

    failures = scraped(metrics.snapshot())["streamjobs_failures_total"]
    assert {dict(labels)["error_type"] for labels in failures} == {OTHER, 'E "1"\n'}


def test_free_text_never_becomes_a_label(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(outcome="rejected", reason="invoice 7 of acme is void")])

    assert counted(metrics.snapshot(), "dead_letters_total") == {("invoices", "send_invoice", OTHER): 1}


def test_processes_together_keep_to_the_bound_too(job: Make) -> None:
    totals = Totals()
    for process in range(4):
        metrics = gatherer()
        metrics.observe([job(outcome="retried", error_type=f"Error{process}-{n}") for n in range(40)])
        metrics.observe([job(outcome="retried", error_type="Common")])
        totals.report(process, metrics.snapshot())
    failures = counted(totals.snapshot(), "failures_total")

    assert len({labels[2] for labels in failures}) == 51
    assert failures["invoices", "send_invoice", "Common", "retry"] == 4
    assert sum(failures.values()) == 164


def test_no_failure_is_counted_twice_however_many_types_there_are(job: Make) -> None:
    """What `sum(rate(…))` makes of it: a series that falls has begun anew, and all that it says is new. *Bites*: a type that made room
    for another one moved to `_OTHER`, as if it had failed so often again; and `_OTHER` fell when one came back."""
    totals, before, seen = Totals(), dict[tuple[str, ...], float](), 0.0
    processes = [gatherer(), gatherer()]
    rare = [[f"Error{n % 60}"] * (n % 7 + 1) for n in range(300)]
    for number, error_types in enumerate(rare):
        processes[number % 2].observe([job(outcome="retried", error_type=each) for each in error_types])
        totals.report(number % 2, processes[number % 2].snapshot())
        now = counted(totals.snapshot(), "failures_total")
        for labels, value in now.items():
            known = before.get(labels, 0)
            seen += value - known if value >= known else value
        before = now

    assert seen == sum(map(len, rare))


@pytest.mark.parametrize(
    "call",
    [
        lambda metrics: metrics.count("no_such_total"),
        lambda metrics: metrics.count("commits_total", "billing"),
        lambda metrics: metrics.time("commit_duration_seconds", 1.0),
        lambda metrics: metrics.set("worker_slots", 1.0, "billing", "more"),
        lambda metrics: metrics.replace("jobs_running", {("invoices",): 1.0}),
    ],
)
def test_what_the_catalogue_does_not_have_is_refused(call: Callable[[Metrics], None]) -> None:
    with pytest.raises(ValueError, match="metric .* with labels"):
        call(gatherer())


# -- the rest ------------------------------------------------------------------------------------------------


def test_counters_times_and_gauges() -> None:
    metrics = gatherer()
    metrics.count("commits_total", "billing", "ok")
    metrics.count("commits_total", "billing", "ok", by=2)
    metrics.time("commit_duration_seconds", 0.007, "billing")
    metrics.set("worker_slots", 32, "billing")
    metrics.set("worker_slots", 16, "billing")
    seen = metrics.snapshot()

    assert seen.counters["commits_total", ("billing", "ok")] == 3
    assert seen.histograms["commit_duration_seconds", ("billing",)][0][1] == 1
    assert seen.gauges["worker_slots", ("billing",)] == 16


def test_a_replaced_gauge_forgets_what_is_not_named() -> None:
    metrics = gatherer()
    metrics.set("worker_slots", 32, "billing")
    metrics.replace("jobs_running", {("invoices", "send_invoice"): 3, ("mails", "remind"): 1})
    metrics.replace("jobs_running", {("mails", "remind"): 2})

    assert metrics.snapshot().gauges == {
        ("worker_slots", ("billing",)): 32,
        ("jobs_running", ("mails", "remind")): 2,
    }


def test_counters_of_a_queue_are_there_before_its_first_job() -> None:
    metrics = gatherer()
    metrics.prepare("invoices", ["send_invoice"])

    assert counted(metrics.snapshot(), "jobs_completed_total") == {
        ("invoices", "send_invoice", outcome): 0 for outcome in COMPLETED
    }


# -- adding up -----------------------------------------------------------------------------------------------


def test_loops_add_up(job: Make) -> None:
    main, retry = gatherer(), gatherer("retry")
    main.observe([job()])
    retry.observe([job(duration_s=2.0)])
    main.replace("jobs_running", {("invoices", "send_invoice"): 3})
    retry.replace("jobs_running", {("invoices", "send_invoice"): 1})
    both = merge([main.snapshot(), retry.snapshot()])

    assert both.counters["jobs_completed_total", ("invoices", "send_invoice", "succeeded")] == 2
    counts, total = both.histograms["execution_duration_seconds", ("invoices", "send_invoice", "ok")]
    assert (sum(counts), total) == (2, 2.25)
    assert both.gauges["jobs_running", ("invoices", "send_invoice")] == 4


def test_gauges_join_as_the_catalogue_says() -> None:
    one, other = gatherer(), gatherer()
    for metrics, at, running in ((one, 1000.0, 5.0), (other, 900.0, 7.0)):
        metrics.set("worker_last_progress_timestamp_seconds", at, "billing", "main")
        metrics.set("oldest_running_seconds", running, "invoices")
        metrics.set("worker_info", 1, "0.1", "3.11", "billing")
    gauges = merge([one.snapshot(), other.snapshot()]).gauges

    assert gauges["worker_last_progress_timestamp_seconds", ("billing", "main")] == 900.0
    assert gauges["oldest_running_seconds", ("invoices",)] == 7.0
    assert gauges["worker_info", ("0.1", "3.11", "billing")] == 1


def test_an_ended_process_keeps_its_counts_and_takes_its_gauges(job: Make) -> None:
    totals = Totals()
    for process in ("slot 0, pid 1", "slot 1, pid 2"):
        metrics = gatherer()
        metrics.observe([job()])
        metrics.set("worker_slots", 32, "billing")
        totals.report(process, metrics.snapshot())
    totals.ended("slot 0, pid 1")
    totals.ended("slot 0, pid 1")
    totals.ended("never heard of")
    seen = totals.snapshot()

    assert seen.counters["jobs_completed_total", ("invoices", "send_invoice", "succeeded")] == 2
    assert sum(seen.histograms["execution_duration_seconds", ("invoices", "send_invoice", "ok")][0]) == 2
    assert seen.gauges["worker_slots", ("billing",)] == 32
    assert totals.snapshot() == seen


def test_a_later_report_replaces_an_earlier_one(job: Make) -> None:
    totals, metrics = Totals(), gatherer()
    for _ in range(3):
        metrics.observe([job()])
        totals.report(1, metrics.snapshot())

    assert counted(totals.snapshot(), "jobs_completed_total") == {
        ("invoices", "send_invoice", "succeeded"): 3
    }


def test_a_snapshot_crosses_processes(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job()])

    assert pickle.loads(pickle.dumps(metrics.snapshot())) == metrics.snapshot()


# -- Prometheus ----------------------------------------------------------------------------------------------


def test_a_scrape_has_counters_gauges_and_cumulative_buckets(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(duration_s=0.001), job(duration_s=0.2), job(duration_s=9999.0)])
    metrics.set("worker_slots", 32, "billing")
    samples = scraped(metrics.snapshot())
    labels = (("job_type", "send_invoice"), ("queue", "invoices"), ("result", "ok"))
    buckets = samples["streamjobs_execution_duration_seconds_bucket"]

    assert samples["streamjobs_worker_slots"] == {(("group", "billing"),): 32}
    assert samples["streamjobs_jobs_completed_total"] == {
        (("job_type", "send_invoice"), ("outcome", "succeeded"), ("queue", "invoices")): 3
    }
    assert samples["streamjobs_execution_duration_seconds_count"] == {labels: 3}
    assert samples["streamjobs_execution_duration_seconds_sum"][labels] == pytest.approx(9999.201)
    by_bound = {dict(key)["le"]: value for key, value in buckets.items()}
    assert (by_bound["0.005"], by_bound["0.25"], by_bound["3600.0"], by_bound["+Inf"]) == (1, 2, 2, 3)


def test_a_scraper_that_asks_for_openmetrics_gets_it(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job()])
    body, content_type = exposition(metrics.snapshot, "application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_hostile_label_values_stay_labels(job: Make) -> None:
    metrics = gatherer()
    metrics.observe([job(outcome="retried", error_type='E"} 1\n# HELP x')])

    assert len(scraped(metrics.snapshot())["streamjobs_failures_total"]) == 1


def test_what_vanished_is_not_exposed() -> None:
    metrics = gatherer()
    collector = Collector(metrics.snapshot)
    metrics.replace("jobs_running", {("invoices", "send_invoice"): 3})
    assert len(list(collector.collect())) == 1
    metrics.replace("jobs_running", {})

    assert list(collector.collect()) == []


def test_gathering_does_not_import_prometheus() -> None:
    code = (
        "import sys, streamjobs.telemetry.metrics as m; m.Metrics().snapshot();"
        " print('prometheus_client' in sys.modules)"
    )

    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


# -- the catalogue -------------------------------------------------------------------------------------------


def test_names_follow_the_conventions() -> None:
    for metric in METRICS.values():
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name
        assert bool(metric.buckets) == (metric.type == "histogram"), metric.name
        assert list(metric.buckets) == sorted(metric.buckets), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert not metric.name.startswith("queue_") or "group" in metric.labels, metric.name


def test_no_label_grows_without_bound() -> None:
    """A label is a name that code, topics or settings declare; `partition` only where a monitor is asked for
    it."""
    allowed = {
        "action",
        "age",
        "app",
        "error_type",
        "event",
        "group",
        "job_type",
        "outcome",
        "partition",
        "python",
        "queue",
        "reason",
        "result",
        "state",
        "status",
        "tier",
        "topic",
        "version",
        "window",
    }

    assert {label for metric in METRICS.values() for label in metric.labels} <= allowed


def test_completed_outcomes_and_reasons_are_those_of_the_lifecycle() -> None:
    assert COMPLETED == {o.value for o in Outcome} - {"retried", "snoozed"}
    assert catalogue.REASONS == {reason.value for reason in Reason}


def test_the_table_for_the_docs_has_every_metric() -> None:
    rows = catalogue.markdown().splitlines()

    assert len(rows) == 2 + len(METRICS)
    assert (
        "| `streamjobs_jobs_completed_total` | counter | queue, job_type, outcome |" in catalogue.markdown()
    )


def test_a_histogram_has_three_series() -> None:
    assert catalogue.series_of(METRICS["end_to_end_seconds"]) == (
        "streamjobs_end_to_end_seconds_bucket",
        "streamjobs_end_to_end_seconds_count",
        "streamjobs_end_to_end_seconds_sum",
    )
    assert catalogue.series_of(METRICS["worker_slots"]) == ("streamjobs_worker_slots",)
