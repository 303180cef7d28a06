"""A schema as it travels: parsed once, with the forms by which two of them are compared.

Canonical form and fingerprint are those of the Avro specification 1.12 ("Parsing Canonical Form for Schemas",
"Schema Fingerprints", "Single object encoding").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastavro import parse_schema

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NAMED = frozenset({"record", "error", "enum", "fixed"})
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Neither schemas nor values may nest deeper.
MAX_DEPTH = 100

#: What changes the meaning of bytes although the canonical form leaves it out.
LOGICAL = ("logicalType", "precision", "scale")

_EMPTY = 0xC15D213AA4D7A795


@dataclass(frozen=True)
class Schema:
    """A parsed schema. `text` is its JSON, whole: names, defaults, logical types."""

    text: str
    parsed: Any

    @classmethod
    def of(cls, schema: Any) -> Schema:
        """From what JSON gives. Raises ValueError for what is no Avro schema."""
        try:
            _check(schema)
            return cls(json.dumps(schema, separators=(",", ":"), ensure_ascii=False), parse_schema(schema))
        except Exception as problem:
            raise ValueError(f"no Avro schema: {type(problem).__name__}: {problem}") from problem

    @classmethod
    def from_text(cls, text: str) -> Schema:
        """From JSON text. Raises ValueError for what is no Avro schema."""
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"no Avro schema: {problem}") from problem
        if _too_deep(schema):
            raise ValueError(f"no Avro schema of ours: it nests deeper than {MAX_DEPTH}")
        return cls.of(schema)

    @cached_property
    def canonical(self) -> str:
        """The parsing canonical form: what the fingerprint is made of."""
        return canonical_form(self.parsed)

    @cached_property
    def meaning(self) -> str:
        """The canonical form with its logical types: two schemas that are alike in it read the same bytes alike."""
        return canonical_form(self.parsed, LOGICAL)

    @cached_property
    def fingerprint(self) -> bytes:
        """CRC-64-AVRO of the canonical form: 8 bytes, little endian, as single-object encoding writes them."""
        return fingerprint(self.canonical)

    @cached_property
    def named(self) -> dict[str, Any]:
        """Named types by full name."""
        return {found["name"]: found for found in _named(self.parsed)}


def canonical_form(schema: Any, keep: tuple[str, ...] = ()) -> str:
    """The parsing canonical form; with the attributes of `keep` left in."""
    return json.dumps(_form(schema, "", keep), separators=(",", ":"), ensure_ascii=False)


def fingerprint(text: str) -> bytes:
    """CRC-64-AVRO (Rabin) of a text's UTF-8."""
    crc = _EMPTY
    for byte in text.encode():
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc.to_bytes(8, "little")


def _form(schema: Any, namespace: str, keep: tuple[str, ...]) -> Any:
    if isinstance(schema, str):
        return schema if schema in PRIMITIVES or "." in schema or not namespace else f"{namespace}.{schema}"
    if isinstance(schema, list):
        return [_form(branch, namespace, keep) for branch in schema]
    kept = {key: schema[key] for key in keep if key in schema}
    kind = schema["type"]
    if not isinstance(kind, str):
        return _form(kind, namespace, keep)
    if kind in NAMED:
        return _named_form(schema, namespace, keep) | kept
    if kind == "array":
        return {"type": "array", "items": _form(schema["items"], namespace, keep)} | kept
    if kind == "map":
        return {"type": "map", "values": _form(schema["values"], namespace, keep)} | kept
    return {"type": kind} | kept if kept else _form(kind, namespace, keep)


def _named_form(schema: Mapping[str, Any], namespace: str, keep: tuple[str, ...]) -> dict[str, Any]:
    name = full_name(schema, namespace)
    inner = name.rpartition(".")[0]
    if schema["type"] == "enum":
        return {"name": name, "type": "enum", "symbols": list(schema["symbols"])}
    if schema["type"] == "fixed":
        return {"name": name, "type": "fixed", "size": int(schema["size"])}
    fields = [{"name": each["name"], "type": _form(each["type"], inner, keep)} for each in schema["fields"]]
    return {"name": name, "type": "record", "fields": fields}


def full_name(schema: Mapping[str, Any], namespace: str = "") -> str:
    name: str = schema["name"]
    space = schema.get("namespace", namespace)
    return name if "." in name or not space else f"{space}.{name}"


def kind_of(schema: Any) -> str:
    """`union`, a primitive, `array`, …; a named type's own name where it is only referred to."""
    if isinstance(schema, list):
        return "union"
    return schema if isinstance(schema, str) else schema["type"]


def _named(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, list):
        for branch in schema:
            yield from _named(branch)
    elif isinstance(schema, Mapping):
        if schema["type"] in NAMED:
            yield schema
        for field in schema.get("fields", ()):
            yield from _named(field["type"])
        for inner in ("items", "values"):
            if inner in schema:
                yield from _named(schema[inner])


def _check(schema: Any) -> None:
    """What the specification forbids and fastavro lets pass, as far as it would end in a wrong reading."""
    if isinstance(schema, list):
        kinds = [full_name(each) if kind_of(each) in NAMED else kind_of(each) for each in schema]
        if len(set(kinds)) < len(kinds) or "union" in kinds:
            raise ValueError(f"a union of {', '.join(kinds)} can't be told apart")
        for branch in schema:
            _check(branch)
    elif isinstance(schema, Mapping):
        inner = [schema[key] for key in ("items", "values") if key in schema]
        for each in inner + [field["type"] for field in schema.get("fields", ())]:
            _check(each)


def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = (row >> 1) ^ (_EMPTY & -(row & 1))
        rows.append(row)
    return tuple(rows)


_TABLE = _table()


def _too_deep(schema: Any) -> bool:
    """Level by level, so that a hostile one can't exhaust the stack, however high its limit is set."""
    level = [schema]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return False
    return True


def _parts(whole: Any) -> list[Any]:
    if isinstance(whole, dict):
        return list(whole.values())
    return whole if isinstance(whole, list) else []
