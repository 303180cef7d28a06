"""Letters as JSON: taken out whole, and put back, also where they were mended in between.

What a letter is stands in `id`, `headers` and `value` (base64), and on which table it lay in `topic`. What a person reads is beside it
(`payload`: decoded, secrets masked) and is not read back: whoever mends a letter adds its new payload as `arguments`, or changes `value`
or `headers`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from streamjobs.core.duration import instant
from streamjobs.core.filters import ALL, Filter
from streamjobs.core.letters import DIED, Kept, Letter, Payload, edited, readable
from streamjobs.core.record import Record, is_header_name, replaced
from streamjobs.dead_letters.orders import Move, Verdict
from streamjobs.dead_letters.payloads import Payloads
from streamjobs.dead_letters.table import Table
from streamjobs.errors import PayloadError, UsageError
from streamjobs.tables import Bounds

#: Bytes that are no text, in a header's value.
_BASE64 = "$base64"


def exported(letter: Letter, payload: object, problem: str) -> dict[str, Any]:
    """One letter as `json.dumps` takes it."""
    meta = letter.meta
    return {
        "id": letter.id,
        "topic": letter.topic,
        "died": instant(letter.died),
        "type": meta.job_type,
        "job_id": meta.job_id,
        "reason": meta.reason,
        "error": meta.error_type,
        "payload": payload,
        "problem": problem or letter.problem or None,
        "headers": [[name, _shown(value)] for name, value in letter.headers],
        "value": base64.b64encode(letter.value).decode(),
    }


def imported(row: Mapping[str, Any], topic: str, payloads: Payloads) -> Letter:
    """The letter that a row is, on this topic; in the partition that its key leads to. Raises UsageError saying what is wrong."""
    try:
        headers = [(_name(name), _raw(value)) for name, value in row["headers"]]
        value = base64.b64decode(row["value"], validate=True)
        key = row["id"].encode()
        died = _instant(row.get("died"))
    except KeyError as missing:
        raise UsageError(f"{missing} is missing: a letter has at least id, headers and value") from None
    except (TypeError, ValueError, AttributeError, binascii.Error) as problem:
        raise UsageError(f"it is no letter as `dlt export` writes one: {problem}") from None
    if not key:
        raise UsageError("its id is empty")
    _check_table(row, topic)
    meta, trouble = readable(headers)
    letter = Letter(topic, -1, -1, key, value, headers, meta, died, trouble)
    return _with_arguments(letter, row["arguments"], payloads) if "arguments" in row else letter


def _check_table(row: Mapping[str, Any], topic: str) -> None:
    """*Bites*: letters of invoices are imported as letters of mails, and `dlt replay mails` runs them there."""
    own = row.get("topic") or topic
    if own != topic:
        raise UsageError(f"it is a letter of {own}, not of {topic}: import it there, or leave out its `topic` if it shall come here")


def _with_arguments(letter: Letter, arguments: object, payloads: Payloads) -> Letter:
    if not isinstance(arguments, Mapping):
        raise UsageError(f"its arguments are {type(arguments).__name__}, not an object")
    try:
        payload: Payload = payloads.made(letter, arguments)
    except PayloadError as error:
        raise UsageError(str(error)) from None
    record = edited(letter, payload)
    meta, trouble = readable(record.headers)
    return Letter(letter.topic, -1, -1, letter.row, payload.value, record.headers, meta, letter.died, trouble)


class _Known(NamedTuple):
    """A letter on the table: where, and a digest of what it is."""

    partition: int
    digest: bytes


@dataclass
class Import:
    """Letters come (back) onto the table: new ones, and in place of those that differ.

    `rows` is read once for the plan and once behind the fence. `absent`: how many of them are not on the table. Takes about 200 bytes
    of memory for each letter that is.
    """

    table: Table
    rows: Iterable[Mapping[str, Any]]
    payloads: Payloads
    at: float
    filter: Filter = ALL
    limit: int | None = None
    action = "import"
    absent: int = 0
    _known: dict[int, _Known] = field(default_factory=dict)

    def check(self) -> None:
        """Raises UsageError for the first row that is no letter: nothing is imported then."""
        for _ in self._parsed():
            pass

    def letters(self, within: Bounds) -> Iterator[Letter]:
        self.absent = 0
        self._known = {hash(letter.row): _Known(letter.partition, _digest(letter)) for letter in self.table.letters(within)}
        return self._parsed()

    def _parsed(self) -> Iterator[Letter]:
        for number, row in enumerate(self.rows, 1):
            try:
                yield imported(row, self.table.topic, self.payloads)
            except UsageError as error:
                raise UsageError(f"letter {number}: {error}") from None

    def verdict(self, letter: Letter) -> Verdict:
        known = self._known.get(hash(letter.row))
        if known is not None and known.digest == _digest(letter):
            return Verdict(None, Kept.UNCHANGED)
        self.absent += known is None
        headers = replaced(letter.headers, {DIED: letter.died or None})
        return Verdict(Move(letter, Record(letter.topic, letter.value, letter.row, headers, known.partition if known else -1)))

    def prepare(self) -> None:
        self.payloads.store()

    def target(self) -> str:
        return self.table.topic


def _digest(letter: Letter) -> bytes:
    """Of all but when it died, which an import adds."""
    headers = sorted(repr(pair) for pair in letter.headers if pair[0] != DIED)
    return hashlib.blake2b(repr((letter.value, headers)).encode(), digest_size=8).digest()


def _instant(value: Any) -> float:
    """As text; or in seconds, as exports had it once."""
    if not isinstance(value, str):
        return float(value or 0.0)
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(f"died is {value!r}, without a time zone")
    return found.timestamp()


def _shown(value: bytes | None) -> Any:
    """Text, bytes that are none, or null for a header without a value."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {_BASE64: base64.b64encode(value).decode()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not is_header_name(name):
        raise ValueError(f"a header can't be named {name!r}")
    return name


def _raw(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return base64.b64decode(value[_BASE64], validate=True)
    if not isinstance(value, str):
        raise TypeError(f"a header's value is {value!r}, not text")
    return value.encode()
