"""A job type's payload: arguments to bytes and back.

A value is framed by its first bytes (docs/wire-format.md): `C3 01` and the fingerprint of the writer's schema (Avro
specification, "Single object encoding"), or `00` and 4 bytes of a registry's schema id. Values that this very schema wrote
are read by a generated reader, straight into the tuple with which the handler is called; all others are resolved to the
current schema, then validated.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction
from io import BytesIO
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from fastavro import schemaless_writer
from pydantic import BaseModel, TypeAdapter, ValidationError

from streamjobs.avro.declared import load, unwritten
from streamjobs.avro.derive import REQUIRED, Parameter, derive
from streamjobs.avro.people import from_json
from streamjobs.avro.reader import WriteRows, Written, binder, reader, rows_writer, writer
from streamjobs.avro.resolution import Resolution
from streamjobs.avro.schema import Schema
from streamjobs.avro.shapes import Convert, exact_types, spelled
from streamjobs.avro.store import SINGLE_OBJECT, SchemaStore, frame_of, framed_with
from streamjobs.core.record import CONTENT_TYPE_UNFRAMED, SINGLE_OBJECT_HEAD
from streamjobs.errors import DecodeError, JobTypeError, PayloadError, text_of

Read = Callable[[bytes, int], tuple[Any, ...]]

#: What a call gives back whose body has not begun.
_NOT_RUN = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})


class Payload:
    """What a job type's jobs carry. Raises JobTypeError for a signature that can't travel.

    `schema`: the Avro record. `canonical`: its JSON text, whole, for the schema topic. `fingerprint`: 8 bytes, the topic's key.
    `avro`: the three in one, for a SchemaStore. `names`: the handler's parameters that travel. `run_parameter`: the one
    annotated `Job`, or "". `fields`: those of the record, which are the model's where `model` is the whole payload.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, schema: str | None = None) -> None:
        self.name = name or fn.__name__
        declared = None if schema is None else load(fn, self.name, schema)
        self._signature = signature = derive(fn, self.name, declared)
        self.avro = declared or Schema.of(signature.record)
        self.schema: dict[str, Any] = json.loads(self.avro.text)
        self.canonical = self.avro.text
        self.fingerprint = self.avro.fingerprint
        self.names = signature.names
        self.run_parameter = signature.run_parameter
        self.model = signature.model
        self.fields = tuple(field["name"] for field in self.schema["fields"])
        self._converts = {each.name: each.shape.read for each in signature.parameters if each.shape.read}
        self._head = SINGLE_OBJECT + self.fingerprint
        self._validate = signature.validator().validate_python
        self._defaults = {each.name: each.default for each in signature.parameters if each.default is not REQUIRED}
        self._positional = tuple(each.name for each in signature.parameters if not each.keyword_only)
        self._declared = declared is not None
        self._extras = unwritten(self.avro, self._record_names())
        self._write = self._writer()
        takes = self._taken_as_they_are()
        self._write_rows = self._rows_writer(takes)
        self._bind_exact = binder(takes) if takes else None
        self._current = self._current_reader()
        self.readers: dict[bytes, tuple[Read, int]] = {self._head: (self._current, SINGLE_OBJECT_HEAD)}
        """Of the writers' schemas met so far, by the first bytes of their values: what reads one, and from where."""

    def _record_names(self) -> tuple[str, ...]:
        return self.names if self.model is None else tuple(self.model.model_fields)

    # Arguments in -----------------------------------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, validated, with defaults. Raises PayloadError naming the first one at fault."""
        if self._bind_exact is not None and (exact := self._bind_exact(args, kwargs)) is not None:
            return exact
        if args:
            kwargs = self._by_name(args, kwargs)
        try:
            valid: dict[str, Any] = self._validate(kwargs)
        except ValidationError as problem:
            raise self._refused(problem) from None
        return {**self._defaults, **valid} if self._defaults else valid

    def bind_row(self, row: Any) -> dict[str, Any]:
        """One row of many: a mapping, a tuple of positional arguments, or the payload's model. Raises PayloadError."""
        if isinstance(row, (tuple, list)):
            return self.bind(tuple(row), {})
        if isinstance(row, (dict, Mapping)):
            return self.bind((), row)
        if isinstance(row, BaseModel):
            return self.bind((row,), {})
        raise PayloadError(f"{self.name}: a row is a mapping of arguments, a tuple of them or a model, not {type(row).__name__}")

    def validate(self, mapping: Mapping[str, Any], *, of_today: bool = True) -> dict[str, Any]:
        """As `bind`, from data such as JSON gives: the parameters, or the fields of the model that is the payload.

        `of_today`: written for this version of the code, so that a model may refuse fields that it does not know.
        """
        try:
            given = from_json(mapping)
        except ValueError as problem:
            raise PayloadError(f"{self.name}: {problem}") from None
        except RecursionError:
            raise PayloadError(f"{self.name}: the arguments are nested too deeply") from None
        if self.model is not None and (set(given) != set(self.names) or self.names[0] in self.fields):
            given = {self.names[0]: given}
        return self.bind((), {name: self._from_people(name, value, of_today=of_today) for name, value in given.items()})

    def _from_people(self, name: str, value: Any, *, of_today: bool) -> Any:
        """Enum symbols made members where they are; pydantic says what is wrong with the rest."""
        convert = self._converts.get(name)
        if convert is None or (of_today and self._has_forbidden(name, value)):
            return value
        try:
            return convert(value)
        except Exception:  # noqa: BLE001  (it is validated next, with a better message)
            return value

    def _has_forbidden(self, name: str, value: Any) -> bool:
        """*Bites*: a model forbids fields that it does not know; one that is misspelled is left out on the way to it, and the job runs
        without."""
        try:
            self._validate({name: value})
        except ValidationError as problem:
            return any(fault["type"] == "extra_forbidden" for fault in problem.errors(include_url=False, include_input=False))
        return False

    def encode(self, arguments: Mapping[str, Any]) -> bytes:
        """The framed value of arguments as `bind` gave them. Raises PayloadError for what Avro can't hold."""
        try:
            return self._write(arguments)
        except Exception as problem:
            raise self._unwritable(arguments, problem) from problem

    def encode_many(self, rows: Iterable[Any]) -> tuple[list[bytes], list[Sequence[Any]]]:
        """The framed values of many rows (see `bind_row`), and their arguments in the order of `names`.

        Raises PayloadError naming the row. Where all of a row's arguments are of just the types that the signature asks for,
        validating them would change nothing, and they are written at once.
        """
        if self._write_rows is not None:
            return self._write_rows(rows, self._bound_and_encoded)
        done = [self._bound_and_encoded(number, row) for number, row in enumerate(rows)]
        return [value for value, _ in done], [arguments for _, arguments in done]

    def _bound_and_encoded(self, number: int, row: Any) -> Written:
        try:
            arguments = self.bind_row(row)
            return self.encode(arguments), tuple(map(arguments.__getitem__, self.names))
        except PayloadError as problem:
            raise PayloadError(f"row {number}: {problem}", problem.field) from problem

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise PayloadError(f"{self.name} takes {len(self._positional)} positional arguments, not {len(args)}: {self._takes()}")
        named = dict(zip(self._positional, args, strict=False))
        if not kwargs:
            return named
        twice = next((name for name in named if name in kwargs), None)
        if twice:
            raise PayloadError(f"{self.name}: {twice} is given twice, by position and by name", twice)
        return named | dict(kwargs)

    def _takes(self) -> str:
        return "it takes " + ", ".join(f"{each.name}: {spelled(each.annotation)}" for each in self._signature.parameters)

    def _refused(self, problem: ValidationError) -> PayloadError:
        faults = problem.errors(include_url=False, include_input=False)
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden" and len(fault["loc"]) > 1), faults[0])
        path = [str(each) for each in first["loc"]]
        field = ".".join(path[1:] if self.model is not None and len(path) > 1 else path)
        return PayloadError(f"{self.name}: {field}{self._fault(first, path)}", field)

    def _fault(self, fault: Mapping[str, Any], path: Sequence[str]) -> str:
        """What is wrong with a parameter, or with a field inside of one."""
        if fault["type"] == "missing":
            return f" is missing; {self._takes()}"
        if fault["type"] == "extra_forbidden":
            if path == [self.run_parameter]:
                return " is none of its parameters: the worker gives it, leave it out"
            return f" is none of its {'parameters' if len(path) == 1 else 'fields'}; {self._takes()}"
        why = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
        own = next((each for each in self._signature.parameters if path == [each.name]), None)
        return f": {why}" if own is None else f" takes {spelled(own.annotation)}: {why}"

    def _unwritable(self, arguments: Mapping[str, Any], problem: Exception) -> PayloadError:
        for each in self._signature.parameters:
            try:
                self._write_alone(each, arguments)
            except Exception as found:  # noqa: BLE001  (whatever it is, it is this argument's)
                return PayloadError(f"{self.name}: {each.name} can't be stored: {_why(found, arguments[each.name])}", each.name)
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
        if self.model is not None:
            only, as_record = self.names[0], self._signature.parameters[0].shape.write
            write = self._record_writer({})
            return lambda arguments: write(as_record(arguments[only]))  # type: ignore[misc]
        return self._record_writer({each.name: each.shape.write for each in self._signature.parameters if each.shape.write})

    def _taken_as_they_are(self) -> dict[str, tuple[type, ...]]:
        """Of each parameter the types that need no validation; empty: not every one has such, or can be given by its place."""
        takes = {each.name: () if each.keyword_only else exact_types(each.annotation, each.shape) for each in self._signature.parameters}
        return takes if all(takes.values()) else {}

    def _rows_writer(self, takes: Mapping[str, Sequence[type]]) -> WriteRows | None:
        """For flat records of parameters that need no more than a look at their arguments' types."""
        return rows_writer(self.avro, self._head, takes) if takes and set(takes) == set(self.fields) else None

    def _record_writer(self, convert: Mapping[str, Convert]) -> Callable[[Mapping[str, Any]], bytes]:
        """A generated writer for flat records, fastavro for the rest."""
        generated = None if self._extras else writer(self.avro, self._head, convert)
        return generated or (lambda record: self._write_any(_converted(record, convert)))

    def _write_any(self, record: Mapping[str, Any]) -> bytes:
        buffer = BytesIO()
        buffer.write(self._head)
        schemaless_writer(buffer, self.avro.parsed, {**self._extras, **record})
        return buffer.getvalue()

    # Arguments out ----------------------------------------------------------------------------------------------------

    def decode(self, value: bytes, store: SchemaStore, content_type: bytes = b"") -> tuple[Any, ...]:
        """The positional arguments for `caller`. Raises DecodeError, or UnknownSchemaError; never anything else, but for Ctrl-C.

        *Bites*: a model's validator raises a signal, such as `Reject`: no `Exception`, so it ends the loop that reads the job, and that of
        each next owner.
        """
        try:
            if content_type == CONTENT_TYPE_UNFRAMED:
                return self._current(value, 0)
            found = self.readers.get(value[:SINGLE_OBJECT_HEAD])
            read, at = found or self._reader_for(value, store)
            return read(value, at)
        except (DecodeError, KeyboardInterrupt):
            raise
        except BaseException as problem:
            raise self._undecodable(problem) from problem

    def _reader_for(self, value: bytes, store: SchemaStore) -> tuple[Read, int]:
        frame = frame_of(value)
        found = self.readers.get(frame)
        if found is None:
            found = self.readers[frame] = self._read_with(*framed_with(value, store))
        return found

    def _read_with(self, written: Schema, at: int) -> tuple[Read, int]:
        if written.meaning == self.avro.meaning:
            return self._current, at
        try:
            return self._resolving_reader(written), at
        except Exception as problem:
            raise DecodeError(f"{self.name}: the writer's schema can't be used: {_said(problem)}") from problem

    def _current_reader(self) -> Read:
        """For values of the current schema: nothing is validated again but what the schema does not say."""
        parameters = self._signature.parameters
        if self.model is not None:
            build, whole = parameters[0].shape.read, reader(self.avro, as_dict=True)
            return lambda value, at: (build(whole(value, at)),)  # type: ignore[misc]
        convert = {each.name: made for each in parameters if (made := _on_run(each))}
        if self.fields == self.names:
            read: Read = reader(self.avro, convert)
            return read
        whole, names = reader(self.avro, convert, as_dict=True), self.names
        return lambda value, at: tuple(map(whole(value, at).__getitem__, names))

    def _resolving_reader(self, written: Schema) -> Read:
        """For values of another schema: resolved, then validated as when they are published; Python's defaults."""
        read, resolution = reader(written, as_dict=True, branches=True), Resolution(written, self.avro, fill=self._declared)
        names, only, converts = self.names, self.names[0] if self.model is not None else "", self._converts

        def resolved(value: bytes, at: int) -> tuple[Any, ...]:
            record = resolution.convert(read(value, at))
            given = {only: record} if only else record
            given = {name: converts[name](value) if name in converts else value for name, value in given.items() if name in names}
            arguments = {**self._defaults, **self._validate(given)}
            return tuple([arguments[name] for name in names])

        return resolved

    def _undecodable(self, problem: BaseException) -> DecodeError:
        if isinstance(problem, ValidationError):
            first = problem.errors(include_url=False, include_input=False)[0]
            return DecodeError(f"{self.name}: the payload does not fit: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        return DecodeError(f"{self.name}: the payload can't be read: {_said(problem)}")

    def caller(self, fn: Callable[..., Any]) -> Callable[[Any], Any]:
        """`call(job)`: calls the handler with `job.args` as `decode` gave them, and with the run if it asks for it.

        Generated: for a call with `*job.args` the interpreter leaves its loop and begins another one.
        """
        made: dict[str, Any] = {"fn": fn, "not_run": _NOT_RUN, "refuse": self._refuse_unrun}
        exec(compile(self._call(iscoroutinefunction(fn)), "<call of a handler>", "exec"), made)  # noqa: S102
        call: Callable[[Any], Any] = made["call"]
        return call

    def _refuse_unrun(self, result: Coroutine[Any, Any, Any] | Generator[Any, Any, Any] | AsyncGenerator[Any, Any]) -> None:
        """*Bites*: a decorator that is not async is put around an async handler: it looks like any function, gives back a coroutine that
        nobody runs, and its jobs succeed. Or around one that has a `yield` in it."""
        if not isinstance(result, Coroutine):
            raise JobTypeError(f"job type {self.name}: its function gave back a generator, of which nothing has run: leave `yield` out of it")
        result.close()
        raise JobTypeError(
            f"job type {self.name}: its function is no async one and gave back a coroutine, which nobody runs: let what decorates an async "
            "function be async, too"
        )

    def _call(self, is_async: bool) -> str:
        """Source of a call that passes the run, and what is keyword-only, by their places and names."""
        values = [f"v{place}" for place in range(len(self._signature.parameters))]
        arguments = [f"{each.name}={value}" if each.keyword_only else value for value, each in zip(values, self._signature.parameters, strict=True)]
        if self._signature.run_keyword_only:
            arguments.append(f"{self.run_parameter}=job")
        elif self.run_parameter:
            arguments.insert(self._signature.run_position, "job")
        call = f"def call(job):\n    [{', '.join(values)}] = job.args\n    "
        if is_async:
            return f"{call}return fn({', '.join(arguments)})"
        looked_at = "if result is not None and type(result) in not_run: refuse(result)"
        return f"{call}result = fn({', '.join(arguments)})\n    {looked_at}\n    return result"


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


def _why(problem: Exception, value: Any) -> str:
    """*Bites*: "Python int too large to convert to C long" says nothing to who sent a number as JSON."""
    return "a whole number has at most 64 bits" if any(not -(2**63) <= number < 2**63 for number in _numbers(value)) else _said(problem)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, BaseModel):
        yield from _numbers(vars(value))
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)


def _said(problem: BaseException) -> str:
    if isinstance(problem, IndexError):
        return "it is cut off"
    return text_of(problem) or type(problem).__name__
