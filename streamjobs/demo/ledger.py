"""The ledger: a line for everything that a handler did, in a file that the layer knows nothing of."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from streamjobs.job import Job

#: Names the file; handlers of an app that runs without it write no ledger.
LEDGER = "DEMO_LEDGER"

What = Literal["opened", "closed", "started", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """`opened` and `closed` are said by a worker process of itself, the others by a handler of its job's run.

    `at`: epoch seconds. `error_type`: of what was raised, signals included.
    """

    what: What
    pid: int
    at: float
    job: str = ""
    job_type: str = ""
    run: int = 0
    attempt: int = 0
    error_type: str = ""


@contextmanager
def noted(job: Job) -> Iterator[None]:
    """Around a handler: notes that it started, and that it ended or failed."""
    note("started", job)
    try:
        yield
    except BaseException as error:
        note("failed", job, type(error).__qualname__)
        raise
    note("ended", job)


def note(what: What, job: Job | None = None, error_type: str = "") -> None:
    """One write of less than a page, so that the lines of several processes never mix."""
    path = os.environ.get(LEDGER)
    if not path:
        return
    entry = Entry(what, os.getpid(), time.time())
    if job is not None:
        entry = Entry(what, entry.pid, entry.at, job.id, job.type, job.run, job.attempt, error_type)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(asdict(entry)).encode() + b"\n")
    finally:
        os.close(file)


class Reader:
    """Follows a ledger that is still being written; `entries` is what it has read so far."""

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self._path = path
        self._offset = 0

    def read(self) -> list[Entry]:
        """Takes in the lines that are new and whole, and returns these."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        new = [Entry(**json.loads(line)) for line in whole.splitlines()]
        self.entries += new
        return new
