"""Sequences of events that a review found: each lost a job, ran one twice, stopped a partition, or ended a worker."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamjobs import App, Backoff, Job, JobTypeError, Retry
from streamjobs.avro.store import SchemaStore
from streamjobs.broker import TopicPartition
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Meta, Record
from streamjobs.job import CURRENT, Outbox
from streamjobs.testing.app import Testing
from streamjobs.worker.admit import COPIES, FORGET
from streamjobs.worker.decode import Decoder, Undecodable
from streamjobs.worker.executors import Gate
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.executors.threads import run_chunk
from streamjobs.worker.settle import slimmed

from .jobs import ByHand, Message

OnMemory = Callable[[App], Testing]
MAIN = TopicPartition("jobs.mails", 0)
PLAIN = {
    "ce_type": b"mail", "ce_id": b"1", "ce_specversion": b"1.0", "ce_source": b"s", "ce_time": b"t", "content-type": b"application/avro",
}  # fmt: skip


def rounds(t: Testing, count: int, seconds: float) -> None:
    for _ in range(count):
        t.run(raise_errors=False, through_delays=False)
        t.advance(seconds)
    t.run(raise_errors=False, through_delays=False)


def test_a_breaker_that_opens_with_nothing_at_hand_lets_a_probe_through(on_memory: OnMemory) -> None:
    """The 20th failure was the last job at hand: none is held, the queue is not read, so none is ever tried."""
    app = App("shop", partitions=1)
    world: dict[str, Any] = {"broken": True, "ran": 0}

    @app.job(queue="mails", retry=Retry(attempts=15, backoff=Backoff.fixed("10m")))
    def mail(n: int) -> None:
        if world["broken"]:
            raise ConnectionError("down")
        world["ran"] += 1

    t = on_memory(app)
    mail.publish_many([(n,) for n in range(20)])
    t.run(raise_errors=False, through_delays=False)
    world["broken"] = False
    t.advance(0.1)
    t.run(through_delays=False)
    mail.publish_many([(n,) for n in range(50)])
    t.run(through_delays=False)
    assert world["ran"] == 0, "the breaker is open, and it is too early for a probe"
    t.advance(31)
    for _ in range(4):
        t.run(through_delays=False)
        t.advance(0.1)
    assert world["ran"] == 50


def test_a_partition_leaves_before_it_is_looked_up_again(on_memory: OnMemory) -> None:
    """Its topic is made anew: it is to begin again at the next fetch, and that fetch tells that it is another worker's."""
    app = App("shop", partitions=1)

    @app.job(queue="mails")
    def mail(n: int) -> None: ...

    t = on_memory(app)
    t.run()
    loop = t.process.loops[0]
    consumer: Any = loop.poller.consumer
    for leave in (loop.poller.revoked, loop.poller.lost):
        loop.poller.assigned([MAIN])
        loop.poller.begin_again([MAIN])
        leave([MAIN])
        consumer._positions.pop(MAIN, None)
        loop.turn()
        assert MAIN not in loop.poller.partitions


def test_a_revoke_inside_a_fetch_commits_nothing_that_was_not_seen(on_memory: OnMemory) -> None:
    """The client has taken records of an idle partition out of its queue when it meets the revoke of another: its position is past
    them, and a transaction that settles the leaving partition asked it for that position."""
    app = App("shop", partitions=2, transactional=True)
    ran: list[int] = []

    @app.job(queue="mails", key="n", name="mail")
    def mail(n: int) -> None:
        ran.append(n)

    t = on_memory(app)
    mail.publish_many([(n,) for n in range(20)])
    t.run()
    loop = t.process.loops[0]
    consumer: Any = loop.poller.consumer
    fetch = consumer.fetch

    def fetch_and_meet_a_revoke(limit: int, timeout: float) -> Any:
        messages = fetch(limit, timeout)
        if messages:
            left = ({0, 1} - {messages[0].partition()}).pop()
            loop.poller.revoked([TopicPartition("jobs.mails", left)])
            consumer.fetch = fetch
        return messages

    consumer.fetch = fetch_and_meet_a_revoke
    mail.publish(n=7)
    t.run()
    assert ran[20:] == [7]


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "ce_type"])
@pytest.mark.parametrize("value", [None, b"y" * 2000])
def test_six_headers_of_a_stranger_are_read_with_care(name: str, value: bytes | None) -> None:
    """One without a value ended the loop, and every loop that came after it; one that is too long, once its job failed."""
    app = App("shop")

    @app.job(queue="mails")
    def mail(n: int) -> None: ...

    decoder = Decoder(app.job_types, SchemaStore())
    home = Partition("jobs.mails", 0, "mails", retry=False, topic_id=b"1234", epoch=1, tracker=None)
    decoder._store.add(mail.payload.avro)
    headers: Any = list((dict[str, Any](PLAIN) | {name: value}).items())
    message = Message(0, headers=headers)
    message.value = lambda: mail.payload.encode({"n": 1})  # type: ignore[method-assign]
    found = decoder.decode(message, home)
    if isinstance(found, Undecodable):
        assert found.kind == "undecodable"
    else:
        assert found.full_meta.job_type == "mail"


def test_six_headers_with_a_due_time_are_not_taken_for_plain(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(queue="mails")
    def mail(n: int) -> None:
        ran.append(n)

    t = on_memory(app)
    due = b"%d" % int((t.clock.now() + 600) * 1000)
    headers = [("ce_type", b"mail"), ("ce_id", b"1"), ("sj_due", due), ("ce_source", b"s"), ("ce_time", b"t"), ("content-type", b"application/avro")]
    t.produce(Record("jobs.mails", mail.payload.encode({"n": 1}), None, headers))
    t.run(through_delays=False)
    assert ran == []
    t.run()
    assert ran == [1]


def test_a_parked_head_is_committed_though_nothing_finishes(on_memory: OnMemory) -> None:
    """It fails four times in place, nothing else ends in its partition, the worker is killed: the next one reads attempt 5, not 1."""
    app = App("shop", partitions=1)
    seen: list[int] = []

    @app.job(queue="mails", key="k", order="key_strict", retry=Retry(attempts=9, backoff=Backoff.fixed("5s")))
    def mail(job: Job, k: str) -> None:
        seen.append(job.attempt)
        raise ValueError(k)

    t = on_memory(app)
    mail.publish(k="a")
    rounds(t, 3, 5)
    rounds(t, 3, 0.6)
    assert seen == [1, 2, 3, 4]
    t.restart()
    t.run(raise_errors=False, through_delays=False)
    assert seen[4:] == [5]


def test_strict_order_and_a_thread_that_can_not_be_ended() -> None:
    """Settled while it goes on, the head ran again beside itself; when its first run ended well, the job left its lane and came back
    into it behind its successor: both ran again."""
    app = App("shop")
    with pytest.raises(JobTypeError, match="key_strict"):

        @app.job(key="k", order="key_strict", timeout="1s", on_timeout="retry")
        def mail(k: str) -> None: ...


class Copied:
    """What `_is_copy` looks at."""

    def __init__(self, home: Partition, offset: int) -> None:
        self.home, self.offset = home, offset
        self.full_meta = Meta("mail", origin=f"t@00000000/0/{offset}")


def test_a_slow_job_at_the_base_does_not_keep_all_identities(on_memory: OnMemory) -> None:
    """The others finish; only those are kept that are unfinished or among the youngest."""
    app = App("shop", partitions=1)

    @app.job(queue="mails")
    def mail(n: int) -> None: ...

    t = on_memory(app)
    t.run()
    loop = t.process.loops[0]
    home = loop.poller.partitions[MAIN]
    for offset in range(5 * COPIES):
        home.tracker.receive(offset)
        assert not loop.arrivals._is_copy(Copied(home, offset))  # type: ignore[arg-type]
        if offset:
            home.tracker.finish(offset)
    assert len(home.copies) <= COPIES + FORGET + 1
    assert loop.arrivals._is_copy(Copied(home, 0)), "the slow one is still known"  # type: ignore[arg-type]
    assert loop.arrivals._is_copy(Copied(home, 5 * COPIES - 1))  # type: ignore[arg-type]


def test_what_the_timer_holds_is_bounded_in_bytes(on_memory: OnMemory) -> None:
    """Large delayed jobs: by their number alone, a partition of the ladder could hold 10 GB in memory."""
    app = App("shop", partitions=1, worker={"window_bytes": 100_000})
    ran: list[int] = []

    @app.job(queue="mails")
    def mail(n: int, text: str) -> None:
        ran.append(n)

    t = on_memory(app)
    mail.options(delay="1h").publish_many([(n, "x" * 1_000) for n in range(3000)])
    t.run(through_delays=False)
    timer = t.process.timer
    assert timer is not None
    assert len(list(timer._waiting)) < 2500, "it stopped reading"
    t.run()
    assert sorted(ran) == list(range(3000))


def test_only_letters_are_slimmed() -> None:
    """Without `sj_next`, a held job that is too large would go round in the ladder for ever."""
    headers = [("ce_type", b"mail"), ("sj_due", b"1"), ("sj_next", b"jobs.mails"), ("traceparent", b"x")]
    waiting = Record("streamjobs.shop.delay.1m", b"x", None, headers)
    assert slimmed(waiting) is None
    letter = Record("jobs.mails.shop.dlt", b"x", b"k", [("ce_type", b"mail"), ("traceparent", b"x")])
    assert slimmed(letter) is not None


def test_a_child_job_that_a_forked_process_publishes_is_not_put_where_nobody_looks(on_memory: OnMemory) -> None:
    """A handler of a transactional app forks (ProcessPoolExecutor does), and the child publishes: with the outbox of its parent it
    got a receipt for a job that nobody would ever send."""
    app = App("shop", partitions=1, transactional=True)

    @app.job(queue="mails")
    def mail(n: int) -> None: ...

    on_memory(app)
    publisher = app.publisher
    assert isinstance(publisher.outbox, Outbox)
    hand = ByHand()
    CURRENT.set(hand.job(mail, {"n": 1}))
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if publisher.outbox is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        CURRENT.set(None)
    assert publisher.outbox is not None


def test_an_async_publisher_keeps_the_trace_of_its_task(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")
    seen = []

    @app.job(queue="mails")
    def mail(n: int) -> None: ...

    on_memory(app)

    def send(topic: str, headers: list[tuple[str, bytes]], **of: Any) -> Any:
        seen.append(trace.get())
        return headers, lambda *_: None

    app.publisher.trace = send

    async def publish() -> None:
        trace.set("mine")
        await mail.publish_async(n=1)

    asyncio.run(publish())
    assert seen == ["mine"]


@pytest.fixture
def aio() -> Iterator[Aio]:
    executor = Aio(1, Gate())
    yield executor
    executor.stop(5)


def test_a_cancellation_leaves_nothing_for_the_next_job(aio: Aio) -> None:
    """A handler that cleans up for longer than the loop's next looks is cancelled once, and the next job of its task not at all: a
    task group in it would have raised CancelledError in place of its failure."""
    hand = ByHand()
    app = App("shop")
    began, pause, cleaned = threading.Event(), threading.Event(), []

    @app.job
    async def slow() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            cleaned.append(True)

    @app.job
    async def grouped() -> None:
        async def fail() -> None:
            raise ValueError("mine")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    first, second = hand.job(slow, {}), hand.job(grouped, {})
    aio.submit(hand.chunk([first, second]))
    assert began.wait(10)
    first.cancel()
    for _ in range(4):
        aio.cancel(first)
        pause.wait(0.03)
    done = hand.result().done
    assert [job.id for job in done] == [first.id, second.id]
    assert cleaned == [True]
    assert isinstance(second.error, ExceptionGroup)


def test_a_fault_between_jobs_loses_none() -> None:
    """An exception that something throws into the thread just before a handler starts: the job runs elsewhere, and its key goes on."""
    hand = ByHand()
    app = App("shop")
    ran = []

    @app.job
    def mail(n: int) -> None:
        ran.append(n)

    jobs = hand.jobs(mail, [{"n": n} for n in range(3)])
    broken: Any = jobs[1]
    marks = iter([None, RuntimeError("thrown in"), None])

    class Row:
        def mark(self, *_: int) -> None:
            thrown = next(marks)
            if thrown is not None:
                raise thrown

        @property
        def cells(self) -> Row:
            return self

        def __setitem__(self, *_: int) -> None:
            self.mark()

        def clear(self) -> None: ...

    chunk = hand.chunk(jobs)
    run_chunk(chunk, Gate(), row=Row())  # type: ignore[arg-type]
    assert chunk.done == [jobs[0]]
    assert chunk.returned == [broken, jobs[2]]


def test_a_partition_that_was_full_of_bytes_is_read_again(on_memory: OnMemory) -> None:
    """Full by the bytes of its last batch, it was never read again, though all of it was finished."""
    app = App("shop", partitions=1, worker={"window_bytes": 100_000})
    ran: list[int] = []

    @app.job(queue="mails")
    def mail(n: int, text: str) -> None:
        ran.append(n)

    t = on_memory(app)
    mail.publish_many([(n, "x" * 1_000) for n in range(1000)])
    t.run()
    assert ran == list(range(1000))
