"""What happened, written down outside of streamjobs: all that the checker knows.

Publisher, handlers and nemesis append lines to files while they live, each with one write, so that a process that is killed
loses nothing that it noted; what the topics hold and what was committed is added at the end. Instants are seconds since the epoch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Publication:
    """What the publisher was told of a job. `place` None: it was not acknowledged, and may or may not be stored."""

    kind: ClassVar[str] = "publication"
    id: str
    type: str
    at: float
    place: Place | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Handling:
    """A handler's line: `what` is start, succeeded, failed, rejected or snoozed. `place` is that of the run's record."""

    kind: ClassVar[str] = "handling"
    what: str
    at: float
    pid: int
    id: str
    type: str
    run: int
    attempt: int
    origin: str
    place: Place
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as a topic holds it. `role`: main, retry, delay or dead; `appended` by the broker's clock; `due` 0.0: at once.

    `first`: it names no origin, so it is its own.
    """

    kind: ClassVar[str] = "stored"
    role: str
    place: Place
    appended: float
    id: str
    type: str
    run: int = 1
    attempt: int = 1
    holds: int = 0
    due: float = 0.0
    origin: str = ""
    key: str | None = None
    reason: str = ""
    first: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit of a group as the broker's offsets topic has it: the base, and what is finished beyond it as [start, stop).

    `cut`: the map was so long that it may have been cut.
    """

    kind: ClassVar[str] = "committed"
    group: str
    topic: str
    partition: int
    base: int
    at: float
    finished: tuple[tuple[int, int], ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What the nemesis did, from when to when. `pids`: the processes that were hit; none: everybody was.

    `dies`: they were killed. `abrupt`: they had no chance to settle and commit.
    """

    kind: ClassVar[str] = "fault"
    name: str
    began: float
    ended: float
    pids: tuple[int, ...] = ()
    dies: bool = False
    abrupt: bool = True
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a worker that was not killed. `told`: it had been told to stop; `code` None: it did not end and was killed."""

    kind: ClassVar[str] = "exit"
    at: float
    pid: int
    told: bool
    code: int | None
    log: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a job type promises: its order, and how many attempts it has."""

    kind: ClassVar[str] = "rule"
    type: str
    order: str = "none"
    attempts: int = 15


@dataclass
class History:
    """All lines of a run; each list in the order in which it was written (`commits`: in the broker's order)."""

    publications: list[Publication] = field(default_factory=list)
    handlings: list[Handling] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    commits: list[Committed] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    rules: dict[str, Rule] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        if isinstance(line, Rule):
            self.rules[line.type] = line
        else:
            self._list_of(line).append(line)

    def _list_of(self, line: Line) -> list[Any]:
        lists: dict[str, list[Any]] = {
            "publication": self.publications, "handling": self.handlings, "stored": self.stored, "committed": self.commits,
            "fault": self.faults, "exit": self.exits,
        }  # fmt: skip
        return lists[line.kind]


Line = Publication | Handling | Stored | Committed | Fault | Exit | Rule
_KINDS: Mapping[str, Any] = {kind.kind: kind for kind in (Publication, Handling, Stored, Committed, Fault, Exit, Rule)}


class Journal:
    """A file of lines that several processes may append to."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: int | None = None

    def write(self, line: Line) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._file, to_json(line).encode() + b"\n")


def to_json(line: Line) -> str:
    return json.dumps({"kind": line.kind, **{item.name: getattr(line, item.name) for item in fields(line)}})


def from_json(text: str) -> Line:
    raw = json.loads(text)
    kind = _KINDS[raw.pop("kind")]
    if raw.get("place") is not None:
        raw["place"] = Place(*raw["place"])
    for name in ("pids", "finished"):
        if name in raw:
            raw[name] = tuple(tuple(item) if isinstance(item, list) else item for item in raw[name])
    line: Line = kind(**raw)
    return line


def lines_of(path: Path, start: int = 0) -> tuple[list[Line], int]:
    """The whole lines of a journal from a byte on, and where the next look begins."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read()
    end = raw.rfind(b"\n") + 1
    return [from_json(line) for line in raw[:end].decode().splitlines()], start + end


def read(paths: Iterable[Path]) -> History:
    history = History()
    for path in paths:
        for line in lines_of(path)[0]:
            history.add(line)
    return history
