"""What the demo run stands on: its own settings, its signals, its worker, and how it knows that all is settled."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from streamjobs.demo import app as sample
from streamjobs.demo.run import Run, Sampler, State, Worker, environment, interruptible
from streamjobs.errors import StreamjobsError
from streamjobs.settings import load
from streamjobs.testing.app import Testing

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def eventually(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.01)


def test_nobodys_settings_get_in_and_its_own_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMJOBS_WORKER__SLOTS", "7")
    before = dict(os.environ)

    with environment(tmp_path):
        os.environ["STREAMJOBS_BOOTSTRAP"] = "embedded:127.0.0.1:1"
        settings = load()
        assert settings.source("worker.slots") == "streamjobs.toml:worker.slots"
        assert (settings.provision, settings.worker.processes) == ("auto", 2)

    assert dict(os.environ) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_where_it_is_asked_for_and_nowhere_else(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]

    with interruptible() as check:
        check()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            check()
        for another in SIGNALS:
            signal.raise_signal(another)

    assert [signal.getsignal(one) for one in SIGNALS] == before


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_worker_that_does_not_stop_is_killed_with_its_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker = Worker([sys.executable, "-c", STUBBORN], log)
    eventually(lambda: worker.alive and log.read_text().endswith("\n"))

    worker.end(patience=0.2)

    assert not worker.alive
    child = int(log.read_text())
    eventually(lambda: _gone(child))


def _gone(pid: int) -> bool:
    """It does not run; it may still have to be waited for by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_that_ended_has_last_words(tmp_path: Path) -> None:
    worker = Worker([sys.executable, "-c", "print('a'); print('no such app'); raise SystemExit(3)"], tmp_path / "log")
    eventually(lambda: not worker.alive)

    assert worker.last_words == "a / no such app"
    assert worker.stop() == 3
    worker.end()


@pytest.fixture
def idle_run(tmp_path: Path) -> Run:
    """A run whose worker ends at once, and has said so."""
    run = Run(Nobody(), tmp_path, ExitStack(), lambda: None, lose=False)
    run._worker = Worker([sys.executable, "-c", "print('error: no such app')"], tmp_path / "log")
    return run


def test_what_waits_for_a_worker_that_died_ends_with_its_last_words(idle_run: Run) -> None:
    with pytest.raises(StreamjobsError, match="ended before its time; its log says: error: no such app"):
        idle_run._until(lambda: False, 20, "anything")


def test_what_waits_too_long_says_for_what(idle_run: Run) -> None:
    idle_run._worker = Worker([sys.executable, "-c", "import time; time.sleep(60)"], idle_run._directory / "another")
    try:
        with pytest.raises(StreamjobsError, match="not within 0.01 s: all jobs settled; the worker's log says: nothing"):
            idle_run._until(lambda: False, 0.01, "all jobs settled")
    finally:
        idle_run._worker.end()


def test_what_waits_can_be_interrupted(idle_run: Run) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    idle_run._check = interrupted

    with pytest.raises(KeyboardInterrupt):
        idle_run._until(lambda: True, 20, "what is so already")


class Nobody:
    def say(self, text: str) -> None: ...
    def show(self, state: State) -> None: ...


def test_all_is_settled_when_nothing_is_pending_in_a_queue_its_retries_or_the_ladder(world: Testing) -> None:
    def committed(*, through_delays: bool) -> None:
        for _ in range(2):
            world.run(raise_errors=False, through_delays=through_delays)
            world.advance(0.5)

    sampler = Sampler(sample.app)
    sampler.start()
    try:
        sample.make_thumbnail.publish(image_id=7)  # fails twice
        published = time.time()
        eventually(lambda: sampler.looks and _latest(sampler) == (1, 0))
        assert not sampler.idle_since(published)
        committed(through_delays=True)
        eventually(lambda: sampler.idle_since(published))

        sample.make_thumbnail.options(delay="1h").publish(image_id=1)
        published = time.time()
        committed(through_delays=False)
        looks = len(sampler.looks)
        eventually(lambda: len(sampler.looks) > looks + 1)
        assert _latest(sampler) == (0, 1)  # in the ladder
        assert not sampler.idle_since(published)
        committed(through_delays=True)
        eventually(lambda: sampler.idle_since(published))
    finally:
        sampler.stop()


def _latest(sampler: Sampler) -> tuple[int, int]:
    """How many were pending, and how many waited in the ladder, at the last look."""
    return sampler.looks[-1].pending, sum(sampler.looks[-1].delayed.values())
