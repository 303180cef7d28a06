"""The timer: what comes down the ladder is the job that was put on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamjobs import App, Job, orders
from streamjobs.broker import TopicPartition
from streamjobs.core import control
from streamjobs.core.record import Record
from streamjobs.job import JobType
from streamjobs.telemetry.metrics import merge
from streamjobs.testing.app import Testing


def reminding() -> tuple[App, JobType[..., None], list[int]]:
    """An app with one job type, and which of its jobs ran."""
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job
    def remind(n: int) -> None:
        ran.append(n)

    return app, remind, ran


def test_a_delayed_job_keeps_its_origin(streamjobs_testing: Callable[[App], Testing]) -> None:
    """Its first record lies in a tier; whichever record it runs from says so, and when that one was appended.

    What bit: each move made a new identity, so that a copy that a timer's death left behind was never known as one.
    """
    app = App("shop", partitions=1)
    seen: list[tuple[str, float]] = []

    @app.job
    def remind(job: Job, n: int) -> None:
        seen.append((job.origin, job.first_appended_at))

    t = streamjobs_testing(app)
    receipt = remind.options(delay="10m").publish(n=1)
    published = t.clock.now()
    t.run()

    (origin, appended), = seen
    assert receipt.topic == app.names.delay("shop", "4m")
    assert (origin.partition("@")[0], *map(int, origin.split("/")[1:])) == (receipt.topic, receipt.partition, receipt.offset)
    assert abs(appended - published) < 0.01


def test_it_takes_in_orders_though_nothing_is_delayed(streamjobs_testing: Callable[[App], Testing]) -> None:
    """*Bites*: asked for only where a record is moved, they gather for as long as the process lives."""
    app = App("shop", partitions=1)

    @app.job
    def remind(n: int) -> None: ...

    t = streamjobs_testing(app)
    t.run()
    for number in range(20):
        value = control.pause_value(actor="ann", reason="", at=0.0)
        orders.write(t.broker, app.names, {control.pause_queue_key(f"q{number}", "o1"): value})
    t.run()
    t.advance(1)
    t.run()

    timer = t.process.timer
    assert timer is not None and timer._desired._read.empty()


def test_a_cancel_reaches_a_job_that_waits_in_the_ladder(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The order is younger than the job's first record and older than the one it runs from."""
    app, remind, ran = reminding()
    t = streamjobs_testing(app)
    remind.options(delay="10m", id="r-1").publish(n=1)
    t.advance(60)
    order = control.cancel_value(actor="t", reason="test", at=t.clock.now(), until=t.clock.now() + 86_400)
    orders.write(t.broker, app.names, {control.cancel_key("shop", "r-1", "1"): order})
    t.run()

    assert ran == []


def test_an_outage_shorter_than_a_minute_makes_nothing_later(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The destination refuses twice and is back: the job runs then, not a minute later.

    What bit: the first failure's instant was read from another clock than "now", so every failure was a minute old at once.
    """
    app = App("shop", partitions=1)
    ran: list[float] = []

    @app.job
    def remind(n: int) -> None:
        ran.append(t.clock.now())

    t = streamjobs_testing(app)
    due = t.clock.now() + 10
    remind.options(delay="10s").publish(n=1)
    t.broker.fail("send", topic=app.names.main("default"), error="_MSG_TIMED_OUT", times=2)
    for _ in range(200):
        t.run(through_delays=False)
        t.advance(0.1)

    assert len(ran) == 1
    assert due <= ran[0] < due + 1
    assert not t.process.timer or not t.process.timer.undeliverable


def test_a_destination_that_stays_away_makes_room(streamjobs_testing: Callable[[App], Testing]) -> None:
    """After a minute the record goes back into a tier; it arrives when the destination is there again."""
    app, remind, ran = reminding()
    t = streamjobs_testing(app)
    remind.options(delay="10s").publish(n=1)
    fault = t.broker.fail("send", topic=app.names.main("default"), error="TOPIC_AUTHORIZATION_FAILED", times=None)
    for _ in range(110):
        t.run(through_delays=False)
        t.advance(1)
    timer = t.process.timer
    assert timer is not None
    assert list(timer.undeliverable) == [app.names.main("default")]

    fault.lift()
    for _ in range(130):
        t.run(through_delays=False)
        t.advance(1)
    assert ran == [1]
    assert not timer.undeliverable


def test_nothing_goes_where_nobody_is_registered(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 44
    """A header names the destination, and anyone may write one: what is no job topic of a group is none, though it is there."""
    app = App("shop", partitions=1)
    app.job(name="remind")(lambda: None)
    t = streamjobs_testing(app)
    t.broker.create("elsewhere")
    due = round((t.clock.now() + 10) * 1000)
    headers = [("ce_type", b"remind"), ("sj_due", b"%d" % due), ("sj_next", b"elsewhere")]
    t.produce(Record(app.names.delay("shop", "5s"), b"", headers=headers, partition=0))
    for _ in range(30):
        t.run(through_delays=False)
        t.advance(1)
    timer = t.process.timer
    assert timer is not None
    assert t.broker.records("elsewhere") == []
    assert "no registered topic" in str(timer.undeliverable["elsewhere"])


@pytest.mark.parametrize("transactional", [False, True])
def test_many_that_can_not_leave_hold_up_nobody_else(streamjobs_testing: Callable[[App], Testing], transactional: bool) -> None:
    """
    One queue's topic is gone while three windows full of its jobs wait in a ladder partition, and one job of another queue behind them.
    What bit: each window waited for a minute of its own before it made room.
    """
    app = App("shop", partitions=1, transactional=transactional, **{"worker.window": 40})
    ran: list[tuple[str, float]] = []

    @app.job(queue="gone")
    def lost(n: int) -> None:
        ran.append(("lost", t.clock.now()))

    @app.job(queue="mails")
    def mail(n: int) -> None:
        ran.append(("mail", t.clock.now()))

    t = streamjobs_testing(app)
    due = t.clock.now() + 10
    lost.options(delay="10s", key="same").publish_many([(n,) for n in range(1_100)])
    mail.options(delay="10s", key="same").publish(n=1)
    fault = t.broker.fail("send", topic=app.names.main("gone"), error="UNKNOWN_TOPIC_OR_PART", times=None)
    for _ in range(200):
        t.run(through_delays=False)
        t.advance(0.2)
    assert [what for what, _ in ran] == ["mail"]
    assert ran[0][1] < due + 10

    fault.lift()
    for _ in range(140):
        t.run(through_delays=False)
        t.advance(1)
    assert len(ran) == 1_101


def test_delayed_jobs_that_were_deleted_are_counted(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 29
    """Retention took them, or DeleteRecords. What bit: a line in the log, and no alert; the timer told of nothing at all."""
    app = App("shop", partitions=1)

    @app.job
    def remind(job: Job, n: int) -> None: ...

    t = streamjobs_testing(app)
    receipts = [remind.options(delay="10m", key="k").publish(n=n) for n in range(3)]
    where = TopicPartition(receipts[0].topic, receipts[0].partition)
    t.broker.admin().delete_records({where: receipts[-1].offset})
    t.restart()
    t.run()
    t.advance(1)
    t.run()

    seen = merge(t.process.snapshots())
    assert seen.counters["jobs_deleted_total", (where.topic, "shop.timer")] == 2
    assert seen.counters["commits_total", ("shop.timer", "ok")] > 0
    assert seen.gauges["worker_last_progress_timestamp_seconds", ("shop.timer", "delay")] == pytest.approx(t.clock.now(), abs=2)


def test_delayed_jobs_that_were_deleted_under_a_timer_stop_no_others(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 27
    """The client says once that what it was to read is gone, and reads nothing more of that partition until it is told where."""
    app, remind, ran = reminding()
    t = streamjobs_testing(app)
    t.run()
    timer = t.process.timer
    assert timer is not None
    receipts = [remind.options(delay="10m", key="k").publish(n=n) for n in range(3)]
    where = TopicPartition(receipts[0].topic, receipts[0].partition)
    timer.poller.consumer.pause([where])
    t.broker.admin().delete_records({where: receipts[-1].offset})
    timer.poller.consumer.seek(where, receipts[0].offset)
    timer.poller.consumer.resume([where])
    for _ in range(3):
        t.run(through_delays=False)
    t.run()

    assert ran == [2]


def test_a_clock_that_is_set_back_holds_no_record_longer_than_its_tier(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 49, 50
    """What bit: for as long as it was set back nothing left the timer's memory, and of a partition that had filled it nothing else did."""
    app = App("shop", partitions=1)

    @app.job
    def remind(n: int) -> None: ...

    t = streamjobs_testing(app)
    remind.options(delay="10m").publish(n=1)
    t.run(through_delays=False)
    t.clock.jump(-3600)
    timer = t.process.timer
    assert timer is not None
    t.advance(239)
    t.run(through_delays=False)
    assert timer.moved == 0
    t.advance(2)
    t.run(through_delays=False)
    assert timer.moved == 1
    assert len(t.broker.records(app.names.delay("shop", "1h"))) == 1, "by the clock as it is now, there is more than an hour left"
