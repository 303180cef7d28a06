"""Jobs that end out of order: the map in the commit's metadata keeps them from running again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.support.workers import eventually


def test_nine_thousand_ends_behind_one_slow_head_survive_a_kill(story: Callable[..., Any]) -> None:  # edge 12
    """
    The first job of a partition runs on and on; behind it 9,000 others end out of order; then the worker is killed. The base
    never moved: a commit without a map would make the next owner run 9,000 payments again.
    The next owner runs exactly what the last commit does not call finished, and that is little.
    """
    world = story(partitions=1)
    drawn = random.Random(7)
    world.publish_many("patient", [{"n": 0}])
    world.publish_many("step", [{"n": n, "ms": drawn.choice([0, 0, 1, 2, 5, 20])} for n in range(1, 11_001)])
    first = world.worker("--slots", "16")
    eventually(lambda: world.count("end") >= 9_000, 90, "9,000 jobs done")

    first.kill()
    before = world.ledger.entries()
    ended = {entry["n"] for entry in before if entry["what"] == "end"}
    started = {entry["n"] for entry in before if entry["what"] == "start"}
    base, _ = world.committed()
    finished = world.finished()
    last = max(entry["at"] for entry in before)
    lately = {entry["n"] for entry in before if entry["what"] == "end" and entry["at"] > last - 1.0}
    world.release()
    second = world.worker("--slots", "16")
    eventually(lambda: set(world.ends()) == set(range(11_001)), 60, "all jobs done")
    assert second.stop() == 0

    again = {entry["n"] for entry in world.ledger.entries()[len(before) :] if entry["what"] == "start"}
    print(
        f"\n11,001 jobs, 11,000 behind one head, SIGKILL: {len(ended):,} had ended, {len(started) - len(ended)} ran; the commit's base was {base}, "
        f"its map said {len(finished):,} finished; the next owner ran {len(again)}: the head, {11_000 - len(ended)} that had not ended, and "
        f"{len(again & ended)} that ended after the last commit"
    )
    assert base == 0 and 0 not in ended
    assert again == set(range(11_001)) - finished  # one partition, published in order: n is the offset
    assert finished <= ended and ended - finished <= lately


def test_a_very_long_job_does_not_stop_its_partition(story: Callable[..., Any]) -> None:  # edge 77
    """
    One job takes hours. With a window counted in offsets its partition would stop 10,000 records further on, after seconds; the
    window counts unfinished jobs, so 12,000 others run past it, and the commits say so.
    """
    world = story(partitions=1)
    worker = world.worker()
    world.publish_many("patient", [{"n": 0}])
    eventually(lambda: 0 in world.starts(), 30, "the long job runs")
    world.publish_many("step", [{"n": n} for n in range(1, 12_001)])
    eventually(lambda: world.count("end") == 12_000, 60, "12,000 others done")
    eventually(lambda: len(world.finished()) == 12_000, 30, "their ends are committed")
    base, mark = world.committed()
    assert base == 0 and mark is not None

    world.release()
    eventually(lambda: world.committed()[0] == 12_001, 30, "the base has passed all of them")
    ends = world.ends()
    print(f"\none long job: {ends.index(0):,} others ended meanwhile; commits said {len(mark.finished):,} finished beyond base {base}")
    assert ends.index(0) == 12_000 and len(set(ends)) == len(ends) == 12_001
    assert worker.stop() == 0
