"""How much memory a worker takes of a backlog, and of jobs that wait: `python -m tests.bench.memory [--backlog N] [--delayed N]`.

Resident memory of the process that runs the jobs, at its start, at its peak, at its end; its supervisor comes on top.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.story import Story, processes_of, resident
from tests.support.workers import Worker

MIB = 1024 * 1024
#: Waiting jobs are watched until they have all been read, and for at least so long.
WATCH_S = 20.0
BATCH = 50_000


@dataclass(frozen=True)
class Memory:
    """MiB of one worker process; `around`: of its supervisor and what that needs."""

    what: str
    jobs: int
    start: float
    peak: float
    end: float
    around: float
    seconds: float

    def __str__(self) -> str:
        figures = f"start {self.start:.0f}, peak {self.peak:.0f}, end {self.end:.0f} MiB, and {self.around:.0f} around it"
        return f"{self.jobs:,} jobs {self.what}: {figures}; {self.seconds:.0f} s"


class Scale:
    """Samples one worker while something goes on."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.began = time.monotonic()
        self.start = self.peak = self.weigh()[0]

    def weigh(self) -> tuple[float, float]:
        """(the process that runs jobs, those around it)"""
        weights = sorted(resident([pid]) / MIB for pid in processes_of(self.worker))
        return weights[-1], sum(weights[:-1])

    def until(self, fact: Callable[[], object], timeout: float) -> None:
        """Raises AssertionError when it takes longer."""
        deadline = time.monotonic() + timeout
        while not fact():
            assert time.monotonic() < deadline, f"not within {timeout:g} s"
            self.peak = max(self.peak, self.weigh()[0])
            time.sleep(0.1)

    def result(self, what: str, jobs: int) -> Memory:
        end, around = self.weigh()
        return Memory(what, jobs, self.start, max(self.peak, end), end, around, time.monotonic() - self.began)


def backlog(world: Story, jobs: int) -> Memory:
    """Jobs lie there before the worker starts; it runs them all."""
    _publish(world, jobs)
    scale = Scale(_started(world))
    scale.until(lambda: _base(world) >= jobs, 60 + jobs / 500)
    return scale.result("of backlog", jobs)


def delayed(world: Story, jobs: int) -> Memory:
    """Jobs that wait for an hour: the timer reads what it may hold and leaves the rest on the broker."""
    _publish(world, jobs, delay="1h")
    scale = Scale(_started(world))
    scale.until(lambda: time.monotonic() - scale.began > WATCH_S, WATCH_S + 30)
    assert _base(world) == 0
    return scale.result("delayed by an hour", jobs)


def _publish(world: Story, jobs: int, **options: Any) -> None:
    for first in range(0, jobs, BATCH):
        world.publish_many("silent", [{"n": n} for n in range(first, min(first + BATCH, jobs))], **options)


def _started(world: Story) -> Worker:
    worker = world.worker(world.queue)
    deadline = time.monotonic() + 60
    while not world.owners():
        assert worker.alive and time.monotonic() < deadline, worker.tail()
        time.sleep(0.05)
    return worker


def _base(world: Story) -> int:
    committed = world.app.broker.admin().committed(world.app.group)
    return sum(commit.offset for tp, commit in committed.items() if tp.topic == world.main)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a worker with a backlog, and with jobs that wait.")
    parser.add_argument("--bootstrap", default=os.environ.get("STREAMJOBS_BOOTSTRAP", "localhost:9092"))
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--delayed", type=int, default=100_000)
    options = parser.parse_args()
    measures: list[tuple[Callable[[Story, int], Memory], int]] = [(backlog, options.backlog), (delayed, options.delayed)]
    for measure, jobs in measures:
        with tempfile.TemporaryDirectory() as directory:
            world = Story(options.bootstrap, f"memory-{uuid.uuid4().hex[:8]}", Path(directory), 8, {})
            try:
                print(measure(world, jobs), flush=True)
            finally:
                world.close()


if __name__ == "__main__":
    main()
