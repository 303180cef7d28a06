"""A process whose interpreter stands still is no worker: its supervisor ends it and starts another one."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from streamjobs.cli.worker import run_process
from streamjobs.telemetry.metrics import Totals
from streamjobs.worker import supervise
from streamjobs.worker.process import marks_of
from streamjobs.worker.supervise import Supervisor
from tests.support.story import processes_of
from tests.support.workers import eventually

APP = "tests.support.story_app:app"


def test_a_process_that_stands_still_is_unhealthy_and_replaced(story: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A handler keeps the interpreter to itself: no loop turns, no heartbeat is sent by us, nothing is reported. librdkafka's own threads
    go on all the same, so under KIP-848 the group believes in this member for ever. The supervisor, which sees no report, says
    that it is not healthy, kills it, and the next process runs what it held, its culprit too.
    """
    monkeypatch.setattr(supervise, "SILENT_S", 5.0)
    world = story(partitions=2)
    deaths: list[bool] = []
    entry = functools.partial(run_process, APP, {}, [], False, member="health")
    supervisor = Supervisor(entry, 1, 5.0, Totals(), marks_of(world.app.settings), died=lambda: deaths.append(True))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        eventually(lambda: supervisor.ready()[0], 60, "it is ready")
        world.publish_many("gripping", [{"n": 0}])
        eventually(lambda: 0 in world.starts(), 30, "a job that stops its interpreter")
        world.spread("step", [{"n": n} for n in range(1, 101)])
        eventually(lambda: not supervisor.healthy()[0] or deaths, 30, "it is not healthy")
        eventually(lambda: deaths, 30, "its end")
        eventually(lambda: set(world.ends()) == set(range(101)), 60, "the next process runs all jobs")
        eventually(lambda: supervisor.healthy()[0] and supervisor.ready()[0], 30, "it is well again")
    finally:
        supervisor.stop()
        thread.join(40)
    assert not thread.is_alive()
    print(f"\na process stood still: killed {len(deaths)} time, the next one ran all 101 jobs")
    assert len(deaths) == 1
    assert world.starts().count(0) == 2


@pytest.mark.long
def test_an_orphan_that_hangs_at_its_end_ends_all_the_same(story: Callable[..., Any]) -> None:
    """
    Its supervisor is killed, and it hangs while it ends. What bit, once: nobody was left to kill it, its membership went on, and two
    partitions stood still for as long as anybody waited. It says what its threads did.
    """
    world = story(partitions=2)
    worker = world.worker("--drain", "1s", HANGS_AT_ITS_END="1")
    world.publish_many("step", [{"n": 0}])
    eventually(lambda: world.ends() == [0], 60, "it works")
    process = world.ledger.entries()[0]["pid"]
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: process not in processes_of(worker), 40, "its end")
    assert "Timeout (0:00:15)!" in worker.tail(20_000)
    assert "in hang" in worker.tail(20_000)
