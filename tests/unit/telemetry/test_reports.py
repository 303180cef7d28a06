from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import fastavro.schema
import pytest

from streamjobs.errors import DecodeError, UnknownSchemaError
from streamjobs.telemetry import reports
from streamjobs.telemetry.metrics import Metrics, Snapshot, merge
from streamjobs.telemetry.reports import MAX_RUNNING, WorkerReport, decode, encode

SCHEMAS = Path(__file__).parents[3] / "schemas"
SCHEMA = json.loads((SCHEMAS / "worker_report.avsc").read_text())


def bare(schema: Any, named: dict[str, Any]) -> Any:
    """A schema without docs and logical types, and with every record written out."""
    if isinstance(schema, list):
        return [bare(branch, named) for branch in schema]
    if not isinstance(schema, dict):
        return named.get(schema, schema)
    kind = schema["type"]
    if kind == "record":
        fields = [{"name": field["name"], "type": bare(field["type"], named)} for field in schema["fields"]]
        named[schema["name"]] = {"type": "record", "name": schema["name"], "fields": fields}
        return named[schema["name"]]
    if kind == "array":
        return {"type": "array", "items": bare(schema["items"], named)}
    return bare(kind, named)


def example() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "examples" / "worker_report.json").read_text())
    for loop in found["loops"]:
        for partition in loop["partitions"]:
            partition["topic_id"] = bytes.fromhex(partition["topic_id"])
    return found


def report(**changes: Any) -> WorkerReport:
    found = example()
    counters, gauges, histograms = found.pop("counters"), found.pop("gauges"), found.pop("histograms")
    metrics = Snapshot(
        {(c["name"], tuple(c["labels"])): c["value"] for c in counters},
        {(h["name"], tuple(h["labels"])): (tuple(h["counts"]), h["total"]) for h in histograms},
        {(g["name"], tuple(g["labels"])): g["value"] for g in gauges},
    )
    return {**found, "metrics": metrics, **changes}  # type: ignore[typeddict-item]


def test_the_code_writes_what_the_schema_says() -> None:
    canonical = fastavro.schema.to_parsing_canonical_form(SCHEMA)

    assert bare(SCHEMA, {}) == bare(reports.SCHEMA, {})
    assert reports.FINGERPRINT.hex() == fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")


def test_the_avro_library_reads_a_report() -> None:
    found: Any = fastavro.schemaless_reader(io.BytesIO(encode(report())[10:]), SCHEMA, None)

    assert found["running"][0]["job_id"] == "inv-7"
    assert found["counters"] == example()["counters"]
    assert found["schema_version"] == 1


def test_a_report_comes_back_as_it_was() -> None:
    assert decode(encode(report())) == report()


def test_reported_metrics_can_be_added_up() -> None:
    metrics = Metrics("billing")
    metrics.count("commits_total", "billing", "ok", by=3)
    metrics.time("commit_duration_seconds", 0.1, "billing")
    back = decode(encode(report(metrics=metrics.snapshot())))["metrics"]

    assert merge([back, back]).counters == {("commits_total", ("billing", "ok")): 6}


def test_metrics_that_only_another_version_knows_are_left_out() -> None:
    newer = Snapshot(
        {("new_total", ()): 1.0},
        {("commit_duration_seconds", ("billing",)): ((1, 2), 0.5)},
        {("new", ()): 1.0},
    )

    assert decode(encode(report(metrics=newer)))["metrics"] == Snapshot({}, {}, {})


def test_running_jobs_are_told_up_to_a_bound() -> None:
    many = [report()["running"][0]] * (MAX_RUNNING + 50)
    back = decode(encode(report(running=many, running_count=len(many))))

    assert (len(back["running"]), back["running_count"]) == (MAX_RUNNING, MAX_RUNNING + 50)


def test_a_field_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="field slots"):
        encode(report(slots="many"))


def test_damaged_and_foreign_values_are_errors() -> None:
    value = encode(report())

    with pytest.raises(DecodeError):
        decode(value[:-1])
    with pytest.raises(DecodeError):
        decode(value + b"x")
    with pytest.raises(UnknownSchemaError):
        decode(value[:2] + bytes(8) + value[10:])


def test_the_examples_of_json_values_are_what_their_readers_read() -> None:
    from streamjobs.core.control import Desired

    desired = Desired()
    orders = json.loads((SCHEMAS / "examples" / "control.json").read_text())
    for offset, order in enumerate(orders):
        desired.apply(order["key"], json.dumps(order["value"]).encode(), offset, 1714557600.2)

    assert len(orders) > 3 and not desired.unreadable
    assert desired.cancelled("billing", "inv-7", 1714557600.0, 1714557601.0)


@pytest.mark.parametrize("name", ["control", "audit"])
def test_examples_have_only_fields_that_their_contract_names(name: str) -> None:
    contract = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    found = json.loads((SCHEMAS / "examples" / f"{name}.json").read_text())
    values = [order["value"] for order in found] if name == "control" else [found]

    for value in values:
        assert set(contract["required"]) <= value.keys() <= contract["properties"].keys()
