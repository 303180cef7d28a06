"""Many rows at once: what is written, and what is refused, is what one row after another would have given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from streamjobs.avro.codec import Payload
from streamjobs.errors import PayloadError
from tests.unit.avro.avro_strategies import EXAMPLES

Outcome = tuple[list[bytes], list[list[Any]]] | tuple[str, str | None]


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Text(str):  # noqa: SLOT000
    """Not just text: pydantic makes it a `str`."""


class Address(BaseModel):
    street: str


class Pair(NamedTuple):
    first: Any
    second: Any


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, st.text(max_size=100)),
    (int, st.integers(-(2**64), 2**64)),
    (float, st.floats()),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=100)),
    (str | None, st.none() | st.text()),
    (int | None, st.none() | st.integers()),
    (bool | None, st.none() | st.booleans()),
    (type(None), st.none()),
    (Annotated[int, Field(gt=0)], st.integers(-1, 1)),
    (Annotated[str, Field(max_length=2)] | None, st.text(max_size=3)),
    (Literal["a", "b"], st.sampled_from(["a", "b", "c"])),
    (int | str, st.integers() | st.text()),
    (Color, st.just(Color.RED)),
    (datetime, st.just(NOON)),
    (list[int], st.lists(st.integers(), max_size=3)),
    (Address, st.just(Address(street="x"))),
]
PLAIN = VALUES[:9]
ANYTHING = st.sampled_from(
    [None, True, 7, 7.0, 0.5, "7", "\ud800", b"x", b"\xff", Text("t"), Level.LOW, Color.RED, NOON, Address(street="y"), [1], {}, object]
)


class Signature(NamedTuple):
    payload: Payload
    values: dict[str, st.SearchStrategy[Any]]


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    """Functions of up to four parameters, half of them of nothing but plain types; some with defaults, some keyword-only."""
    chosen = draw(st.lists(st.sampled_from(draw(st.sampled_from([PLAIN, VALUES]))), min_size=1, max_size=4))
    defaults, keywords = draw(st.integers(0, 2)), draw(st.sampled_from([0, 0, 1]))
    names = [f"p{number}" for number in range(len(chosen))]
    spelled = [name if place < len(names) - defaults else f"{name}=None" for place, name in enumerate(names)]
    if keywords:
        spelled.insert(len(names) - 1, "*")
    scope: dict[str, Any] = {}
    exec(f"def fn({', '.join(spelled)}): ...", scope)
    optional = {name for name in names if f"{name}=None" in spelled}
    scope["fn"].__annotations__ = {name: kind | None if name in optional else kind for name, (kind, _) in zip(names, chosen, strict=True)}
    return Signature(Payload(scope["fn"], "job"), {name: values for name, (_, values) in zip(names, chosen, strict=True)})


@st.composite
def rows_of(draw: st.DrawFn, values: dict[str, st.SearchStrategy[Any]]) -> Any:
    row = {name: draw(ANYTHING if draw(st.integers(0, 9)) == 0 else value) for name, value in values.items()}
    forms: list[Callable[[dict[str, Any]], Any]] = [
        lambda row: row,
        lambda row: dict(reversed(row.items())),
        lambda row: tuple(row.values()),
        lambda row: list(row.values()),
        lambda row: (*row.values(), 1),
        lambda row: tuple(row.values())[:-1],
        lambda row: {**row, "more": 1},
        lambda row: {("q" + name if name == "p0" else name): value for name, value in row.items()},
        lambda row: Pair(*row.values()) if len(row) == 2 else row,
        lambda row: "x" * len(row),
        lambda row: set(range(len(row))),
    ]
    return forms[draw(st.sampled_from([0, 2, 2, 2, *range(len(forms))]))](row)


def outcome(write: Callable[[], tuple[list[bytes], Sequence[Iterable[Any]]]]) -> Outcome:
    try:
        values, arguments = write()
    except PayloadError as refused:
        return str(refused), refused.field
    return values, [list(map(repr, row)) for row in arguments]


def one_by_one(payload: Payload, rows: list[Any]) -> tuple[list[bytes], list[list[Any]]]:
    values, arguments = [], []
    for number, row in enumerate(rows):
        try:
            bound = payload.bind_row(row)
            values.append(payload.encode(bound))
        except PayloadError as problem:
            raise PayloadError(f"row {number}: {problem}", problem.field) from problem
        arguments.append([bound[name] for name in payload.names])
    return values, arguments


@settings(max_examples=EXAMPLES * 8, deadline=None)
@given(st.data())
def test_many_rows_are_written_as_one_after_another(data: st.DataObject) -> None:
    payload, values = data.draw(signatures())
    rows = data.draw(st.lists(rows_of(values), max_size=4))
    assert outcome(lambda: payload.encode_many(rows)) == outcome(lambda: one_by_one(payload, rows))


def plain(a: str, b: int, c: float | None) -> None: ...


def bound(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows that are validated from now on."""
    seen: list[Any] = []
    bind_row = Payload.bind_row
    monkeypatch.setattr(Payload, "bind_row", lambda self, row: seen.append(row) or bind_row(self, row))
    return seen


def test_only_what_is_not_of_just_the_right_types_is_validated(monkeypatch) -> None:
    payload, seen = Payload(plain, "job"), bound(monkeypatch)
    odd = [("x", "7", 0.5), ("x", True, None), (Text("x"), 1, None), ("x", 1, 2)]

    values, arguments = payload.encode_many([("x", 1, 0.5), ["x", 1, None], {"c": 0.5, "b": 1, "a": "x"}, *odd])

    assert seen == odd
    assert values[0] == values[2]
    assert arguments == [("x", 1, 0.5), ["x", 1, None], ("x", 1, 0.5), ("x", 7, 0.5), ("x", 1, None), ("x", 1, None), ("x", 1, 2.0)]


def test_a_constraint_is_never_passed_by(monkeypatch) -> None:
    def constrained(a: str, b: Annotated[int, Field(gt=0)]) -> None: ...

    payload, seen = Payload(constrained, "job"), bound(monkeypatch)
    with pytest.raises(PayloadError, match="row 1: job: b takes"):
        payload.encode_many([("x", 1), ("x", 0), ("x", 1)])
    assert seen == [("x", 1), ("x", 0)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("x", 1), "row 1: job: c is missing"),
        (("x", 1, "much"), "row 1: job: c takes float | None"),
        (("x", 2**63, None), "row 1: job: b can't be stored"),
        (("\ud800", 1, None), "row 1: job: a can't be stored"),
        ({"a": "x", "b": 1, "d": None}, "row 1: job: c is missing"),
        ("abc", "row 1: job: a row is a mapping"),
        ({"a", "b", "c"}, "row 1: job: a row is a mapping"),
    ],
)
def test_a_refused_row_is_named(row: Any, says: str) -> None:
    with pytest.raises(PayloadError, match=says.replace("|", r"\|")):
        Payload(plain, "job").encode_many([("x", 1, None), row])


@pytest.mark.parametrize("row", ["ab", {"a", "b"}, b"ab", None, 7])
def test_what_is_no_row_is_not_written_as_the_row_before_it(row: Any) -> None:
    def of_bytes(a: bytes, b: bytes) -> None: ...

    with pytest.raises(PayloadError, match="row 1: job: a row is a mapping"):
        Payload(of_bytes, "job").encode_many([(b"x", b"y"), row])
