"""Marks: what each slot of a worker process runs, in memory that outlives the process.

The supervisor makes the table and hands it to the process. A slot writes its row before a handler starts and wipes it when it
has nothing more to run. When the process is killed, the supervisor reads what it was doing::

    0          8                          HEAD
    | length   | topics, one per line     | row 0: place, offset, run | row 1 … |

A place is the topic's line (from 1; 0: the row is empty) and the partition. The memory has no name, so nothing is left of it in
`/dev/shm` when supervisor and process are killed together.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

HEAD = 64 * 1024
ROW = 32
_LENGTH = struct.Struct("=q")  # by the machine's byte order: writer and reader share it
_ROW = struct.Struct("=qqq")
_BITS = 32
OFFSET = 1  # of a row's cells

Memory = Any
"""What processes share; goes to a child as an argument of its `Process`, and in no other way."""


class Mark(NamedTuple):
    """A job that a slot has started."""

    topic: str
    partition: int
    offset: int
    run: int


class Legacy(NamedTuple):
    """What a worker process gets from its supervisor: memory for its table, and what ran when the one before it died."""

    memory: Memory | None = None
    suspects: tuple[Mark, ...] = ()


class Row:
    """One slot's row: `mark(place, offset, run)`; or, for a job of the same place and run, `cells[OFFSET] = offset`, in one write of
    one number for a sixth of the time (0.02 µs)."""

    def __init__(self, buffer: Any, position: int, number: int) -> None:
        self.number = number
        self.cells = memoryview(buffer)[position : position + _ROW.size].cast("B").cast("q")
        self.mark = functools.partial(_ROW.pack_into, buffer, position)
        self.clear = functools.partial(_ROW.pack_into, buffer, position, 0, 0, 0)


def nowhere() -> Row:
    """A row that nobody reads."""
    return Row(bytearray(ROW), 0, -1)


def memory(rows: int) -> Memory:
    return RawArray(ctypes.c_char, HEAD + rows * ROW)


class Marks:
    """A table of marks. In the process that writes it, any thread may use it."""

    def __init__(self, shared: Memory | None = None) -> None:
        self.memory = shared
        self._view = memoryview(bytearray(HEAD) if shared is None else shared).cast("B")
        self._free = list(range((len(self._view) - HEAD) // ROW))[::-1]
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    # Writing ----------------------------------------------------------------------------------------------------------

    def place(self, topic: str, partition: int) -> int:
        """What a row says of a topic's partition; 0 (which is no mark) if there is no room for the topic's name."""
        with self._lock:
            number = self._numbers.get(topic) or self._enter(topic)
        return number << _BITS | partition if number else 0

    def _enter(self, topic: str) -> int:
        line = topic.encode() + b"\n"
        (length,) = _LENGTH.unpack_from(self._view)
        if _LENGTH.size + length + len(line) > HEAD:
            logger.warning("no room to note what runs of %s: should it kill its worker, others come under suspicion", topic)
            return 0
        at = _LENGTH.size + length
        self._view[at : at + len(line)] = line
        _LENGTH.pack_into(self._view, 0, length + len(line))
        self._numbers[topic] = number = len(self._numbers) + 1
        return number

    @contextmanager
    def row(self) -> Iterator[Row]:
        """A row for a slot that begins to work; wiped and free again afterwards."""
        with self._lock:
            number = self._free.pop() if self._free else -1
        row = self.row_of(number)
        try:
            yield row
        finally:
            row.clear()
            with self._lock:
                if number >= 0:
                    self._free.append(number)

    def row_of(self, number: int) -> Row:
        """The row of that number, for a process that works in the place of its parent's slot."""
        return nowhere() if number < 0 else Row(self._view, HEAD + number * ROW, number)

    def wipe(self) -> None:
        """Nothing runs: said by a process that ends in good order, and by the supervisor when it has read the table."""
        self._view[HEAD:] = bytes(len(self._view) - HEAD)

    # Reading ----------------------------------------------------------------------------------------------------------

    def running(self) -> list[Mark]:
        """What the rows say; to be asked when their writer is dead."""
        (length,) = _LENGTH.unpack_from(self._view)
        topics = bytes(self._view[_LENGTH.size : _LENGTH.size + length]).decode().splitlines()
        rows = (_ROW.unpack_from(self._view, at) for at in range(HEAD, len(self._view), ROW))
        return [
            Mark(topics[(place >> _BITS) - 1], place & (1 << _BITS) - 1, offset, run)
            for place, offset, run in rows
            if 0 < place >> _BITS <= len(topics)
        ]
