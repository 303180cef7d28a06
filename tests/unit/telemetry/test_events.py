from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import fastavro.schema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.projection import RANKS
from streamjobs.core.record import Meta
from streamjobs.errors import DecodeError, UnknownSchemaError
from streamjobs.telemetry import events
from streamjobs.telemetry.events import Event, EventBatch, Packet, decode, decode_batch

SCHEMAS = Path(__file__).parents[3] / "schemas"
SCHEMA = json.loads((SCHEMAS / "events.avsc").read_text())

Make = Callable[..., Any]


def only(packets: list[Packet]) -> bytes:
    (packet,) = packets
    return packet.value


def test_the_fingerprint_is_that_of_the_schema() -> None:
    canonical = fastavro.schema.to_parsing_canonical_form(SCHEMA)

    assert events.FINGERPRINT.hex() == fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")


def test_every_kind_has_a_rank_and_no_other() -> None:
    assert events.KINDS.keys() == RANKS.keys()


def test_a_finished_job_becomes_one_event_that_carries_its_start(job: Make) -> None:
    batch = EventBatch("host-1-0", "billing")
    batch.add([job()])

    assert decode(only(batch.take(1001.0))) == [
        Event(
            kind="succeeded",
            job_id="inv-7",
            job_type="send_invoice",
            queue="invoices",
            group="billing",
            origin="jobs.invoices@1f2e3d4c/3/70012",
            run=1,
            attempt=1,
            topic="jobs.invoices",
            partition=3,
            offset=70012,
            at=1000.75,
            started_at=1000.5,
            duration_s=0.25,
            wait_s=0.125,
            worker="host-1-0",
        )
    ]


def test_the_avro_library_reads_what_is_written(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add(
        [
            job(),
            job(outcome="dead", error_type="Timeout", error_message="30 s", reason="exhausted", attempt=8),
        ]
    )
    value = only(batch.take(1001.5))

    record: Any = fastavro.schemaless_reader(io.BytesIO(value[10:]), SCHEMA, None)

    assert record["taken_at"].timestamp() == 1001.5
    assert (record["rows"], record["sequence"], record["dropped"]) == (2, 1, 0)
    assert [shape["kind"] for shape in record["shapes"]] == ["succeeded", "dead"]
    assert record["details"][0]["row"] == 1
    assert record["ids"] == b"inv-7inv-7"


def test_what_the_avro_library_writes_is_read(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job(), job(raw_id="ü".encode())])
    value = only(batch.take(1001.5))
    record: Any = fastavro.schemaless_reader(io.BytesIO(value[10:]), SCHEMA, None)

    assert decode(value_of(record)) == decode(value)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": b"inv-"},
        {"id_lengths": b"\5"},
        {"id_lengths": b"\5\0\5\0"},
        {"origin_lengths": b"\1\0"},
        {"rows": 2},
        {"rows": 0},
        {"shape": b"\1\0\0\0"},
        {"shapes": []},
        {"offset": b""},
        {"started_s": b"\0" * 9},
        {"duration_s": b"\0" * 8},
        {"wait_s": b"\0"},
        {"rows": -1},
    ],
    ids=str,
)
def test_columns_that_do_not_fit_together_are_an_error(job: Make, change: dict[str, Any]) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job()])
    record: Any = fastavro.schemaless_reader(io.BytesIO(only(batch.take(0.0))[10:]), SCHEMA, None)

    with pytest.raises(DecodeError):
        decode(value_of(record | change))


def test_a_job_of_an_earlier_record_keeps_its_origin(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job(offset=1)])
    batch.add([job(meta=Meta("send_invoice", origin="jobs.invoices@aabbccdd/0/9"), run=2), job(offset=3)])

    assert [event.origin for event in decode(only(batch.take(0.0)))] == [
        "jobs.invoices@1f2e3d4c/3/1",
        "jobs.invoices@aabbccdd/0/9",
        "jobs.invoices@1f2e3d4c/3/3",
    ]


def test_failures_say_why_and_when_they_run_again(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add(
        [
            job(),
            job(outcome="retried", error_type="Timeout", error_message="bank\nis down", due_again=1234.5),
            job(outcome="rejected", reason="rejected", error_message="void"),
        ]
    )
    succeeded, retried, rejected = decode(only(batch.take(0.0)))

    assert (succeeded.error_type, succeeded.due) == ("", 0.0)
    assert (retried.error_type, retried.error_message, retried.due) == ("Timeout", "bank\nis down", 1234.5)
    assert (rejected.reason, rejected.error_message) == ("rejected", "void")


def test_a_running_job_is_told_as_started(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.started([job(outcome="", duration_s=0.0)])
    (event,) = decode(only(batch.take(1002.0)))

    assert (event.kind, event.at, event.duration_s) == ("started", 1000.5, 0.0)


def test_a_job_that_never_started_ended_when_the_batch_was_taken(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job(outcome="expired", started_at=0.0, duration_s=0.0)])

    assert decode(only(batch.take(1002.0)))[0].at == 1002.0


def test_a_replay_is_told_without_a_job_in_hand(job: Make) -> None:
    told = Event(
        "replayed",
        "inv-7",
        "send_invoice",
        "invoices",
        "billing",
        "jobs.invoices@aabbccdd/0/9",
        3,
        8,
        "jobs.invoices.billing.dlt",
        0,
        12,
        1002.0,
        reason="fixed",
        worker="w",
    )
    batch = EventBatch("w", "billing")
    batch.add([job()])
    batch.tell(told)
    batch.add([job()])

    assert decode(only(batch.take(1002.0)))[1] == told


@pytest.mark.parametrize(
    ("mode", "kinds"), [("all", ["succeeded", "dead", "started"]), ("failures", ["dead"]), ("off", [])]
)
def test_a_mode_leaves_out_what_it_says(job: Make, mode: events.Mode, kinds: list[str]) -> None:
    batch = EventBatch("w", "billing", mode)
    batch.add([job(), job(outcome="dead")])
    batch.started([job()])

    assert [event.kind for packet in batch.take(0.0) for event in decode(packet.value)] == kinds


def test_off_tells_nothing_at_all() -> None:
    batch = EventBatch("w", "billing", "off")
    batch.tell(Event("replayed", "", "", "", "", "", 1, 1, "", 0, 0, 0.0))

    assert batch.take(0.0) == []


def test_a_batch_begins_anew_when_it_is_taken(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job(raw_id=b"a")])
    first = batch.take(0.0)
    assert batch.take(0.0) == [] and len(batch) == 0
    batch.add([job(raw_id=b"b")])

    assert [event.job_id for event in decode(only(first))] == ["a"]
    assert [event.job_id for event in decode(only(batch.take(0.0)))] == ["b"]


def test_readers_see_that_a_batch_is_missing(job: Make) -> None:
    """Two ways: the sequence has a hole, and what was dropped is counted in the next one."""
    batch = EventBatch("w", "billing")
    batch.add([job()])
    lost = batch.take(0.0)
    batch.drop(sum(packet.events for packet in lost))
    batch.add([job()])

    seen = decode_batch(only(batch.take(0.0)))
    assert (seen.sequence, seen.dropped) == (2, 1)


@pytest.mark.parametrize("long_text", [False, True])
def test_a_batch_that_is_too_large_for_a_record_is_split(job: Make, long_text: bool) -> None:
    error = "x" * 900 if long_text else ""
    jobs = [job(raw_id=f"job-{n}".encode(), offset=n, attempt=n, outcome="dead", error_message=error) for n in range(100)]
    jobs[40].meta = Meta("send_invoice", origin="o")
    batch = EventBatch("w", "billing")
    batch.add(jobs)
    packets = batch.take(0.0, max_bytes=4000)

    assert all(len(packet.value) <= 4000 for packet in packets)
    assert [packet.events for packet in packets] == [len(decode(packet.value)) for packet in packets]
    told = [event for packet in packets for event in decode(packet.value)]
    assert [(e.job_id, e.attempt, e.error_message) for e in told] == [
        (f"job-{n}", n, error) for n in range(100)
    ]
    assert told[40].origin == "o"
    assert [decode_batch(packet.value).sequence for packet in packets] == list(range(1, len(packets) + 1))


def test_what_is_gathered_of_many_lists_is_told_in_their_order(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is gathered in several parts, each for a record of its own."""
    monkeypatch.setattr(events, "_FULL", 1_000)
    batch = EventBatch("w", "billing")
    for n in range(0, 60, 3):
        copy = job(raw_id=f"{n + 1}-ä".encode() * 9, offset=n + 1, meta=Meta("send_invoice", origin=f"o{n}"))
        batch.add([job(raw_id=f"{n}".encode(), offset=n), copy, job(raw_id=b"", offset=n + 2, outcome="dead", error_message=f"e{n}")])
    batch.tell(Event("replayed", "last", "", "", "", "o", 1, 1, "", 0, 60, 0.0))
    assert len(batch) == 61

    packets = batch.take(0.0)

    told = [event for packet in packets for event in decode(packet.value)]
    assert len(packets) == 3 and [event.offset for event in told] == list(range(61))
    assert [event.job_id for event in told] == [text for n in range(0, 60, 3) for text in (f"{n}", f"{n + 1}-ä" * 9, "")] + ["last"]
    assert [told[n + 1].origin for n in range(0, 60, 3)] == [f"o{n}" for n in range(0, 60, 3)]
    assert [told[n].origin for n in (0, 30, 57)] == [f"jobs.invoices@1f2e3d4c/3/{n}" for n in (0, 30, 57)]
    assert [event.error_message for event in told[2::3]] == [f"e{n}" for n in range(0, 60, 3)]


def test_one_event_is_sent_however_large(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.add([job(outcome="dead", error_message="x" * 5000)])
    (event,) = decode(only(batch.take(0.0, max_bytes=100)))

    assert len(event.error_message) <= 1024


@given(st.text(), st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_travels(error: str, ids: list[str]) -> None:
    batch = EventBatch("w", "billing")
    told = [
        Event(
            "dead",
            id_,
            "t",
            "q",
            "billing",
            "o" + id_,
            1,
            1,
            "jobs.q",
            0,
            0,
            0.0,
            error_message=error,
            worker="w",
        )
        for id_ in ids
    ]
    for event in told:
        batch.tell(event)

    assert decode(only(batch.take(0.0))) == told


def test_lone_surrogates_and_long_ids_do_not_break_a_batch(job: Make) -> None:
    batch = EventBatch("w", "billing")
    batch.tell(Event("replayed", "\ud800", "t", "q", "billing", "o", 1, 1, "jobs.q", 0, 0, 0.0))
    batch.add([job(raw_id=("ä" * 70_000).encode()), job(raw_id=b"last")])
    surrogate, long, last = decode(only(batch.take(0.0)))

    assert (surrogate.job_id, long.job_id[:3], last.job_id) == ("?", "äää", "last")
    assert 1000 < len(long.job_id.encode()) <= 1024


@given(st.data())
def test_a_damaged_value_is_an_error_or_other_events_but_never_anything_else(data: st.DataObject) -> None:
    batch = EventBatch("w", "billing")
    for n in range(3):
        batch.tell(Event("dead", f"{n}", "t", "q", "billing", "o", 1, 1, "jobs.q", 0, n, 0.0, worker="w"))
    value = bytearray(only(batch.take(0.0)))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(value)))

    for damaged in (bytes(value), bytes(value[:cut])):
        try:
            decode(damaged)
        except DecodeError:
            pass


def test_a_value_of_another_version_names_its_schema(job: Make) -> None:
    with pytest.raises(UnknownSchemaError):
        decode(b"\xc3\x01" + bytes(8) + b"...")


def test_the_example_is_what_it_says() -> None:
    example = json.loads((SCHEMAS / "examples" / "events.json").read_text())
    record = {
        name: text.encode("latin-1") if isinstance(text, str) else text
        for name, text in example["record"].items()
    }
    for name in ("worker", "group"):
        record[name] = record[name].decode()
    for shape in record["shapes"]:
        shape["topic_id"] = shape["topic_id"].encode("latin-1")

    assert [event._asdict() for event in decode(value_of(record))] == example["events"]


def value_of(record: dict[str, Any]) -> bytes:
    """A value as the Avro library writes it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, SCHEMA, record)
    return b"\xc3\x01" + events.FINGERPRINT + out.getvalue()


# --- in a transaction, which may be aborted -------------------------------------------------------------------------------


def told(packets: list[Packet]) -> list[tuple[int, str, str, str]]:
    """(number of the batch, origin, kind, reason) of each event."""
    batches = [decode_batch(packet.value) for packet in packets]
    return [(batch.sequence, event.origin, event.kind, event.reason) for batch in batches for event in batch.events]


def test_what_an_aborted_transaction_carried_is_gathered_still(job: Make) -> None:
    """The next one tells it under the same numbers; of the jobs that it was to settle it tells only if it settles them."""
    batch = EventBatch("host-1-0", "billing")
    batch.add([job(offset=1), job(offset=2, outcome="retried", reason="no", meta=Meta(job_type="send_invoice", origin="o", run=1))])
    first = batch.cut([job(offset=3, outcome="dead", reason="exhausted")], 1001.0)
    assert [event[1:] for event in told(first.packets)] == [
        ("jobs.invoices@1f2e3d4c/3/1", "succeeded", ""),
        ("o", "retried", "no"),
        ("jobs.invoices@1f2e3d4c/3/3", "dead", "exhausted"),
    ]
    assert first.events == 3

    batch.add([job(offset=4)])
    batch.put_back(first, lambda _: False)
    second = batch.cut([], 1002.0)

    assert told(second.packets) == [
        (1, "jobs.invoices@1f2e3d4c/3/1", "succeeded", ""),
        (1, "o", "retried", "no"),
        (1, "jobs.invoices@1f2e3d4c/3/4", "succeeded", ""),
    ]
    assert batch.take(1003.0) == []


def test_numbers_that_were_sent_are_not_used_again(job: Make) -> None:
    """A batch was sent while nobody knew what became of the one before it: that one's number stays a hole."""
    batch = EventBatch("host-1-0", "billing")
    batch.add([job(offset=1)])
    unanswered = batch.cut([], 1001.0)
    batch.add([job(offset=2)])
    assert [number for number, *_ in told(batch.take(1002.0))] == [2]

    batch.put_back(unanswered, lambda _: False)
    assert [number for number, *_ in told(batch.take(1003.0))] == [3]


@pytest.mark.parametrize("full", [events._FULL, 1])
def test_events_of_partitions_that_are_gone_are_forgotten(job: Make, full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several partitions, in any order, some with details: exactly those of the ones that are gone go."""
    monkeypatch.setattr(events, "_FULL", full)
    batch = EventBatch("host-1-0", "billing")
    for offset in range(12):
        queue = ("invoices", "mails", "reports")[offset % 3]
        batch.add([job(queue=queue, offset=offset, outcome="succeeded" if offset % 2 else "dead", reason="" if offset % 2 else str(offset))])
    batch.tell(Event("replayed", "x", "t", "q", "g", "origin", 1, 1, "topic", 0, 1, 0.0))

    batch.forget(lambda home: home.queue == "mails")
    kept = told(batch.take(1001.0))

    assert len(kept) == 9
    assert not any("mails" in origin for _, origin, _, _ in kept)
    assert {reason for _, _, kind, reason in kept if kind == "dead"} == {"0", "2", "6", "8"}
    assert kept[-1][1] == "origin"
