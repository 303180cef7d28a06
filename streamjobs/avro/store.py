"""What schema a fingerprint stands for: from the job types in code, from the schema topic, from a registry."""

from __future__ import annotations

from typing import Protocol

from streamjobs.avro.schema import Schema
from streamjobs.core.record import SINGLE_OBJECT_HEAD
from streamjobs.errors import DecodeError, UnknownSchemaError

SINGLE_OBJECT = b"\xc3\x01"
#: Bytes before the payload: `00` and a registry's id.
REGISTRY_HEAD = 5


class Registry(Protocol):
    """A Confluent-compatible schema registry, as far as a reader needs it."""

    def schema(self, id: int) -> str:
        """The JSON of the Avro schema of that id. Raises UnknownSchemaError, or DecodeError if it is no Avro schema."""
        ...


class SchemaStore:
    """Fingerprint → schema, and registry id → schema.

    One thread may learn while others ask: each method is one step on a dict.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._by_fingerprint: dict[bytes, Schema] = {}
        self._by_id: dict[int, Schema] = {}
        self._registry = registry
        #: Schemas that have another one's fingerprint but other logical types; the first one learnt holds.
        self.conflicts: dict[bytes, Schema] = {}

    @property
    def has_registry(self) -> bool:
        return self._registry is not None

    def add(self, schema: Schema) -> None:
        """A schema from code: what it says about a fingerprint goes before what a topic says."""
        self._by_fingerprint[schema.fingerprint] = schema

    def learn(self, fingerprint: bytes, schema_json: str) -> bool:
        """A record of the schema topic. False: it is no schema, or not that fingerprint's, or means other than the known one.

        The fingerprint covers no logical types (see `derive`): of two schemas that differ in them alone the first one holds,
        the other one is in `conflicts`.
        """
        try:
            schema = Schema.from_text(schema_json)
            if schema.fingerprint != fingerprint:
                return False
        except ValueError:
            return False
        known = self._by_fingerprint.setdefault(fingerprint, schema)
        if known.meaning != schema.meaning:
            self.conflicts[fingerprint] = schema
            return False
        return True

    def knows(self, fingerprint: bytes) -> bool:
        return fingerprint in self._by_fingerprint

    def by_fingerprint(self, fingerprint: bytes) -> Schema:
        """Raises UnknownSchemaError."""
        found = self._by_fingerprint.get(fingerprint)
        if found is None:
            raise UnknownSchemaError(
                f"no schema is known for the fingerprint {fingerprint.hex()}: the publisher has not stored it in the schema "
                "topic, or this process has not read that far",
                fingerprint,
            )
        return found

    def by_id(self, id: int) -> Schema:
        """Asks the registry, once per id; it may take as long as the registry's timeout.

        Raises UnknownSchemaError (with the id's 4 bytes) or DecodeError.
        """
        found = self._by_id.get(id)
        if found is not None:
            return found
        if self._registry is None:
            raise DecodeError(
                f"the value begins with 00, as those with a registry's schema id ({id}) do, but no registry is configured: "
                "set schemas.registry, or publish with single-object encoding (C3 01)"
            )
        try:
            schema = Schema.from_text(self._registry.schema(id))
        except ValueError as problem:
            raise DecodeError(f"the registry's schema {id} can't be used: {problem}") from problem
        return self._by_id.setdefault(id, schema)


def framed_with(value: bytes, store: SchemaStore) -> tuple[Schema, int]:
    """The schema that wrote a framed value, and where its payload begins.

    Raises UnknownSchemaError, or DecodeError for a value without a frame.
    """
    frame = frame_of(value)
    if len(frame) == REGISTRY_HEAD:
        return store.by_id(int.from_bytes(frame[1:], "big")), REGISTRY_HEAD
    return store.by_fingerprint(frame[2:]), SINGLE_OBJECT_HEAD


def frame_of(value: bytes) -> bytes:
    """A value's first bytes, which say what schema wrote it. Raises DecodeError."""
    if value[:2] == SINGLE_OBJECT and len(value) >= SINGLE_OBJECT_HEAD:
        return value[:SINGLE_OBJECT_HEAD]
    if value[:1] == b"\0" and len(value) >= REGISTRY_HEAD:
        return value[:REGISTRY_HEAD]
    if not value:
        raise DecodeError("the value is empty: a payload begins with C3 01 and its schema's fingerprint")
    raise DecodeError(
        f"the value begins with {value[:2].hex(' ').upper()}, not with C3 01 and a fingerprint (single-object encoding) or 00 and a "
        "registry's schema id; an unframed value needs the header `content-type: application/avro; framing=none`"
    )
