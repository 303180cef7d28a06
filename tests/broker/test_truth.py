"""What the events say is what happened, however workers die."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from streamjobs.core.projection import Projection
from streamjobs.telemetry.events import Event
from tests.support.workers import eventually

ENDS = {"succeeded", "snoozed", "retried"}


def test_the_fold_of_the_events_is_the_ledger_after_kills_at_any_moment(story: Callable[..., Any]) -> None:
    """
    Jobs run, fail or snooze, and run again while workers are killed at random moments. Had an offset been committed before its event, the
    job's end would be in no event for ever; were a batch of events folded by job id and attempt, a run sent twice would count
    twice. So every (origin, run) of the ledger is in the fold, with its end, and no other is.
    """
    world = story(partitions=4)
    drawn = random.Random(11)
    workers = [world.worker("--slots", "8") for _ in range(2)]
    eventually(lambda: world.owners() == 2, 60, "each of two workers owns partitions")
    rows = [{"n": n, "times": drawn.choice([0, 0, 0, 1, 2]), "ms": drawn.choice([0, 1, 5])} for n in range(15, 4_000)]
    failing = [{"n": n, "fails": n % 3 + 1} for n in range(15)]  # too few in a row to open a breaker
    world.publish_many("failing", failing)
    world.publish_many("snoozing", rows)
    for kill in range(3):
        goal = drawn.randrange(300, 900) * (kill + 1)
        eventually(lambda goal=goal: world.count("end") >= goal, 60, f"{goal} jobs done")  # type: ignore[misc]
        workers[kill].kill()
        workers.append(world.worker("--slots", "8"))
    again = {row["n"]: row["times"] for row in rows} | {row["n"]: row["fails"] for row in failing}
    expected = {(n, run) for n, times in again.items() for run in range(1, times + 2)}
    eventually(lambda: world.count("end") >= 4_000 and set(world.ends()) == set(range(4_000)), 120, "all jobs done")
    assert [worker.stop() for worker in workers[3:]] == [0, 0]

    fold: Projection[Event] = Projection()
    events = world.events()
    fold.apply_all(events)
    told = {(event.origin, event.run): event.kind for job in fold.jobs() for event in fold.history(job.group, job.origin)}
    entries = [entry for entry in world.ledger.entries() if entry["what"] == "start"]
    ran = {(entry["origin"], entry["run"]) for entry in entries}
    print(
        f"\n4,000 jobs, 3 SIGKILLs: {len(entries):,} starts of {len(ran):,} distinct runs; {len(events):,} events, "
        f"{len(told):,} distinct runs in their fold"
    )
    assert {(entry["n"], entry["run"]) for entry in entries} == expected
    assert told.keys() == ran
    assert set(told.values()) == ENDS
    assert sum(kind == "succeeded" for kind in told.values()) == 4_000
