"""Publishing: ids, keys, headers, what is refused, forks and flushes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamjobs import App, PayloadError, PublishError, UsageError
from streamjobs.core.record import Record
from streamjobs.kafka import config
from streamjobs.publish import HEADROOM, new_id, new_ids, timestamp
from streamjobs.testing.faults import broker_error
from tests.unit.avro.avro_strategies import EXAMPLES


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    """Those of many rows sort as the rows; those of two calls in one millisecond have nothing else in common."""
    ids, more, single = new_ids(1000), new_ids(1000), [new_id() for _ in range(1000)]
    assert len({*ids, *more, *single}) == 3000
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", each) for each in (*ids, *more, *single))
    assert ids == sorted(ids) and more[0][14:23] != ids[0][14:23]
    assert ids[0][:13] <= more[0][:13] <= single[0][:13]
    assert {each[19] for each in single} == set("89ab")


def test_the_last_id_of_many_does_not_overflow(monkeypatch) -> None:
    monkeypatch.setattr("streamjobs.publish.os.urandom", lambda count: b"\xff" * count)
    assert [each[24:] for each in new_ids(3)] == ["7fffffffffff", "800000000000", "800000000001"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.floats(0, 4e9))
def test_the_time_of_a_job_is_its_millisecond_in_iso_8601(now: float) -> None:
    text = timestamp(now).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert abs(datetime.fromisoformat(text) - datetime.fromtimestamp(now, UTC)) <= timedelta(milliseconds=1)


def test_a_send_is_idempotent_and_names_its_job(streamjobs_testing) -> None:  # edge 67
    """What the client sends again is stored once; what a publisher sends again has the same id for the handler to see."""
    made = config.producer("localhost:9092", "c", {}, 1_000_000)
    assert made["enable.idempotence"] is True
    assert str(made["acks"]) in ("all", "-1")

    app = App("shop", partitions=1)
    seen = []

    @app.job(queue="mails")
    def mail(n: int) -> None:
        seen.append(n)

    t = streamjobs_testing(app)
    mail.options(id="m-1").publish(n=1)
    mail.options(id="m-1").publish(n=1)
    ids = [dict(message.headers())["ce_id"] for message in t.broker.records("jobs.mails")]
    assert ids == [b"m-1", b"m-1"]
    t.run()
    assert seen == [1, 1], "an id is no dedupe, and the docs say so"


def test_what_travels(streamjobs_testing) -> None:
    """CloudEvents 1.0 Kafka binding, binary mode; type and id first, so that a worker finds them by position."""
    app = App("shop", partitions=1)

    @app.job(queue="mails", key="to")
    def mail(to: str) -> None: ...

    t = streamjobs_testing(app)
    mail.options(id="m-1", tags=["vip", "eu"], headers={"tenant": "acme"}).publish("a@b")
    (message,) = t.broker.records("jobs.mails")
    names = [name for name, _ in message.headers()]
    headers = dict(message.headers())
    assert names[:6] == ["ce_type", "ce_id", "ce_specversion", "ce_source", "ce_time", "content-type"]
    assert (headers["ce_type"], headers["ce_id"], headers["ce_specversion"]) == (b"mail", b"m-1", b"1.0")
    assert (headers["ce_source"], headers["content-type"]) == (b"shop", b"application/avro")
    assert (headers["sj_tags"], headers["tenant"]) == (b"vip,eu", b"acme")
    assert message.key() == b"a@b"
    assert message.value()[:2] == b"\xc3\x01"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay": "1h", "at": datetime.now(UTC)}, "not both"),
        ({"expires": "0s"}, "never runs"),
        ({"at": datetime.now()}, "time zone"),
        ({"id": ""}, "1 to 256"),
        ({"tags": ["a,b"]}, "commas"),
        ({"headers": {"sj_run": "2"}}, "belongs to streamjobs"),
        ({"headers": {"n": 1}}, "header 'n' is int: give text or bytes"),
        ({"headers": {"x-\udcff": "1"}}, r"header 'x-\\udcff' can't be sent"),
        ({"headers": {"content-type\0": "text/plain"}}, r"header 'content-type\\x00' can't be sent"),
        ({"headers": {"x": "\udcff"}}, r"header 'x': '\\udcff' can't be sent"),
        ({"id": "m-\udcff"}, "id= .* can't be sent"),
        ({"key": "\udcff"}, "key= .* can't be sent"),
        ({"tags": ["vip", "\udcff"]}, "tag .* can't be sent"),
        ({"tags": ["ä" * 512, "b"]}, "tags= has 1,026 bytes with its commas, more than 1,024"),
        ({"expires": "400000d"}, "more than 1,000 years"),
        ({"expires": 1e308}, "more than 1,000 years"),
        ({"at": datetime(1969, 12, 31, tzinfo=UTC), "expires": "1h"}, "after 1970-01-01"),
        ({"id": 7}, "id= 7 is int: give text"),
        ({"key": 0}, "key= 0 is int: give text"),
        ({"tags": [7]}, "tag 7 is int: give text"),
        ({"headers": {7: "x"}}, "header 7 is int: give text"),
        ({"at": "2031-01-01T00:00Z"}, "give a datetime with a time zone"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says) -> None:
    app = App("shop")

    @app.job
    def job_of(n: int) -> None: ...

    with pytest.raises(UsageError, match=says):
        job_of.options(**options)


def test_a_job_with_the_most_that_options_may_say_runs(streamjobs_testing) -> None:
    """What bit: of longer ones `publish` was acknowledged, and the worker buried a job that it could not read."""
    app = App("a" * 80)

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    options = {"id": "i" * 256, "tags": ["ä" * 511, "b"], "key": "k" * 5000, "headers": {"h" * 5000: "v" * 5000}, "expires": "365000d"}
    job_of.options(**options, at=datetime(1970, 1, 2, tzinfo=UTC)).publish(1)
    job_of.options(**options, delay="89d").publish(1)
    t.clock.advance(90 * 86_400)

    assert t.run() == 2


def test_a_delay_beyond_the_longest_is_refused(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    with pytest.raises(PayloadError, match=r"a delay of \d+d\S* is longer than max_delay \(90d\)"):
        job_of.options(at=datetime.now(UTC) + timedelta(days=100_000)).publish(n=1)


def test_a_job_that_leaves_no_room_for_retries_is_refused(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def job_of(text: str) -> None: ...

    t = streamjobs_testing(app)
    job_of.publish("x" * 1_000_000)
    with pytest.raises(PayloadError, match="larger than"):
        job_of.publish("x" * 1_030_000)
    with pytest.raises(PayloadError, match="larger than"):
        job_of.publish_many([("x" * 1_030_000,)])
    assert t.run() == 1


def test_headers_and_key_count_as_part_of_a_jobs_size(streamjobs_testing) -> None:
    """With so many bytes a value alone would fit."""
    app = App("shop")
    limit = app.settings.max_message_bytes - HEADROOM

    @app.job
    def job_of(text: str) -> None: ...

    streamjobs_testing(app)
    frame = len(job_of.payload.encode({"text": "x" * limit})) - limit
    for publish in (job_of.publish, lambda text: job_of.publish_many([(text,)])):
        with pytest.raises(PayloadError, match="larger than"):
            publish("x" * (limit - frame - 100))
    for publish in (job_of.options(key="k" * 1000).publish, lambda text: job_of.options(key="k" * 1000).publish_many([(text,)])):
        with pytest.raises(PayloadError, match="larger than"):
            publish("x" * (limit - frame - 1100))


def test_a_bad_row_sends_none(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    with pytest.raises(PayloadError, match="row 2"):
        job_of.publish_many([(1,), (2,), ("three",)])
    assert t.run() == 0


def test_many_that_fail_on_the_way_say_which_are_stored(streamjobs_testing) -> None:
    """One is refused, then the producer can't take any more: whoever published goes on from there. What bit: nobody could tell."""
    app = App("shop", partitions=1, publish_timeout="200ms")

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    job_of.publish(0)
    producer, sent = app.publisher.producer(), []
    send = producer.send

    def full_after_five(record, ack=None, about=None) -> None:
        if len(sent) == 5:
            raise broker_error("_QUEUE_FULL")
        sent.append(record)
        send(record, ack, about)

    producer.send = full_after_five
    t.broker.fail("send", topic=app.names.main("default"), error="_MSG_TIMED_OUT")

    with pytest.raises(PublishError, match="4 of 8 jobs were not stored, .* 4 were, 1 were refused or not acknowledged, 3 were not sent") as raised:
        job_of.publish_many([(n,) for n in range(1, 9)])

    receipts = raised.value.receipts
    assert [receipt is not None for receipt in receipts] == [False, True, True, True, True, False, False, False]
    assert raised.value.unsent == 3
    assert [receipt.offset for receipt in receipts if receipt] == [1, 2, 3, 4]


def test_many_wait_for_room_in_the_clients_queue(streamjobs_testing) -> None:
    """Each second time it is full; the receipts are those of their rows all the same."""
    app = App("shop", partitions=1)

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(0)
    producer, asked = app.publisher.producer(), []
    send = producer.send

    def full_each_second_time(record, ack=None, about=None) -> None:
        asked.append(record)
        if len(asked) % 2:
            raise broker_error("_QUEUE_FULL")
        send(record, ack, about)

    producer.send = full_each_second_time
    assert [receipt.offset for receipt in job_of.publish_many([(1,), (2,), (3,)])] == [1, 2, 3]
    assert len(asked) == 6


@pytest.mark.parametrize("way", ["one", "many"])
def test_a_topic_made_again_with_fewer_partitions_is_known_after_one_failure(streamjobs_testing, way: str) -> None:  # edge 31
    app = App("shop", partitions=8)

    @app.job(queue="mails")
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    job_of.publish(0)
    admin = t.broker.admin()
    (topic,) = admin.topics(["jobs.mails"], config=True).values()
    admin.delete_topics([topic.name])
    admin.create_topics([replace(topic, partitions=1)])

    failed = 0
    for _ in range(30):
        try:
            job_of.publish(0) if way == "one" else job_of.publish_many([(0,)])
        except PublishError:
            failed += 1
    assert failed == 1


def test_many_may_take_longer_than_one_while_acknowledgements_come(streamjobs_testing) -> None:
    """One every 60 ms, of seven; a single one may take 100."""
    app = App("shop", partitions=1, publish_timeout="100ms")

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(0)
    producer, waiting = app.publisher.producer(), []
    send = producer.send
    producer.send = lambda record, ack=None, about=None: send(record, lambda *told: waiting.append((ack, about, *told)))
    poll = producer.poll

    def poll_slowly(timeout: float = 0.0) -> int:
        poll(0)
        time.sleep(0.06)
        ack, about, *rest = waiting.pop(0)
        ack(about, *rest)
        return 1

    producer.poll = poll_slowly
    assert [receipt.offset for receipt in job_of.publish_many([(n,) for n in range(7)])] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("timeout", "within"), [("1s", 0.9), ("10s", 9), ("1m", 54)])
def test_a_job_is_given_up_before_its_publisher_is_told(streamjobs_testing, monkeypatch, timeout: str, within: float) -> None:
    """*Bites*: the client goes on for nine seconds, whatever `publish_timeout` says: too long for one second, too short for a minute."""
    app = App("shop", publish_timeout=timeout)
    t = streamjobs_testing(app)
    asked, producer = [], t.broker.producer
    monkeypatch.setattr(t.broker, "producer", lambda *, within=None: asked.append(within) or producer(within=within))

    t.broker.down()
    given_up = []
    app.publisher.producer().send(Record("streamjobs.events", b""), lambda error, _: given_up.append(error.code))
    t.advance(within + 0.001)
    app.publisher.producer().poll()

    assert (asked, given_up) == ([pytest.approx(within)], ["_MSG_TIMED_OUT"])


def test_a_job_that_may_be_stored_is_not_said_not_to_be(streamjobs_testing) -> None:
    """Time is up at the client, or here: the broker may have it. Whoever publishes it again needs its id, also one that was made here."""
    app = App("shop", partitions=1, publish_timeout="50ms")

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    job_of.publish(0)
    topic = app.names.main("default")
    t.broker.fail("send", topic=topic, error="_MSG_TIMED_OUT", applied=True)
    with pytest.raises(PublishError, match="job inv-7 was not acknowledged: .* It may still have been stored: publish again with id='inv-7', "):
        job_of.options(id="inv-7").publish(7)

    app.publisher.producer().poll = lambda timeout=0.0: time.sleep(timeout)
    with pytest.raises(PublishError, match=r"job (\S+) was not acknowledged within 0.05 s .* stored: publish again with id='\1', "):
        job_of.publish(8)

    assert [dict(record.headers())["ce_id"] for record in t.broker.records(topic)][1:2] == [b"inv-7"]


def test_a_job_that_was_refused_is_said_not_to_be_stored(streamjobs_testing) -> None:
    app = App("shop", partitions=1)

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    t.broker.fail("send", topic=app.names.main("default"), error="TOPIC_AUTHORIZATION_FAILED")
    with pytest.raises(PublishError, match="job inv-7 was not stored: "):
        job_of.options(id="inv-7").publish(7)


def test_many_do_not_wait_in_the_client_until_they_are_given_up(streamjobs_testing) -> None:
    """A slow broker: what it has not taken yet waits with whoever publishes, not in a queue that forgets what it has had for too long."""
    app = App("shop", partitions=1)

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(0)
    producer, waiting, most = app.publisher.producer(), deque(), 0
    send, poll = producer.send, producer.poll

    def send_slowly(record, ack=None, about=None) -> None:
        nonlocal most
        send(record, lambda *told: waiting.append((ack, about, *told)))
        poll(0)
        most = max(most, len(waiting))

    def poll_slowly(timeout: float = 0.0) -> int:
        for ack, about, *rest in [waiting.popleft() for _ in range(min(len(waiting), 500))]:
            ack(about, *rest)
        return 500

    producer.send, producer.poll = send_slowly, poll_slowly

    assert [receipt.offset for receipt in job_of.publish_many([(n,) for n in range(15_000)])] == [*range(1, 15_001)]
    assert 5_000 < most <= 11_000


def test_many_stop_where_none_gets_through(streamjobs_testing) -> None:
    """The broker is away: to give up ten thousand after the other would take the client nine seconds each."""
    app = App("shop", partitions=1)

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    job_of.publish(0)
    t.broker.fail("send", topic=app.names.main("default"), error="_MSG_TIMED_OUT", times=None)

    with pytest.raises(PublishError, match="15000 of 15000 jobs were not stored") as raised:
        job_of.publish_many([(n,) for n in range(15_000)])

    assert raised.value.unsent == 4_000
    assert "no more were sent, for none gets through: injected by a test" in str(raised.value)


def test_many_go_on_where_a_few_are_refused(streamjobs_testing) -> None:
    """Also if they are all that is answered while room is waited for."""
    app = App("shop", partitions=1)

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(0)
    producer, waiting = app.publisher.producer(), deque()
    send, poll = producer.send, producer.poll

    def send_slowly(record, ack=None, about=None) -> None:
        send(record, (lambda *told: ack(about, *told)) if about < 500 else (lambda *told: waiting.append((ack, about, *told))))
        poll(0)

    def refuse_then_take(timeout: float = 0.0) -> int:
        count, error = (600, broker_error("MSG_SIZE_TOO_LARGE")) if len(waiting) == 10_500 else (5_000, None)
        for ack, about, _, message in [waiting.popleft() for _ in range(min(len(waiting), count))]:
            ack(about, error, message)
        return count

    producer.send, producer.poll = send_slowly, refuse_then_take

    with pytest.raises(PublishError, match="600 of 13000 jobs were not stored, .* 12400 were, 600 were refused or not acknowledged, 0 were not sent"):
        job_of.publish_many([(n,) for n in range(13_000)])


def test_many_that_are_not_acknowledged_in_time_say_so(streamjobs_testing) -> None:
    app = App("shop", partitions=1, publish_timeout="100ms")

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(0)
    app.publisher.producer().poll = lambda timeout=0.0: 0
    with pytest.raises(PublishError, match="2 of 2 jobs .* 2 were refused or not acknowledged, 0 were not sent.*publish_timeout") as raised:
        job_of.publish_many([(1,), (2,)])
    assert raised.value.receipts == [None, None]


def test_a_queue_that_nobody_registered_has_no_delays(streamjobs_testing) -> None:
    app, other = App("shop"), App("other")

    @other.job(queue="elsewhere")
    def job_of(n: int) -> None: ...

    @app.job
    def own(n: int) -> None: ...

    t = streamjobs_testing(app)
    before = other.lend(t.broker, t.clock)
    try:
        with pytest.raises(PublishError, match="topic apply"):
            job_of.options(delay="1h").publish(n=1)
    finally:
        other.take_back(before)


async def _publish(job_type, count: int) -> list:
    import asyncio

    return await asyncio.gather(*(job_type.publish_async(n=n) for n in range(count)))


def test_publishing_from_an_event_loop(streamjobs_testing) -> None:
    import asyncio

    app = App("shop")
    ran = []

    @app.job
    def job_of(n: int) -> None:
        ran.append(n)

    t = streamjobs_testing(app)
    receipts = asyncio.run(_publish(job_of, 20))
    assert len({receipt.id for receipt in receipts}) == 20
    t.run()
    assert sorted(ran) == list(range(20))


def test_what_serves_acknowledgements_does_not_connect_a_closed_app_again(streamjobs_testing, monkeypatch) -> None:
    """The app is closed just after it has looked whether it is."""
    app = App("shop")
    streamjobs_testing(app)
    publisher, made, pid = app.publisher, [], os.getpid()
    monkeypatch.setattr(type(publisher), "producer", lambda self: made.append(self))

    def closing() -> int:
        publisher.close()
        return pid

    with monkeypatch.context() as moment:
        moment.setattr("streamjobs.publish.os.getpid", closing)
        publisher._poll_forever()

    assert made == []


def test_many_threads_publish_through_one_producer(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def job_of(n: int) -> None: ...

    t = streamjobs_testing(app)
    threads = [threading.Thread(target=lambda: [job_of.publish(n=n) for n in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert t.run() == 200


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not(streamjobs_testing) -> None:  # edge 75
    """Another thread is about to connect when its process forks."""
    app = App("shop")
    streamjobs_testing(app)
    inside, over = threading.Event(), threading.Event()

    def connect() -> None:
        with app._lock:
            inside.set()
            over.wait(30)

    threading.Thread(target=connect, daemon=True).start()
    assert inside.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)  # ends the child if it waits
        assert app.publisher is not None
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    over.set()
    assert status == 0


def test_a_forked_child_builds_its_own_producer(streamjobs_testing) -> None:  # edge 75
    """One that was used before the fork would deliver nothing in the child."""
    app = App("shop")

    @app.job
    def job_of(n: int) -> None: ...

    streamjobs_testing(app)
    job_of.publish(n=1)
    mine = app.publisher.producer()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, b"1" if app.publisher.producer() is not mine else b"0")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"1"
    assert app.publisher.producer() is mine
