"""A Python type as Avro: its schema, and how a value passes between the two.

=========================================  =======================================================================
annotation                                 Avro
=========================================  =======================================================================
bool, int, float, str, bytes               boolean, long (64 bit), double, string, bytes
date, time                                 int/date, long/time-micros
datetime (with a time zone)                long/timestamp-micros; arrives in UTC
pydantic.NaiveDatetime                     long/local-timestamp-micros
timedelta                                  long with logicalType `duration-micros` (ours; a long to everybody else)
UUID                                       string/uuid
Decimal with max_digits, decimal_places    bytes/decimal with that precision and scale
Decimal                                    string with logicalType `decimal-text` (ours): exact, any scale
Enum                                       enum of its values if all are text, else of its names; a string if they
                                           are no Avro names
Literal                                    the type of its values, checked again on every run
list, set, frozenset, tuple[X, ...]        array          (Sequence: a list; tuple[X, X]: checked again)
dict[str, X], Mapping[str, X]              map
X | None, X | Y                            union; its members must differ in their Avro type
pydantic.BaseModel                         record
=========================================  =======================================================================
"""

from __future__ import annotations

import re
import types
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple, NewType, Union, get_args, get_origin
from uuid import UUID

from pydantic import AliasChoices, AwareDatetime, BaseModel, NaiveDatetime
from pydantic.fields import FieldInfo

from streamjobs.avro.logical import raw_of
from streamjobs.avro.schema import NAME

Convert = Callable[[Any], Any]

ALLOWED = (
    "bool, int, float, str, bytes, date, time, datetime, timedelta, UUID, Decimal, Enum, Literal, list[X], set[X], "
    "tuple[X, ...], dict[str, X], X | None, unions and pydantic models of these"
)

_MICROSECOND = timedelta(microseconds=1)


class Shape(NamedTuple):
    """How values of one annotation travel.

    `write` makes what an Avro writer takes, `read` takes what an Avro reader gives (None: it is the same).
    `checked`: the schema says less than the annotation, so pydantic looks at each value again on every run.
    `takes`: the Python types by which a union knows its member; `tag`: the Avro name of that member.
    """

    schema: Any
    takes: tuple[type, ...]
    write: Convert | None = None
    read: Convert | None = None
    checked: bool = False

    @property
    def tag(self) -> str:
        return tag_of(self.schema)


class Unfit(Exception):
    """An annotation that has no Avro shape; `where` is the path to it, innermost last."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.where: list[str] = []


def _logical(kind: str, logical: str) -> dict[str, Any]:
    return {"type": kind, "logicalType": logical}


def _zoned(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a datetime without a time zone is no instant: use datetime.now(UTC), or NaiveDatetime")
    return value


def _zoneless(value: Any) -> Any:
    if value.tzinfo is not None:
        raise ValueError(f"a {type(value).__name__} with a time zone does not fit here")
    return value


def _micros(value: timedelta) -> int:
    return value // _MICROSECOND


_DATETIME = Shape(_logical("long", "timestamp-micros"), (datetime,), _zoned)

_SIMPLE: dict[Any, Shape] = {
    type(None): Shape("null", (type(None),)),
    bool: Shape("boolean", (bool,)),
    int: Shape("long", (int,)),
    float: Shape("double", (float,)),
    str: Shape("string", (str,)),
    bytes: Shape("bytes", (bytes,)),
    date: Shape(_logical("int", "date"), (date,)),
    time: Shape(_logical("long", "time-micros"), (time,), _zoneless),
    datetime: _DATETIME,
    AwareDatetime: _DATETIME,
    NaiveDatetime: Shape(_logical("long", "local-timestamp-micros"), (datetime,), _zoneless),
    timedelta: Shape(_logical("long", "duration-micros"), (timedelta,), _micros),
    UUID: Shape(_logical("string", "uuid"), (UUID,), str),
    Decimal: Shape(_logical("string", "decimal-text"), (Decimal,), str),
}

_ARRAYS: dict[Any, Convert] = {
    list: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    abc.Sequence: list,
    abc.Set: set,
}
_MAPS = (dict, abc.Mapping)


class Shapes:
    """The shapes of one schema. Named types are defined where they first occur and referred to afterwards."""

    def __init__(self, namespace: str, taken: Iterable[str] = ()) -> None:
        self._namespace = namespace
        self._taken = set(taken)
        self._named: dict[type, Shape] = {}

    def of(self, annotation: Any) -> Shape:
        """Raises Unfit."""
        annotation, metadata = unwrapped(annotation)
        shape = self._bare(annotation, metadata)
        return shape._replace(checked=True) if any(map(_constrains, metadata)) else shape

    def _bare(self, annotation: Any, metadata: list[Any]) -> Shape:
        if annotation is Decimal and (digits := _digits(metadata)):
            return _decimal(*digits)
        if annotation is None:
            annotation = type(None)
        if (simple := _SIMPLE.get(annotation)) is not None:
            return simple
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return self._literal(arguments)
        if origin in (Union, types.UnionType):
            return self._union([self.of(each) for each in arguments])
        if origin in _ARRAYS:
            return self._array(origin, arguments)
        if origin in _MAPS:
            return self._map(arguments)
        return self._class(annotation)

    def _class(self, annotation: Any) -> Shape:
        if isinstance(annotation, type) and annotation in self._named:
            return self._named[annotation]
        if isinstance(annotation, type) and issubclass(annotation, Enum) and not issubclass(annotation, Flag):
            return self._enum(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self.model(annotation, self._name(annotation))
        raise Unfit(f"{spelled(annotation)} can't travel; allowed are {ALLOWED}")

    def _name(self, annotation: type) -> str:
        plain = name = clean_name(annotation.__name__)
        count = 1
        while name in self._taken:
            count += 1
            name = f"{plain}{count}"
        self._taken.add(name)
        return f"{self._namespace}.{name}"

    def _enum(self, annotation: type[Enum]) -> Shape:
        by_value = all(isinstance(member.value, str) for member in annotation)
        texts = {member: str(member.value) if by_value else member.name for member in annotation}
        members = {text: member for member, text in texts.items()}
        if not members or not all(map(NAME.fullmatch, members)):
            return Shape("string", (annotation,), texts.__getitem__, _reader_of(members))
        name = self._name(annotation)
        shape = Shape(name, (annotation,), texts.__getitem__, _reader_of(members))
        self._named[annotation] = shape
        return shape._replace(schema={"type": "enum", "name": name, "symbols": list(members)})

    def _literal(self, values: tuple[Any, ...]) -> Shape:
        shapes = {type(value): self.of(type(value)) for value in values}
        only = list(shapes.values())
        return (only[0] if len(only) == 1 else self._union(only))._replace(checked=True)

    def _array(self, origin: Any, arguments: tuple[Any, ...]) -> Shape:
        build = _ARRAYS[origin]
        endless = origin is not tuple or (len(arguments) == 2 and arguments[1] is Ellipsis)
        if not arguments or (not endless and len(set(arguments)) > 1):
            raise Unfit("a tuple of different types can't travel: use a pydantic model, or tuple[X, ...]")
        item = self.of(arguments[0])
        read = _each(build, item.read) if build is not list or item.read else None
        schema = {"type": "array", "items": item.schema}
        takes = (list, tuple) if origin is abc.Sequence else (build if isinstance(build, type) else list,)
        return Shape(schema, takes, _each(list, item.write), read, item.checked or not endless)

    def _map(self, arguments: tuple[Any, ...]) -> Shape:
        if len(arguments) != 2 or unwrapped(arguments[0])[0] is not str:
            raise Unfit("a mapping's keys must be text: dict[str, X]")
        inner = self.of(arguments[1])
        schema = {"type": "map", "values": inner.schema}
        return Shape(schema, (dict,), _each_value(inner.write), _each_value(inner.read), inner.checked)

    def _union(self, members: list[Shape]) -> Shape:
        if any(isinstance(member.schema, list) for member in members):
            raise Unfit("a union inside a union can't travel: write it as one union")
        tags = [member.tag for member in members]
        if len(set(tags)) < len(tags):
            twice = next(tag for tag in tags if tags.count(tag) > 1)
            raise Unfit(f"two members of this union are both {twice} in Avro and can't be told apart")
        members.sort(key=lambda member: member.tag != "null")
        schema = [member.schema for member in members]
        checked = any(member.checked for member in members)
        takes = tuple(kind for member in members for kind in member.takes)
        if len(members) == 2 and tags.count("null"):
            value = members[1]
            return Shape(schema, takes, _optional(value.write), _optional(value.read), checked)
        return Shape(schema, takes, _tagging(members), _untagging(members), checked)

    def model(self, annotation: type[BaseModel], name: str) -> Shape:
        """A model as a record of this full name; its instances are always built, and so checked, by pydantic."""
        annotation.model_rebuild()
        if "root" in annotation.model_fields and getattr(annotation, "__pydantic_root_model__", False):
            return self._root_model(annotation)
        travel = ModelTravel(annotation)
        self._named[annotation] = Shape(name, (annotation,), travel.write, travel.read)
        fields = []
        for field_name, field in annotation.model_fields.items():
            shape = self._field(annotation, field_name, field)
            travel.add(field_name, field, shape)
            fields.append(record_field(field_name, shape, *_default(annotation, field_name, field, shape)))
        return self._named[annotation]._replace(schema={"type": "record", "name": name, "fields": fields})

    def _field(self, owner: type[BaseModel], name: str, field: FieldInfo) -> Shape:
        if not NAME.fullmatch(name):
            raise Unfit(f"the field {name!r} of {owner.__name__} has a name that Avro does not take: use ASCII letters")
        try:
            return self.of(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        except Unfit as problem:
            problem.where.insert(0, name)
            raise

    def _root_model(self, annotation: type[BaseModel]) -> Shape:
        inner = self._field(annotation, "root", annotation.model_fields["root"])
        write, read = inner.write or _same, inner.read or _same
        return inner._replace(
            takes=(annotation,),
            write=lambda value: write(value.root),
            read=lambda value: annotation.model_validate(read(value)),
            checked=False,
        )


class ModelTravel:
    """How a model's instances pass to a record and back. Filled after it is made: a model may contain itself."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._writes: list[tuple[str, Convert | None]] = []
        self._reads: list[tuple[str, str, Convert | None]] = []

    def add(self, name: str, field: FieldInfo, shape: Shape) -> None:
        self._writes.append((name, shape.write))
        self._reads.append((name, _key(name, field), shape.read))

    def write(self, instance: Any) -> dict[str, Any]:
        values = ((name, getattr(instance, name), write) for name, write in self._writes)
        return {name: write(value) if write else value for name, value, write in values}

    def read(self, value: Any) -> Any:
        """What it does not understand goes to pydantic as it is, which then names the field at fault."""
        record = value[1] if type(value) is tuple else value
        if not isinstance(record, dict):
            return self._model.model_validate(record)
        return self._model.model_validate(
            {key: read(record[name]) if read else record[name] for name, key, read in self._reads if name in record}
        )


def record_field(name: str, shape: Shape, known: bool, default: Any) -> dict[str, Any]:
    """A record's field. `known`: it has a default that a reader may fill in; one that differs on every call has
    none to write down, and is marked so that our own reader knows that pydantic has one."""
    field = {"name": name, "type": shape.schema}
    if not known:
        return field
    try:
        schema, text = _with_default(shape.schema, shape.write(default) if shape.write else default)
    except Exception:  # noqa: BLE001  (no default in the schema is always right; the run fills in Python's)
        return field | {COMPUTED: True}
    return {"name": name, "type": schema, "default": text}


#: A field's attribute: Python fills in its default, which Avro can't express.
COMPUTED = "sj_computed"


def _default(owner: type[BaseModel], name: str, field: FieldInfo, shape: Shape) -> tuple[bool, Any]:
    if field.is_required():
        return False, None
    if field.default_factory is None:
        return True, field.default
    try:
        first, second = field.get_default(call_default_factory=True), field.get_default(call_default_factory=True)
        return True, first if first == second else _UNWRITABLE
    except Exception:  # noqa: BLE001  (a factory that needs other fields' values)
        return True, _UNWRITABLE


_UNWRITABLE = object()


def _with_default(schema: Any, value: Any) -> tuple[Any, Any]:
    """The schema with the default's own branch first in a union, as Avro wants it, and the default as JSON."""
    if not isinstance(schema, list):
        return schema, _json(schema, value)
    for branch in schema:
        try:
            text = _json([branch], value)
        except (TypeError, ValueError):
            continue
        return [branch, *(each for each in schema if each is not branch)], text
    raise ValueError("no member of the union takes the default")


def _json(schema: Any, value: Any) -> Any:
    """A value, as an Avro writer takes it, as the JSON of a default (specification, "Complex Types: Records").

    Raises ValueError or TypeError where there is none: a default can only be of a union's first member.
    """
    if isinstance(schema, list):
        return _json(schema[0], _member(schema[0], value))
    kind = schema if isinstance(schema, str) else schema["type"]
    if isinstance(schema, str) or "logicalType" in schema:
        raw = raw_of(schema)
        return _json_primitive(kind, raw(value) if raw else value)
    if kind == "array":
        return [_json(schema["items"], each) for each in value]
    if kind == "map":
        return {key: _json(schema["values"], each) for key, each in value.items()}
    if kind == "record":
        return {field["name"]: _json(field["type"], value[field["name"]]) for field in schema["fields"]}
    return schema["symbols"][schema["symbols"].index(value)]


def _json_primitive(kind: str, value: Any) -> Any:
    if type(value) not in _JSON.get(kind, ()) or (kind == "double" and not isfinite(value)):
        raise TypeError(f"{value!r} is no {kind}")
    return value.decode("latin-1") if kind == "bytes" else float(value) if kind == "double" else value


_JSON: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "double": (float, int),
    "string": (str,),
    "bytes": (bytes,),
}


def _member(branch: Any, value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if value[0] != tag_of(branch):
        raise ValueError("another member's value")
    return value[1]


def tag_of(schema: Any) -> str:
    return str(schema if isinstance(schema, str) else schema.get("name", schema["type"]))


# Conversions. None stands for "as it is", so that a plain value costs nothing.


def _same(value: Any) -> Any:
    return value


def _each(build: Convert, convert: Convert | None) -> Convert:
    if convert is None:
        return build
    return lambda values: build([convert(each) for each in values]) if isinstance(values, _ITERABLE) else values


def _each_value(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda values: {key: convert(each) for key, each in values.items()}


_ITERABLE = (list, tuple, set, frozenset)


def _optional(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda value: None if value is None else convert(value)


def _reader_of(members: Mapping[str, Any]) -> Convert:
    """From a symbol to its member. What is none goes on to pydantic, which says so."""
    return lambda text: members.get(text[1] if type(text) is tuple else text, text)


def _tagging(members: list[Shape]) -> Convert:
    exact = {kind: member for member in members for kind in member.takes}

    def write(value: Any) -> tuple[str, Any]:
        member = exact.get(type(value)) or next((each for each in members if isinstance(value, each.takes)), None)
        if member is None:
            raise ValueError(f"no member of the union takes a {type(value).__name__}")
        return member.tag, member.write(value) if member.write else value

    return write


def _untagging(members: list[Shape]) -> Convert:
    """From what was read to a member's value: named types say which they are, others by their type."""
    named = {member.tag: member.read for member in members}
    by_type = {_AVRO_GIVES[member.tag]: member.read for member in members if member.tag in _AVRO_GIVES}

    def read(value: Any) -> Any:
        if type(value) is tuple:
            convert, value = named.get(value[0]), value[1]
        else:
            convert = by_type.get(type(value))
        return convert(value) if convert else value

    return read


_AVRO_GIVES: dict[str, type] = {"long": int, "string": str, "bytes": bytes, "array": list, "map": dict}


def _decimal(precision: int, scale: int) -> Shape:
    schema = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    return Shape(schema, (Decimal,))


def _digits(metadata: Iterable[Any]) -> tuple[int, int] | None:
    """(max_digits, decimal_places), if both are given."""
    found = {
        name: value
        for each in metadata
        for name in ("max_digits", "decimal_places")
        if (value := getattr(each, name, None)) is not None
    }
    return (found["max_digits"], found["decimal_places"]) if len(found) == 2 else None


def _constrains(metadata: Any) -> bool:
    return metadata is not None and not isinstance(metadata, str)


def unwrapped(annotation: Any) -> tuple[Any, list[Any]]:
    """The type under Annotated, NewType and type aliases, and all that Annotated said about it."""
    metadata: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *said = get_args(annotation)
            metadata += [each for one in said for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation, metadata


_EXACT = (bool, int, float, str, bytes, type(None))


def exact_types(annotation: Any, shape: Shape) -> tuple[type, ...]:
    """The types whose own values (no subclass's) pydantic returns as they are, and which are written so; (): there are others."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return () if shape.write or shape.checked or not all(kind in _EXACT for kind in kinds) else kinds


def spelled(annotation: Any) -> str:
    """An annotation as people write it."""
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(
        annotation
    ).replace("typing.", "")


def clean_name(name: str) -> str:
    """A name made to fit Avro's rule for names."""
    clean = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return clean if NAME.match(clean) else f"_{clean}"


def _key(name: str, field: FieldInfo) -> str:
    """The name by which pydantic takes a field's value."""
    alias = field.validation_alias or field.alias
    if isinstance(alias, AliasChoices):
        alias = next((each for each in alias.choices if isinstance(each, str)), name)
    return alias if isinstance(alias, str) else name
