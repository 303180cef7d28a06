"""Commits, with their metadata, of a member and by the admin."""

from __future__ import annotations

from typing import Any

import pytest

from streamjobs.broker import Broker, Commit, TopicPartition
from streamjobs.errors import BrokerError


@pytest.fixture
def member(group_broker: Broker, world: Any) -> Any:
    """A member that owns all four partitions of a topic."""
    topic = world.topic()
    found = world.member(topic)
    world.turn(lambda: len(found.owned) == 4, found)
    found.partitions = sorted(found.owned)
    return found


def test_commit_soon_tells_its_result_inside_a_later_fetch(member: Any, world: Any) -> None:
    results: list[Any] = []
    where = member.partitions[0]

    member.consumer.commit_soon({where: Commit(5, "five")}, results.append)
    assert results == []
    world.turn(lambda: results, member)

    assert results == [{where: None}]
    assert member.consumer.committed([where]) == {where: Commit(5, "five")}


def test_results_of_several_commits_come_to_those_who_asked(member: Any, world: Any) -> None:
    results: list[Any] = []
    for number, where in enumerate(member.partitions):
        member.consumer.commit_soon({where: Commit(number)}, lambda result, n=number: results.append((n, set(result))))

    world.turn(lambda: len(results) == 4, member)

    assert sorted(results) == [(number, {where}) for number, where in enumerate(member.partitions)]


def test_a_commit_of_nothing_is_done(member: Any, world: Any) -> None:
    results: list[Any] = []

    member.consumer.commit_soon({}, results.append)
    world.turn(lambda: results, member)

    assert results == [{}]
    assert member.consumer.commit_now({}) == {}


@pytest.mark.parametrize("character", ["x", "語"])
def test_4095_characters_of_metadata_are_kept_and_4096_refused(member: Any, character: str) -> None:  # edge 17
    where = member.partitions[0]

    assert member.consumer.commit_now({where: Commit(1, character * 4095)}) == {}
    refused = member.consumer.commit_now({where: Commit(2, character * 4096)})

    assert [error.code for error in refused.values()] == ["OFFSET_METADATA_TOO_LARGE"]
    assert member.consumer.committed([where]) == {where: Commit(1, character * 4095)}


def test_of_several_partitions_only_the_failed_ones_are_reported(member: Any) -> None:
    """The client raises and does not say which: the others are committed all the same."""
    bad, *good = member.partitions
    offsets = {where: Commit(7, "fits") for where in good} | {bad: Commit(7, "x" * 5000)}

    refused = member.consumer.commit_now(offsets)

    assert {where: error.code for where, error in refused.items()} == {bad: "OFFSET_METADATA_TOO_LARGE"}
    assert member.consumer.committed(member.partitions) == {bad: None} | dict.fromkeys(good, Commit(7, "fits"))


def test_commit_soon_reports_what_was_refused(member: Any, world: Any) -> None:
    results: list[Any] = []
    where = member.partitions[0]

    member.consumer.commit_soon({where: Commit(1, "x" * 4096)}, results.append)
    world.turn(lambda: results, member)

    assert results[0][where].code == "OFFSET_METADATA_TOO_LARGE"


def test_a_done_callback_that_raises_is_a_fault(member: Any, world: Any) -> None:
    def done(_: Any) -> None:
        raise ValueError("a bug in a callback")

    member.consumer.commit_soon({member.partitions[0]: Commit(1)}, done)
    world.turn(lambda: member.faults, member)

    assert member.codes() == ["_APPLICATION"]


def test_what_was_never_committed_is_none(member: Any) -> None:
    assert member.consumer.committed(member.partitions) == dict.fromkeys(member.partitions)


def test_a_commit_may_go_backwards(member: Any) -> None:
    """Kafka lets it: whoever commits sees to it that it does not happen."""
    where = member.partitions[0]
    assert member.consumer.commit_now({where: Commit(9)}) == {}

    assert member.consumer.commit_now({where: Commit(4)}) == {}

    assert member.consumer.committed([where]) == {where: Commit(4)}


def test_the_admin_reads_a_groups_commits(member: Any, world: Any) -> None:
    first, second, third, _ = member.partitions
    member.consumer.commit_now({first: Commit(1, "one"), second: Commit(2)})

    assert world.admin.committed(world.group) == {first: Commit(1, "one"), second: Commit(2)}
    assert world.admin.committed(world.group, [second, third]) == {second: Commit(2)}
    assert world.admin.committed(f"{world.prefix}.nobody") == {}


def test_only_an_empty_groups_commits_can_be_altered(member: Any, world: Any) -> None:
    where = member.partitions[0]
    member.consumer.commit_now({where: Commit(1)})

    with pytest.raises(BrokerError) as refused:
        world.admin.alter_committed(world.group, {where: Commit(8, "moved")})
    assert refused.value.code == "UNKNOWN_MEMBER_ID"
    assert world.admin.committed(world.group) == {where: Commit(1)}

    member.consumer.close()
    world.admin.alter_committed(world.group, {where: Commit(8, "moved")})
    assert world.admin.committed(world.group) == {where: Commit(8, "moved")}


def test_commits_of_a_group_that_never_was_can_be_set(world: Any, group_broker: Broker) -> None:
    where = TopicPartition(world.topic(), 2)

    world.admin.alter_committed(world.group, {where: Commit(3, "set")})

    assert world.admin.committed(world.group) == {where: Commit(3, "set")}


def test_groups_are_described(member: Any, world: Any) -> None:
    found = world.admin.groups([world.group, f"{world.prefix}.nobody"])

    group = found[world.group]
    assert group.state == "stable"
    assert [m.assignment for m in group.members] == [tuple(member.partitions)]
    assert found[f"{world.prefix}.nobody"].state == "dead"
    assert found[f"{world.prefix}.nobody"].members == ()
    assert world.group in world.admin.group_names()


def test_a_group_without_members_is_empty(member: Any, world: Any) -> None:
    member.consumer.commit_now({member.partitions[0]: Commit(1)})

    member.consumer.close()

    assert world.admin.groups([world.group])[world.group].state == "empty"
    assert world.admin.groups([world.group])[world.group].members == ()


def test_a_groups_session_timeout_can_be_set(group_broker: Broker, world: Any) -> None:
    world.admin.set_group_config(world.group, {"consumer.session.timeout.ms": "6000"})
