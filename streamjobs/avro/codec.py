"""A job type's payload: arguments to bytes and back.

A value is framed by its first bytes (DESIGN.md §3): `C3 01` and the fingerprint of the writer's schema (Avro
specification, "Single object encoding"), or `00` and 4 bytes of a registry's schema id. Values that this very schema wrote
are read by a generated reader, straight into the tuple with which the handler is called; all others are resolved to the
current schema, then validated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from fastavro import schemaless_writer
from pydantic import BaseModel, TypeAdapter, ValidationError

from streamjobs.avro.derive import REQUIRED, Parameter, derive
from streamjobs.avro.reader import reader, writer
from streamjobs.avro.resolution import Resolution
from streamjobs.avro.schema import Schema
from streamjobs.avro.shapes import Convert, spelled
from streamjobs.avro.store import SchemaStore
from streamjobs.core.record import CONTENT_TYPE_UNFRAMED
from streamjobs.errors import DecodeError, PayloadError

SINGLE_OBJECT = b"\xc3\x01"
#: Bytes before the payload: `C3 01` and a fingerprint; `00` and a registry's id.
SINGLE_OBJECT_HEAD = 10
REGISTRY_HEAD = 5

Read = Callable[[bytes, int], tuple[Any, ...]]


class Payload:
    """What a job type's jobs carry. Raises JobTypeError for a signature that can't travel.

    `schema`: the Avro record. `canonical`: its JSON text, whole, for the schema topic. `fingerprint`: 8 bytes, the topic's key.
    `names`: the handler's parameters that travel. `run_parameter`: the one annotated `Job`, or "".
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, schema: str | None = None) -> None:
        self.name = name or fn.__name__
        self._signature = signature = derive(fn, self.name)
        self._schema = Schema.of(signature.record)
        self.schema: dict[str, Any] = signature.record
        self.canonical = self._schema.text
        self.fingerprint = self._schema.fingerprint
        self.names = signature.names
        self.run_parameter = signature.run_parameter
        self.model = signature.model
        self.fields = tuple(field["name"] for field in self.schema["fields"])
        self._head = SINGLE_OBJECT + self.fingerprint
        self._validate = signature.validator().validate_python
        self._defaults = {each.name: each.default for each in signature.parameters if each.default is not REQUIRED}
        self._positional = tuple(each.name for each in signature.parameters if not each.keyword_only)
        self._write = self._writer()
        self._current = self._current_reader()
        self._readers: dict[bytes, tuple[Read, int]] = {self._head: (self._current, SINGLE_OBJECT_HEAD)}

    # Arguments in -----------------------------------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, validated, with defaults. Raises PayloadError naming the first one at fault."""
        if args:
            kwargs = self._by_name(args, kwargs)
        try:
            valid: dict[str, Any] = self._validate(kwargs)
        except ValidationError as problem:
            raise self._refused(problem) from None
        return {**self._defaults, **valid} if self._defaults else valid

    def bind_row(self, row: Any) -> dict[str, Any]:
        """One row of many: a mapping, a tuple of positional arguments, or the payload's model. Raises PayloadError."""
        if isinstance(row, Mapping):
            return self.validate(row)
        if isinstance(row, (tuple, list)):
            return self.bind(tuple(row), {})
        if isinstance(row, BaseModel):
            return self.bind((row,), {})
        raise PayloadError(f"{self.name}: a row is a mapping of arguments, a tuple of them or a model, not {type(row).__name__}")

    def validate(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        """As `bind`, from data such as JSON gives: the parameters, or the fields of the model that is the payload."""
        if self.model is not None and (set(mapping) != set(self.names) or self.names[0] in self.fields):
            return self.bind((), {self.names[0]: dict(mapping)})
        return self.bind((), mapping)

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """The framed value of arguments as `bind` gave them. Raises PayloadError for what Avro can't hold."""
        try:
            return self._write(arguments)
        except Exception as problem:
            raise self._unwritable(arguments, problem) from problem

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise PayloadError(f"{self.name} takes {len(self._positional)} positional arguments, not {len(args)}: {self._takes()}")
        named = dict(zip(self._positional, args, strict=False))
        twice = next((name for name in named if name in kwargs), None)
        if twice:
            raise PayloadError(f"{self.name}: {twice} is given twice, by position and by name", twice)
        return named | dict(kwargs)

    def _takes(self) -> str:
        return "it takes " + ", ".join(f"{each.name}: {spelled(each.annotation)}" for each in self._signature.parameters)

    def _refused(self, problem: ValidationError) -> PayloadError:
        first = problem.errors(include_url=False, include_input=False)[0]
        path = [str(each) for each in first["loc"]]
        field = ".".join(path[1:] if self.model is not None and len(path) > 1 else path)
        if first["type"] == "missing":
            return PayloadError(f"{self.name}: {field} is missing; {self._takes()}", field)
        if first["type"] == "extra_forbidden":
            why = ": the worker gives it, leave it out" if field == self.run_parameter else f"; {self._takes()}"
            return PayloadError(f"{self.name}: {field} is none of its parameters{why}", field)
        asked = {each.name: spelled(each.annotation) for each in self._signature.parameters}.get(path[0] if path else "", "")
        return PayloadError(f"{self.name}: {field} takes {asked}: {first['msg'][:1].lower()}{first['msg'][1:]}", field)

    def _unwritable(self, arguments: Mapping[str, Any], problem: Exception) -> PayloadError:
        for each in self._signature.parameters:
            try:
                self._write_alone(each, arguments)
            except Exception as found:  # noqa: BLE001  (whatever it is, it is this argument's)
                return PayloadError(f"{self.name}: {each.name} can't be stored: {found}", each.name)
        return PayloadError(f"{self.name}: the arguments can't be stored: {problem}")

    def _write_alone(self, parameter: Parameter, arguments: Mapping[str, Any]) -> None:
        value, shape = arguments[parameter.name], parameter.shape
        only = {"type": "record", "name": "only", "fields": [{"name": "it", "type": shape.schema}]}
        try:
            schemaless_writer(BytesIO(), Schema.of(only).parsed, {"it": shape.write(value) if shape.write else value})
        except ValueError as problem:
            if not str(problem).startswith("no Avro schema"):
                raise

    def _writer(self) -> Callable[[Mapping[str, Any]], bytes]:
        parameters = self._signature.parameters
        if self.model is not None:
            only, write = parameters[0].name, parameters[0].shape.write
            whole = writer(self._schema, self._head, {}) or self._write_any
            return lambda arguments: whole(write(arguments[only]))  # type: ignore[misc]
        convert = {each.name: each.shape.write for each in parameters if each.shape.write}
        return writer(self._schema, self._head, convert) or (lambda arguments: self._write_any(_converted(arguments, convert)))

    def _write_any(self, record: Mapping[str, Any]) -> bytes:
        buffer = BytesIO()
        buffer.write(self._head)
        schemaless_writer(buffer, self._schema.parsed, record)
        return buffer.getvalue()

    # Arguments out ----------------------------------------------------------------------------------------------------

    def decode(self, value: bytes, store: SchemaStore, content_type: bytes = b"") -> tuple[Any, ...]:
        """The positional arguments for `caller`. Raises DecodeError, or UnknownSchemaError; never anything else."""
        if content_type == CONTENT_TYPE_UNFRAMED:
            read, at = self._current, 0
        else:
            found = self._readers.get(value[:SINGLE_OBJECT_HEAD])
            read, at = found or self._reader_for(value, store)
        try:
            return read(value, at)
        except Exception as problem:
            raise self._undecodable(problem) from problem

    def _reader_for(self, value: bytes, store: SchemaStore) -> tuple[Read, int]:
        key, at = _frame(value)
        found = self._readers.get(key)
        if found is None:
            found = self._readers[key] = self._read_with(written_by(value, store), at)
        return found

    def _read_with(self, written: Schema, at: int) -> tuple[Read, int]:
        if written.meaning == self._schema.meaning:
            return self._current, at
        try:
            return self._resolving_reader(written), at
        except Exception as problem:
            raise DecodeError(f"{self.name}: the writer's schema can't be used: {_said(problem)}") from problem

    def _current_reader(self) -> Read:
        """For values of the current schema: nothing is validated again but what the schema does not say."""
        parameters = self._signature.parameters
        if self.model is not None:
            build, whole = parameters[0].shape.read, reader(self._schema, as_dict=True)
            return lambda value, at: (build(whole(value, at)),)  # type: ignore[misc]
        convert = {each.name: made for each in parameters if (made := _on_run(each))}
        read: Read = reader(self._schema, convert)
        return read

    def _resolving_reader(self, written: Schema) -> Read:
        """For values of another schema: resolved, then validated as when they are published; Python's defaults."""
        read, resolution = reader(written, as_dict=True, branches=True), Resolution(written, self._schema)
        converts = [(each.name, each.shape.read) for each in self._signature.parameters]
        names, only = self.names, self.names[0] if self.model is not None else ""

        def resolved(value: bytes, at: int) -> tuple[Any, ...]:
            record = resolution.convert(read(value, at))
            given = {only: record} if only else record
            given = {name: convert(given[name]) if convert else given[name] for name, convert in converts if name in given}
            arguments = {**self._defaults, **self._validate(given)}
            return tuple([arguments[name] for name in names])

        return resolved

    def _undecodable(self, problem: Exception) -> DecodeError:
        if isinstance(problem, ValidationError):
            return DecodeError(f"{self.name}: the payload no longer fits: {self._refused(problem)}")
        return DecodeError(f"{self.name}: the payload can't be read: {_said(problem)}")

    def caller(self, fn: Callable[..., Any]) -> Callable[[Any], Any]:
        """`call(job)`: calls the handler with `job.args` as `decode` gave them, and with the run if it asks for it."""
        arguments = [f"{name}=a[{n}]" if each.keyword_only else f"a[{n}]" for n, (name, each) in enumerate(
            zip(self.names, self._signature.parameters, strict=True)
        )]
        if self._signature.run_keyword_only:
            arguments.append(f"{self.run_parameter}=job")
        elif self.run_parameter:
            arguments.insert(self._signature.run_position, "job")
        plain = not self.run_parameter and len(self._positional) == len(self.names)
        body = "fn(*job.args)" if plain else f"(lambda a: fn({', '.join(arguments)}))(job.args)"
        call: Callable[[Any], Any] = eval(f"lambda job: {body}", {"fn": fn})
        return call


def written_by(value: bytes, store: SchemaStore) -> Schema:
    """The schema that wrote a framed value. Raises UnknownSchemaError, or DecodeError for an unframed or empty one."""
    key, at = _frame(value)
    if at == REGISTRY_HEAD:
        return store.by_id(int.from_bytes(key[1:], "big"))
    return store.by_fingerprint(key[2:])


def _frame(value: bytes) -> tuple[bytes, int]:
    """A value's frame and its length."""
    if value[:2] == SINGLE_OBJECT and len(value) >= SINGLE_OBJECT_HEAD:
        return value[:SINGLE_OBJECT_HEAD], SINGLE_OBJECT_HEAD
    if value[:1] == b"\0" and len(value) >= REGISTRY_HEAD:
        return value[:REGISTRY_HEAD], REGISTRY_HEAD
    if not value:
        raise DecodeError("the value is empty: a payload begins with C3 01 and its schema's fingerprint")
    raise DecodeError(
        f"the value begins with {value[:2].hex(' ').upper()}, not with C3 01 and a fingerprint (single-object encoding) or 00 and a "
        "registry's schema id; an unframed value needs the header `content-type: application/avro; framing=none`"
    )


def _on_run(parameter: Parameter) -> Convert | None:
    """What turns a value of the current schema into the argument; None: it is the argument."""
    read = parameter.shape.read
    if not parameter.shape.checked:
        return read
    validate = TypeAdapter(parameter.annotation).validate_python

    def checked(value: Any) -> Any:
        try:
            return validate(read(value) if read else value)
        except ValidationError as problem:
            raise ValueError(f"{parameter.name}: {problem.errors(include_url=False, include_input=False)[0]['msg']}") from None

    return checked


def _converted(arguments: Mapping[str, Any], convert: Mapping[str, Convert]) -> dict[str, Any]:
    return {name: convert[name](value) if name in convert else value for name, value in arguments.items()}


def _said(problem: Exception) -> str:
    if isinstance(problem, IndexError):
        return "it is cut off"
    return str(problem) or type(problem).__name__
