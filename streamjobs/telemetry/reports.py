"""What a worker process tells about itself every two seconds: one record of the compacted topic
`streamjobs.workers`.

Key = worker id; a worker that ends in order writes `stopped`. Counters are absolute, so that a lost report
loses nothing. `schemas/worker_report.avsc` is the contract, with the meaning of each field; a test holds this
module to it.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

from streamjobs.telemetry import wire
from streamjobs.telemetry.catalogue import METRICS
from streamjobs.telemetry.metrics import Snapshot

INTERVAL_S = 2.0
#: A worker that was not heard of for so long is gone: its jobs will be delivered again.
TTL_S = 10.0
#: So many running jobs are told one by one; `running_count` is right in any case.
MAX_RUNNING = 200
SCHEMA_VERSION = 1


class PartitionReport(TypedDict):
    topic: str
    topic_id: bytes
    partition: int
    base: int
    unfinished: int
    finished_beyond: int
    state: str


class LoopReport(TypedDict):
    name: str
    group: str
    turned_at: int
    partitions: list[PartitionReport]


class RunningReport(TypedDict):
    job_id: str
    job_type: str
    queue: str
    origin: str
    run: int
    attempt: int
    topic: str
    partition: int
    offset: int
    started_at: int
    deadline_at: int
    progress: str


class BreakerReport(TypedDict):
    job_type: str
    state: str
    until: int


class WorkerReport(TypedDict):
    """Instants in ms since the epoch; see the schema."""

    worker: str
    host: str
    pid: int
    slot: int
    app: str
    group: str
    version: str
    python: str
    state: str
    started_at: int
    at: int
    slots: int
    control_offset: int
    loops: list[LoopReport]
    running_count: int
    running: list[RunningReport]
    breakers: list[BreakerReport]
    alarms: list[str]
    metrics: Snapshot


def _record(name: str, /, **fields: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": n, "type": type_} for n, type_ in fields.items()],
    }


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_PARTITION = _record(
    "Partition",
    topic="string",
    topic_id="bytes",
    partition="int",
    base="long",
    unfinished="long",
    finished_beyond="long",
    state="string",
)
_LOOP = _record("Loop", name="string", group="string", turned_at="long", partitions=_array(_PARTITION))
_RUNNING = _record(
    "Running",
    job_id="string",
    job_type="string",
    queue="string",
    origin="string",
    run="int",
    attempt="int",
    topic="string",
    partition="int",
    offset="long",
    started_at="long",
    deadline_at="long",
    progress="string",
)
_BREAKER = _record("Breaker", job_type="string", state="string", until="long")
_VALUE = _record("Value", name="string", labels=_array("string"), value="double")
_HISTOGRAM = _record(
    "Histogram", name="string", labels=_array("string"), counts=_array("long"), total="double"
)

SCHEMA = _record(
    "WorkerReport",
    schema_version="int",
    worker="string",
    host="string",
    pid="long",
    slot="int",
    app="string",
    group="string",
    version="string",
    python="string",
    state="string",
    started_at="long",
    at="long",
    slots="int",
    control_offset="long",
    loops=_array(_LOOP),
    running_count="int",
    running=_array(_RUNNING),
    breakers=_array(_BREAKER),
    alarms=_array("string"),
    counters=_array(_VALUE),
    gauges=_array(_VALUE),
    histograms=_array(_HISTOGRAM),
)
SCHEMA["namespace"] = "streamjobs"

#: CRC-64-AVRO of `schemas/worker_report.avsc`, as it stands in a value.
FINGERPRINT = bytes.fromhex("1db35afd26b524f0")


def encode(report: WorkerReport) -> bytes:
    """A record's value. Raises ValueError naming the field that does not fit."""
    metrics = report["metrics"]
    histograms = [
        {"name": name, "labels": labels, "counts": counts, "total": total}
        for (name, labels), (counts, total) in metrics.histograms.items()
    ]
    value = {
        **report,
        "schema_version": SCHEMA_VERSION,
        "running": report["running"][:MAX_RUNNING],
        "counters": _values(metrics.counters),
        "gauges": _values(metrics.gauges),
        "histograms": histograms,
    }
    return wire.framed(FINGERPRINT, wire.encode(SCHEMA, value))


def _values(series: dict[tuple[str, tuple[str, ...]], float]) -> list[dict[str, Any]]:
    return [{"name": name, "labels": labels, "value": value} for (name, labels), value in series.items()]


def decode(value: bytes) -> WorkerReport:
    """Raises DecodeError for a damaged value, UnknownSchemaError for another version's; metrics we don't know
    are left out."""
    reader = wire.unframed(FINGERPRINT, value)
    found = wire.decode(SCHEMA, reader)
    reader.ended()
    del found["schema_version"]
    counters, gauges = _series(found.pop("counters")), _series(found.pop("gauges"))
    histograms = {
        (h["name"], tuple(h["labels"])): (tuple(h["counts"]), h["total"])
        for h in found.pop("histograms")
        if h["name"] in METRICS and len(h["counts"]) == len(METRICS[h["name"]].buckets) + 1
    }
    return cast(WorkerReport, {**found, "metrics": Snapshot(counters, histograms, gauges)})


def _series(values: list[dict[str, Any]]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(v["name"], tuple(v["labels"])): v["value"] for v in values if v["name"] in METRICS}
