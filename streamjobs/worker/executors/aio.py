"""The executor for `async def` handlers: one event loop in a thread of its own, with long-lived tasks fed chunks."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, TypeVar

from streamjobs.job import CURRENT, Job, JobCancelled, Timeout, meant
from streamjobs.worker.executors import HERE, VISIT_JOBS, VISIT_S, Chunk, Gate, Stopwatch, leave_fork
from streamjobs.worker.marks import OFFSET, Marks, Row, nowhere
from streamjobs.worker.turns import Borrower

logger = logging.getLogger(__name__)

#: An event loop that begins nothing new for so long is blocked.
BLOCKED_S = 2.0

T = TypeVar("T")


class Aio:
    """Up to `slots` chunks run at once, each in one task; the others wait in the backlog.

    The first start of the loop is lazy: a process without async handlers has no such thread.
    """

    kind = "aio"

    def __init__(self, slots: int, gate: Gate, marks: Marks | None = None) -> None:
        self.slots = slots
        self._gate = gate
        self._marks = marks or Marks()
        self._backlog: deque[Chunk] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Chunk, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._lock = threading.Lock()  # of the start of the event loop
        self._calls: set[asyncio.Task[Any] | None] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which all async handlers of this process run."""
        with self._lock:  # two loops may hand out their first chunks at the same moment
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_task_factory(_task_of_its_job)
                self._thread = threading.Thread(target=self._turn, args=(self._loop,), name="streamjobs-aio", daemon=True)
                self._thread.start()
            return self._loop

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """*Bites*, once only: a task that a handler started (with `gather`, or a task group) calls `sys.exit()`. asyncio raises that out of the
        event loop, too; its thread ends, and no async job of the process runs any more, or ends."""
        while not self._stopping and not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException as error:  # noqa: BLE001 (whoever awaits that task gets it, too)
                logger.warning("a task of an async handler raised %r; the event loop goes on", error)

    def submit(self, chunk: Chunk) -> None:
        self._backlog.append(chunk)
        self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        while self._idle:
            future = self._idle.pop()
            if not future.done():  # else its task was cancelled, by what a handler left behind, and is awake
                future.set_result(None)
                return
        if len(self._tasks) < self.slots:
            task = self.loop.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        """Takes chunks until it is stopped. It looks at the backlog and lists itself as idle without a step of the loop between.

        *Bites*: it is cancelled in a handler, whose end takes the cancellation with it; were it to wait for more then, nothing would end it.
        """
        with self._marks.row() as row:
            while not self._stopping:
                while self._backlog:
                    chunk = self._backlog.popleft()
                    await self._run_chunk(chunk, row)
                    if chunk.borrower is not None:
                        self._go_on(chunk.borrower)
                        await self._undisturbed(asyncio.sleep(0))  # what else is ready on the event loop has its turn
                if self._stopping:
                    return
                future = self.loop.create_future()
                self._idle.append(future)
                await self._undisturbed(future)

    def _go_on(self, borrower: Borrower) -> None:
        """Turns the chunk's loop, unless other handlers have begun, or wait to: a turn may take long, in a rebalance."""
        if self._backlog or self._running:
            borrower.give_back()
            return
        chunk = borrower.go_on()
        if chunk is not None:
            self._backlog.append(chunk)

    async def _undisturbed(self, awaitable: Awaitable[None]) -> None:
        """*Bites*, without a look at who cancelled: a handler gives a timer the means to cancel its task and ends before it; the task, which
        has no job now, ends of that, and the next chunk wakes nobody."""
        try:
            await awaitable
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopping or task is None:
                raise
            _forget_cancellation(task)

    async def _run_chunk(self, chunk: Chunk, row: Row | None = None) -> None:
        row = row or nowhere()
        task = asyncio.current_task()
        assert task is not None
        self._running[chunk] = task
        pid, HERE.gate = os.getpid(), self._gate
        watch = Stopwatch() if chunk.inline else None
        try:
            self._gate.turns_back(chunk)
            CURRENT.set(chunk)
            await self._run_lanes(chunk, row, task)
        except BaseException:
            logger.exception("a task failed outside a handler; what it had not begun runs elsewhere")
            chunk.give_up()
        finally:
            if os.getpid() != pid:
                leave_fork(chunk.done[-1].error)
            del self._running[chunk]
            row.clear()
            CURRENT.set(None)
            chunk.current = None
            if watch is not None:
                watch.stop(chunk)
            chunk.results.put(chunk)

    async def _run_lanes(self, chunk: Chunk, row: Row, task: asyncio.Task[None]) -> None:
        """Runs each head and those behind it, until its lane or the visit ends; as the threads do, with one look at the clock a job."""
        gate, clock, done, set_current, cells = self._gate, time.perf_counter, chunk.done, CURRENT.set, row.cells
        name_each = gate.exact or not chunk.brief
        lot: object = None
        marked = False
        to_epoch = chunk.begin(clock)
        now = clock()
        for head in chunk.jobs:
            job, left, until = head, VISIT_JOBS, now + VISIT_S
            while True:
                chunk.current = job
                if lot is None or job.lot is not lot:
                    lot, home, epoch, job_type, due = job.lot, job.home, job.epoch, job.job_type, job.due
                    marked, has_headers = False, job.meta is not None
                if epoch != home.serving or gate.closed or job.asked_to_stop or ((gate.held or has_headers) and gate.bars(job)):
                    chunk.returned.append(job)
                    break
                if marked:
                    cells[OFFSET] = job.offset
                else:
                    marked = True
                    row.mark(home.place, job.offset, job.run)
                job.started_at = at = now + to_epoch
                since = job.appended_at
                since = due if due > since else since  # noqa: FURB136 (`max` takes longer than all the rest of it)
                job.wait_s = at - since if at > since else 0.0
                if name_each:
                    set_current(job)
                try:
                    await (job_type.run(job) if job_type.timeout_s is None else _timed(job, job_type.timeout_s))
                except BaseException as error:  # noqa: BLE001 (whatever a handler raises is its result)
                    job.error = self._meant(job, error)
                if task.cancelling():
                    _forget_cancellation(task)  # what this job was told is not the next one's
                ended = clock()
                job.duration_s = ended - now
                now = ended
                waits = job_type.strict and job.error is not None  # asked first: once the loop sees the job, it is the loop's
                done.append(job)
                if waits:
                    break
                behind = job.next
                if behind is None or now > until or behind.kind != job.kind or (left := left - 1) == 0:
                    if job.lane is not None:
                        chunk.stops.append(job)
                    break
                job = behind  # type: ignore[assignment]

    def _meant(self, job: Job, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.CancelledError):
            return JobCancelled("cancelled while it ran") if job.cancelled or self._stopping else error
        return meant(error)

    def run(self, awaitable: Awaitable[Any]) -> bool:
        """Awaits it beside the handlers, while the caller waits; raises what it raises. False: it did not begin, for a handler blocks the
        event loop. *Bites*: an async stop hook is waited for behind such a one, until the process is killed for being late."""
        begun = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_begun(awaitable, begun), self.loop)
        if begun.wait(BLOCKED_S):
            future.result()
        return begun.is_set()

    def call(self, awaitable: Awaitable[Any], failed: Callable[[BaseException], None]) -> None:
        """Awaits it beside the handlers; the caller goes on at once."""
        asyncio.run_coroutine_threadsafe(self._call(awaitable, failed), self.loop)

    async def _call(self, awaitable: Awaitable[Any], failed: Callable[[BaseException], None]) -> None:
        task = asyncio.current_task()
        self._calls.add(task)
        try:
            await awaitable
        except BaseException as error:  # noqa: BLE001 (a signal or SystemExit would end the event loop)
            failed(error)
        finally:
            self._calls.discard(task)

    def cancel(self, job: Job) -> None:
        """Interrupts the job's handler at its next await; asked again, it leaves the handler to clean up."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, job)

    def _cancel(self, job: Job) -> None:
        for chunk, task in self._running.items():
            if chunk.current is job and not task.cancelling():
                task.cancel()

    def stop(self, timeout: float) -> None:
        """Ends the event loop: handlers that still run are cancelled, calls may end within the time."""
        if self._loop is None or self._thread is None:
            return
        done = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            done.result(timeout)
        except Exception:  # noqa: BLE001 (told, whatever it is: the process ends anyway)
            logger.warning("async handlers did not end within %g s; they end with the process", timeout)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)

    async def _cancel_all(self) -> None:
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *filter(None, self._calls), return_exceptions=True)


def _task_of_its_job(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T], /, *, context: Context | None = None, **more: Any
) -> asyncio.Task[T]:
    """A task, which knows the job that starts it, also where the context names the chunk (see `_run_lanes`). *Bites*: a brief handler leaves
    a task behind, as is usual in asyncio; what that logs, and the jobs that it publishes, are another job's, or nobody's."""
    if context is None:
        context = copy_context()
        running = context.get(CURRENT)
        if isinstance(running, Chunk):
            context.run(CURRENT.set, running.current)
    return asyncio.Task(coroutine, loop=loop, context=context, **more)


async def _begun(awaitable: Awaitable[Any], begun: threading.Event) -> Any:
    begun.set()
    return await awaitable


async def _timed(job: Job, timeout_s: float) -> None:
    """Awaits the handler; a time-out of ours is a `Timeout`, one of its own its failure."""
    try:
        async with asyncio.timeout(timeout_s) as scope:
            await job.job_type.run(job)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise Timeout(f"it ran longer than {timeout_s:g} s") from error


def _forget_cancellation(task: asyncio.Task[None]) -> None:
    while task.uncancel():
        pass
