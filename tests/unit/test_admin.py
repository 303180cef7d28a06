"""Seeks and the janitor: what is planned, what is done, and what is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from streamjobs import admin, orders, provision, tables
from streamjobs.broker import Commit, Start, TopicPartition
from streamjobs.core import control
from streamjobs.core.offsets import Finished, Mark, decode, encode
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError, ProvisionError, UsageError
from streamjobs.testing import ManualClock, MemoryBroker

AppOn = Callable[..., Any]
DAY = 86_400.0
MAIN, RETRY = "jobs.invoices", "jobs.invoices.billing.retry"
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


def publish(broker: MemoryBroker, count: int, topic: str = MAIN, partition: int = 0) -> None:
    tables.write_once(broker, [Record(topic, b"x", partition=partition)] * count)


def commit(
    broker: MemoryBroker, base: int, *finished: int, where: TopicPartition = P0, group: str = "billing"
) -> None:
    topic_id = broker.admin().topics([where.topic])[where.topic].id
    mark = Mark(topic_id[:4], Finished.of(finished), sought=3)
    broker.admin().alter_committed(group, {where: Commit(base, encode(base, mark))})


def committed(broker: MemoryBroker, group: str = "billing") -> dict[TopicPartition, int]:
    return {tp: commit.offset for tp, commit in broker.admin().committed(group).items()}


def audited(broker: MemoryBroker, action: str) -> list[Mapping[str, Any]]:
    entries = [json.loads(record.value() or b"") for record in broker.records("streamjobs.audit")]
    return [entry for entry in entries if entry["action"] == action]


class Idle:
    """A member that begins where it is told to and does nothing."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        return {tp: Start(0) for tp in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


def registration(app: Any, topic: str) -> bytes | None:
    """The value of the group's registration there."""
    key = control.registration_key("billing", topic).encode()
    return next(message.value() for message in tables.live(app.broker, app.names.control) if message.key() == key)


def join(broker: MemoryBroker, group: str = "billing") -> Any:
    member = broker.consumer(group)
    member.subscribe([MAIN], Idle())
    member.fetch(0, 0.0)
    return member


# --- groups -------------------------------------------------------------------------------------------------


def test_groups_with_their_places(app: Any, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 2, 3)
    join(broker)

    found = {item.group.name: item for item in admin.groups(app)}

    assert set(found) == {"billing", "billing.retry", "billing.timer"}
    assert found["billing"].group.state == "stable" and len(found["billing"].group.members) == 1
    assert found["billing"].pending == 2
    assert found["billing.retry"].group.state == "dead"


# --- seek ---------------------------------------------------------------------------------------------------


def test_an_empty_group_is_moved_at_once(app: Any, broker: MemoryBroker) -> None:
    publish(broker, 10)
    commit(broker, 7, 8)

    shown = admin.plan_seek(app, "billing", "earliest", topics=[MAIN])
    done, complaint = admin.apply_seek(app, shown, reason="mails were lost")

    assert not done.live and complaint == ""
    assert [(move.partition, move.before, move.to, move.again) for move in shown.moves] == [
        (P0, 7, 0, 7),
        (P1, None, 0, 0),
    ]
    assert committed(broker) == {P0: 0, P1: 0}
    assert audited(broker, "group seek")[0]["reason"] == "mails were lost"


def test_a_moved_commit_says_its_topic_and_keeps_no_map(app: Any, broker: MemoryBroker) -> None:
    """The old map would skip jobs that are to run again; without the topic's id the janitor would stand
    still."""
    publish(broker, 10)
    commit(broker, 3, 5, 6)

    admin.apply_seek(app, admin.plan_seek(app, "billing", "earliest"), reason="")

    mark = decode(*broker.admin().committed("billing")[P0])
    assert mark is not None
    assert mark.topic_id4 == broker.admin().topics([MAIN])[MAIN].id[:4]
    assert not mark.finished
    assert mark.sought == 3


def test_a_group_with_members_is_ordered(app: Any, broker: MemoryBroker) -> None:
    """What an outsider commits, the owner overwrites half a second later."""
    publish(broker, 10)
    join(broker)

    done, _ = admin.apply_seek(
        app, admin.plan_seek(app, "billing", "latest", topics=[MAIN]), reason="skip them"
    )

    assert done.live
    assert committed(broker) == {}
    order = orders.read(broker, app.names).seek_for("billing", MAIN, 0)
    assert order is not None and order.to == 10


def test_a_member_that_joins_in_between_gets_the_order(
    app: Any, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(broker, 10)
    shown = admin.plan_seek(app, "billing", "latest", topics=[MAIN])
    alter = type(broker.admin()).alter_committed

    def late(self: Any, group: str, offsets: Any) -> None:
        join(broker)
        alter(self, group, offsets)

    monkeypatch.setattr(type(broker.admin()), "alter_committed", late)

    done, _ = admin.apply_seek(app, shown, reason="")

    assert done.live
    assert orders.read(broker, app.names).seek_for("billing", MAIN, 0) is not None


def test_an_open_order_does_not_outlive_a_move(app: Any, broker: MemoryBroker) -> None:
    """Ordered to the start; before an owner came the operator moves the group to the end. The next owner must
    not go back."""
    publish(broker, 10)
    key = control.seek_key("billing", MAIN, 0, "first")
    orders.write(broker, app.names, {key: control.seek_value(to=0, actor="x", reason="", at=0.0)})

    admin.apply_seek(app, admin.plan_seek(app, "billing", "latest"), reason="")

    assert orders.read(broker, app.names).seek_for("billing", MAIN, 0) is None
    assert committed(broker)[P0] == 10


def test_where_it_stands_already_is_no_change(app: Any, broker: MemoryBroker) -> None:
    """What bit: "16 changes", of which 14 were from 0 to 0."""
    publish(broker, 5)
    commit(broker, 3)
    commit(broker, 0, where=P1)

    shown = admin.plan_seek(app, "billing", "earliest", topics=[MAIN])
    done, _ = admin.apply_seek(app, shown, reason="")

    assert [move.partition for move in shown.moves] == [move.partition for move in done.moves] == [P0]
    assert shown.standing == (P1,)
    assert audited(broker, "group seek")[0]["count"] == 1
    assert admin.plan_seek(app, "billing", "earliest", topics=[MAIN]).moves == ()


def test_what_a_commit_says_besides_the_offset_is_a_change(app: Any, broker: MemoryBroker) -> None:
    """Jobs that are finished beyond it; another topic of the name; an order that is still open."""
    publish(broker, 5)
    seek = partial(admin.plan_seek, app, "billing", "earliest", topics=[MAIN], partitions=[0])

    commit(broker, 0, 2)
    assert len(seek().moves) == 1, "job 2 shall run again"
    broker.admin().alter_committed("billing", {P0: Commit(0, encode(0, Mark(b"else", clean=True)))})
    assert len(seek().moves) == 1
    admin.apply_seek(app, seek(), reason="")
    assert seek().moves == ()
    key = control.seek_key("billing", MAIN, 0, "first")
    orders.write(broker, app.names, {key: control.seek_value(to=5, actor="x", reason="", at=0.0)})
    assert len(seek().moves) == 1


def test_a_group_with_members_may_have_come_further_than_its_commit(app: Any, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 0)
    commit(broker, 0, where=P1)
    join(broker)

    shown = admin.plan_seek(app, "billing", "earliest", topics=[MAIN])

    assert [move.partition for move in shown.moves] == [P0], "there is nothing in the other one"


def test_a_plan_of_which_nothing_is_left_moves_nothing(app: Any, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 3)
    shown = admin.plan_seek(app, "billing", "earliest", topics=[MAIN], partitions=[0])
    admin.apply_seek(app, shown, reason="")

    done, _ = admin.apply_seek(app, shown, reason="")

    assert (done.moves, done.live) == ((), False)


def test_a_seek_order_ends(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, 10)
    join(broker)
    admin.apply_seek(app, admin.plan_seek(app, "billing", "latest", topics=[MAIN]), reason="")

    (order, _) = orders.read(broker, app.names).orders(control.Kind.SEEK)

    assert (order.at, order.until) == (clock.now(), clock.now() + DAY)


def test_to_an_instant(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, 4)
    clock.advance(100)
    publish(broker, 4)
    commit(broker, 8)

    found = admin.plan_seek(app, "billing", clock.now() - 50, topics=[MAIN])

    assert [(move.to, move.again) for move in found.moves] == [(4, 4), (0, 0)]


def test_to_what_was_reported(app: Any, broker: MemoryBroker) -> None:
    """Offsets that the broker forgot are in the workers' reports; never beyond what the log has."""
    publish(broker, 10)
    publish(broker, 3, partition=1)

    found = admin.plan_seek(app, "billing", "reported", topics=[MAIN], reported={P0: 6, P1: 99})

    assert [(move.partition, move.to) for move in found.moves] == [(P0, 6), (P1, 3)]


def test_a_partition_without_a_report_stays(app: Any, broker: MemoryBroker) -> None:
    found = admin.plan_seek(app, "billing", "reported", topics=[MAIN], reported={P0: 0})

    assert found.missing == (P1,)
    assert [move.partition for move in found.moves] == [P0]


def test_one_partition_only(app: Any, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 5)
    commit(broker, 0, where=P1)

    admin.apply_seek(
        app, admin.plan_seek(app, "billing", "earliest", topics=[MAIN], partitions=[1]), reason=""
    )

    assert committed(broker) == {P0: 5, P1: 0}


@pytest.mark.parametrize(("group", "topics"), [("biling", []), ("billing", [RETRY])])
def test_an_unregistered_group_is_not_moved(app: Any, group: str, topics: list[str]) -> None:
    with pytest.raises(UsageError, match="is not registered"):
        admin.plan_seek(app, group, "earliest", topics=topics)


def test_what_a_partition_without_a_commit_passes_over(app: Any, broker: MemoryBroker) -> None:
    """What bit: to `latest` the plan said "skipped: 0", and all the jobs that waited for the group's first worker never ran."""
    publish(broker, 10)
    publish(broker, 3, partition=1)
    broker.admin().delete_records({P1: 2})

    found = admin.plan_seek(app, "billing", "latest", topics=[MAIN])

    assert [(move.partition, move.before, move.skipped, move.again) for move in found.moves] == [(P0, None, 10, 0), (P1, None, 1, 0)]


def test_what_waits_for_a_group_begins_where_it_is_registered(broker: MemoryBroker, app_on: AppOn, app: Any) -> None:
    publish(broker, 10)
    late = app_on(broker, "invoices", name="reports")
    provision.apply(late, provision.plan(late, from_="now"))
    publish(broker, 2)

    found = admin.plan_seek(late, "reports", "latest", topics=[MAIN], partitions=[0])

    assert [(move.before, move.skipped) for move in found.moves] == [(None, 2)]


@pytest.mark.parametrize(("worked", "jobs"), [(False, 7), (True, 7), (True, 12)])
def test_what_waits_in_a_topic_made_again_is_passed_over_from_its_start(
    app: Any, broker: MemoryBroker, app_on: AppOn, worked: bool, jobs: int
) -> None:  # edge 31
    """What bit: the plan counted from where the group was registered in the topic that was, and said "skipped: 0"."""
    publish(broker, 10)
    late = app_on(broker, "invoices", name="reports")
    provision.apply(late, provision.plan(late, from_="now"))
    topic = broker.admin().topics([MAIN], config=True)[MAIN]
    if worked:
        marks = {control.started_key("reports", MAIN, topic.id, 0): control.started_value(actor="w1", at=0.0)}
        orders.write(broker, late.names, marks)
    broker.admin().delete_topics([MAIN])
    broker.admin().create_topics([topic])
    publish(broker, jobs)

    found = admin.plan_seek(late, "reports", "latest", topics=[MAIN], partitions=[0])

    assert [(move.before, move.skipped) for move in found.moves] == [(None, jobs)]


@pytest.mark.parametrize("topics", [[MAIN], []], ids=["named", "all"])
def test_a_topic_that_is_missing_is_named(app: Any, broker: MemoryBroker, topics: list[str]) -> None:
    """Not an empty plan: there is something to do, and it can't be done."""
    broker.admin().delete_topics([MAIN])

    with pytest.raises(ProvisionError, match=f"topic {MAIN}, on which group billing is registered, is missing"):
        admin.plan_seek(app, "billing", "earliest", topics=topics)


def test_a_topic_that_no_member_reads_is_told(app: Any, broker: MemoryBroker) -> None:
    """What bit: workers of another queue keep the group alive; "the owners carry it out", and there is none."""
    orders.write(broker, app.names, {control.registration_key("billing", RETRY): registration(app, MAIN)})
    join(broker)

    shown = admin.plan_seek(app, "billing", "earliest")
    done, _ = admin.apply_seek(app, shown, reason="")

    assert shown.live and shown.unread == (RETRY,)
    assert done.live and done.unread == (RETRY,)


def test_of_an_empty_group_nobody_has_to_read(app: Any) -> None:
    assert admin.plan_seek(app, "billing", "earliest").unread == ()


# --- trim ---------------------------------------------------------------------------------------------------


@pytest.fixture
def old(app: Any, broker: MemoryBroker, clock: ManualClock) -> Any:
    """Ten jobs in partition 0, eight days old, and five of today; all finished by the group."""
    publish(broker, 10)
    clock.advance(8 * DAY)
    publish(broker, 5)
    commit(broker, 15)
    return app


def trim(app: Any, clock: ManualClock, **options: Any) -> admin.TrimPlan:
    app.clock = clock
    return admin.plan_trim(app, **options)


def test_finished_history_goes(old: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    found = trim(old, clock)

    assert [(cut.partition, cut.start, cut.before) for cut in found.cuts] == [(P0, 0, 10)]
    trimmed = admin.apply_trim(old, found)
    assert trimmed.failed == [] and trimmed.complaint == ""
    assert broker.admin().offsets([P0], "earliest") == {P0: 10}
    assert audited(broker, "topic trim")[0]["count"] == 10
    assert trim(old, clock).cuts == ()


def test_what_is_not_finished_stays_and_the_group_is_named(
    old: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    commit(broker, 4, *range(5, 15))

    found = trim(old, clock)

    assert [(cut.start, cut.before) for cut in found.cuts] == [(0, 4)]
    (held,) = found.blocked
    assert (held.kind, held.group, held.partition) == ("janitor_blocked", "billing", 0)


def test_the_slowest_of_several_groups_decides(
    old: Any, broker: MemoryBroker, app_on: AppOn, clock: ManualClock
) -> None:
    other = app_on(broker, "invoices", name="reports")
    provision.apply(other, provision.plan(other))
    commit(broker, 2, group="reports")

    assert [(cut.start, cut.before) for cut in trim(old, clock).cuts] == [(0, 2)]


def test_a_group_of_somebody_else_has_a_say(old: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """It is not registered and its commits are not ours: it still reads here."""
    broker.admin().alter_committed("warehouse", {P0: Commit(3)})

    assert [(cut.start, cut.before) for cut in trim(old, clock).cuts] == [(0, 3)]


def test_a_registered_group_without_a_commit_blocks(
    old: Any, broker: MemoryBroker, app_on: AppOn, clock: ManualClock
) -> None:
    """*Bites*: a queue whose second group starts in two weeks is finished by all groups that have a
    commit."""
    late = app_on(broker, "invoices", name="reports")
    provision.apply(late, provision.plan(late))

    found = trim(old, clock)

    assert found.cuts == ()
    assert [(item.kind, item.group) for item in found.blocked] == [("janitor_blocked", "reports")]


def test_a_topic_without_a_registered_group_blocks(
    old: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    orders.write(broker, old.names, {control.registration_key("billing", MAIN): None})

    found = trim(old, clock)

    assert found.cuts == ()
    assert "no group is registered" in found.blocked[0].message


@pytest.mark.parametrize("metadata", [encode(15, Mark(b"else")), "", "junk"])
def test_a_commit_in_another_topic_blocks(  # edge 31
    old: Any, broker: MemoryBroker, clock: ManualClock, metadata: str
) -> None:
    broker.admin().alter_committed("billing", {P0: Commit(15, metadata)})

    found = trim(old, clock)

    assert found.cuts == ()
    assert [item.kind for item in found.blocked] == ["janitor_blocked"]


def test_young_records_raise_no_alarm(app: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    """Nobody has started yet, and nothing is old: there is nothing to be blocked."""
    publish(broker, 10)

    found = trim(app, clock)

    assert (found.cuts, found.blocked) == ((), ())


def test_topics_of_other_apps_are_trimmed_too(old: Any, app_on: AppOn, clock: ManualClock) -> None:
    """Seen from an app that has no job in them, as the command's help says; by name, only what is named."""
    another = app_on(old.broker, "mails", name="another")
    provision.apply(another, provision.plan(another))

    assert {cut.partition.topic for cut in trim(another, clock).cuts} == {MAIN}
    assert admin.plan_trim(another, topics=["jobs.mails"]).cuts == ()


def test_tables_are_never_trimmed(old: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    tables.write_once(broker, [Record("jobs.invoices.billing.dlt", b"x", b"k", partition=0)])
    clock.advance(30 * DAY)
    dead = TopicPartition("jobs.invoices.billing.dlt", 0)

    found = trim(old, clock)
    admin.apply_trim(old, found)

    assert broker.admin().offsets([dead], "earliest") == {dead: 0}
    assert {cut.partition.topic for cut in found.cuts} == {MAIN}


def test_a_seek_back_after_the_plan_saves_the_jobs(
    old: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    shown = trim(old, clock)
    commit(broker, 2)

    admin.apply_trim(old, shown)

    assert broker.admin().offsets([P0], "earliest") == {P0: 2}


def test_no_more_is_deleted_than_was_shown(old: Any, broker: MemoryBroker, clock: ManualClock) -> None:
    shown = trim(old, clock)
    clock.advance(30 * DAY)

    admin.apply_trim(old, shown)

    assert broker.admin().offsets([P0], "earliest") == {P0: 10}


def test_history_is_a_setting(broker: MemoryBroker, app_on: AppOn, old: Any, clock: ManualClock) -> None:
    assert trim(app_on(broker, "invoices", history="30d"), clock).cuts == ()


def test_a_broker_that_can_delete_nothing_says_so(
    old: Any, broker: MemoryBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trim(old, clock)
    monkeypatch.setattr(broker, "lacks", frozenset({"delete_records"}), raising=False)

    with pytest.raises(BrokerError, match="can't delete records"):
        admin.apply_trim(old, found)


def test_a_partition_that_refuses_is_told(
    old: Any, broker: MemoryBroker, clock: ManualClock, monkeypatch: Any
) -> None:
    found = trim(old, clock)
    refusal = BrokerError("POLICY_VIOLATION", "no")
    monkeypatch.setattr(
        type(broker.admin()), "delete_records", lambda _, before: dict.fromkeys(before, refusal)
    )

    trimmed = admin.apply_trim(old, found)

    assert trimmed.done == [] and [error for _, error in trimmed.failed] == [refusal]
    assert audited(broker, "topic trim")[0]["result"] == "1 partitions failed"


# --- audit --------------------------------------------------------------------------------------------------


def test_an_order_that_cannot_be_noted_is_carried_out(
    old: Any, broker: MemoryBroker, clock: ManualClock
) -> None:
    """Raising would say that nothing was done."""
    found = trim(old, clock)
    broker.fail("send", topic="streamjobs.audit", error="TOPIC_AUTHORIZATION_FAILED")

    trimmed = admin.apply_trim(old, found)

    assert trimmed.done and "could not be noted" in trimmed.complaint
