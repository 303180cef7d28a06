"""A job type that brings its own `.avsc` file."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from streamjobs.avro.codec import Payload
from streamjobs.avro.store import SchemaStore
from streamjobs.errors import DecodeError, JobTypeError, PayloadError
from tests.unit.avro.test_codec import NOON, handler, trip


class Color(Enum):
    RED = 1
    BLUE = 2


class Line(BaseModel):
    sku: str
    count: int = 1


class Opaque:
    pass


def avsc(folder: Path, *fields: tuple[str, Any] | dict[str, Any], name: str = "Invoice") -> str:
    path = folder / "invoice.avsc"
    made = [each if isinstance(each, dict) else {"name": each[0], "type": each[1]} for each in fields]
    path.write_text(json.dumps({"type": "record", "name": name, "namespace": "acme", "fields": made}))
    return str(path)


LINE = {"type": "record", "name": "Line", "fields": [{"name": "sku", "type": "string"}, {"name": "count", "type": "int"}]}
FITTED: list[tuple[Any, Any, Any]] = [
    ("int", int, 7),
    ("float", float, 1.5),
    (["null", "long"], int | None, None),
    (["null", "long"], int | None, 5),
    ("string", UUID, UUID(int=3)),
    ("string", Decimal, Decimal("1.50")),
    ("string", datetime, NOON),
    ({"type": "long", "logicalType": "timestamp-micros"}, datetime, NOON),
    ({"type": "long", "logicalType": "timestamp-millis"}, datetime, NOON.replace(microsecond=5000)),
    ({"type": "enum", "name": "Colour", "symbols": ["BLUE", "RED"]}, str, "RED"),
    ({"type": "array", "items": "int"}, set[int], {1, 2}),
    ({"type": "map", "values": ["null", "double"]}, dict[str, float | None], {"a": 1.0, "b": None}),
    (LINE, Line, Line(sku="x", count=3)),
    (["null", LINE], Line | None, Line(sku="x", count=3)),
    ({"type": "array", "items": ["string", LINE]}, list[str | Line], ["x", Line(sku="y")]),
    ({"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, Decimal, Decimal("12.50")),
    ("boolean", bool, True),
    ({"type": "fixed", "name": "Four", "size": 4}, bytes, b"abcd"),
]


@pytest.mark.parametrize(("kind", "annotation", "value"), FITTED)
def test_values_travel_as_the_file_says(tmp_path: Path, kind: Any, annotation: Any, value: Any) -> None:
    payload = Payload(handler(it=annotation, n=int), "job", avsc(tmp_path, ("n", "long"), ("it", kind)))

    found = trip(payload, it=value, n=1)

    assert found == (value, 1)
    assert type(found[0]) is type(value)
    assert payload.schema["name"] == "Invoice"


def test_a_field_that_is_no_parameter_is_written_with_its_default(tmp_path: Path) -> None:
    fields = [("a", "long"), {"name": "source", "type": ["string", "null"], "default": "shop"}, {"name": "at", "type": "bytes", "default": "\u00ff"}]
    payload = Payload(handler(a=int), "job", avsc(tmp_path, *fields))
    data = payload.encode({"a": 5})

    assert data[10:] == b"\x0a\x00\x08shop\x02\xff"
    assert payload.decode(data, SchemaStore()) == (5,)


def test_a_model_may_be_the_files_record(tmp_path: Path) -> None:
    payload = Payload(handler(line=Line), "job", avsc(tmp_path, ("sku", "string"), ("count", "int")))

    assert trip(payload, line={"sku": "x"}) == (Line(sku="x", count=1),)


def test_the_files_default_holds_for_older_jobs(tmp_path: Path) -> None:
    old = Payload(handler(a=int), "job", avsc(tmp_path, ("a", "long")))
    stamp = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 1_000_000}
    new = Payload(handler(a=int, at=datetime), "job", avsc(tmp_path, ("a", "long"), stamp))
    store = SchemaStore()
    store.add(old.avro)

    a, at = new.decode(old.encode({"a": 1}), store)

    assert (a, at.timestamp()) == (1, 1.0)


def test_a_renamed_field_keeps_its_alias(tmp_path: Path) -> None:
    old = Payload(handler(a=int), "job", avsc(tmp_path, ("a", "long")))
    new = Payload(handler(b=int), "job", avsc(tmp_path, {"name": "b", "type": "long", "aliases": ["a"]}))
    store = SchemaStore()
    store.add(old.avro)

    assert new.decode(old.encode({"a": 1}), store) == (1,)


def test_what_does_not_fit_the_file_is_refused_by_name(tmp_path: Path) -> None:
    payload = Payload(handler(a=int, b=str), "job", avsc(tmp_path, ("a", "int"), ("b", "int")))

    with pytest.raises(PayloadError, match="b can't be stored: a str is no int"):
        payload.encode(payload.bind((1, "x"), {}))
    with pytest.raises(PayloadError, match="a can't be stored"):
        Payload(handler(a=int), "job", avsc(tmp_path, ("a", "int"))).encode({"a": 2**40})
    with pytest.raises(PayloadError, match="a can't be stored: an int has at most 32 bits"):
        Payload(handler(a=list[int]), "job", avsc(tmp_path, ("a", {"type": "array", "items": "int"}))).encode({"a": [2**40]})


def test_what_does_not_fit_the_annotation_is_refused_when_it_is_run(tmp_path: Path) -> None:
    path = avsc(tmp_path, ("it", "string"))
    text, number = Payload(handler(it=str), "job", path), Payload(handler(it=int), "job", path)

    with pytest.raises(DecodeError, match="valid integer"):
        number.decode(text.encode({"it": "x"}), SchemaStore())


@pytest.mark.parametrize(
    ("fields", "annotations", "said"),
    [
        ([("a", "long")], {"a": int, "b": int}, "the parameter b is no field"),
        ([("a", "long"), ("b", "long")], {"a": int}, "field b is no parameter and has no default"),
        ([("sku", "string")], {"line": Line}, "the parameter count is no field"),
        ([("a", "nothing")], {"a": int}, "can't be used"),
    ],
)
def test_a_file_that_does_not_fit_the_handler_is_refused(tmp_path: Path, fields: Any, annotations: Any, said: str) -> None:
    with pytest.raises(JobTypeError, match=said):
        Payload(handler(**annotations), "job", avsc(tmp_path, *fields))


def test_a_file_that_is_missing_or_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobTypeError, match="can't be used"):
        Payload(handler(a=int), "job", str(tmp_path / "none.avsc"))
    path = tmp_path / "number.avsc"
    path.write_text('"int"')
    with pytest.raises(JobTypeError, match="is a int: a payload is a record"):
        Payload(handler(a=int), "job", str(path))


def test_a_relative_path_begins_at_the_handlers_module(tmp_path: Path) -> None:
    avsc(tmp_path, ("a", "long"))
    scope: dict[str, Any] = {}
    exec(compile("def fn(a: int) -> None: ...", str(tmp_path / "jobs.py"), "exec"), scope)

    assert Payload(scope["fn"], "job", "invoice.avsc").schema["name"] == "Invoice"
