"""Arguments to bytes and back: what a handler gets is what a direct call would have passed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, field_validator

from streamjobs.avro.codec import Payload
from streamjobs.avro.people import to_json
from streamjobs.avro.store import SchemaStore
from streamjobs.core.record import CONTENT_TYPE_UNFRAMED
from streamjobs.errors import DecodeError, JobTypeError, PayloadError, UnknownSchemaError
from streamjobs.job import Job
from tests.unit.avro.avro_strategies import EXAMPLES

CustomerId = NewType("CustomerId", int)


class Color(Enum):
    RED = 1
    BLUE = 2


class Currency(StrEnum):
    EURO = "EUR"
    DOLLAR = "USD"


class Odd(Enum):
    DASHED = "a-b"
    SPACED = "c d"


class Level(IntEnum):
    LOW = 1
    HIGH = 5


class Address(BaseModel):
    street: str
    town: str = "Bonn"


class Person(BaseModel):
    name: str = Field(alias="fullName")
    home: Address | None = None
    friends: list[Person] = []
    favourite: Color = Color.RED
    tags: set[str] = Field(default_factory=set)


class Cat(BaseModel):
    lives: int


class Dog(BaseModel):
    bones: int


NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (int, -(2**63)),
    (float, 1.5),
    (bool, True),
    (str, "Zürich \U0001f600"),
    (bytes, b"\x00\xff"),
    (date, date(1812, 3, 4)),
    (time, time(23, 59, 59, 999999)),
    (datetime, NOON),
    (NaiveDatetime, datetime(2026, 5, 1, 12)),
    (timedelta, timedelta(days=-3, microseconds=7)),
    (UUID, UUID(int=17)),
    (Decimal, Decimal("1E+30")),
    (Annotated[Decimal, Field(max_digits=9, decimal_places=2)], Decimal("-12.34")),
    (Color, Color.BLUE),
    (Currency, Currency.EURO),
    (Odd, Odd.SPACED),
    (Level, Level.HIGH),
    (Literal["a", "b"], "b"),
    (Literal[1, "b"], 1),
    (CustomerId, 7),
    (list[int], [1, 2, 3]),
    (list[Color], [Color.RED, Color.BLUE, Color.RED]),
    (set[UUID], {UUID(int=1), UUID(int=2)}),
    (frozenset[Currency], frozenset(Currency)),
    (tuple[int, ...], (1, 2)),
    (tuple[float, float], (1.0, 2.0)),
    (Sequence[timedelta], [timedelta(1)]),
    (dict[str, list[date]], {"a": [date(2020, 1, 1)], "b": []}),
    (Mapping[str, Color], {"x": Color.RED}),
    (int | None, None),
    (int | None, 5),
    (Color | None, Color.RED),
    (datetime | None, NOON),
    (list[int | None], [1, None]),
    (int | float | str, 1),
    (int | float | str, 1.0),
    (int | float | str, "1"),
    (bool | int, True),
    (str | Color | None, Color.RED),
    (str | Color | None, "RED"),
    (Cat | Dog, Dog(bones=3)),
    (list[Cat | Dog | None], [Dog(bones=3), None, Cat(lives=9)]),
    (Address, Address(street="x")),
    (Address | None, Address(street="x")),
    (dict[str, Address], {"home": Address(street="x", town="Y")}),
    (Person, Person(fullName="A", friends=[Person(fullName="B", home=Address(street="x"))], tags={"t"})),
]


def handler(**annotations: Any) -> Callable[..., Any]:
    """A function with keyword parameters of these types."""
    defaults = {name: each[1] for name, each in annotations.items() if isinstance(each, tuple)}
    types = {name: each[0] if isinstance(each, tuple) else each for name, each in annotations.items()}
    spelled = ", ".join(f"{name}=defaults[{name!r}]" if name in defaults else name for name in types)
    scope: dict[str, Any] = {"defaults": defaults}
    exec(f"def fn({spelled}): return ({''.join(name + ',' for name in types)})", scope)
    scope["fn"].__annotations__ = types
    made: Callable[..., Any] = scope["fn"]
    return made


def trip(payload: Payload, **arguments: Any) -> tuple[Any, ...]:
    return payload.decode(payload.encode(payload.bind((), arguments)), SchemaStore())


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS)
def test_a_value_arrives_as_it_was_passed(annotation: Any, value: Any) -> None:
    payload = Payload(handler(x=int, it=annotation, y=str), "job")

    found = trip(payload, x=1, it=value, y="end")

    assert found == (1, value, "end")
    assert type(found[1]) is type(value)


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS)
def test_a_value_is_a_default_too(annotation: Any, value: Any) -> None:
    """Jobs that were queued before the parameter was there run with its default."""
    old = Payload(handler(x=int), "job")
    new = Payload(handler(x=int, it=(annotation, value)), "job")
    store = SchemaStore()
    store.add(old.avro)

    assert trip(new, x=1) == (1, value)
    assert new.decode(old.encode(old.bind((), {"x": 3})), store) == (3, value)


#: In JSON a symbol is text: where both may stand, it is read as text.
TEXT_OR_SYMBOL = str | Color | None


@pytest.mark.parametrize(("annotation", "value"), [each for each in ROUND_TRIPS if each[0] != TEXT_OR_SYMBOL])
def test_people_can_write_back_what_they_were_shown(annotation: Any, value: Any) -> None:
    payload = Payload(handler(it=annotation, y=str), "job")
    store = SchemaStore()
    store.add(payload.avro)
    data = payload.encode(payload.bind((), {"it": value, "y": "z"}))

    shown = json.loads(json.dumps(to_json(data, store)))

    assert payload.encode(payload.validate(shown)) == data or payload.decode(
        payload.encode(payload.validate(shown)), store
    ) == (value, "z")


def test_a_model_is_the_payload_when_it_is_the_only_parameter() -> None:
    def greet(person: Person) -> None: ...

    payload = Payload(greet, "greet")
    person = Person(fullName="A", home=Address(street="x"))

    assert payload.fields == ("name", "home", "friends", "favourite", "tags")
    assert trip(payload, person=person) == (person,)
    assert payload.bind((person,), {}) == {"person": person}
    assert payload.bind_row(person) == {"person": person}
    assert payload.validate({"fullName": "A", "home": {"street": "x"}}) == {"person": person}
    assert payload.validate({"person": {"fullName": "A", "home": {"street": "x"}}}) == {"person": person}


def test_what_people_nest_without_end_is_refused() -> None:
    nested: Any = 7
    for _ in range(10_000):
        nested = [nested]

    with pytest.raises(PayloadError, match="job: the arguments are nested too deeply"):
        Payload(handler(it=int), "job").validate({"it": nested})


def test_rows_are_mappings_tuples_or_models() -> None:
    payload = Payload(handler(a=int, b=(str, "x")), "job")

    assert payload.bind_row({"a": 1}) == payload.bind_row((1,)) == payload.bind_row([1, "x"]) == {"a": 1, "b": "x"}
    with pytest.raises(PayloadError, match="a row is a mapping"):
        payload.bind_row(7)


# How the handler is called ---------------------------------------------------------------------------------------------


def run_first(job: Job, a: int, b: str) -> Any:
    return job, a, b


def run_in_the_middle(a: int, job: Job, b: str) -> Any:
    return job, a, b


def run_by_keyword(a: int, *, b: str, job: Job) -> Any:
    return job, a, b


def keyword_only(a: int, *, b: str) -> Any:
    return None, a, b


def positional(a: int, b: str) -> Any:
    return None, a, b


@pytest.mark.parametrize("fn", [run_first, run_in_the_middle, run_by_keyword, keyword_only, positional])
def test_the_handler_is_called_with_the_run_where_it_is_annotated(fn: Callable[..., Any]) -> None:
    payload = Payload(fn, "job")
    run = SimpleNamespace(args=trip(payload, a=1, b="x"))

    assert payload.names == ("a", "b")
    assert payload.run_parameter == ("job" if "run" in fn.__name__ else "")
    assert payload.caller(fn)(run) == (run if payload.run_parameter else None, 1, "x")


def only_the_run(*, job: Job) -> Any:
    return job


def test_the_run_may_be_all_that_a_handler_takes() -> None:
    run = SimpleNamespace(args=())

    assert Payload(only_the_run, "job").caller(only_the_run)(run) is run


def test_the_run_is_not_the_publishers_to_give() -> None:
    with pytest.raises(PayloadError, match="the worker gives it"):
        Payload(run_first, "job").bind((), {"a": 1, "b": "x", "job": None})


def test_a_job_imported_for_type_checkers_only_is_the_run() -> None:
    scope: dict[str, Any] = {}
    exec("from __future__ import annotations\ndef fn(job: Job, a: int) -> None: ...", scope)

    assert Payload(scope["fn"], "job").run_parameter == "job"


def test_only_the_run_makes_an_empty_payload() -> None:
    def fn() -> str:
        return "called"

    payload = Payload(fn, "job")

    assert trip(payload) == ()
    assert payload.caller(fn)(SimpleNamespace(args=())) == "called"


class Whole(int):
    """Of a type that is not quite what is asked for."""


@pytest.mark.parametrize(
    ("args", "kwargs", "looked_at"),
    [
        ((7, "x", None), {}, False),
        ((7, "x", 1.5), {}, False),
        ((), {"note": None, "customer": "x", "number": 7}, False),
        ((7,), {"customer": "x", "note": None}, True),
        ((), defaultdict(str, number=7, customer="x", note=None), True),
        ((7, "x", 2), {}, True),
        ((), {"number": Whole(7), "customer": "x", "note": None}, True),
        ((7, "x"), {}, True),
        ((), {"number": 7, "customer": "x"}, True),
    ],
)
def test_arguments_of_just_the_types_that_are_asked_for_are_not_validated(args: Any, kwargs: Any, looked_at: bool) -> None:
    def fn(number: int, customer: str, note: float | None = None) -> None: ...

    payload = Payload(fn, "bill")
    validate, looked = payload._validate, list[Any]()
    payload._validate = lambda given: looked.append(given) or validate(given)
    bound = payload.bind(args, kwargs)

    assert bool(looked) == looked_at
    assert list(bound) == ["number", "customer", "note"] or looked_at
    assert bound == {"note": None, **dict(zip(("number", "customer", "note"), args, strict=False)), **kwargs}


def test_a_mapping_that_makes_up_what_it_lacks_is_asked_for_nothing() -> None:
    made_up = defaultdict(str, number=7, custommer="x")

    with pytest.raises(PayloadError, match="customer is missing"):
        Payload(handler(number=int, customer=str), "bill").bind((), made_up)


# What is refused when it is published ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "said"),
    [
        ((), {"customer": "x"}, "number", "number is missing; it takes number: int, customer: str"),
        ((), {"number": "seven", "customer": "x"}, "number", "number takes int"),
        ((), {"number": 7, "customer": None}, "customer", "customer takes str"),
        ((), {"number": 7, "customer": "x", "z": 1}, "z", "z is none of its parameters"),
        ((7,), {"number": 7}, "number", "given twice"),
        ((7,), {"number": 7, "customer": "x"}, "number", "given twice"),
        ((7, "x", 1), {}, None, "takes 2 positional arguments, not 3"),
        ((), {"number": 2**63, "customer": "x"}, "number", "number can't be stored: a whole number has at most 64 bits"),
        ((), {"number": -(2**63) - 1, "customer": "x"}, "number", "number can't be stored: a whole number has at most 64 bits"),
        ((), {"number": 1, "customer": "\ud800"}, "customer", "customer can't be stored"),
    ],
)
def test_a_wrong_argument_is_named(args: Any, kwargs: Any, field: str | None, said: str) -> None:
    payload = Payload(handler(number=int, customer=str), "bill")

    with pytest.raises(PayloadError, match=said) as raised:
        payload.encode(payload.bind(args, kwargs))

    assert raised.value.field == field
    assert str(raised.value).startswith("bill")


def test_a_number_that_is_too_large_is_told_however_deep_it_lies() -> None:
    payload = Payload(handler(many=dict[str, list[int | None]]), "bill")

    with pytest.raises(PayloadError, match="many can't be stored: a whole number has at most 64 bits"):
        payload.encode(payload.bind((), {"many": {"a": [1, None, 2**70]}}))
    payload.encode(payload.bind((), {"many": {"a": [-(2**63), 2**63 - 1]}}))


def test_a_wrong_field_of_a_model_is_named_with_its_path() -> None:
    payload = Payload(handler(person=Person), "greet")

    with pytest.raises(PayloadError) as raised:
        payload.validate({"fullName": "A", "home": {"street": 7}})

    assert raised.value.field == "home.street"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int = 1
    level: Level = Level.LOW


class Holder(BaseModel):
    strict: Strict = Strict()


@pytest.mark.parametrize(
    ("model", "given", "field"),
    [(Strict, {"n": 2, "bogus": 1}, "bogus"), (Strict, {"level": "HIGH", "bogus": 1}, "bogus"), (Holder, {"strict": {"bogus": 1}}, "strict.bogus")],
)
def test_a_model_may_refuse_fields_that_it_does_not_know(model: type[BaseModel], given: dict[str, Any], field: str) -> None:
    """Of what people write: *bites*: it is left out on the way to the model, which forbids it in vain."""
    payload = Payload(handler(it=model), "job")

    with pytest.raises(PayloadError, match=f"^job: {field} is none of its fields; it takes it: ") as refused:
        payload.validate(given)

    assert refused.value.field == field
    assert payload.validate({"level": "HIGH"} if model is Strict else {}) == {"it": Strict(level=Level.HIGH) if model is Strict else Holder()}


@pytest.mark.parametrize(("given", "says"), [({"n": "x"}, "job: n: input should be a valid integer"), ({"it": 5}, "job: it takes Strict: ")])
def test_a_field_is_not_said_to_take_the_whole_model(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PayloadError, match=f"^{says}"):
        Payload(handler(it=Strict), "job").validate(given)


def test_the_value_is_not_in_the_message() -> None:
    payload = Payload(handler(number=int), "bill")

    with pytest.raises(PayloadError) as raised:
        payload.bind((), {"number": "hunter2"})

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (datetime, datetime(2026, 5, 1)),
        (time, time(1, tzinfo=UTC)),
        (NaiveDatetime | None, NOON),
        (timedelta, timedelta.max),
        (list[int], [1, 2**63]),
        (Annotated[Decimal, Field(max_digits=4, decimal_places=2)], Decimal("100.00")),
        (dict[str, str], {"a": "\udfff"}),
    ],
)
def test_what_avro_can_not_hold_is_refused_by_name(annotation: Any, value: Any) -> None:
    payload = Payload(handler(ok=int, it=annotation), "job")

    with pytest.raises(PayloadError) as raised:
        payload.encode(payload.bind((), {"ok": 1, "it": value}))

    assert raised.value.field is not None
    assert raised.value.field.startswith("it")


# What can't be a job type ----------------------------------------------------------------------------------------------


class Opaque:
    pass


class HasOpaque(BaseModel, arbitrary_types_allowed=True):
    inner: list[Opaque]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Opaque, "it: Opaque"),
        (Any, "allowed are bool, int"),
        (complex, "it: complex"),
        (list[Opaque], "Opaque can't travel"),
        (HasOpaque, "it.inner"),
        (dict[int, str], "keys must be text"),
        (tuple[int, str], "different types"),
        (str | UUID, "both string"),
        (int | datetime, "both long"),
        (list[int] | set[str], "both array"),
        (list, "list"),
        (dict, "dict"),
    ],
)
def test_a_type_that_can_not_travel_is_named(annotation: Any, said: str) -> None:
    with pytest.raises(JobTypeError, match="it") as raised:
        Payload(handler(it=annotation, more=int), "job")

    assert said in str(raised.value)
    assert "job type job" in str(raised.value)


def test_parameters_without_fixed_fields_or_types_are_refused() -> None:
    def stars(*rows: int) -> None: ...
    def more(**rows: int) -> None: ...
    def untyped(a) -> None: ...  # type: ignore[no-untyped-def]
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def accented(é: int) -> None: ...

    for fn, said in [
        (stars, r"\*rows"),
        (more, r"\*\*rows"),
        (untyped, "a has no type"),
        (unknown, "Nowhere"),
        (accented, "ASCII"),
        (handler(it=(int, None)), "its default is not"),
        (handler(it=(int, Field(5))), "Annotated"),
    ]:
        with pytest.raises(JobTypeError, match=said):
            Payload(fn, "job")


# What arrives -----------------------------------------------------------------------------------------------------------


def test_a_constraint_is_looked_at_again_when_it_is_run() -> None:
    loose = Payload(handler(n=int), "job")
    tight = Payload(handler(n=Annotated[int, Field(le=10)]), "job")
    assert tight.fingerprint == loose.fingerprint

    data = loose.encode(loose.bind((), {"n": 11}))

    assert loose.decode(data, SchemaStore()) == (11,)
    with pytest.raises(DecodeError, match="n: Input should be less than or equal to 10"):
        tight.decode(data, SchemaStore())


def test_a_length_that_the_schema_does_not_say_is_looked_at_again() -> None:
    longer, pair = Payload(handler(n=list[int]), "job"), Payload(handler(n=tuple[int, int]), "job")

    with pytest.raises(DecodeError, match="n: "):
        pair.decode(longer.encode({"n": [1, 2, 3]}), SchemaStore())


def test_a_models_validators_run_again() -> None:
    class Strict(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("odd")
            return value

    class Loose(BaseModel):
        n: int

    strict, loose = Payload(handler(it=Strict), "job"), Payload(handler(it=Loose), "job")

    with pytest.raises(DecodeError, match="odd"):
        strict.decode(loose.encode(loose.bind((), {"it": {"n": 3}})), SchemaStore())


def test_equal_bytes_of_another_meaning_have_another_fingerprint() -> None:
    """The specification's fingerprint covers no logical types: seconds would be read as microseconds."""
    prints = [Payload(handler(at=kind), "job").fingerprint for kind in (int, datetime, timedelta, NaiveDatetime)]
    digits = [
        Payload(handler(at=Annotated[Decimal, Field(max_digits=9, decimal_places=n)]), "job").fingerprint for n in (1, 2)
    ]

    assert len({*prints, *digits}) == 6


def test_a_number_that_got_another_meaning_is_not_read() -> None:
    old, new = Payload(handler(at=int), "job"), Payload(handler(at=datetime), "job")
    store = SchemaStore()
    store.add(old.avro)

    with pytest.raises(DecodeError, match="another meaning"):
        new.decode(old.encode(old.bind((), {"at": 1_700_000_000})), store)


def test_the_derived_schema_does_not_depend_on_the_process() -> None:
    payload = Payload(handler(number=int, at=(datetime | None, None)), "billing.send-invoice")

    assert payload.schema["name"] == "streamjobs.billing.t_4a91e92c.send_invoice"
    assert payload.fingerprint.hex() == Payload(handler(number=int, at=(datetime | None, None)), "billing.send-invoice").fingerprint.hex()
    assert json.loads(payload.canonical) == payload.schema


def test_framing_is_told_by_the_first_bytes() -> None:
    class Registry:
        def schema(self, id: int) -> str:
            assert id == 7
            return payload.canonical

    payload = Payload(handler(a=int), "job")
    data = payload.encode({"a": 5})
    bare = data[10:]

    assert data[:2] == b"\xc3\x01"
    assert data[2:10] == payload.fingerprint
    assert payload.decode(data, SchemaStore()) == (5,)
    assert payload.decode(b"\0\0\0\0\x07" + bare, SchemaStore(Registry())) == (5,)
    assert payload.decode(bare, SchemaStore(), CONTENT_TYPE_UNFRAMED) == (5,)


def test_an_unframed_value_may_begin_like_a_framed_one() -> None:
    """The content type decides, not the bytes."""
    payload = Payload(handler(a=int, b=int, c=int, d=int, e=int), "job")

    assert payload.decode(b"\0\0\0\0\x02", SchemaStore(), CONTENT_TYPE_UNFRAMED) == (0, 0, 0, 0, 1)
    with pytest.raises(DecodeError, match="no registry is configured"):
        payload.decode(b"\0\0\0\0\x02", SchemaStore())


@pytest.mark.parametrize("value", [b"", b"\xc3", b"\xc3\x01", b"\xc3\x01abc", b"\0", b"\0abc", b'{"a": 1}', b"\x0a"])
def test_a_value_without_a_frame_is_not_guessed_at(value: bytes) -> None:  # edge 61
    with pytest.raises(DecodeError):
        Payload(handler(a=int), "job").decode(value, SchemaStore())


def test_an_unknown_fingerprint_is_told_from_a_damaged_value() -> None:  # edge 62
    payload = Payload(handler(a=int), "job")
    other = Payload(handler(a=int, b=int), "job")
    data, store = other.encode({"a": 1, "b": 2}), SchemaStore()

    with pytest.raises(UnknownSchemaError) as raised:
        payload.decode(data, store)
    assert raised.value.fingerprint == other.fingerprint

    assert store.learn(other.fingerprint, other.canonical)
    assert payload.decode(data, store) == (1,)


FUZZED = Payload(
    handler(
        a=int, b=str | None, c=Color, d=list[Cat | Dog], e=Person, f=datetime, g=Annotated[Decimal, Field(max_digits=5, decimal_places=1)],
        h=set[UUID], i=dict[str, float], j=Decimal,
    ),
    "fuzzed",
)  # fmt: skip
FLAT = Payload(handler(a=int, b=str | None, c=Color, f=datetime, j=UUID), "flat")
OLD = Payload(handler(a=int, b=str, c=Color, f=datetime, j=UUID, z=list[Person]), "flat")
KNOWN = SchemaStore()
for _each in (FUZZED, FLAT, OLD):
    KNOWN.add(_each.avro)
WHOLE = {
    FUZZED: FUZZED.encode(
        FUZZED.bind((), {
            "a": 1, "b": "x", "c": Color.RED, "d": [Cat(lives=1), Dog(bones=2)], "e": {"fullName": "x", "friends": [{"fullName": "y"}]},
            "f": NOON, "g": Decimal("1.5"), "h": {UUID(int=5)}, "i": {"k": 1.5}, "j": Decimal("3.25"),
        })
    ),
    FLAT: FLAT.encode(FLAT.bind((), {"a": 1, "b": "x", "c": Color.RED, "f": NOON, "j": UUID(int=5)})),
    OLD: OLD.encode(OLD.bind((), {"a": 1, "b": "x", "c": Color.RED, "f": NOON, "j": UUID(int=5), "z": [{"fullName": "x"}]})),
}  # fmt: skip


@settings(max_examples=EXAMPLES * 4, deadline=None)
@given(st.sampled_from([FUZZED, FLAT]), st.sampled_from([FUZZED, FLAT, OLD]), st.data())
def test_no_bytes_bring_out_anything_but_a_decode_error(payload: Payload, writer: Payload, data: st.DataObject) -> None:  # edge 61
    frame = WHOLE[writer][:10]
    noise = data.draw(st.binary(max_size=80))
    damaged = bytearray(WHOLE[writer])
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    for value, content_type in [(noise, b""), (noise, CONTENT_TYPE_UNFRAMED), (frame + noise, b""), (cut, b""), (bytes(damaged), b"")]:
        for read in (payload.decode, to_json):
            try:
                read(value, KNOWN, content_type)
            except DecodeError as problem:
                assert str(problem)
