"""Fingerprint → schema: from code, from the schema topic, from a registry."""

from __future__ import annotations

import pytest

from streamjobs.avro.schema import Schema
from streamjobs.avro.store import SchemaStore
from streamjobs.errors import DecodeError, UnknownSchemaError

LONG = Schema.of({"type": "record", "name": "R", "fields": [{"name": "at", "type": "long"}]})
TIME = Schema.of(
    {"type": "record", "name": "R", "fields": [{"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}
)


def test_what_was_learnt_is_known() -> None:
    store = SchemaStore()
    assert not store.knows(LONG.fingerprint)
    with pytest.raises(UnknownSchemaError) as raised:
        store.by_fingerprint(LONG.fingerprint)
    assert raised.value.fingerprint == LONG.fingerprint
    assert not raised.value.transient

    assert store.learn(LONG.fingerprint, LONG.text)

    assert store.knows(LONG.fingerprint)
    assert store.by_fingerprint(LONG.fingerprint).canonical == LONG.canonical


@pytest.mark.parametrize("text", ["", "{", '"int"', "[]", "\ud800"])
def test_a_record_of_the_topic_that_is_not_that_schema_is_not_learnt(text: str) -> None:
    store = SchemaStore()

    assert not store.learn(LONG.fingerprint, text)
    assert not store.knows(LONG.fingerprint)


def test_of_two_meanings_with_one_fingerprint_the_first_holds() -> None:
    assert LONG.fingerprint == TIME.fingerprint
    store = SchemaStore()
    store.add(TIME)

    assert not store.learn(LONG.fingerprint, LONG.text)

    assert store.by_fingerprint(TIME.fingerprint) is TIME
    assert store.conflicts[TIME.fingerprint].meaning == LONG.meaning


def test_a_registry_is_asked_once_per_id() -> None:
    class Registry:
        asked = 0

        def schema(self, id: int) -> str:
            self.asked += 1
            return LONG.text

    registry = Registry()
    store = SchemaStore(registry)

    assert store.by_id(3) is store.by_id(3)
    assert registry.asked == 1
    assert store.has_registry
    assert not SchemaStore().has_registry


def test_a_registrys_schema_that_is_none_is_a_decode_error() -> None:
    class Registry:
        def schema(self, id: int) -> str:
            return "syntax = 'proto3'"

    with pytest.raises(DecodeError, match="schema 3 can't be used"):
        SchemaStore(Registry()).by_id(3)


def test_without_a_registry_an_id_means_nothing() -> None:
    with pytest.raises(DecodeError, match="no registry is configured"):
        SchemaStore().by_id(3)
