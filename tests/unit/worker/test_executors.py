"""Executors: threads and asyncio, time-outs, cancellation, threads that hang or die."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import Any

import pytest

from streamjobs import App, Job, JobTypeError, Reject, Snooze, Timeout
from streamjobs.core.dispatch import Partition
from streamjobs.job import JobCancelled, JobType, current_job
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors import aio as executor_module
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.executors.threads import Threads, run_chunk
from streamjobs.worker.marks import Mark, Marks, memory
from tests.support.workers import eventually


class Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return (2, 0)

    def headers(self) -> None:
        return None

    def key(self) -> None:
        return None


_LEFT: ContextVar[str] = ContextVar("left", default="")


def _works_for_10_ms() -> None:
    until = time.thread_time() + 0.01
    while time.thread_time() < until:
        pass


class Bench:
    """Chunks of jobs for one executor."""

    def __init__(self) -> None:
        self.home = Partition("t", 0, "q", retry=False, topic_id=b"", epoch=1, tracker=None)
        self.results: SimpleQueue[Chunk] = SimpleQueue()
        self.gate = Gate()

    def chunk(self, kind: str, handler: Callable[..., Any], count: int = 1, **options: Any) -> Chunk:
        job_type: JobType[Any, Any] = JobType(handler, name="h", queue="q", publisher=lambda: None, **options)  # type: ignore[arg-type, return-value]
        jobs = []
        for offset in range(count):
            jobs.append(Job.of(job_type, self.home, Message(offset), None, (), b"j%d" % offset))  # type: ignore[arg-type]
        return Chunk(kind, jobs, self.results)

    def result(self) -> Chunk:
        return self.results.get(timeout=20)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def aio(bench: Bench) -> Iterator[Aio]:
    executor = Aio(4, bench.gate)
    yield executor
    executor.stop(5)


@pytest.fixture
def threads(bench: Bench) -> Iterator[Threads]:
    executor = Threads(4, bench.gate)
    yield executor
    executor.stop(1)


def test_a_chunk_that_runs_inline_takes_a_slot(bench: Bench) -> None:
    """With one slot nothing runs beside it, and it does not run beside anything."""
    threads = Threads(1, bench.gate)
    started, release, ran = threading.Event(), threading.Event(), []

    def blocks() -> None:
        started.set()
        assert release.wait(20)
        ran.append("first")

    first = bench.chunk("threads", blocks)
    inline = threading.Thread(target=lambda: threads.run_inline(first))
    inline.start()
    assert started.wait(20)
    threads.run_inline(bench.chunk("threads", lambda: ran.append("second")))
    threads.submit(bench.chunk("threads", lambda: ran.append("third")))
    release.set()
    assert [bench.result().inline for _ in range(3)] == [True, False, False] and ran == ["first", "second", "third"]
    inline.join(20)
    threads.stop(1)


def test_async_handlers_that_obey_are_not_said_to_go_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """They are cancelled at the end, and end: nothing is left that the executor would wait for."""
    executor, started = Aio(4, bench.gate), threading.Event()

    async def waits() -> None:
        started.set()
        await asyncio.Event().wait()

    executor.submit(bench.chunk("aio", waits))
    assert started.wait(20)
    executor.stop(2)

    (job,) = bench.result().done
    assert isinstance(job.error, JobCancelled)
    assert executor._tasks == set()
    assert caplog.messages == []


@pytest.mark.parametrize(("brief", "exact"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("kind", ["threads", "aio"])
def test_a_handler_sees_its_own_job_in_its_context(bench: Bench, kind: str, brief: bool, exact: bool) -> None:
    """Its copies, too, for as long as it runs. Those that outlive a brief job see a later one: but not where that could do more harm than
    a wrong name in a log, in a transactional app."""
    seen, copies = [], []

    def handler() -> None:
        seen.append(current_job())
        copies.append(copy_context())
        assert copies[-1].run(current_job) is seen[-1]

    async def async_handler() -> None:
        handler()

    chunk, gate = bench.chunk(kind, handler if kind == "threads" else async_handler, 3), Gate(exact=exact)
    chunk.brief = brief
    executor = (Threads if kind == "threads" else Aio)(1, gate)
    executor.submit(chunk)
    assert seen == bench.result().done == chunk.heads
    left = [copy.run(current_job) for copy in copies]
    assert left == ([None] * 3 if brief and not exact else seen)
    executor.stop(5)


def test_a_task_that_a_brief_async_handler_leaves_behind_knows_its_job(bench: Bench, aio: Aio) -> None:
    """Its log records and the jobs that it publishes are that job's, whatever runs by then, and whoever starts the task."""
    given = copy_context()
    seen: list[tuple[str, Job | None]] = []
    tasks: list[asyncio.Task[None]] = []
    release = asyncio.Event()

    async def looks(who: str) -> None:
        await release.wait()
        seen.append((who, current_job()))

    async def leaves_tasks() -> None:
        tasks.append(asyncio.create_task(looks("own"), name="by hand"))
        tasks.append(asyncio.get_running_loop().create_task(looks("none"), context=given))

    chunk = bench.chunk("aio", leaves_tasks, 3)
    chunk.brief = True
    aio.submit(chunk)
    jobs = bench.result().done
    aio.loop.call_soon_threadsafe(release.set)
    eventually(lambda: len(seen) == 6, 20, "the tasks")
    assert seen == [each for job in jobs for each in (("own", job), ("none", None))]
    assert tasks[0].get_name() == "by hand"


def test_a_chunk_does_not_run_inline_past_those_that_wait(bench: Bench) -> None:
    """Else the other loop's chunk waits for as long as there is work: the slot is taken again before its thread is awake."""
    threads = Threads(1, bench.gate)
    waiting = bench.chunk("threads", lambda: None)
    threads._backlog.append(waiting)
    threads.run_inline(bench.chunk("threads", lambda: None))
    assert bench.result() is waiting and not bench.result().inline
    threads.stop(1)


def test_what_a_handler_leaves_set_is_not_the_loops(bench: Bench, threads: Threads) -> None:
    threads.run_inline(bench.chunk("threads", lambda: _LEFT.set("by a handler")))
    assert bench.result().done[0].error is None and _LEFT.get() == ""


def test_an_inline_chunk_tells_how_long_it_took_and_used_no_processor(bench: Bench, threads: Threads) -> None:
    never = threading.Event()
    threads.run_inline(bench.chunk("threads", lambda: never.wait(0.05)))
    waited = bench.result()
    assert 0.04 < waited.waited_s <= waited.took_s
    threads.run_inline(bench.chunk("threads", _works_for_10_ms))
    worked = bench.result()
    assert worked.took_s - worked.waited_s >= 0.009


def test_a_thread_whose_processor_was_given_to_others_did_not_wait(bench: Bench, threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used none of it for 50 ms, and the system says that it did not give it up by itself."""
    monkeypatch.setattr("streamjobs.worker.executors._pauses", lambda: 7)
    threads.run_inline(bench.chunk("threads", lambda: threading.Event().wait(0.05)))
    put_aside = bench.result()
    assert put_aside.took_s > 0.04 and put_aside.waited_s == 0.0


def test_where_the_system_does_not_tell_of_threads_what_used_no_processor_waited(
    bench: Bench, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamjobs.worker.executors.getrusage", None)
    threads.run_inline(bench.chunk("threads", lambda: threading.Event().wait(0.05)))
    assert bench.result().waited_s > 0.04


def test_an_async_timeout_is_real(bench: Bench, aio: Aio) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    aio.submit(bench.chunk("aio", forever, timeout="50ms"))
    (job,) = bench.result().done
    assert isinstance(job.error, Timeout)
    assert job.error_type == "Timeout"


def test_a_timeout_of_the_handlers_own_is_its_own(bench: Bench, aio: Aio) -> None:
    """`asyncio.timeout` inside a handler raises the same class; it is a failure like any other, not ours."""

    async def own() -> None:
        raise TimeoutError("mine")

    aio.submit(bench.chunk("aio", own, timeout="1h"))
    (job,) = bench.result().done
    assert type(job.error) is TimeoutError


def test_a_cancelled_async_job_is_interrupted(bench: Bench, aio: Aio) -> None:  # edge 76
    started = threading.Event()

    async def waits(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    chunk = bench.chunk("aio", waits)
    aio.submit(chunk)
    assert started.wait(20)
    job = chunk.current
    assert job is not None
    job.cancel()
    aio.cancel(job)
    assert isinstance(bench.result().done[0].error, JobCancelled)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_task_of_a_handler_that_exits_ends_no_event_loop(bench: Bench, aio: Aio, error: BaseException) -> None:
    """asyncio raises such an exception of a task out of the event loop, too. What bit: the loop's thread ended of it, that job never ended, and
    no async job of the process ran any more."""

    async def exits() -> None:
        raise error

    async def gathers() -> None:
        await asyncio.gather(exits())

    async def works() -> None:
        await asyncio.sleep(0)

    aio.submit(bench.chunk("aio", gathers))
    (job,) = bench.result().done
    assert job.error is error
    aio.submit(bench.chunk("aio", works))
    assert bench.result().done[0].error is None


@pytest.mark.parametrize(
    ("raised", "means"),
    [
        ([Reject("a")], Reject),
        ([Snooze("1m"), Snooze("1m")], Snooze),
        ([ExceptionGroup("inner", [ValueError(1)])], BaseExceptionGroup),
        ([BaseExceptionGroup("inner", [Reject("a")]), Reject("b")], Reject),
        ([Reject("a"), ValueError(1)], BaseExceptionGroup),
    ],
    ids=["one", "two", "none", "nested", "with a failure"],
)
def test_a_signal_may_be_raised_in_a_task_group(
    bench: Bench, threads: Threads, aio: Aio, raised: list[BaseException], means: type[BaseException]
) -> None:
    """What bit: `Reject` came out as a BaseExceptionGroup, and a job that should never run again was retried for hours."""

    async def groups() -> None:
        raise BaseExceptionGroup("unhandled errors in a TaskGroup", raised)

    def groups_too() -> None:
        raise BaseExceptionGroup("of anybody's", raised)

    aio.submit(bench.chunk("aio", groups))
    assert isinstance(bench.result().done[0].error, means)
    threads.submit(bench.chunk("threads", groups_too))
    assert isinstance(bench.result().done[0].error, means)


def test_a_handler_whose_body_did_not_run_has_failed(bench: Bench, threads: Threads) -> None:
    """What bit: `async def` under a decorator that is not: nobody awaited it, and each job succeeded."""

    async def works() -> None: ...

    def decorated() -> Any:
        return works()

    def lazy() -> Any:
        return (n for n in range(3))

    for handler, says in ((decorated, "gave back a coroutine"), (lazy, "gave back a generator")):
        threads.submit(bench.chunk("threads", handler))
        error = bench.result().done[0].error
        assert isinstance(error, JobTypeError) and says in str(error)
    threads.submit(bench.chunk("threads", lambda: {"any": "thing"}))
    assert bench.result().done[0].error is None


def test_a_generator_is_no_handler() -> None:
    def yields() -> Iterator[int]:
        yield 1

    with pytest.raises(JobTypeError, match="is a generator"):
        App("shop").job(yields)


def test_nobody_waits_for_an_event_loop_that_a_handler_blocks(bench: Bench, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process does at its end, with an async stop hook. What bit: it was killed for being late, instead of saying what it abandoned."""
    monkeypatch.setattr(executor_module, "BLOCKED_S", 0.05)
    blocked, release, ran = threading.Event(), threading.Event(), []

    async def blocks() -> None:
        blocked.set()
        release.wait(20)

    async def hook() -> None:
        ran.append(threading.current_thread().name)

    assert aio.run(hook())
    aio.submit(bench.chunk("aio", blocks))
    assert blocked.wait(20)
    assert not aio.run(hook())
    release.set()
    assert bench.result().done[0].error is None
    assert aio.run(hook())
    assert ran[0] == "streamjobs-aio"


def test_a_task_that_is_cancelled_between_two_chunks_takes_the_next_one(bench: Bench) -> None:
    """
    A handler lets a timer cancel its task, and ends before that. What bit: the next chunk was meant for that task, and waited for the one
    after it to come.
    """
    aio = Aio(1, bench.gate)
    tasks: list[asyncio.Task[Any] | None] = []

    async def notes() -> None:
        tasks.append(asyncio.current_task())

    def cancel_and_submit() -> None:
        assert tasks[0] is not None
        tasks[0].cancel()
        aio.submit(bench.chunk("aio", notes))

    try:
        aio.submit(bench.chunk("aio", notes))
        bench.result()
        eventually(lambda: aio._idle, 20, "the task waits for work")
        aio.loop.call_soon_threadsafe(cancel_and_submit)
        assert bench.result().done[0].error is None
        assert tasks[0] is tasks[1]
    finally:
        aio.stop(5)


def test_a_job_whose_partition_left_is_interrupted(bench: Bench, aio: Aio) -> None:
    """Its end would mean nothing: the next owner runs it."""
    started = threading.Event()

    async def waits(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    chunk = bench.chunk("aio", waits)
    aio.submit(chunk)
    assert started.wait(20)
    bench.home.epoch = bench.home.serving = -1
    assert chunk.current is not None
    aio.cancel(chunk.current)
    assert isinstance(bench.result().done[0].error, JobCancelled)


@pytest.mark.parametrize("kind", ["threads", "aio"])
@pytest.mark.parametrize("lots", [(1, 1, 2, 2, 3), (None,) * 5, (1, None, None, 2, 2)], ids=repr)
def test_each_job_of_a_list_runs_as_what_it_is(bench: Bench, kind: str, lots: tuple[int | None, ...]) -> None:
    """Those of a lot share partition and type, so they are looked at once; of the others each may be of another one, or a later run."""
    ran: list[tuple[str, Mark]] = []
    marks = Marks(memory(2))

    def handler(name: str) -> Callable[[Job], Any]:
        async def runs_async(job: Job) -> None:
            runs(job)

        def runs(job: Job) -> None:
            (mark,) = marks.running()
            ran.append((name, mark))

        return runs_async if kind == "aio" else runs

    jobs: list[Job] = []
    for place, lot in enumerate(lots):
        if not jobs or lot is None or lot != jobs[-1].lot:
            name, home = f"type-{place}", Partition("t", place, "q", retry=False, topic_id=b"", epoch=1, tracker=None)
            home.place = marks.place("t", place)
            job_type: JobType[Any, Any] = JobType(handler(name), name=name, queue="q", publisher=lambda: None)  # type: ignore[arg-type, return-value]
        job = Job.of(job_type, home, Message(10 + place), None, (), name.encode(), lot=lot)  # type: ignore[arg-type]
        job.run, job.due = (1, 0.0) if lot else (place, time.time() - 5)
        jobs.append(job)
    executor = Threads(1, bench.gate, marks) if kind == "threads" else Aio(1, bench.gate, marks)
    executor.submit(Chunk(kind, jobs, bench.results))
    assert bench.result().done == jobs
    executor.stop(5)
    assert ran == [(job.type, Mark("t", job.home.number, job.offset, job.run)) for job in jobs]
    assert [5 <= job.wait_s < 60 for job in jobs] == [lot is None for lot in lots], "the others wait since 1970"


@pytest.mark.parametrize("kind", ["threads", "aio"])
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_handler_raises_is_its_result(
    bench: Bench, threads: Threads, aio: Aio, kind: str, error: BaseException
) -> None:  # edge 73
    """No exception ends a thread or a task: the pool does not drain away."""

    def fails() -> None:
        raise error

    async def fails_async() -> None:
        raise error

    executor = {"threads": threads, "aio": aio}[kind]
    for _ in range(8):
        executor.submit(bench.chunk(kind, fails if kind == "threads" else fails_async))
    assert [type(bench.result().done[0].error) for _ in range(8)] == [type(error)] * 8
    executor.submit(bench.chunk(kind, _nothing if kind == "threads" else _nothing_async))
    assert bench.result().done[0].error is None


def _nothing() -> None: ...


async def _nothing_async() -> None: ...


@pytest.mark.parametrize(("ends", "code"), [(lambda: None, 0), (lambda: sys.exit(7), 7), (lambda: 1 / 0, 1)], ids=["returns", "exits", "fails"])
@pytest.mark.parametrize("kind", ["threads", "aio"])
def test_a_process_that_a_handler_forks_runs_nothing_else(
    bench: Bench, threads: Threads, aio: Aio, kind: str, ends: Callable[[], object], code: int
) -> None:
    """What bit: it caught the `sys.exit()` of the child as any failure, ran what was left of the chunk a second time, and stayed for ever."""
    heard, said = os.pipe()
    codes = []

    def forks() -> None:
        os.write(said, b".")
        if not codes:
            pid = os.fork()
            if pid == 0:
                codes.append(-1)
                threading.Timer(10, os._exit, (9,)).start()  # or it would wait for ever
                ends()
                return
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    async def forks_too() -> None:
        forks()

    executor: Threads | Aio = threads if kind == "threads" else aio
    executor.submit(bench.chunk(kind, forks if kind == "threads" else forks_too, 3))
    assert [job.error for job in bench.result().done] == [None] * 3
    os.close(said)
    with os.fdopen(heard, "rb") as notes:
        assert (codes, notes.read()) == ([code], b"...")


def test_threads_are_replaced_when_they_die(bench: Bench) -> None:  # edge 73
    """A thread that ends outside a handler leaves its place to another one."""
    threads = Threads(1, bench.gate)
    threads.submit(bench.chunk("threads", _nothing))
    bench.result()
    (thread,) = threads._threads
    mailbox = threads._idle.pop()
    mailbox.put(False)
    thread.join(20)
    assert not thread.is_alive()
    threads.submit(bench.chunk("threads", _nothing))
    assert len(bench.result().done) == 1
    threads.stop(1)


def test_a_stuck_threads_rest_is_taken_back(bench: Bench, threads: Threads) -> None:  # edge 72
    """Ten jobs in one chunk, the first hangs: the other nine are handed to someone else, and run once."""
    release = threading.Event()
    ran: list[int] = []
    lock = threading.Lock()

    def maybe_hangs(job: Job) -> None:
        if job.offset == 0:
            release.wait(20)
        with lock:
            ran.append(job.offset)

    chunk = bench.chunk("threads", maybe_hangs, 10)
    threads.submit(chunk)
    while chunk.current is None:
        threading.Event().wait(0.001)
    rest = chunk.take_back()
    assert [job.offset for job in rest] == list(range(1, 10))
    threads.submit(Chunk("threads", rest, bench.results))
    assert len(bench.result().done) == 9
    release.set()
    assert len(bench.result().done) == 1
    assert sorted(ran) == list(range(10))


def test_a_closed_gate_hands_everything_back(bench: Bench, threads: Threads) -> None:
    bench.gate.closed = True
    threads.submit(bench.chunk("threads", _nothing, 5))
    chunk = bench.result()
    assert (len(chunk.done), len(chunk.returned)) == (0, 5)


def test_slots_bound_what_runs_at_once(bench: Bench, threads: Threads) -> None:
    running, peak = [0], [0]
    lock = threading.Lock()
    enough = threading.Event()

    def counts() -> None:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
            if running[0] == 4:
                enough.set()
        enough.wait(20)
        with lock:
            running[0] -= 1

    for _ in range(12):
        threads.submit(bench.chunk("threads", counts))
    for _ in range(12):
        bench.result()
    assert peak[0] == 4


@pytest.mark.parametrize("kind", ["threads", "aio"])
def test_jobs_are_timed_by_the_wall_as_it_is_now(
    kind: str, bench: Bench, aio: Aio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was suspended for an hour, or its clock was wrong and is set. What bit: every later job had begun an hour ago: it had
    waited for no time at all, its events said so, and where it had a timeout it was past it."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    chunk = bench.chunk(kind, async_nothing if kind == "aio" else lambda: None)
    if kind == "aio":
        aio.submit(chunk)
        chunk = bench.results.get(timeout=5)
    else:
        run_chunk(chunk, bench.gate)

    (job,) = chunk.done
    assert job.started_at == pytest.approx(real() + 3600, abs=60)


async def async_nothing() -> None: ...


def test_how_long_a_job_has_been_running_is_no_matter_of_the_wall(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: the clock was set an hour forward; all that ran in threads was past its timeout at once, and ran twice."""
    seen: list[float] = []
    real = time.time

    def handler() -> None:
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        assert chunk.current is not None
        seen.append(chunk.elapsed(chunk.current))

    chunk = bench.chunk("threads", handler)
    run_chunk(chunk, bench.gate)

    assert len(seen) == len(chunk.done) == 1
    assert 0 <= seen[0] < 60
