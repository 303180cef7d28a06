"""Replays that die: started again, they send every letter back exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import tables
from streamjobs.core.record import Meta
from tests.support.letters import Letters
from tests.support.replay import STEPS
from tests.support.workers import ROOT, eventually


class Replays:
    """Replays of a world's letters, each in a process of its own."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.queue = f"{world.name}-q"
        self.letters = world.app.dead_letters(self.queue)
        self.retry = world.app.names.retry(self.queue, world.app.group)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **self.world.env}, stdout=subprocess.PIPE, text=True)

    def back(self) -> Counter[str]:
        """How often each job is on the retry topic."""
        found = tables.changes(self.world.app.broker, tables.bounds(self.world.app.broker, self.retry))
        return Counter(Meta.parse(message.headers()).origin for message in found)

    def written(self) -> int:
        """Offsets of the retry topic, of transactions that were never committed too."""
        return sum(end for _, end in tables.bounds(self.world.app.broker, self.retry).values())

    def close(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def replays(ledger_world: Callable[..., Any]) -> Replays:
    return Replays(ledger_world(partitions=4))


def test_a_replay_that_dies_at_any_step_is_made_whole_by_the_next_one(replays: Replays) -> None:  # edge 55
    """
    One table of 900 letters. At each step of a replay in turn its process ends: before and behind the fence, with a transaction
    begun, half sent, sent, committed. The last one goes to its end.
    """
    Letters(replays.world.app, "step").bury({"n": n} for n in range(900))

    for step in STEPS:
        process = replays.start("-m", "tests.support.replay", step)
        assert process.wait(60) == -signal.SIGKILL
        replays.close(process)
        back, left = replays.back(), replays.letters.count()
        print(f"\n  killed {step}: {len(back)} back, {left} left", end="")
        assert set(back.values()) <= {1} and len(back) + left == 900

    last = replays.start("-m", "tests.support.replay", "never")
    moved, _ = last.communicate(timeout=60)

    back = replays.back()
    assert last.returncode == 0 and int(moved) < 900
    assert (len(back), set(back.values()), replays.letters.count()) == (900, {1}, 0)


def test_three_thousand_letters_and_two_kills(replays: Replays) -> None:  # edge 55
    """
    `dlt replay` from the command line, started three times, killed twice at a moment that chance chooses; then workers run what
    came back. What their handlers noted says that each job ran once more, and once only.
    """
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    replay = ["-m", "streamjobs", "dlt", "replay", replays.queue, "-A", "tests.support.ledger_app:app", "--apply", "--yes", "--rate", "1000"]
    Letters(replays.world.app, "step").bury({"n": n} for n in range(3_000))

    for kill in (1, 2):
        before = replays.written()
        process = replays.start(*replay)
        more = chance.randrange(1, 1_000)
        eventually(lambda: replays.written() - before >= more, 60, f"{more} jobs written (seed {seed})")  # noqa: B023 (called at once)
        replays.close(process)
        print(f"\n  kill {kill}: {len(replays.back()):,} back, {replays.letters.count():,} left", end="")
        assert process.returncode == -signal.SIGKILL, f"it was done before it was killed (seed {seed})"
    last = replays.start(*replay)
    last.communicate(timeout=60)
    print(f"\n  third run: {len(replays.back()):,} back, {replays.letters.count():,} left (seed {seed})")

    assert last.returncode == 0
    assert replays.letters.count() == 0
    worker = replays.world.worker("--slots", "16")
    eventually(lambda: len(set(replays.world.ends())) == 3_000, 60, "all of them ran")
    assert worker.stop() == 0
    assert Counter(replays.world.starts()) == Counter(range(3_000))


def test_ctrl_c_finishes_the_batch_and_says_what_is_left(replays: Replays) -> None:
    """From a terminal, as people stop it; the same command goes on."""
    replay = ["-m", "streamjobs", "dlt", "replay", replays.queue, "-A", "tests.support.ledger_app:app", "--apply", "--yes", "-o", "json"]
    Letters(replays.world.app, "step").bury({"n": n} for n in range(500))
    process = replays.start(*replay, "--rate", "100")
    eventually(lambda: replays.written() > 10, 60, "it began")

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 130
    moved = len(replays.back())
    assert f'"moved": {moved}' in said and '"interrupted": true' in said
    assert replays.letters.count() == 500 - moved > 0
    last = replays.start(*replay)
    last.communicate(timeout=30)
    assert set(replays.back().values()) == {1} and len(replays.back()) == 500
