"""A letter's payload with changes of a person's: decoded by its own schema, checked and encoded as its job type has it now."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from streamjobs import tables
from streamjobs.broker import Broker
from streamjobs.core.letters import Letter, Payload
from streamjobs.core.record import CONTENT_TYPE, Record
from streamjobs.core.topics import Names
from streamjobs.dead_letters.table import Application
from streamjobs.errors import DecodeError, PayloadError, UsageError
from streamjobs.job import JobType

Decode = Callable[[Letter], Any]
"""A letter's payload as what `json.dumps` takes. Raises DecodeError."""

#: So many fields whose text may be JSON or not are tried in every combination.
_MOST_GUESSES = 6


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a payload set anew. `path` leads through nested objects; of `values` the first that fits is taken."""

    path: tuple[str, ...]
    values: tuple[Any, ...]

    @classmethod
    def of(cls, field: str, value: Any) -> Change:
        return cls(tuple(field.split(".")), (value,))

    @classmethod
    def parse(cls, text: str) -> Change:
        """`field=value`: JSON if it is some, or else the text itself (`--set customer_id=42` sets text where text is taken).

        Raises UsageError.
        """
        field, equals, value = text.partition("=")
        if not (field and equals and all(field.split("."))):
            raise UsageError(f"--set {text!r} is not FIELD=VALUE")
        try:
            return cls(tuple(field.split(".")), (json.loads(value), value))
        except ValueError:
            return cls(tuple(field.split(".")), (value,))

    @property
    def field(self) -> str:
        return ".".join(self.path)


def changes_of(given: Mapping[str, Any] | Sequence[Change]) -> tuple[Change, ...]:
    """Changes as Python code says them (a mapping of fields), or as they are."""
    if isinstance(given, Mapping):
        return tuple(Change.of(field, value) for field, value in given.items())
    return tuple(given)


class Payloads:
    """Makes payloads for one app, and sees that the schemas they are written with are known before they travel."""

    def __init__(self, app: Application, decode: Decode) -> None:
        self._app = app
        self._decode = decode
        self._used: dict[bytes, str] = {}
        self._stored: set[bytes] = set()

    def changed(self, letter: Letter, changes: Sequence[Change]) -> Payload:
        """Raises PayloadError or DecodeError that says why the letter's payload can't be changed so."""
        job_type = self._job_type(letter)
        document = self._decode(letter)
        if not isinstance(document, dict):
            raise PayloadError(f"the payload is {type(document).__name__}, not an object with fields")
        arguments = _first_valid(job_type, document, changes)
        return self._encoded(job_type, arguments, self._key(letter, job_type, document, arguments))

    def made(self, letter: Letter, document: Mapping[str, Any]) -> Payload:
        """Of arguments that were written down whole. Raises PayloadError."""
        job_type = self._job_type(letter)
        arguments = job_type.payload.validate(document)
        return self._encoded(job_type, arguments, letter.meta.key if job_type.key is None else _bytes(job_type.key_of(arguments)))

    def store(self) -> None:
        """A schema is acknowledged before the first job that needs it. Raises BrokerError."""
        new = {fingerprint: text for fingerprint, text in self._used.items() if fingerprint not in self._stored}
        if new:
            store_schemas(self._app.broker, self._app.names, new)
            self._stored |= new.keys()

    def _job_type(self, letter: Letter) -> JobType[Any, Any]:
        found = self._app.job_types.get(letter.meta.job_type)
        if found is None:
            raise PayloadError(f"no job type {letter.meta.job_type!r} is known to app {self._app.name}, so nothing can check the payload")
        return found

    def _encoded(self, job_type: JobType[Any, Any], arguments: Mapping[str, Any], key: bytes | None) -> Payload:
        payload = job_type.payload
        value = payload.encode(arguments)
        self._used[payload.fingerprint] = payload.canonical
        return Payload(value, key, CONTENT_TYPE)

    def _key(
        self, letter: Letter, job_type: JobType[Any, Any], before: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> bytes | None:
        """The key follows the payload, unless the publisher had set another one than its job type makes."""
        if job_type.key is None:
            return letter.meta.key
        try:
            own = _bytes(job_type.key_of(job_type.payload.validate(_of_today(before, job_type), of_today=False)))
        except PayloadError:
            own = letter.meta.key
        return _bytes(job_type.key_of(arguments)) if own == letter.meta.key else letter.meta.key


def store_schemas(broker: Broker, names: Names, schemas: Mapping[bytes, str]) -> None:
    """Writes schemas (by fingerprint) to the topic in which workers look for them. Raises BrokerError."""
    tables.write_once(broker, [Record(names.schemas, text.encode(), key.hex().encode()) for key, text in schemas.items()])


def _first_valid(job_type: JobType[Any, Any], document: Mapping[str, Any], changes: Sequence[Change]) -> Mapping[str, Any]:
    """What was written as text may be meant as JSON: the first way in which all of it fits."""
    payload = job_type.payload
    for change in changes:
        if change.path[0] not in payload.fields:
            what = "parameters" if payload.model is None else "fields"
            raise PayloadError(f"{job_type.name}: {change.field} is none of its {what}: {', '.join(payload.fields)}", change.path[0])
    document = _of_today(document, job_type)
    guesses = [change.values if place < _MOST_GUESSES else change.values[:1] for place, change in enumerate(changes)]
    refusal: PayloadError | None = None
    for values in product(*guesses):
        try:
            return payload.validate(_with(document, changes, values), of_today=False)
        except PayloadError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _of_today(document: Mapping[str, Any], job_type: JobType[Any, Any]) -> dict[str, Any]:
    """What the job type still takes of it, by its name of today: as a worker reads it.

    *Bites*: a parameter is removed, and the letters from before can be replayed as they are, but not be mended.
    """
    payload = job_type.payload
    renamed = {alias: field["name"] for field in payload.schema["fields"] for alias in field.get("aliases", ())}
    names = {name: renamed.get(name, name) for name in document}
    return {names[name]: value for name, value in document.items() if names[name] in payload.fields}


def _with(document: Mapping[str, Any], changes: Sequence[Change], values: Sequence[Any]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(document))
    for change, value in zip(changes, values, strict=True):
        inner = changed
        for name in change.path[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise PayloadError(f"{change.field}: {name} is no object", change.path[0])
        inner[change.path[-1]] = value
    return changed


def _bytes(key: str | None) -> bytes | None:
    """Raises PayloadError."""
    try:
        return None if key is None else key.encode()
    except UnicodeEncodeError:
        raise PayloadError(f"its key would be {key!r}, which has lone surrogates: UTF-8 has none") from None


__all__ = ["Change", "Decode", "DecodeError", "Payloads", "changes_of", "store_schemas"]
