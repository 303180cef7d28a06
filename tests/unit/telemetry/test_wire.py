from __future__ import annotations

import io

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.errors import DecodeError, UnknownSchemaError
from streamjobs.telemetry import wire

SCHEMA = {
    "type": "record",
    "name": "Everything",
    "fields": [
        {"name": "number", "type": "long"},
        {"name": "real", "type": "double"},
        {"name": "flag", "type": "boolean"},
        {"name": "words", "type": {"type": "array", "items": "string"}},
        {"name": "raw", "type": "bytes"},
        {"name": "named", "type": {"type": "map", "values": "int"}},
        {"name": "maybe", "type": ["null", "string"]},
    ],
}
values = st.fixed_dictionaries(
    {
        "number": st.integers(-(2**63), 2**63 - 1),
        "real": st.floats(allow_nan=False),
        "flag": st.booleans(),
        "words": st.lists(st.text()),
        "raw": st.binary(),
        "named": st.dictionaries(st.text(), st.integers(-(2**31), 2**31 - 1)),
        "maybe": st.none() | st.text(),
    }
)


@given(values)
def test_values_are_what_the_avro_library_writes_and_reads(value: dict[str, object]) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, SCHEMA, value)

    written = wire.encode(SCHEMA, value)
    reader = wire.Reader(written)

    assert fastavro.schemaless_reader(io.BytesIO(written), SCHEMA, None) == value
    assert wire.decode(SCHEMA, wire.Reader(out.getvalue())) == value
    assert wire.decode(SCHEMA, reader) == value
    reader.ended()


@given(values, st.data())
def test_a_value_that_is_cut_short_is_an_error(value: dict[str, object], data: st.DataObject) -> None:
    written = wire.encode(SCHEMA, value)
    cut = data.draw(st.integers(0, len(written) - 1))

    with pytest.raises(DecodeError):
        wire.decode(SCHEMA, wire.Reader(written[:cut]))


@given(st.binary())
def test_garbage_is_an_error_or_a_value_but_never_anything_else(garbage: bytes) -> None:
    try:
        wire.decode(SCHEMA, wire.Reader(garbage))
    except DecodeError:
        pass


def test_a_block_with_its_size_is_read() -> None:
    """Other writers put a negative count and the block's size in bytes."""
    reader = wire.Reader(wire.long(-2) + wire.long(4) + wire.text("a") + wire.text("b") + b"\0")

    assert reader.array(reader.text) == ["a", "b"]


def test_a_hostile_count_of_items_without_bytes_ends() -> None:
    with pytest.raises(DecodeError, match="without bytes"):
        wire.Reader(wire.long(10**12) + b"\0").array(lambda: None)


def test_a_number_that_never_ends_is_an_error() -> None:
    with pytest.raises(DecodeError, match="more than ten bytes"):
        wire.Reader(b"\xff" * 20).long()


def test_what_follows_a_value_is_an_error() -> None:
    with pytest.raises(DecodeError, match="1 bytes follow"):
        wire.Reader(b"\0").ended()


def test_a_frame_says_which_schema_it_was_written_with() -> None:
    fingerprint = bytes(range(8))
    framed = wire.framed(fingerprint, b"\2")

    assert wire.unframed(fingerprint, framed).long() == 1
    with pytest.raises(UnknownSchemaError, match="upgrade") as raised:
        wire.unframed(bytes(8), framed)
    assert raised.value.fingerprint == fingerprint
    with pytest.raises(DecodeError, match="not an Avro single object"):
        wire.unframed(fingerprint, b'{"json": 1}')


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="field number"):
        wire.encode(SCHEMA, {})
