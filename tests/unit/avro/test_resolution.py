"""Old jobs on new code: what is read, how, and what the checker says about it beforehand."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastavro import schemaless_reader, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from streamjobs.avro.codec import Payload
from streamjobs.avro.compatibility import findings
from streamjobs.avro.reader import reader
from streamjobs.avro.resolution import Mismatch, Resolution
from streamjobs.avro.schema import Schema
from streamjobs.avro.store import SchemaStore
from streamjobs.errors import DecodeError
from tests.unit.avro.avro_strategies import EXAMPLES, written
from tests.unit.avro.test_codec import handler


class Color(Enum):
    RED = "RED"
    BLUE = "BLUE"


class Paint(Enum):
    RED = "RED"
    GREEN = "GREEN"


class Address(BaseModel):
    street: str


class Place(BaseModel):
    """Address, renamed and grown."""

    street: str
    town: str = "Bonn"
    seen: list[int] = Field(default_factory=list)


class Needy(BaseModel):
    street: str
    town: str


READ: list[tuple[Any, Any, Any, Any]] = [
    (int, 7, float, 7.0),
    (int, 7, int | None, 7),
    (int | None, 7, int, 7),
    (int, 7, int | str, 7),
    (int, 7, float | str, 7.0),
    (str, "x", bytes, b"x"),
    (bytes, b"x", str, "x"),
    (Color, Color.RED, str, "RED"),
    (str, "RED", Color, Color.RED),
    (Color, Color.RED, Paint, Paint.RED),
    (UUID, UUID(int=7), str, str(UUID(int=7))),
    (str, str(UUID(int=7)), UUID, UUID(int=7)),
    (Decimal, Decimal("1.5"), str, "1.5"),
    (str, "1.5", Decimal, Decimal("1.5")),
    (list[int], [1], list[float], [1.0]),
    (list[int], [1, 1], set[int], {1}),
    (dict[str, int], {"a": 1}, dict[str, float | None], {"a": 1.0}),
    (Address, Address(street="x"), Place, Place(street="x")),
    (Place, Place(street="x", seen=[1]), Address, Address(street="x")),
    (list[Address | None], [Address(street="x"), None], list[Place | None], [Place(street="x"), None]),
    (Address, Address(street="x"), Place | int, Place(street="x")),
    (
        Annotated[Decimal, Field(max_digits=4, decimal_places=1)],
        Decimal("1.5"),
        Annotated[Decimal, Field(max_digits=6, decimal_places=3)],
        Decimal("1.5"),
    ),
]

REFUSED: list[tuple[Any, Any, Any, str, str]] = [
    (float, 1.5, int, "all", "it was double and is now long"),
    (int, 1, str, "all", "it was long and is now string"),
    (int | None, None, int, "some", "it was null and is now long"),
    (int | str, "x", int, "some", "it was string and is now long"),
    (int, 1, list[int], "all", "it was long and is now array"),
    (Color, Color.BLUE, Paint, "some", "it no longer has BLUE"),
    (str, "BLACK", Color, "some", "it was any text and is now one of RED, BLUE"),
    (int, 1, datetime, "all", "another meaning"),
    (timedelta, timedelta(1), int, "all", "another meaning"),
    (Address, Address(street="x"), Needy, "all", "it.town is new and has no default"),
    (list[Address], [Address(street="x")], list[Needy], "all", "it[].town is new"),
    (int, 1, str | bytes, "all", "it was long and is now one of string, bytes"),
]


def both(old: Any, new: Any) -> tuple[Payload, Payload, SchemaStore]:
    """A second parameter keeps a model from being the whole payload."""
    before, after = Payload(handler(it=old, n=(int, 1)), "job"), Payload(handler(it=new, n=(int, 1)), "job")
    store = SchemaStore()
    store.add(before.avro)
    return before, after, store


@pytest.mark.parametrize(("old", "value", "new", "expected"), READ)
def test_a_queued_job_runs_on_new_code(old: Any, value: Any, new: Any, expected: Any) -> None:
    before, after, store = both(old, new)

    found = after.decode(before.encode(before.bind((), {"it": value})), store)

    assert found == (expected, 1)
    assert type(found[0]) is type(expected)
    assert not [each for each in findings(before.avro, after.avro) if each.breaks == "all"]


@pytest.mark.parametrize(("old", "value", "new", "breaks", "said"), REFUSED)
def test_a_job_that_can_not_be_read_says_why_and_was_foretold(old: Any, value: Any, new: Any, breaks: str, said: str) -> None:
    before, after, store = both(old, new)
    found = findings(before.avro, after.avro)

    assert [(each.breaks, said in each.text) for each in found] == [(breaks, True)]
    assert "queued jobs can't be read" in str(found[0])
    with pytest.raises(DecodeError) as raised:
        after.decode(before.encode(before.bind((), {"it": value})), store)
    assert isinstance(raised.value.__cause__, Mismatch)


def test_parameters_come_go_and_move() -> None:
    old = Payload(handler(a=int, gone=list[Address], b=str), "job")
    new = Payload(handler(b=str, a=int, added=(int, 5)), "job")
    store = SchemaStore()
    store.add(old.avro)
    data = old.encode(old.bind((), {"a": 1, "gone": [{"street": "x"}], "b": "x"}))

    assert new.decode(data, store) == ("x", 1, 5)
    assert findings(old.avro, new.avro) == []


def test_a_new_parameter_without_a_default_is_foretold() -> None:
    old, new = Payload(handler(a=int), "job"), Payload(handler(a=int, b=str), "job")

    assert [(each.field, each.breaks) for each in findings(old.avro, new.avro)] == [("b", "all")]


def test_a_default_that_differs_on_every_call_is_made_on_every_call() -> None:
    counter = iter(range(100))

    class Counted(BaseModel):
        x: int
        number: int = Field(default_factory=lambda: next(counter))

    class Plain(BaseModel):
        x: int

    before, after, store = both(Plain, Counted)
    data = before.encode(before.bind((), {"it": {"x": 1}}))

    first, second = after.decode(data, store)[0], after.decode(data, store)[0]

    assert second.number == first.number + 1
    assert findings(before.avro, after.avro) == []


def test_models_inside_themselves_are_resolved() -> None:
    class Tree(BaseModel):
        name: str
        leaves: list[Tree] = []

    class Bush(BaseModel):
        name: str
        leaves: list[Bush] = []
        height: float = 1.0

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    Bush.model_rebuild(_types_namespace={"Bush": Bush})
    before, after, store = both(Tree, Bush)
    tree = Tree(name="a", leaves=[Tree(name="b", leaves=[Tree(name="c")])])

    bush, _ = after.decode(before.encode(before.bind((), {"it": tree})), store)

    assert bush == Bush(name="a", leaves=[Bush(name="b", leaves=[Bush(name="c")])])


@settings(max_examples=EXAMPLES, deadline=None)
@given(written())
def test_a_schema_resolved_with_itself_changes_nothing(pair: tuple[Any, Any]) -> None:
    schema = Schema.of(pair[0])
    data = bytes_of(schema, pair[1])
    resolution = Resolution(schema, schema)

    found = resolution.convert(reader(schema, as_dict=True, branches=True)(data))

    assert repr(found) == repr(reader(schema, as_dict=True)(data))
    assert resolution.problems == []
    assert findings(schema, schema) == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(flat=True), st.data())
def test_fields_are_resolved_as_fastavro_resolves_them(pair: tuple[Any, Any], data: st.DataObject) -> None:
    """Dropped, moved, promoted, and added with a default."""
    fields = [field for field in pair[0]["fields"] if data.draw(st.booleans())]
    promoted = [field | {"type": _promoted(field["type"])} for field in data.draw(st.permutations(fields))]
    added = {"name": "added", "type": ["string", "null"], "default": "new"}
    writer, new = Schema.of(pair[0]), Schema.of({"type": "record", "name": pair[0]["name"], "fields": [*promoted, added]})
    raw = bytes_of(writer, pair[1])

    found = Resolution(writer, new, fill=True).convert(reader(writer, as_dict=True, branches=True)(raw))

    expected = schemaless_reader(io.BytesIO(raw), writer.parsed, new.parsed, return_named_type=True)
    assert found == expected


def _promoted(kind: Any) -> Any:
    return {"int": "double", "long": "double", "float": "double"}.get(kind, kind) if isinstance(kind, str) else kind


def bytes_of(schema: Schema, value: Any) -> bytes:
    stream = io.BytesIO()
    schemaless_writer(stream, schema.parsed, value)
    return stream.getvalue()
