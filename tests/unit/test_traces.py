"""A trace goes from publish to run, where the process has a tracer provider; without one nothing of it is imported."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from streamjobs import App
from streamjobs.core.record import Record


@pytest.fixture
def spans():
    trace = pytest.importorskip("opentelemetry.trace")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    yield exporter
    trace._TRACER_PROVIDER = before


def shop(**settings: Any) -> App:
    """With a job type of each kind, `sync` and `async`."""
    app = App("shop", **settings)

    @app.job(name="sync")
    def job_of(n: int) -> None: ...

    @app.job(name="async")
    async def job_of_async(n: int) -> None: ...

    return app


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_continues_its_publishers_trace(spans, kind: str) -> None:
    app = shop()
    with app.testing(now=time.time()) as t:
        app.job_types[kind].publish(n=1)
        t.run()
    send, process = sorted(spans.get_finished_spans(), key=lambda span: span.name, reverse=True)
    assert (send.name, process.name) == ("send jobs.default", "process jobs.default")
    assert process.context.trace_id == send.context.trace_id
    assert process.parent.span_id == send.context.span_id


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_of_an_untraced_publishers_job_is_traced(spans, kind: str) -> None:
    """Plain jobs have no headers to look at. What bit: with a provider in workers alone, their runs left no trace."""
    app = shop(partitions=1)
    with app.testing(now=time.time()) as t:
        app.job_types[kind].publish(n=1)
        (record,) = t.broker.records("jobs.default")
        t.run()
        spans.clear()
        plain = [(name, value) for name, value in record.headers() if name not in ("traceparent", "tracestate")]
        t.produce(Record("jobs.default", record.value(), None, plain))
        t.run()

    (process,) = spans.get_finished_spans()
    assert process.name == "process jobs.default"
    assert process.parent is None


def test_without_a_provider_nothing_is_imported() -> None:
    code = """
import sys
from streamjobs import App
app = App("shop")
@app.job
def f(n: int) -> None: ...
with app.testing() as t:
    f.publish(n=1)
    assert t.run() == 1
assert not [m for m in sys.modules if m.startswith("opentelemetry")], "opentelemetry was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
