"""Who ran how much: a file to which every job of a process under test appends eight bytes, in a bare loop and in a worker alike.

It is the side effect that even a no-op job has here: one system call (about 1 µs, without the interpreter's lock), counted from
outside by the file's size, and right across threads, processes and kills.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from struct import Struct

#: Names the file; without it nothing is noted.
VARIABLE = "BENCH_LEDGER"
_NUMBER = Struct("<d")
_MARK = _NUMBER.pack(0.0)


class Pen:
    """The writing side, of any thread: `mark()` for a job that ended, `tell(number)` for one that says something."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def mark(self) -> None:
        os.write(self._file, _MARK)

    def tell(self, number: float) -> None:
        os.write(self._file, _NUMBER.pack(number))


class Ledger:
    """The reading side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def count(self) -> int:
        """How many jobs ended so far."""
        return self.path.stat().st_size // _NUMBER.size

    def numbers(self) -> list[float]:
        """What the jobs told, in the order of their ends."""
        return list(array("d", self.path.read_bytes()[: self.count() * _NUMBER.size]))


PEN = Pen(os.environ.get(VARIABLE, os.devnull))
