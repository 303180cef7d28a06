"""`order="key_strict"`: a head that failed keeps its place, and its key waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from streamjobs import App, Backoff, Job, Retry, Snooze, orders
from streamjobs.core import control
from streamjobs.core.offsets import Parked
from streamjobs.core.record import Record
from streamjobs.job import JobType
from streamjobs.telemetry.events import decode
from streamjobs.testing.app import Testing


def test_a_key_waits_for_a_head_that_comes_later_than_its_failure(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 51
    """The head fails and is parked; then the next job of its key arrives: it waits until the head has ended.

    What bit: parking cleared the head's error before its lane was looked at, so the lane counted as empty and was dropped.
    """
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("10s")))
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))
        if n == 1 and job.attempt == 1:
            raise ValueError(n)

    t = streamjobs_testing(app)
    book.publish(n=1, account="a")
    t.run(raise_errors=False, through_delays=False)
    book.publish(n=2, account="a")
    book.publish(n=3, account="b")
    t.run(raise_errors=False, through_delays=False)
    assert ran == [(1, 1), (3, 1)]

    t.advance(10)
    t.run()
    assert ran == [(1, 1), (3, 1), (1, 2), (2, 1)]


def test_no_more_is_read_than_heads_whose_starts_a_commit_can_keep(streamjobs_testing: Callable[[App], Testing]) -> None:
    """Every other head fails and waits in its place; the commit keeps how often each has started."""
    app = App("shop", partitions=1)

    @app.job(key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("50s")))
    def book(account: str, fails: bool) -> None:
        if fails:
            raise ValueError(account)

    t = streamjobs_testing(app)
    for fifty in range(16):
        book.publish_many([(f"account {fifty}-{n}", n % 2 == 0) for n in range(100)])
        t.run(raise_errors=False, through_delays=False)

    (home,) = [home for home in t.process.loops[0].poller.partitions.values() if home.parked]
    assert home.full
    assert 250 <= len(home.parked) < 341  # 75 % of what fits, and the batch that went beyond it


def test_a_key_goes_on_behind_a_head_that_became_a_letter(streamjobs_testing: Callable[[App], Testing]) -> None:
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=2, backoff=Backoff.fixed("10s")))
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))
        if n == 1:
            raise ValueError(n)

    t = streamjobs_testing(app)
    book.publish_many([(1, "a"), (2, "a")])
    t.run(raise_errors=False)

    assert ran == [(1, 1), (1, 2), (2, 1)]
    assert [letter.reason for letter in t.dead_letters()] == ["exhausted"]


def test_a_head_that_has_started_keeps_its_place_though_it_is_not_due(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The last owner's clock was ahead: it parked a head that, by this one's, is due in three seconds."""
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(name="book", queue="books", key="account", order="key_strict")
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))

    t = streamjobs_testing(app)
    t.run()
    home = t.process.loops[0].poller.partitions["jobs.books", 0]
    home.parked[0] = Parked(0, 1, 2.0)
    book.options(delay="3s").publish(n=1, account="a")
    book.publish(n=2, account="a")
    t.run()
    assert ran == [(1, 2), (2, 1)]
    assert (home.waiting, home.lanes, home.parked) == (0, {}, {})


def step_app() -> tuple[App, list[tuple[str, int]]]:
    app = App("shop", partitions=1)
    ran: list[tuple[str, int]] = []

    @app.job(name="step", queue="steps", key="k", order="key_strict")
    def step(k: str, n: int) -> None:
        ran.append((k, n))

    return app, ran


def newer_schema() -> JobType[..., Any]:
    """What a publisher of the next version writes."""
    other = App("other", partitions=1)

    @other.job(name="step", queue="steps", key="k", order="key_strict")
    def step(k: str, n: int, note: str = "") -> None: ...

    return step


def produce(t: Testing, value: bytes, key: bytes, name: bytes = b"step") -> None:
    t.produce(Record("jobs.steps", value, key, headers=[("ce_type", name)]))


def test_a_key_waits_for_a_job_whose_schema_is_not_known_yet(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 62
    app, ran = step_app()
    newer = newer_schema().payload
    step = app.job_types["step"]
    t = streamjobs_testing(app)
    step.publish("a", 0)
    produce(t, newer.encode({"k": "a", "n": 1, "note": "x"}), b"a")
    produce(t, newer.encode({"k": "a", "n": 2, "note": "x"}), b"a")
    step.publish("a", 3)
    step.publish("b", 0)
    for _ in range(3):
        t.run(through_delays=False)
        t.advance(3)
    assert ran == [("a", 0), ("b", 0)]

    t.produce(Record("streamjobs.schemas", newer.canonical.encode(), newer.fingerprint.hex().encode()))
    t.run()
    assert ran == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("a", 3)]
    assert t.broker.records("jobs.steps.shop.retry") == [], "none ever left its place"
    home = t.process.loops[0].poller.partitions["jobs.steps", 0]
    assert (home.parked, home.lanes, home.tracker.unfinished) == ({}, {}, 0)


def test_a_job_that_can_be_read_after_all_is_not_early(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 62
    """It is due in a moment, so it has its place; what bit: it ran as soon as its schema was known."""
    app, early = App("shop", partitions=1), list[float]()

    @app.job(name="step", queue="steps", key="k", order="key_strict")
    def step(job: Job, k: str, n: int) -> None:
        early.append(job.due - t.clock.now())

    newer = newer_schema().payload
    t = streamjobs_testing(app)
    due = str(int((t.clock.now() + 4) * 1000)).encode()
    headers = [("ce_type", b"step"), ("sj_due", due)]
    t.produce(Record("jobs.steps", newer.encode({"k": "a", "n": 1, "note": "x"}), b"a", headers=headers))
    t.produce(Record("streamjobs.schemas", newer.canonical.encode(), newer.fingerprint.hex().encode()))
    t.run()
    assert len(early) == 1
    assert early[0] <= 0


def test_a_key_goes_on_when_nobody_knows_the_schema_in_ten_minutes(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 62
    """Also over owners: what a head has blocked its key is in the commit, not in memory."""
    app, ran = step_app()
    t = streamjobs_testing(app)
    produce(t, b"\xc3\x01" + b"\x11" * 8 + b"\x02", b"a")
    app.job_types["step"].publish("a", 1)
    began = t.clock.now()
    for _ in range(270):
        t.advance(1)
        t.run(through_delays=False)
    t.restart()
    t.run()
    assert ran == [("a", 1)]
    assert 500 <= t.clock.now() - began <= 650
    (letter,) = t.dead_letters()
    assert (letter.reason, letter.run, letter.attempt) == ("schema_unknown", 1, 1)


def test_what_was_parked_before_its_type_stopped_being_strict(streamjobs_testing: Callable[[App], Testing]) -> None:
    """An older version parked the head; now it goes to the ladder as any. What bit: the partition kept it as parked, and took the slow
    way with every record that came, until it had another owner."""
    app = App("shop", partitions=1)

    @app.job(name="step", queue="steps", key="k", retry=Retry(attempts=3))
    def step(k: str) -> None:
        raise ValueError

    t = streamjobs_testing(app)
    t.run()
    home = t.process.loops[0].poller.partitions["jobs.steps", 0]
    home.parked[0] = Parked(0, 1, 1.0)
    step.publish("a")
    t.run(through_delays=False, raise_errors=False)
    assert home.tracker.unfinished == 0
    assert home.parked == {}


def test_a_paused_type_costs_no_budget(streamjobs_testing: Callable[[App], Testing]) -> None:
    app, _ = step_app()
    t = streamjobs_testing(app)
    produce(t, b"\xc3\x01" + b"\x11" * 8 + b"\x02", b"a")
    t.run(through_delays=False)
    pause = control.pause_type_key(app.name, "step", "1")
    orders.write(t.broker, app.names, {pause: control.pause_value(actor="t", reason="r", at=t.clock.now())})
    for _ in range(30):
        t.advance(60)
        t.run(through_delays=False)
    assert t.dead_letters() == []
    orders.write(t.broker, app.names, {pause: None})
    t.run()
    assert len(t.dead_letters()) == 1


def test_an_unknown_type_keeps_its_place_where_some_type_is_strict(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 64
    """A rolling deploy brings a new type: the key waits for a worker that knows it."""
    app, ran = step_app()
    t = streamjobs_testing(app)
    step = app.job_types["step"]
    produce(t, step.payload.encode({"k": "a", "n": 1}), b"a", name=b"newer")
    step.publish("a", 2)
    step.publish("b", 0)
    t.run(through_delays=False)
    t.advance(1)
    t.run(through_delays=False)
    assert ran == [("b", 0)]

    @app.job(name="newer", queue="steps", key="k", order="key_strict")
    def newer(job: Job, k: str, n: int) -> None:
        ran.append(("newer", job.attempt))

    t.restart()
    t.run()
    assert ran == [("b", 0), ("newer", 1), ("a", 2)]


def test_a_copy_of_a_job_that_could_not_be_read_runs_once(streamjobs_testing: Callable[[App], Testing]) -> None:
    app, ran = step_app()
    newer = newer_schema().payload
    t = streamjobs_testing(app)
    headers = [("ce_type", b"step"), ("sj_origin", b"jobs.steps@00000000/0/5"), ("sj_run", b"2"), ("sj_attempt", b"2")]
    for _ in range(2):
        value = newer.encode({"k": "a", "n": 1, "note": "x"})
        t.produce(Record("jobs.steps.shop.retry", value, b"a", headers=headers))
    t.produce(Record("jobs.steps.shop.retry", newer.encode({"k": "a", "n": 2, "note": "x"}), b"a", headers=headers[:1]))
    t.run(through_delays=False)
    t.produce(Record("streamjobs.schemas", newer.canonical.encode(), newer.fingerprint.hex().encode()))
    t.run()
    assert ran == [("a", 1), ("a", 2)]


def test_a_cancelled_job_behind_one_that_can_not_be_read(streamjobs_testing: Callable[[App], Testing]) -> None:
    app, ran = step_app()
    t = streamjobs_testing(app)
    produce(t, b"\xc3\x01" + b"\x11" * 8 + b"\x02", b"a")
    app.job_types["step"].options(id="x").publish("a", 1)
    app.job_types["step"].publish("a", 2)
    t.run(through_delays=False)
    t.advance(1)
    value = control.cancel_value(actor="t", reason="r", at=t.clock.now(), until=t.clock.now() + 86_400)
    orders.write(t.broker, app.names, {control.cancel_key(app.name, "x", "1"): value})
    t.run()
    assert ran == [("a", 2)]


def test_runs_that_end_in_their_place_are_told_of_like_all_others(streamjobs_testing: Callable[[App], Testing]) -> None:
    """
    The head fails and runs again in its place; nothing is settled for that. It was in no event and no metric: a strict key could be blocked
    for ten minutes by failures of which neither an alert nor a reader of the events topic saw one; and its backoff was counted as wait.
    """
    app = App("shop", partitions=1)

    @app.job(queue="books", key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("10s", jitter=0)))
    def book(job: Job, account: str) -> None:
        if job.run == 1:
            raise Snooze("20s")
        raise ValueError(account)

    t = streamjobs_testing(app)
    book.publish(account="a")
    assert t.run(raise_errors=False) == 4
    t.advance(1)
    t.run(through_delays=False)  # sends the last events

    told = [event for record in t.broker.records("streamjobs.events") for event in decode(record.value() or b"") if event.kind != "started"]
    assert [(event.run, event.attempt, event.kind, event.error_type) for event in told] == [
        (1, 1, "snoozed", ""), (2, 1, "retried", "ValueError"), (3, 2, "retried", "ValueError"), (4, 3, "dead", "ValueError"),
    ]  # fmt: skip
    assert [round(event.due - event.at) for event in told[:-1]] == [20, 10, 10]
    seen = t.process.loops[0].metrics.snapshot()
    ends = {labels[2]: count for (name, labels), count in seen.counters.items() if name == "attempts_total"}
    assert ends == {"snoozed": 1, "retried": 2, "dead": 1}
    assert seen.counters["failures_total", ("books", "book", "ValueError", "retry")] == 2
    waits, waited_s = seen.histograms["queue_wait_seconds", ("books", "shop", "book", "main")]
    assert (sum(waits), waited_s < 2) == (4, True)


def test_each_run_gets_the_arguments_that_were_published(streamjobs_testing: Callable[[App], Testing]) -> None:
    """
    The first run changes a list that it was given, and fails. The second one, in its place, got what the first had left of it; after any
    other retry, or at another owner, it gets what was published.
    """
    app = App("shop", partitions=1)
    seen: list[list[int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("1s")))
    def book(job: Job, account: str, items: list[int]) -> None:
        seen.append(list(items))
        items.pop()
        if job.attempt < 3:
            raise ValueError(account)

    t = streamjobs_testing(app)
    book.publish(account="a", items=[1, 2, 3])
    t.run(raise_errors=False)

    assert seen == [[1, 2, 3]] * 3
    assert t.dead_letters() == []


class Entry(BaseModel):
    oldest: ClassVar[int] = 1
    account: str
    n: int

    @field_validator("n")
    @classmethod
    def recent(cls, n: int) -> int:
        if n < cls.oldest:
            raise ValueError("too old")
        return n


def test_what_can_not_be_read_again_is_a_letter_and_its_key_goes_on(
    streamjobs_testing: Callable[[App], Testing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validator of the user's takes only what is recent, and time has passed."""
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("1s")))
    def book(entry: Entry) -> None:
        ran.append(entry.n)
        if entry.n == 1:
            monkeypatch.setattr(Entry, "oldest", 2)
            raise ValueError(entry.n)

    t = streamjobs_testing(app)
    book.publish(Entry(account="a", n=1))
    book.publish(Entry(account="a", n=2))
    t.run(raise_errors=False)

    assert ran == [1, 2]
    (letter,) = t.dead_letters()
    assert (letter.reason, letter.attempt, letter.error_type) == ("undecodable", 1, "DecodeError")
    assert "too old" in letter.error_message
