"""Workers come and go while jobs run: who owns a partition runs its jobs, and nobody waits longer than needed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.story import partition_of
from tests.support.workers import eventually

CONSUMER_CLASSIC_LATER = pytest.mark.parametrize("protocol", ["consumer", pytest.param("classic", marks=pytest.mark.long)])
CLASSIC_CONSUMER_LATER = pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.long)])
SLOTS = 16


@CLASSIC_CONSUMER_LATER
def test_workers_come_and_go_while_jobs_run(story: Callable[..., Any], protocol: str) -> None:  # edge 1
    """
    Jobs of one to two seconds run on 8 partitions while a second worker joins and leaves, a third joins and is killed. Each
    rebalance meets running jobs. Whoever lets a partition go in the middle of a job makes it run twice; so no more jobs do than were
    in flight when one had to go (the budget of a revoke was over), and the dead one's.
    """
    world = story(partitions=8, STREAMJOBS_WORKER__PROTOCOL=protocol, STREAMJOBS_WORKER__SESSION_TIMEOUT="8s")
    first = world.worker(world.queue, "--slots", str(SLOTS))
    world.spread("step", [{"n": n, "ms": 1000 + n % 10 * 100} for n in range(240)])
    eventually(lambda: world.count("end") > 10, 30, "the first worker runs jobs")
    second = world.worker(world.queue, "--slots", str(SLOTS))
    eventually(lambda: world.entries_of(second), 40, "the second worker runs jobs")
    assert second.stop() == 0
    third = world.worker(world.queue, "--slots", str(SLOTS))
    eventually(lambda: len({e["n"] for e in world.entries_of(third) if e["what"] == "end"}) > 5, 40, "the third worker runs jobs")
    third.kill()
    unfinished = {e["n"] for e in world.entries_of(third)} - {e["n"] for e in world.entries_of(third) if e["what"] == "end"}
    eventually(lambda: set(world.ends()) == set(range(240)), 90, "all jobs done")
    assert first.stop() == 0

    counts = Counter(world.starts())
    repeats = sum(count - 1 for count in counts.values())
    uncommitted = world.uncommitted_when_killed(third)
    print(
        f"\n{protocol}: 240 jobs of 1 to 1.9 s, two joined, one left, one killed with {len(unfinished)} running: {repeats} ran twice; "
        f"by worker: {[len(world.entries_of(each)) for each in world.workers]}"
    )
    assert repeats <= 2 * SLOTS + max(len(unfinished), uncommitted)  # two revokes, each with all slots busy, and the dead one


@CONSUMER_CLASSIC_LATER
def test_partitions_that_stay_go_on_while_others_leave(story: Callable[..., Any], protocol: str) -> None:
    """
    A worker is asked for one of its two partitions while long jobs run there. It waits for them, and were that all it did, the jobs of the
    partition that stays would wait with it. So between the last start in what leaves and the last end there, others start.
    """
    world = story(partitions=2, STREAMJOBS_WORKER__PROTOCOL=protocol, STREAMJOBS_WORKER__SESSION_TIMEOUT="8s")
    first = world.worker(world.queue, "--slots", "16")
    eventually(lambda: world.owners() == 1, 60, "the first worker owns both")
    for begin in range(0, 900, 45):  # of both partitions in turn, and all of them in its buffers
        world.spread("step", [{"n": n, "ms": 1900 if n % 3 == 0 else 20} for n in range(begin, begin + 45)], keys=8)
    eventually(lambda: world.count("end") > 50, 30, "the first worker runs jobs")
    second = world.worker(world.queue, "--slots", "16")
    eventually(lambda: len(world.entries_of(second)) > 20, 60, "the second worker runs jobs")
    entries = world.ledger.entries()
    for worker in (first, second):
        worker.kill()

    left = {partition_of(entry) for entry in entries if entry["session"] == second.pid}
    leaving = [index for index, entry in enumerate(entries) if entry["session"] == first.pid and partition_of(entry) in left]
    last_start = max(index for index in leaving if entries[index]["what"] == "start")
    last_end = max(index for index in leaving if entries[index]["what"] == "end")
    meanwhile = [e for e in entries[last_start:last_end] if e["session"] == first.pid and partition_of(e) not in left and e["what"] == "start"]
    waited = entries[last_end]["at"] - entries[last_start]["at"]
    print(
        f"\n{protocol}: {len(left)} of 2 partitions left; from the last start there to the last end {waited:.1f} s, "
        f"meanwhile {len(meanwhile)} jobs started in the one that stayed"
    )
    assert len(left) == 1
    assert last_end > last_start and len(meanwhile) > 20


@CONSUMER_CLASSIC_LATER
def test_a_job_that_fails_after_its_partition_left_writes_nothing(story: Callable[..., Any], protocol: str) -> None:  # edge 41
    """
    Jobs of a leaving partition run longer than a revoke waits, and then fail. The next owner runs them again; if the old one wrote
    their retries all the same, each would go on twice from there, for ever.
    """
    world = story(partitions=2, STREAMJOBS_WORKER__PROTOCOL=protocol, STREAMJOBS_WORKER__DRAIN="4s")
    first = world.worker(world.queue, "--slots", "8")
    world.spread("failing", [{"n": n, "fails": 1, "ms": 9_000 if n < 8 else 0} for n in range(8)])
    eventually(lambda: len(world.starts()) == 8, 30, "8 long jobs run")
    second = world.worker(world.queue, "--slots", "8")
    eventually(lambda: world.owners() == 2, 40, "each of two workers owns a partition")
    eventually(lambda: set(world.ends()) == set(range(8)), 90, "all jobs done")
    assert [worker.stop() for worker in (first, second)] == [0, 0]

    twice = [n for n, count in Counter(e["n"] for e in world.ledger.entries() if e["run"] == 1 and e["what"] == "start").items() if count > 1]
    retries = len(world.records(world.retry))
    runs = Counter((entry["n"], entry["run"]) for entry in world.ledger.entries() if entry["what"] == "end")
    print(f"\n{protocol}: {len(twice)} of 8 jobs began on both workers; {retries} retries were written, each ran once")
    assert twice, "no job was running when its partition left"
    assert retries == 8 and set(runs.values()) == {1}


@CONSUMER_CLASSIC_LATER
def test_a_draining_worker_polls_and_gives_up_what_it_does_not_need(story: Callable[..., Any], protocol: str) -> None:  # edge 10
    """
    SIGTERM meets a job that takes longer than a session and a poll interval. Who stops polling is thrown out, and the job runs twice;
    who keeps all its partitions lets their jobs wait for a stranger. So it stays in the group with the topic of that job only, and
    the worker that replaces it runs the jobs of the other topic before the long one ends.
    """
    world = story(partitions=4, STREAMJOBS_WORKER__PROTOCOL=protocol, STREAMJOBS_WORKER__MAX_POLL_INTERVAL="8s")
    first = world.worker("--drain", "60s")
    world.publish_many("patient", [{"n": 0}])
    eventually(lambda: 0 in world.starts(), 30, "the long job runs")
    assert [len(owned) for owned in world.members()] == [8]

    began = time.monotonic()
    first.signal(signal.SIGTERM)
    eventually(lambda: [{tp.topic for tp in owned} for owned in world.members()] == [{world.main}], 20, "one topic was given up")
    given_up = time.monotonic() - began
    second = world.worker()
    world.publish_many("elsewhere", [{"n": n} for n in range(1, 101)])
    eventually(lambda: len(set(world.ends())) == 100, 30, "the jobs of the topic in which nothing ran")
    eventually(lambda: time.monotonic() - began > 10, 20, "a drain that is longer than session and poll interval")
    members = [sorted(tp.topic == world.main for tp in owned) for owned in world.members()]
    world.release()
    assert first.wait() == 0
    print(
        f"\n{protocol}: SIGTERM with a long job: its worker gave up the other topic after {given_up:.1f} s and stayed for more than 10 s; "
        f"the other topic's 100 jobs ran on the next worker meanwhile; partitions of the long job's topic, by member: {members}"
    )
    assert len(members) == 2 and all(members)
    assert Counter(world.starts()) == Counter(range(101))
    assert second.stop() == 0


@CONSUMER_CLASSIC_LATER
def test_a_thawed_worker_starts_nothing_that_is_anothers(story: Callable[..., Any], protocol: str) -> None:  # edge 2
    """
    A worker is frozen with hundreds of jobs at hand, until another one has run them all. Thawed, it starts none of these: what runs
    twice is what it had started, or not committed, when it froze. Then it takes its part again.
    """
    world = story(partitions=4, STREAMJOBS_WORKER__PROTOCOL=protocol)
    frozen = world.worker(world.queue, "--slots", str(SLOTS))
    world.spread("step", [{"n": n, "ms": 100} for n in range(600)])
    eventually(lambda: world.count("end") > 60, 60, "the worker runs jobs")
    frozen.signal_all(signal.SIGSTOP)
    world.worker(world.queue, "--slots", str(SLOTS))
    eventually(lambda: set(world.ends()) == set(range(600)), 90, "the other one has run the rest")

    before = len(world.ledger.entries())
    frozen.signal_all(signal.SIGCONT)
    eventually(lambda: world.owners() == 2, 60, "it is a member again")
    world.spread("step", [{"n": n, "ms": 100} for n in range(600, 700)])
    eventually(lambda: set(world.ends()) == set(range(700)), 60, "the next jobs run")

    mine = [e for e in world.ledger.entries()[before:] if e["session"] == frozen.pid and e["what"] == "start"]
    repeats = [e["n"] for e in mine if e["n"] < 600]
    print(f"\n{protocol}: thawed, it started {len(repeats)} of the other's jobs and {len(mine) - len(repeats)} of its own")
    assert repeats == []
    assert mine, "it goes on"
