"""The executor for `def` handlers: threads, each woken through a mailbox of its own, the last one idle first."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue

from streamjobs.job import CURRENT, Job, meant
from streamjobs.worker.executors import HERE, VISIT_JOBS, VISIT_S, Chunk, Gate, Stopwatch, leave_fork
from streamjobs.worker.marks import OFFSET, Marks, Row, nowhere

logger = logging.getLogger(__name__)


class Threads:
    """Up to `slots` chunks run at once; the others wait in the backlog.

    A wake-up carries no work: whoever is awake takes from the backlog. So nothing is stranded in this sequence:
    a thread finds the backlog empty; a chunk is submitted and sees nobody idle; the thread lists itself as idle: it looks at the
    backlog once more after that.
    """

    kind = "threads"

    def __init__(self, slots: int, gate: Gate, marks: Marks | None = None) -> None:
        self.slots = slots
        self._gate = gate
        self._marks = marks or Marks()
        self._backlog: deque[Chunk] = deque()
        self._idle: list[SimpleQueue[bool]] = []
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()  # of the set of threads
        self._free = threading.Semaphore(slots)  # slots: taken by a thread while it is awake, and by whoever runs a chunk inline

    def submit(self, chunk: Chunk) -> None:
        self._backlog.append(chunk)
        self._wake()

    def _wake(self) -> None:
        try:
            mailbox = self._idle.pop()
        except IndexError:
            self._start_thread()
        else:
            mailbox.put(True)

    def _start_thread(self) -> None:
        with self._lock:
            if len(self._threads) >= self.slots:
                return
            thread = threading.Thread(target=self._live, name=f"streamjobs-slot-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.add(thread)

    def _live(self) -> None:
        try:
            self._work()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _work(self) -> None:
        mailbox: SimpleQueue[bool] = SimpleQueue()
        go_on = True
        with self._seat() as run:
            while go_on:
                with self._free:
                    self._empty_backlog(run)
                self._idle.append(mailbox)
                if self._backlog:
                    self._wake()
                go_on = mailbox.get()

    @contextmanager
    def _seat(self) -> Iterator[Callable[[Chunk], None]]:
        """What one thread runs chunks with, from its start to its end."""
        with self._marks.row() as row:
            yield lambda chunk: run_chunk(chunk, self._gate, row=row)

    def _empty_backlog(self, run: Callable[[Chunk], None]) -> None:
        while True:
            try:
                chunk = self._backlog.popleft()
            except IndexError:
                return
            run(chunk)

    def run_inline(self, chunk: Chunk) -> None:
        """Runs it in the calling thread, which takes one of the slots for that. If none is free, or others wait for one, it is submitted.

        *Bites*, without a look at who waits: two loops, one slot; one of them runs chunk after chunk inline, and each time it gives the
        slot back it has it again before the thread that waits for the other's chunk is awake.
        """
        if self._backlog or not self._free.acquire(blocking=False):
            self.submit(chunk)
            return
        try:
            with self._seat() as run:
                chunk.inline = True
                copy_context().run(run, chunk)  # what a handler leaves set is not the loop's
        finally:
            self._free.release()

    def cancel(self, job: Job) -> None:
        """Nothing to do: a thread can't be interrupted; the handler sees `job.cancelled`."""

    def stop(self, timeout: float) -> None:
        """Ends the idle threads; those that still run a handler are daemons and end with the process."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads, self._threads = self._threads, set()
            self.slots = 0
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline:
                while self._idle:
                    self._idle.pop().put(False)
                thread.join(0.01)


def run_chunk(
    chunk: Chunk,
    gate: Gate,
    clock: Callable[[], float] = time.perf_counter,
    to_epoch: float | None = None,
    row: Row | None = None,
) -> None:
    """Runs a chunk's jobs and what becomes ready in their lanes, and reports it to its loop, whatever happens.

    `to_epoch`: what makes the clock's seconds seconds since the epoch (None: as it is now). `row`: where it notes what it starts.
    """
    row = row or nowhere()
    pid, HERE.gate = os.getpid(), gate
    watch = Stopwatch() if chunk.inline else None
    try:
        gate.turns_back(chunk)
        CURRENT.set(chunk)
        _run_lanes(chunk, gate, clock, chunk.begin(clock, to_epoch), row)
    except BaseException:
        logger.exception("a worker thread failed outside a handler; what it had not begun runs elsewhere")
        chunk.give_up()
    finally:
        if os.getpid() != pid:
            leave_fork(chunk.done[-1].error)
        HERE.gate = None
        row.clear()
        CURRENT.set(None)
        chunk.current = None
        if watch is not None:
            watch.stop(chunk)
        chunk.results.put(chunk)


def _run_lanes(chunk: Chunk, gate: Gate, clock: Callable[[], float], to_epoch: float, row: Row) -> None:
    """Runs each head and those behind it, until its lane or the visit ends.

    The hottest lines of a worker, so what they do for each job stands here, and the clock is read once: a job starts when the
    last one ended. Of brief jobs the context names the chunk, which knows its current one: to name each took a twentieth of all time.
    What such a job leaves behind in another thread, with a copy of its context, logs as a later one then, and as none when all are over.
    """
    done, stops, cells = chunk.done, chunk.stops, row.cells
    name_each = gate.exact or not chunk.brief
    lot: object = None
    marked = False
    now = clock()
    for head in chunk.jobs:
        job, left, until = head, VISIT_JOBS, now + VISIT_S
        while True:
            chunk.current = job
            if lot is None or job.lot is not lot:
                lot, home, epoch, job_type, due = job.lot, job.home, job.epoch, job.job_type, job.due
                run_handler = job_type.run  # a method call would look for it on the class first
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
                CURRENT.set(job)
            try:
                run_handler(job)
            except BaseException as error:  # noqa: BLE001 (whatever a handler raises is its result)
                job.error = meant(error)
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
                    stops.append(job)
                break
            job = behind  # type: ignore[assignment]
