"""`on_dead` hooks: called when a job has become a letter; whatever they do, the worker goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamjobs import App, Job, Reject, Retry
from streamjobs.clock import SystemClock
from streamjobs.testing import MemoryBroker
from streamjobs.testing.app import Testing
from streamjobs.worker.executors import Gate
from streamjobs.worker.executors.aio import Aio
from tests.support.workers import eventually

OnMemory = Callable[[App], Testing]


def dying_app(**settings: Any) -> App:
    app = App("shop", partitions=1, **settings)

    @app.job(name="mail", queue="mails", retry=Retry(attempts=1))
    def mail(n: int) -> None:
        raise ValueError(n)

    return app


@pytest.mark.parametrize("error", [Reject("no"), SystemExit(3), OSError("no route")])
def test_a_hook_that_raises_ends_no_loop(on_memory: OnMemory, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    app, told = dying_app(), list[str]()

    @app.on_dead
    def raises(job: Job, reason: str) -> None:
        raise error

    @app.on_dead
    async def raises_later(job: Job, reason: str) -> None:
        await asyncio.sleep(0)
        raise error

    @app.on_dead
    async def tells(job: Job, reason: str) -> None:
        told.append(reason)

    t = on_memory(app)
    with caplog.at_level(logging.ERROR):
        app.job_types["mail"].publish_many([(1,), (2,)])
        t.run(raise_errors=False)
    assert told == ["exhausted", "exhausted"]
    assert len(t.dead_letters()) == 2
    assert caplog.text.count("an on_dead hook failed") == 4


@pytest.fixture
def threaded() -> Iterator[tuple[App, MemoryBroker]]:
    app = dying_app(**{"worker.drain": "5s"})
    broker = MemoryBroker()
    before = app.lend(broker, SystemClock())
    yield app, broker
    app.take_back(before)


def test_an_async_hook_keeps_no_loop_waiting_and_ends_before_the_process(threaded: tuple[App, MemoryBroker]) -> None:
    """One hook waits for its letter's successor: it would wait for ever if the loop waited for it."""
    app, _ = threaded
    second, told = asyncio.Event(), list[int]()
    first_began = threading.Event()

    @app.on_dead
    async def tell(job: Job, reason: str) -> None:
        if job.args == (1,):
            first_began.set()
            await second.wait()
        else:
            second.set()
        told.append(job.args[0])

    app.load()
    process = app.process()
    process.start()
    try:
        mail = app.job_types["mail"]
        mail.publish(1)
        assert first_began.wait(20)
        mail.publish(2)
        eventually(lambda: sorted(told) == [1, 2], 20, "both hooks end")
    finally:
        process.stop()
        assert process.join(20) == 0


def test_a_hook_that_is_under_way_ends_before_the_event_loop() -> None:
    aio, began, ended = Aio(1, Gate()), threading.Event(), list[bool]()

    async def hook() -> None:
        began.set()
        await asyncio.sleep(0.05)
        ended.append(True)

    aio.call(hook(), lambda error: None)
    assert began.wait(20)
    aio.stop(10)
    assert ended == [True]


def test_two_loops_that_need_the_event_loop_first_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main and retry loop hand out their first async chunk at the same moment: were there two event loops, one chunk would be on the
    one that nobody runs tasks of."""
    aio, both = Aio(1, Gate()), threading.Barrier(2)
    make, got = asyncio.new_event_loop, list[object]()

    def slowly() -> asyncio.AbstractEventLoop:
        try:
            both.wait(0.2)
        except threading.BrokenBarrierError:
            pass
        return make()

    monkeypatch.setattr(asyncio, "new_event_loop", slowly)
    threads = [threading.Thread(target=lambda: got.append(aio.loop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] is got[1]
    aio.stop(5)
