from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from streamjobs import App, Retry
from streamjobs.errors import BrokerError
from streamjobs.job import Reject, Snooze
from streamjobs.telemetry.tracing import SCHEMA_URL, Propagation, Tracing, sampled

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()
UNSAMPLED = PARENT[:-1] + b"0"
NOW = 5000.0


@dataclass
class Running:
    headers: dict[str, bytes] = field(default_factory=dict)
    attempt: int = 1
    first_appended_at: float = NOW - 1
    id: str = "inv-7"
    type: str = "send_invoice"
    queue: str = "invoices"
    topic: str = "jobs.invoices"
    partition: int = 3
    offset: int = 70012
    max_attempts: int = 8
    wait_s: float = 0.25
    traceparent: bytes = b""


class Spans:
    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def tracing(self, propagation: Propagation = "auto") -> Tracing:
        return Tracing(self.provider, propagation, now=lambda: NOW)

    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def only(self) -> ReadableSpan:
        (span,) = self.all()
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


def trace_of(span: ReadableSpan) -> str:
    return f"{span.context.trace_id:032x}"


def traceparent_of(span: ReadableSpan) -> bytes:
    return f"00-{trace_of(span)}-{span.context.span_id:016x}-01".encode()


def linked(span: ReadableSpan) -> list[str]:
    return [f"{link.context.span_id:016x}" for link in span.links]


def publish(tracing: Tracing, headers: list[tuple[str, bytes]]) -> Any:
    return tracing.send(
        "jobs.invoices", headers, job_id="inv-7", job_type="send_invoice", queue="invoices", key="acme"
    )


# -- publishing ----------------------------------------------------------------------------------------------


def test_a_published_job_carries_its_span(spans: Spans) -> None:
    sent = publish(spans.tracing(), [("ce_id", b"inv-7")])
    assert spans.all() == ()
    sent.done(partition=3, offset=70012)
    span = spans.only()

    assert (span.name, span.kind) == ("send jobs.invoices", SpanKind.PRODUCER)
    assert sent.headers == [("ce_id", b"inv-7"), ("traceparent", traceparent_of(span))]
    assert span.instrumentation_scope is not None and span.instrumentation_scope.schema_url == SCHEMA_URL
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "jobs.invoices",
        "messaging.message.id": "inv-7",
        "messaging.kafka.message.key": "acme",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 70012,
        "streamjobs.job.type": "send_invoice",
        "streamjobs.queue": "invoices",
    }


def test_a_context_that_a_record_had_is_replaced_and_never_joined_by_another(spans: Spans) -> None:
    """Bites: setters that append leave two `traceparent`s, and readers take the stale one."""
    sent = publish(spans.tracing(), [("traceparent", PARENT), ("tracestate", b"old=1")])

    assert [name for name, _ in sent.headers] == ["traceparent"]
    assert dict(sent.headers)["traceparent"] != PARENT


def test_publishing_inside_a_span_is_its_child(spans: Spans) -> None:
    with spans.provider.get_tracer("user").start_as_current_span("request"):
        publish(spans.tracing(), []).done()
    send, request = spans.all()

    assert send.parent is not None and send.parent.span_id == request.context.span_id


def test_a_refused_job_is_an_error(spans: Spans) -> None:
    publish(spans.tracing(), []).done(BrokerError("_MSG_TIMED_OUT", "not acknowledged"))

    assert spans.only().status.status_code is StatusCode.ERROR
    assert (spans.only().attributes or {})["error.type"] == "_MSG_TIMED_OUT"


def test_an_unsampled_publisher_says_so_to_the_runs() -> None:
    spans = Spans(sampler=ParentBased(ALWAYS_OFF))
    sent = publish(spans.tracing(), [])
    sent.done()

    assert not sampled(dict(sent.headers)["traceparent"])
    assert spans.all() == ()


# -- running -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traceparent", "wanted"),
    [
        (PARENT, True),
        (UNSAMPLED, False),
        (None, True),
        (b"", True),
        (b"garbage", True),
        (PARENT[:-2] + b"03", True),
        (PARENT[:-2] + b"02", False),
        (PARENT + b"-more", True),
    ],
)
def test_the_sampled_flag_is_read_without_opentelemetry(traceparent: bytes | None, wanted: bool) -> None:
    assert sampled(traceparent) is wanted


def test_the_first_attempt_of_a_young_job_is_a_child_and_links(spans: Spans) -> None:
    job = Running({"traceparent": PARENT, "tracestate": b"vendor=1"})
    with spans.tracing().run(job, "billing"):
        pass
    span = spans.only()

    assert (span.name, span.kind, trace_of(span)) == ("process jobs.invoices", SpanKind.CONSUMER, TRACE)
    assert linked(span) == ["00f067aa0ba902b7"]
    assert span.context.trace_state.to_header() == "vendor=1"
    assert job.traceparent == traceparent_of(span)
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "jobs.invoices",
        "messaging.message.id": "inv-7",
        "messaging.consumer.group.name": "billing",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 70012,
        "streamjobs.job.type": "send_invoice",
        "streamjobs.queue": "invoices",
        "streamjobs.attempt": 1,
        "streamjobs.max_attempts": 8,
        "streamjobs.wait_ms": 250,
    }


@pytest.mark.parametrize(
    ("propagation", "attempt", "age_s", "child"),
    [
        ("auto", 1, 1.0, True),
        ("auto", 2, 1.0, False),
        ("auto", 1, 901.0, False),
        ("link", 1, 1.0, False),
        ("child", 5, 9999.0, True),
    ],
)
def test_whether_a_run_is_a_child_or_linked(
    spans: Spans, propagation: Propagation, attempt: int, age_s: float, child: bool
) -> None:
    with spans.tracing(propagation).run(Running({"traceparent": PARENT}, attempt, NOW - age_s), "billing"):
        pass

    assert (trace_of(spans.only()) == TRACE) is child
    assert linked(spans.only()) == ["00f067aa0ba902b7"]


def test_a_run_begins_a_trace_whatever_is_current_in_its_thread(spans: Spans) -> None:
    with (
        spans.provider.get_tracer("user").start_as_current_span("left open"),
        spans.tracing().run(Running(), "billing"),
    ):
        pass

    assert spans.all()[0].parent is None


def test_what_a_handler_does_is_inside_its_run(spans: Spans) -> None:
    tracing = spans.tracing()
    with tracing.run(Running({"traceparent": PARENT}), "billing"):
        publish(tracing, []).done()
    send, run = spans.all()

    assert send.parent is not None and send.parent.span_id == run.context.span_id


def test_a_failed_run_is_an_error_that_passes_on(spans: Spans) -> None:
    with pytest.raises(KeyError), spans.tracing().run(Running(), "billing"):
        raise KeyError("customer")
    span = spans.only()

    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "KeyError"
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize(
    ("signal", "status"), [(Snooze("5s"), StatusCode.UNSET), (Reject("void"), StatusCode.ERROR)]
)
def test_only_signals_of_failure_are_errors(spans: Spans, signal: BaseException, status: StatusCode) -> None:
    with pytest.raises(type(signal)), spans.tracing().run(Running(), "billing"):
        raise signal

    assert spans.only().status.status_code is status


def test_a_malformed_context_begins_a_trace(spans: Spans) -> None:
    for bad in (b"garbage", b"00-" + b"0" * 32 + PARENT[35:], b"ff" + PARENT[2:], PARENT.upper()):
        with spans.tracing("child").run(Running({"traceparent": bad}), "billing"):
            pass

    assert all(span.parent is None and not span.links for span in spans.all())


# -- again ---------------------------------------------------------------------------------------------------


def retry(tracing: Tracing, job: Running, *, letter: bool = False) -> Any:
    headers = list(job.headers.items())
    return tracing.again(
        "to", headers, job_id=job.id, run=job.traceparent, reason="Timeout", delay_s=5.0, letter=letter
    )


def test_a_retry_of_a_job_whose_trace_has_no_value_begins_one(spans: Spans) -> None:
    tracing = spans.tracing()
    job = Running({"traceparent": b""})
    with tracing.run(job, "billing"):
        pass
    sent = tracing.again("to", [("traceparent", None), ("tracestate", None)], job_id=job.id, run=job.traceparent, reason="Timeout")
    sent.done()

    assert [name for name, _ in sent.headers] == ["traceparent"]
    assert spans.all()[1].parent is not None


def test_a_retry_continues_its_run_and_remembers_the_first_trace(spans: Spans) -> None:  # edge 69
    tracing = spans.tracing()
    job = Running({"traceparent": PARENT})
    for _ in range(2):
        with tracing.run(job, "billing"):
            pass
        sent = retry(tracing, job)
        sent.done()
        job = Running(dict(sent.headers), attempt=2)
    first_run, first_send, second_run, second_send = spans.all()

    assert first_send.parent is not None and first_send.parent.span_id == first_run.context.span_id
    assert second_send.parent is not None and second_send.parent.span_id == second_run.context.span_id
    assert trace_of(second_run) != TRACE
    assert linked(second_run) == [f"{first_send.context.span_id:016x}", "00f067aa0ba902b7"]
    assert job.headers == {"sj_origin_traceparent": PARENT, "traceparent": traceparent_of(second_send)}
    assert (second_send.attributes or {})["streamjobs.retry.delay_ms"] == 5000


def test_a_letter_asks_to_be_kept(spans: Spans) -> None:
    tracing, job = spans.tracing(), Running({"traceparent": PARENT})
    with tracing.run(job, "billing"):
        pass
    retry(tracing, job, letter=True).done()
    attributes = spans.all()[1].attributes or {}

    assert (attributes["streamjobs.dlt.reason"], attributes["streamjobs.force_sample"]) == ("Timeout", True)


def test_an_unsampled_job_passes_through_as_it_is(spans: Spans) -> None:  # edge 69
    job = Running({"traceparent": UNSAMPLED, "tracestate": b"v=1"})
    assert not sampled(job.headers["traceparent"])
    sent = retry(spans.tracing(), job)
    sent.done()

    assert dict(sent.headers) == job.headers
    assert spans.all() == ()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def the_error_told_of(spans: Spans, error: Exception) -> tuple[str, dict[str, str]]:
    """Of a run that failed with it: its span's status, and the attributes of the event about it."""
    tracing = Tracing(spans.provider, now=lambda: NOW, mask=["*password*"])
    with suppress(type(error)), tracing.run(Running(), "shop"):
        raise error
    span = spans.only()
    (event,) = span.events
    assert event.name == "exception"
    return span.status.description or "", {name: str(value) for name, value in (event.attributes or {}).items()}


def test_the_error_of_a_run_is_told_without_secrets(spans: Spans) -> None:
    """Spans go to whoever collects them. What bit: the log had `***`, and the span all of it."""
    status, told = the_error_told_of(spans, ValueError("no: password=hunter2 for acme"))
    assert status == told["exception.message"] == "no: password=*** for acme"
    assert told["exception.type"] == "ValueError" and "Traceback" in told["exception.stacktrace"]
    assert "hunter2" not in str(told)


def test_an_error_whose_text_cant_be_made_is_told_of(spans: Spans) -> None:
    status, told = the_error_told_of(spans, Unspeakable())
    assert "can't be made" in status and told["exception.type"].endswith("test_tracing.Unspeakable")


# -- in a worker ---------------------------------------------------------------------------------------------


def failing_job(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Runs a job that fails twice, in a process that has a tracer provider; the traceparents of its retry and of its letter."""
    monkeypatch.setattr(Tracing, "find", classmethod(lambda cls, propagation, mask=(): Tracing(spans.provider, propagation, lambda: 0.0, mask=mask)))
    app = App("shop", partitions=1)

    @app.job(queue="mails", name="count", retry=Retry(attempts=2))
    def count(n: int) -> None:
        raise ValueError(f"token=t-{n}")

    with app.testing() as t:
        count.publish(1)
        for _ in range(3):
            t.run(raise_errors=False)
            t.advance(600)
        again = [dict(record.headers() or ()) for topic in ("jobs.mails.shop.retry", "jobs.mails.shop.dlt") for record in t.broker.records(topic)]
    return [headers.get("traceparent", b"") for headers in again]


def test_a_job_that_fails_can_be_followed_to_its_letter(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:  # edge 69
    retry, letter = failing_job(spans, monkeypatch)
    published, first_run, retried, second_run, buried = spans.all()

    assert [parent.parent and parent.parent.span_id for parent in (first_run, retried, buried)] == [
        parent.context.span_id for parent in (published, first_run, second_run)
    ]
    assert linked(second_run) == [f"{span.context.span_id:016x}" for span in (retried, published)]
    assert (retried.attributes or {})["streamjobs.retry.reason"] == "ValueError"
    assert (buried.attributes or {})["streamjobs.dlt.reason"] == "exhausted"
    assert (retry, letter) == (traceparent_of(retried), traceparent_of(buried))


def test_a_job_that_nobody_traces_carries_no_trace(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    spans.provider.sampler = ALWAYS_OFF
    assert {traceparent[-2:] for traceparent in failing_job(spans, monkeypatch)} <= {b"", b"00"}
    assert spans.all() == ()


# -- without it ----------------------------------------------------------------------------------------------


def test_without_a_provider_nothing_is_imported_or_traced() -> None:
    code = (
        "import sys; from streamjobs.telemetry.tracing import Tracing; print(Tracing.find(),"
        " any(m.startswith('opentelemetry') for m in sys.modules));"
        " import opentelemetry.trace; print(Tracing.find())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "None False\nNone\n"


def test_a_provider_that_the_process_has_set_is_found() -> None:
    code = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider;"
        " trace.set_tracer_provider(TracerProvider()); from streamjobs.telemetry.tracing import Tracing;"
        " print(type(Tracing.find('link')).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "Tracing\n"


class Broken(SpanProcessor):
    """A user's own, which raises where it is asked to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.where == "start":
            raise RuntimeError(self.where)

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "end":
            raise RuntimeError(self.where)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("where", ["start", "end"])
def test_a_processor_that_raises_touches_no_job(spans: Spans, where: str) -> None:
    """*Bites*: a job that ended well ran again, because its span could not be told of."""
    spans.provider.add_span_processor(Broken(where))
    tracing = spans.tracing()
    job = Running({"traceparent": PARENT})

    sent = tracing.send("jobs.invoices", [("traceparent", PARENT)], job_id="inv-7", job_type="t", queue="q")
    sent.done()
    sent.done(BrokerError("_TIMED_OUT", "late"))
    with tracing.run(job, "billing"):
        ran = True

    assert ran
    assert dict(sent.headers)["traceparent"] is not None
    with pytest.raises(ValueError, match="no"), tracing.run(job, "billing"):
        raise ValueError("no")


def test_an_error_without_a_text_stays_that_error(spans: Spans) -> None:
    with pytest.raises(Mute), spans.tracing().run(Running(), "billing"):
        raise Mute


def test_a_worker_masks_what_its_settings_say(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_job(spans, monkeypatch)
    assert [span.status.description for span in spans.all() if span.kind is SpanKind.CONSUMER] == ["token=***"] * 2
