"""Transactions: what is written in one is seen together with its offsets, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from streamjobs.broker import Broker, Commit, TopicPartition, TransactionalProducer
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError

pytestmark = pytest.mark.needs("transactions")


class Transactions:
    """Producers with one transactional id of this test."""

    def __init__(self, broker: Broker, prefix: str, stack: ExitStack) -> None:
        self._broker, self._id, self._stack = broker, f"{prefix}.tx", stack

    def producer(self) -> TransactionalProducer:
        producer = self._broker.transactional_producer(self._id)
        self._stack.callback(producer.close, 0.0)
        producer.init()
        return producer


@pytest.fixture
def transactions(broker: Broker, prefix: str) -> Iterator[Transactions]:
    with ExitStack() as stack:
        yield Transactions(broker, prefix, stack)


def write(producer: TransactionalProducer, topic: str, *values: bytes) -> None:
    for value in values:
        producer.send(Record(topic, value, None, (), 0))


def test_what_is_committed_is_read(broker: Broker, world: Any, transactions: Transactions) -> None:
    topic = world.topic()
    producer = transactions.producer()

    producer.begin()
    write(producer, topic, b"a", b"b")
    producer.commit()

    assert [m.value() for m in world.read(world.reader({TopicPartition(topic, 0): 0}), 2)] == [b"a", b"b"]


def test_acks_come_while_a_transaction_is_committed(broker: Broker, world: Any, transactions: Transactions) -> None:
    acked: list[Any] = []
    producer = transactions.producer()

    producer.begin()
    producer.send(
        Record(world.topic(), b"a", None, (), 0),
        lambda error, message: acked.append((error, message.offset())),
    )
    producer.commit()

    assert acked == [(None, 0)]


def test_what_is_aborted_is_never_read(broker: Broker, world: Any, transactions: Transactions) -> None:
    topic = world.topic()
    producer = transactions.producer()
    producer.begin()
    write(producer, topic, b"no")
    producer.flush(10)
    producer.abort()

    producer.begin()
    write(producer, topic, b"yes")
    producer.commit()

    assert [m.value() for m in world.read(world.reader({TopicPartition(topic, 0): 0}), 1)] == [b"yes"]
    dirty = world.reader({TopicPartition(topic, 0): 0}, isolation="read_uncommitted")
    assert [m.value() for m in world.read(dirty, 2)] == [b"no", b"yes"]


def test_a_position_passes_the_gaps_that_transactions_leave(
    broker: Broker, world: Any, transactions: Transactions, wait_until: Any
) -> None:  # edge 15, 16
    """Else a lag would never be zero, and whoever reads a table to its end would never get there."""
    topic = world.topic()
    where = TopicPartition(topic, 0)
    producer = transactions.producer()
    producer.begin()
    write(producer, topic, b"a")
    producer.commit()
    producer.begin()
    write(producer, topic, b"b")
    producer.flush(10)
    producer.abort()

    def end(isolation: str) -> int:
        return int(world.admin.offsets([where], "latest", isolation)[where])

    wait_until(lambda: end("read_committed") == end("read_uncommitted") > 2, 20)  # the markers come a little later
    last = end("read_uncommitted")
    reader = world.reader({where: 0})
    found: list[Any] = []

    wait_until(lambda: reader.positions([where])[where] >= last, 20, lambda: found.extend(reader.fetch(10, 0.05)))

    assert [m.value() for m in found] == [b"a"]
    assert reader.positions([where])[where] == last


def test_an_open_transaction_hides_what_is_behind_it(broker: Broker, world: Any, transactions: Transactions) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    producer = transactions.producer()
    producer.begin()
    write(producer, topic, b"open")
    assert producer.flush(10) == 0
    world.send(topic, b"behind")

    assert world.admin.offsets([where], "latest", "read_committed") == {where: 0}
    assert world.admin.offsets([where], "latest", "read_uncommitted") == {where: 2}
    reader = world.reader({where: 0})
    assert reader.fetch(10, 0.3) == []

    producer.commit()
    assert [m.value() for m in world.read(reader, 2)] == [b"open", b"behind"]


def test_offsets_and_their_metadata_are_part_of_it(broker: Broker, world: Any, transactions: Transactions) -> None:
    topic = world.topic()
    member = world.member(topic)
    world.turn(lambda: len(member.owned) == 4, member)
    where = TopicPartition(topic, 1)
    producer = transactions.producer()

    producer.begin()
    write(producer, topic, b"no")
    producer.send_offsets({where: Commit(9, "aborted")}, member.consumer.group_metadata())
    producer.abort()
    assert world.admin.committed(world.group) == {}

    producer.begin()
    write(producer, topic, b"yes")
    producer.send_offsets({where: Commit(4, "with metadata")}, member.consumer.group_metadata())
    producer.commit()
    assert member.consumer.committed([where]) == {where: Commit(4, "with metadata")}


def test_offsets_of_one_who_is_no_longer_a_member_are_refused(
    broker: Broker, world: Any, transactions: Transactions
) -> None:  # edge 79
    topic = world.topic()
    member = world.member(topic)
    world.turn(lambda: len(member.owned) == 4, member)
    stale = member.consumer.group_metadata()
    member.consumer.close()
    producer = transactions.producer()

    producer.begin()
    write(producer, topic, b"a")
    with pytest.raises(BrokerError):
        producer.send_offsets({TopicPartition(topic, 0): Commit(1)}, stale)
    producer.abort()

    assert world.admin.committed(world.group) == {}


def test_offsets_of_one_who_never_was_a_member_are_refused(group_broker: Broker, world: Any, prefix: str) -> None:  # edge 79
    """
    The broker takes offsets that come without a member's name as they are (KIP-447), for programs that assign partitions
    themselves. A worker's that was expelled must not pass for these.
    """
    topic = world.topic()
    member = world.member(topic)
    world.turn(lambda: len(member.owned) == 4, member)
    stranger = group_broker.consumer(world.group)
    with ExitStack() as stack:
        producer = Transactions(group_broker, prefix, stack).producer()
        producer.begin()
        write(producer, topic, b"a")
        with pytest.raises(BrokerError) as refused:
            producer.send_offsets({TopicPartition(topic, 0): Commit(1)}, stranger.group_metadata())
        producer.abort()
        stranger.close()

    assert not refused.value.fatal
    assert world.admin.committed(world.group) == {}


def test_a_failed_record_makes_its_transaction_one_to_abort(broker: Broker, world: Any, transactions: Transactions) -> None:
    """
    The error says so, and after the abort the producer goes on. librdkafka's needs one more: it has counted the record that the
    broker refused, which misses it in the next transaction (OUT_OF_ORDER_SEQUENCE_NUMBER), and then counts anew.
    """
    topic = world.topic(max_message_bytes="2000")
    producer = transactions.producer()
    acked: list[Any] = []

    producer.begin()
    producer.send(Record(topic, b"x" * 4000, None, (), 0), lambda error, _: acked.append(error))
    producer.flush(10)
    with pytest.raises(BrokerError) as refused:
        producer.commit()
    producer.abort()
    for _ in range(2):
        producer.begin()
        write(producer, topic, b"small")
        try:
            producer.commit()
            break
        except BrokerError as error:
            assert error.abortable, error
            producer.abort()

    assert [error.code for error in acked] == ["MSG_SIZE_TOO_LARGE"]
    assert refused.value.abortable
    assert not refused.value.fatal
    assert [m.value() for m in world.read(world.reader({TopicPartition(topic, 0): 0}), 1)] == [b"small"]


@pytest.mark.needs("topic_config")
def test_a_record_that_is_sent_alone_in_a_transaction_shares_no_batch(world: Any, transactions: Transactions) -> None:  # edge 43
    """Those before it are stored however large it is: whose fault the refusal is can be told, and the next transaction goes without."""
    topic = world.topic(max_message_bytes="2000")
    producer = transactions.producer()
    answers: dict[int, str] = {}

    def send(number: int, value: bytes, *, alone: bool = False) -> None:
        record, deadline = Record(topic, value, None, (), 0), time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                return producer.send(record, lambda error, _: answers.update({number: error.code if error else "ok"}), alone=alone)
            except BrokerError as error:
                assert error.code == "_QUEUE_FULL"
                producer.poll(0.05)
        raise AssertionError("there is no room for it")

    producer.begin()
    for number in range(20):
        send(number, b"small")
    send(20, b"small", alone=True)
    send(21, b"x" * 4000)
    producer.flush(10)
    producer.abort()

    assert answers == dict.fromkeys(range(21), "ok") | {21: "MSG_SIZE_TOO_LARGE"}


def test_whoever_comes_second_fences_the_first(broker: Broker, world: Any, transactions: Transactions) -> None:  # edge 55
    topic = world.topic()
    first = transactions.producer()
    first.begin()
    write(first, topic, b"first")
    first.flush(10)

    second = transactions.producer()
    with pytest.raises(BrokerError) as fenced:
        first.commit()

    assert fenced.value.code == "_FENCED"
    assert fenced.value.fatal
    second.begin()
    write(second, topic, b"second")
    second.commit()
    assert [m.value() for m in world.read(world.reader({TopicPartition(topic, 0): 0}), 1)] == [b"second"]


def test_a_fenced_producer_says_so(broker: Broker, world: Any, transactions: Transactions, wait_until: Any) -> None:  # edge 68
    first = transactions.producer()
    transactions.producer()

    with pytest.raises(BrokerError):
        first.begin()
        write(first, world.topic(), b"a")
        first.commit()

    wait_until(lambda: first.fatal() is not None, 10, lambda: first.poll(0.01))


@pytest.mark.parametrize("polls", [False, True])
def test_a_fenced_producer_learns_it_while_it_sends(
    broker: Broker, world: Any, transactions: Transactions, wait_until: Any, polls: bool
) -> None:  # edge 55
    """From what it sends, not from what it waits for; and each record that it took over is answered for."""
    topic = world.topic()
    first = transactions.producer()
    transactions.producer()
    sent, answers = [], []

    def send() -> None:
        first.send(Record(topic, b"a", None, (), 0), lambda error, _: answers.append(error))
        sent.append(topic)
        if polls:
            first.poll(0)

    with pytest.raises(BrokerError) as fenced:
        first.begin()
        wait_until(lambda: False, 10, send)

    assert fenced.value.code == "_FENCED" and fenced.value.fatal
    fatal = first.fatal()
    assert fatal is not None and fatal.code == "_FENCED"
    with pytest.raises(BrokerError):
        first.abort()
    first.flush(10)
    assert len(answers) == len(sent) and None not in answers


def test_an_empty_transaction_can_be_committed_and_aborted(broker: Broker, transactions: Transactions) -> None:
    producer = transactions.producer()

    producer.begin()
    producer.commit()
    producer.begin()
    producer.abort()

    assert producer.fatal() is None
