"""A job type whose schema is a user's own `.avsc` file instead of one derived from its signature.

Every parameter must be a field of the file's record; fields that are no parameter need a default, with which they are
written. A field whose type is what would be derived travels as a derived one does; any other value is fitted to the file's
type when it is published, and made the annotation's type by pydantic when it is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from streamjobs.avro.reader import int_bytes
from streamjobs.avro.resolution import default_of
from streamjobs.avro.schema import LOGICAL, NAMED, Schema, canonical_form, kind_of
from streamjobs.avro.shapes import ModelTravel, Shape, tag_of
from streamjobs.errors import JobTypeError


def load(fn: Callable[..., Any], job_type: str, path: str) -> Schema:
    """The record schema in a file; a relative path begins where the handler's module is. Raises JobTypeError."""
    file = Path(inspect.getfile(inspect.unwrap(fn))).parent / path
    try:
        schema = Schema.from_text(file.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise JobTypeError(f"job type {job_type}: its schema {file} can't be used: {problem}") from problem
    if kind_of(schema.parsed) != "record":
        raise JobTypeError(f"job type {job_type}: its schema {file} is a {kind_of(schema.parsed)}: a payload is a record")
    return schema


def adopt(shapes: Mapping[str, Shape | None], schema: Schema, job_type: str) -> dict[str, Shape]:
    """Shapes of parameters (None: underivable) as the file has them. Raises JobTypeError for those that it lacks."""
    fields = {field["name"]: field for field in schema.parsed["fields"]}
    for name in shapes:
        if name not in fields:
            raise JobTypeError(f"job type {job_type}: the parameter {name} is no field of its schema; add it, or drop it")
    for name, field in fields.items():
        if name not in shapes and "default" not in field:
            raise JobTypeError(f"job type {job_type}: its schema's field {name} is no parameter and has no default; give it one")
    return {name: _adopted(shape, fields[name]["type"], schema) for name, shape in shapes.items()}


def model_shape(model: type[BaseModel], schema: Schema) -> Shape:
    """The shape of a model that is the whole record. pydantic builds it from what the file's types give."""
    fit = Fit(schema)
    by_key = ModelTravel(model)
    for name, field in model.model_fields.items():
        by_key.add(name, field, Shape(None, ()))
    return Shape(schema.parsed, (model,), lambda value: fit.value(schema.parsed, value), by_key.read, checked=True)


def unwritten(schema: Schema, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a record that no argument fills, each with its default as a writer takes it."""
    return {
        field["name"]: default_of(schema, field["type"], field["default"])
        for field in schema.parsed["fields"]
        if field["name"] not in names and "default" in field
    }


def _adopted(shape: Shape | None, declared: Any, schema: Schema) -> Shape:
    if shape is not None and _is_plain(shape.schema) and _meaning(shape.schema) == _meaning(declared):
        return shape._replace(schema=declared)
    fit = Fit(schema)
    return Shape(declared, (), lambda value: fit.value(declared, value), _untagged, checked=True)


def _is_plain(schema: Any) -> bool:
    """Whether no named type is in it, whose name only the file knows."""
    branches = schema if isinstance(schema, list) else [schema]
    return not any(kind_of(each) in (*NAMED, "array", "map") or "." in kind_of(each) for each in branches)


def _meaning(schema: Any) -> str:
    return canonical_form(schema, LOGICAL)


def _untagged(value: Any) -> Any:
    """A value without the names that unions of named types carry (see `reader.reader`)."""
    if type(value) is tuple:
        return _untagged(value[1])
    if type(value) is list:
        return [_untagged(each) for each in value]
    if type(value) is dict:
        return {key: _untagged(each) for key, each in value.items()}
    return value


class Fit:
    """Makes Python values what an Avro writer takes for a given type.

    Raises TypeError, ValueError or OverflowError where none fits.
    """

    def __init__(self, schema: Schema) -> None:
        self._named = schema.named

    def value(self, schema: Any, value: Any) -> Any:
        if isinstance(schema, list):
            return self._member(schema, value)
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        if isinstance(value, Enum) and kind_of(schema) != "enum":
            value = value.value
        fits = _FITS.get(kind_of(schema))
        found = fits(self, schema, value) if fits else None
        if found is None and kind_of(schema) != "null":
            raise TypeError(f"a {type(value).__name__} is no {tag_of(schema)}")
        return found

    def _member(self, schema: Sequence[Any], value: Any) -> Any:
        if value is None and "null" in schema:
            return None
        members = [branch for branch in schema if branch != "null"]
        for branch in members:
            try:
                fitted = self.value(branch, value)
            except (TypeError, ValueError, OverflowError):
                continue
            return fitted if len(members) == 1 else (tag_of(branch), fitted)
        raise TypeError(f"no member of the union takes a {type(value).__name__}")

    def _null(self, schema: Any, value: Any) -> Any:
        if value is not None:
            raise TypeError(f"a {type(value).__name__} is no null")

    def _boolean(self, schema: Any, value: Any) -> Any:
        return value if type(value) is bool else None

    def _number(self, schema: Any, value: Any) -> Any:
        if isinstance(value, timedelta):
            return value // timedelta(microseconds=1)
        if isinstance(value, int) and kind_of(schema) == "int":
            int_bytes(value)
        return value if isinstance(value, (int, date, datetime, time)) and type(value) is not bool else None

    def _real(self, schema: Any, value: Any) -> Any:
        return float(value) if isinstance(value, (int, float, Decimal)) and type(value) is not bool else None

    def _text(self, schema: Any, value: Any) -> Any:
        if isinstance(value, (date, time)):
            return value.isoformat()
        return str(value) if isinstance(value, (str, UUID, Decimal)) else None

    def _bytes(self, schema: Any, value: Any) -> Any:
        return value if isinstance(value, (bytes, Decimal)) else None

    def _enum(self, schema: Any, value: Any) -> Any:
        texts = (value.value, value.name) if isinstance(value, Enum) else (value,)
        return next((text for text in texts if text in schema["symbols"]), None)

    def _array(self, schema: Any, value: Any) -> Any:
        if not isinstance(value, (list, tuple, set, frozenset)):
            return None
        return [self.value(schema["items"], each) for each in value]

    def _map(self, schema: Any, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return None
        return {key: self.value(schema["values"], each) for key, each in value.items()}

    def _record(self, schema: Any, value: Any) -> Any:
        if isinstance(value, BaseModel):
            value = {name: getattr(value, name) for name in type(value).model_fields}
        if not isinstance(value, Mapping):
            return None
        known = (field for field in schema["fields"] if field["name"] in value)
        return {field["name"]: self.value(field["type"], value[field["name"]]) for field in known}


_FITS: dict[str, Callable[[Fit, Any, Any], Any]] = {
    "null": Fit._null,
    "boolean": Fit._boolean,
    "int": Fit._number,
    "long": Fit._number,
    "float": Fit._real,
    "double": Fit._real,
    "string": Fit._text,
    "bytes": Fit._bytes,
    "fixed": Fit._bytes,
    "enum": Fit._enum,
    "array": Fit._array,
    "map": Fit._map,
    "record": Fit._record,
    "error": Fit._record,
}
