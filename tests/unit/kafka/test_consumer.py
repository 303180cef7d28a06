"""What goes wrong around the client: exceptions inside it, brokers that are gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka.cimpl import TopicPartition as ClientPartition

from streamjobs.broker import Commit, Message, Start, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.kafka import EmbeddedBroker, consumer


class Everything:
    """Reads all it is given from the beginning."""

    def __init__(self) -> None:
        self.owned: set[TopicPartition] = set()

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        self.owned.update(partitions)
        return {where: Start(0) for where in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.owned.difference_update(partitions)

    lost = revoked


@pytest.fixture
def own() -> Iterator[EmbeddedBroker]:
    """A broker that a test may end."""
    broker = EmbeddedBroker()
    yield broker
    broker.close()


def filled(broker: Any, topic: str, count: int) -> None:
    producer = broker.producer()
    for _ in range(count):
        producer.send(Record(topic, b"x", None, (), 0))
    assert producer.flush(10) == 0
    producer.close()


def joined(broker: Any, topic: str, group: str, wait_until: Any) -> consumer.KafkaConsumer:
    listener = Everything()
    member = broker.consumer(group)
    member.subscribe([topic], listener)
    wait_until(lambda: len(listener.owned) == 4, 20, lambda: member.fetch(0, 0.05))
    return member  # type: ignore[no-any-return]


def test_ctrl_c_inside_the_client_loses_no_record(embedded: Any, prefix: str, wait_until: Any) -> None:  # edge 5
    """The records popped together with an exception are destroyed, and the position is past them: it must go back."""
    topic, group = f"{prefix}.t", f"{prefix}.g"
    where = TopicPartition(topic, 0)
    filled(embedded, topic, 200)
    member = joined(embedded, topic, group, wait_until)
    found: list[Message] = []

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    wait_until(lambda: found, 20, lambda: found.extend(member.fetch(1, 0.05)))
    member.commit_soon({where: Commit(1)}, interrupt)
    wait_until(lambda: embedded.admin().committed(group, [where]))
    with pytest.raises(KeyboardInterrupt):  # the callback waits behind the 199 records that have arrived
        wait_until(lambda: False, 20, lambda: found.extend(member.fetch(1000, 0.05)))
    wait_until(lambda: len(found) >= 200, 20, lambda: found.extend(member.fetch(1000, 0.05)))
    member.close()

    assert [message.offset() for message in found] == list(range(200))


def test_what_a_zero_limit_keeps_is_little(embedded: Any, prefix: str, wait_until: Any) -> None:
    """It looks for callbacks for as long as a drain takes, behind however many records."""
    topic = f"{prefix}.t"
    filled(embedded, topic, 2_000)
    member = joined(embedded, topic, f"{prefix}.g", wait_until)
    until = time.monotonic() + consumer.QUIET_AFTER * 2

    while time.monotonic() < until:
        member.fetch(0, 0.0)

    assert len(member._held) < 5
    member.close()


def test_an_answer_goes_to_whoever_asked_even_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "CLOSE_TIMEOUT", 0.1)
    member = EmbeddedBroker("embedded:127.0.0.1:1").consumer("g")
    told: list[int] = []
    for number in (1, 2):
        member.commit_soon({TopicPartition("t", 0): Commit(number)}, lambda _, number=number: told.append(number))  # type: ignore[misc]

    for number in (2, 1):
        member._on_commit(None, [ClientPartition("t", 0, number)])  # type: ignore[attr-defined]

    assert told == [2, 1]
    member.close()


def test_an_interrupt_is_a_fault_too(embedded: Any, prefix: str, wait_until: Any) -> None:
    topic = f"{prefix}.t"
    filled(embedded, topic, 1)
    member = joined(embedded, topic, f"{prefix}.g", wait_until)

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    member.commit_soon({TopicPartition(topic, 0): Commit(1)}, interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait_until(lambda: False, 20, lambda: member.fetch(10, 0.05))

    assert "_APPLICATION" in [error.code for _, error in member.faults()]
    member.close()


def test_commit_and_close_are_bounded_when_the_broker_is_gone(
    own: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:  # edge 21
    """A queued commit alone keeps the client's close waiting for 45 seconds."""
    monkeypatch.setattr(consumer, "CLOSE_TIMEOUT", 0.5)
    filled(own, "t", 1)
    member = joined(own, "t", "g", wait_until)
    where = TopicPartition("t", 0)
    own.close()
    started = time.monotonic()

    refused = member.commit_now({where: Commit(1)}, timeout=0.5)
    member.fetch(10, 0.1)
    member.close()

    assert refused[where].retriable
    assert time.monotonic() - started < 5


def test_a_client_that_is_busy_with_a_late_commit_gives_no_records(own: EmbeddedBroker, wait_until: Any) -> None:
    filled(own, "t", 1)
    member = joined(own, "t", "g", wait_until)
    own.close()
    assert member.commit_now({TopicPartition("t", 0): Commit(1)}, timeout=0.2)
    started = time.monotonic()

    assert member.fetch(10, 0.1) == []
    assert time.monotonic() - started < 2
    member.close()


def test_a_broker_that_is_not_there_is_a_fault(wait_until: Any) -> None:
    reader = EmbeddedBroker("embedded:127.0.0.1:1").consumer(None)
    reader.assign({TopicPartition("t", 0): 0})
    faults: list[tuple[TopicPartition | None, BrokerError]] = []

    wait_until(lambda: faults, 20, lambda: (reader.fetch(10, 0.05), faults.extend(reader.faults())))
    reader.close()

    assert {error.code for _, error in faults} <= {"_TRANSPORT", "_ALL_BROKERS_DOWN"}


def test_a_configuration_that_the_client_refuses_is_a_broker_error() -> None:
    with pytest.raises(BrokerError, match="no.such.key"):
        EmbeddedBroker("embedded:127.0.0.1:1", {"no.such.key": "1"}).consumer(None)
