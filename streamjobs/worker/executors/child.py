"""A child process of the executors `processes` and `quarantine`: runs the lists of jobs that its parent sends, one by one.

No Kafka here, and nothing of a worker but the handlers: what a job does to this process, no other job feels.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple, Protocol

from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Header, Meta
from streamjobs.errors import JobTypeError
from streamjobs.job import CURRENT, Job, JobCancelled, JobType, Outbox, meant
from streamjobs.worker.executors import leave_fork
from streamjobs.worker.executors.exceptions import Packed, pack, unpack
from streamjobs.worker.marks import Marks, Memory

#: Jobs in one list.
LIST = 256
_PR_SET_PDEATHSIG = 1


class Loaded(Protocol):
    """What a child needs of an app."""

    @property
    def job_types(self) -> Mapping[str, JobType[Any, Any]]: ...
    @property
    def start_hooks(self) -> Sequence[Callable[[], Any]]: ...
    @property
    def stop_hooks(self) -> Sequence[Callable[[], Any]]: ...
    def outbox(self) -> Outbox | None: ...


Load = Callable[[], Loaded]
"""Makes the app in the child; goes there by pickle."""


class Task(NamedTuple):
    """A job as it travels to a child."""

    type: str
    args: tuple[Any, ...]
    raw_id: bytes
    run: int
    attempt: int
    strikes: int
    place: int
    offset: int
    timestamp: tuple[int, int]
    key: bytes | None
    headers: list[Header] | None
    topic: str
    partition: int
    queue: str
    retry: bool
    topic_id: bytes


class Cells:
    """Memory that parent and child both see while a list is under way; places are indices in the list.

    The child writes `begun` (how many it has begun), `ended`, when each began (epoch seconds, and by the monotonic clock, which all
    processes of a machine share) and how long it took; the parent writes `cancelled` (1 + the index of the job that should stop).
    """

    BEGUN, ENDED, CANCELLED, STARTS, DURATIONS, SINCE = 0, 1, 2, 3, 3 + LIST, 3 + 2 * LIST

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory: Any = RawArray(ctypes.c_double, 3 + 3 * LIST) if memory is None else memory

    def reset(self) -> None:
        self.memory[self.BEGUN] = self.memory[self.ENDED] = self.memory[self.CANCELLED] = 0

    @property
    def begun(self) -> int:
        return int(self.memory[self.BEGUN])

    @property
    def ended(self) -> int:
        return int(self.memory[self.ENDED])

    def start_of(self, index: int) -> float:
        return float(self.memory[self.STARTS + index])

    def began(self, index: int) -> float:
        """By the monotonic clock."""
        return float(self.memory[self.SINCE + index])

    def duration_of(self, index: int) -> float:
        return float(self.memory[self.DURATIONS + index])

    def cancel(self, index: int) -> None:
        self.memory[self.CANCELLED] = index + 1

    def is_cancelled(self, index: int) -> bool:
        return int(self.memory[self.CANCELLED]) == index + 1

    def begin(self, index: int) -> float:
        self.memory[self.STARTS + index] = at = time.time()
        self.memory[self.SINCE + index] = time.monotonic()
        self.memory[self.BEGUN] = index + 1
        return at

    def end(self, index: int, duration_s: float) -> None:
        self.memory[self.DURATIONS + index] = duration_s
        self.memory[self.ENDED] = index + 1


class _Message:
    """The record of a job, without the value: its arguments are made of it already."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return 0

    def topic(self) -> str:
        return self._task.topic

    def partition(self) -> int:
        return self._task.partition

    def offset(self) -> int:
        return self._task.offset

    def key(self) -> bytes | None:
        return self._task.key

    def value(self) -> bytes | None:
        return None

    def headers(self) -> list[Header] | None:
        return self._task.headers

    def timestamp(self) -> tuple[int, int]:
        return self._task.timestamp


class ChildJob(Job):
    """The job that a handler in a child gets: what it asks and says goes to the parent."""

    __slots__ = ("_index", "_runner")

    _index: int
    _runner: Runner

    @classmethod
    def at(cls, job_type: JobType[Any, Any], task: Task, runner: Runner, index: int) -> ChildJob:
        """The job of the list's task at this index."""
        home = Partition(task.topic, task.partition, task.queue, retry=task.retry, topic_id=task.topic_id, epoch=0, tracker=None)
        job = cls.of(job_type, home, _Message(task), Meta.parse(task.headers), task.args, task.raw_id)
        job.run, job.attempt, job.strikes = task.run, task.attempt, task.strikes
        job._runner = runner
        job._index = index
        return job

    @property
    def cancelled(self) -> bool:
        return self.asked_to_stop or self._runner.cells.is_cancelled(self._index)

    def heartbeat(self, progress: Any = None) -> None:
        if progress is not None:
            self._progress = progress
            self._runner.show(self, self._index, pickle.dumps(progress))
        if self.cancelled:
            raise JobCancelled(f"job {self.id} is cancelled")


class Runner:
    """Runs lists. One thread, the child's main one, so that a handler may use signals as in a program of its own."""

    def __init__(self, connection: Connection, tickets: Connection, cells: Cells, marks: Memory | None, row: int, app: Loaded) -> None:
        self.cells = cells
        self._connection = connection
        self._tickets = tickets
        self._row = Marks(marks).row_of(row if marks is not None else -1)
        self._app = app
        self._outbox = app.outbox()
        self._pid = os.getpid()
        self._sending = threading.Lock()  # handlers may have threads that show their progress
        self._current: ChildJob | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self) -> None:
        """Until the parent has closed the pipe, or is gone."""
        self.call(self._app.start_hooks)
        self.send("ready")
        while True:
            try:
                tasks = self._connection.recv()
            except (EOFError, OSError):
                break
            self._run_list(tasks)
            self.send("over")
        self.call(self._app.stop_hooks)

    def send(self, *message: Any) -> None:
        with self._sending:
            self._connection.send(message)

    def show(self, job: ChildJob, index: int, progress: bytes) -> None:
        """Says how far the job is, while it runs. *Bites*, without that look: a thread that a handler left behind speaks of its place in the
        list before; the parent finds no such place in this one, and takes the child's talk for broken, and the job that runs for crashed."""
        with self._sending:
            if job is self._current:
                self._connection.send(("progress", index, progress))

    def _run_list(self, tasks: Iterable[bytes | Packed]) -> None:
        for index, task in enumerate(tasks):
            if not self._has_ticket():
                break  # the parent took the rest back
            self._run(index, task)
        self._row.clear()

    def _has_ticket(self) -> bool:
        try:
            return bool(os.read(self._tickets.fileno(), 1))
        except BlockingIOError:
            return False

    def _run(self, index: int, packed: bytes | Packed) -> None:
        began_at = self.cells.begin(index)
        clock = time.perf_counter()
        job = None
        try:
            job = self._job(index, packed)
            self._row.mark(job.home.place, job.offset, job.run)
            job.start(began_at)
            CURRENT.set(job)
            self._current = job
            self._call(job.job_type.run, job)
        except BaseException as error:  # noqa: BLE001 (whatever a handler raises is its result)
            self._ends_forks(error)
            # Sent before the end is noted: a parent that sees the end finds the failure in the pipe.
            self.send("failed", index, pack(meant(error)))
        self._ends_forks(None)
        self._over()
        if self._outbox is not None and job is not None:
            for children in self._outbox.close([job]).values():
                self.send("published", index, children)
        self.cells.end(index, time.perf_counter() - clock)

    def _over(self) -> None:
        with self._sending:
            self._current = None

    def _ends_forks(self, error: BaseException | None) -> None:
        """Only the process that was given the list goes on with it, and says what became of it."""
        if os.getpid() != self._pid:
            leave_fork(error)

    def _job(self, index: int, packed: bytes | Packed) -> ChildJob:
        if isinstance(packed, Packed):
            raise unpack(packed)
        task: Task = pickle.loads(packed)
        job_type = self._app.job_types.get(task.type)
        if job_type is None:
            raise JobTypeError(
                f"a child process knows no job type {task.type!r}: declare it at the top level of a module, so that the child "
                "finds it when it imports that module"
            )
        job = ChildJob.at(job_type, task, self, index)
        job.home.place = task.place
        return job

    def call(self, hooks: Iterable[Callable[[], Any]]) -> None:
        for hook in hooks:
            self._call(hook)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        result = function(*args)
        if inspect.isawaitable(result):
            self._loop = self._loop or asyncio.new_event_loop()
            self._loop.run_until_complete(_awaited(result))


async def _awaited(result: Any) -> Any:
    return await result


def main(
    connection: Connection, tickets: Connection, cells: Memory, marks: Memory | None, row: int, load: Load, parent: int
) -> None:
    """What a child process runs, until its parent closes the pipe or dies."""
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        # They come to the whole group when a worker is told to stop; what runs here may end. No SIG_IGN: programs that a
        # handler starts would inherit it.
        signal.signal(number, _go_on)
    try:
        Runner(connection, tickets, Cells(cells), marks, row, load()).serve()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone
    except BaseException:  # noqa: BLE001 (the parent tells it)
        connection.send(("unfit", traceback.format_exc()))


def _go_on(_number: int, _frame: Any) -> None:
    """A signal that is not for this process."""


def _die_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
