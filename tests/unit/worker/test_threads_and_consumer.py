"""One thread owns a loop's consumer, also while a revoke waits for handlers that run in others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import TopicPartition
from streamjobs.clock import SystemClock
from streamjobs.testing import MemoryBroker
from tests.support.workers import eventually


class Watched:
    """A consumer that notes which threads call it."""

    def __init__(self, consumer: Any, callers: set[str]) -> None:
        self._consumer = consumer
        self._callers = callers

    def __getattr__(self, name: str) -> Any:
        self._callers.add(threading.current_thread().name)
        return getattr(self._consumer, name)


class WatchedBroker(MemoryBroker):
    """Notes, by group, which threads call its consumers once they have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: dict[str | None, set[str]] = {}

    def consumer(self, group: str | None, **options: Any) -> Any:
        return Watched(super().consumer(group, **options), self.callers.setdefault(group, set()))


@pytest.fixture
def world() -> Iterator[tuple[App, WatchedBroker]]:
    app = App("shop", partitions=2, **{"worker.drain": "5s"})
    broker = WatchedBroker()
    before = app.lend(broker, SystemClock())
    yield app, broker
    app.take_back(before)


def test_a_revoke_that_waits_for_a_handler_deadlocks_nobody(world: tuple[App, WatchedBroker]) -> None:  # edge 9
    """
    A job runs in a thread; another member joins, and the loop's revoke callback waits for the job. The job's end must not
    need the consumer: it is handed over by a queue, the revoke commits it, and the partition moves.
    """
    app, broker = world
    running, release = threading.Event(), threading.Event()
    ended: list[int] = []

    @app.job(queue="mails")
    def slow(n: int) -> None:
        running.set()
        release.wait(20)
        ended.append(n)

    process = app.process()
    broker.callers.clear()
    process.start()
    slow.publish_many([(n,) for n in range(8)])
    assert running.wait(20)

    joined: list[TopicPartition] = []
    other = MemoryBroker.consumer(broker, "shop")
    other.subscribe(["jobs.mails"], _Joining(joined))
    timer = threading.Timer(0.3, release.set)
    timer.start()
    eventually(lambda: other.fetch(0, 0.01) or joined, 20, "the other member gets its share")

    process.stop()
    eventually(lambda: other.fetch(0, 0.01) or not process.alive, 20, "the process drains")
    assert process.join(10) == 0
    assert {name for group in ("shop", "shop.retry") for name in broker.callers.get(group, set())} <= {
        "streamjobs-main",
        "streamjobs-retry",
    }
    commits = broker.admin().committed("shop")
    assert 1 <= len(ended) == sum(commit.offset for commit in commits.values()), "what ran is committed, nothing else"


class _Joining:
    def __init__(self, joined: list[TopicPartition]) -> None:
        self._joined = joined

    def assigned(self, partitions: Any) -> Any:
        from streamjobs.broker import Start

        self._joined += partitions
        return {tp: Start(0, fetch=False) for tp in partitions}

    def revoked(self, partitions: Any) -> None: ...

    def lost(self, partitions: Any) -> None: ...
