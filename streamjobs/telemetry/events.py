"""The lifecycle of jobs as events: the one catalogue, and how a worker gathers and sends them.

Jobs finish a hundred thousand a second, so an event is not an object: a worker appends lists of finished jobs
to the columns of an `EventBatch`, and at each tick the batch becomes one Kafka record
(`schemas/events.avsc`). Readers get `Event`s back by `decode`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from struct import calcsize, pack
from typing import Any, Literal, NamedTuple

from streamjobs.core.record import clipped, origin_of
from streamjobs.errors import DecodeError
from streamjobs.telemetry import wire
from streamjobs.telemetry.ended import Ended, FinishedJob

Mode = Literal["all", "failures", "off"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event. `ends`: the run it speaks of is over."""

    meaning: str
    ends: bool


#: Every kind there is. `core/lifecycle.py` has the outcomes; `core/projection.py` their ranks.
KINDS: dict[str, Kind] = {
    "started": Kind("a handler began to run it; sent only for jobs still running at a tick", ends=False),
    "held": Kind(
        "it may not run now (paused, limited, schema or type unknown) and waits in the delay ladder",
        ends=False,
    ),
    "succeeded": Kind("its handler returned", ends=True),
    "retried": Kind("it failed and runs again when its backoff is over", ends=True),
    "snoozed": Kind("its handler asked for another run later; no attempt is charged", ends=True),
    "rejected": Kind("its handler said that it must never run: a dead letter", ends=True),
    "dead": Kind("it failed for the last time, or can't be read: a dead letter", ends=True),
    "cancelled": Kind("an order, or its handler, cancelled it", ends=True),
    "expired": Kind("its expiry passed before it could run", ends=True),
    "replayed": Kind(
        "its dead letter was put back: the next run begins with a fresh count of attempts", ends=True
    ),
}


class Event(NamedTuple):
    """One transition of one run. Instants are float seconds since the epoch, 0.0 where there is none."""

    kind: str
    job_id: str
    job_type: str
    queue: str
    group: str
    origin: str
    run: int
    attempt: int
    topic: str
    partition: int
    offset: int
    at: float
    """When it happened, by the worker's clock."""
    started_at: float = 0.0
    duration_s: float = 0.0
    wait_s: float = 0.0
    error_type: str = ""
    error_message: str = ""
    reason: str = ""
    due: float = 0.0
    """When the job runs again."""
    worker: str = ""


class Packet(NamedTuple):
    """A record's value, and how many events are in it (so that a failed send can be counted)."""

    value: bytes
    events: int


#: Says which schema a value was written with: CRC-64-AVRO of `schemas/events.avsc`, as it stands in the
#: value.
FINGERPRINT = bytes.fromhex("008d3bfdedb91233")
SCHEMA_VERSION = 1

_MAX_ID = 1024  # bytes; what a header may hold
_ROW_BYTES = 4 + 8 + 8 + 4 + 4 + 2  # of the packed columns; the id and more come to it
#: Offset, started, duration, wait: how each is packed.
_NUMBERS = "qdff"
#: From so many bytes on the next rows are gathered apart, for a record of their own.
_FULL = 600_000


class _Index(dict[Any, int]):
    """Numbers whatever it is asked for, in the order in which that is first met."""

    def __missing__(self, thing: Any) -> int:
        number = self[thing] = len(self)
        return number


class _Shape(NamedTuple):
    """What many rows have in common."""

    kind: str
    queue: str
    job_type: str
    topic: str
    topic_id: bytes
    partition: int
    run: int
    attempt: int


class _Detail(NamedTuple):
    """What only some rows have."""

    error_type: str
    error_message: str
    reason: str
    due: float


_NO_DETAIL = _Detail("", "", "", 0.0)


class _Texts:
    """A text of each row, as one. *Bites*, with a list of them: the ids of 80,000 jobs stay where they were made until the next tick, among
    what the jobs have left, so that new jobs are made elsewhere, in memory that no cache holds."""

    __slots__ = ("joined", "lengths")

    def __init__(self) -> None:
        self.lengths = array("H")  # in bytes
        self.joined = bytearray()

    def extend(self, texts: list[bytes]) -> None:
        """In UTF-8."""
        lengths = list(map(len, texts))
        if max(lengths, default=0) > _MAX_ID:
            texts = [clipped(text.decode("utf-8", "replace"), _MAX_ID).encode() for text in texts]
            lengths = list(map(len, texts))
        self.joined += b"".join(texts)
        self.lengths.extend(_shorts(lengths))

    def skip_to(self, row: int) -> None:
        """Rows without a text, up to this one."""
        self.lengths.frombytes(bytes(self.lengths.itemsize * (row - len(self.lengths))))

    def append(self, other: _Texts) -> None:
        self.lengths.extend(other.lengths)
        self.joined += other.joined

    def part(self, start: int, end: int) -> _Texts:
        part = _Texts()
        part.lengths = self.lengths[start:end]
        first = sum(self.lengths[:start])
        part.joined = self.joined[first : first + sum(part.lengths)]
        return part

    def encoded(self) -> tuple[bytes | bytearray, ...]:
        """As two columns, empty if all texts are."""
        return (*_blob(_little_endian(self.lengths)), *_blob(self.joined)) if self.joined else (b"\0", b"\0")


class _Columns:
    """Rows by column; a row is its index in each of them."""

    __slots__ = ("details", "ids", "numbers", "origins", "shape", "shapes")

    def __init__(self) -> None:
        self.shapes = (
            _Index()
        )  # of (kind, job type, home, run, attempt): objects of the worker, or all of them in a _Shape
        self.shape = array("I")
        self.numbers = [bytearray() for _ in _NUMBERS]  # little-endian
        self.ids = _Texts()
        self.origins = _Texts()  # up to the last row that is not its own origin
        self.details: dict[int, _Detail] = {}

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """In bytes, without details."""
        return len(self) * _ROW_BYTES + len(self.ids.joined) + len(self.origins.joined)

    def measure(self, *columns: Sequence[float]) -> None:
        """Appends the numbers of some rows, in the order of `_NUMBERS`. (To pack them takes half as long as an `array` to take them in.)"""
        for packed, code, values in zip(self.numbers, _NUMBERS, columns, strict=True):
            packed += pack(f"<{len(values)}{code}", *values)

    def extend(self, other: _Columns) -> None:
        """Appends another's rows."""
        first, known = len(self), list(other.shapes)
        self.shape.extend(array("I", [self.shapes[known[number]] for number in other.shape]))
        for column, more in zip(self.numbers, other.numbers, strict=True):
            column += more
        self.ids.append(other.ids)
        if other.origins.joined:
            self.origins.skip_to(first)
            self.origins.append(other.origins)
        self.details.update({first + row: detail for row, detail in other.details.items()})

    def without(self, shapes: set[int]) -> _Columns:
        """The rows that have none of these shapes."""
        kept = _Columns()
        start = 0
        for row, shape in enumerate((*self.shape, -1)):
            if shape in shapes or shape == -1:
                if row > start:
                    kept.extend(self.part(start, row))
                start = row + 1
        return kept

    def part(self, start: int, end: int) -> _Columns:
        """Some of the rows; of more shapes than rows only those that they have."""
        part = _Columns()
        part.shapes, part.shape = self.shapes, self.shape[start:end]
        if len(part.shapes) > len(part.shape):
            known = list(self.shapes)
            part.shapes = _Index()
            part.shape = array("I", [part.shapes[known[number]] for number in self.shape[start:end]])
        part.numbers = [column[start * size : end * size] for column, size in zip(self.numbers, map(calcsize, _NUMBERS), strict=True)]
        part.ids, part.origins = self.ids.part(start, end), self.origins.part(start, end)
        part.details = {row - start: detail for row, detail in self.details.items() if start <= row < end}
        return part


class Cut(NamedTuple):
    """What a transaction carries of an `EventBatch`: packets; the rows that were gathered before; the batch's numbers around it."""

    packets: list[Packet]
    kept: list[_Columns]
    before: int
    last: int

    @property
    def events(self) -> int:
        return sum(packet.events for packet in self.packets)


class EventBatch:
    """Gathers the events of one loop, or of whoever else tells of jobs. One owner: not for several threads at
    once.

    `mode`: `all`; `failures` (nothing of jobs that succeed or merely run); `off`.
    """

    def __init__(self, worker: str, group: str, mode: Mode = "all") -> None:
        self.worker = worker
        self.group = group
        self.mode = mode
        self._gathered: list[_Columns] = []
        self._sequence = 0
        self._dropped = 0

    def __len__(self) -> int:
        return sum(map(len, self._gathered))

    def _columns(self) -> _Columns:
        """Where the next rows go."""
        if not self._gathered or self._gathered[-1].size >= _FULL:
            self._gathered.append(_Columns())
        return self._gathered[-1]

    def add(self, jobs: Sequence[FinishedJob]) -> None:
        """Jobs that reached an outcome: one call for each list of results."""
        if self.mode == "off":
            return
        if self.mode == "failures":
            jobs = [job for job in jobs if job.outcome != "succeeded"]
        ended = Ended.of(jobs)
        columns = self._append(ended)
        if any(job.outcome != "succeeded" for job, _ in ended.alike):
            _add_details(columns, ended)

    def started(self, jobs: Sequence[FinishedJob]) -> None:
        """Jobs that run at a tick and were not told of yet."""
        if self.mode == "all":
            self._append(Ended(jobs), "started")

    def tell(self, event: Event, topic_id: bytes = b"") -> None:
        """One event, for those who have no job in hand (a replay); without a start it happened when the batch
        is taken."""
        if self.mode == "off":
            return
        columns = self._columns()
        shape = _Shape(
            event.kind,
            event.queue,
            event.job_type,
            event.topic,
            topic_id,
            event.partition,
            event.run,
            event.attempt,
        )
        columns.origins.skip_to(len(columns))
        columns.origins.extend([_utf8(event.origin)])
        columns.details[len(columns)] = _Detail(event.error_type, event.error_message, event.reason, event.due)
        columns.ids.extend([_utf8(event.job_id)])
        columns.shape.append(columns.shapes[shape])
        columns.measure([event.offset], [event.started_at], [event.duration_s], [event.wait_s])

    def drop(self, events: int) -> None:
        """Events that could not be sent: the next batch says so to its readers."""
        self._dropped += events

    def take(self, now: float, max_bytes: int = 900_000) -> list[Packet]:
        """Everything gathered, as values for the events topic (key: the worker id), and begins anew."""
        gathered, self._gathered = self._gathered, []
        return self._packed(gathered, now, max_bytes)

    # For a transaction, which may be aborted --------------------------------------------------------------------------

    def cut(self, jobs: Sequence[FinishedJob], now: float, max_bytes: int = 900_000) -> Cut:
        """As `take`, with these jobs' events, too; for a transaction, after which `put_back` may undo it."""
        before, (kept, self._gathered) = self._sequence, (self._gathered, [])
        packets = self._packed(kept, now, max_bytes)
        self.add(jobs)
        packets += self.take(now, max_bytes)
        return Cut(packets, kept, before, self._sequence)

    def put_back(self, cut: Cut, gone: Callable[[Any], bool]) -> None:
        """The transaction was aborted: what was gathered is gathered still, but for events of partitions that are gone.

        *Bites*: a job succeeds, its partition is lost before that is committed, and its next owner runs it again: told twice.
        """
        if self._sequence == cut.last:
            self._sequence = cut.before
        since, self._gathered = self._gathered, cut.kept
        for columns in since:
            self._columns().extend(columns)
        self.forget(gone)

    def forget(self, gone: Callable[[Any], bool]) -> None:
        """Drops the events that were gathered of partitions that are gone: their next owners tell of their jobs."""
        self._gathered = [_without(columns, gone) for columns in self._gathered]

    def _packed(self, gathered: Sequence[_Columns], now: float, max_bytes: int) -> list[Packet]:
        return [packet for columns in gathered if len(columns) for packet in self._packets(columns, now, max_bytes)]

    def _packets(self, columns: _Columns, now: float, max_bytes: int) -> list[Packet]:
        rows = len(columns)
        if columns.size > max_bytes and rows > 1:
            return self._halves(columns, now, max_bytes)
        value = wire.framed(FINGERPRINT, b"".join((*self._head(now), *_encoded(columns))))
        if len(value) > max_bytes and rows > 1:
            return self._halves(columns, now, max_bytes)
        self._sequence += 1
        return [Packet(value, rows)]

    def _halves(self, columns: _Columns, now: float, max_bytes: int) -> list[Packet]:
        rows = len(columns)
        halves = columns.part(0, rows // 2), columns.part(rows // 2, rows)
        return [packet for half in halves for packet in self._packets(half, now, max_bytes)]

    def _head(self, now: float) -> tuple[bytes, ...]:
        return (
            wire.long(SCHEMA_VERSION),
            wire.text(self.worker),
            wire.text(self.group),
            wire.long(round(now * 1000)),
            wire.long(self._sequence + 1),
            wire.long(self._dropped),
        )

    def _append(self, ended: Ended, kind: str = "") -> _Columns:
        """`kind`: what the events say; else the jobs' outcomes. Returns what they are the last rows of."""
        columns = self._columns()
        if not ended.plain:
            columns.origins.skip_to(len(columns))
            columns.origins.extend([b"" if job.meta is None else _utf8(job.meta.origin) for job in ended])
        columns.ids.extend([job.raw_id for job in ended])
        for job, count in ended.alike:
            number = columns.shapes[kind or job.outcome, job.job_type, job.home, job.run, job.attempt]
            columns.shape.extend(array("I", (number,)) * count)
        columns.measure(ended.offsets, [job.started_at for job in ended], ended.durations, ended.waits)
        return columns


def _add_details(columns: _Columns, last: Sequence[FinishedJob]) -> None:
    """Of its last rows."""
    for row, job in enumerate(last, len(columns) - len(last)):
        if job.outcome != "succeeded":
            columns.details[row] = _Detail(job.error_type, job.error_message, job.reason, job.due_again)


def _without(columns: _Columns, gone: Callable[[Any], bool]) -> _Columns:
    dropped = {number for shape, number in columns.shapes.items() if not isinstance(shape, _Shape) and gone(shape[2])}
    return columns.without(dropped) if dropped else columns


def _encoded(columns: _Columns) -> list[bytes | bytearray]:
    """All fields from `shapes` on."""
    if columns.origins.joined:
        columns.origins.skip_to(len(columns))
    packed: list[bytes | bytearray] = [_little_endian(columns.shape), *columns.numbers]
    return [
        wire.array([_encoded_shape(shape) for shape in columns.shapes]),
        wire.long(len(columns)),
        *[part for column in packed for part in _blob(column)],
        *columns.ids.encoded(),
        *columns.origins.encoded(),
        wire.array([_encoded_detail(row, detail) for row, detail in columns.details.items()]),
    ]


def _encoded_shape(shape: Any) -> bytes:
    if not isinstance(shape, _Shape):
        kind, job_type, home, run, attempt = shape
        shape = _Shape(kind, home.queue, job_type.name, home.topic, home.topic_id, home.number, run, attempt)
    return b"".join(
        (
            wire.text(shape.kind),
            wire.text(shape.queue),
            wire.text(shape.job_type),
            wire.text(shape.topic),
            wire.blob(shape.topic_id[:4]),
            wire.long(shape.partition),
            wire.long(shape.run),
            wire.long(shape.attempt),
        )
    )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _shorts(numbers: list[int]) -> array[int]:
    """Mostly one and the same, as ids are as long as each other: to convert each takes thirty times as long."""
    if numbers and numbers.count(numbers[0]) == len(numbers):
        return array("H", numbers[:1]) * len(numbers)
    return array("H", numbers)


def _blob(data: bytes | bytearray) -> tuple[bytes, bytes | bytearray]:
    """As `wire.blob`, without a copy of a whole column."""
    return wire.long(len(data)), data


def _encoded_detail(row: int, detail: _Detail) -> bytes:
    return b"".join(
        (
            wire.long(row),
            wire.text(clipped(detail.error_type)),
            wire.text(clipped(detail.error_message)),
            wire.text(clipped(detail.reason)),
            wire.long(round(detail.due * 1000)),
        )
    )


def _little_endian(column: array[Any]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


@dataclass(frozen=True, slots=True)
class Batch:
    """A value of the events topic, read back. `sequence` and `dropped`: see `schemas/events.avsc`."""

    worker: str
    group: str
    taken_at: float
    sequence: int
    dropped: int
    events: list[Event]


def decode(value: bytes) -> list[Event]:
    """The events in a record's value. Raises DecodeError for a damaged one, UnknownSchemaError for another
    version's."""
    return decode_batch(value).events


def decode_batch(value: bytes) -> Batch:
    """As `decode`, with what the batch says of itself."""
    reader = wire.unframed(FINGERPRINT, value)
    reader.long()  # the schema's version; the fingerprint has said it
    worker, group = reader.text(), reader.text()
    taken_at, sequence, dropped = reader.long() / 1000, reader.long(), reader.long()
    shapes = reader.array(lambda: _read_shape(reader))
    rows = _read_rows(reader, shapes)
    details = dict(reader.array(lambda: _read_detail(reader)))
    reader.ended()
    events = [
        _event(worker, group, taken_at, row, details.get(number, _NO_DETAIL))
        for number, row in enumerate(rows)
    ]
    return Batch(worker, group, taken_at, sequence, dropped, events)


class _Row(NamedTuple):
    shape: _Shape
    offset: int
    started_at: float
    duration_s: float
    wait_s: float
    job_id: str
    origin: str


def _read_shape(reader: wire.Reader) -> _Shape:
    kind, queue, job_type, topic = reader.text(), reader.text(), reader.text(), reader.text()
    return _Shape(kind, queue, job_type, topic, reader.blob(), reader.long(), reader.long(), reader.long())


def _read_rows(reader: wire.Reader, shapes: list[_Shape]) -> list[_Row]:
    count = reader.long()
    numbers: Sequence[int] = _read_column(reader, "I", count)
    if count and max(numbers) >= len(shapes):
        raise DecodeError(f"shape {max(numbers)} of {len(shapes)}")
    columns = [_read_column(reader, typecode, count) for typecode in _NUMBERS]
    ids, origins = _read_texts(reader, count), _read_texts(reader, count)
    return list(map(_Row, [shapes[number] for number in numbers], *columns, ids, origins))


def _read_column(reader: wire.Reader, typecode: str, count: int) -> array[Any]:
    return _column_of(reader.blob(), typecode, count)


def _column_of(raw: bytes, typecode: str, count: int) -> array[Any]:
    column: array[Any] = array(typecode)
    if len(raw) != count * column.itemsize:
        raise DecodeError(f"a column of {len(raw)} bytes for {count} rows of {column.itemsize}")
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _read_texts(reader: wire.Reader, count: int) -> list[str]:
    raw_lengths, texts = reader.blob(), reader.blob()
    if not raw_lengths:
        return [""] * count
    lengths = _column_of(raw_lengths, "H", count)
    if sum(lengths) != len(texts):
        raise DecodeError(f"texts of {sum(lengths)} bytes in {len(texts)}")
    ends = accumulate(lengths, initial=0)
    return [texts[start:end].decode("utf-8", "replace") for start, end in pairwise(ends)]


def _read_detail(reader: wire.Reader) -> tuple[int, _Detail]:
    return reader.long(), _Detail(reader.text(), reader.text(), reader.text(), reader.long() / 1000)


def _event(worker: str, group: str, taken_at: float, row: _Row, detail: _Detail) -> Event:
    shape = row.shape
    return Event(
        kind=shape.kind,
        job_id=row.job_id,
        job_type=shape.job_type,
        queue=shape.queue,
        group=group,
        origin=row.origin or origin_of(shape.topic, shape.topic_id, shape.partition, row.offset),
        run=shape.run,
        attempt=shape.attempt,
        topic=shape.topic,
        partition=shape.partition,
        offset=row.offset,
        at=row.started_at + row.duration_s if row.started_at else taken_at,
        started_at=row.started_at,
        duration_s=row.duration_s,
        wait_s=row.wait_s,
        error_type=detail.error_type,
        error_message=detail.error_message,
        reason=detail.reason,
        due=detail.due,
        worker=worker,
    )
