"""What the README promises, where no other test says it as plainly: stories with an app, its workers and a broker in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from streamjobs import App, Backoff, Job, Retry, tables
from streamjobs.broker import Message
from streamjobs.core.duration import seconds
from streamjobs.core.record import Record
from streamjobs.testing import MemoryBroker
from streamjobs.worker.process import Process

Testing = Callable[[App], Any]
SOON = Retry(attempts=3, backoff=Backoff.fixed("1m"))


@contextmanager
def working(app: App) -> Iterator[Process]:
    """A worker process of the app, with its threads and its event loop."""
    process = app.process()
    process.start()
    try:
        yield process
    finally:
        process.stop()
        assert process.join(30) == 0


@pytest.fixture
def shop(memory: MemoryBroker) -> Iterator[App]:
    app = App("shop", partitions=2, provision="auto")
    app._broker = memory
    yield app
    app.close()


def letters(t: Any, queue: str = "default") -> list[Message]:
    return list(tables.live(t.broker, t.app.names.dead(queue, t.app.group)))


# --- at least once --------------------------------------------------------------------------------------------------------


def test_the_id_is_the_same_in_every_attempt(streamjobs_testing: Testing) -> None:  # edge 78
    """The caller's own or a made one: over retries, and through the dead letter."""
    app = App("shop")
    seen: list[tuple[str, int]] = []

    @app.job(retry=SOON)
    def fails(job: Job) -> None:
        seen.append((job.id, job.attempt))
        raise ValueError("never")

    t = streamjobs_testing(app)
    made = fails.publish().id
    fails.options(id="inv-7").publish()
    t.run(raise_errors=False)

    assert sorted(seen) == sorted((job_id, attempt) for job_id in (made, "inv-7") for attempt in (1, 2, 3))
    assert {letter.job_id for letter in t.dead_letters()} == {made, "inv-7"}


@pytest.mark.parametrize("delay", ["250ms", "10s", "10m", "2h30m", "89d"])
def test_a_delayed_job_runs_once_and_when_it_is_due(streamjobs_testing: Testing, delay: str) -> None:
    app = App("shop")
    at = []

    @app.job
    def later() -> None:
        at.append(t.clock.now())

    t = streamjobs_testing(app)
    began = t.clock.now()
    later.options(delay=delay).publish()
    t.run()

    assert len(at) == 1
    assert 0 <= at[0] - began - seconds(delay) < 1


def test_a_delayed_job_survives_its_worker(streamjobs_testing: Testing) -> None:
    """
    A job waits an hour. After ten minutes its worker is killed, and another one takes over.
    The job runs when it is due, once.
    """
    app = App("shop")
    at = []

    @app.job
    def later() -> None:
        at.append(t.clock.now())

    t = streamjobs_testing(app)
    due = t.clock.now() + 3600
    later.options(delay="1h").publish()
    t.run(through_delays=False)
    t.advance(600)
    t.broker.kill(*(loop.poller.consumer for loop in (*t.process.loops, t.process.timer)))
    t._process = app.process(clock=t.clock, executors=t._executors, errors=t.errors)
    t.process.start_by_hand()
    t.run(through_delays=False)
    t.advance(t.app.settings.worker.session_timeout + 1)
    t.run()

    assert len(at) == 1
    assert due <= at[0] < due + 6


def test_a_job_may_be_as_large_as_the_setting_says(embedded_url: str) -> None:
    """What `max_message_bytes` allows, the client sends, too."""
    app = App("shop", bootstrap=embedded_url, max_message_bytes=4 * 1024 * 1024)

    @app.job(queue="large", key="name")
    def keep(name: str, data: bytes) -> None: ...

    try:
        assert keep.publish(name="x", data=b"x" * 2_000_000).offset >= 0
    finally:
        app.close()


# --- order ----------------------------------------------------------------------------------------------------------------


def test_a_key_that_its_publisher_gives_keeps_its_order_too(shop: App, wait_until: Callable[..., None]) -> None:
    """Of a job type without one, by an option or by another program: the next job of a key begins when the one before it is over. Jobs
    without a key run beside them."""
    told: list[str] = []
    waiting = threading.Event()

    @shop.job
    def step(name: str) -> None:
        told.append(f"{name} begins")
        if name == "first":
            waiting.wait(20)
        told.append(f"{name} ends")

    with working(shop):
        step.options(key="acme").publish("first")
        step.options(key="acme").publish("second")
        step.publish("keyless")
        wait_until(lambda: "keyless ends" in told, 20)
        assert "second begins" not in told
        waiting.set()
        wait_until(lambda: "second ends" in told, 20)

    assert [line for line in told if "keyless" not in line] == ["first begins", "first ends", "second begins", "second ends"]


@pytest.mark.parametrize("kind", ["threads", "aio"])
def test_jobs_of_one_key_start_in_order(shop: App, wait_until: Callable[..., None], kind: str) -> None:
    """Twenty keys, fifty jobs each, all slots busy: each key's jobs start in the order in which they were published."""
    started: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()
    together: list[int] = []
    lock = threading.Lock()

    def begin(n: int, key: str) -> None:
        with lock:
            started[key].append(n)
            running.add(key)
            together.append(len(running))

    if kind == "threads":

        @shop.job(key="key")
        def step(n: int, key: str) -> None:
            begin(n, key)
            time.sleep(0.001 * (n % 3))
            running.discard(key)

    else:

        @shop.job(key="key", name="step")
        async def step(n: int, key: str) -> None:
            begin(n, key)
            await asyncio.sleep(0.001 * (n % 3))
            running.discard(key)

    with working(shop):
        step.publish_many([{"n": n, "key": f"k{n % 20}"} for n in range(1000)])
        wait_until(lambda: sum(map(len, started.values())) == 1000, 60)

    assert all(numbers == sorted(numbers) for numbers in started.values())
    assert max(together) > 1, "keys did not run side by side: this proves nothing"


def test_a_failed_job_leaves_and_later_ones_of_its_key_pass(streamjobs_testing: Testing) -> None:
    app = App("shop")
    seen: list[tuple[str, int]] = []

    @app.job(key="key", retry=SOON)
    def step(job: Job, name: str, key: str) -> None:
        seen.append((name, job.attempt))
        if name == "first" and job.attempt < 3:
            raise ValueError("not yet")

    t = streamjobs_testing(app)
    step.publish_many([{"name": name, "key": "a"} for name in ("first", "second")])
    t.run(raise_errors=False)

    assert seen == [("first", 1), ("second", 1), ("first", 2), ("first", 3)]


def test_a_strict_key_waits_for_its_failed_head_and_others_go_on(streamjobs_testing: Testing) -> None:
    app = App("shop", partitions=1)
    seen: list[tuple[str, int]] = []

    @app.job(key="key", order="key_strict", retry=SOON)
    def step(job: Job, name: str, key: str) -> None:
        seen.append((name, job.attempt))
        if name == "first" and job.attempt < 3:
            raise ValueError("not yet")

    t = streamjobs_testing(app)
    step.publish_many([{"name": "first", "key": "a"}, {"name": "second", "key": "a"}, {"name": "other", "key": "b"}])
    t.run(raise_errors=False)

    assert [name for name, _ in seen if name != "other"] == ["first", "first", "first", "second"]
    assert seen.index(("other", 1)) == 1


# --- dead letters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"\x00garbage\xff", [("ce_type", b"greet"), ("ce_id", b"x-1")], "undecodable"),
        (b"", [("ce_type", b"greet")], "undecodable"),
        (b"anything", [], "undecodable"),
        (b"anything", [("ce_type", b"greet"), ("sj_attempt", b"-1")], "undecodable"),
    ],
    ids=["bytes", "empty value", "no type", "hostile header"],
)
def test_what_cannot_run_is_a_dead_letter_with_its_original_bytes(
    streamjobs_testing: Testing, value: bytes, headers: list[tuple[str, bytes]], reason: str
) -> None:  # edge 61
    """And the jobs around it run."""
    app = App("shop", partitions=1)
    ran: list[str] = []

    @app.job
    def greet(name: str) -> None:
        ran.append(name)

    t = streamjobs_testing(app)
    greet.publish("before")
    producer = t.broker.producer()
    producer.send(Record("jobs.default", value, b"key", headers))
    producer.flush(1)
    greet.publish("after")
    t.run()

    (letter,) = letters(t)
    found = dict(letter.headers() or ())
    assert ran == ["before", "after"]
    assert (letter.value(), found["sj_key"], found["sj_reason"].decode()) == (value, b"key", reason)
    assert found["sj_error_type"]
