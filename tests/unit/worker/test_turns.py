"""A loop that runs brief jobs itself: whoever holds it up loses it, and nobody turns it twice at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

import pytest

from streamjobs import App, Backoff, Retry
from streamjobs.clock import SystemClock
from streamjobs.testing import MemoryBroker
from streamjobs.worker import Stopped
from streamjobs.worker.executors import Chunk
from streamjobs.worker.marks import Legacy, Marks, memory
from streamjobs.worker.process import marks_of
from streamjobs.worker.turns import HELD_UP_S, UNWATCHED_S, TakenOver, Turns
from tests.support.workers import eventually

LEFT: ContextVar[str] = ContextVar("left", default="")


def test_a_loop_that_is_not_held_up_keeps_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamjobs.worker.turns.HELD_UP_S", 5.0)  # the machine may take longer than 20 ms for nothing
    turns, threads = Turns(), []

    def body() -> None:
        for _ in range(3):
            with turns.lent():
                threads.append(threading.current_thread().name)

    turns.start("loop", body)
    turns.join(20)
    assert not turns.is_alive() and threads == ["loop"] * 3


def test_who_is_held_up_loses_the_loop_and_gets_it_back_when_the_other_is() -> None:
    turns, threads = Turns(), []
    blocks = [threading.Event(), threading.Event()]

    def body() -> None:
        threads.append(threading.current_thread().name)
        place = len(threads) - 1
        if place < 2:
            if place:
                blocks[0].set()  # the first comes back while the second is in its handler
            with turns.lent():
                assert blocks[place].wait(20)
        else:
            blocks[1].set()

    turns.start("loop", body)
    turns.join(20)
    assert not turns.is_alive() and threads == ["loop", "loop-2", "loop"]


def test_the_loop_ends_although_a_handler_never_does() -> None:
    turns, release, called = Turns(), threading.Event(), []

    def body() -> None:
        called.append(threading.current_thread())
        if len(called) == 1:
            with turns.lent():
                assert release.wait(20)

    turns.start("loop", body)
    turns.join(20)
    assert not turns.is_alive() and called[0].is_alive()
    release.set()
    called[0].join(20)
    assert not called[0].is_alive() and len(called) == 2, "it comes back to nothing"


def test_a_body_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    turns = Turns()

    def body() -> None:
        raise ZeroDivisionError

    turns.start("loop", body)
    turns.join(20)
    assert not turns.is_alive()


def test_what_the_handler_raises_is_the_callers() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.lent():
        raise ZeroDivisionError
    assert not turns._loan
    with turns.lent():
        pass
    with pytest.raises(TakenOver), turns.lent():
        turns._loan.clear()


def test_a_loan_that_is_young_is_left_alone() -> None:
    turns = Turns()
    with turns.lent():
        assert not turns._takes_over()


def test_a_loan_that_begins_while_the_watch_lies_down_is_watched() -> None:
    """It saw none; a loop lends itself, and finds the watch awake; the watch lies down, and nobody would wake it again."""
    turns = Turns()

    class Late(threading.Event):
        def clear(self) -> None:
            turns._loan = [None]
            super().clear()

    turns._lending = Late()
    turns._lending.set()
    assert not turns._takes_over() and turns._lending.is_set()
    turns._loan = []
    turns._lent_at = time.monotonic()
    turns._lending = threading.Event()
    turns._lending.set()
    assert not turns._takes_over() and turns._lending.is_set(), "it lies down a second after the last one"
    turns._lent_at -= UNWATCHED_S
    assert not turns._takes_over() and not turns._lending.is_set()


class Holders:
    """Who has turned a loop, how often it was turned, and by how many at once at most."""

    def __init__(self) -> None:
        self.inside = self.most = self.turned = 0
        self.names: set[str] = set()

    def turn(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0)
        self.names.add(threading.current_thread().name)
        self.turned += 1
        self.inside -= 1


def lasts_too_long(chance: random.Random) -> None:
    """Or not: a third do."""
    time.sleep(chance.choice((0, 0, HELD_UP_S * chance.uniform(0.9, 2.1))))


def test_one_thread_at_a_time_whatever_the_moments() -> None:
    """Loans that end just when the other thread takes them: 400 of them, a third of which last longer than they may."""
    turns, chance, holders = Turns(), random.Random(7), Holders()

    def body() -> None:
        while holders.turned < 400:
            holders.turn()
            with turns.lent():
                lasts_too_long(chance)

    turns.start("loop", body)
    turns.join(60)
    assert not turns.is_alive() and holders.most == 1
    assert holders.names == {"loop", "loop-2"}


# -- lent to the thread that runs the jobs ---------------------------------------------------------------------------------


class Runner:
    """A thread that runs chunks of no jobs, and turns between them the loop of which they are."""

    def __init__(self) -> None:
        self.runs: Callable[[], None] = lambda: None
        self.others_wait = False

    def submit(self, chunk: Chunk) -> None:
        threading.Thread(target=self._run, args=(chunk,), name="runner", daemon=True).start()

    def _run(self, first: Chunk) -> None:
        chunk: Chunk | None = first
        while chunk is not None:
            self.runs()
            assert chunk.borrower is not None
            if self.others_wait:
                chunk.borrower.give_back()
                return
            chunk = chunk.borrower.go_on()


def no_jobs() -> Chunk:
    return Chunk("aio", [], SimpleQueue())


def test_who_runs_the_jobs_turns_the_loop_between_them_and_gives_it_back() -> None:
    turns, runner, turned = Turns(), Runner(), []

    def turn() -> None:
        assert turns.borrowed
        turned.append(threading.current_thread().name)
        if len(turned) < 3:
            turns.lend_with(no_jobs(), runner.submit, turn)

    turns.lend_with(no_jobs(), runner.submit, turn)
    assert turned == ["runner"] * 3 and not turns.borrowed and not turns._loan


def test_who_runs_the_jobs_gives_the_loop_back_where_others_wait_for_it() -> None:
    turns, runner = Turns(), Runner()
    runner.others_wait = True
    turns.lend_with(no_jobs(), runner.submit, lambda: pytest.fail("it turned"))
    assert not turns._loan


def test_what_a_turn_raises_elsewhere_is_raised_where_the_loop_belongs() -> None:
    turns = Turns()

    def turn() -> None:
        raise Stopped("the consumer can't go on")

    with pytest.raises(Stopped):
        turns.lend_with(no_jobs(), Runner().submit, turn)
    assert not turns.borrowed


@pytest.mark.parametrize("others_wait", [False, True])
def test_who_is_held_up_by_its_jobs_does_not_get_the_loop_any_more(others_wait: bool) -> None:
    turns, runner = Turns(), Runner()
    runner.others_wait = others_wait
    runner.runs = lambda: turns._loan.clear()  # as the watch does
    with pytest.raises(TakenOver):
        turns.lend_with(no_jobs(), runner.submit, lambda: pytest.fail("it turned"))
    assert not turns.borrowed


def test_what_a_handler_leaves_set_is_not_seen_in_a_turn() -> None:
    turns, runner, seen = Turns(), Runner(), []
    runner.runs = lambda: LEFT.set("by a handler") and None
    turns.lend_with(no_jobs(), runner.submit, lambda: seen.append(LEFT.get()))
    assert seen == [""]


def test_one_thread_at_a_time_also_where_it_is_lent_with_the_jobs() -> None:
    turns, runner, chance, holders = Turns(), Runner(), random.Random(11), Holders()
    runner.runs = lambda: lasts_too_long(chance)

    def turn() -> None:
        holders.turn()
        if holders.turned < 400 and chance.random() < 0.8:
            turns.lend_with(no_jobs(), runner.submit, turn)

    def body() -> None:
        while holders.turned < 400:
            turn()

    turns.start("loop", body)
    turns.join(60)
    assert not turns.is_alive() and holders.most == 1
    assert holders.names == {"loop", "loop-2", "runner"}


# -- in a worker -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[tuple[App, MemoryBroker]]:
    app = App("shop", partitions=2, **{"worker.drain": "2s", "worker.slots": 1, "worker.zombies": 9})
    broker = MemoryBroker()
    before = app.lend(broker, SystemClock())
    yield app, broker
    app.take_back(before)


def test_a_loop_has_a_row_to_note_what_it_runs_when_all_slots_have_theirs() -> None:
    """Idle threads keep theirs. Without one a job that kills the process would not be found."""
    settings = App("shop", **{"worker.slots": 3, "worker.children": 2}).settings
    marks = Marks(memory(marks_of(settings)))
    with ExitStack() as stack:
        rows = [stack.enter_context(marks.row()).number for _ in range(3 + 3 + 2 + 1 + 2)]
    assert min(rows) >= 0 and len(set(rows)) == len(rows)


class Brief:
    """A job type that takes nothing, unless `blocking` says that the next one blocks."""

    asynchronous = False

    def __init__(self, app: App, **options: Any) -> None:
        self.ran: list[tuple[int, str]] = []
        self.most = self._at_once = 0
        self.blocking = False
        self.blocked, self.release = threading.Event(), threading.Event()
        self._type = app.job(queue="mails", name="brief", **options)(self._run_async if self.asynchronous else self._run)
        self._published = 0

    def _run(self, n: int) -> None:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        if self.blocking:
            self.blocking = False
            self.blocked.set()
            assert self.release.wait(20)
        self.ran.append((n, threading.current_thread().name))
        self._at_once -= 1

    async def _run_async(self, n: int) -> None:
        self._run(n)

    def publish(self, count: int) -> None:
        first, self._published = self._published, self._published + count
        self._type.publish_many([(n,) for n in range(first, first + count)])

    def all_ran(self) -> bool:
        return sorted(n for n, _ in self.ran) == list(range(self._published))

    def become_inline(self) -> None:
        """Publishes until they run in their loop's thread."""
        for _ in range(50):
            self.publish(20)
            eventually(self.all_ran, 20, "brief jobs")
            if self.ran[-1][1].startswith("streamjobs-main"):
                return
        raise AssertionError(f"no job ran in the loop's thread: {self.ran[-20:]}")

    def hold_up_the_loop(self) -> None:
        """One more, in their loop's thread, that blocks until `release`."""
        self.become_inline()
        self.blocking = True
        self.publish(1)
        assert self.blocked.wait(20)


def test_a_brief_job_that_blocks_after_all_holds_up_its_slot_and_not_the_loop(world: tuple[App, MemoryBroker]) -> None:
    """
    With one slot: jobs that take nothing run in the loop's thread. Then one of them blocks. The loop goes on (it polls, so the
    partitions stay), no second job starts beside it, and when it ends all goes on as before. Every job ran once.
    """
    app, broker = world
    brief, process = Brief(app), app.process(legacy=Legacy(memory(marks_of(app.settings))))
    loop: Any = process.loops[0]
    subscribe, subscribed = loop.poller.subscribe, []
    loop.poller.subscribe = lambda topics: subscribed.append(topics) or subscribe(topics)
    process.start()
    try:
        brief.hold_up_the_loop()
        turned, ran = loop.turned_at, len(brief.ran)
        brief.publish(100)
        eventually(lambda: loop.turned_at > turned + 0.2, 20, "the loop goes on")
        assert len(brief.ran) == ran
        assert [(mark.topic, mark.run) for mark in process.marks.running()] == [("jobs.mails", 1)], "should it kill the process"
        brief.release.set()
        eventually(brief.all_ran, 20, "all of them")
        brief.become_inline()
    finally:
        brief.release.set()
        process.stop()
        assert process.join(20) == 0
    assert brief.all_ran() and brief.most == len(subscribed) == 1
    assert sum(commit.offset for commit in broker.admin().committed("shop").values()) == len(brief.ran)


def test_a_brief_job_that_hangs_is_settled_at_its_timeout(world: tuple[App, MemoryBroker], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread that has the loop now; the first one comes back to a job that is over."""
    monkeypatch.setattr("streamjobs.worker.recycle.HANGS", 1_000.0)  # a busy machine may look at it late; no other process is wanted here
    app, broker = world
    brief, process = Brief(app, timeout="300ms", on_timeout="retry", retry=Retry(backoff=Backoff.fixed("1h"))), app.process()
    process.start()
    try:
        brief.hold_up_the_loop()
        eventually(lambda: [r for topic in broker.admin().topics() if "delay" in topic for r in broker.records(topic)], 20, "a retry")
        assert process.loops[0].zombies()
        ran = len(brief.ran)
        brief.release.set()
        eventually(lambda: len(brief.ran) > ran, 20, "the handler's end")
        brief.become_inline()
    finally:
        brief.release.set()
        process.stop()
        assert process.join(20) == 0


def test_a_process_ends_although_a_job_holds_up_its_loops_thread(world: tuple[App, MemoryBroker]) -> None:
    """What it still runs is abandoned when the drain time is over, as in any other thread."""
    app, _ = world
    brief, process = Brief(app), app.process()
    process.start()
    try:
        brief.hold_up_the_loop()
        process.stop()
        assert process.join(20) == 4
    finally:
        brief.release.set()


class AsyncBrief(Brief):
    """The same with an async handler, of which the next one may also wait, or fail."""

    asynchronous = True
    waiting = failing = False

    def __init__(self, app: App, **options: Any) -> None:
        super().__init__(app, **options)
        self.turned: list[str] = []

    async def _run_async(self, n: int) -> None:
        failing, self.failing = self.failing, False
        if self.waiting:
            self.waiting = False
            self.blocked.set()
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        self._run(n)
        if failing:
            raise ZeroDivisionError

    def watch(self, loop: Any) -> None:
        """Notes which thread turns the loop."""
        turn = loop.turn
        loop.turn = lambda: self.turned.append(threading.current_thread().name) or turn()

    def become_inline(self) -> None:
        """Publishes until the event loop's thread turns their loop."""
        for _ in range(50):
            self.turned.clear()
            self.publish(20)
            eventually(self.all_ran, 20, "brief jobs")
            if "streamjobs-aio" in self.turned:
                return
        raise AssertionError("no loop was turned by the event loop's thread")


@pytest.fixture
def asynchronous(world: tuple[App, MemoryBroker]) -> Iterator[tuple[AsyncBrief, Any]]:
    app, _ = world
    brief, process = AsyncBrief(app), app.process()
    brief.watch(process.loops[0])
    process.start()
    yield brief, process
    brief.release.set()
    process.stop()
    assert process.join(20) == 0
    assert brief.all_ran() and brief.most == 1


@pytest.mark.parametrize("how", ["blocking", "waiting"])
def test_a_brief_async_job_that_lasts_after_all_holds_up_no_loop(asynchronous: tuple[AsyncBrief, Any], how: str) -> None:
    """Whether it blocks the event loop or awaits something; when it ends, all goes on as before."""
    brief, process = asynchronous
    loop: Any = process.loops[0]
    brief.become_inline()
    setattr(brief, how, True)
    brief.publish(1)
    assert brief.blocked.wait(20)
    turned = loop.turned_at
    eventually(lambda: loop.turned_at > turned + 0.2, 20, "the loop goes on")
    brief.publish(5)
    brief.release.set()
    eventually(brief.all_ran, 20, "all of them")
    brief.become_inline()


def test_what_a_failed_async_job_calls_for_is_not_done_on_the_event_loop(world: tuple[App, MemoryBroker]) -> None:
    """An `on_dead` hook may block, or start an event loop of its own."""
    app, _ = world
    brief = AsyncBrief(app, retry=Retry(attempts=1))
    called: list[str] = []

    @app.on_dead
    def starts_an_event_loop(job: Any, reason: str) -> None:
        asyncio.run(asyncio.sleep(0))
        called.append(threading.current_thread().name)

    process = app.process()
    brief.watch(process.loops[0])
    process.start()
    try:
        for count in range(5):
            brief.become_inline()
            brief.failing = True
            brief.publish(1)
            eventually(lambda count=count: len(called) > count, 20, "the hook")
        assert not any("aio" in name for name in called)
    finally:
        process.stop()
        assert process.join(20) == 0


def test_a_loop_is_not_turned_on_an_event_loop_that_has_something_else_to_do(asynchronous: tuple[AsyncBrief, Any]) -> None:
    """*Bites*: the turn is in a rebalance, for seconds, and a handler of another loop misses its time-out."""
    brief, process = asynchronous
    brief.become_inline()
    aio = process.executors["aio"]
    other = Chunk("aio", [], SimpleQueue())
    aio.loop.call_soon_threadsafe(aio._running.__setitem__, other, None)
    eventually(lambda: other in aio._running, 20, "another handler")
    brief.turned.clear()
    brief.publish(20)
    eventually(brief.all_ran, 20, "brief jobs")
    assert "streamjobs-aio" not in brief.turned
    aio.loop.call_soon_threadsafe(aio._running.pop, other)
    brief.become_inline()


def test_handlers_that_are_not_async_do_not_run_on_the_event_loop(world: tuple[App, MemoryBroker]) -> None:
    """*Bites*: its thread turns the loop, and finds brief jobs whose handlers block, or call `asyncio.run()`."""
    app, _ = world
    brief, ran = AsyncBrief(app), []

    @app.job(queue="mails", name="plain")
    def plain() -> None:
        ran.append(threading.current_thread().name)

    process = app.process()
    loop: Any = process.loops[0]
    turn, met = loop.turn, []

    def turn_with_another() -> bool:
        if loop.turns.borrowed and len(met) == len(ran):
            met.append(plain.publish())
        return bool(turn())

    loop.turn = turn_with_another
    process.start()
    try:
        eventually(lambda: brief.publish(20) or len(ran) >= 20, 20, "turns on the event loop that found another job")
    finally:
        process.stop()
        assert process.join(20) == 0
    assert "streamjobs-aio" not in ran


def test_a_worker_that_is_told_to_stop_does_so_in_the_midst_of_brief_async_jobs(world: tuple[App, MemoryBroker]) -> None:
    """Its loop's own thread drains, which waits while another one turns the loop."""
    app, _ = world
    ran: list[int] = []

    @app.job(queue="mails", name="brief")
    async def stops_it(n: int) -> None:
        ran.append(n)
        if n == 1_500:
            process.stop()

    process = app.process()
    stops_it.publish_many([(n,) for n in range(3_000)])
    process.start()
    assert process.join(20) == 0
    assert 1_500 in ran and len(ran) == len(set(ran)) < 3_000
