"""Logical types: between Python's values and the primitive that Avro writes for them (specification, "Logical Types").

The functions give what fastavro gives, so that a generated reader and fastavro agree (except for the two types that are ours,
which fastavro gives as their primitive); a value that does not fit raises
ValueError, OverflowError or TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any
from uuid import UUID

_DAYS = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)


def read_date(days: int) -> date:
    return date.fromordinal(days + _DAYS)


def read_time_micros(micros: int) -> time:
    seconds, micro = divmod(micros, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return time(hour, minute, second, micro)


def read_time_millis(millis: int) -> time:
    return read_time_micros(millis * 1000)


def read_timestamp_micros(micros: int) -> datetime:
    return _EPOCH + timedelta(0, 0, micros)


def read_timestamp_millis(millis: int) -> datetime:
    return _EPOCH + timedelta(0, 0, millis * 1000)


def read_local_timestamp_micros(micros: int) -> datetime:
    return _LOCAL_EPOCH + timedelta(0, 0, micros)


def read_local_timestamp_millis(millis: int) -> datetime:
    return _LOCAL_EPOCH + timedelta(0, 0, millis * 1000)


def read_uuid(text: str) -> UUID:
    return UUID(text)


def read_duration_micros(micros: int) -> timedelta:
    """Ours: Avro's own `duration` is a `fixed` that counts months."""
    return timedelta(0, 0, micros)


def read_decimal_text(text: str) -> Decimal:
    """Ours: a decimal of any size and scale, exactly as it was."""
    return Decimal(text)


def decimal_reader(schema: Mapping[str, Any]) -> Callable[[bytes], Decimal]:
    context, scale = Context(prec=schema["precision"]), -schema.get("scale", 0)

    def read(raw: bytes) -> Decimal:
        return context.create_decimal(int.from_bytes(raw, "big", signed=True)).scaleb(scale, context)

    return read


def decimal_raw(value: Decimal, schema: Mapping[str, Any]) -> bytes:
    """The unscaled number, two's complement, as few bytes as it takes."""
    unscaled = int(value.scaleb(schema.get("scale", 0), Context(prec=schema["precision"] + 1)))
    if Decimal(unscaled).scaleb(-schema.get("scale", 0), Context(prec=schema["precision"] + 1)) != value:
        raise ValueError(f"it has more than {schema.get('scale', 0)} decimal places")
    if abs(unscaled) >= 10 ** schema["precision"]:
        raise ValueError(f"it has more than {schema['precision']} digits")
    return unscaled.to_bytes((unscaled.bit_length() + 8) // 8, "big", signed=True)


def time_micros(value: time) -> int:
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond


#: (primitive, logical type) → from what was read to the value. What is not here is read as its primitive.
READ: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("int", "date"): read_date,
    ("int", "time-millis"): read_time_millis,
    ("long", "time-micros"): read_time_micros,
    ("long", "timestamp-millis"): read_timestamp_millis,
    ("long", "timestamp-micros"): read_timestamp_micros,
    ("long", "local-timestamp-millis"): read_local_timestamp_millis,
    ("long", "local-timestamp-micros"): read_local_timestamp_micros,
    ("string", "uuid"): read_uuid,
    ("long", "duration-micros"): read_duration_micros,
    ("string", "decimal-text"): read_decimal_text,
}

#: (primitive, logical type) → from a value to what is written. Ours are written as primitives: `shapes` converts them.
RAW: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("int", "date"): lambda value: value.toordinal() - _DAYS,
    ("int", "time-millis"): lambda value: time_micros(value) // 1000,
    ("long", "time-micros"): time_micros,
    ("long", "timestamp-millis"): lambda value: (value - _EPOCH) // _MILLISECOND,
    ("long", "timestamp-micros"): lambda value: (value - _EPOCH) // _MICROSECOND,
    ("long", "local-timestamp-millis"): lambda value: (value - _LOCAL_EPOCH) // _MILLISECOND,
    ("long", "local-timestamp-micros"): lambda value: (value - _LOCAL_EPOCH) // _MICROSECOND,
    ("string", "uuid"): str,
}


def reader_of(schema: Any) -> Callable[[Any], Any] | None:
    """What turns a primitive, as read, into its logical value; None: nothing."""
    if not isinstance(schema, Mapping) or "logicalType" not in schema:
        return None
    if schema["logicalType"] == "decimal" and schema["type"] in ("bytes", "fixed"):
        return decimal_reader(schema)
    return READ.get((schema["type"], schema["logicalType"]))


def raw_of(schema: Any) -> Callable[[Any], Any] | None:
    """What turns a logical value into the primitive to write; None: nothing."""
    if not isinstance(schema, Mapping) or "logicalType" not in schema:
        return None
    if schema["logicalType"] == "decimal" and schema["type"] == "bytes":
        return lambda value: decimal_raw(value, schema)
    return RAW.get((schema["type"], schema["logicalType"]))
