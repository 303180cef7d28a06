"""Workers that die: what was published runs, and little runs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.workers import Worker, eventually


def test_ten_thousand_jobs_survive_a_killed_worker(ledger_world: Callable[..., Any]) -> None:  # edge 71
    """
    Three workers run 10,000 jobs of 8 partitions; one of them is killed with SIGKILL in the middle.
    Every job's handler ran, and no more ran twice than the dead worker had in flight or had not committed yet.
    """
    world = ledger_world(partitions=8)
    workers = [world.worker("--slots", "16") for _ in range(3)]
    eventually(lambda: world.owners() == 3, 60, "each of three workers owns partitions")
    world.publish_many("step", [{"n": n, "ms": 2} for n in range(10_000)])
    eventually(lambda: len(world.ends()) > 3_000, 60, "3,000 jobs done")

    workers[0].kill()
    eventually(lambda: len(set(world.ends())) == 10_000, 90, "all jobs done")

    counts = Counter(world.ends())
    repeats = sum(count - 1 for count in counts.values())
    started_by_dead = world.uncommitted_when_killed(workers[0])
    print(f"\n10,000 jobs, 3 workers, one SIGKILL: {len(counts):,} ran, {repeats} ran twice; not committed at the kill: {started_by_dead}")
    assert sorted(counts) == list(range(10_000))
    assert repeats <= started_by_dead
    assert [worker.stop() for worker in workers[1:]] == [0, 0]


def test_a_stopped_worker_finishes_what_runs(ledger_world: Callable[..., Any]) -> None:  # edge 70
    """SIGTERM lets running jobs end and leaves nothing of them to the next owner."""
    world = ledger_world(partitions=2)
    worker: Worker = world.worker("--slots", "4")
    world.publish_many("step", [{"n": n, "ms": 1500} for n in range(4)])
    eventually(lambda: len(world.starts()) == 4, 30, "4 jobs running")

    assert worker.stop() == 0

    assert sorted(world.ends()) == [0, 1, 2, 3]
    successor = world.worker()
    world.publish_many("step", [{"n": 99}])
    eventually(lambda: 99 in world.ends(), 30, "the successor runs the next job")
    assert successor.stop() == 0
    assert Counter(world.starts()) == Counter([0, 1, 2, 3, 99])


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_killed_static_member_comes_back(ledger_world: Callable[..., Any], protocol: str) -> None:  # edge 23
    """
    Under KIP-848 the broker refuses a second holder of an instance name until the dead one's session is over; that is no
    reason to crash again and again: the worker waits, joins, and runs what is there.
    """
    world = ledger_world(partitions=2, STREAMJOBS_WORKER__PROTOCOL=protocol)
    first = world.worker("--instance", "a")
    world.publish_many("step", [{"n": 1}])
    eventually(lambda: 1 in world.ends(), 30, "the first one runs a job")
    first.kill()

    second = world.worker("--instance", "a")
    world.publish_many("step", [{"n": 2}])
    eventually(lambda: 2 in world.ends(), 40, "the second one of the name runs the next job")
    assert second.stop() == 0
