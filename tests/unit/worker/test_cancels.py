"""A cancel order that comes after its job was admitted reaches it, wherever it waits or runs (edge 76)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamjobs import App, Backoff, Job, Retry, orders
from streamjobs.clock import SystemClock
from streamjobs.core import control
from streamjobs.job import JobType
from streamjobs.testing import MemoryBroker
from streamjobs.testing.app import Testing
from tests.support.workers import eventually

OnMemory = Callable[[App], Testing]
_numbers = itertools.count()


def cancel(app: App, broker: Any, job_id: str, now: float) -> None:
    value = control.cancel_value(actor="t", reason="r", at=now, until=now + 86_400)
    orders.write(broker, app.names, {control.cancel_key(app.name, job_id, str(next(_numbers))): value})


def unfinished(t: Testing) -> int:
    return sum(home.tracker.unfinished for loop in t.process.loops for home in loop.poller.partitions.values())


def stepping() -> tuple[App, JobType[..., None], list[int]]:
    """An app with one job type, and which of its jobs ran."""
    app, ran = App("shop", partitions=1), list[int]()

    @app.job(name="step", queue="mails")
    def step(n: int) -> None:
        ran.append(n)

    return app, step, ran


@pytest.mark.parametrize("order", ["key", "key_strict"])
def test_jobs_that_are_held_and_those_behind_them(on_memory: OnMemory, order: Any) -> None:  # edge 76
    """A paused type holds a key's head; head and third are cancelled: they end at once, the others stay held."""
    app, ran = App("shop", partitions=1), list[int]()

    @app.job(name="step", queue="mails", key="k", order=order)
    def step(k: str, n: int) -> None:
        ran.append(n)

    t = on_memory(app)
    pause = control.pause_type_key(app.name, "step", "1")
    orders.write(t.broker, app.names, {pause: control.pause_value(actor="t", reason="r", at=t.clock.now())})
    for n in range(4):
        step.options(id=f"job-{n}").publish("a", n)
    t.run()
    assert unfinished(t) == 4
    cancel(app, t.broker, "job-0", t.clock.now())
    cancel(app, t.broker, "job-2", t.clock.now())
    t.run()
    assert (unfinished(t), ran) == (3, []), "what is behind the head is ended when its turn comes"
    orders.write(t.broker, app.names, {pause: None})
    for _ in range(3):
        t.advance(0.1)
        t.run()
    assert (unfinished(t), ran) == (0, [1, 3])


@pytest.mark.parametrize("order", ["none", "key", "key_strict"])
def test_an_order_that_is_known_before_its_job_is_fetched(on_memory: OnMemory, order: Any) -> None:  # edge 76
    """What bit: of a backlog the jobs that were fetched after the order ran, unless they had more than the fixed headers."""
    app, ran = App("shop", partitions=1), list[int]()

    @app.job(name="step", queue="mails", key="k", order=order)
    def step(k: str, n: int) -> None:
        ran.append(n)

    t = on_memory(app)
    for n in range(4):
        step.options(id=f"job-{n}").publish("a", n)
    cancel(app, t.broker, "job-0", t.clock.now())
    cancel(app, t.broker, "job-2", t.clock.now())
    t.process.control.poll()
    for loop in t.process.loops:
        loop._cancels.obey()
    t.run()
    assert (unfinished(t), ran) == (0, [1, 3])
    t.advance(1)
    step.options(id="job-0").publish("a", 4)
    t.run()
    assert ran == [1, 3, 4], "a later job of the same id is another one"


def test_a_strict_head_that_waits_for_its_next_attempt(on_memory: OnMemory) -> None:  # edge 76
    app, ran = App("shop", partitions=1), list[int]()

    @app.job(name="step", queue="mails", key="k", order="key_strict", retry=Retry(backoff=Backoff.fixed("1m")))
    def step(k: str, n: int) -> None:
        ran.append(n)
        if n == 0:
            raise ValueError

    t = on_memory(app)
    step.options(id="a").publish("k", 0)
    step.options(id="b").publish("k", 1)
    t.run(raise_errors=False, through_delays=False)
    assert ran == [0]
    cancel(app, t.broker, "a", t.clock.now())
    t.run(through_delays=False)
    assert (ran, unfinished(t)) == ([0, 1], 0)
    t.advance(61)
    t.run()
    assert ran == [0, 1], "nothing of it wakes any more"


def test_a_job_that_waits_in_memory(on_memory: OnMemory) -> None:
    app, step, _ = stepping()
    t = on_memory(app)
    step.options(id="a", delay="3s").publish(1)
    t.run(through_delays=False)
    assert unfinished(t) == 1
    cancel(app, t.broker, "a", t.clock.now())
    t.run(through_delays=False)
    (home,) = [home for home in t.process.loops[0].poller.partitions.values() if home.topic == "jobs.mails"]
    assert (unfinished(t), home.waiting) == (0, 0)


def test_a_job_that_expires_while_it_waits_in_memory_does_not_start(on_memory: OnMemory) -> None:  # edge 76
    app, step, ran = stepping()
    t = on_memory(app)
    step.options(delay="3s", expires="500ms").publish(1)
    step.options(delay="3s", expires="1h").publish(2)
    t.run(through_delays=False)
    assert unfinished(t) == 2
    t.advance(4)
    t.run()
    assert (ran, unfinished(t)) == ([2], 0)


def test_an_order_that_is_read_late_ends_no_later_job_of_the_same_id(on_memory: OnMemory) -> None:  # edge 76
    """Its job came after the order, and is at hand before this worker has read the order."""
    app, step, ran = stepping()
    t = on_memory(app)
    cancel(app, t.broker, "a", t.clock.now())
    t.advance(1)
    step.options(id="a", delay="3s").publish(1)
    for loop in t.process.loops:
        loop.turn()
    assert unfinished(t) == 1
    t.run()
    assert ran == [1]


def test_jobs_behind_a_strict_head_whose_letter_is_not_acknowledged(on_memory: OnMemory) -> None:
    """The head is not ready, not held and asleep nowhere: what is behind it is reached all the same."""
    app, ran = App("shop", partitions=1), list[int]()

    @app.job(name="step", queue="mails", key="k", order="key_strict", retry=Retry(attempts=1))
    def step(k: str, n: int) -> None:
        ran.append(n)
        if n == 0:
            raise ValueError

    t = on_memory(app)
    for n in range(3):
        step.options(id=f"job-{n}").publish("k", n)
    t.broker.down("jobs.mails.shop.dlt")
    for _ in range(3):
        t.process.loops[0].turn()
    assert ran == [0]
    cancel(app, t.broker, "job-1", t.clock.now())
    t.process.control.poll()
    t.process.loops[0].turn()
    t.broker.up()
    t.run(raise_errors=False)
    assert (ran, unfinished(t)) == ([0, 2], 0)


@pytest.fixture
def threaded() -> Iterator[tuple[App, MemoryBroker]]:
    app = App("shop", partitions=1, **{"worker.drain": "5s"})
    broker = MemoryBroker()
    before = app.lend(broker, SystemClock())
    yield app, broker
    app.take_back(before)


def test_jobs_that_run_see_it_and_those_behind_them_do_not_start(threaded: tuple[App, MemoryBroker]) -> None:  # edge 76
    """One thread runs the head of a lane; the order is for the head and for the third: the head is told, the third never starts."""
    app, broker = threaded
    running, cancelled, go_on = threading.Event(), threading.Event(), threading.Event()
    ran: list[int] = []

    @app.job(name="step", queue="mails", key="k")
    def step(job: Job, k: str, n: int) -> None:
        ran.append(n)
        if n == 0:
            running.set()
            eventually(lambda: job.cancelled, 10, "the running job is told")
            cancelled.set()
            go_on.wait(20)

    app.load()
    process = app.process()
    process.start()
    try:
        for n in range(4):
            step.options(id=f"job-{n}").publish("a", n)
        assert running.wait(20)
        loop = process.loops[0]
        eventually(lambda: [home.tracker.unfinished for home in loop.poller.partitions.values()] == [4], 20, "all are read")
        cancel(app, broker, "job-2", SystemClock().now())
        cancel(app, broker, "job-0", SystemClock().now())
        assert cancelled.wait(20)
        go_on.set()
        eventually(lambda: [home.tracker.unfinished for home in loop.poller.partitions.values()] == [0], 20, "all have ended")
        assert ran == [0, 1, 3]
    finally:
        go_on.set()
        process.stop()
        process.join(20)
