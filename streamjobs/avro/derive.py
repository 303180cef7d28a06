"""From a handler's signature to what travels: its parameters, the Avro record of them, and the validator.

The record's name is the job type's, in the namespace `streamjobs`: a job type `billing.send-invoice` travels as
`streamjobs.billing.send_invoice`. Where a schema has logical types, the namespace carries a digest of them
(`streamjobs.t_1f2e3d4c`): the specification's canonical form leaves logical types out, so without it `at: int` and
`at: datetime` had one fingerprint, and microseconds were read as seconds. Nobody resolves by namespace, so it breaks nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, get_type_hints
from zlib import crc32

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from streamjobs.avro.declared import adopt, model_shape
from streamjobs.avro.schema import NAME, Schema
from streamjobs.avro.shapes import ALLOWED, Shape, Shapes, Unfit, clean_name, record_field, spelled
from streamjobs.errors import JobTypeError

NAMESPACE = "streamjobs"

#: A parameter without a default.
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that travels. `default` is REQUIRED where there is none."""

    name: str
    annotation: Any
    shape: Shape
    default: Any
    keyword_only: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a function travels. `model`: its only parameter is a pydantic model and is the record itself.

    `run_parameter`: the parameter that takes the run (annotated `Job`), or "".
    """

    job_type: str
    parameters: tuple[Parameter, ...]
    run_parameter: str
    run_keyword_only: bool
    run_position: int
    model: type[BaseModel] | None
    record: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def validator(self) -> TypeAdapter[Any]:
        """Takes a dict of arguments, says which one is at fault; defaults are not filled in."""
        fields = {
            each.name: each.annotation if each.default is REQUIRED else NotRequired[each.annotation]
            for each in self.parameters
        }
        typed = _typed_dict(self.job_type, fields)
        typed.__pydantic_config__ = ConfigDict(extra="forbid")
        return TypeAdapter(typed)


_typed_dict: Any = TypedDict


class RunMarker:
    """Stands for `Job` where a handler's module imports it for type checkers only."""


def derive(fn: Callable[..., Any], job_type: str, declared: Schema | None = None) -> Signature:
    """Raises JobTypeError naming the parameter, its type and what is allowed. `declared`: the schema is given, not derived."""
    hints = _hints(fn, job_type)
    own, run = [], ("", False, 0)
    for place, parameter in enumerate(inspect.signature(fn).parameters.values()):
        annotation = hints.get(parameter.name, REQUIRED)
        if is_run(annotation):
            run = (parameter.name, parameter.kind is parameter.KEYWORD_ONLY, place)
        else:
            own.append(_checked(parameter, annotation, job_type))
    return _adopting(job_type, own, hints, run, declared) if declared else _signature(job_type, own, hints, run)


def _signature(
    job_type: str, own: list[inspect.Parameter], hints: Mapping[str, Any], run: tuple[str, bool, int]
) -> Signature:
    space, _, short = ".".join((NAMESPACE, *map(clean_name, job_type.split(".")))).rpartition(".")
    made, model, record = _record(job_type, own, hints, space, short)
    if mark := _mark(record):
        made, model, record = _record(job_type, own, hints, f"{space}.{mark}", short)
    return Signature(job_type, made, *run, model, record)


def _adopting(
    job_type: str,
    own: list[inspect.Parameter],
    hints: Mapping[str, Any],
    run: tuple[str, bool, int],
    declared: Schema,
) -> Signature:
    """The signature with the shapes that a given schema asks for; there an annotation need not be derivable."""
    model = _only_model(own, hints)
    if model:
        adopt(dict.fromkeys(model.model_fields), declared, job_type)
        shapes = {own[0].name: model_shape(model, declared)}
    else:
        shapes = adopt({each.name: _derivable(hints[each.name]) for each in own}, declared, job_type)
    for each in own:
        _check_default(each, hints[each.name], job_type)
    made = tuple(
        Parameter(each.name, hints[each.name], shapes[each.name], each.default, each.kind is each.KEYWORD_ONLY) for each in own
    )
    return Signature(job_type, made, *run, model, declared.parsed)


def _derivable(annotation: Any) -> Shape | None:
    try:
        return Shapes(NAMESPACE).of(annotation)
    except Unfit:
        return None


def _only_model(own: list[inspect.Parameter], hints: Mapping[str, Any]) -> type[BaseModel] | None:
    only = hints[own[0].name] if len(own) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def _record(
    job_type: str, own: list[inspect.Parameter], hints: Mapping[str, Any], space: str, short: str
) -> tuple[tuple[Parameter, ...], type[BaseModel] | None, dict[str, Any]]:
    shapes = Shapes(space, taken=(short,))
    model = _only_model(own, hints)
    whole = f"{space}.{short}" if model else None
    made = tuple(_parameter(each, hints[each.name], shapes, job_type, whole) for each in own)
    if model:
        return made, model, made[0].shape.schema
    return made, None, {"type": "record", "name": f"{space}.{short}", "fields": [_field(each) for each in made]}


def _parameter(
    parameter: inspect.Parameter, annotation: Any, shapes: Shapes, job_type: str, record_name: str | None
) -> Parameter:
    try:
        shape = shapes.model(annotation, record_name) if record_name else shapes.of(annotation)
    except Unfit as problem:
        path = ".".join((parameter.name, *problem.where))
        raise JobTypeError(f"job type {job_type}: the parameter {path}: {spelled(annotation)} does not fit: {problem}") from None
    if (record_name and not isinstance(shape.schema, dict)) or (record_name and shape.schema["type"] != "record"):
        raise JobTypeError(f"job type {job_type}: the parameter {parameter.name} is a root model, which is no record: use fields")
    _check_default(parameter, annotation, job_type)
    return Parameter(parameter.name, annotation, shape, parameter.default, parameter.kind is parameter.KEYWORD_ONLY)


def _field(parameter: Parameter) -> dict[str, Any]:
    return record_field(parameter.name, parameter.shape, parameter.default is not REQUIRED, parameter.default)


def _checked(parameter: inspect.Parameter, annotation: Any, job_type: str) -> inspect.Parameter:
    name = parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        raise JobTypeError(f"job type {job_type}: {stars}{name} has no fixed fields: name every parameter and its type")
    if annotation is REQUIRED:
        raise JobTypeError(f"job type {job_type}: the parameter {name} has no type; annotate it with one of {ALLOWED}")
    if not NAME.fullmatch(name):
        raise JobTypeError(f"job type {job_type}: the parameter {name} has a name that Avro does not take: use ASCII letters")
    if isinstance(parameter.default, FieldInfo):
        raise JobTypeError(
            f"job type {job_type}: the parameter {name} has Field(…) as its default, which a direct call would pass on: "
            "write Annotated[type, Field(…)] = default"
        )
    return parameter


def _check_default(parameter: inspect.Parameter, annotation: Any, job_type: str) -> None:
    if parameter.default is REQUIRED:
        return
    try:
        TypeAdapter(annotation).validate_python(parameter.default, strict=True)
    except ValidationError as problem:
        raise JobTypeError(
            f"job type {job_type}: the parameter {parameter.name} is {spelled(annotation)}, but its default is not: "
            f"{problem.errors(include_url=False, include_input=False)[0]['msg']}"
        ) from None


def is_run(annotation: Any) -> bool:
    """Whether a parameter takes the run. By name, so that a job type's module is not needed here."""
    if annotation is RunMarker:
        return True
    return isinstance(annotation, type) and (annotation.__module__, annotation.__qualname__) == ("streamjobs.job", "Job")


def _hints(fn: Callable[..., Any], job_type: str) -> dict[str, Any]:
    known = getattr(inspect.unwrap(fn), "__globals__", {})
    local = {} if "Job" in known else {"Job": RunMarker}
    try:
        return get_type_hints(fn, localns=local, include_extras=True)
    except Exception as problem:
        raise JobTypeError(
            f"job type {job_type}: its types can't be resolved ({problem}): import them in the handler's module, "
            "not only for type checkers or inside a function"
        ) from problem


def _mark(record: dict[str, Any]) -> str:
    """A digest of the record's logical types; "": it has none."""
    whole = Schema.of(record)
    return "" if whole.meaning == whole.canonical else f"t_{crc32(whole.meaning.encode()):08x}"
