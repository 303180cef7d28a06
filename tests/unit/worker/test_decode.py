"""Decoding a list: types, schemas and orders that take turns in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs import App
from streamjobs.avro.store import SchemaStore
from streamjobs.core.dispatch import Partition
from streamjobs.core.offsets import Tracker
from streamjobs.core.record import CONTENT_TYPE, FIXED, Record
from streamjobs.job import Job
from streamjobs.testing.log import MemoryMessage
from streamjobs.worker.decode import PARTITION_LANE, Decoder


def an_app(count: Any) -> App:
    app = App("shop")
    app.job(name="count", queue="mails", order="none")(count)
    return app


def earlier(n: int) -> None: ...


def count(n: int, by: int = 1) -> None: ...


def keyed(customer: str) -> None: ...


def in_line(n: int) -> None: ...


NOW, BEFORE = an_app(count), an_app(earlier)
NOW.job(name="keyed", queue="mails", key="customer")(keyed)
NOW.job(name="plain", queue="mails")(in_line)
NOW.job(name="in_line", queue="mails", order="partition")(in_line)
STORE = SchemaStore()
STORE.add(BEFORE.job_types["count"].payload.avro)
HOME = Partition("jobs.mails", 0, "mails", retry=False, topic_id=b"0" * 16, epoch=1, tracker=Tracker(0))

#: What is published: by which app, as which type, with which arguments; and what its job has.
PUBLISHED: dict[str, tuple[App, str, dict[str, Any], tuple[Any, ...], bytes | None]] = {
    "count": (NOW, "count", {"n": 3, "by": 2}, (3, 2), None),
    "an earlier schema": (BEFORE, "count", {"n": 4}, (4, 1), None),
    "keyed": (NOW, "keyed", {"customer": "c"}, ("c",), b"c"),
    "given a key by its publisher": (NOW, "plain", {"n": 6}, (6,), b"c"),
    "in line": (NOW, "in_line", {"n": 5}, (5,), PARTITION_LANE),
}


def message(what: str, offset: int) -> MemoryMessage:
    app, name, arguments, _, _ = PUBLISHED[what]
    values = (name.encode(), b"id-%d" % offset, b"1.0", b"shop", b"2026-07-29T12:00:00.000Z", CONTENT_TYPE)
    value = app.job_types[name].payload.encode(arguments)
    return MemoryMessage(Record(HOME.topic, value, b"c", list(zip(FIXED, values, strict=True))), 0, offset, (2, 1000))


@given(st.lists(st.sampled_from(sorted(PUBLISHED)), max_size=12))
def test_each_record_of_a_list_is_read_as_its_own_type_and_schema_says(published: list[str]) -> None:
    decoder = Decoder(NOW.job_types, STORE)
    decoder.decode(message("an earlier schema", 99), HOME)  # met once, the long way
    messages = [message(what, offset) for offset, what in enumerate(published)]
    jobs = decoder.decode_plain(messages, HOME)
    assert [(job.type, job.args, job.lane, job.id) for job in jobs] == [
        (name, args, lane, f"id-{offset}") for offset, (_, name, _, args, lane) in enumerate(PUBLISHED[what] for what in published)
    ]


def test_a_payload_of_another_type_than_its_header_says_is_not_run_as_either() -> None:
    """*Bites*: it is told by its schema alone, which is that of the record before it, and runs as a job of that one's type."""
    stranger = message("count", 1)
    stranger._headers = message("keyed", 1).headers()
    decoder = Decoder(NOW.job_types, STORE)
    assert len(decoder.decode_plain([message("count", 0), stranger], HOME)) == 1


def test_a_header_without_a_value_is_an_empty_one() -> None:
    """Publishers of another make write some. What bit: no log record could be written of a job whose `traceparent` was such a one."""
    stranger = message("count", 1)
    stranger._headers = [*(stranger.headers() or ()), ("traceparent", None)]
    job = Decoder(NOW.job_types, STORE).decode(stranger, HOME)
    assert isinstance(job, Job) and job.headers["traceparent"] == b""


@pytest.mark.parametrize(
    ("id_", "plain", "read"),
    [("jö-1".encode(), True, "jö-1"), (b"j\xff-1", False, "j\ufffd-1"), (b"", False, "jobs.mails@30303030/0/0"), (b"i" * 2000, False, None)],
    ids=["text", "no text", "none", "too long"],
)
def test_an_id_is_text_before_its_job_runs(id_: bytes, plain: bool, read: str | None) -> None:
    """Whoever asks for it asks in the middle of something: a job that runs, a letter that is written."""
    whole = message("count", 0)
    headers = [(name, id_ if name == "ce_id" else value) for name, value in whole.headers() or ()]
    record = MemoryMessage(Record(HOME.topic, whole.value(), None, headers), 0, 0, (2, 1000))
    decoder = Decoder(NOW.job_types, STORE)
    assert len(decoder.decode_plain([record], HOME)) == plain
    job = decoder.decode(record, HOME)
    assert (job.id if isinstance(job, Job) else None) == read
