"""Handing out: how many chunks are out, and what a wait without a result says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from streamjobs.core.dispatch import Dispatcher, Partition
from streamjobs.worker.execute import STUCK_S, Execution
from streamjobs.worker.executors import Chunk

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
    def __init__(self, mean_s: float) -> None:
        self.now = 0.0
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
        )
        for offset in range(1000):
            job = SimpleNamespace(
                job_type=self.job_type, kind="threads", type="t", home=self.home, epoch=1, offset=offset, lane=None, next=None
            )
            self.dispatcher.add(job)
        self.execution.hand_out()

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


def test_brief_jobs_that_hang_after_all_do_not_hold_up_the_rest() -> None:
    world = World(BRIEF_S)
    world.now = STUCK_S
    world.miss()
    assert len(world.executor.chunks) == 2


def test_enough_is_out_when_nothing_more_would_be_handed_out() -> None:
    world = World(LONG_S)
    assert world.execution.saturated()
    world.dispatcher.ready["threads"].clear()
    world.execution._parallel["threads"].value = 2
    assert not world.execution.saturated()
