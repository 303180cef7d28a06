"""What a member of a consumer group is told, and what it may do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from streamjobs.broker import Broker, Commit, Start, TopicPartition


def partitions_of(topic: str, count: int = 4) -> set[TopicPartition]:
    return {TopicPartition(topic, partition) for partition in range(count)}


def shared(first: Any, second: Any) -> bool:
    return len(first.owned) == len(second.owned) == 2 and not first.owned & second.owned


def test_a_lone_member_gets_all_and_reads_from_the_starts_it_answers(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    for partition in range(4):
        world.send(topic, b"a", b"b", b"c", partition=partition)

    member = world.member(topic, start=1)
    world.turn(lambda: len(member.records) >= 8, member)

    assert member.owned == partitions_of(topic)
    assert all(member.offsets(where) == [1, 2] for where in member.owned)
    assert member.faults == []


def test_two_members_share_the_partitions(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    first, second = world.member(topic), world.member(topic)

    world.turn(lambda: shared(first, second), first, second)

    assert first.owned | second.owned == partitions_of(topic)


def test_kept_partitions_keep_flowing_while_another_member_joins(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    first = world.member(topic)
    world.turn(lambda: len(first.owned) == 4, first)
    second = world.member(topic)
    sent = 0

    def trickle() -> bool:
        nonlocal sent
        for partition in range(4):
            world.send(topic, b"%d" % sent, partition=partition)
        sent += 1
        return shared(first, second)

    world.turn(trickle, first, second)

    kept = first.owned
    world.turn(lambda: all(first.next_of(where) == sent for where in kept), first, second)
    assert all(first.offsets(where) == list(range(sent)) for where in kept)
    assert [kind for kind, partitions in first.told if kind == "revoked" and kept & set(partitions)] == []
    assert [kind for kind, _ in first.told].count("lost") == 0


def test_the_next_owner_sees_what_was_committed_at_revoke(group_broker: Broker, world: Any) -> None:  # edge 1
    topic = world.topic()
    first = world.member(topic, commit=True)
    for partition in range(4):
        world.send(topic, b"a", b"b", partition=partition)
    world.turn(lambda: len(first.records) == 8, first)

    second = world.member(topic)
    world.turn(lambda: shared(first, second), first, second)

    assert first.refused == {}
    committed = second.consumer.committed(sorted(second.owned))
    assert committed == dict.fromkeys(second.owned, Commit(2, "handed over"))
    world.send(topic, b"c", partition=next(iter(second.owned)).partition)
    world.turn(lambda: second.records, first, second)
    assert [m.offset() for m in second.records] == [2]


def test_a_held_partition_is_not_fetched_until_it_is_resumed(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    held = TopicPartition(topic, 1)
    for partition in range(4):
        world.send(topic, b"a", partition=partition)
    member = world.member(topic)
    member.holds = lambda where: where == held

    world.turn(lambda: len(member.records) == 3, member)
    assert member.consumer.fetch(10, 0.3) == []
    assert member.offsets(held) == []
    member.consumer.resume([held])
    world.turn(lambda: member.offsets(held) == [0], member)


def test_a_pause_does_not_outlive_its_assignment(group_broker: Broker, world: Any) -> None:  # edge 47
    """The partition moves away and comes back: the client would still hold it paused, for ever."""
    topic = world.topic()
    first = world.member(topic)
    world.turn(lambda: len(first.owned) == 4, first)
    first.consumer.pause(sorted(first.owned))
    second = world.member(topic)
    world.turn(lambda: shared(first, second), first, second)
    moved = second.owned.copy()

    second.consumer.close()
    world.turn(lambda: len(first.owned) == 4, first)
    for where in moved:
        world.send(topic, b"a", partition=where.partition)

    world.turn(lambda: len(first.records) == 2, first)
    assert {TopicPartition(m.topic(), m.partition()) for m in first.records} == moved


def test_a_member_that_does_not_fetch_in_time_loses_its_partitions(group_broker: Broker, world: Any) -> None:  # edge 3, 7
    topic = world.topic()
    member = world.member(topic, commit=True)
    world.turn(lambda: len(member.owned) == 4, member)

    time.sleep(7)  # longer than max_poll_interval, which is the fact itself
    world.turn(lambda: "lost" in [kind for kind, _ in member.told], member)
    world.turn(lambda: len(member.owned) == 4, member)

    assert [kind for kind, _ in member.told] == ["assigned", "lost", "assigned"]
    assert "_MAX_POLL_EXCEEDED" in member.codes()
    assert all(commit is None for commit in member.consumer.committed(sorted(member.owned)).values())


def test_a_listener_that_raises_is_a_fault_and_nothing_is_read_at_a_guess(group_broker: Broker, world: Any) -> None:  # edge 5
    topic = world.topic()
    world.send(topic, b"a")
    member = world.member(topic)
    real = member.assigned

    def broken(partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        real(partitions)
        raise ValueError("a bug in a listener")

    member.assigned = broken
    world.turn(lambda: member.owned and member.faults, member)

    assert member.codes() == ["_APPLICATION"]
    assert member.consumer.fetch(10, 0.3) == []
    member.consumer.seek(TopicPartition(topic, 0), 0)
    member.consumer.resume([TopicPartition(topic, 0)])
    world.turn(lambda: member.records, member)


def test_close_tells_the_listener_nothing_and_gives_the_partitions_up_at_once(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    first, second = world.member(topic, commit=True), world.member(topic)
    world.turn(lambda: shared(first, second), first, second)
    told = len(first.told)
    started = time.monotonic()

    first.consumer.close()
    world.turn(lambda: len(second.owned) == 4, second)

    assert len(first.told) == told
    assert time.monotonic() - started < 10


def test_a_commit_of_one_who_no_longer_owns_is_accepted(group_broker: Broker, world: Any) -> None:  # edge 2
    """Kafka does not look at ownership: so nobody may commit what it doesn't own, for it would overwrite the owner's."""
    topic = world.topic()
    first = world.member(topic)
    world.turn(lambda: len(first.owned) == 4, first)
    second = world.member(topic)
    world.turn(lambda: shared(first, second), first, second)
    moved = min(second.owned)
    assert second.consumer.commit_now({moved: Commit(10, "owner")}) == {}

    assert first.consumer.commit_now({moved: Commit(3, "late")}) == {}

    assert second.consumer.committed([moved]) == {moved: Commit(3, "late")}


def test_two_groups_both_read_everything(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, b"a", b"b")

    one, other = world.member(topic, f"{world.prefix}.one"), world.member(topic, f"{world.prefix}.other")
    world.turn(lambda: len(one.records) == len(other.records) == 2, one, other)


def test_a_member_may_subscribe_to_more(group_broker: Broker, world: Any) -> None:
    first_topic, second_topic = world.topic(), world.topic()
    member = world.member(first_topic)
    world.turn(lambda: member.owned == partitions_of(first_topic), member)

    member.consumer.subscribe([first_topic, second_topic], member)

    world.turn(lambda: member.owned == partitions_of(first_topic) | partitions_of(second_topic), member)


def test_a_member_that_joins_anew_gives_all_up_and_gets_it_again(group_broker: Broker, world: Any) -> None:
    topic = world.topic()
    member = world.member(topic, commit=True)
    for partition in range(4):
        world.send(topic, b"a", b"b", partition=partition)
    world.turn(lambda: len(member.records) == 8, member)
    assert member.consumer.member_id() in {m.id for m in world.admin.groups([world.group])[world.group].members}

    member.consumer.rejoin()

    world.turn(lambda: [kind for kind, _ in member.told][-2:] == ["revoked", "assigned"], member)
    assert [set(partitions) for _, partitions in member.told[-2:]] == [partitions_of(topic)] * 2
    for partition in range(4):
        world.send(topic, b"c", partition=partition)
    world.turn(lambda: len(member.records) >= 12, member)
    assert all(member.offsets(where) == [0, 1, 2] for where in member.owned)


def test_a_member_that_takes_nothing_is_still_served(group_broker: Broker, world: Any) -> None:  # edge 10
    """It drains: with a limit of zero it goes on handing over, however many records lie before the callback."""
    topic = world.topic()
    first = world.member(topic)
    world.turn(lambda: len(first.owned) == 4, first)
    for partition in range(4):
        world.send(topic, *[b""] * 500, partition=partition)
    second = world.member(topic)

    def turn() -> bool:
        assert first.consumer.fetch(0, 0.02) == []
        return shared(first, second)

    world.turn(turn, second)
    world.turn(lambda: all(first.next_of(where) == 500 for where in first.owned), first, second)
    assert all(first.offsets(where) == list(range(500)) for where in first.owned)


@pytest.mark.needs("topic_admin")
def test_partitions_that_are_added_are_assigned(group_broker: Broker, world: Any) -> None:  # edge 30
    topic = world.topic(2)
    member = world.member(topic)
    world.turn(lambda: len(member.owned) == 2, member)

    world.admin.add_partitions(topic, 3)
    world.send(topic, b"first", partition=2)

    world.turn(lambda: member.records, member)
    assert [(m.partition(), m.value()) for m in member.records] == [(2, b"first")]


@pytest.mark.needs("topic_admin")
def test_a_deleted_topic_is_revoked(group_broker: Broker, world: Any) -> None:  # edge 31
    topic, other = world.topic(), world.topic()
    member = world.member([topic, other])
    world.turn(lambda: len(member.owned) == 8, member)

    world.admin.delete_topics([topic])

    world.turn(lambda: member.owned == partitions_of(other), member)
    world.send(other, b"a")
    world.turn(lambda: member.records, member)
