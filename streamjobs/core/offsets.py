"""Which offsets of a partition are finished, and how a consumer group's commit keeps that.

A commit is an offset, the *base*: everything below it is finished. What is finished beyond the base goes into
the commit's metadata as a *map*, together with what the next owner of the partition must know. So jobs may
finish in any order, and after a crash only those run again whose end was not committed.

The metadata is a contract: `streamjobs lag`, the monitor and programs in other languages read it too. Its
layout::

    text      = "sj" "1" base64(body)   magic, version, RFC 4648 §4 with padding; at most 4,095 characters
    body      = crc rest                crc: 4 bytes, big endian: CRC-32 (zlib's) of the base + rest, with
                                        the base as 8 bytes, big endian
    rest      = topic-id flags takeovers sought count { parked } map
    topic-id  = 4 bytes                 the first four of the topic's id
    flags     = 1 byte                  bit 0: handed over cleanly · others: 0
    takeovers = varint                  owners in a row that died at this base
    sought    = varint                  1 + the number of the last seek order carried out; 0: none
    count     = varint                  of the parked heads that follow, by ascending offset
    parked    = varint varint varint    offset - the one before (first: - base) · starts · blocked, in ms
    map       = runs { run } bitmap     the remaining bytes
    runs      = varint                  how many runs follow; a map may be all runs, all bitmap, or both
    run       = varint varint           offsets to pass over (first: from the base) · then finished ones
    bitmap    = bits                    from the last run's end (no run: the base) on, high bits first;
                                        1: finished
    varint    = 1 to 9 bytes            unsigned LEB128 of at most 63 bits

The CRC covers the base, so a map is never read relative to another offset than the one that it was committed
with (a tool that copies or translates offsets between clusters carries the metadata along). An offset without
a record, such as a transaction's marker, counts as finished. A map that would be too long is cut: what it
leaves out runs again.
"""

from __future__ import annotations

import binascii
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

#: Kafka's limit for commit metadata, in UTF-16 units; ours is ASCII.
METADATA_LIMIT = 4095
#: No offset is larger.
MAX_OFFSET = 2**63 - 1

_MAGIC = "sj1"
_BODY_LIMIT = (METADATA_LIMIT - len(_MAGIC)) // 4 * 3
_CLEAN = 1
#: A count on the wire that is larger says no more than this one.
_MAX_COUNT = 1_000_000

#: Flags of the offsets that a tracker remembers one by one; a gap counts as finished.
_UNFINISHED, _FINISHED = 0, 1
_FINISHED_RUN = re.compile(b"\x01+")
#: So many of the youngest offsets are remembered one by one when older ones are folded.
_RECENT = 16_384


@dataclass(frozen=True, slots=True)
class Finished:
    """A set of offsets, as sorted ranges [start, stop) that neither overlap nor touch. Make it with `of` or
    `spanning`.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, offsets: Iterable[int]) -> Finished:
        return cls.spanning((offset, offset + 1) for offset in offsets)

    @classmethod
    def spanning(cls, ranges: Iterable[tuple[int, int]]) -> Finished:
        """From ranges in any order, which may overlap, touch or be empty."""
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if start >= stop:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    @property
    def end(self) -> int:
        """One past the highest offset; 0 when empty."""
        return self.ranges[-1][1] if self.ranges else 0

    def union(self, other: Finished) -> Finished:
        return Finished.spanning((*self.ranges, *other.ranges))

    def beyond(self, base: int) -> Finished:
        """Without the offsets below `base`."""
        if not self.ranges or self.ranges[0][0] >= base:
            return self
        return Finished(tuple((max(start, base), stop) for start, stop in self.ranges if stop > base))

    def __contains__(self, offset: object) -> bool:
        if not isinstance(offset, int):
            return False
        at = bisect_right(self.ranges, (offset, MAX_OFFSET + 1)) - 1
        return at >= 0 and offset < self.ranges[at][1]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.ranges:
            yield from range(start, stop)


NONE = Finished()


class Tracker:
    """The offsets of one partition in one epoch: received, finished, and what may be committed.

    Only the loop that owns the partition calls it. `finished` is the stored map of the last owner: offsets in
    it are never handed out again, and are forgotten when the base passes them.

    How it remembers: `_flags` holds one byte for each offset from `_start` on. Everything below `_start` is
    finished but for `_heads`, so one old head with millions of finished offsets behind it costs one entry.
    Both are tidied whenever the base, the map or its size is asked for, which a loop does at every batch and
    tick.
    """

    __slots__ = (
        "_expected",
        "_filled",
        "_finishes",
        "_flags",
        "_head_runs",
        "_heads",
        "_moves",
        "_origin",
        "_start",
        "_stored",
    )

    def __init__(self, base: int, finished: Finished = NONE) -> None:
        self._origin = self._start = base
        self._flags = bytearray()
        #: Unfinished offsets below `_start`, ascending: they are only ever added by folding, oldest first.
        self._heads: dict[int, None] = {}
        self._head_runs = 0
        self._finishes = self._filled = self._moves = 0
        #: The rest of the stored map, the lowest range last.
        self._stored = list(reversed(finished.beyond(base).ranges))
        #: The offset that needs no thought when it comes next; -1 while a stored map is still to be met.
        self._expected = -1
        self._fill(base)

    def receive(self, offset: int) -> bool:
        """Takes note of a record that was read; False: it is finished already or was received before, so skip
        it.

        Kafka hands out offsets in ascending order, so those that it left out hold no record (markers, aborted
        transactions, compaction) and count as finished: after an error in a fetch, seek back to `position`
        first.
        """
        if offset == self._expected:
            self._flags.append(_UNFINISHED)
            self._expected = offset + 1
            return True
        return self._receive_unexpected(offset)

    def receive_run(self, first: int, last: int, count: int) -> bool:
        """As `receive`, of so many ascending offsets, in no more time than of one; False (and no effect): one of them is finished or
        missing, or a stored map may know it, so that each must be asked for.
        """
        if first != self._expected or last - first != count - 1:
            return False
        self._flags.extend(bytes(count))
        self._expected = last + 1
        return True

    def finish(self, offset: int) -> bool:
        """Marks a received offset as finished; False (and no effect): it is not, or no longer, an unfinished
        one.
        """
        at = offset - self._start
        if at < 0:
            return self._finish_head(offset)
        flags = self._flags
        if at >= len(flags) or flags[at]:
            return False
        flags[at] = _FINISHED
        self._finishes += 1
        return True

    def finish_many(self, offsets: Sequence[int]) -> int:
        """Like `finish` for each, in less time; returns how many of them were unfinished."""
        if self._finish_run(offsets):
            return len(offsets)
        flags, start, known, done = self._flags, self._start, len(self._flags), 0
        for offset in offsets:
            at = offset - start
            if at < 0:
                done += self._pop_head(offset)
            elif at < known and not flags[at]:
                flags[at] = _FINISHED
                done += 1
        self._finishes += done
        return done

    def _finish_run(self, offsets: Sequence[int]) -> bool:
        """As `finish_many`, of one unfinished offset after the other, as they are where no key had to wait; False (and no effect): they
        are not so."""
        if not offsets or offsets[-1] - offsets[0] != len(offsets) - 1 or offsets[0] < self._start:
            return False
        these = slice(offsets[0] - self._start, offsets[-1] + 1 - self._start)
        if self._flags[these] != bytes(len(offsets)) or offsets != list(range(offsets[0], offsets[-1] + 1)):
            return False
        self._flags[these] = b"\x01" * len(offsets)
        self._finishes += len(offsets)
        return True

    def is_open(self, offset: int) -> bool:
        """Whether it was received and is not finished."""
        at = offset - self._start
        return offset in self._heads if at < 0 else at < len(self._flags) and not self._flags[at]

    def position_to(self, offset: int) -> bool:
        """When nothing is unfinished, moves the base up to the consumer's position; False: it stays.

        Without it the lag of an idle transactional topic never reaches 0: after the last record comes a
        marker. Call it only when every record below `offset` was given to `receive`.
        """
        if self.unfinished or offset <= self.position:
            return False
        self._fill(offset)
        return True

    @property
    def base(self) -> int:
        """The lowest unfinished offset; when there is none, the position. It never moves backwards."""
        self._tidy()
        return next(iter(self._heads), self._start)

    @property
    def position(self) -> int:
        """The next offset worth reading. Far ahead of the last one received where the stored map knows what
        follows.
        """
        return self._start + len(self._flags)

    @property
    def unfinished(self) -> int:
        """How many offsets were received and are not finished."""
        return self.position - self._origin - self._filled - self._finishes

    @property
    def span(self) -> int:
        """How many offsets lie between the base and the position."""
        return self.position - self.base

    @property
    def version(self) -> int:
        """Grows with everything that a commit should tell.

        Whoever commits remembers the version of the snapshot that was acked. *Bites*: with a "dirty" flag
        that the ack clears, a job that finishes while the commit is under way is not committed before the
        next one finishes.
        """
        return self._finishes + self._moves

    def touch(self) -> None:
        """There is something to commit besides offsets: what is known of a parked head."""
        self._moves += 1

    @property
    def map_size(self) -> int:
        """At most so many characters does the metadata need now, parked heads not counted; a little high,
        never low.
        """
        base, start, position = self.base, self._start, self.position
        end = self._stored[0][1] if self._stored else position
        behind_heads = _runs_size(self._head_runs, start - base)
        in_flight = _runs_size(self._flags.count(b"\x00\x01"), position - start)
        stored = _runs_size(len(self._stored), end - position)
        return _characters(
            _FIXED_SIZE
            + min(_bitmap_size(base, end), behind_heads + min(in_flight + stored, _bitmap_size(start, end)))
        )

    def snapshot(self) -> tuple[int, Finished]:
        """The base and what is finished beyond it, both of this instant.

        The part of the stored map that was not reached yet is in it. *Bites*: a first commit without it
        overwrites the last owner's; after the next crash everything that only the old map knew runs again.
        """
        base = self.base
        start = self._start
        ranges = self._ranges_behind_heads()
        ranges.extend(
            (start + at, start + stop) for at, stop in map(re.Match.span, _FINISHED_RUN.finditer(self._flags))
        )
        ranges.extend(reversed(self._stored))
        return base, Finished(tuple(ranges))

    def after(self, offsets: Sequence[int]) -> Tracker:
        """A copy in which these are finished, too: what a transaction commits that may yet be aborted."""
        copy = object.__new__(Tracker)
        for name in Tracker.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._flags, copy._heads, copy._stored = self._flags.copy(), self._heads.copy(), self._stored.copy()
        copy.finish_many(offsets)
        return copy

    def _ranges_behind_heads(self) -> list[tuple[int, int]]:
        if not self._heads:
            return []
        heads = list(self._heads)
        nexts = [*heads[1:], self._start]
        return [(head + 1, later) for head, later in zip(heads, nexts) if later > head + 1]

    def _receive_unexpected(self, offset: int) -> bool:
        if offset < self.position:
            return False
        self._fill(offset)
        if offset < self.position:
            return False
        self._flags.append(_UNFINISHED)
        self._fill(offset + 1)
        return True

    def _fill(self, stop: int) -> None:
        """Counts everything up to `stop` as finished, and stored ranges that overlap or touch it."""
        while self._stored and self._stored[-1][0] <= stop:
            stop = max(stop, self._stored.pop()[1])
        count = stop - self.position
        if count > 0:
            self._filled += count
            self._moves += 1
            self._append_finished(count)
        self._expected = -1 if self._stored else stop

    def _append_finished(self, count: int) -> None:
        if count <= _RECENT:
            self._flags.extend(b"\x01" * count)
        else:
            self._fold(len(self._flags))
            self._start += count

    def _finish_head(self, offset: int) -> bool:
        done = self._pop_head(offset)
        self._finishes += done
        return done

    def _pop_head(self, offset: int) -> bool:
        heads = self._heads
        if offset not in heads:
            return False
        del heads[offset]
        self._head_runs += (offset - 1 in heads) + (offset + 1 in heads) - 1
        return True

    def _tidy(self) -> None:
        """Folds what is old, then drops the finished offsets before the first unfinished one."""
        flags = self._flags
        if len(flags) > 2 * _RECENT:
            self._fold(len(flags) - _RECENT)
        done = flags.find(_UNFINISHED)
        if done:
            done = len(flags) if done < 0 else done
            del flags[:done]
            self._start += done

    def _fold(self, count: int) -> None:
        """Turns the first `count` flags into entries of `_heads`."""
        flags, heads, start = self._flags, self._heads, self._start
        at = flags.find(_UNFINISHED, 0, count)
        while at >= 0:
            heads[start + at] = None
            self._head_runs += start + at - 1 not in heads
            at = flags.find(_UNFINISHED, at + 1, count)
        del flags[:count]
        self._start += count


class Parked(NamedTuple):
    """A head that keeps its place and waits (order `key_strict`): how often it started, how long it blocked
    its key.
    """

    offset: int
    starts: int
    blocked_s: float


@dataclass(frozen=True, slots=True)
class Mark:
    """What a commit's metadata says, besides the base.

    `topic_id4`: the first four bytes of the topic's id as it was at assignment. `clean`: the owner gave the
    partition up in order. `takeovers`: owners in a row that did not, at this base. `sought`: the number of
    the seek order that was carried out last (-1: none), so that it is not carried out twice.
    """

    topic_id4: bytes
    finished: Finished = NONE
    takeovers: int = 0
    clean: bool = False
    parked: tuple[Parked, ...] = ()
    sought: int = -1


def encode(base: int, mark: Mark) -> str:
    """The metadata of a commit at `base`: ASCII, never more than 4,095 characters.

    What doesn't fit is left out: first the highest finished offsets, then the highest parked heads.
    """
    head = mark.topic_id4[:4].ljust(4, b"\0")
    counts = bytearray()
    _put_varint(counts, min(max(mark.takeovers, 0), _MAX_COUNT))
    _put_varint(counts, min(max(mark.sought, -1), MAX_OFFSET - 1) + 1)
    counts += _packed_parked(base, mark.parked, _BODY_LIMIT - 4 - len(head) - 1 - len(counts))
    packed = _packed_map(base, mark.finished.beyond(base), _BODY_LIMIT - 4 - len(head) - 1 - len(counts))
    rest = head + bytes((_CLEAN * mark.clean,)) + counts + packed
    return _MAGIC + binascii.b2a_base64(_crc(base, rest) + rest, newline=False).decode("ascii")


def decode(base: int, text: str) -> Mark | None:
    """What `encode` put there; None for anything else: foreign, damaged, cut, of another version or of
    another base.
    """
    if len(text) > METADATA_LIMIT or not text.startswith(_MAGIC) or not 0 <= base <= MAX_OFFSET:
        return None
    try:
        body = binascii.a2b_base64(text[len(_MAGIC) :], strict_mode=True)
        # Base64 has unused bits at its end: another text may stand for the same bytes, and is none that we wrote.
        if binascii.b2a_base64(body, newline=False).decode() != text[len(_MAGIC) :]:
            return None
        return _mark(base, body[4:]) if body[:4] == _crc(base, body[4:]) else None
    except ValueError:
        return None


def parked_size(count: int) -> int:
    """So many characters do `count` parked heads add to the metadata (spans up to 200 M offsets, blocks up to
    30 m).
    """
    return 12 * count


def _mark(base: int, rest: bytes) -> Mark:
    """Raises ValueError for what no `encode` wrote, even if its CRC is right."""
    flags = rest[4] if len(rest) > 4 else 0xFF
    if flags & ~_CLEAN:
        raise ValueError("unknown flags, or none")
    reader = _Reader(rest, 5)
    takeovers, sought = reader.varint(), reader.varint() - 1
    parked = tuple(_read_parked(base, reader))
    return Mark(rest[:4], _read_map(base, reader), takeovers, bool(flags & _CLEAN), parked, sought)


def _crc(base: int, rest: bytes) -> bytes:
    return zlib.crc32(rest, zlib.crc32(base.to_bytes(8, "big"))).to_bytes(4, "big")


def _packed_parked(base: int, parked: Iterable[Parked], room: int) -> bytearray:
    """Count and heads, the lowest ones that fit into `room` bytes."""
    packed, count, before = bytearray(), 0, base
    for offset, starts, blocked_s in sorted(parked):
        if offset < before or (count and offset == before):
            continue
        entry = bytearray()
        _put_varint(entry, offset - before)
        _put_varint(entry, min(max(starts, 0), _MAX_COUNT))
        _put_varint(entry, min(max(round(blocked_s * 1000), 0), MAX_OFFSET))
        if len(packed) + len(entry) > room - 4:  # count, and the map's
            break
        packed += entry
        count, before = count + 1, offset
    head = bytearray()
    _put_varint(head, count)
    return head + packed


def _read_parked(base: int, reader: _Reader) -> Iterator[Parked]:
    offset = base
    for _ in range(reader.varint()):
        offset += reader.varint()
        yield Parked(_checked(offset), reader.varint(), reader.varint() / 1000)


def _packed_map(base: int, finished: Finished, room: int) -> bytearray:
    """The shortest map; when none fits into `room` bytes, the one that reaches furthest."""
    runs, bitmap = _split(base, finished, room - 2)
    packed, reached = bytearray(), base
    _put_varint(packed, runs)
    for start, stop in finished.ranges[:runs]:
        _put_varint(packed, start - reached)
        _put_varint(packed, stop - start)
        reached = stop
    return packed + _packed_bitmap(reached, finished.ranges[runs:], bitmap)


def _split(base: int, finished: Finished, room: int) -> tuple[int, int]:
    """(so many of the lowest ranges become runs, so many bytes of bitmap follow).

    Behind an old head lies one long range, best told as a run, and then the window of what is in flight,
    where a bit an offset is shorter than two bytes a run.
    """
    end, used, reached = finished.end, 0, base
    runs, bitmap = 0, min(room, _bitmap_size(base, max(base, end)))
    best = (min(end, base + 8 * bitmap), -bitmap)
    for number, (start, stop) in enumerate(finished.ranges, 1):
        used += _varint_size(start - reached) + _varint_size(stop - start)
        if used > room or (best[0] == end and used >= -best[1]):
            break
        reached = stop
        rest = min(room - used, _bitmap_size(stop, end))
        found = (min(end, stop + 8 * rest), -used - rest)
        if found > best:
            best, runs, bitmap = found, number, rest
    return runs, bitmap


def _packed_bitmap(base: int, ranges: Iterable[tuple[int, int]], size: int) -> bytes:
    bits = bytearray(b"0") * (8 * size)
    for start, stop in ranges:
        start, stop = start - base, min(stop - base, 8 * size)
        if start >= stop:
            break
        bits[start:stop] = b"1" * (stop - start)
    return int(bits or b"0", 2).to_bytes(size, "big")


def _read_map(base: int, reader: _Reader) -> Finished:
    ranges, stop = [], base
    for _ in range(reader.varint()):
        start = stop + reader.varint()
        stop = _checked(start + reader.varint())
        ranges.append((start, stop))
    bitmap = reader.rest()
    bits = format(int.from_bytes(bitmap, "big"), f"0{8 * len(bitmap)}b")
    ranges.extend((stop + found.start(), stop + found.end()) for found in re.finditer("1+", bits))
    finished = Finished.spanning(ranges)
    _checked(finished.end)
    return finished


def _checked(offset: int) -> int:
    if offset > MAX_OFFSET:
        raise ValueError("beyond any offset")
    return offset


class _Reader:
    """Reads varints from bytes. Raises ValueError where there is none."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def rest(self) -> bytes:
        return self._data[self.at :]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            if self.at >= len(self._data):
                raise ValueError("cut short")
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 63 bits")


def _put_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _runs_size(runs: int, span: int) -> int:
    """At most so many bytes do `runs` runs take that lie within `span` offsets.

    A varint of v takes floor(log128 v) bytes beyond its first. Over k of them that add up to `span` this is
    at most span / 128, and, since a logarithm is concave, at most k * log128(span / k).
    """
    if not runs:
        return 0
    varints = 2 * runs
    concave = varints * log(max(1.0, span / varints), 128)
    return varints + int(min(span / 128, concave)) + _ACROSS


def _bitmap_size(base: int, end: int) -> int:
    return (end - base + 7) // 8


def _varint_size(value: int) -> int:
    return 1 if value < 128 else (value.bit_length() + 6) // 7


def _characters(body: int) -> int:
    return len(_MAGIC) + (body + 2) // 3 * 4


#: Bytes of a body without parked heads, runs and bitmap, with counts as large as they get in practice: CRC,
#: topic id, flags, takeovers, sought, count, runs.
_FIXED_SIZE = 4 + 4 + 1 + 1 + 5 + 1 + 2
#: Bytes by which a gap can be longer that begins in one of a tracker's parts and ends in the next.
_ACROSS = 4
