"""Which changes of a job type's schema break jobs that are queued already. Pure: two schemas in, findings out."""

from __future__ import annotations

from typing import Literal, NamedTuple

from streamjobs.avro.resolution import Resolution
from streamjobs.avro.schema import Schema


class Finding(NamedTuple):
    """One change. `breaks`: "all" queued jobs, or "some" of them (those whose value the new schema does not take)."""

    field: str
    breaks: Literal["all", "some"]
    text: str

    def __str__(self) -> str:
        return f"{self.text} ({self.breaks} queued jobs can't be read)"


def findings(old: Schema, new: Schema) -> list[Finding]:
    """What of `old`'s jobs `new` can't read, in plain words; empty: all of them can be read.

    Two schemas with one fingerprint whose logical types differ are the worst case: the old jobs would be read as the new ones.
    It can only happen to schemas from .avsc files (see `derive`).
    """
    found = [
        Finding(problem.path, "all" if problem.certain else "some", f"{problem.path or 'the payload'} {problem.text}")
        for problem in Resolution(old, new).problems
    ]
    if old.fingerprint == new.fingerprint and old.meaning != new.meaning:
        text = "a logical type changed, which the fingerprint does not cover: give the record a new name or namespace"
        found.append(Finding("", "all", text))
    return found
