"""A loop that runs brief jobs itself: whoever holds it up loses it, and nobody turns it twice at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from streamjobs import App, Backoff, Retry
from streamjobs.clock import SystemClock
from streamjobs.testing import MemoryBroker
from streamjobs.worker.marks import Legacy, Marks, memory
from streamjobs.worker.process import marks_of
from streamjobs.worker.turns import HELD_UP_S, UNWATCHED_S, TakenOver, Turns
from tests.support.workers import eventually


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


def test_one_thread_at_a_time_whatever_the_moments() -> None:
    """Loans that end just when the other thread takes them: 400 of them, a third of which last longer than they may."""
    turns, chance = Turns(), random.Random(7)
    inside, most, lent, holders = 0, 0, 0, set()

    def body() -> None:
        nonlocal inside, most, lent
        while lent < 400:
            inside += 1
            most = max(most, inside)
            time.sleep(0)
            holders.add(threading.current_thread().name)
            lent += 1
            inside -= 1
            with turns.lent():
                time.sleep(chance.choice((0, 0, HELD_UP_S * chance.uniform(0.9, 2.1))))

    turns.start("loop", body)
    turns.join(60)
    assert not turns.is_alive() and most == 1
    assert holders == {"loop", "loop-2"}


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

    def __init__(self, app: App, **options: Any) -> None:
        self.ran: list[tuple[int, str]] = []
        self.most = self._at_once = 0
        self.blocking = False
        self.blocked, self.release = threading.Event(), threading.Event()
        self._type = app.job(queue="mails", name="brief", **options)(self._run)
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
