"""What schema a fingerprint stands for: from the job types in code, from the schema topic, from a registry."""

from __future__ import annotations

from typing import Protocol

from streamjobs.avro.schema import Schema
from streamjobs.errors import DecodeError, UnknownSchemaError


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
                "set one, or publish with single-object encoding (C3 01)"
            )
        try:
            schema = Schema.from_text(self._registry.schema(id))
        except ValueError as problem:
            raise DecodeError(f"the registry's schema {id} can't be used: {problem}") from problem
        return self._by_id.setdefault(id, schema)
