"""Compacted topics as tables."""

from __future__ import annotations

import pytest

from streamjobs import tables
from streamjobs.broker import Broker, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.testing import MemoryBroker


@pytest.fixture
def letters(memory: MemoryBroker) -> MemoryBroker:
    memory.create("letters", partitions=2, **{"cleanup.policy": "compact"})
    return memory


def put(broker: Broker, **values: str | None) -> None:
    """Keys beginning with `a` go to partition 0, others to 1."""
    tables.write_once(
        broker,
        [
            Record(
                "letters",
                None if value is None else value.encode(),
                key.encode(),
                partition=not key.startswith("a"),
            )
            for key, value in values.items()
        ],
    )


def live(broker: Broker) -> dict[bytes | None, bytes | None]:
    found = [(message.key(), message.value()) for message in tables.live(broker, "letters")]
    assert len(found) == len(dict(found)), "of each key only the newest"
    return dict(found)


def test_a_table_holds_the_newest_value_of_each_key(letters: MemoryBroker) -> None:
    put(letters, a1="old", b1="one", a2="gone", b2="two")
    put(letters, a1="new", a2=None)

    found = tables.read_table(letters, "letters")

    assert {key: row.value for key, row in found.items()} == {b"a1": b"new", b"b1": b"one", b"b2": b"two"}
    assert found[b"a1"].offset == 2 and found[b"a1"].appended > 0


def test_a_topic_that_is_not_there_is_an_empty_table(memory: MemoryBroker) -> None:
    assert tables.read_table(memory, "letters") == {}


@pytest.mark.parametrize("small", [0, 10_000])
def test_a_long_table_reads_like_a_short_one(
    letters: MemoryBroker, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """A long one is read twice, so that nobody has to hold its values."""
    monkeypatch.setattr(tables, "SMALL", small)
    put(letters, a1="old", b1="one", a2="gone", b2="gone")
    put(letters, a1="new", a2=None, b2=None, a3="three")
    put(letters, b2="back")

    assert live(letters) == {b"a1": b"new", b"b1": b"one", b"a3": b"three", b"b2": b"back"}


@pytest.mark.parametrize("small", [0, 10_000])
def test_what_arrives_while_it_is_read_is_not_part_of_it(
    letters: MemoryBroker, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:  # edge 58
    """A replay that reads on while letters arrive never ends."""
    monkeypatch.setattr(tables, "SMALL", small)
    put(letters, a1="one", a2="two")
    seen = []

    for message in tables.live(letters, "letters"):
        seen.append(message.key())
        put(letters, a3="late", b3="late")

    assert seen == [b"a1", b"a2"]


def test_what_arrived_since_its_limits_were_set_is_not_part_of_it(letters: MemoryBroker) -> None:
    put(letters, a1="one")
    limits = tables.bounds(letters, "letters")
    put(letters, a2="late", b1="late")

    assert [message.key() for message in tables.changes(letters, limits)] == [b"a1"]


def test_reading_ends_behind_a_transaction_marker(letters: MemoryBroker) -> None:
    """The last offset of a table after a replay is a marker, which no record ever shows."""
    producer = letters.transactional_producer("replay")
    producer.init()
    producer.begin()
    producer.send(Record("letters", b"one", b"a1", partition=0))
    producer.commit()

    assert live(letters) == {b"a1": b"one"}


def test_an_aborted_letter_is_no_letter(letters: MemoryBroker) -> None:
    producer = letters.transactional_producer("replay")
    producer.init()
    producer.begin()
    producer.send(Record("letters", b"one", b"a1", partition=0))
    producer.abort()

    assert live(letters) == {}


def test_reading_that_makes_no_progress_ends(letters: MemoryBroker) -> None:
    put(letters, a1="one")
    limits = tables.bounds(letters, "letters")
    letters.down("letters")

    with pytest.raises(BrokerError, match=r"letters/0 up to offset 1 made no progress"):
        list(tables.changes(letters, limits, patience=0.3))


def test_a_refusal_ends_the_reading_at_once(letters: MemoryBroker) -> None:
    put(letters, a1="one")
    limits = tables.bounds(letters, "letters")
    letters.fail("fetch", topic="letters", error="TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(BrokerError, match="TOPIC_AUTHORIZATION_FAILED"):
        list(tables.changes(letters, limits))


def test_a_write_raises_what_the_broker_said(letters: MemoryBroker) -> None:
    letters.fail("send", topic="letters", error="TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(BrokerError, match="TOPIC_AUTHORIZATION_FAILED"):
        put(letters, a1="one")


def test_a_write_waits_for_room_in_the_queue() -> None:
    broker = MemoryBroker(queue_limit=3)
    broker.create("letters")

    tables.write_once(broker, [Record("letters", b"x", b"%d" % number) for number in range(10)])

    assert len(broker.records("letters")) == 10


def test_bounds(letters: MemoryBroker) -> None:
    put(letters, a1="one", a2="two")

    assert tables.bounds(letters, "letters") == {
        TopicPartition("letters", 0): (0, 2),
        TopicPartition("letters", 1): (0, 0),
    }
