"""The executor for handlers that burn processor time or are not to be trusted: child processes, one pipe each.

Each slot is a thread that keeps one child and sends it lists of jobs. A child that is killed, crashes, hangs past a timeout or
exits takes one job with it, the one that it was running: what it had finished is known, what it had not begun goes back.

A list can be called back although the child has it: with the list come *tickets*, one byte a job, in a pipe that both can read.
Whoever reads a job's ticket has the job: the child reads one before each start, the parent reads what is left.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

from streamjobs.errors import JobTypeError
from streamjobs.job import Crashed, Job, JobCancelled, Timeout
from streamjobs.worker.executors import VISIT_S, Chunk, Gate
from streamjobs.worker.executors.child import LIST, Cells, Load, Task, main
from streamjobs.worker.executors.exceptions import Packed, pack, unpack
from streamjobs.worker.executors.threads import Threads
from streamjobs.worker.marks import Marks, Row
from streamjobs.worker.supervise import how

logger = logging.getLogger(__name__)

#: How often a parent looks at what its child does while a list is under way.
LOOK_S = 0.05
#: A job that was told to stop and goes on is killed after this.
CANCEL_S = 10.0
#: A child that has not loaded the app by then never will.
START_S = 120.0
#: A child that could not start is tried again after a growing pause.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Child:
    """A child process, and what is needed to talk to it. One owner: its keeper's thread."""

    def __init__(self, load: Load, marks: Marks, row: Row) -> None:
        context = multiprocessing.get_context("spawn")
        self.cells = Cells()
        self.connection, theirs = context.Pipe()
        self.tickets = context.Pipe(duplex=False)
        os.set_blocking(self.tickets[0].fileno(), False)
        arguments = (theirs, self.tickets[0], self.cells.memory, marks.memory, row.number, load, os.getpid())
        self.process: SpawnProcess = context.Process(target=main, args=arguments, name="streamjobs-child", daemon=False)
        self.process.start()
        theirs.close()
        # A program that ends without stopping its executors would wait for the child, which waits for it.
        self._finalizer = Finalize(None, self.process.kill, exitpriority=10)
        self.ready = False

    def wait(self, timeout: float) -> bool:
        """Until it has said something, or is dead."""
        return bool(wait([self.connection, self.process.sentinel], timeout))

    def receive(self) -> tuple[Any, ...] | None:
        """What it said next; None: nothing now. Also after its death: what it had sent is still there."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    @property
    def dead(self) -> bool:
        return not self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5.0)

    def close(self, patience_s: float) -> None:
        """Lets it run its stop hooks and end; kills it if it doesn't."""
        self.connection.close()
        self.process.join(patience_s)
        if self.process.is_alive():
            self.kill()
        for end in self.tickets:
            end.close()
        self._finalizer.cancel()


class Batch:
    """A list of jobs under way in a child, in stretches of lanes; an iterator that takes back what the child has not begun.

    Loop threads and the keeper's thread use it; `lanes` has the first and last index of each stretch.
    """

    def __init__(self, chunk: Chunk, jobs: list[Job], lanes: list[tuple[int, int]], child: Child) -> None:
        self.jobs = jobs
        self.lanes = lanes
        self.harvested = 0
        self.shown = -1
        self.failures: dict[int, Packed] = {}
        self._chunk = chunk
        self.cancelled_at: dict[int, float] = {}
        self._cells = child.cells
        self._heads = {first for first, _ in lanes}
        self.lasts = {last for _, last in lanes}
        self._tickets = child.tickets[0].fileno()
        self._left = len(jobs)
        self._exhausted = False
        self._lock = threading.Lock()
        self._shown_at = 0.0
        child.cells.reset()
        os.write(child.tickets[1].fileno(), bytes(len(jobs)))

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        """Takes back from the end. Only heads of lanes are given: those behind them follow by themselves."""
        with self._lock:
            while self._take_ticket():
                if self._left in self._heads:
                    return self.jobs[self._left]
            self._show()
        raise StopIteration

    def _take_ticket(self) -> bool:
        if self._exhausted:
            return False
        try:
            os.read(self._tickets, 1)
        except BlockingIOError:
            self._exhausted = True
            return False
        self._left -= 1
        return True

    def close(self) -> None:
        """Its tickets are all taken; their pipe may be closed now, and its number be used for something else."""
        with self._lock:
            self._exhausted = True

    @property
    def current(self) -> int | None:
        """The index of the job that the child runs, or has the ticket for; None: none that is known of."""
        with self._lock:
            return self._current()

    def _current(self) -> int | None:
        # With no ticket left the child has all that was not taken back, though it may not have said so yet.
        begun = self._left if self._exhausted else self._cells.begun
        return begun - 1 if begun > self._cells.ended else None

    def is_head(self, index: int) -> bool:
        """Whether it is the first of its lane in this list; the others become ready by what was before them."""
        return index in self._heads

    @property
    def unended(self) -> range:
        """Indices of the jobs that were neither taken back nor reported."""
        with self._lock:
            return range(self.harvested, self._left)

    def show(self) -> None:
        """Notes in the chunk what runs now."""
        with self._lock:
            self._show()

    def _show(self) -> None:
        index = self._current()
        if index is not None and index != self.shown:
            self.shown, self._shown_at = index, time.monotonic()
            self.jobs[index].start(self._cells.start_of(index) if index < self._cells.begun else time.time())
        self._chunk.current = None if index is None else self.jobs[index]

    def running_s(self, index: int) -> float:
        """For how long a job has been running (one that has a ticket: since it was shown), whatever was done to the wall's clock meanwhile.
        *Bites*: that is set an hour forward, and every child whose job has a timeout is killed."""
        if index >= self._cells.begun and index != self.shown:
            return 0.0
        return time.monotonic() - (self._cells.began(index) if index < self._cells.begun else self._shown_at)

    def cancel(self, job: Job) -> None:
        index = self.current
        if index is not None and self.jobs[index] is job and index not in self.cancelled_at:
            self.cancelled_at[index] = time.monotonic()
            self._cells.cancel(index)


class Keeper:
    """Keeps one child, runs chunks in it, and replaces it when it dies. One owner: a thread of its executor."""

    def __init__(self, load: Load, gate: Gate, marks: Marks, row: Row, stopping: threading.Event) -> None:
        self._load = load
        self._gate = gate
        self._marks = marks
        self._row = row
        self._stopping = stopping
        self._child: Child | None = None
        self._batch: Batch | None = None
        self._pause_s = 0.0

    # Chunks -----------------------------------------------------------------------------------------------------------

    def run_chunk(self, chunk: Chunk) -> None:
        """Runs a chunk's jobs and those behind them in their lanes, and reports it to its loop, whatever happens."""
        try:
            self._gate.turns_back(chunk)
            self._run_all(chunk)
        except BaseException as error:
            logger.exception("an executor failed outside a handler; what it had not begun runs elsewhere")
            self._give_back(chunk, error)
        finally:
            self._row.clear()
            chunk.current = None
            chunk.results.put(chunk)

    def _run_all(self, chunk: Chunk) -> None:
        child = self._ready_child()  # meanwhile the loop may take back what is in the chunk
        heads = list(chunk.jobs)
        if child is None:
            chunk.returned.extend(heads)
        elif heads:
            self._run_heads(chunk, heads, child)

    def _run_heads(self, chunk: Chunk, heads: list[Job], child: Child) -> None:
        self._run(chunk, *_stretches(heads, self._gate.bars), child)

    def _run(self, chunk: Chunk, jobs: list[Job], lanes: list[tuple[int, int]], child: Child) -> None:
        tasks = [_packed(job) for job in jobs]
        # From here on the loop can take back. Then the gate is looked at: a revoke that closes it afterwards takes back itself.
        self._batch = chunk.jobs = batch = Batch(chunk, jobs, lanes, child)
        if any(self._gate.bars(job) for job in jobs):
            chunk.returned.extend(batch)
        child.connection.send(tasks)
        self._attend(chunk, batch, child)
        self._close(chunk, batch)

    def _close(self, chunk: Chunk, batch: Batch) -> None:
        batch.close()
        self._batch = None
        ended = batch.harvested
        chunk.stops.extend(batch.jobs[ended - 1] for first, last in batch.lanes if first < ended <= last)  # broken off in its midst

    def _give_back(self, chunk: Chunk, error: BaseException) -> None:
        """After a fault of ours: nothing may be lost of what the child has in hand, and it can't be asked any more."""
        child, batch = self._child, self._batch
        chunk.returned.extend(chunk.take_back())
        if child is not None:
            child.kill()
            self._replace(child)
        if batch is not None:
            for index in batch.unended:
                batch.jobs[index].error = Crashed(f"the way to its process broke: {error}")
                self._end(chunk, batch, index)
            self._close(chunk, batch)

    def _attend(self, chunk: Chunk, batch: Batch, child: Child) -> None:
        """Until the child has done with the list, or is dead."""
        over = False
        while not over:
            batch.show()
            child.wait(self._patience(batch))
            if self._gate.closed or any(job.is_expired(self._gate.now()) for job in batch.jobs[batch.harvested :]):
                chunk.returned.extend(batch)
            dead = child.dead
            over = self._take(chunk, batch, child)
            doomed = None if over or dead else self._overdue(batch)
            if doomed is not None:
                child.kill()
                dead = True
                over = self._take(chunk, batch, child)
            if dead and not over:
                self._died(chunk, batch, child, doomed)
                return

    def _take(self, chunk: Chunk, batch: Batch, child: Child) -> bool:
        """What it finished and said since the last look; True: the list is over.

        The ends first, then the messages: a failure is sent before its end is noted, so none is taken for a success.
        """
        ended, over = child.cells.ended, False
        while (message := child.receive()) is not None:
            if message[0] == "over":
                ended, over = child.cells.ended, True
            elif message[0] == "failed":
                batch.failures[message[1]] = message[2]
            elif message[0] == "published":
                batch.jobs[message[1]].children = message[2]
            elif message[0] == "progress":
                _show_progress(batch.jobs[message[1]], message[2])
        for index in range(batch.harvested, ended):
            failure = batch.failures.pop(index, None)
            job = batch.jobs[index]
            job.start(child.cells.start_of(index))
            job.duration_s = child.cells.duration_of(index)
            job.error = None if failure is None else unpack(failure)
            self._end(chunk, batch, index)
        return over

    def _end(self, chunk: Chunk, batch: Batch, index: int) -> None:
        job = batch.jobs[index]
        waits = job.error is not None and job.job_type.strict  # asked first: once the loop sees the job, it is the loop's
        batch.harvested = index + 1
        chunk.done.append(job)
        if index in batch.lasts and not waits:
            chunk.stops.append(job)

    def _patience(self, batch: Batch) -> float:
        left = self._time_left(batch)
        return LOOK_S if left is None else max(0.0, min(LOOK_S, left))

    def _time_left(self, batch: Batch) -> float | None:
        index = batch.current
        if index is None:
            return None
        timeout_s = batch.jobs[index].job_type.timeout_s
        return timeout_s - batch.running_s(index) if timeout_s else None

    def _overdue(self, batch: Batch) -> tuple[Job, BaseException] | None:
        """The job for which the child must be killed now: it is past its timeout, or was cancelled and goes on."""
        index = batch.current
        if index is None:
            return None
        job, left = batch.jobs[index], self._time_left(batch)
        if left is not None and left <= 0 and index == batch.shown:
            return job, Timeout(f"it ran longer than {job.job_type.timeout_s:g} s")
        cancelled_at = batch.cancelled_at.get(index)
        if cancelled_at is not None and time.monotonic() - cancelled_at > CANCEL_S:
            return job, JobCancelled(f"cancelled, and killed when it still ran after {CANCEL_S:g} s")
        return None

    def _died(self, chunk: Chunk, batch: Batch, child: Child, doomed: tuple[Job, BaseException] | None) -> None:
        """The job that it ran has failed; what it had not begun goes back; another child takes its place at once."""
        child.process.join(5.0)
        chunk.returned.extend(batch)
        index = batch.current
        how_it_ended = how(child.process.exitcode or 0)
        self._replace(child)
        if index is None:
            logger.error("a child process ended with %s while it ran nothing", how_it_ended)
            return
        job = batch.jobs[index]
        if doomed is None and self._stopping.is_set():
            # By `kill`. *Bites*, held against it: a suspect takes longer than a drain; three deployments, and it is buried as poison.
            doomed = job, JobCancelled("killed at the end of its worker")
        if doomed is not None and doomed[0] is not job:
            # The late one ended after all, and the next one began, just before the child was killed: that one did nothing.
            chunk.returned.extend([job] if batch.is_head(index) else [])
            return
        job.error = doomed[1] if doomed else Crashed(f"its process ended with {how_it_ended}")
        job.duration_s = batch.running_s(index)
        if _is_strike(job):
            job.strikes += 1
        logger.error("%r: %s; another child process takes its place", job, job.error)
        self._end(chunk, batch, index)

    # The child --------------------------------------------------------------------------------------------------------

    def _ready_child(self) -> Child | None:
        """A child that has loaded the app; None: it can't, and was told of why. Waits a growing time before it tries again."""
        if self._child is not None and self._child.dead:
            self._replace(self._child)
        child = self._child = self._child or self._new_child()
        if child is None:
            self._pause("the system refuses another process")
            return None
        if child.ready:
            return child
        deadline = time.monotonic() + START_S
        while not child.wait(0.5) and time.monotonic() < deadline and not self._stopping.is_set():
            pass
        message = child.receive()
        child.ready = message is not None and message[0] == "ready"
        if child.ready:
            self._pause_s = 0.0
            return child
        self._give_up(child, str(message[1]) if message else "")
        return None

    def _give_up(self, child: Child, why: str) -> None:
        child.close(0.5)
        self._child = None
        self._pause(how(child.process.exitcode or 0), why)

    def _pause(self, what: str, why: str = "") -> None:
        if self._stopping.is_set():
            return
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
        logger.error("a child process could not start (%s); its jobs wait %g s\n%s", what, self._pause_s, why)
        self._stopping.wait(self._pause_s)

    def _new_child(self) -> Child | None:
        """None: there can be none now. *Bites*: memory runs out, a child is killed for that, and there is none for another one; raised here,
        that made the job which the dead one had run neither done nor returned."""
        try:
            return Child(self._load, self._marks, self._row)
        except OSError as error:
            logger.error("no process can be started: %s", error)
            return None

    def _replace(self, child: Child) -> None:
        child.close(0.0)
        self._child = None if self._stopping.is_set() else self._new_child()

    def cancel(self, job: Job) -> None:
        """Tells the child, if it is this one that runs the job. Any thread may call it."""
        batch = self._batch
        if batch is not None:
            batch.cancel(job)

    def kill(self) -> None:
        """At the end of the executor; its thread sees the death."""
        child = self._child
        if child is not None and self._batch is not None:
            child.process.kill()

    def close(self) -> None:
        if self._child is not None:
            self._child.close(2.0)


class Processes(Threads):
    """Up to `slots` children, each started when it is first needed and kept by a thread."""

    kind = "processes"

    def __init__(self, slots: int, gate: Gate, load: Load, marks: Marks | None = None) -> None:
        super().__init__(slots, gate, marks)
        self._load = load
        self._stopping = threading.Event()
        self._keepers: list[Keeper] = []

    @contextmanager
    def _seat(self) -> Iterator[Callable[[Chunk], None]]:
        with self._marks.row() as row:
            keeper = self._keeper(row)
            self._keepers.append(keeper)
            try:
                yield keeper.run_chunk
            finally:
                self._keepers.remove(keeper)
                keeper.close()

    def _keeper(self, row: Row) -> Keeper:
        return Keeper(self._load, self._gate, self._marks, row, self._stopping)

    def cancel(self, job: Job) -> None:
        """The handler sees it in `job.cancelled` and `job.heartbeat()`; one that goes on is killed after a while."""
        for keeper in list(self._keepers):
            keeper.cancel(job)

    def stop(self, timeout: float) -> None:
        """Idle children run their stop hooks and end; those that still run a handler are killed."""
        self._stopping.set()
        for keeper in list(self._keepers):
            keeper.kill()
        super().stop(timeout)


def _stretches(heads: list[Job], bars: Callable[[Job], bool]) -> tuple[list[Job], list[tuple[int, int]]]:
    """Each head with what waits behind it now, as long as that is little work; strict lanes go job by job.

    Up to one that may not start. *Bites*: a list with such a one in it goes back; its head is handed out again at once, with the same
    one behind it, and goes back again, for ever.
    """
    jobs: list[Job] = []
    lanes = []
    for place, head in enumerate(heads):
        first, room = len(jobs), LIST - len(jobs) - (len(heads) - place - 1)
        jobs.append(head)
        mean = head.job_type.mean_s
        for _ in range(min(room, int(VISIT_S / max(mean, 1e-6))) - 1 if mean and not head.job_type.strict else 0):
            behind: Any = jobs[-1].next
            if behind is None or behind.kind != head.kind or behind.job_type.strict or bars(behind):
                break
            jobs.append(behind)
        lanes.append((first, len(jobs) - 1))
    return jobs, lanes


def _is_strike(job: Job) -> bool:
    """Whether the death of its process is held against a job: not if it was cancelled, nor if one that hung would have cost nobody
    anything in the executor that it asks for."""
    hung = isinstance(job.error, Timeout) and job.job_type.kind != Processes.kind
    return not hung and not isinstance(job.error, JobCancelled)


def _show_progress(job: Job, pickled: bytes) -> None:
    try:
        job.show_progress(pickle.loads(pickled))
    except Exception as error:  # noqa: BLE001 (it is only shown; whatever it is must not break the pipe)
        logger.warning("%r shows a progress that can't be read here: %s", job, error)


def _packed(job: Job) -> bytes | Packed:
    """A job as it travels, or what is wrong with it, which then is its failure."""
    home, message = job.home, job.message
    task = Task(
        job.type, job.args, job.raw_id, job.run, job.attempt, job.strikes, home.place, job.offset, message.timestamp(), message.key(),
        message.headers(), home.topic, home.number, home.queue, home.retry, home.topic_id,
    )  # fmt: skip
    try:
        return pickle.dumps(task)
    except Exception as error:  # noqa: BLE001 (pickle raises what it likes)
        why = f"the arguments of {job.type} can't be sent to a child process: {error}; run it with executor='threads', or give it plain data"
        return pack(JobTypeError(why))
