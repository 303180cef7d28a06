"""Avro's binary encoding and single-object framing, for the few schemas of our own topics (Avro 1.12
specification).

By hand, because what a worker tells about itself must not need the Avro library in its hot path; tests hold
every value against that library and the `.avsc` files in `schemas/`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamjobs.errors import DecodeError, UnknownSchemaError

MAGIC = b"\xc3\x01"
Schema = Any
"""A parsed schema: "long", {"type": "record", …}, ["null", …]."""

_DOUBLE = struct.Struct("<d")


def long(value: int) -> bytes:
    """An int or long: zigzag, then seven bits a byte."""
    rest = value << 1 if value >= 0 else (-value << 1) - 1
    if rest < 0x80:
        return bytes((rest,))
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def blob(value: bytes | bytearray) -> bytes:
    return long(len(value)) + value


def text(value: str) -> bytes:
    return blob(value.encode("utf-8", "replace"))


def array(items: Sequence[bytes]) -> bytes:
    """An array of items that are encoded already, in one block."""
    return long(len(items)) + b"".join(items) + b"\0" if items else b"\0"


def framed(fingerprint: bytes, body: bytes) -> bytes:
    return MAGIC + fingerprint + body


def unframed(fingerprint: bytes, value: bytes) -> Reader:
    """The body of a value written with exactly this schema. Raises DecodeError, UnknownSchemaError."""
    if value[:2] != MAGIC or len(value) < 10:
        raise DecodeError(
            f"not an Avro single object: it begins with {value[:10].hex() or 'nothing'}, not c301"
        )
    if value[2:10] != fingerprint:
        raise UnknownSchemaError(
            f"written with schema {value[2:10].hex()}, this reads {fingerprint.hex()}: upgrade the reader",
            value[2:10],
        )
    return Reader(value, 10)


class Reader:
    """Reads values one after another; what runs over the end, or is malformed, is a DecodeError."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if length < 0 or end > len(self._data):
            raise DecodeError(f"cut short: {length} bytes wanted at {self._position} of {len(self._data)}")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def long(self) -> int:
        result = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result >> 1 ^ -(result & 1)
        raise DecodeError(f"a number of more than ten bytes before {self._position}")

    def blob(self) -> bytes:
        return self._take(self.long())

    def text(self) -> str:
        return self.blob().decode("utf-8", "replace")

    def boolean(self) -> bool:
        return self._take(1) == b"\1"

    def double(self) -> float:
        value: float = _DOUBLE.unpack(self._take(8))[0]
        return value

    def array(self, item: Callable[[], Any]) -> list[Any]:
        """Every item takes a byte at least, so that a hostile count ends at the end of the data."""
        items: list[Any] = []
        while count := self.long():
            if count < 0:
                self.long()
            for _ in range(abs(count)):
                start = self._position
                items.append(item())
                if self._position == start:
                    raise DecodeError("an array of items without bytes")
        return items

    def ended(self) -> None:
        """Raises DecodeError if something follows."""
        if self._position != len(self._data):
            raise DecodeError(f"{len(self._data) - self._position} bytes follow the end of the value")


# Any schema (reports, audit entries: once in seconds, not in the hot path) ----------------------------------


def encode(schema: Schema, value: Any) -> bytes:
    """A value by its schema. Raises ValueError naming the field that does not fit."""
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, list):
        return _encode_union(kind, value)
    if kind == "record":
        return b"".join(_encode_field(field, value) for field in schema["fields"])
    if kind == "array":
        return array([encode(schema["items"], item) for item in value])
    if kind == "map":
        return array([text(name) + encode(schema["values"], item) for name, item in value.items()])
    return _ENCODERS[kind](value)


def _encode_field(field: Mapping[str, Any], value: Mapping[str, Any]) -> bytes:
    name = field["name"]
    try:
        return encode(field["type"], value[name] if name in value else field["default"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"field {name}: {error!r}") from error


def _encode_union(branches: list[Schema], value: Any) -> bytes:
    """Our unions are all optional values: ["null", something]."""
    return long(0) if value is None else long(1) + encode(branches[1], value)


def decode(schema: Schema, reader: Reader) -> Any:
    """The next value by its schema. Raises DecodeError."""
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, list):
        return decode(kind[1], reader) if reader.long() else None
    if kind == "record":
        return {field["name"]: decode(field["type"], reader) for field in schema["fields"]}
    if kind == "array":
        return reader.array(lambda: decode(schema["items"], reader))
    if kind == "map":
        return dict(reader.array(lambda: (reader.text(), decode(schema["values"], reader))))
    return _DECODERS[kind](reader)


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "int": long,
    "long": long,
    "string": text,
    "bytes": blob,
    "boolean": lambda value: b"\1" if value else b"\0",
    "double": _DOUBLE.pack,
}
_DECODERS: dict[str, Callable[[Reader], Any]] = {
    "int": Reader.long,
    "long": Reader.long,
    "string": Reader.text,
    "bytes": Reader.blob,
    "boolean": Reader.boolean,
    "double": Reader.double,
}
