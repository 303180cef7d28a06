"""Spans of publishing and running jobs, and the W3C headers that join them; the only importer of
OpenTelemetry.

Nothing is imported and nothing done unless the process has a tracer provider. A job whose `traceparent` says
"not sampled" gets no span object at all, and its headers pass through as they are. Names and attributes:
OpenTelemetry semantic conventions 1.44 (messaging, in development), written out here because their Python
constants are private.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from streamjobs.core.record import Header, Headers, replaced
from streamjobs.errors import text_of
from streamjobs.job import Cancel, JobCancelled, Snooze, stack_of
from streamjobs.telemetry.log import Masking

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TracerProvider

logger = logging.getLogger(__name__)

Propagation = Literal["auto", "link", "child"]
"""How a run's span belongs to the publisher's: `child` of it, or a trace of its own with a `link`; `auto`:
child in the first attempt of a young job, so that no trace is stretched over hours of delay and backoff."""

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
#: An older job's run is a trace of its own in `auto`.
YOUNG_S = 900.0

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
_UNSAMPLED = frozenset(b"02468ace")  # the last digit of a traceparent whose lowest flag is not set
_NO_ERRORS = (Snooze, Cancel, JobCancelled)


class RunningJob(Protocol):
    """What spans read of a job. `traceparent` is written: the run's own span, which a retry or a letter
    continues."""

    traceparent: bytes

    @property
    def id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def first_appended_at(self) -> float: ...
    @property
    def headers(self) -> Mapping[str, bytes]: ...


class Sent(NamedTuple):
    """A record's headers with its trace in them, and what to call when the broker has answered."""

    headers: list[Header]
    done: Callable[..., None]
    """`done(error=None, partition=-1, offset=-1)`; from any thread."""


def sampled(traceparent: bytes | None) -> bool:
    """Whether a job's run is to be traced: not if its publisher's trace says no; without one, the local
    sampler decides."""
    return not traceparent or len(traceparent) < 55 or traceparent[54] not in _UNSAMPLED


class Tracing:
    """Spans through one tracer provider."""

    def __init__(
        self,
        provider: TracerProvider,
        propagation: Propagation = "auto",
        now: Callable[[], float] = time.time,
        *,
        mask: Sequence[str] = (),
    ) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._context = context
        self._propagation = propagation
        self._now = now
        self._masked = Masking(mask).text
        self._tracer = provider.get_tracer("streamjobs", schema_url=SCHEMA_URL)

    @classmethod
    def find(cls, propagation: Propagation = "auto", mask: Sequence[str] = ()) -> Tracing | None:
        """Tracing through the provider that this process has set; None: it has none, and nothing was imported
        for the answer."""
        if "opentelemetry.trace" not in sys.modules:
            return None
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        return cls(provider, propagation, mask=mask)

    # Publishing ---------------------------------------------------------------------------------------------

    def send(
        self, topic: str, headers: Headers, *, job_id: str, job_type: str, queue: str, key: str | None = None
    ) -> Sent:
        """A job that is published, inside whatever span is current."""
        attributes = _about(topic, job_id) | {"streamjobs.job.type": job_type, "streamjobs.queue": queue}
        if key is not None:
            attributes["messaging.kafka.message.key"] = key
        return self._sent(topic, headers, attributes)

    def again(
        self,
        topic: str,
        headers: Headers,
        *,
        job_id: str,
        run: bytes,
        reason: str,
        delay_s: float = 0.0,
        letter: bool = False,
    ) -> Sent:
        """The record of a retry or a dead letter of a run whose `job.traceparent` is `run`; of a run without a span nothing
        changes.

        The first trace stays in `sj_origin_traceparent`, so that every later run can link home.
        """
        found = dict(headers)
        given = found.get("traceparent") or b""
        parent = self._remote(run, (found.get("tracestate") or b"") if run[:35] == given[:35] else b"")
        if parent is None:
            return Sent(list(headers), _nothing)
        attributes = _about(topic, job_id)
        if letter:
            attributes |= {"streamjobs.dlt.reason": reason, "streamjobs.force_sample": True}
        else:
            attributes |= {
                "streamjobs.retry.reason": reason,
                "streamjobs.retry.delay_ms": round(delay_s * 1000),
            }
        home = found.get("sj_origin_traceparent") or given or None
        return self._sent(
            topic,
            replaced(headers, {"sj_origin_traceparent": home}),
            attributes,
            self._inside(parent),
            [home],
        )

    def _sent(
        self,
        topic: str,
        headers: Headers,
        attributes: dict[str, Any],
        context: Context | None = None,
        links: Sequence[bytes | None] = (),
    ) -> Sent:
        attributes |= {"messaging.operation.name": "send", "messaging.operation.type": "send"}
        span = self._start(f"send {topic}", self._trace.SpanKind.PRODUCER, context, attributes, links)
        own = span.get_span_context()
        if not own.is_valid:
            return Sent(list(headers), _nothing)
        state = own.trace_state.to_header() or None
        return Sent(
            replaced(headers, {"traceparent": _traceparent(own), "tracestate": state}),
            _ending(span, self._trace),
        )

    # Running ------------------------------------------------------------------------------------------------

    @contextmanager
    def run(self, job: RunningJob, group: str) -> Iterator[None]:
        """Around a handler, for jobs that are `sampled`; an exception passes through and marks the span."""
        headers = job.headers
        given = headers.get("traceparent")
        span = self._start(
            f"process {job.topic}",
            self._trace.SpanKind.CONSUMER,
            self._ancestry(job, given, headers.get("tracestate", b"")),
            _about(job.topic, job.id) | _about_run(job, group),
            [given, headers.get("sj_origin_traceparent")],
        )
        if span.get_span_context().is_valid:
            job.traceparent = _traceparent(span.get_span_context())
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            if not isinstance(error, _NO_ERRORS):
                with _harmless():
                    self._failed(span, error)
            raise
        finally:
            self._context.detach(token)
            with _harmless():
                span.end()

    def around(self, run: Callable[[Any], Any], group: str, *, is_async: bool) -> Callable[[Any], Any]:
        """A handler's call, in a span where its job is sampled; what its publisher did not sample costs a look at one header. Of a job
        that has none the local sampler decides.

        *Bites*: only workers have a tracer provider, and the plain jobs of their publishers, which are most, left no trace at all.
        """

        def traced(job: Any) -> Any:
            if job.meta is not None and not sampled(job.headers.get("traceparent")):
                return run(job)
            with self.run(job, group):
                return run(job)

        async def traced_async(job: Any) -> Any:
            if job.meta is not None and not sampled(job.headers.get("traceparent")):
                return await run(job)
            with self.run(job, group):
                return await run(job)

        return traced_async if is_async else traced

    def _ancestry(self, job: RunningJob, given: bytes | None, state: bytes) -> Context:
        """The context to be a child in; an empty one begins a trace."""
        parent = self._remote(given, state)
        young = job.attempt == 1 and self._now() - job.first_appended_at < YOUNG_S
        if parent is not None and (self._propagation == "child" or (self._propagation == "auto" and young)):
            return self._inside(parent)
        return self._context.Context()

    def _failed(self, span: Span, error: BaseException) -> None:
        """As `record_exception` does, without the secrets of its text, and of an exception whose text can't be made, too."""
        kind, text = type(error), self._masked(text_of(error))
        span.set_attribute("error.type", kind.__qualname__)
        span.set_status(self._trace.StatusCode.ERROR, text)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        told = {"exception.type": name, "exception.message": text, "exception.stacktrace": self._masked(stack_of(error))}
        span.add_event("exception", told)

    # Contexts -----------------------------------------------------------------------------------------------

    def _start(
        self,
        name: str,
        kind: SpanKind,
        context: Context | None,
        attributes: Mapping[str, Any],
        links: Sequence[bytes | None],
    ) -> Span:
        with _harmless():
            return self._tracer.start_span(name, context, kind=kind, attributes=attributes, links=self._links(links))
        return self._trace.INVALID_SPAN

    def _links(self, traceparents: Sequence[bytes | None]) -> list[Link]:
        contexts = map(self._remote, dict.fromkeys(traceparents))
        return [self._trace.Link(context) for context in contexts if context is not None]

    def _inside(self, parent: SpanContext) -> Context:
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(parent), self._context.Context())

    def _remote(self, traceparent: bytes | None, state: bytes = b"") -> SpanContext | None:
        """None for one that is absent or malformed: the trace begins anew, as the W3C recommendation says."""
        match = _TRACEPARENT.fullmatch(traceparent or b"")
        if match is None:
            return None
        trace = self._trace
        states = trace.TraceState.from_header([state.decode("ascii", "replace")]) if state else None
        context: SpanContext = trace.SpanContext(
            int(match[1], 16), int(match[2], 16), True, trace.TraceFlags(int(match[3], 16)), states
        )
        return context


def _about(topic: str, job_id: str) -> dict[str, Any]:
    return {"messaging.system": "kafka", "messaging.destination.name": topic, "messaging.message.id": job_id}


def _about_run(job: RunningJob, group: str) -> dict[str, Any]:
    return {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": group,
        "messaging.destination.partition.id": str(job.partition),
        "messaging.kafka.offset": job.offset,
        "streamjobs.job.type": job.type,
        "streamjobs.queue": job.queue,
        "streamjobs.attempt": job.attempt,
        "streamjobs.max_attempts": job.max_attempts,
        "streamjobs.wait_ms": round(job.wait_s * 1000),
    }


def _traceparent(context: SpanContext) -> bytes:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}".encode()


def _ending(span: Span, trace: Any) -> Callable[..., None]:
    def done(error: BaseException | None = None, partition: int = -1, offset: int = -1) -> None:
        with _harmless():
            if error is not None:
                span.set_attribute("error.type", getattr(error, "code", type(error).__qualname__))
                span.set_status(trace.StatusCode.ERROR, str(error))
            elif partition >= 0:
                span.set_attributes(
                    {"messaging.destination.partition.id": str(partition), "messaging.kafka.offset": offset}
                )
            span.end()

    return done


@contextmanager
def _harmless() -> Iterator[None]:
    """What a user's own span processor, sampler or exporter raises is told of. *Bites*: a job ended well, its span could not be
    told of, and it ran again, up to its last attempt; a publish raised that had sent nothing yet."""
    try:
        yield
    except Exception:
        logger.exception("a span could not be told of")


def _nothing(error: BaseException | None = None, partition: int = -1, offset: int = -1) -> None:
    """There is no span to end."""
