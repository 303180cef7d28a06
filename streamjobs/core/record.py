"""What travels: a record to be sent, and the meaning of a record's headers (docs/wire-format.md, CloudEvents 1.0 Kafka binding).

A record's value is the payload alone and its key the job's key; everything else is in headers. A header that is absent has
its default and costs nothing; a header that changes is replaced, never appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from streamjobs.errors import HeaderError

#: One that a publisher of another make wrote may have no value.
Header = tuple[str, bytes | None]
Headers = Sequence[Header]
HeaderValue = str | bytes | int | float | None

#: The order in which a publisher writes them, so that a reader finds them by position.
FIXED = ("ce_type", "ce_id", "ce_specversion", "ce_source", "ce_time", "content-type")

CONTENT_TYPE = b"application/avro"
#: A value without framing, read with the job type's current schema.
CONTENT_TYPE_UNFRAMED = b"application/avro; framing=none"
#: Bytes before the payload: `C3 01` and the fingerprint of its schema.
SINGLE_OBJECT_HEAD = 10

#: No header of ours is longer: a longer one is refused, or cut where it is free text.
MAX_HEADER = 1024
MAX_STACK = 8192
#: A count in a header that is larger than this is hostile, not a count.
MAX_COUNT = 1_000_000


class Record(NamedTuple):
    """A record to be sent. `partition` -1: chosen by the key's hash (murmur2), or spread when there is no key."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int = -1


@dataclass(slots=True)
class Meta:
    """The headers of a job's record or of a dead letter, read strictly. Instants are float seconds since the epoch."""

    job_type: str
    job_id: str = ""
    source: str = ""
    published: str = ""
    content_type: bytes = b""
    run: int = 1
    attempt: int = 1
    holds: int = 0
    replays: int = 0
    strikes: int = 0
    origin: str = ""
    appended: float = 0.0
    first_attempt: float = 0.0
    due: float = 0.0
    expires: float = 0.0
    next: str = ""
    tags: str = ""
    parent: str = ""
    reason: str = ""
    parked: bool = False
    null: bool = False
    key: bytes | None = None
    error_type: str = ""
    error_message: str = ""
    error_stack: str = ""

    @classmethod
    def parse(cls, headers: Headers | None) -> Meta:
        """Raises HeaderError for a count or an instant that is none. Of a name that stands twice the last one holds."""
        found = dict(headers or ())
        return cls(
            job_type=_text(found, "ce_type"),
            job_id=_text(found, "ce_id"),
            source=_text(found, "ce_source"),
            published=_text(found, "ce_time"),
            content_type=found.get("content-type") or b"",
            run=_count(found, "sj_run", 1),
            attempt=_count(found, "sj_attempt", 1),
            holds=_count(found, "sj_holds", 0),
            replays=_count(found, "sj_replays", 0),
            strikes=_count(found, "sj_strikes", 0),
            origin=_text(found, "sj_origin"),
            appended=_instant(found, "sj_appended"),
            first_attempt=_instant(found, "sj_first_attempt"),
            due=_instant(found, "sj_due"),
            expires=_instant(found, "sj_expires"),
            next=_text(found, "sj_next"),
            tags=_text(found, "sj_tags"),
            parent=_text(found, "sj_parent"),
            reason=_text(found, "sj_reason"),
            parked=found.get("sj_parked") == b"1",
            null=found.get("sj_null") == b"1",
            key=found.get("sj_key"),
            error_type=_text(found, "sj_error_type"),
            error_message=_text(found, "sj_error_message"),
            error_stack=_text(found, "sj_error_stack", MAX_STACK),
        )


def replaced(headers: Headers | None, changes: Mapping[str, HeaderValue]) -> list[Header]:
    """The headers with some set anew (in place, or at the end) and those changed to None left out."""
    kept = [(name, value) for name, value in headers or () if name not in changes]
    return [*kept, *encoded(changes.items())]


def encoded(items: Iterable[tuple[str, HeaderValue]]) -> list[tuple[str, bytes]]:
    """Header values as bytes: text as UTF-8, whole numbers in decimal, instants (float seconds) as whole milliseconds."""
    return [(name, _bytes(value)) for name, value in items if value is not None]


def origin_of(topic: str, topic_id: bytes, partition: int, offset: int) -> str:
    """The identity of a job's first record: `jobs.invoices@1f2e3d4c/3/70012`.

    The topic id's first 4 bytes are in it because a recreated topic repeats its offsets.
    """
    return f"{topic}@{topic_id[:4].hex()}/{partition}/{offset}"


def letter_id(origin: str, run: int) -> str:
    """The key of a dead letter: the same when one run is settled twice, another for every other failure."""
    return f"{origin}#{run}"


def is_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8. An argument of a command, or a file's name, that was none has lone surrogates in Python, which
    can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_header_name(name: str) -> bool:
    """*Bites*: a lone surrogate in it ends the process inside the Kafka client (SIGSEGV); and of a name with a zero the client sends what
    stands before it, which may be the name of one of ours."""
    return "\0" not in name and is_utf8(name)


def clipped(text: str, limit: int = MAX_HEADER) -> str:
    """Free text cut to at most `limit` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= limit else raw[: limit - 3].decode("utf-8", "ignore") + "…"


def _bytes(value: HeaderValue) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return b"%d" % round(value * 1000)
    return str(value).encode("utf-8", "replace")


def _text(found: Mapping[str, bytes | None], name: str, limit: int = MAX_HEADER) -> str:
    raw = found.get(name)
    if not raw:
        return ""
    if len(raw) > limit:
        raise HeaderError(f"header {name} has {len(raw)} bytes, more than {limit}")
    return raw.decode("utf-8", "replace")


def _count(found: Mapping[str, bytes | None], name: str, default: int) -> int:
    raw = found.get(name)
    if raw is None:
        return default
    if not raw.isdigit() or len(raw) > 7 or int(raw) > MAX_COUNT:
        raise HeaderError(f"header {name} is {raw[:20]!r}, not a count up to {MAX_COUNT}")
    return int(raw)


def _instant(found: Mapping[str, bytes | None], name: str) -> float:
    raw = found.get(name)
    if raw is None:
        return 0.0
    if not raw.isdigit() or len(raw) > 15:
        raise HeaderError(f"header {name} is {raw[:20]!r}, not milliseconds since the epoch")
    return int(raw) / 1000
