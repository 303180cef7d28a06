"""Canonical form and fingerprint, against the specification's vectors and fastavro."""

from __future__ import annotations

from typing import Any

import fastavro.schema
import pytest
from hypothesis import given, settings

from streamjobs.avro.schema import Schema, fingerprint
from tests.unit.avro.avro_strategies import EXAMPLES, written

# The Avro project's share/test/data/schema-tests.txt and its Java constants.
VECTORS = {
    "null": 7195948357588979594,
    "boolean": -6970731678124411036,
    "int": 8247732601305521295,
    "long": -3434872931120570953,
    "float": 5583340709985441680,
    "double": -8181574048448539266,
    "bytes": 5746618253357095269,
    "string": -8142146995180207161,
}


@pytest.mark.parametrize(("kind", "expected"), VECTORS.items())
def test_primitives_have_the_specifications_fingerprints(kind: str, expected: int) -> None:
    assert Schema.of(kind).fingerprint == expected.to_bytes(8, "little", signed=True)
    assert Schema.of({"type": kind}).fingerprint == Schema.of(kind).fingerprint


def test_the_empty_text_has_the_specifications_fingerprint() -> None:
    assert fingerprint("") == 0xC15D213AA4D7A795.to_bytes(8, "little")


@settings(max_examples=EXAMPLES, deadline=None)
@given(written())
def test_form_and_fingerprint_are_fastavros(pair: tuple[Any, Any]) -> None:
    schema = Schema.of(pair[0])

    assert schema.canonical == fastavro.schema.to_parsing_canonical_form(schema.parsed)
    assert schema.fingerprint.hex() == fastavro.schema.fingerprint(schema.canonical, "CRC-64-AVRO")


def test_names_are_made_full_and_all_that_does_not_matter_is_dropped() -> None:
    schema = Schema.of(
        {
            "namespace": "a.b",
            "doc": "what it is",
            "name": "R",
            "type": "record",
            "fields": [
                {"type": {"size": 4, "type": "fixed", "name": "F"}, "name": "f", "aliases": ["g"]},
                {"name": "again", "type": ["null", "F"], "default": None},
                {"name": "when", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            ],
        }
    )

    assert schema.canonical == (
        '{"name":"a.b.R","type":"record","fields":[{"name":"f","type":{"name":"a.b.F","type":"fixed","size":4}},'
        '{"name":"again","type":["null","a.b.F"]},{"name":"when","type":"long"}]}'
    )
    assert '{"type":"long","logicalType":"timestamp-micros"}' in schema.meaning


def test_the_text_is_whole_and_gives_the_same_schema_again() -> None:
    schema = Schema.of({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int", "default": 5}]})

    assert '"default":5' in schema.text
    assert Schema.from_text(schema.text) == schema


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "7",
        "null",
        '"nothing"',
        '{"type":"record"}',
        '{"type":"record","name":"R","fields":[{"name":"x"}]}',
        '["int","int"]',
        '{"type":"array","items":["null",["int"]]}',
        '{"type":"enum","name":"E","symbols":["A","A"]}',
        '{"type":"record","name":"R","fields":[{"name":"x","type":["null",{"type":"null"}]}]}',
        "[" * 100_000,
        '{"type":"array","items":' * 5000 + '"int"' + "}" * 5000,
    ],
)
def test_what_is_no_schema_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="no Avro schema"):
        Schema.from_text(text)
