"""Dead letters at size, on a real broker: what dies in the middle, what memory it takes, and whether live jobs notice.

::

    python -m tests.bench.dead_letters                      # all three, 100,000 and 1,000,000 letters: about ten minutes
    python -m tests.bench.dead_letters killed --letters 3000
    python -m tests.bench.dead_letters size --letters 1000000
    python -m tests.bench.dead_letters live --seconds 20

Takes the broker at STREAMJOBS_TEST_BOOTSTRAP, else starts one from Maven's jars. Exits with 1 if a letter was lost or went back
twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamjobs import tables
from streamjobs.broker import Broker
from tests.broker.conftest import World
from tests.conftest import kafka_from_maven
from tests.support.letters import Letters
from tests.support.workers import ROOT, eventually


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["killed", "size", "live", "all"], default="all")
    parser.add_argument("--letters", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    failed = 0
    with _bootstrap() as bootstrap, tempfile.TemporaryDirectory() as directory:
        if options.part in ("killed", "all"):
            failed += killed(bootstrap, Path(directory), options.letters or 100_000, options.seed)
        if options.part in ("size", "all"):
            failed += size(bootstrap, Path(directory), options.letters or 1_000_000)
        if options.part in ("live", "all"):
            live(bootstrap, Path(directory), options.seconds)
    return 1 if failed else 0


@contextlib.contextmanager
def _bootstrap() -> Iterator[str]:
    given = os.environ.get("STREAMJOBS_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory, kafka_from_maven(Path(directory)) as bootstrap:
        yield bootstrap


@contextlib.contextmanager
def _world(bootstrap: str, directory: Path, name: str, **env: str) -> Iterator[World]:
    own = directory / name
    own.mkdir()
    world = World(bootstrap, f"{name}-{os.getpid():x}{int(time.time()):x}", own, 8, env)
    try:
        yield world
    finally:
        world.close()


class Command:
    """`streamjobs dlt …` in a process of its own, timed, with the most memory that it took."""

    def __init__(self, world: World, *arguments: str, log: Path | None = None) -> None:
        self.began = time.monotonic()
        self._out = (log or Path(os.devnull)).open("ab")
        command = [sys.executable, "-m", "streamjobs", "dlt", *arguments, "-A", "tests.support.ledger_app:app"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **world.env}, stdout=self._out, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )

    def kill(self) -> str:
        self.process.kill()
        return self.end()

    def end(self) -> str:
        """What it took."""
        assert self.process.stderr is not None
        self.said = self.process.stderr.read()
        _, _, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = 0
        self._out.close()
        cpu_s = usage.ru_utime + usage.ru_stime
        return f"{time.monotonic() - self.began:6.1f} s ({cpu_s:5.1f} s of CPU), {usage.ru_maxrss / 1024:5.0f} MiB"


def _written(broker: Broker, topic: str) -> int:
    return sum(end for _, end in tables.bounds(broker, topic).values())


# --- killed -------------------------------------------------------------------------------------------------------------------


def killed(bootstrap: str, directory: Path, count: int, seed: int) -> int:
    """A replay of `count` letters, started three times and killed twice; then workers run what came back."""
    print(f"\n{count:,} letters, replay started three times, killed twice with SIGKILL (seed {seed})")
    chance = random.Random(seed)
    with _world(bootstrap, directory, "killed") as world:
        queue = f"{world.name}-q"
        retry = world.app.names.retry(queue, world.app.group)
        Letters(world.app, "step").bury({"n": n} for n in range(count))
        print(f"  at the start:  {_state(world, retry, count)}")
        replay = ("replay", queue, "--apply", "--yes")
        for number in (1, 2):
            before = _written(world.app.broker, retry)
            command = Command(world, *replay)
            more = chance.randrange(1, count // 3)
            eventually(lambda: _written(world.app.broker, retry) - before > more, 120, f"{more} jobs are written")  # noqa: B023
            took = command.kill()
            print(f"  after kill {number}:  {_state(world, retry, count)}; {took}")
        command = Command(world, *replay)
        took = command.end()
        print(f"  after the third run: {_state(world, retry, count)}; {took}")
        return _judged(world, count)


def _state(world: World, retry: str, count: int) -> str:
    back = sum(1 for _ in tables.changes(world.app.broker, tables.bounds(world.app.broker, retry)))
    left = world.app.dead_letters(f"{world.name}-q").count()
    return f"{back:>8,} back, {left:>8,} left, sum {back + left:,}" + ("" if back + left == count else "  WRONG")


def _judged(world: World, count: int) -> int:
    """Whether each job ran exactly once more, by what its handlers noted."""
    began = time.monotonic()
    workers = [world.worker("--slots", "16") for _ in range(2)]
    with contextlib.suppress(AssertionError):
        eventually(lambda: _lines(world) >= 2 * count, 600, "all of them ran")
    for worker in workers:
        worker.stop()
    starts = Counter(world.starts())
    lost, twice = count - len(starts), sum(1 for times in starts.values() if times > 1)
    left = world.app.dead_letters(f"{world.name}-q").count()
    print(f"  ledger: {len(starts):,} jobs ran, {lost} lost, {twice} twice; {left} letters left; {time.monotonic() - began:.0f} s in two workers")
    return lost + twice + left


def _lines(world: World) -> int:
    path = world.ledger.path
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- size ---------------------------------------------------------------------------------------------------------------------


def size(bootstrap: str, directory: Path, count: int) -> int:
    """list, stats, a plan and a replay of a table of `count` letters: time and memory of each."""
    print(f"\n{count:,} letters on one table of 8 partitions")
    with _world(bootstrap, directory, "size") as world:
        queue = f"{world.name}-q"
        began = time.monotonic()
        Letters(world.app, "step", TimeoutError("no answer from 'bank' in 30 s")).bury({"n": n} for n in range(count))
        print(f"  written in {time.monotonic() - began:.0f} s")
        for title, arguments in {
            "list (the newest 50)": ("list", queue),
            "list --limit 0": ("list", queue, "--limit", "0"),
            "list -o json": ("list", queue, "-o", "json"),
            "stats": ("stats", queue),
            "stats --by id": ("stats", queue, "--by", "id"),
            "list --where error=Other": ("list", queue, "--where", "error=Other"),
            "export": ("export", queue),
            "replay, the plan alone": ("replay", queue),
        }.items():
            print(f"  {title:<26} {Command(world, *arguments).end()}", flush=True)
        command = Command(world, "replay", queue, "--apply", "--yes")
        print(f"  {'replay --apply':<26} {command.end()}; {command.said.strip().splitlines()[-1]}")
        left = world.app.dead_letters(queue).count()
        print(f"  left: {left}")
        return left


# --- live ---------------------------------------------------------------------------------------------------------------------

RATE = 200.0


def live(bootstrap: str, directory: Path, seconds: float) -> None:
    """Live jobs of a queue while a slow replay of the same queue goes on, and without one."""
    print(f"\nlive jobs of the queue at {RATE:.0f}/s for {seconds:.0f} s, one worker: wait from publish to start")
    with _world(bootstrap, directory, "live") as world:
        queue = f"{world.name}-q"
        worker = world.worker("--slots", "16")
        Letters(world.app, "step").bury({"n": -1 - n, "ms": 1} for n in range(round(seconds * 400)))
        world.publish_many("step", [{"n": 0}])
        eventually(lambda: world.ends(), 60, "the worker runs")
        print(f"  without a replay:      {_waits(world, 1, seconds)}", flush=True)
        for number, rate in enumerate((50, 200), 1):
            command = Command(world, "replay", queue, "--apply", "--yes", "--rate", str(rate), "--limit", str(round(rate * seconds)))
            eventually(lambda: any(n < 0 for n in world.starts()), 60, "replayed jobs run")
            waits = _waits(world, number * 1_000_000, seconds)
            command.end()
            print(f"  replay at {rate:>3}/s:       {waits}; {command.said.strip().splitlines()[-1]}", flush=True)
        worker.stop()


def _waits(world: World, first: int, seconds: float) -> str:
    """Publishes at the rate, then looks up when each began."""
    published: dict[int, float] = {}
    step, began = world.app.job_types["step"], time.monotonic()
    for number in range(first, first + round(seconds * RATE)):
        time.sleep(max(0.0, began + (number - first) / RATE - time.monotonic()))
        published[number] = time.time()
        step.publish(n=number)
    eventually(lambda: published.keys() <= set(world.starts()), 60, "all live jobs ran")
    starts = {entry["n"]: entry["at"] for entry in world.ledger.entries() if entry["what"] == "start" and entry["n"] in published}
    return _percentiles(sorted(starts[n] - at for n, at in published.items()))


def _percentiles(waits: Sequence[float]) -> str:
    at = {p: waits[min(len(waits) - 1, int(len(waits) * p / 100))] * 1000 for p in (50, 95, 99)}
    return f"{len(waits):,} jobs, p50 {at[50]:.0f} ms, p95 {at[95]:.0f} ms, p99 {at[99]:.0f} ms, max {waits[-1] * 1000:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
