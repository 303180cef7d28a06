"""Handing out: how many chunks are out, and what a wait without a result says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from streamjobs import App
from streamjobs.core.dispatch import Dispatcher, Partition
from streamjobs.job import JobType
from streamjobs.testing.app import Testing
from streamjobs.worker.execute import GATHER_S, MANY_OUT, STUCK_S, Execution, _observe_mean
from streamjobs.worker.executors import Chunk
from streamjobs.worker.process import STUCK_LOOP_S

BRIEF_S, LONG_S = 1e-6, 0.02


class Idle:
    """An executor whose chunks never come back."""

    kind = "threads"
    slots = 100

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def submit(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def cancel(self, job: Any) -> None: ...
    def stop(self, timeout: float) -> None: ...


class World:
    def __init__(self, mean_s: float, *, inline: bool = False) -> None:
        self.now = 0.0
        self.inline: list[Chunk] = []
        self.executor = Idle()
        self.dispatcher: Dispatcher[Any] = Dispatcher(["threads"])
        self.home = Partition("t", 0, "q", retry=False, topic_id=b"", epoch=1, tracker=None)
        self.job_type = SimpleNamespace(name="t", mean_s=mean_s)
        self.execution = Execution(
            {"threads": self.executor},
            self.dispatcher,
            lambda: self.now,
            finished=lambda _: None,
            returned=lambda _: None,
            overdue=lambda *_: None,
            wavers=lambda _: False,
            run_inline=self.run_inline,
        )
        for offset in range(2000):
            job = SimpleNamespace(
                job_type=self.job_type, kind="threads", type="t", home=self.home, epoch=1, offset=offset, lane=None, next=None
            )
            self.dispatcher.add(job)
        self.execution.hand_out(inline=inline)

    def run_inline(self, chunk: Chunk) -> None:
        """As an executor that runs nothing of it."""
        self.inline.append(chunk)
        chunk.inline = True

    def come_back(self, chunk: Chunk, took_s: float = 0.001, waited_s: float = 0.0) -> None:
        self.now += 1.0
        chunk.took_s, chunk.waited_s = took_s, waited_s
        chunk.results.put(chunk)
        self.execution.take_results()

    def miss(self) -> None:
        self.execution.take_results()
        self.execution.hand_out()


def test_a_missed_result_of_jobs_that_wait_is_answered_with_more_chunks() -> None:
    world = World(LONG_S)
    world.miss()
    assert len(world.executor.chunks) == 2


def test_a_missed_result_of_brief_jobs_is_patience() -> None:
    """The machine took the thread's turn away: another one would take the interpreter from it, too."""
    world = World(BRIEF_S)
    world.miss()
    assert len(world.executor.chunks) == 1


def test_brief_jobs_run_in_the_loops_thread_while_nothing_else_is_out() -> None:
    """Were another chunk out, its results would wait meanwhile; and who is held up by a handler has one out."""
    world = World(BRIEF_S, inline=True)
    assert len(world.inline) == 1 and not world.executor.chunks
    world.execution._parallel["threads"].value = 2
    world.execution.hand_out(inline=True)
    assert len(world.inline) == 1 and len(world.executor.chunks) == 1


def test_nobody_else_waits_for_the_interpreter_where_all_that_is_out_ran_here() -> None:
    """What bit: the loop gave it up for a moment, 80 us, after each batch that it had run itself."""
    world = World(BRIEF_S, inline=True)
    assert not world.execution.elsewhere
    world.execution._parallel["threads"].value = 2
    world.execution.hand_out(inline=True)
    assert world.execution.elsewhere


def test_jobs_that_are_not_brief_or_known_do_not() -> None:
    for mean_s in (LONG_S, 60e-6, None):
        world = World(mean_s, inline=True)  # type: ignore[arg-type]
        assert not world.inline and len(world.executor.chunks) == 1


def test_nor_do_they_where_the_loop_does_not_offer_itself() -> None:
    """In the callback of a rebalance, for example: nobody could take the loop over there."""
    world = World(BRIEF_S)
    assert not world.inline and len(world.executor.chunks) == 1


def test_brief_jobs_that_wait_run_in_threads_for_a_while() -> None:
    world = World(BRIEF_S, inline=True)
    for _ in range(3):
        world.come_back(world.inline[-1], took_s=0.1, waited_s=0.05)
        world.execution.hand_out(inline=True)
    assert len(world.inline) == 3 and len(world.executor.chunks) == 1
    world.come_back(world.executor.chunks[0], took_s=0.1, waited_s=0.1)  # that is what threads are for
    world.execution.hand_out(inline=True)
    assert len(world.inline) == 4


def test_brief_jobs_that_hang_after_all_do_not_hold_up_the_rest() -> None:
    world = World(BRIEF_S)
    world.now = STUCK_S
    world.miss()
    assert len(world.executor.chunks) == 2


@pytest.mark.parametrize(("slots", "out", "taken"), [(100, 101, 101), (100, 100, 1), (4, MANY_OUT + 1, MANY_OUT + 1), (4, MANY_OUT, 1)])
def test_results_are_taken_together_where_chunks_wait_for_slots(slots: int, out: int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere each at once: a slot would be empty meanwhile."""
    world = World(LONG_S)
    world.executor.slots = slots
    world.execution._parallel["threads"].value = out
    world.execution.hand_out()
    first, *others = world.executor.chunks

    def others_end(seconds: float) -> None:
        assert seconds == GATHER_S
        for chunk in others:
            chunk.results.put(chunk)

    monkeypatch.setattr("streamjobs.worker.execute.time.sleep", others_end)
    first.results.put(first)
    assert len(others) == out - 1 and world.execution.take_results() == taken


def test_what_outlives_a_chunk_keeps_none_of_its_jobs() -> None:
    """A task that a brief job left behind has its chunk in its context."""
    world = World(LONG_S)
    (chunk,) = world.executor.chunks
    world.come_back(chunk)
    assert not (chunk.heads or chunk.done or chunk.stops or chunk.returned)


def test_enough_is_out_when_nothing_more_would_be_handed_out() -> None:
    world = World(LONG_S)
    assert world.execution.saturated()
    world.dispatcher.ready["threads"].clear()
    world.execution._parallel["threads"].value = 2
    assert not world.execution.saturated()


@pytest.mark.parametrize(("taken", "fetches"), [(0, 1), (1, 10)])
def test_a_loop_that_has_enough_reads_when_results_come_and_polls_when_not(on_memory: Callable[[App], Testing], taken: int, fetches: int) -> None:
    """Without the one its keys' partitions fill up; without the other it is thrown out of its group."""
    app = App("shop", partitions=1)
    app.job(name="mail", queue="mails")(lambda: None)
    t = on_memory(app)
    t.run()
    loop: Any = t.process.loops[0]
    t.clock.advance(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_has_enough", lambda: True)
        patch.setattr(loop.execution, "take_results", lambda *, wait: taken)
        fetched: list[int] = []
        patch.setattr(loop.poller, "fetch", lambda limit, timeout: fetched.append(limit) or [])
        for _ in range(10):
            loop.turn()
        assert len(fetched) == fetches
        t.clock.advance(1)
        loop.turn()
        assert len(fetched) == fetches + 1


def test_a_loop_is_at_rest_when_nothing_is_under_way_the_next_commit_included(on_memory: Callable[[App], Testing]) -> None:
    """Else it would wait for records when it is to commit: what had finished by then runs again after a crash."""
    app = App("shop", partitions=1)
    mail = app.job(name="mail", queue="mails")(lambda: None)
    t = on_memory(app)
    mail.publish()
    t.run()
    loop: Any = t.process.loops[0]
    (home,) = loop.poller.partitions.values()
    home.committed_version = home.tracker.version
    assert loop._at_rest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loop.settler), "open", 1)
        assert not loop._at_rest()
    home.tracker.touch()
    assert not loop._at_rest()


def test_a_loop_that_turns_and_runs_nothing_of_what_is_ready_is_sick(on_memory: Callable[[App], Testing]) -> None:
    """It polls, so it keeps its partitions; nobody would ever run their jobs."""
    app = App("shop", partitions=1)
    app.job(name="mail", queue="mails")(lambda: None)
    t = on_memory(app)
    loop: Any = t.process.loops[0]

    def turn() -> dict[str, str]:
        t.advance(STUCK_LOOP_S / 2)
        for part in (*t.process.loops, t.process.timer):
            assert part is not None
            part.turn()
        return t.process.sick()

    assert [turn() for _ in range(4)] == [{}] * 4, "with nothing to run, to run nothing is well"
    hand_out, loop.execution.hand_out = loop.execution.hand_out, lambda *_, **__: None
    app.job_types["mail"].publish()
    assert [turn() for _ in range(2)] == [{}, {}]
    assert turn() == {"main": f"has had jobs to run and run none for {STUCK_LOOP_S * 1.5:.0f} s"}
    loop.execution.hand_out = hand_out
    turn()
    assert turn() == {}


def test_a_long_list_says_more_about_a_type_than_its_first_job() -> None:
    """A first job takes as long as a cold process does; chunks are too small for as long as that counts."""
    app = App("shop")
    mail = app.job(name="mail", queue="mails")(lambda: None)
    mail.observe_mean(0.0001)
    mail.observe_mean(0.000002, 20)
    assert mail.mean_s is not None and 0.000002 < mail.mean_s < 0.000015
    mail.observe_mean(0.1)
    assert 0.01 < mail.mean_s < 0.0101, "a single one says little"


def test_a_list_of_several_types_says_little_about_one() -> None:
    """[slow, brief × 98, slow] takes 1 ms in all: by that the slow type would be brief."""
    slow, brief = (JobType(print, name=name, queue="q", publisher=lambda: None) for name in ("slow", "brief"))  # type: ignore[arg-type, return-value]
    slow.observe_mean(0.001)

    def done(*types: Any) -> list[Any]:
        return [SimpleNamespace(job_type=each, started_at=n * 1e-5, duration_s=1e-5) for n, each in enumerate(types)]

    _observe_mean(done(slow, *[brief] * 98, slow))
    assert slow.mean_s is not None and slow.mean_s > 0.0009
    _observe_mean(done(*[slow] * 100))
    assert slow.mean_s == pytest.approx(1e-5, rel=0.01), "a list of its own is believed"
    _observe_mean([*done(*[slow] * 99), SimpleNamespace(job_type=slow, started_at=0.1, duration_s=1e-5)])
    assert slow.mean_s < 2e-4, "what took longer may have been held up"
