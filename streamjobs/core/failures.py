"""Failures: their text, which of them are the same, and counts of them in bounded memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

#: Characters of a fingerprint that people see and write.
SHORT = 12
#: So many groups are counted apart, and so many fingerprints told apart in each; the rest is counted together.
MAX_GROUPS = 10_000
MAX_KINDS = 1_000

_VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # UUIDs
    r"|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"  # what stands in quotes (not the apostrophe of "can't")
    r"|0x[0-9a-f]+|\b(?=[a-f]*[0-9])[0-9a-f]{8,}\b"  # hexadecimal
    r"|\d+(?:\.\d+)?",
    re.IGNORECASE,
)
_FRAME = re.compile(r'File "([^"]+)", line \d+, in (\S+)')
#: Frames of other people's code: installed packages, Python itself, what runs a handler.
_NOT_THEIRS = re.compile(r"/site-packages/|/dist-packages/|/lib(?:64)?/python\d|/streamjobs/(?:worker|avro)/|^<")


def shape(message: str) -> str:
    """The message with what differs from job to job (ids, numbers, quoted text) as `…`."""
    return _VARYING.sub("…", message)


def frame(stack: str) -> str:
    """`file:function` of the innermost frame in the application's own code, of the exception that was raised last.

    The file is its last two parts: one application lies elsewhere on another machine.
    """
    found = _FRAME.findall(stack)
    path, function = next((pair for pair in reversed(found) if not _NOT_THEIRS.search(pair[0])), found[-1] if found else ("", ""))
    return f"{'/'.join(path.split('/')[-2:])}:{function}" if path else ""


def fingerprint(error_type: str, message: str, stack: str = "") -> str:
    """Names a sort of failure in 40 hexadecimal digits: of its error type, where it was raised, and its message's shape."""
    text = "\0".join((error_type, frame(stack), shape(message)))
    return hashlib.sha1(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Group:
    """Failures that agree in what they are grouped by. `first` and `last`: when they were seen, epoch seconds.

    `fingerprints`: how many of each; `message`: the last one's; `sample`: its id.
    """

    by: tuple[str, ...]
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    message: str = ""
    sample: str = ""
    fingerprints: dict[str, int] = field(default_factory=dict)

    def add(self, seen: float, kind: str, message: str, sample: str) -> None:
        if not self.count or seen < self.first:
            self.first = seen
        if seen >= self.last:
            self.last, self.message, self.sample = seen, message, sample
        self.count += 1
        if kind in self.fingerprints or len(self.fingerprints) < MAX_KINDS:
            self.fingerprints[kind] = self.fingerprints.get(kind, 0) + 1


class Groups:
    """Counts failures by some of their facts. `rest`: those that came after `MAX_GROUPS` groups were known."""

    def __init__(self, by: Sequence[str]) -> None:
        self.by = tuple(by)
        self.count = 0
        self.rest = Group(("…",) * len(self.by))
        self._known: dict[tuple[str, ...], Group] = {}

    def add(self, values: tuple[str, ...], seen: float, kind: str, message: str, sample: str) -> None:
        self.count += 1
        group = self._known.get(values)
        if group is None:
            group = self.rest if len(self._known) >= MAX_GROUPS else self._known.setdefault(values, Group(values))
        group.add(seen, kind, message, sample)

    def __iter__(self) -> Iterator[Group]:
        """The largest first; at the end, what was not told apart."""
        yield from sorted(self._known.values(), key=lambda group: -group.count)
        if self.rest.count:
            yield self.rest
