"""Topics, registrations, tables and the janitor on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from streamjobs import admin, orders, provision, tables
from streamjobs.backlog import Collector
from streamjobs.broker import Broker, Commit, Start, TopicPartition
from streamjobs.core.offsets import Finished, Mark, encode
from streamjobs.core.record import Record
from streamjobs.testing import ManualClock

pytestmark = pytest.mark.broker

AppOn = Callable[..., Any]
WaitUntil = Callable[..., None]


@pytest.fixture
def app(kafka: Broker, app_on: AppOn, prefix: str) -> Any:
    """An app with topics of its own, provisioned."""
    made = app_on(kafka, "invoices", **prefixes(prefix))
    applied = provision.apply(made, provision.plan(made))
    assert applied.failed == []
    return made


def prefixes(prefix: str) -> dict[str, str]:
    short = prefix[-16:]
    return {"jobs_prefix": f"j{short}", "system_prefix": f"s{short}", "name": f"a{short}"}


def publish(app: Any, count: int, partition: int = 0) -> None:
    tables.write_once(app.broker, [Record(app.names.main("invoices"), b"x", partition=partition)] * count)


def commit(app: Any, base: int, *finished: int) -> TopicPartition:
    where = TopicPartition(app.names.main("invoices"), 0)
    topic_id = app.broker.admin().topics([where.topic])[where.topic].id
    mark = Mark(topic_id[:4], Finished.of(finished))
    app.broker.admin().alter_committed(app.group, {where: Commit(base, encode(base, mark))})
    return where


def test_an_empty_cluster_gets_what_the_plan_says_and_needs_nothing_more(app: Any) -> None:
    again = provision.plan(app)
    assert (again.changes, again.findings) == ((), ())
    assert provision.check(app) == []

    topics = app.broker.admin().topics(config=True)
    main = topics[app.names.main("invoices")]
    assert main.partitions == 2
    assert main.config["retention.ms"] == "-1" and main.config["message.timestamp.type"] == "LogAppendTime"
    assert topics[app.names.control].partitions == 1
    assert topics[app.names.control].config["cleanup.policy"] == "compact"


def test_group_settings_are_taken_or_noted(kafka: Broker, app_on: AppOn, prefix: str) -> None:
    """A cluster with Kafka's own minimum refuses a session of 1 s: that is a sentence, not a failure."""
    app = app_on(kafka, "invoices", **prefixes(prefix), **{"worker.session_timeout": "1s"})

    applied = provision.apply(app, provision.plan(app))

    assert applied.failed == []
    assert any("consumer.session.timeout.ms=1000" in note for note in applied.notes)


def test_the_group_grows_with_its_topic(app: Any, app_on: AppOn, prefix: str) -> None:  # edge 30
    larger = app_on(app.broker, "invoices", partitions=5, **prefixes(prefix))
    found = provision.plan(larger)
    assert [change.target for change in provision.apply(larger, found).refused] == [
        app.names.main("invoices"),
        app.names.retry("invoices", app.group),
    ]

    applied = provision.apply(larger, found, yes=True)

    assert applied.failed == []
    assert app.broker.admin().topics()[app.names.main("invoices")].partitions == 5
    registration = orders.read(app.broker, app.names).registration(app.group, app.names.main("invoices"))
    assert registration is not None and dict(registration.starts) == dict.fromkeys(range(5), 0)


def test_a_worker_that_lacks_a_topic_is_told_at_once(app: Any) -> None:  # edge 32
    """Producing to it would only fail after 30 s (measured), with a job in hand."""
    app.broker.admin().delete_topics([app.names.dead("invoices", app.group)])
    began = time.monotonic()

    problems = provision.check(app)

    assert [problem.message for problem in problems] == [
        f"topic {app.names.dead('invoices', app.group)} is missing"
    ]
    assert time.monotonic() - began < 10


def test_an_abandoned_tier_goes_when_it_is_empty(
    app: Any, app_on: AppOn, prefix: str, wait_until: WaitUntil
) -> None:
    fewer = app_on(app.broker, "invoices", **{**prefixes(prefix), "delay.tiers": ["5s"]})
    tier = app.names.delay(app.name, "1m")

    provision.apply(fewer, provision.plan(fewer))

    wait_until(lambda: tier not in app.broker.admin().topics())
    assert tier not in orders.read(app.broker, app.names).registered_topics()


def test_a_table_is_read_behind_markers_and_aborted_records(app: Any) -> None:  # edge 15
    """The last offsets are a marker, an aborted record and its marker: no record ever reaches the end."""
    topic = app.names.dead("invoices", app.group)
    producer = app.broker.transactional_producer(f"t-{app.name}")
    producer.init()
    for value, end in ((b"kept", producer.commit), (b"aborted", producer.abort)):
        producer.begin()
        producer.send(Record(topic, value, b"k1", partition=0))
        producer.flush(10)
        end()
    producer.close()

    assert {key: row.value for key, row in tables.read_table(app.broker, topic, patience=5).items()} == {
        b"k1": b"kept"
    }


def test_a_long_table_is_read_twice(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = app.names.dead("invoices", app.group)
    letters = [
        Record(topic, b"%d" % turn, b"k%d" % n, partition=n % 2) for turn in range(3) for n in range(100)
    ]
    tables.write_once(
        app.broker, [*letters, *(Record(topic, None, b"k%d" % n, partition=n % 2) for n in range(40))]
    )
    monkeypatch.setattr(tables, "SMALL", 10)

    found = {message.key(): message.value() for message in tables.live(app.broker, topic)}

    assert found == {b"k%d" % n: b"2" for n in range(40, 100)}


def test_backlog(app: Any) -> None:
    publish(app, 10)
    commit(app, 4, 5, 6, 8)

    found = Collector(app).collect()

    (main,) = [item for item in found.queues if item.tier == "main"]
    assert main.pending == 3
    assert main.oldest_s is not None and 0 <= main.oldest_s < 60


def test_a_tail_of_markers_is_no_backlog(app: Any) -> None:  # edge 16
    producer = app.broker.transactional_producer(f"t-{app.name}")
    producer.init()
    producer.begin()
    producer.send(Record(app.names.main("invoices"), b"x", partition=0))
    producer.flush(10)
    producer.commit()
    producer.close()
    commit(app, 1)

    (main,) = [item for item in Collector(app).collect().queues if item.tier == "main"]

    assert (main.pending, main.oldest_s) == (0, 0.0)


class Idle:
    """A member that begins at 0 and does nothing."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        return {tp: Start(0) for tp in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def test_a_living_group_is_ordered_and_an_empty_one_is_moved(app: Any, wait_until: WaitUntil) -> None:
    publish(app, 5)
    where = commit(app, 2)
    member = app.broker.consumer(app.group)
    member.subscribe([where.topic], Idle())
    wait_until(
        lambda: app.broker.admin().groups([app.group])[app.group].members, turn=lambda: member.fetch(0, 0.1)
    )

    shown = admin.plan_seek(app, app.group, "latest", topics=[where.topic], partitions=[0])
    done, complaint = admin.apply_seek(app, shown, reason="a test")

    assert (done.live, complaint) == (True, "")
    assert app.broker.admin().committed(app.group)[where].offset == 2
    assert orders.read(app.broker, app.names).seek_for(app.group, *where) is not None

    member.close()
    wait_until(lambda: not app.broker.admin().groups([app.group])[app.group].members)
    done, _ = admin.apply_seek(
        app, admin.plan_seek(app, app.group, "latest", topics=[where.topic]), reason=""
    )
    assert not done.live
    assert app.broker.admin().committed(app.group)[where].offset == 5


def test_history_is_trimmed_and_only_that(app: Any) -> None:
    publish(app, 6)
    where = commit(app, 4)
    app.clock = ManualClock(time.time() + 8 * 86_400)

    found = admin.plan_trim(app, topics=[where.topic])
    trimmed = admin.apply_trim(app, found)

    assert [(cut.partition, cut.start, cut.before) for cut in found.cuts] == [(where, 0, 4)]
    assert [(item.group, item.partition) for item in found.blocked] == [(app.group, 0)]
    assert trimmed.failed == []
    assert app.broker.admin().offsets([where], "earliest") == {where: 4}


def test_a_recreated_topic_is_not_trimmed_by_old_commits(app: Any, wait_until: WaitUntil) -> None:  # edge 31
    """The group finished 50,000 jobs of the topic that was; of the new one, none."""
    publish(app, 6)
    where = commit(app, 6)
    app.broker.admin().delete_topics([where.topic])
    wait_until(lambda: where.topic not in app.broker.admin().topics())
    provision.apply(app, provision.plan(app))
    publish(app, 9)
    app.clock = ManualClock(time.time() + 8 * 86_400)
    kept = app.broker.admin().committed(app.group).get(where)

    found = admin.plan_trim(app, topics=[where.topic])

    assert found.cuts == ()
    assert [item.kind for item in found.blocked] == ["janitor_blocked"], kept
