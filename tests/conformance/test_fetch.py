"""What a reader of explicit partitions promises; a group's member reads the same way."""

from __future__ import annotations

import time
from typing import Any

import pytest

from streamjobs.broker import Broker, TopicPartition
from streamjobs.errors import BrokerError


def offsets(messages: Any) -> list[int]:
    return [message.offset() for message in messages]


def test_fetch_does_not_wait_for_more_than_what_is_there(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    world.send(topic, b"a", b"b", b"c")
    started = time.monotonic()

    found = reader.fetch(100, 20.0)

    assert found
    assert time.monotonic() - started < 10


def test_fetch_waits_for_the_first_record_as_long_as_it_was_told_to(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    world.send(topic, b"a")
    world.read(reader, 1)
    reader.fetch(1, 0.5)  # whatever the end of the partition has to say
    started = time.monotonic()

    assert reader.fetch(100, 0.3) == []
    assert 0.25 < time.monotonic() - started < 5


def test_a_patient_reader_gets_what_comes_while_it_waits(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0}, patient=True)
    for value in (b"a", b"b"):
        assert reader.fetch(1, 0.7) == []
        world.send(topic, value)
        assert [found.value() for found in world.read(reader, 1)] == [value]


def test_fetch_returns_at_most_its_limit_and_in_order(broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, *[b"%d" % i for i in range(50)])
    reader = world.reader({TopicPartition(topic, 0): 0})
    found: list[list[int]] = []

    while sum(map(len, found)) < 50:
        found.append(offsets(reader.fetch(7, 1.0)))

    assert max(map(len, found)) <= 7
    assert [offset for batch in found for offset in batch] == list(range(50))


def test_a_reader_starts_where_it_was_told_to(broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, b"a", b"b", b"c")
    world.send(topic, b"x", b"y", partition=1)

    found = world.read(world.reader({TopicPartition(topic, 0): 2, TopicPartition(topic, 1): 1}), 2)

    assert sorted((m.partition(), m.value()) for m in found) == [(0, b"c"), (1, b"y")]


def test_a_limit_of_zero_takes_nothing_and_loses_nothing(broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, *[b""] * 20)
    reader = world.reader({TopicPartition(topic, 0): 0})
    assert offsets(world.read(reader, 1)[:1]) == [0]
    reader.seek(TopicPartition(topic, 0), 0)
    until = time.monotonic() + 1.2

    while time.monotonic() < until:
        assert reader.fetch(0, 0.02) == []

    assert offsets(world.read(reader, 20)) == list(range(20))


def test_a_limit_of_zero_passes_over_nothing(broker: Broker, world: Any) -> None:
    """What came while nothing was wanted was not returned yet: an idle owner that commits its position must not skip it."""
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, b"a")
    reader = world.reader({where: 0})
    world.read(reader, 1)
    reader.fetch(0, 0.0)
    world.send(topic, b"b")
    until = time.monotonic() + 0.4

    while time.monotonic() < until:
        reader.fetch(0, 0.02)
        assert reader.positions([where])[where] == 1

    assert offsets(world.read(reader, 1)) == [1]
    assert reader.positions([where])[where] == 2


def test_a_limit_of_zero_for_a_moment_keeps_the_order(broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, *[b""] * 60)
    reader = world.reader({TopicPartition(topic, 0): 0})
    found: list[int] = []

    while len(found) < 60:
        reader.fetch(0, 0.0)
        found += offsets(reader.fetch(5, 1.0))

    assert found == list(range(60))


def test_a_paused_partition_is_silent_and_goes_on_where_it_was(broker: Broker, world: Any) -> None:
    topic = world.topic()
    quiet, loud = TopicPartition(topic, 0), TopicPartition(topic, 1)
    reader = world.reader({quiet: 0, loud: 0})
    world.send(topic, b"a", b"b")
    world.read(reader, 2)

    reader.pause([quiet])
    world.send(topic, b"c", b"d")
    world.send(topic, b"x", partition=1)
    assert {m.partition() for m in world.read(reader, 1)} == {1}
    assert reader.fetch(10, 0.3) == []

    reader.resume([quiet])
    assert offsets(world.read(reader, 2)) == [2, 3]


def test_pause_takes_back_what_a_zero_limit_kept(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, b"a", b"b")
    reader = world.reader({where: 0})
    assert offsets(world.read(reader, 2)) == [0, 1]
    reader.seek(where, 0)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        reader.fetch(0, 0.02)

    reader.pause([where])
    assert reader.fetch(10, 0.2) == []
    reader.resume([where])

    assert offsets(world.read(reader, 2)) == [0, 1]


def test_seek_goes_back_and_forth(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, *[b""] * 5)
    reader = world.reader({where: 0})
    world.read(reader, 5)

    reader.seek(where, 1)
    assert reader.positions([where])[where] == 1
    assert offsets(world.read(reader, 4)) == [1, 2, 3, 4]

    reader.seek(where, 4)
    assert offsets(world.read(reader, 1)) == [4]


def test_seek_forgets_what_a_zero_limit_kept(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, *[b""] * 5)
    reader = world.reader({where: 0})
    world.read(reader, 5)
    reader.seek(where, 0)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        reader.fetch(0, 0.02)

    reader.seek(where, 3)

    assert offsets(world.read(reader, 2)) == [3, 4]


def test_a_zero_limit_moves_no_position(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, *[b""] * 5)
    reader = world.reader({where: 0})
    world.read(reader, 5)
    reader.seek(where, 2)
    until = time.monotonic() + 1.2

    while time.monotonic() < until:
        reader.fetch(0, 0.02)

    assert reader.positions([where])[where] == 2


def test_position_follows_what_was_returned(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, *[b""] * 3)
    reader = world.reader({where: 1})

    assert reader.positions([where])[where] == 1
    world.read(reader, 2)
    assert reader.positions([where])[where] == 3


def test_positions_are_told_of_many_at_once(broker: Broker, world: Any) -> None:
    topic = world.topic()
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    world.send(topic, *[b""] * 5)
    world.send(topic, *[b""] * 2, partition=1)
    reader = world.reader({first: 1, second: 0})
    world.read(reader, 6)
    reader.seek(first, 3)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        reader.fetch(0, 0.02)  # records that come meanwhile are kept, and pass nobody's position

    assert reader.positions([second, first]) == {first: 3, second: 2}
    assert reader.positions([]) == {}


def test_a_position_of_what_is_not_assigned_is_refused(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})

    with pytest.raises(BrokerError):
        reader.positions([TopicPartition(topic, 1)])
    with pytest.raises(BrokerError):
        reader.seek(TopicPartition(topic, 1), 0)


def test_assigning_nothing_releases_all(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    world.send(topic, b"a")
    world.read(reader, 1)

    reader.assign({})
    world.send(topic, b"b")

    assert reader.fetch(10, 0.3) == []


def test_a_new_assignment_is_not_paused(broker: Broker, world: Any) -> None:  # edge 47
    """The client remembers a pause over assignments: the partition would be silent for ever."""
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, b"a")
    reader = world.reader({where: 0})
    reader.pause([where])

    reader.assign({where: 0})

    assert offsets(world.read(reader, 1)) == [0]


def test_log_bounds_are_asked_from_the_broker(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    assert reader.log_bounds(TopicPartition(topic, 0)) == (0, 0)

    world.send(topic, b"a", b"b")

    assert reader.log_bounds(TopicPartition(topic, 0)) == (0, 2)


@pytest.mark.needs("delete_records")
def test_records_deleted_under_a_reader_are_a_fault_and_nothing_is_skipped(
    broker: Broker, world: Any, wait_until: Any
) -> None:  # edge 26
    """With `earliest` or `latest` it would go on at a guess, in silence."""
    topic = world.topic()
    short, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    world.send(topic, *[b""] * 10)
    world.send(topic, b"x", partition=1)
    assert world.admin.delete_records({short: 6}) == {short: None}
    reader = world.reader({short: 3, other: 0})
    faults: list[Any] = []
    found: list[Any] = []

    def turn() -> None:
        found.extend(reader.fetch(100, 0.05))
        faults.extend(reader.faults())

    wait_until(lambda: faults and found, 20, turn)

    assert [(where, error.code) for where, error in faults] == [(short, "_AUTO_OFFSET_RESET")]
    assert [m.partition() for m in found] == [1]
    reader.seek(short, reader.log_bounds(short)[0])
    assert offsets(world.read(reader, 4)) == [6, 7, 8, 9]


def test_an_offset_beyond_the_end_is_a_fault(broker: Broker, world: Any, wait_until: Any) -> None:  # edge 27
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, b"a")
    reader = world.reader({where: 7})
    faults: list[Any] = []

    wait_until(lambda: faults, 20, lambda: (reader.fetch(10, 0.05), faults.extend(reader.faults())))

    assert [(place, error.code) for place, error in faults] == [(where, "_AUTO_OFFSET_RESET")]
    reader.seek(where, 0)
    assert offsets(world.read(reader, 1)) == [0]


@pytest.mark.needs("topic_admin")
def test_a_reader_of_a_deleted_topic_is_told(broker: Broker, world: Any, wait_until: Any) -> None:  # edge 31
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    world.send(topic, b"a")
    world.read(reader, 1)
    faults: list[Any] = []

    world.admin.delete_topics([topic])
    wait_until(lambda: faults, 30, lambda: (reader.fetch(10, 0.05), faults.extend(reader.faults())))

    assert {error.code for _, error in faults} <= {
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_PARTITION",
        "_UNKNOWN_TOPIC",
        "UNKNOWN_TOPIC_ID",
    }


def test_a_reader_has_no_group(broker: Broker, world: Any) -> None:
    topic = world.topic()
    reader = world.reader({TopicPartition(topic, 0): 0})
    world.send(topic, b"a")
    world.read(reader, 1)

    assert all(not group.members for group in world.admin.groups(["streamjobs-tests"]).values())
    assert world.group not in world.admin.group_names()


def test_close_can_be_called_twice(broker: Broker, world: Any) -> None:
    reader = world.reader({TopicPartition(world.topic(), 0): 0})

    reader.close()
    reader.close()
