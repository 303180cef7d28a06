"""Generated readers and writers against fastavro: the same values, and nothing accepted that no writer writes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fastavro import schemaless_reader, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from streamjobs.avro.logical import raw_of
from streamjobs.avro.reader import MAX_DEPTH, MAX_EMPTY_ITEMS, Malformed, long_at, long_bytes, reader, writer
from streamjobs.avro.schema import Schema
from tests.unit.avro.avro_strategies import EXAMPLES, written


def by_fastavro(schema: Schema, data: bytes) -> Any:
    stream = io.BytesIO(data)
    value = schemaless_reader(stream, schema.parsed, None, return_named_type=True)
    if stream.read(1):
        raise ValueError("bytes are left")
    return value


def bytes_of(schema: Schema, value: Any) -> bytes:
    stream = io.BytesIO()
    schemaless_writer(stream, schema.parsed, value)
    return stream.getvalue()


def attempt(read: Any, *arguments: Any) -> tuple[bool, Any]:
    try:
        return True, read(*arguments)
    except Exception as problem:  # noqa: BLE001  (any refusal will do)
        return False, problem


def same(left: Any, right: Any) -> bool:
    """Equal, with NaN equal to itself and 0.0 different from -0.0."""
    return repr(left) == repr(right)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(), st.binary(max_size=3))
def test_what_fastavro_writes_is_read_as_fastavro_reads_it(pair: tuple[Any, Any], head: bytes) -> None:
    schema, value = Schema.of(pair[0]), pair[1]
    data = bytes_of(schema, value)

    assert same(reader(schema, as_dict=True)(head + data, len(head)), by_fastavro(schema, data))
    assert same(reader(schema)(data), tuple(by_fastavro(schema, data).values()))


BORDERS = [sign * (2**bits + beside) for bits in (0, 6, 7, 13, 14, 20, 21, 27, 30) for beside in (-1, 0, 1) for sign in (1, -1)]


@pytest.mark.parametrize("kind", ["int", "long"])
def test_numbers_are_read_at_the_borders_of_their_bytes(kind: str) -> None:
    """Each byte has seven bits, one of which is the sign."""
    schema = Schema.of({"type": "record", "name": "r", "fields": [{"name": "n", "type": kind}]})
    read = reader(schema)
    for number in BORDERS:
        assert read(bytes_of(schema, {"n": number})) == (number,)


@pytest.mark.parametrize("kind", ["string", "bytes"])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128, 8_191, 8_192])
def test_texts_are_read_at_the_borders_of_their_lengths(kind: str, length: int) -> None:
    schema = Schema.of({"type": "record", "name": "r", "fields": [{"name": "t", "type": kind}]})
    text = "a" * length if kind == "string" else b"a" * length
    assert reader(schema)(bytes_of(schema, {"t": text})) == (text,)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(), st.data())
def test_a_truncated_value_is_refused(pair: tuple[Any, Any], data: st.DataObject) -> None:  # edge 61
    schema = Schema.of(pair[0])
    whole = bytes_of(schema, pair[1])
    cut = whole[: data.draw(st.integers(0, max(0, len(whole) - 1)))]
    if cut == whole:
        return

    read, found = attempt(reader(schema), cut)

    assert not read, found


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(), st.binary(min_size=1, max_size=4))
def test_bytes_left_over_are_refused(pair: tuple[Any, Any], more: bytes) -> None:  # edge 61
    schema = Schema.of(pair[0])

    with pytest.raises(Exception):  # noqa: B017  (which one depends on the schema)
        reader(schema)(bytes_of(schema, pair[1]) + more)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(), st.data())
def test_damaged_bytes_are_read_as_fastavro_reads_them_or_refused(pair: tuple[Any, Any], data: st.DataObject) -> None:
    """What fastavro refuses is refused; what is read, is what fastavro reads. Where fastavro alone reads it, writing its value
    gives other bytes: no writer has written these."""
    schema = Schema.of(pair[0])
    whole = bytearray(bytes_of(schema, pair[1]))
    for _ in range(data.draw(st.integers(1, 3)) if whole else 0):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole)

    ours, found = attempt(reader(schema, as_dict=True), damaged)
    theirs, expected = attempt(by_fastavro, schema, damaged)

    if ours:
        assert theirs, expected
        assert same(found, expected)
    elif theirs:
        wrote, again = attempt(bytes_of, schema, expected)
        assert not wrote or again != damaged, (found, expected)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(flat=True), st.binary(max_size=60))
def test_random_bytes_end_in_a_value_or_a_refusal(pair: tuple[Any, Any], noise: bytes) -> None:  # edge 61
    schema = Schema.of(pair[0])

    ours, found = attempt(reader(schema, as_dict=True), noise)
    theirs, expected = attempt(by_fastavro, schema, noise)

    if ours:
        assert theirs, expected
        assert same(found, expected)


@settings(max_examples=EXAMPLES, deadline=None)
@given(written(flat=True))
def test_a_flat_record_is_written_as_fastavro_writes_it(pair: tuple[Any, Any]) -> None:
    schema, value = Schema.of(pair[0]), pair[1]
    plain = {name: each[1] if isinstance(each, tuple) else each for name, each in value.items()}
    write = writer(schema, b"head", {})
    if write is None:
        kinds = [each for field in schema.parsed["fields"] for each in _members(field["type"])]
        assert "fixed" in kinds
        return

    assert write(plain) == b"head" + bytes_of(schema, value)


def _members(schema: Any) -> list[str]:
    branches = schema if isinstance(schema, list) else [schema]
    return [each if isinstance(each, str) else each["type"] for each in branches]


NODE = Schema.of({"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]})


def test_a_record_inside_itself_is_read_to_a_bound() -> None:  # edge 61
    """fastavro recurses in C for every 02 until the process dies; a worker must outlive its records."""
    read = reader(NODE, as_dict=True)

    assert read(b"\x02\x02\x00") == {"next": ("Node", {"next": ("Node", {"next": None})})}
    with pytest.raises(Malformed, match="nested too deeply"):
        read(b"\x02" * 1_000_000 + b"\x00")
    with pytest.raises(Malformed, match="nested too deeply"):
        read(b"\x02" * (MAX_DEPTH + 1) + b"\x00")


@pytest.mark.parametrize("items", ["null", {"type": "record", "name": "Empty", "fields": []}])
def test_items_that_take_no_bytes_are_bounded(items: Any) -> None:
    """Otherwise ten bytes fill the memory."""
    read = reader(Schema.of({"type": "array", "items": items}))

    assert len(read(long_bytes(MAX_EMPTY_ITEMS) + b"\x00")) == MAX_EMPTY_ITEMS
    with pytest.raises(Malformed, match="too many empty items"):
        read(long_bytes(2**60) + b"\x00")
    with pytest.raises(Malformed, match="too many empty items"):
        read((long_bytes(MAX_EMPTY_ITEMS) * 2) + b"\x00")


def test_an_array_of_what_contains_itself_without_end_is_never_read() -> None:
    endless = {"type": "record", "name": "Endless", "fields": [{"name": "next", "type": "Endless"}]}
    read = reader(Schema.of({"type": "array", "items": endless}))

    assert read(b"\x00") == []
    with pytest.raises(Malformed, match="nested too deeply"):
        read(b"\x02\x00")


def test_an_array_of_records_that_are_referred_to_may_be_long() -> None:
    point = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "int"}]}
    fields = [{"name": "first", "type": point}, {"name": "rest", "type": {"type": "array", "items": "Point"}}]
    schema = Schema.of({"type": "record", "name": "Line", "fields": fields})
    long = MAX_EMPTY_ITEMS + 1

    first, rest = reader(schema)(b"\x02" + long_bytes(long) + b"\x02" * long + b"\x00")

    assert first == {"x": 1}
    assert len(rest) == long


TEXT_THEN_NUMBER = {
    "type": "record",
    "name": "TextThenNumber",
    "fields": [{"name": "text", "type": "string"}, {"name": "number", "type": "int"}],
}


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (TEXT_THEN_NUMBER, b"\x01"),
        ("string", b"\x03a"),
        ("string", b"\x06ab"),
        ("bytes", b"\x06ab"),
        ("string", long_bytes(2**62) + b"abc"),
        (["null", "string"], b"\x01\x02a"),
        (["null", "string"], b"\x04"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, b"\x01"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, b"\x04"),
        ("boolean", b"\x02"),
        ("long", b"\xff" * 10 + b"\x01"),
        ("long", b"\xff" * 9 + b"\x02"),
        ("int", long_bytes(2**31)),
        ("string", b"\x02\xff"),
    ],
)
def test_what_no_writer_writes_is_refused(schema: Any, data: bytes) -> None:
    """fastavro reads most of these as something."""
    with pytest.raises((ValueError, IndexError)):
        reader(Schema.of(schema))(data)


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_long_is_read_as_it_was_written(number: int) -> None:
    data = long_bytes(number)

    assert long_at(data, 0) == (number, len(data))
    assert data == bytes_of(Schema.of("long"), number)


#: Where a varint gets longer by a byte, and around it.
EDGES = sorted({sign * (2**bits + step) for bits in (0, 6, 7, 13, 14, 20, 21, 27, 30) for step in (-1, 0, 1) for sign in (1, -1)})


@pytest.mark.parametrize("kind", ["int", "long", ["null", "long"]])
def test_whole_numbers_of_all_lengths_are_written_as_fastavro_writes_them(kind: Any) -> None:
    schema = Schema.of({"type": "record", "name": "r", "fields": [{"name": "n", "type": kind}]})
    write = writer(schema, b"", {})
    assert write is not None
    for number in EDGES:
        assert write({"n": number}) == bytes_of(schema, {"n": number}), number


@pytest.mark.parametrize("kind", ["string", "bytes", ["null", "string"], ["bytes", "null"]])
def test_texts_of_all_lengths_are_written_as_fastavro_writes_them(kind: Any) -> None:
    schema = Schema.of({"type": "record", "name": "r", "fields": [{"name": "a", "type": kind}, {"name": "b", "type": kind}]})
    write = writer(schema, b"head", {})
    assert write is not None
    for length in (0, 1, 63, 64, 8191, 8192):
        value = b"x" * length if "bytes" in kind else "ü" * (length // 2)
        assert write({"a": value, "b": value}) == b"head" + bytes_of(schema, {"a": value, "b": value}), length


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**70])
def test_a_number_beyond_64_bits_is_not_written(number: int) -> None:
    with pytest.raises(OverflowError):
        long_bytes(number)


def test_fields_are_converted_where_asked() -> None:
    schema = Schema.of({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "int"}]})

    assert reader(schema, {"b": str})(b"\x02\x04") == (1, "2")
    assert reader(schema, {"b": str}, as_dict=True)(b"\x02\x04") == {"a": 1, "b": "2"}


def test_branches_are_told_by_number_where_asked() -> None:
    assert reader(Schema.of(["null", "string"]), branches=True)(b"\x02\x02x") == (1, "x")


def test_decimals_that_do_not_fit_are_not_written() -> None:
    from decimal import Decimal

    raw = raw_of({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2})
    assert raw is not None
    assert raw(Decimal("-12.5")) == (-1250).to_bytes(2, "big", signed=True)
    for wrong in ("1.234", "123.45", "100"):
        with pytest.raises(ValueError, match="it has more than"):
            raw(Decimal(wrong))
