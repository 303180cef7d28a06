"""What becomes of records as they arrive: garbage, strangers, copies, delays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App, Backoff, Job, Retry, orders
from streamjobs.broker import TopicPartition
from streamjobs.core import control
from streamjobs.core.record import Meta, Record, origin_of
from streamjobs.telemetry import events
from streamjobs.testing.app import Testing

OnMemory = Callable[[App], Testing]
TOPIC = "jobs.mails"


def counting_app(**settings: Any) -> tuple[App, list[Any]]:
    app = App("shop", partitions=1, **settings)
    ran: list[Any] = []

    @app.job(name="count", queue="mails")
    def count(job: Job, n: int) -> None:
        ran.append(n)

    return app, ran


def encoded(app: App, n: int) -> bytes:
    payload = app.job_types["count"].payload
    return payload.encode(payload.bind((), {"n": n}))


def test_a_bare_record_with_type_and_payload_is_a_job(on_memory: OnMemory) -> None:  # edge 66
    """No key, no id, nothing of ours: any Kafka producer can publish a job; its id is where it lies."""
    app = App("shop", partitions=1)
    seen: list[Job] = []

    @app.job(name="count", queue="mails", key="n")
    def count(job: Job, n: int) -> None:
        seen.append(job)

    t = on_memory(app)
    t.produce(Record(TOPIC, encoded(app, 7), headers=[("ce_type", b"count")]))
    t.run()
    (job,) = seen
    assert (job.run, job.attempt, job.key) == (1, 1, None)
    assert job.id == job.origin
    assert job.origin.endswith("/0/0")


@pytest.mark.parametrize("options", [{}, {"tags": ["vip"]}], ids=["fixed headers", "more"])
def test_jobs_without_a_key_wait_for_no_other(on_memory: OnMemory, options: dict[str, Any]) -> None:  # edge 66
    """Even where order is strict. One lane for all of them would be one queue at a time: what failed held up the whole partition."""
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(name="count", queue="mails", key="k", order="key_strict", retry=Retry(attempts=2, backoff=Backoff.fixed("10s")))
    def count(job: Job, n: int, k: str | None) -> None:
        ran.append((n, job.attempt))
        if job.attempt == 1 and n == 0:
            raise ValueError

    t = on_memory(app)
    for n in range(2):
        count.options(**options).publish(n=n, k=None)
    t.run(raise_errors=False)
    assert ran == [(0, 1), (1, 1), (0, 2)]


@pytest.mark.parametrize("value", [b"", b"\xc3\x01short", b"\xff" * 40, b"\x00\x00\x00\x00\x09abc", b"{}"])
def test_garbage_is_a_letter_with_its_bytes_untouched(on_memory: OnMemory, value: bytes) -> None:  # edge 61, 63, 65
    """It is buried at once, without a retry and without being encoded again; what comes after it runs."""
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, value, b"k", [("ce_type", b"count"), ("x-own", b"1")]))
    app.job_types["count"].publish(n=1)
    t.run(through_delays=False)

    assert ran == [1]
    (record,) = t.broker.records("jobs.mails.shop.dlt")
    meta = Meta.parse(record.headers())
    assert record.value() == value
    assert (meta.reason, meta.key) == ("undecodable", b"k")
    assert dict(record.headers() or ())["x-own"] == b"1"


def test_truncated_bytes_are_a_letter(on_memory: OnMemory) -> None:  # edge 61
    app, _ = counting_app()
    t = on_memory(app)
    whole = encoded(app, 100_000)
    for length in range(10, len(whole)):
        t.produce(Record(TOPIC, whole[:length], headers=[("ce_type", b"count")]))
    t.run(through_delays=False)
    assert {letter.reason for letter in t.dead_letters("mails")} == {"undecodable"}
    assert len(t.dead_letters("mails")) == len(whole) - 10


def test_a_record_without_a_type_is_a_letter(on_memory: OnMemory) -> None:
    app, _ = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, b"hello"))
    t.run(through_delays=False)
    (letter,) = t.dead_letters("mails")
    assert letter.reason == "undecodable"
    assert "ce_type" in letter.error_message


def test_what_is_no_job_is_told_of_as_any_other_end(on_memory: OnMemory) -> None:
    """What bit: garbage became a letter of which no event spoke, and a type that waits for its worker was nowhere to be seen."""
    app, _ = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, b"hello"))
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"newer"), ("ce_id", b"n-1")]))
    began = t.clock.now()
    t.run(through_delays=False)
    t.advance(1)
    t.run(through_delays=False)

    told = [event for message in t.broker.records(app.names.events) for event in events.decode(message.value() or b"")]
    held, dead = sorted(told, key=lambda event: event.kind, reverse=True)
    assert (dead.kind, dead.reason, dead.error_type, dead.run, dead.group) == ("dead", "undecodable", "HeaderError", 1, "shop")
    assert "ce_type" in dead.error_message
    (letter,) = t.broker.records("jobs.mails.shop.dlt")
    assert letter.key() == f"{dead.origin}#1".encode()
    assert (held.kind, held.reason, held.job_id, held.job_type) == ("held", "type_unknown", "n-1", "newer")
    assert held.due == pytest.approx(began + 60, abs=5)


@pytest.mark.parametrize(
    ("headers", "value", "reason"),
    [
        ([("ce_type", b"count"), ("ce_id", b"1"), ("sj_attempt", b"many")], b"", "header"),
        ([("ce_id", b"1")], b"", "header"),
        ([("ce_type", b"newer"), ("ce_id", b"1")], b"", "header"),
        ([("ce_type", b"count"), ("ce_id", b"1")], b"no Avro", "payload"),
    ],
    ids=["no count", "no type", "type unknown", "no Avro"],
)
def test_what_could_not_be_read_is_counted_by_where_it_is_wrong(
    on_memory: OnMemory, headers: list[tuple[str, bytes]], value: bytes, reason: str
) -> None:
    app, _ = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, value, headers=headers))
    t.run(through_delays=False)
    counters = t.process.loops[0].metrics.snapshot().counters
    assert counters["decode_errors_total", ("mails", reason)] == 1


def test_a_tombstone_is_skipped(on_memory: OnMemory) -> None:  # edge 65
    """Neither value nor type: it means nothing on a job topic. Counted, not run, not a letter."""
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, None, b"k"))
    app.job_types["count"].publish(n=1)
    t.run(through_delays=False)
    assert ran == [1]
    assert t.dead_letters("mails") == []
    counters = t.process.loops[0].metrics.snapshot().counters
    assert counters["decode_errors_total", ("mails", "payload")] == 1
    t.advance(1)
    t.run(through_delays=False)
    where = TopicPartition(TOPIC, 0)
    assert t.broker.admin().committed(app.group)[where].offset == 2, "nothing waits for it"


@pytest.mark.parametrize("named", [b"count", b"newer"])
def test_a_job_without_a_value_is_a_letter(on_memory: OnMemory, named: bytes) -> None:  # edge 65
    """Its publisher forgot it. What bit: it was skipped, with a line in the log; no letter, no event."""
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, None, b"k", [("ce_type", named), ("ce_id", b"n-1")]))
    t.run()
    (letter,) = t.dead_letters("mails")
    assert (letter.job_id, letter.reason, letter.null, ran) == ("n-1", "undecodable", True, [])
    assert "has no value" in letter.error_message


def test_an_unknown_type_waits_an_hour_for_a_worker_that_knows_it(on_memory: OnMemory) -> None:  # edge 64
    """A rolling deploy: new jobs meet old workers. No attempt is charged; after the hour it is a letter `type_unknown`."""
    app, _ = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"newer"), ("ce_id", b"n-1")]))
    began = t.clock.now()
    t.run(through_delays=False)
    assert t.dead_letters("mails") == []
    t.run()
    (letter,) = t.dead_letters("mails")
    assert (letter.reason, letter.job_id, letter.attempt, letter.run) == ("type_unknown", "n-1", 1, 1)
    assert 3600 <= t.clock.now() - began < 4500


def test_an_unknown_type_runs_once_it_is_known(on_memory: OnMemory) -> None:  # edge 64
    """The new version of the code takes over while the job waits in the ladder: it runs, as attempt 1."""
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"newer")]))
    t.run(through_delays=False)
    t.advance(1)
    t.run(through_delays=False)

    @app.job(name="newer", queue="mails")
    def newer(job: Job, n: int) -> None:
        ran.append(("newer", n, job.attempt))

    t.restart()
    t.run()
    assert ran == [("newer", 1, 1)]


def test_an_unknown_schema_is_looked_up_before_it_waits(on_memory: OnMemory) -> None:  # edge 62
    """The publisher's schema came to the schema topic after this worker had started: it is read, and the job runs."""
    app, ran = counting_app()
    t = on_memory(app)
    other = App("other", partitions=1)

    @other.job(name="count", queue="mails")
    def count(n: int, note: str = "") -> None: ...

    t.produce(Record("streamjobs.schemas", count.payload.canonical.encode(), count.payload.fingerprint.hex().encode()))
    t.produce(Record(TOPIC, count.payload.encode({"n": 5, "note": "x"}), headers=[("ce_type", b"count")]))
    t.run(through_delays=False)
    assert ran == [5]


def test_a_schema_that_nobody_knows_becomes_a_letter_after_an_hour(on_memory: OnMemory) -> None:  # edge 62
    app, ran = counting_app()
    t = on_memory(app)
    value = b"\xc3\x01" + b"\x11" * 8 + b"\x02"
    t.produce(Record(TOPIC, value, headers=[("ce_type", b"count")]))
    t.run()
    (letter,) = t.dead_letters("mails")
    assert (letter.reason, letter.attempt) == ("schema_unknown", 1)
    assert ran == []


def test_a_copy_in_one_epoch_runs_once(on_memory: OnMemory) -> None:  # edge 38
    """A retry that was written twice (a crash between its acknowledgement and the commit) meets its copy in the same partition."""
    app, ran = counting_app()
    t = on_memory(app)
    headers = [("ce_type", b"count"), ("sj_origin", b"jobs.mails@00000000/0/5"), ("sj_run", b"2"), ("sj_attempt", b"2")]
    for _ in range(2):
        t.produce(Record("jobs.mails.shop.retry", encoded(app, 1), headers=headers))
    t.run(through_delays=False)
    assert ran == [1]


def test_a_held_copy_is_another_record(on_memory: OnMemory) -> None:
    """A held job comes back to its partition with the same run while a slow head pins the base. It differs in
    `sj_holds`, and must not be dropped as a copy."""
    app, ran = counting_app()
    t = on_memory(app)
    base = [("ce_type", b"count"), ("sj_origin", b"jobs.mails@00000000/0/5"), ("sj_run", b"1")]
    t.produce(Record("jobs.mails.shop.retry", encoded(app, 1), headers=base))
    t.produce(Record("jobs.mails.shop.retry", encoded(app, 1), headers=[*base, ("sj_holds", b"1")]))
    t.run(through_delays=False)
    assert ran == [1, 1]


@pytest.mark.parametrize(
    ("header", "value"),
    [("sj_attempt", b"-1"), ("sj_attempt", b"99999999"), ("sj_run", b"1e3"), ("sj_due", b"soon"), ("sj_holds", b"\xff")],
)
def test_hostile_headers_are_a_letter(on_memory: OnMemory, header: str, value: bytes) -> None:  # edge 44
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"count"), (header, value)]))
    t.run(through_delays=False)
    (letter,) = t.dead_letters("mails")
    assert letter.reason == "undecodable"
    assert header in letter.error_message
    assert ran == []


def test_a_due_time_in_the_year_3000_stops_nobody(on_memory: OnMemory) -> None:  # edge 44
    """It goes to the ladder and costs a move a week; the jobs behind it run."""
    app, ran = counting_app()
    t = on_memory(app)
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"count"), ("sj_due", b"32503680000000")]))
    app.job_types["count"].publish(n=2)
    t.run(through_delays=False)
    assert ran == [2]
    assert len(t.broker.records("streamjobs.shop.delay.7d")) == 1
    t.advance(8 * 86_400)
    t.run(through_delays=False)
    assert len(t.broker.records("streamjobs.shop.delay.7d")) == 2


def test_a_delay_bound_for_this_group_only(on_memory: OnMemory) -> None:  # edge 60
    """A foreign record with a due time on the main topic climbs for *this* group's retry topic; with the main topic
    as its goal, G groups would make G² runs."""
    app, _ = counting_app()
    t = on_memory(app)
    due = str(round((t.clock.now() + 600) * 1000)).encode()
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"count"), ("sj_due", due)]))
    t.run(through_delays=False)
    (record,) = t.broker.records("streamjobs.shop.delay.4m")
    assert Meta.parse(record.headers()).next == "jobs.mails.shop.retry"


def test_a_publishers_delay_comes_back_to_every_group(on_memory: OnMemory) -> None:
    app, ran = counting_app()
    t = on_memory(app)
    app.job_types["count"].options(delay="10m").publish(n=1)
    (record,) = t.broker.records("streamjobs.shop.delay.4m")
    assert Meta.parse(record.headers()).next == TOPIC
    t.run()
    assert ran == [1]


def test_cancelled_before_it_runs(on_memory: OnMemory) -> None:  # edge 76
    """The order reaches jobs that were published before it, and none that come later with the same id."""
    app, ran = counting_app()
    t = on_memory(app)
    app.job_types["count"].options(id="a", delay="1h").publish(n=1)
    t.advance(1)
    value = control.cancel_value(actor="t", reason="r", at=t.clock.now(), until=t.clock.now() + 86_400)
    orders.write(t.broker, app.names, {control.cancel_key(app.name, "a", "1"): value})
    t.advance(1)
    app.job_types["count"].options(id="a", delay="1h").publish(n=2)
    t.run()
    assert ran == [2]


def test_a_run_that_was_taken_over_is_skipped_and_the_next_one_runs(on_memory: OnMemory) -> None:
    """Whoever lets a waiting job run now orders its run to be skipped, then publishes the next one: else both run."""
    app, ran = counting_app()
    t = on_memory(app)
    origin = origin_of(TOPIC, t.broker.admin().topics([TOPIC])[TOPIC].id, 0, 0)
    value = control.skip_value(up_to_run=2, actor="t", reason="r", at=t.clock.now(), until=t.clock.now() + 86_400)
    orders.write(t.broker, app.names, {control.skip_key(app.group, origin): value})
    t.run()
    app.job_types["count"].publish(n=1)
    for run in (2, 3):
        headers = [("ce_type", b"count"), ("sj_origin", origin.encode()), ("sj_run", b"%d" % run), ("sj_attempt", b"1")]
        t.produce(Record(app.names.retry("mails", app.group), encoded(app, run), headers=headers))
    t.run()
    assert ran == [3]
    assert [home.tracker.unfinished for loop in t.process.loops for home in loop.poller.partitions.values()] == [0, 0]


def test_a_thousand_wait_in_memory_and_the_rest_in_the_ladder(on_memory: OnMemory) -> None:  # edge 46
    """Short delays are waited by the loop, but not more than 1,000 of a partition; none is lost, none starts early."""
    app = App("shop", partitions=1)
    early: list[float] = []
    ran: list[int] = []

    @app.job(name="count", queue="mails")
    def count(job: Job, n: int) -> None:
        ran.append(n)
        if t.clock.now() < job.due:
            early.append(job.due - t.clock.now())

    t = on_memory(app)
    count.options(delay="3s").publish_many([(n,) for n in range(1500)])
    t.run(through_delays=False)
    assert len(t.broker.records("streamjobs.shop.delay.5s")) == 500
    t.run()
    assert sorted(ran) == list(range(1500))
    assert early == []


def test_a_clock_that_is_set_back_makes_nothing_wait_in_memory_for_longer(on_memory: OnMemory) -> None:  # edge 49, 50
    """It was an hour ahead. What bit: a delay of three seconds took an hour and three seconds, or a `key_strict` job's next attempt."""
    app, ran = counting_app()
    t = on_memory(app)
    app.job_types["count"].options(delay="3s").publish(n=1)
    app.job_types["count"].options(delay="4s").publish(n=2)
    t.run(through_delays=False)
    t.clock.jump(-3600)
    t.advance(2.9)
    t.run(through_delays=False)
    assert ran == []
    t.advance(0.2)
    t.run(through_delays=False)
    assert ran == [1]
    t.clock.jump(3600)
    t.run(through_delays=False)
    assert ran == [1, 2], "set forward, it ends waits sooner"


def test_a_letter_of_an_exhausted_retry_keeps_what_led_to_it(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)

    @app.job(name="count", queue="mails", retry=Retry(attempts=1))
    def count(n: int) -> None:
        raise OSError("no route")

    t = on_memory(app)
    count.options(id="x", tags=["vip"], headers={"tenant": "acme"}).publish(n=1)
    t.run(raise_errors=False)
    (letter,) = t.dead_letters("mails")
    assert (letter.job_id, letter.tags, letter.error_type) == ("x", "vip", "OSError")
    (record,) = t.broker.records("jobs.mails.shop.dlt")
    assert dict(record.headers() or ())["tenant"] == b"acme"
    origin = Meta.parse(record.headers()).origin
    assert record.key() == f"{origin}#1".encode()
    assert TopicPartition("jobs.mails", 0).topic in origin


def test_how_long_a_loop_holds_a_delay_is_a_setting(on_memory: OnMemory) -> None:
    """With `delay.hold = "1m"` a delay of 40 s never sees the ladder."""
    app, ran = counting_app(**{"delay.hold": "1m", "delay.tiers": ["1m", "1h"]})
    t = on_memory(app)
    due = str(round((t.clock.now() + 40) * 1000)).encode()
    t.produce(Record(TOPIC, encoded(app, 1), headers=[("ce_type", b"count"), ("sj_due", due)]))
    began = t.clock.now()
    t.run()
    assert ran == [1]
    assert t.clock.now() - began >= 39.99
    assert t.broker.records("streamjobs.shop.delay.1m") == []
