"""What may not run now: breakers and pauses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamjobs import App, Backoff, Job, Retry, orders
from streamjobs.broker import TopicPartition
from streamjobs.core import control
from streamjobs.core.record import Meta
from streamjobs.testing.app import Testing


def pause_type(t: Testing, app: App, job_type: str, until: float | None = None) -> str:
    key = control.pause_type_key(app.name, job_type, "1")
    orders.write(t.broker, app.names, {key: control.pause_value(actor="t", reason="test", at=t.clock.now(), until=until)})
    return key


def test_a_type_that_always_fails_is_held_and_others_go_on(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 52
    """Of 500 jobs whose handler is broken, 20 fail before the breaker opens; the other type's jobs all run, and once
    the handler works again a probe lets the rest through."""
    app = App("shop")
    world: dict[str, Any] = {"broken": True, "calls": 0, "good": 0}

    @app.job(queue="mails", retry=Retry(attempts=15, backoff=Backoff.fixed("1h")))
    def broken(n: int) -> None:
        world["calls"] += 1
        if world["broken"]:
            raise ConnectionError("down")

    @app.job(queue="mails")
    def good(n: int) -> None:
        world["good"] += 1

    t = streamjobs_testing(app)
    broken.publish_many([(n,) for n in range(500)])
    good.publish_many([(n,) for n in range(500)])
    t.run(raise_errors=False, through_delays=False)

    assert world["good"] == 500
    assert world["calls"] < 60, "a chunk may be under way when the breaker opens, no more"
    assert not t.dead_letters()

    world["broken"] = False
    failed = world["calls"]
    for _ in range(8):
        t.advance(31)
        t.run(through_delays=False)
    assert world["calls"] >= 500, f"{failed} failed before, the rest ran after the probe"
    t.advance(3700)
    t.run()
    assert world["calls"] == 500 + failed


def test_a_breaker_tries_no_job_that_has_expired(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The type is broken for longer than its jobs are of use. They end, and the probe is one of those that still are."""
    app = App("shop", partitions=1)
    ran: list[int] = []
    broken = [True]

    @app.job(queue="codes", retry=Retry(attempts=15, backoff=Backoff.fixed("1h")))
    def code(n: int) -> None:
        if broken[0]:
            raise ConnectionError("down")
        ran.append(n)

    t = streamjobs_testing(app)
    code.publish_many([(n,) for n in range(20)])
    t.run(raise_errors=False, through_delays=False)
    code.options(expires="20s").publish_many([(n,) for n in range(20, 60)])
    code.publish(n=60)
    t.run(raise_errors=False, through_delays=False)

    broken[0] = False
    t.advance(31)
    t.run(through_delays=False)

    assert ran == [60]
    counters = t.process.loops[0].metrics.snapshot().counters
    assert counters["jobs_completed_total", ("codes", "code", "expired")] == 40


def test_a_breaker_opens_to_a_probe_though_the_clock_was_set_back(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 50
    """What bit: set back by an hour, nothing of the type was tried for an hour."""
    app = App("shop", partitions=1)
    world: dict[str, Any] = {"broken": True, "calls": 0}

    @app.job(queue="mails", retry=Retry(attempts=15, backoff=Backoff.fixed("2h")))
    def broken(n: int) -> None:
        world["calls"] += 1
        if world["broken"]:
            raise ConnectionError("down")

    t = streamjobs_testing(app)
    broken.publish_many([(n,) for n in range(100)])
    t.run(raise_errors=False, through_delays=False)
    world["broken"], failed = False, world["calls"]
    assert failed < 100
    t.clock.jump(-3600)
    for _ in range(4):
        t.advance(31)
        t.run(through_delays=False)
    assert world["calls"] == 100


def test_a_paused_type_holds_its_place_and_runs_when_resumed(streamjobs_testing: Callable[[App], Testing]) -> None:
    app = App("shop")
    ran: list[str] = []

    @app.job
    def paused(n: int) -> None:
        ran.append("paused")

    @app.job
    def other(n: int) -> None:
        ran.append("other")

    t = streamjobs_testing(app)
    key = pause_type(t, app, "paused")
    paused.publish(n=1)
    other.publish(n=1)
    t.run(through_delays=False)
    assert ran == ["other"]

    orders.write(t.broker, app.names, {key: None})
    t.advance(1)
    t.run(through_delays=False)
    assert ran == ["other", "paused"]


def test_held_jobs_leave_the_credit_to_others(streamjobs_testing: Callable[[App], Testing]) -> None:
    """3,000 jobs of a paused type in front (three times the credit) must not stop another type's."""
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job
    def paused(n: int) -> None: ...

    @app.job
    def other(n: int) -> None:
        ran.append(n)

    t = streamjobs_testing(app)
    pause_type(t, app, "paused")
    paused.publish_many([(n,) for n in range(3000)])
    other.publish(n=7)
    t.run(through_delays=False)
    assert ran == [7]


def test_held_jobs_that_fill_half_the_window_move_to_the_ladder(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The same run, no attempt charged, one hold more; they come back and run once the pause is over."""
    app = App("shop", partitions=1, **{"worker.window": 100})
    ran: list[tuple[int, int]] = []

    @app.job
    def paused(n: int) -> None:
        ran.append((n, 1))

    @app.job
    def other(n: int) -> None: ...

    t = streamjobs_testing(app)
    key = pause_type(t, app, "paused")
    paused.publish_many([(n,) for n in range(300)])
    t.run(through_delays=False)
    for _ in range(20):
        t.advance(0.1)
        t.run(through_delays=False)
    home = next(iter(t.process.loops[0].poller.partitions.values()))
    assert home.tracker.unfinished < 100, "it made room"
    assert ran == []

    orders.write(t.broker, app.names, {key: None})
    t.run()
    assert sorted(ran) == [(n, 1) for n in range(300)]


def test_a_held_job_does_not_wait_for_longer_than_its_hold(streamjobs_testing: Callable[[App], Testing]) -> None:
    """Those that make room come back when the pause ends, though that is sooner than the minute that they else were away."""
    app = App("shop", partitions=1, **{"worker.window": 100})

    @app.job
    def paused(n: int) -> None: ...

    t = streamjobs_testing(app)
    until = t.clock.now() + 30
    pause_type(t, app, "paused", until)
    paused.publish_many([(n,) for n in range(100)])
    for _ in range(10):
        t.run(through_delays=False)
        t.advance(0.1)
    moved = [record for tier in app.settings.ladder.tiers for record in t.broker.records(app.names.delay("shop", tier))]
    assert moved
    assert {round(Meta.parse(record.headers()).due, 1) for record in moved} == {round(until, 1)}


def test_a_held_head_lets_another_type_of_its_key_pass_after_a_while(streamjobs_testing: Callable[[App], Testing]) -> None:
    """It moves to the ladder, and its lane goes on; where order is strict it keeps its place, and its key waits."""
    app = App("shop", partitions=1)
    ran: list[str] = []

    def handler(job: Job, k: str) -> None:
        ran.append(job.type)

    app.job(name="paused", queue="mails", key="k")(handler)
    app.job(name="other", queue="mails", key="k")(handler)
    app.job(name="strict", queue="mails", key="k", order="key_strict")(handler)

    t = streamjobs_testing(app)
    pause_type(t, app, "paused")
    pause_type(t, app, "strict")
    for name, key in (("paused", "a"), ("other", "a"), ("strict", "b"), ("other", "b")):
        app.job_types[name].publish(k=key)
    for _ in range(4):
        t.run(through_delays=False)
        t.advance(20)
    t.run(through_delays=False)
    assert ran == ["other"]
    (home,) = [home for home in t.process.loops[0].poller.partitions.values() if home.lanes]
    assert ([*home.lanes], home.tracker.unfinished) == ([b"b"], 2)


def test_held_jobs_of_a_partition_that_left_move_nowhere(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 41
    """The next owner has them. Moved to the ladder by this one too, they would run twice."""
    app = App("shop", partitions=1)

    def handler(k: str) -> None: ...

    for name in ("paused", "other"):
        app.job(name=name, queue="mails", key="k")(handler)
    t = streamjobs_testing(app)
    pause_type(t, app, "paused")
    for name in ("paused", "other"):
        app.job_types[name].publish(k="a")
    t.run(through_delays=False)
    t.process.loops[0].poller.lost([TopicPartition("jobs.mails", 0)])
    for _ in range(4):
        t.run(through_delays=False)
        t.advance(20)
    assert [record for tier in app.settings.ladder.tiers for record in t.broker.records(app.names.delay("shop", tier))] == []


def test_a_paused_queue_is_not_fetched(streamjobs_testing: Callable[[App], Testing]) -> None:
    """A backlog of a paused queue stays in its topic and does not cycle through the ladder."""
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(queue="mails")
    def mail(n: int) -> None:
        ran.append(n)

    t = streamjobs_testing(app)
    key = control.pause_queue_key("mails", "1")
    orders.write(t.broker, app.names, {key: control.pause_value(actor="t", reason="test", at=t.clock.now())})
    for _ in range(3):
        t.advance(0.1)
        t.run(through_delays=False)
    mail.publish_many([(n,) for n in range(500)])
    t.run(through_delays=False)
    assert ran == []
    home = next(home for home in t.process.loops[0].poller.partitions.values())
    assert home.tracker.position == 0

    orders.write(t.broker, app.names, {key: None})
    t.advance(0.1)
    t.run(through_delays=False)
    t.advance(0.1)
    t.run(through_delays=False)
    assert ran == list(range(500))
