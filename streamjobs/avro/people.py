"""Payloads as people read and write them: JSON, by the schema that wrote the value, without the job type."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from streamjobs.avro.reader import reader
from streamjobs.avro.schema import Schema
from streamjobs.avro.store import SchemaStore, framed_with
from streamjobs.core.record import CONTENT_TYPE_UNFRAMED
from streamjobs.errors import DecodeError

#: How bytes that are no text stand in JSON: `{"$base64": "…"}`. Bytes that are UTF-8 stand as text.
BASE64 = "$base64"

_duration = TypeAdapter(timedelta)


def to_json(
    value: bytes, store: SchemaStore, content_type: bytes = b"", current: Schema | None = None
) -> Any:
    """A payload as what `json.dumps` takes: dates and times in ISO 8601, decimals and UUIDs as text, enums by symbol.

    `current`: the schema of an unframed value (header `framing=none`). `Payload.validate` takes it back. Raises DecodeError,
    or UnknownSchemaError.
    """
    if content_type == CONTENT_TYPE_UNFRAMED:
        if current is None:
            raise DecodeError("the value is unframed, and no job type is known whose schema could read it")
        schema, at = current, 0
    else:
        schema, at = framed_with(value, store)
    try:
        return _shown(_reader(schema.text)(value, at))
    except Exception as problem:
        raise DecodeError(f"the payload can't be read with the schema that wrote it: {problem}") from problem


@lru_cache(maxsize=256)
def _reader(schema: str) -> Callable[[bytes, int], Any]:
    """Made once: to generate one takes twenty times as long as to read with it."""
    return reader(Schema.from_text(schema), as_dict=True)


def from_json(value: Any) -> Any:
    """JSON with its `$base64` objects made bytes. Raises ValueError for one that is none."""
    if isinstance(value, Mapping):
        if len(value) == 1 and isinstance(value.get(BASE64), str):
            return _bytes(value[BASE64])
        return {key: from_json(each) for key, each in value.items()}
    return [from_json(each) for each in value] if isinstance(value, list) else value


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as problem:
        raise ValueError(f"{BASE64} is no base64: {problem}") from None


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if isinstance(value, tuple):  # a named type in a union: (name, value)
        return _shown(value[1])
    if isinstance(value, bytes):
        return _shown_bytes(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration.dump_python(value, mode="json")
    if isinstance(value, (Decimal, UUID)) or (isinstance(value, float) and not isfinite(value)):
        return str(value)
    return value


def _shown_bytes(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {BASE64: base64.b64encode(value).decode()}
