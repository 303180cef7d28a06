"""A broker that goes away, topics that are gone or closed, offsets that were forgotten: nothing is dropped, nothing spins."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs import admin, provision
from tests.support.story import Story, cpu_s, free_port, probe
from tests.support.workers import answered, eventually

#: Of one core, while nothing can be done. A loop that spins takes all of it.
LITTLE = 0.4


@pytest.fixture
def own_story(kafka: Any, own_kafka: Any, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Story]]:
    """`story`, on `own_kafka`. (`kafka` is named so that a run without a real broker says so.)"""
    stories: list[Story] = []

    def build(partitions: int = 4, **env: str) -> Story:
        stories.append(Story(own_kafka.bootstrap, prefix, tmp_path, partitions, env))
        return stories[-1]

    yield build
    for each in stories:
        each.close()


@contextlib.contextmanager
def publishing(world: Story, job_type: str = "step") -> Iterator[list[int]]:
    """Publishes a job every 20 ms, again and again until it is acknowledged; the list of those that were."""
    acked: list[int] = []
    stop = threading.Event()

    def run() -> None:
        n = 0
        while not stop.wait(0.02):
            with contextlib.suppress(Exception):
                world.app.job_types[job_type].publish(n=n)
                acked.append(n)
                n += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield acked
    finally:
        stop.set()
        thread.join(60)


def test_a_worker_that_is_started_while_its_broker_is_away(own_story: Callable[..., Story], own_kafka: Any) -> None:  # edge 34
    """It waits, tells why, and works once the broker is there; nobody has to start it again."""
    world = own_story()
    world.publish_many("step", [{"n": 1}])
    own_kafka.kill(1, signal.SIGTERM)
    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    eventually(lambda: "waiting for the broker" in worker.tail(), 60, "it says what it waits for")
    assert probe(port, "/healthz")[0] == 200
    assert "process 0: broker" in probe(port, "/readyz")[1]

    own_kafka.restart(1)
    eventually(lambda: 1 in world.ends(), 60, "it works")
    assert worker.stop() == 0


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.long), pytest.param(signal.SIGKILL, id="SIGKILL")])
def test_a_broker_restarts_while_jobs_flow(own_story: Callable[..., Story], own_kafka: Any, how: signal.Signals) -> None:  # edge 34
    """Whatever was acknowledged runs, and only what ran or was not committed when the broker went runs twice."""
    world = own_story()
    worker = world.worker()
    with publishing(world) as acked:
        eventually(lambda: world.count("end") > 100, 60, "jobs flow")
        own_kafka.kill(1, how)
        gone_at = time.time()
        own_kafka.restart(1)
        back_at = time.time()
        eventually(lambda: acked and any(e["at"] > back_at for e in world.ledger.entries()), 60, "jobs flow again")
        goal = len(acked) + 50
        eventually(lambda: len(acked) > goal, 60, "jobs are published again")
    eventually(lambda: set(acked) <= set(world.ends()), 60, "all jobs done")
    assert worker.stop() == 0

    counts = Counter(world.ends())
    repeats = {n for n, count in counts.items() if count > 1}
    around = {entry["n"] for entry in world.ledger.entries() if gone_at - 1.0 < entry["at"] < back_at + 1.0}
    print(f"\n{how.name} of the broker: away for {back_at - gone_at:.1f} s, {len(acked):,} acknowledged jobs ran, {len(repeats)} twice")
    assert repeats <= around


def test_coordinators_answer_after_their_broker_has_restarted(own_story: Callable[..., Story], own_kafka: Any) -> None:  # edge 34
    """What a dashboard asks all day, through two restarts. *Bites*: the client remembers a coordinator that it has forgotten as a
    broker, so that nothing answers any more; and the second restart ends the whole process (`kafka/coordinators.py`)."""
    world = own_story()
    world.publish_many("step", [{"n": 1}])
    worker = world.worker()
    eventually(lambda: world.count("end") == 1, 60, "the job ran")
    assert worker.stop() == 0
    asked, group = world.app.broker.admin(), world.app.group
    eventually(lambda: asked.committed(group), 10, "its commit is there")

    for _ in range(2):
        own_kafka.kill(1, signal.SIGTERM)
        own_kafka.restart(1)
        eventually(lambda: answered(lambda: asked.groups([group])[group].state == "empty"), 10, "the group is described")
        eventually(lambda: answered(lambda: asked.committed(group)), 10, "its commit is read")


@pytest.mark.parametrize("away_s", [12, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_a_broker_that_does_not_answer(own_story: Callable[..., Story], own_kafka: Any, away_s: int) -> None:  # edge 37
    """
    The broker's process is frozen for longer than a session: connections stand and nobody answers. Retries can't be written, nothing
    can be committed. The worker keeps what it has, says what is wrong, uses hardly any processor time, and goes on afterwards.
    """
    world = own_story(STREAMJOBS_WORKER__SESSION_TIMEOUT="6s")
    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    world.spread("failing", [{"n": n, "fails": 0} for n in range(200)])
    eventually(lambda: len(set(world.ends())) == 200, 60, "jobs flow")
    eventually(lambda: probe(port, "/readyz")[0] == 200, 30, "it is ready")
    # So few that no breaker opens, though each fails twice: it is redelivered, since nobody could write down that it had failed.
    world.spread("failing", [{"n": 1_000 + n, "fails": 1, "ms": 1_000} for n in range(9)])
    eventually(lambda: world.count("start") >= 209, 30, "jobs run that will have to be retried")

    own_kafka.suspend(1)
    try:
        used, began = cpu_s(worker), time.monotonic()
        eventually(lambda: time.monotonic() - began > away_s, away_s + 10, "an outage longer than a session")
        share = (cpu_s(worker) - used) / (time.monotonic() - began)
        ready, reasons = probe(port, "/readyz")
        healthy, _ = probe(port, "/healthz")
    finally:
        own_kafka.resume(1)
    eventually(lambda: set(world.ends()) == {*range(200), *range(1_000, 1_009)}, 90, "all jobs done")
    world.spread("failing", [{"n": 2_000 + n, "fails": 0} for n in range(100)])
    eventually(lambda: len(set(world.ends())) == 309, 60, "jobs flow again")
    eventually(lambda: probe(port, "/readyz")[0] == 200, 60, "it is ready again")
    assert worker.stop() == 0

    twice = sum(count > 1 for count in Counter(world.ends()).values())
    print(f"\nno answer for {away_s} s: {share:.0%} of a core, /readyz {ready} {reasons}, /healthz {healthy}; all 309 jobs ran, {twice} twice")
    assert share < LITTLE
    assert ready == 503 and healthy == 200
    assert any("can't be written to" in reason for reason in reasons.values())


def test_a_topic_that_is_deleted_under_the_worker_and_made_again(own_story: Callable[..., Story]) -> None:  # edge 31
    """
    The new topic repeats the old one's offsets. A worker that went on from where it was would skip as many jobs as it had run; one
    that goes by the name alone never hears of the new topic at all.
    """
    world = own_story(partitions=2)
    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    world.spread("step", [{"n": n} for n in range(500)])
    eventually(lambda: len(set(world.ends())) == 500, 60, "the first topic's jobs")

    broker_admin = world.app.broker.admin()
    broker_admin.delete_topics([world.main])
    eventually(lambda: world.main not in broker_admin.topics([world.main]), 30, "the topic is gone")
    used, began = cpu_s(worker), time.monotonic()
    provision.require(world.app)
    world.spread("step", [{"n": 1_000 + n} for n in range(500)])
    eventually(lambda: set(world.ends()) >= set(range(1_000, 1_500)), 60, "the new topic's jobs")
    share = (cpu_s(worker) - used) / (time.monotonic() - began)
    eventually(lambda: probe(port, "/readyz")[0] == 200, 60, "it is ready")
    print(f"\na topic made again under its worker: its 500 jobs were done after {time.monotonic() - began:.1f} s, {share:.0%} of a core")
    counts = Counter(world.ends())
    assert set(counts) == {*range(500), *range(1_000, 1_500)} and max(counts.values()) == 1
    assert worker.stop() == 0


def test_a_retry_topic_that_is_missing_at_run_time(own_story: Callable[..., Story]) -> None:  # edge 32
    """Jobs that need it keep their places, the others run; `/readyz` names the topic; once it is there, they go on. No letter is written."""
    world = own_story(partitions=2)
    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    world.spread("step", [{"n": n} for n in range(100)])
    eventually(lambda: len(set(world.ends())) == 100, 60, "jobs flow")
    world.app.broker.admin().delete_topics([world.retry])
    eventually(lambda: world.retry not in world.app.broker.admin().topics([world.retry]), 30, "the retry topic is gone")

    world.spread("failing", [{"n": 1_000 + n, "fails": 1} for n in range(10)])
    eventually(lambda: any(world.retry in name for name in probe(port, "/readyz")[1]), 60, "/readyz names the topic")
    world.spread("step", [{"n": 100 + n} for n in range(100)])
    eventually(lambda: set(world.ends()) == set(range(200)), 60, "other jobs run")
    used, began = cpu_s(worker), time.monotonic()
    eventually(lambda: time.monotonic() - began > 4, 10, "a while to spin in")
    share = (cpu_s(worker) - used) / (time.monotonic() - began)

    provision.require(world.app)
    eventually(lambda: set(world.ends()) == {*range(200), *range(1_000, 1_010)}, 90, "the failed jobs' second runs")
    eventually(lambda: probe(port, "/readyz")[0] == 200, 60, "it is ready again")
    assert worker.stop() == 0
    print(f"\nno retry topic: 10 failed jobs kept their places, 100 others ran, {share:.0%} of a core; with it all went on")
    assert share < LITTLE
    assert world.records(world.dead) == []
    assert max(Counter(world.ends()).values()) == 1


@pytest.mark.parametrize("transactional", ["0", "1"], ids=["acknowledged", "transactional"])
def test_a_job_too_large_for_the_retry_topic_is_a_letter(own_story: Callable[..., Story], transactional: str) -> None:  # edge 43
    """Tried again and again it would block its place for ever; dropped, it would be lost. It is a letter, with its value whole. The
    five small ones that fail beside it, and share its batches, run again."""
    world = own_story(partitions=1, TRANSACTIONAL=transactional)
    worker = world.worker()
    world.publish_many("step", [{"n": 0}])
    eventually(lambda: world.ends() == [0], 60, "jobs flow")
    world.app.broker.admin().alter_topic_config(world.retry, {"max.message.bytes": "3000"})
    world.publish_many("failing", [{"n": 1, "fails": 1, "ballast": "x" * 10_000}, *({"n": n, "fails": 1, "ballast": ""} for n in range(2, 7))])
    eventually(lambda: world.records(world.dead), 60, "a letter")
    eventually(lambda: set(world.ends()) == {0, *range(2, 7)}, 60, "the small ones' second runs")
    assert worker.stop() == 0

    (letter,) = world.records(world.dead)
    headers = dict(letter.headers() or [])
    print(f"\ntoo large for the retry topic: a letter of {len(letter.value() or b''):,} bytes, reason {headers['sj_reason'].decode()}")
    assert headers["sj_reason"] == b"too_large" and len(letter.value() or b"") > 10_000
    assert transactional == "1" or world.committed()[0] == 7


def test_offsets_that_the_broker_forgot(own_story: Callable[..., Story]) -> None:  # edge 28
    """
    A group was away for longer than the broker keeps its offsets. Guessing `earliest` would run 500 payments again, `latest` would
    skip what came meanwhile. So nothing is read, `/readyz` says so, and an order decides.
    """
    world = own_story(partitions=2)
    worker = world.worker()
    world.spread("step", [{"n": n} for n in range(500)])
    world.publish_many("elsewhere", [{"n": 10_000}])
    eventually(lambda: len(set(world.ends())) == 501, 60, "the jobs before")
    assert worker.stop() == 0
    forget(world)
    world.spread("step", [{"n": 500 + n} for n in range(100)])

    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    eventually(lambda: len(not_read(port)) == 4, 60, "/readyz says what it does not read")
    reasons = not_read(port)
    assert len(world.starts()) == 501
    plan = admin.plan_seek(world.app, world.app.group, "earliest")
    admin.apply_seek(world.app, plan, reason="its offsets are gone")
    eventually(lambda: set(world.ends()) >= set(range(600)), 60, "jobs flow again")
    eventually(lambda: probe(port, "/readyz")[0] == 200, 60, "it is ready again")
    assert worker.stop() == 0
    print(f"\nforgotten offsets: {reasons}; after `seek --to earliest` {len(world.ends()) - 501} jobs ran, 501 of them again")


def not_read(port: int) -> list[str]:
    return [f"{where} {why}" for where, why in probe(port, "/readyz")[1].items() if "is not read" in why]


def forget(world: Story) -> None:
    """As the broker does after `offsets.retention.minutes` without a member: the group and its commits are gone."""
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": world.env["STREAMJOBS_BOOTSTRAP"]})
    for future in client.delete_consumer_groups([world.app.group]).values():
        future.result(10)
