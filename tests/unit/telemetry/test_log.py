from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from streamjobs.job import CURRENT, Job
from streamjobs.telemetry import log

ours = logging.getLogger("streamjobs.test")
theirs = logging.getLogger("billing")


@dataclass
class InHand:
    """What log lines read of the job in hand."""

    id: str = "inv-7"
    type: str = "send_invoice"
    queue: str = "invoices"
    topic: str = "jobs.invoices"
    partition: int = 3
    offset: int = 70012
    attempt: int = 2
    max_attempts: int = 8
    headers: dict[str, bytes] = field(default_factory=dict)
    traceparent: bytes = b""

    @property
    def current(self) -> InHand:
        """It stands for the chunk that runs it, too."""
        return self


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.now = 0.0

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


Configure = Callable[..., Lines]


@pytest.fixture
def configure() -> Iterator[Configure]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level

    def make(format: log.Format, **options: Any) -> Lines:
        root.handlers[:] = [handler for handler in root.handlers if handler not in before]
        lines = Lines()
        log.configure(format, stream=lines.stream, clock=lambda: lines.now, **options)
        return lines

    yield make
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def in_hand() -> Iterator[InHand]:
    job = InHand()
    token = CURRENT.set(cast(Job, job))
    yield job
    CURRENT.reset(token)


def test_a_json_line_has_the_documented_keys(configure: Configure) -> None:
    lines = configure("json", service="billing", version="0.1", worker="host-1-0", group="billing")
    ours.warning("queue %s is paused", "invoices", extra={"event": "queue_paused"})
    (line,) = lines.objects

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line.pop("pid") > 0
    assert line == {
        "level": "warning",
        "logger": "streamjobs.test",
        "message": "queue invoices is paused",
        "event": "queue_paused",
        "service": "billing",
        "version": "0.1",
        "worker_id": "host-1-0",
        "group": "billing",
        "thread": "MainThread",
    }


def test_a_line_says_which_job_was_in_hand(configure: Configure, in_hand: InHand) -> None:
    in_hand.headers["traceparent"] = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    lines = configure("json")
    theirs.info("mailed")
    (line,) = lines.objects

    assert (line["job_id"], line["job_type"], line["attempt"], line["offset"]) == (
        "inv-7",
        "send_invoice",
        2,
        70012,
    )
    assert (line["trace_id"], line["span_id"], line["trace_flags"]) == ("a" * 32, "b" * 16, "01")


def test_a_line_belongs_to_the_span_of_the_run(configure: Configure, in_hand: InHand) -> None:
    """*Bites*: a run in a trace of its own logged the publisher's, in which nobody finds its lines."""
    in_hand.headers["traceparent"] = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    in_hand.traceparent = b"00-" + b"c" * 32 + b"-" + b"d" * 16 + b"-01"
    lines = configure("json")
    theirs.info("mailed")
    (line,) = lines.objects

    assert (line["trace_id"], line["span_id"]) == ("c" * 32, "d" * 16)


def test_without_a_job_a_line_says_nothing_of_one(configure: Configure) -> None:
    lines = configure("json")
    theirs.info("started")

    assert "job_id" not in lines.objects[0]


def test_a_text_line_is_for_people(configure: Configure, in_hand: InHand) -> None:
    lines = configure("text")
    ours.error("mailed nothing", extra={"wait_ms": 12})

    assert re.fullmatch(
        r"\S+Z ERROR streamjobs\.test mailed nothing "
        r"job_id=inv-7 job_type=send_invoice attempt=2 wait_ms=12\n",
        lines.text,
    )


def test_an_error_has_type_message_and_stack(configure: Configure) -> None:
    lines = configure("json")
    try:
        raise KeyError("customer\n{")
    except KeyError:
        ours.exception("failed")
    (line,) = lines.objects

    assert (line["error.type"], line["error.message"]) == ("KeyError", "'customer\\n{'")
    assert line["error.stack"].startswith("Traceback")


FORGED = "x\n2024-05-01T10:00:00.000Z INFO root all is well\x1b[2J\x9b1m\u2028\u202e\r"


def test_text_from_outside_can_not_forge_a_line(configure: Configure, in_hand: InHand) -> None:
    in_hand.id = FORGED
    lines = configure("text")
    try:
        raise ValueError(FORGED)
    except ValueError:
        ours.exception("got %s", FORGED, extra={"actor": FORGED})

    head, *stack = lines.text.splitlines()
    assert "ERROR" in head and head.count("\\n2024-05-01") == 3
    assert stack and all(line.startswith("    | ") for line in stack)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", lines.text)


def test_a_json_line_is_one_line_without_controls(configure: Configure) -> None:
    lines = configure("json")
    ours.info("got %s", FORGED)

    assert lines.text.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", lines.text)
    assert json.loads(lines.text)["message"] == f"got {FORGED}"


def test_what_json_can_not_hold_is_written_all_the_same(configure: Configure) -> None:
    lines = configure("json")
    fields = {"nan": float("nan"), "keys": {1: float("inf")}, "set": {1}, "odd": object, "half": "\ud800"}
    ours.info("odd", extra=fields)
    (line,) = lines.objects

    assert (line["nan"], line["keys"], line["set"], line["half"]) == ("nan", {"1": "inf"}, [1], "?")


@pytest.mark.parametrize("format", ["text", "json"])
def test_bytes_may_be_a_payload_and_are_not_written(configure: Configure, format: log.Format) -> None:
    lines = configure(format)
    ours.info("refused", extra={"value": b"secret payload"})

    assert "secret" not in lines.text and "<14 bytes>" in lines.text


@pytest.mark.parametrize("format", ["text", "json"])
def test_masked_names_hide_their_values_everywhere(configure: Configure, format: log.Format) -> None:
    lines = configure(format, mask=["*password*", "*token*", "*authorization*"])
    try:
        raise ValueError("db_password=hunter2 refused")
    except ValueError:
        ours.exception(
            "with %s and %s, Authorization: Bearer hunter2",
            {"api_token": "hunter2", "id": 7},
            "PASSWORD = 'hunter2 b'",
            extra={"sasl.password": "hunter2"},
        )

    assert "hunter2" not in lines.text
    assert "'id': 7" in lines.text


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_is_masked_may_lie_deep_and_be_cut_off(configure: Configure, format: log.Format) -> None:
    lines = configure(format, mask=["*password*", "*token*"])
    itself: dict[str, Any] = {"password": "hunter2"}
    itself["again"] = [itself]
    ours.info(
        """{"password": "a\\"hunter2"} token: ['hunter2', 'hunter2'] user: token=hunter2, password='hunter2 and the end is miss""",
        extra={"login": {"password": "hunter2", "raw": [b"hunter2"]}, "url": "?token=hunter2", "itself": itself},
    )

    assert "hunter2" not in lines.text
    assert "the end" not in lines.text


@pytest.mark.parametrize("text", ["password" * 1000, "token-" * 1000, "a" * 8000, "password" + " " * 8000, "'" * 8000])
def test_looking_for_secrets_takes_no_time(text: str) -> None:
    """*Bites*: the message of an error is "password" 250 times; its worker, and whoever lists its letter, looked through it for 11 s."""
    began = time.process_time()
    log.Masking(["*password*", "*secret*", "*token*", "*authorization*"]).text(text)

    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_users_own_job_is_no_job_of_ours(configure: Configure, format: log.Format, in_hand: InHand) -> None:
    """*Bites*: `extra={"job": …}` raised inside of logging, and the line was lost."""
    lines = configure(format)
    theirs.info("mailed", extra={"job": "nightly", "suppressed": "no"})

    assert "nightly" in lines.text and "inv-7" in lines.text
    assert "more like it" not in lines.text


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_has_no_text_loses_no_line(configure: Configure, format: log.Format) -> None:
    lines = configure(format)
    try:
        raise _Mute
    except _Mute as error:
        ours.exception("it failed", extra={"why": error})

    assert "it failed" in lines.text and "_Mute" in lines.text


@pytest.mark.parametrize("format", ["text", "json"])
def test_of_a_long_traceback_the_end_is_shown(configure: Configure, format: log.Format) -> None:
    lines = configure(format)
    words = ["begin", "x" * 20_000, "end", "of", "it"]
    try:
        raise ValueError(" ".join(words))
    except ValueError:
        ours.exception("it failed")

    shown = lines.objects[0]["error.stack"] if format == "json" else lines.text
    assert "end of it" in shown
    assert len(lines.text) < 20_000


def test_arguments_that_do_not_fit_lose_no_line(configure: Configure) -> None:
    lines = configure("text")
    ours.info("%d jobs", "seven")

    assert "%d jobs (its arguments don't fit)" in lines.text


def test_long_text_is_cut(configure: Configure) -> None:
    lines = configure("json")
    ours.info("x" * 10_000)

    assert len(lines.objects[0]["message"].encode()) <= log.MAX_MESSAGE


def test_repeats_are_counted_and_told_with_the_next_one(configure: Configure) -> None:
    lines = configure("text")
    for n in range(log.BURST + 30):
        ours.warning("broker %d is away", n)
    assert len(lines.text.splitlines()) == log.BURST

    ours.warning("something else")
    assert len(lines.text.splitlines()) == log.BURST + 1

    lines.now = log.BURST_S
    ours.warning("broker %d is away", 1)
    assert lines.text.endswith("broker 1 is away (and 30 more like it)\n")


def test_a_users_own_lines_are_never_left_out(configure: Configure) -> None:
    lines = configure("text")
    for _ in range(log.BURST + 30):
        theirs.info("mailed")

    assert len(lines.text.splitlines()) == log.BURST + 30


def test_the_level_holds_and_a_second_call_replaces_the_first(configure: Configure) -> None:
    first = configure("text")
    second = configure("text", level="warning")
    ours.info("quiet")
    ours.warning("loud")

    assert first.text == ""
    assert len(second.text.splitlines()) == 1


def test_importing_sets_nothing_up() -> None:
    assert not any(isinstance(handler, log._Handler) for handler in logging.getLogger().handlers)
