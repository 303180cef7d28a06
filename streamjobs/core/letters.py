"""Dead letters: what one says, and what may become of it.

A letter is a row of a compacted table: its key is `<origin>#<run>`, its value the job's original bytes, and its headers say
why, where from and how often. Here are the decisions and the records they ask for; `streamjobs/dead_letters` carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from streamjobs.core.failures import fingerprint
from streamjobs.core.partitioner import partition_of_job
from streamjobs.core.record import Header, Headers, HeaderValue, Meta, Record, replaced
from streamjobs.errors import HeaderError

#: When the job died, on a letter that was written again since (parked, edited, imported): its append time says when that was.
DIED = "sj_died"

#: What a letter's headers say of its failure; the next run begins without it.
_OF_THE_FAILURE: Mapping[str, HeaderValue] = dict.fromkeys(
    (
        "sj_reason", "sj_error_type", "sj_error_message", "sj_error_stack", "sj_key", "sj_null", "sj_parked", DIED,
        "sj_due", "sj_next", "sj_holds", "sj_strikes",
    )
)  # fmt: skip


class Stored(Protocol):
    """A record as it was read (`streamjobs.broker.Message`)."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[Header] | None: ...
    def timestamp(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it stands on its table. Instants are float seconds since the epoch.

    `row` is the record's key, `key` the job's. `problem`: what is wrong with headers that can't be read; those have their default.
    """

    topic: str
    partition: int
    offset: int
    row: bytes
    value: bytes
    headers: Headers
    meta: Meta
    died: float
    problem: str = ""

    @classmethod
    def of(cls, message: Stored) -> Letter:
        """The letter in a record that is no tombstone."""
        headers = message.headers() or []
        meta, problem = readable(headers)
        died = _instant(headers, DIED) or message.timestamp()[1] / 1000
        where = message.topic(), message.partition(), message.offset()
        return cls(*where, message.key() or b"", message.value() or b"", headers, meta, died, problem)

    @property
    def id(self) -> str:
        """`<origin>#<run>`: of this failure, and of no other."""
        return self.row.decode("utf-8", "replace")

    @property
    def key(self) -> str | None:
        """The job's key, as text."""
        return None if self.meta.key is None else self.meta.key.decode("utf-8", "replace")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.meta.tags.split(",")) if self.meta.tags else ()

    @property
    def origin(self) -> str:
        return self.meta.origin or self.id.rpartition("#")[0]

    @property
    def fingerprint(self) -> str:
        """Names this sort of failure: see `core.failures`."""
        return fingerprint(self.meta.error_type or self.meta.reason, self.meta.error_message, self.meta.error_stack)

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return len(self.value) + len(self.row) + sum(len(name) + len(value or b"") for name, value in self.headers)

    @property
    def payload(self) -> bytes | None:
        """The value that the job had."""
        return None if self.meta.null else self.value


def readable(headers: Headers) -> tuple[Meta, str]:
    """The meaning of a letter's headers; of those that can't be read the default, and what is wrong with the first one."""
    try:
        return Meta.parse(headers), ""
    except HeaderError as error:
        return Meta.parse([pair for pair in headers if _can_be_read(pair)]), str(error)


def _can_be_read(pair: Header) -> bool:
    try:
        Meta.parse([pair])
    except HeaderError:
        return False
    return True


def _instant(headers: Headers, name: str) -> float:
    raw = dict(headers).get(name) or b""
    return int(raw) / 1000 if raw.isdigit() and len(raw) <= 15 else 0.0


# --- what may become of it ----------------------------------------------------------------------------------------------------


class Kept(StrEnum):
    """Why a letter that was chosen stays on its table all the same."""

    PARKED = "parked"
    """It was replayed as often as `max_replays` allows."""
    EXPIRED = "expired"
    """Its job's expiry has passed: a worker would skip it, and nobody would see that."""
    SOURCE_GONE = "source gone"
    """Its job comes from an earlier topic of the queue's name."""
    REFUSED = "refused"
    """Its payload, with the changes, is none that its job type takes."""
    UNCHANGED = "unchanged"
    """It is on the table as it would be written."""
    TOO_LARGE = "too large"
    """The topic that it shall go to takes no record of its size."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides whether a letter may be replayed. `starts_at`: when its job would run.

    `main` and `main_id4`: the queue's topic and the first 4 bytes of its id in hex; None: letters may come from anywhere.
    """

    max_replays: int
    starts_at: float
    main: str = ""
    main_id4: str | None = None

    def kept(self, letter: Letter) -> Kept | None:
        """None: it may go."""
        if letter.meta.replays >= self.max_replays:
            return Kept.PARKED
        if letter.meta.expires and letter.meta.expires <= self.starts_at:
            return Kept.EXPIRED
        if self.main_id4 is not None and self._is_from_an_earlier_topic(letter.origin):
            return Kept.SOURCE_GONE
        return None

    def _is_from_an_earlier_topic(self, origin: str) -> bool:
        """Only where the first record lay in the queue's own topic: one that was published with a delay lay in the ladder."""
        topic, at, rest = origin.partition("@")
        return bool(at) and topic == self.main and rest.partition("/")[0] != self.main_id4


@dataclass(frozen=True, slots=True)
class Route:
    """Where replayed jobs go: `topic`, with `partitions`; `next` and `due` where they wait in the ladder first."""

    topic: str
    partitions: int
    next: str | None = None
    due: float | None = None


# --- the records it asks for --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payload:
    """A job's value and key, where a person changed them. `content_type` says how the value is framed."""

    value: bytes
    key: bytes | None
    content_type: bytes


def replayed(letter: Letter, to: Route, payload: Payload | None = None) -> Record:
    """The job's next run: run + 1, attempt 1, replays + 1, and everything that it was published with."""
    meta = letter.meta
    changes = {
        **_OF_THE_FAILURE,
        "sj_origin": letter.origin or None,
        "sj_run": meta.run + 1,
        "sj_attempt": 1,
        "sj_replays": meta.replays + 1,
        "sj_due": to.due,
        "sj_next": to.next,
    }
    if payload is not None:
        changes["content-type"] = payload.content_type
    value, key = (payload.value, payload.key) if payload is not None else (letter.payload, meta.key)
    partition = -1 if key is not None else partition_of_job(meta.job_id.encode(), to.partitions)
    return Record(to.topic, value, key, replaced(letter.headers, changes), partition)


def tombstone(letter: Letter) -> Record:
    """Takes the letter off its table: in the partition in which it was read, whatever a partitioner thinks of its key."""
    return Record(letter.topic, None, letter.row, (), letter.partition)


def parked(letter: Letter) -> Record:
    """The letter with the flag that it stays; its reason is still why it died."""
    return _again(letter, letter.value, {"sj_parked": 1})


def edited(letter: Letter, payload: Payload) -> Record:
    """The letter with another payload."""
    changes: dict[str, HeaderValue] = {"sj_key": payload.key, "sj_null": None, "content-type": payload.content_type}
    return _again(letter, payload.value, changes)


def _again(letter: Letter, value: bytes, changes: Mapping[str, HeaderValue]) -> Record:
    stamped = {DIED: letter.died, **changes}
    return Record(letter.topic, value, letter.row, replaced(letter.headers, stamped), letter.partition)
