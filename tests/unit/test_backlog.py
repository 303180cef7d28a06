"""Depth, age and growth, from what the broker knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import orders, provision, tables
from streamjobs.backlog import Backlog, Collector, QueueLag
from streamjobs.broker import Commit, TopicPartition
from streamjobs.core.control import started_key, started_value
from streamjobs.core.offsets import Finished, Mark, encode
from streamjobs.core.record import Record, encoded
from streamjobs.testing import ManualClock, MemoryBroker

AppOn = Callable[..., Any]
MAIN, RETRY = "jobs.invoices", "jobs.invoices.billing.retry"
#: The manual clock begins at 2025-06-15T15:06:40Z.
P0, P1 = TopicPartition(MAIN, 0), TopicPartition(MAIN, 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest.fixture
def app(broker: MemoryBroker, app_on: AppOn, clock: ManualClock) -> Any:
    made = app_on(broker, "invoices")
    made.clock = clock
    provision.apply(made, provision.plan(made))
    return made


def publish(broker: MemoryBroker, topic: str, count: int = 1, partition: int = 0, **headers: Any) -> None:
    record = Record(topic, b"x", None, encoded(headers.items()), partition)
    tables.write_once(broker, [record] * count)


def commit(
    broker: MemoryBroker, where: TopicPartition, base: int, *finished: int, group: str = "billing"
) -> None:
    topic_id = broker.admin().topics([where.topic])[where.topic].id
    mark = Mark(topic_id[:4], Finished.of(finished))
    broker.admin().alter_committed(group, {where: Commit(base, encode(base, mark))})


def look(app: Any) -> Backlog:
    return Collector(app).collect()


def main_of(backlog: Backlog, group: str = "billing") -> QueueLag:
    (found,) = [item for item in backlog.queues if (item.group, item.tier) == (group, "main")]
    return found


# --- depth --------------------------------------------------------------------------------------------------


def test_jobs_finished_behind_an_unfinished_head_are_not_pending(
    app: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    publish(broker, MAIN, 10)
    commit(broker, P0, 4, 5, 6, 8)

    assert main_of(look(app)).pending == 3


def test_a_queue_without_any_worker_is_pending_from_where_it_is_registered(
    app: Any, broker: MemoryBroker, app_on: AppOn, clock: ManualClock
) -> None:
    """Not the log's end: the jobs of a group that never ran are waiting, all of them."""
    publish(broker, MAIN, 10)
    late = app_on(broker, "invoices", name="reports")
    provision.apply(late, provision.plan(late, from_="now"))
    publish(broker, MAIN, 2)

    found = look(app)

    assert main_of(found).pending == 12
    assert main_of(found, "reports").pending == 2


def test_what_rests_is_kept_once_in_all_samples(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """A thousand queues that are watched for an hour are a million positions, nearly all alike."""
    collector = Collector(app)
    for count in (1, 0, 1):
        publish(broker, MAIN, count)
        clock.advance(5)
        collector.collect()

    first, second, third = list(main_of(collector.collect()).samples)[:3]
    assert first.positions is second.positions
    assert third.positions[0] != second.positions[0] and third.positions[1] is second.positions[1]


@pytest.mark.parametrize(("worked", "jobs"), [(False, 7), (True, 7), (True, 12)])
def test_a_topic_made_again_is_pending_from_its_start(
    app: Any, broker: MemoryBroker, app_on: AppOn, worked: bool, jobs: int
) -> None:  # edge 31
    """The group was registered at 10 in the topic that was; its commits went with that."""
    publish(broker, MAIN, 10)
    late = app_on(broker, "invoices", name="reports")
    provision.apply(late, provision.plan(late, from_="now"))
    admin = broker.admin()
    (topic,) = admin.topics([MAIN], config=True).values()
    if worked:
        marks = {started_key("reports", MAIN, topic.id, 0): started_value(actor="w1", at=0.0)}
        orders.write(broker, late.names, marks)
    admin.delete_topics([MAIN])
    admin.create_topics([topic])
    publish(broker, MAIN, jobs)

    assert main_of(look(app), "reports").pending == jobs


def test_what_retention_deleted_is_told_and_not_pending(
    app: Any, broker: MemoryBroker, clock: ManualClock
) -> None:  # edge 26
    publish(broker, MAIN, 10)
    commit(broker, P0, 2)
    broker.admin().delete_records({P0: 7})

    found = main_of(look(app))

    assert (found.pending, found.deleted) == (3, 5)


@pytest.mark.parametrize(("base", "registered"), [(4, 10), (50, 10)])
def test_the_commit_of_an_earlier_topic_counts_nothing(app: Any, broker: MemoryBroker, base: int, registered: int) -> None:
    """Its next owner starts at the log's start. *Bites*: the owner of a topic that was made again committed once more before it noticed,
    and died: ten jobs wait, and the lag says 6, or none."""
    publish(broker, MAIN, registered)
    mark = Mark(b"else", Finished.of([base + 1, base + 2]))
    broker.admin().alter_committed("billing", {P0: Commit(base, encode(base, mark))})

    found = main_of(look(app))
    assert (found.pending, found.deleted) == (10, 0)


def test_of_what_retention_deleted_only_the_unfinished_is_told(app: Any, broker: MemoryBroker) -> None:  # edge 26
    """Behind an old head, 1, 2 and 5 were finished; the log loses all before 3."""
    publish(broker, MAIN, 10)
    commit(broker, P0, 0, 1, 2, 5)
    broker.admin().delete_records({P0: 3})

    found = main_of(look(app))

    assert (found.pending, found.deleted) == (6, 1)


def test_what_retention_deleted_before_anyone_came_is_told(app: Any, broker: MemoryBroker) -> None:  # edge 26
    """Registered at 0, as the worker that comes will find, too: `jobs_deleted`."""
    publish(broker, MAIN, 10)
    broker.admin().delete_records({P0: 7})

    found = main_of(look(app))

    assert (found.pending, found.deleted) == (3, 7)


def test_a_map_that_knows_more_than_the_log_has_counts_nothing(
    app: Any, broker: MemoryBroker
) -> None:  # edge 35
    """A power cut shortened the log; what is at offsets 5 and 6 now are other jobs."""
    publish(broker, MAIN, 10)
    commit(broker, P0, 4, 5, 6, 20)

    assert main_of(look(app)).pending == 6


def test_a_lag_is_never_negative(
    app: Any, broker: MemoryBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends asked for before commits: a job that is published and finished in between makes -1."""
    publish(broker, MAIN, 5)
    admin = type(broker.admin())
    asked = admin.committed

    def work_goes_on(self: Any, group: str, partitions: Any = None) -> Any:
        found = asked(self, group, partitions)
        if group == "billing":
            publish(broker, MAIN, 3)
            commit(broker, P0, 8)
        return found

    monkeypatch.setattr(admin, "committed", work_goes_on)
    commit(broker, P0, 5)

    positions = main_of(look(app)).positions
    assert positions[0].end - positions[0].base == 3


def test_retries_are_told_apart_from_main(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, RETRY, 3)

    found = {(item.queue, item.group, item.tier): item.pending for item in look(app).queues}

    assert found == {("invoices", "billing", "main"): 0, ("invoices", "billing", "retry"): 3}


def test_delayed_jobs_are_no_backlog(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, "streamjobs.billing.delay.1m", 4, partition=3)

    found = look(app)

    assert found.pending == 0
    assert found.delayed == {"1m": 4, "5s": 0}


def test_a_tail_of_transaction_markers_is_no_job(
    app: Any, broker: MemoryBroker, clock: ManualClock
) -> None:  # edge 16
    producer = broker.transactional_producer("t")
    producer.init()
    producer.begin()
    producer.send(Record(MAIN, b"x", partition=0))
    producer.commit()
    commit(broker, P0, 1)

    found = main_of(look(app))

    assert (found.pending, found.oldest_s) == (0, 0.0)


def test_only_the_queues_that_were_asked_for(broker: MemoryBroker, app_on: AppOn, clock: ManualClock) -> None:
    app = app_on(broker, "invoices", "mails")
    provision.apply(app, provision.plan(app))

    found = Collector(app).collect(["mails"])

    assert {item.queue for item in found.queues} == {"mails"}


# --- age ----------------------------------------------------------------------------------------------------


def test_the_age_is_that_of_the_oldest_unfinished_job(
    app: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    publish(broker, MAIN)
    clock.advance(50)
    publish(broker, MAIN)
    clock.advance(10)
    assert main_of(look(app)).oldest_s == pytest.approx(60)

    commit(broker, P0, 1)
    assert main_of(look(app)).oldest_s == pytest.approx(10)

    commit(broker, P0, 2)
    assert main_of(look(app)).oldest_s == 0.0


def test_a_head_without_a_value_has_an_age(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """*Bites*: such a message counts as false, so it was taken for no message at all, and the queue for one without age."""
    tables.write_once(broker, [Record(MAIN, None, b"key", (), 0)])
    clock.advance(7)
    assert main_of(look(app)).oldest_s == pytest.approx(7)


def test_a_job_is_as_old_as_its_due_time(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, RETRY, sj_due=clock.now() + 30, ce_type="t")
    clock.advance(40)

    (retry,) = [item for item in look(app).queues if item.tier == "retry"]

    assert retry.oldest_s == pytest.approx(10)


def test_a_job_that_is_not_due_has_no_age(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, RETRY, sj_due=clock.now() + 30, ce_type="t")

    (retry,) = [item for item in look(app).queues if item.tier == "retry"]

    assert (retry.pending, retry.oldest_s) == (1, 0.0)


@pytest.mark.parametrize(
    ("headers", "age"),
    [
        ({"ce_time": "2025-06-15T15:06:40Z"}, 400.0),
        ({"ce_time": "2025-06-15T15:06:40Z", "sj_run": 2}, 100.0),
        ({"ce_time": "2025-06-15T15:06:40Z", "sj_holds": 1}, 100.0),
        ({"ce_time": "yesterday"}, 100.0),
        ({"ce_time": "2025-06-15T15:06:40"}, 100.0),
        ({"sj_due": b"soon"}, 100.0),
        ({"sj_due": b"1"}, 100.0),
        ({"sj_due": b"1", "sj_appended": b"1749999950000"}, 450.0),
        ({}, 100.0),
    ],
)
def test_since_when_a_job_could_run(
    app: Any, broker: MemoryBroker, clock: ManualClock, headers: Any, age: float
) -> None:
    """A replay of last month's job is as old as the replay; what a header says wrongly is not believed."""
    clock.advance(300)
    publish(broker, MAIN, **headers)
    clock.advance(100)

    assert main_of(look(app)).oldest_s == pytest.approx(age)


def test_a_head_that_does_not_move_is_read_once(
    app: Any, broker: MemoryBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(broker, MAIN)
    collector = Collector(app)
    collector.collect()
    clock.advance(5)
    read: list[object] = []
    monkeypatch.setattr("streamjobs.backlog.first_records", lambda *args: read.append(args) or {})

    assert main_of(collector.collect()).oldest_s == pytest.approx(5)
    assert read == []


def test_the_age_is_that_of_what_is_there_now(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """The group stands where it stood; the record there is another one, for retention took the first, or the topic was made again."""
    publish(broker, MAIN)
    clock.advance(50)
    publish(broker, MAIN)
    clock.advance(10)
    commit(broker, P0, 0)
    collector = Collector(app)
    assert main_of(collector.collect()).oldest_s == pytest.approx(60)

    admin = broker.admin()
    admin.delete_records({P0: 1})
    assert main_of(collector.collect()).oldest_s == pytest.approx(10)

    (topic,) = admin.topics([MAIN], config=True).values()
    admin.delete_topics([MAIN])
    admin.create_topics([topic])
    publish(broker, MAIN, 2)
    clock.advance(3)
    assert main_of(collector.collect()).oldest_s == pytest.approx(3)


def test_two_groups_at_different_places_have_ages_of_their_own(
    app: Any, broker: MemoryBroker, app_on: AppOn, clock: ManualClock
) -> None:
    other = app_on(broker, "invoices", name="reports")
    provision.apply(other, provision.plan(other))
    publish(broker, MAIN)
    clock.advance(50)
    publish(broker, MAIN)
    clock.advance(10)
    commit(broker, P0, 1, group="reports")

    found = look(app)

    assert main_of(found).oldest_s == pytest.approx(60)
    assert main_of(found, "reports").oldest_s == pytest.approx(10)


def test_an_age_that_nobody_can_tell_is_unknown(
    app: Any, broker: MemoryBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(broker, MAIN)
    monkeypatch.setattr("streamjobs.backlog.first_records", lambda *_: {})

    assert main_of(look(app)).oldest_s is None


# --- growth -------------------------------------------------------------------------------------------------


def test_growth_is_what_arrives_less_what_is_done(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    collector = Collector(app)
    for number in range(5):
        publish(broker, MAIN, 30)
        commit(broker, P0, 10 * number)
        found = main_of(collector.collect())
        clock.advance(10)

    assert found.rates is not None
    assert (found.rates.arrived, found.rates.done, found.rates.growth) == (3.0, 1.0, 2.0)


def test_three_looks_tell_growth_however_far_apart(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """*Bites*: `lag --watch --every 1m` said all day long that the rates are unknown."""
    collector = Collector(app)
    for _ in range(3):
        found = main_of(collector.collect())
        publish(broker, MAIN, 240)
        clock.advance(120)

    assert found.rates is not None
    assert found.rates.arrived == 2.0


def test_after_the_clock_was_set_back_growth_is_told_anew(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    collector = Collector(app)
    for jump in (0, 0, -3600, 0, 0, 0):
        found = main_of(collector.collect())
        publish(broker, MAIN, 30)
        clock.jump(jump)
        clock.advance(10)

    assert found.rates is not None
    assert found.rates.arrived == 3.0


def test_one_look_tells_no_growth(app: Any, clock: ManualClock) -> None:
    assert main_of(look(app)).rates is None


def test_a_group_that_registers_later_is_seen(
    app: Any, broker: MemoryBroker, app_on: AppOn, clock: ManualClock
) -> None:
    collector = Collector(app)
    collector.collect()
    other = app_on(broker, "invoices", name="reports")
    provision.apply(other, provision.plan(other))
    clock.advance(31)

    assert main_of(collector.collect(), "reports").pending == 0
