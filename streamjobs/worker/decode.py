"""Decoding: a record → a job, or what is wrong with it. Never raises: a bad record is a result like any other (edge 61)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from streamjobs.broker import Message
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import CONTENT_TYPE, FIXED, MAX_HEADER, SINGLE_OBJECT_HEAD, Headers, Meta
from streamjobs.errors import DecodeError, HeaderError, UnknownSchemaError
from streamjobs.job import Job, JobType

if TYPE_CHECKING:
    from streamjobs.avro.store import SchemaStore

_job_of = Job.of  # bound once, and not once a job

#: The one lane of a partition whose jobs run in the order of the log.
PARTITION_LANE = b"\x00partition"
BY_KEY = ("key", "key_strict")


@dataclass(slots=True)
class Undecodable:
    """A record that is no job that this worker can run.

    `tombstone`: it has neither value nor type and means nothing; `undecodable`: it never will be a job; `type_unknown`,
    `schema_unknown`: another version of the code may know it.
    """

    kind: Literal["tombstone", "undecodable", "type_unknown", "schema_unknown"]
    message: Message
    home: Partition
    meta: Meta
    error: Exception | None = None


class Decoder:
    """Makes jobs of records, for the job types of one app."""

    def __init__(self, job_types: Mapping[str, JobType[Any, Any]], store: SchemaStore) -> None:
        self._types = {name.encode(): (job_type, job_type.payload.readers, job_type.order) for name, job_type in job_types.items()}
        self._store = store

    def is_strict(self, bad: Undecodable) -> bool:
        """Whether a record that can't be read yet must keep its place. Nobody knows the order of an unknown type; it is taken for
        strict where any known type of its queue is."""
        known = self._types.get(bad.meta.job_type.encode())
        if known is not None:
            return known[0].strict
        return any(job_type.strict and job_type.queue == bad.home.queue for job_type, *_ in self._types.values())

    def decode(self, message: Message, home: Partition) -> Job | Undecodable:
        """The job with its arguments, bound to its partition's epoch and lane. Only a job that has nothing but the fixed headers
        has no `meta`."""
        plain = self.decode_plain((message,), home)
        return plain[0] if plain else self._any(message, home, message.headers())

    def decode_plain(self, messages: Sequence[Message], home: Partition) -> list[Job]:
        """The jobs at the beginning of a list that are as our publisher writes them: nearly all. What the first other one is, `decode`
        says.

        Others may write six headers, too. *Bites*: one of them is `sj_due`, and the job runs at once; or one has no value, or too
        long a one, which nobody would find out before the job fails, in the middle of settling it.
        """
        types, jobs = self._types, []
        last_type = head = b""
        first, second, third, fourth, fifth, sixth = FIXED
        try:
            for message in messages:
                value = message.value()
                (a, type_), (b, id_), (c, _), (d, source), (e, published), (f, content_type) = message.headers()  # type: ignore[misc]
                # One by one: to compare them as tuples takes twice as long.
                if a != first or b != second or c != third or d != fourth or e != fifth or f != sixth:
                    break
                if content_type != CONTENT_TYPE or not (id_ and source and published):
                    break
                if len(id_) + len(source) + len(published) > MAX_HEADER:
                    break
                if type_ != last_type or value[:SINGLE_OBJECT_HEAD] != head:  # type: ignore[index]
                    job_type, readers, order = types[type_]  # type: ignore[index]
                    lot = object()
                    last_type, head = type_, value[:SINGLE_OBJECT_HEAD]  # type: ignore[assignment,index]
                    read, at = readers[head]
                    by_key, lane = order in BY_KEY, None if order == "none" else PARTITION_LANE
                args = read(value, at)  # type: ignore[arg-type]
                if not id_.isascii():
                    id_.decode()  # fails here, if ever
                if by_key:
                    lane = message.key()
                jobs.append(_job_of(job_type, home, message, None, args, id_, lane, lot))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 (the long way meets it again, and names it)
            return jobs
        return jobs

    def _any(self, message: Message, home: Partition, headers: Headers | None) -> Job | Undecodable:
        try:
            meta = Meta.parse(headers)
        except HeaderError as error:
            return Undecodable("undecodable", message, home, lenient(headers), error)
        known, value = self._types.get(meta.job_type.encode()), message.value()
        if known is None or value is None:
            return self._no_job(message, home, meta)
        job_type = known[0]
        try:
            args = job_type.payload.decode(value, self._store, meta.content_type)
        except UnknownSchemaError as error:
            return Undecodable("schema_unknown", message, home, meta, error)
        except DecodeError as error:
            return Undecodable("undecodable", message, home, meta, error)
        job = _job_of(job_type, home, message, meta, args, meta.job_id.encode(), lane_of(job_type.order, message))
        job.raw_id = job.raw_id or job.origin.encode()
        return job

    def _no_job(self, message: Message, home: Partition, meta: Meta) -> Undecodable:
        if not meta.job_type:
            if message.value() is None:
                return Undecodable("tombstone", message, home, meta)
            error: DecodeError = HeaderError("the record has no ce_type header: nothing says which job it is")
            return Undecodable("undecodable", message, home, meta, error)
        if message.value() is None:
            error = DecodeError("the record has no value, which even a job without arguments has")
            return Undecodable("undecodable", message, home, meta, error)
        error = DecodeError(f"no job type {meta.job_type!r} is known to this worker")
        return Undecodable("type_unknown", message, home, meta, error)


def lane_of(order: str, message: Message) -> bytes | None:
    """The lane in which a job waits its turn; None: it has none."""
    if order in BY_KEY:
        return message.key()
    return None if order == "none" else PARTITION_LANE


def lenient(headers: Headers | None) -> Meta:
    """What can be read of headers of which some can't: enough for a dead letter."""
    readable = []
    for name, value in headers or ():
        try:
            Meta.parse([(name, value)])
        except HeaderError:
            continue
        readable.append((name, value))
    return Meta.parse(readable)
