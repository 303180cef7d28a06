"""Executors: where handlers run, off the loop's thread (brief ones on it). Work comes and results go in chunks."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn, Protocol

from streamjobs.job import Job

if TYPE_CHECKING:
    from streamjobs.worker.turns import Borrower

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # only Linux tells of single threads
    getrusage = None  # type: ignore[assignment]

#: A visit to one lane ends after so many jobs, or so long: then another key's turn comes.
VISIT_JOBS = 512
VISIT_S = 0.05

_NEVER_THE_SAME = itertools.count()


class Gate:
    """What a thread looks at before each job of a chunk: drain, and job types that may not run now.

    One for all loops of a process. Only loop threads write it. `session_s`: a member that is silent for so long has lost its
    partitions. `exact`: what a brief job leaves behind may not be taken for a later one (see `threads._run_lanes`).
    """

    __slots__ = ("closed", "exact", "held", "now", "session_s")

    def __init__(self, session_s: float = math.inf, *, exact: bool = False, now: Callable[[], float] = time.time) -> None:
        self.closed = False
        self.held: frozenset[str] = frozenset()
        self.session_s = session_s
        self.exact = exact
        self.now = now

    def bars(self, job: Job) -> bool:
        """Whether this job may not start: its partition has left, the worker drains, it has expired, or its type is held."""
        if job.epoch != job.home.serving or self.closed or job.asked_to_stop or job.is_expired(self.now()):
            return True
        return bool(self.held) and job.job_type.name in self.held and not job.probe

    def turns_back(self, chunk: Chunk) -> None:
        """Looked at once a chunk: one that was handed out a session ago goes back as it is. *Bites*: a process was frozen; its threads
        are awake before its loop, and start what waited for them, which is another worker's by now (see `Committer.doubts`)."""
        if time.monotonic() - chunk.born > self.session_s:
            chunk.returned.extend(chunk.take_back())


class Chunk:
    """Jobs handed out together. The thread fills it, the loop reads it; each list has one writer.

    `jobs` is an iterator over lane heads, so that the loop can take back what a stuck thread has not started: whoever calls
    `next` first has the job.
    """

    __slots__ = (
        "born", "borrower", "brief", "clock", "current", "done", "harvested", "heads", "inline", "jobs", "kind", "results", "returned", "stopped",
        "stops", "to_epoch", "took_s", "waited_s", "zombie",
    )  # fmt: skip

    def __init__(self, kind: str, jobs: list[Job], results: SimpleQueue[Chunk]) -> None:
        self.kind = kind
        self.born = time.monotonic()
        self.heads = jobs
        self.jobs: Iterator[Job] = iter(jobs)
        self.results = results
        self.done: list[Job] = []  # ran to an end, in order
        self.stops: list[Job] = []  # the last job of each lane visited; a strict lane waits for what becomes of its failed head
        self.returned: list[Job] = []  # not started
        # Set before the gate is looked at. So when a revoke closes the gate and then finds no job of the partition here,
        # none will start: it either sees this one and waits for it, or this one sees the closed gate.
        self.current: Job | None = None
        self.harvested = 0  # how many of `done` the loop has seen
        self.stopped = 0  # how many of `stops`
        self.zombie: Job | None = None  # a job that runs on past its timeout
        self.brief = False  # its jobs take microseconds by the mean so far: they wait for nothing
        self.inline = False  # its loop does nothing meanwhile: it runs for `took_s` in all, and waits for `waited_s` of it
        self.borrower: Borrower | None = None  # who runs it has its loop, too
        self.took_s = self.waited_s = 0.0
        self.clock, self.to_epoch = time.time, 0.0

    def begin(self, clock: Callable[[], float], to_epoch: float | None = None) -> float:
        """By which clock its jobs are timed, so that one look at it a job serves for start and duration; returns its distance to the epoch
        (None: as it is now).

        Of each chunk, not once for all. *Bites*: a machine is suspended for an hour, or its clock is set; from then on all jobs began an
        hour ago: they waited for no time, and those that have a timeout are past it.
        """
        self.clock = clock
        self.to_epoch = time.time() - clock() if to_epoch is None else to_epoch
        return self.to_epoch

    def elapsed(self, job: Job) -> float:
        """For how long (s) a job of it has been running, whatever was done to the wall's clock meanwhile."""
        return self.clock() + self.to_epoch - job.started_at

    def give_up(self) -> None:
        """After a fault outside a handler: what has no end, the job at hand included, goes back, so that its lane goes on."""
        job = self.current
        if job is not None and job not in self.returned and job not in self.stops:
            if job not in self.done:
                self.returned.append(job)
            elif not job.job_type.strict:
                self.stops.append(job)
        self.returned.extend(self.take_back())

    def forget(self) -> None:
        """It is over and looked at. *Bites*: one brief job in 500 leaves a task behind; the task's context names the chunk, and all its jobs
        and their records live as long as the task. Or what runs it in a child process knows the chunk, and is its `jobs`: they live until
        the garbage collector comes, which is seldom (measured: 530 MB after 1,400 jobs of 200 kB)."""
        self.heads, self.done, self.stops, self.returned = [], [], [], []
        self.jobs = iter(())

    def take_back(self) -> list[Job]:
        """What the thread has not begun; it will not begin it any more."""
        return list(self.jobs)


class Stopwatch:
    """How long an inline chunk takes this thread, from now on."""

    def __init__(self) -> None:
        self._began, self._burned_s, self._pauses = time.monotonic(), time.thread_time(), _pauses()

    def stop(self, chunk: Chunk) -> None:
        chunk.took_s = time.monotonic() - self._began
        if _pauses() != self._pauses:
            chunk.waited_s = chunk.took_s - (time.thread_time() - self._burned_s)


def _pauses() -> int:
    """Grows when this thread gives its processor up because it waits for something.

    *Bites*, without it: the machine is busy, others are given the processor for milliseconds, and that passes for waiting: for a second and
    more no job runs in the loop's thread, at the very time at which to wake another one costs most *(measured: 0.27 of the bare loop
    instead of 0.34)*.
    """
    return next(_NEVER_THE_SAME) if getrusage is None else getrusage(RUSAGE_THREAD).ru_nvcsw


class Executor(Protocol):
    """Runs chunks and puts each into its own `results` when it is over. `submit` never blocks."""

    kind: str
    slots: int

    def submit(self, chunk: Chunk) -> None: ...

    def cancel(self, job: Job) -> None:
        """Interrupts a running job where that is possible; its `cancelled` is set already."""
        ...

    def stop(self, timeout: float) -> None: ...


class _Here(threading.local):
    gate: Gate | None = None


#: The gate of the chunk that this thread runs.
HERE = _Here()


def _after_fork() -> None:
    if HERE.gate is not None:
        HERE.gate.closed = True


os.register_at_fork(after_in_child=_after_fork)


def leave_fork(error: BaseException | None) -> NoReturn:
    """Ends a process that a handler forked, and whose call of the handler has come to its end, as the program would that it takes itself for.

    *Bites*: `if os.fork() == 0: …; sys.exit()`. Caught as every handler's exception, that ended nothing: the child ran what was left of
    the chunk, as its parent did, and then waited for more for ever, with all open files of the worker.
    """
    code = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    elif error is not None:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
