"""Avro schemas and values of them, made by hypothesis."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from hypothesis import strategies as st

#: Examples of each property: few, so that the suite is fast; `STREAMJOBS_TEST_EXAMPLES=2000` looks longer.
EXAMPLES = int(os.environ.get("STREAMJOBS_TEST_EXAMPLES", "25"))

LONG = st.integers(-(2**63), 2**63 - 1)
#: fastavro's date arithmetic and ours end where Python's datetime does.
INSTANTS = st.integers(-(2**55), 2**55)

PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": LONG,
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=200),
    "string": st.text(max_size=200),
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOGICAL: list[tuple[dict[str, Any], st.SearchStrategy[Any]]] = [
    ({"type": "int", "logicalType": "date"}, st.dates()),
    ({"type": "int", "logicalType": "time-millis"}, st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    ({"type": "long", "logicalType": "time-micros"}, st.times()),
    ({"type": "long", "logicalType": "timestamp-micros"}, INSTANTS.map(lambda n: EPOCH + timedelta(microseconds=n))),
    ({"type": "long", "logicalType": "timestamp-millis"}, INSTANTS.map(lambda n: EPOCH + timedelta(milliseconds=n // 1000))),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, st.datetimes()),
    ({"type": "string", "logicalType": "uuid"}, st.uuids()),
    (
        {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2},
        st.integers(-99_999_999, 99_999_999).map(lambda n: Decimal(n).scaleb(-2)),
    ),
    ({"type": "long", "logicalType": "never-heard-of"}, LONG),
]

Pair = tuple[Any, st.SearchStrategy[Any]]


def _flat(name: Callable[[], str]) -> st.SearchStrategy[Pair]:
    symbols = st.lists(st.from_regex(r"[A-Z][a-z]{0,3}", fullmatch=True), min_size=1, max_size=80, unique=True)
    return st.one_of(
        st.sampled_from(list(PRIMITIVES.items())),
        st.sampled_from(LOGICAL),
        symbols.map(lambda found: ({"type": "enum", "name": name(), "symbols": found}, st.sampled_from(found))),
        st.integers(0, 5).map(lambda n: ({"type": "fixed", "name": name(), "size": n}, st.binary(min_size=n, max_size=n))),
    )


def _kind(schema: Any) -> str:
    return schema if isinstance(schema, str) else schema.get("name", schema["type"])


def _takes_no_bytes(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("size") == 0 or (schema["type"] == "record" and all(_takes_no_bytes(f["type"]) for f in schema["fields"]))
    return schema == "null"


def _array(pair: Pair) -> Pair:
    """Never of items without bytes: fastavro would read any number of them from damaged bytes, until the memory is full."""
    schema, values = ("long", LONG) if _takes_no_bytes(pair[0]) else pair
    return {"type": "array", "items": schema}, st.lists(values, max_size=4)


def _union(pairs: list[Pair]) -> Pair:
    """The values are fastavro's (name, value), so that it picks the branch that was meant."""
    found = {_kind(schema): (schema, values) for schema, values in pairs}
    branches = [values.map(lambda value, kind=kind: (kind, value)) for kind, (_, values) in found.items()]
    return [schema for schema, _ in found.values()], st.one_of(branches)


def _record(name: str, pairs: list[Pair]) -> Pair:
    fields = [{"name": f"f{n}", "type": schema} for n, (schema, _) in enumerate(pairs)]
    values = st.fixed_dictionaries({f"f{n}": each for n, (_, each) in enumerate(pairs)})
    return {"type": "record", "name": name, "fields": fields}, values


def pairs(*, flat: bool = False) -> st.SearchStrategy[Pair]:
    """Records (schema, values). `flat`: of primitives, enums, fixed and optional ones."""
    numbers = count()

    def name() -> str:
        return f"N{next(numbers)}"

    leaf = _flat(name)
    optional = leaf.filter(lambda pair: _kind(pair[0]) != "null").map(lambda pair: _union([("null", st.none()), pair]))
    one = st.one_of(leaf, optional)
    if not flat:
        one = st.recursive(
            one,
            lambda inner: st.one_of(
                inner.map(_array),
                inner.map(lambda pair: ({"type": "map", "values": pair[0]}, st.dictionaries(st.text(max_size=5), pair[1], max_size=4))),
                st.lists(inner, max_size=4).map(lambda found: _record(name(), found)),
                st.lists(inner.filter(lambda pair: not isinstance(pair[0], list)), min_size=1, max_size=4).map(_union),
            ),
            max_leaves=8,
        )
    return st.lists(one, max_size=12).map(lambda found: _record(name(), found))


@st.composite
def written(draw: st.DrawFn, *, flat: bool = False) -> tuple[Any, Any]:
    """A schema and one value of it."""
    schema, values = draw(pairs(flat=flat))
    return schema, draw(values)
