"""Log lines: `text` for people, `json` for machines (one object a line, UTC; OpenTelemetry's top-level
`trace_id`, `span_id`).

Only the command line calls `configure`; a library that sets up logging takes that from its user. A record
that is written while a job runs says which one; a job that logs nothing costs nothing. Payloads are never
logged.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Any, Literal, TextIO

from streamjobs.core.duration import instant
from streamjobs.core.record import clipped
from streamjobs.errors import text_of
from streamjobs.job import Job, current_job, stack_of

Format = Literal["text", "json"]

MASK = "***"
MAX_MESSAGE = 2048
#: So deep is looked into what a caller gave as `extra`; it may contain itself.
_LEVELS = 8

#: Of one message at most so many in so many seconds; what is beyond is counted and told with the next one.
BURST = 20
BURST_S = 10.0

# What could forge a line, or move a terminal's cursor: C0 and C1 controls, line and paragraph separators,
# bidi overrides.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What filters note in a record, under names that no user gives an `extra`.
_IN_HAND, _SUPPRESSED = "_streamjobs_job", "_streamjobs_suppressed"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", _IN_HAND, _SUPPRESSED}
_BYTES = (bytes, bytearray, memoryview)
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def configure(
    format: Format = "text",
    level: str = "info",
    *,
    service: str = "",
    version: str = "",
    worker: str = "",
    group: str = "",
    mask: Sequence[str] = (),
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> logging.Handler:
    """Sends all log records to `stream` (default: stderr) in one format; replaces what an earlier call set
    up.

    `mask`: patterns of names whose values are not written (`*password*`).
    """
    common = {"service": service, "version": version, "worker_id": worker, "group": group}
    handler = _Handler(stream or sys.stderr)
    formatter = Json if format == "json" else Text
    handler.setFormatter(formatter({name: value for name, value in common.items() if value}, Masking(mask)))
    handler.addFilter(with_job)
    handler.addFilter(Repeats(clock))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told from handlers that a user added."""


def with_job(record: logging.LogRecord) -> bool:
    """A filter that lets all pass and notes the job in hand: when a record is written, not before. A user's own `extra={"job": …}` is
    just that, unless it is a job."""
    if not hasattr(record, _IN_HAND):
        given = getattr(record, "job", None)
        setattr(record, _IN_HAND, given if isinstance(given, Job) else current_job())
    return True


class Repeats:
    """A filter of our own records: one message, whatever its arguments, passes `BURST` times in `BURST_S`
    seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, int, str], _Window] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("streamjobs"):
            return True
        now = self._clock()
        key = record.name, record.levelno, str(record.msg)
        window = self._seen.get(key)
        if window is None or now - window.since >= BURST_S:
            if window is not None and window.suppressed:
                setattr(record, _SUPPRESSED, window.suppressed)
            self._forget(now)
            window = self._seen[key] = _Window(now)
        window.passed += 1
        if window.passed <= BURST:
            return True
        window.suppressed += 1
        return False

    def _forget(self, now: float) -> None:
        """Messages last told of long ago; how many were suppressed is kept until it can be told."""
        if len(self._seen) > 1000:
            self._seen = {key: w for key, w in self._seen.items() if now - w.since < BURST_S or w.suppressed}


class _Window:
    __slots__ = ("passed", "since", "suppressed")

    def __init__(self, since: float) -> None:
        self.since = since
        self.passed = 0
        self.suppressed = 0


# A name and what stands between it and its value. Each part takes all it can get and gives nothing back: a text of a thousand times
# "password" must not keep a worker, or who looks at its letter, busy for an hour.
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]++)["']?+\s*+[=:]\s*+""")
_VALUE = re.compile(
    r"""(?i)"(?:[^"\\\n]|\\.)*+(?:"|\Z)|'(?:[^'\\\n]|\\.)*+(?:'|\Z)|\[[^\]\n]*+\]?+|\{[^}\n]*+\}?+|(?:bearer|basic)\s+\S+|[^\s,;)}&]+"""
)


class Masking:
    """Hides values whose names match a pattern: in fields, and in text as `name=value`, `name: value` or
    JSON."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names = [re.compile(translate(pattern.lower())) for pattern in patterns]
        self._words = [word for pattern in patterns if (word := pattern.lower().strip("*"))]

    def field(self, name: str, value: Any) -> Any:
        return MASK if self._hides(name.lower()) else value

    def text(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for found in _NAMED.finditer(text) if self._names else ():
            name = found[1].lower()
            hidden = found.start() >= done and (self._hides(name) or any(word in name for word in self._words))
            value = _VALUE.match(text, found.end()) if hidden else None
            if value is not None:
                parts += text[done : found.end()], MASK
                done = value.end()
        return "".join((*parts, text[done:]))

    def _hides(self, name: str) -> bool:
        return any(pattern.match(name) for pattern in self._names)

    def within(self, name: str, value: Any, levels: int = _LEVELS) -> Any:
        """As `field`, and what a value has inside; of bytes, which may be a payload, only how many they are."""
        if self._hides(name.lower()):
            return MASK
        if isinstance(value, (Mapping, list, tuple)) and not levels:
            return "…"
        if isinstance(value, Mapping):
            return {inner: self.within(str(inner), each, levels - 1) for inner, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.within("", each, levels - 1) for each in value]
        if isinstance(value, _BYTES):
            return _fallback(value)
        return self.text(value) if isinstance(value, str) else value


class _Formatter(logging.Formatter):
    def __init__(self, common: Mapping[str, str], masking: Masking) -> None:
        super().__init__()
        self._common = common
        self._masking = masking

    def _message(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} (its arguments don't fit)"
        suppressed = getattr(record, _SUPPRESSED, 0)
        if suppressed:
            message += f" (and {suppressed} more like it)"
        return self._masking.text(clipped(message, MAX_MESSAGE))

    def _extras(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the caller gave as `extra`."""
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return {name: self._masking.within(name, value) for name, value in given.items() if not isinstance(value, Job)}

    def _stack(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return ""
        return self._masking.text(stack_of(record.exc_info[1]))


class Json(_Formatter):
    """One JSON object a line. The keys are listed in docs/operations.md; absent ones have nothing to say."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": instant(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._message(record),
            **self._common,
            "pid": record.process,
            "thread": record.threadName,
            **job_fields(getattr(record, _IN_HAND, None)),
            **self._extras(record),
            **self._error(record),
        }
        return _escaped_json(json.dumps(_plain(line), ensure_ascii=False, default=_fallback))

    def _error(self, record: logging.LogRecord) -> dict[str, str]:
        if not record.exc_info or record.exc_info[1] is None:
            return {}
        error = record.exc_info[1]
        return {
            "error.type": type(error).__qualname__,
            "error.message": self._masking.text(clipped(text_of(error), MAX_MESSAGE)),
            "error.stack": self._stack(record),
        }


class Text(_Formatter):
    """`2024-05-01T10:00:00.123Z WARNING streamjobs.worker.loop message job_id=… job_type=…`; a traceback is
    set off by bars."""

    def format(self, record: logging.LogRecord) -> str:
        job = {
            name: value
            for name, value in job_fields(getattr(record, _IN_HAND, None)).items()
            if name in _IN_TEXT
        }
        fields = " ".join(f"{name}={text_of(value)}" for name, value in (job | self._extras(record)).items())
        head = (
            f"{instant(record.created)} {record.levelname} {record.name} {self._message(record)} {fields}"
        )
        stack = [f"    | {escaped(line)}" for line in self._stack(record).splitlines()]
        return "\n".join([escaped(head.rstrip()), *stack])


_IN_TEXT = ("job_id", "job_type", "attempt")


def job_fields(job: Job | None) -> dict[str, Any]:
    """What a record says about the job in hand."""
    if job is None:
        return {}
    return {
        "job_id": job.id,
        "job_type": job.type,
        "queue": job.queue,
        "topic": job.topic,
        "partition": job.partition,
        "offset": job.offset,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        **_trace_fields(job),
    }


def _trace_fields(job: Job) -> dict[str, str]:
    """Those of the run's own span, where it has one, else the publisher's."""
    match = _TRACEPARENT.fullmatch(job.traceparent or job.headers.get("traceparent", b""))
    if match is None:
        return {}
    trace_id, span_id, flags = (part.decode() for part in match.groups())
    return {"trace_id": trace_id, "span_id": span_id, "trace_flags": flags}


def escaped(text: str) -> str:
    """Control characters as `\\n`, `\\x1b`: outside text neither forges a line nor steers a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _escaped_json(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, no keys but text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value


def _fallback(value: Any) -> str:
    """Bytes may be a payload: only how many they are."""
    if isinstance(value, _BYTES):
        return f"<{len(value)} bytes>"
    return clipped(text_of(value), MAX_MESSAGE)
