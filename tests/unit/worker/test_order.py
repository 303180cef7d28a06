"""Order and fairness: lanes by key, key_strict, partition."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamjobs import App, Backoff, Job, Retry
from streamjobs.core.dispatch import Dispatcher, Entry, Partition
from streamjobs.core.offsets import Tracker
from streamjobs.testing.app import Testing
from streamjobs.worker.executors import VISIT_JOBS

OnMemory = Callable[[App], Testing]


def test_a_failed_job_leaves_and_later_ones_of_its_key_pass(on_memory: OnMemory) -> None:  # edge 51
    """order="key", as documented: jobs of a key start in order, and a failed one loses its place."""
    app = App("shop", partitions=1)
    ran: list[tuple[str, int]] = []

    @app.job(queue="mails", key="k", retry=Retry(attempts=2, backoff=Backoff.fixed("1m")))
    def step(job: Job, k: str, n: int) -> None:
        ran.append((k, n))
        if n == 0 and job.attempt == 1:
            raise ValueError

    t = on_memory(app)
    step.publish_many([("a", 0), ("a", 1), ("a", 2)])
    t.run(raise_errors=False)
    assert ran == [("a", 0), ("a", 1), ("a", 2), ("a", 0)]


def test_key_strict_keeps_its_place_and_other_keys_go_on(on_memory: OnMemory) -> None:  # edge 51
    app = App("shop", partitions=1)
    ran: list[tuple[str, int, int]] = []

    @app.job(queue="mails", key="k", order="key_strict", retry=Retry(attempts=4, backoff=Backoff.fixed("10s")))
    def step(job: Job, k: str, n: int) -> None:
        ran.append((k, n, job.attempt))
        if k == "a" and n == 0 and job.attempt < 3:
            raise ValueError

    t = on_memory(app)
    step.publish_many([("a", 0), ("a", 1), ("b", 0), ("b", 1)])
    t.run(raise_errors=False)
    assert [entry for entry in ran if entry[0] == "a"] == [("a", 0, 1), ("a", 0, 2), ("a", 0, 3), ("a", 1, 1)]
    assert [entry[:2] for entry in ran[:3]] == [("a", 0), ("b", 0), ("b", 1)], "key b did not wait"
    assert t.broker.records("jobs.mails.shop.retry") == [], "a strict job never leaves its place"


def test_key_strict_counts_its_attempts_over_workers(on_memory: OnMemory) -> None:
    """Attempt 2 waits in place, a deploy comes: the next owner goes on with attempt 3, not with 1 from the header."""
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(queue="mails", key="k", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("30s")))
    def step(job: Job, k: str) -> None:
        ran.append((job.run, job.attempt))
        raise ValueError

    t = on_memory(app)
    step.publish("a")
    for _ in range(3):
        t.run(raise_errors=False, through_delays=False)
        t.advance(1)
        t.run(raise_errors=False, through_delays=False)
        t.process.close_by_hand()
        t._start()
        t.advance(30)
    t.run(raise_errors=False)
    assert ran == [(1, 1), (2, 2), (3, 3)]
    (letter,) = t.dead_letters("mails")
    assert (letter.reason, letter.attempt) == ("exhausted", 3)


def test_key_strict_gives_a_key_up_after_ten_minutes(on_memory: OnMemory) -> None:
    """Backoff in place is at most a minute, blocking at most ten: then the head is a letter and its key goes on."""
    app = App("shop", partitions=1)
    ran: list[tuple[int, float]] = []

    @app.job(queue="mails", key="k", order="key_strict", retry=Retry(attempts=1000, backoff=Backoff.fixed("1h")))
    def step(job: Job, k: str, n: int) -> None:
        ran.append((n, t.clock.now()))
        if n == 0:
            raise ValueError

    t = on_memory(app)
    step.publish_many([("a", 0), ("a", 1)])
    began = t.clock.now()
    t.run(raise_errors=False)
    assert [n for n, _ in ran] == [0] * (len(ran) - 1) + [1]
    assert 9 * 60 <= ran[-1][1] - began <= 11 * 60
    assert [letter.reason for letter in t.dead_letters("mails")] == ["exhausted"]


def test_a_partition_in_order(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(queue="mails", order="partition")
    async def step(n: int) -> None:
        ran.append(n)

    t = on_memory(app)
    step.publish_many([(n,) for n in range(300)])
    t.run()
    assert ran == list(range(300))


def test_a_hot_key_does_not_starve_another(on_memory: OnMemory) -> None:
    """5,000 jobs of one key wait; another key's job is handed out after a visit's worth of them, not after all."""
    app = App("shop", partitions=1)
    ran: list[str] = []

    @app.job(queue="mails", key="k")
    def step(k: str) -> None:
        ran.append(k)

    t = on_memory(app)
    t.run()
    step.publish_many([("hot",)] * 5000 + [("cold",)])
    loop = t.process.loops[0]
    for _ in range(30):
        loop._fetch()
    assert loop.poller.partitions["jobs.mails", 0].tracker.unfinished == 5001
    t.run()
    assert len(ran) == 5001
    assert ran.index("cold") <= VISIT_JOBS


class World:
    """A dispatcher with two partitions, and threads that run lanes as executors do."""

    def __init__(self) -> None:
        self.homes = [Partition("t", n, "q", retry=False, topic_id=b"", epoch=1, tracker=Tracker(0)) for n in range(2)]
        self.dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
        self.out: list[list[Entry]] = []
        self.started: dict[tuple[int, bytes | None], list[int]] = defaultdict(list)
        self.arrived = 0

    def arrive(self, home: Partition, lanes: list[bytes | None]) -> None:
        entries = []
        for lane in lanes:
            entry = Entry()
            entry.home, entry.epoch, entry.offset, entry.lane = home, 1, home.tracker.position, lane
            entry.next, entry.kind = None, "threads"
            home.tracker.receive(entry.offset)
            entries.append(entry)
        self.dispatcher.add_all(entries)
        self.arrived += len(lanes)

    def take(self, limit: int) -> None:
        if chunk := self.dispatcher.take("threads", limit):
            self.out.append(chunk)

    def end(self, place: int, rng: random.Random) -> None:
        """What a thread does with a chunk: some heads with part of their lanes; what its loop does then, `Execution.harvest` and after."""
        chunk = self.out.pop(place)
        ran = rng.randint(0, len(chunk)) if rng.random() < 0.3 else len(chunk)
        done, stops = [], []
        for head in chunk[:ran]:
            entry, left = head, rng.randint(1, 4)
            done.append(entry)
            while entry.next is not None and (left := left - 1):
                entry = entry.next
                done.append(entry)
            stops.append(entry)
        for entry in done:
            self.started[entry.home.number, entry.lane].append(entry.offset)
            entry.home.tracker.finish(entry.offset)
        if self.out or not self.dispatcher.all_stopped():
            self.dispatcher.stopped_all(stops)
        self.dispatcher.give_back(chunk[ran:])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(20, 200))
def test_lanes_keep_order_and_lose_nobody(seed: int, keys: int, count: int) -> None:
    """Any interleaving of arrivals, chunks, visits that stop early and entries handed back: within a key, starts are in the
    order of arrival; every entry runs exactly once; no lane is left behind."""
    rng = random.Random(seed)
    world = World()
    while world.arrived < count or world.out or world.dispatcher.count():
        action = rng.random()
        if action < 0.4 and world.arrived < count:
            lanes = [None if rng.random() < 0.1 else b"k%d" % rng.randrange(keys) for _ in range(rng.randint(1, 5))]
            world.arrive(rng.choice(world.homes), lanes)
        elif action < 0.7:
            world.take(rng.randint(1, 8))
        elif world.out:
            world.end(rng.randrange(len(world.out)), rng)
    for home in world.homes:
        ran = [offset for (number, _), offsets in world.started.items() if number == home.number for offset in offsets]
        assert sorted(ran) == list(range(home.tracker.position)) and home.lanes == {}
    assert all(offsets == sorted(offsets) for (_, lane), offsets in world.started.items() if lane is not None)


@pytest.mark.parametrize("round_", range(3))
def test_real_threads_follow_lanes_in_order(round_: int) -> None:
    """The hand-over between a loop that appends to a lane and a thread that leaves it: whoever sees `next` runs it, never both,
    never nobody (core/dispatch.py)."""
    from streamjobs.avro.codec import Payload
    from streamjobs.job import JobType
    from streamjobs.worker.executors import Chunk, Gate
    from streamjobs.worker.executors.threads import Threads

    starts: dict[bytes, list[int]] = defaultdict(list)
    home = Partition("t", 0, "q", retry=False, topic_id=b"", epoch=1, tracker=None)

    def handler(job: Job) -> None:
        starts[job.lane or b""].append(job.offset)

    job_type: JobType[Any, Any] = JobType(handler, name="h", queue="q", publisher=lambda: None)  # type: ignore[arg-type, return-value]
    assert isinstance(job_type.payload, Payload)
    dispatcher: Dispatcher[Job] = Dispatcher(["threads"])
    results: SimpleQueue[Chunk] = SimpleQueue()
    threads = Threads(4, Gate())
    rng = random.Random(round_)
    total, arrived, done, out = 20_000, 0, 0, 0
    while done < total:
        for _ in range(rng.randint(0, 50)):
            if arrived < total:
                dispatcher.add(Job.of(job_type, home, _Message(arrived), None, (), b"", b"k%d" % rng.randrange(3)))
                arrived += 1
        jobs = dispatcher.take("threads", 2)
        if jobs:
            threads.submit(Chunk("threads", jobs, results))
            out += 1
        while out and (out > 3 or arrived == total):
            chunk = results.get(timeout=10)
            out -= 1
            done += len(chunk.done)
            for last in chunk.stops:
                dispatcher.stopped(last)
            dispatcher.give_back(chunk.returned)
            break
    threads.stop(1)
    assert sum(map(len, starts.values())) == total
    assert all(offsets == sorted(offsets) for offsets in starts.values())
    assert threading.active_count() < 50


class _Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return (2, 0)
