"""What a producer promises."""

from __future__ import annotations

import time
from typing import Any

import pytest

from streamjobs.broker import Broker, Message, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError

#: From Apache Kafka's own test of its murmur2 (UtilsTest); the partition is (hash & 0x7fffffff) % count.
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def outcome_of(broker: Broker, record: Record) -> tuple[BrokerError | None, Message]:
    """What one record's acknowledgement says."""
    outcomes: list[tuple[BrokerError | None, Message]] = []
    producer = broker.producer()
    producer.send(record, lambda error, message: outcomes.append((error, message)))
    assert producer.flush(20) == 0
    producer.close()
    (outcome,) = outcomes
    return outcome


def test_an_ack_says_where_the_record_is(broker: Broker, world: Any) -> None:
    topic = world.topic()

    acked = world.send(topic, b"a", b"b", b"c", partition=1)

    assert [(m.topic(), m.partition(), m.offset()) for m in acked] == [
        (topic, 1, 0),
        (topic, 1, 1),
        (topic, 1, 2),
    ]


@pytest.mark.needs("topic_config")
def test_an_ack_and_a_reader_tell_the_brokers_append_time(broker: Broker, world: Any) -> None:
    topic = world.topic(message_timestamp_type="LogAppendTime")
    before = time.time()

    (acked,) = world.send(topic, b"a")
    (read,) = world.read(world.reader({TopicPartition(topic, 0): 0}), 1)

    assert acked.timestamp() == read.timestamp()
    kind, milliseconds = read.timestamp()
    assert kind == 2
    assert before - 1 <= milliseconds / 1000 <= time.time() + 1


@pytest.mark.parametrize("key", MURMUR2)
def test_keys_go_where_java_puts_them(broker: Broker, world: Any, key: bytes) -> None:
    (acked,) = world.send(world.topic(), b"", key=key, partition=-1)

    assert acked.partition() == (MURMUR2[key] & 0x7FFFFFFF) % 4


def test_key_value_and_headers_come_back_as_they_were_sent(broker: Broker, world: Any) -> None:
    topic = world.topic()
    headers = [("a", b"1"), ("b", b""), ("a", bytes(range(256))), ("ü", b"x"), ("none", None)]

    world.send_all(
        [
            Record(topic, b"\0value", b"\0key", headers, 0),
            Record(topic, None, b"k", (), 0),
            Record(topic, b"", None, (), 0),
        ]
    )
    full, tombstone, keyless = world.read(world.reader({TopicPartition(topic, 0): 0}), 3)

    assert (full.key(), full.value(), full.headers()) == (b"\0key", b"\0value", headers)
    assert (tombstone.key(), tombstone.value()) == (b"k", None)
    assert (keyless.key(), keyless.value()) == (None, b"")
    assert not keyless.headers()


def test_a_partition_that_does_not_exist_is_an_error(broker: Broker, world: Any) -> None:
    """Told at once by a client that knows the topic already, else with the acknowledgement."""
    try:
        error, _ = outcome_of(broker, Record(world.topic(), b"", None, (), 99))
    except BrokerError as refused:
        error = refused

    assert error is not None
    assert error.code == "_UNKNOWN_PARTITION"


@pytest.mark.needs("topic_admin")
def test_a_topic_that_does_not_exist_is_an_error_within_the_publish_timeout(broker: Broker, prefix: str) -> None:  # edge 32
    started = time.monotonic()

    error, message = outcome_of(broker, Record(f"{prefix}.missing", b""))

    assert error is not None
    assert error.code in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
    assert message.topic() == f"{prefix}.missing"
    assert time.monotonic() - started < 10


def test_a_record_larger_than_any_job_is_refused_at_once(broker: Broker, world: Any) -> None:
    producer = broker.producer()

    with pytest.raises(BrokerError) as refused:
        producer.send(Record(world.topic(), bytes(2_000_000)))

    assert refused.value.code == "MSG_SIZE_TOO_LARGE"
    producer.close()


@pytest.mark.needs("topic_config")
@pytest.mark.parametrize(
    "record",
    [Record("", bytes(30_000)), Record("", b"", None, [("h", bytes(500))] * 60)],
    ids=["value", "headers"],
)
def test_a_record_too_large_for_its_topic_fails_in_its_ack(broker: Broker, world: Any, record: Record) -> None:  # edge 43
    topic = world.topic(max_message_bytes="20000")

    error, _ = outcome_of(broker, Record(topic, record.value, record.key, record.headers))

    assert error is not None
    assert error.code == "MSG_SIZE_TOO_LARGE"
    assert not error.retriable


@pytest.mark.needs("topic_config")
def test_records_that_are_sent_alone_share_no_batch(broker: Broker, world: Any) -> None:  # edge 43
    """Twenty at once, every other one too large: sent together, all would be refused, and nobody could say for which of them."""
    topic = world.topic(max_message_bytes="20000")
    producer = broker.producer()
    answers: dict[int, str] = {}

    for number in range(20):
        record = Record(topic, bytes(30_000) if number % 2 else b"small", None, (), 0)
        producer.send(record, lambda about, error, _: answers.update({about: error.code if error else "ok"}), number, alone=True)
    assert producer.flush(20) == 0
    producer.close()

    assert answers == {number: "MSG_SIZE_TOO_LARGE" if number % 2 else "ok" for number in range(20)}


@pytest.mark.needs("topic_config")
def test_an_answer_is_polled_whoever_else_was_sent_alone(broker: Broker, world: Any) -> None:
    topic = world.topic()
    producer = broker.producer()
    answers: list[str] = []

    producer.send(Record(topic, b"alone"), lambda error, _: answers.append("alone"), alone=True)
    producer.send(Record(topic, b"not alone"), lambda error, _: answers.append("not alone"))
    deadline = time.monotonic() + 20
    while len(answers) < 2 and time.monotonic() < deadline:
        producer.poll(1.0)
    producer.close()

    assert sorted(answers) == ["alone", "not alone"]


@pytest.mark.needs("compaction")
def test_a_compacted_topic_refuses_a_record_without_key(broker: Broker, world: Any) -> None:  # edge 54
    error, _ = outcome_of(broker, Record(world.topic(cleanup_policy="compact"), b""))

    assert error is not None
    assert error.code == "INVALID_RECORD"


def test_an_acknowledgement_that_raises_harms_no_other(broker: Broker, world: Any) -> None:
    topic = world.topic()
    acked: list[int] = []

    def ack(error: BrokerError | None, message: Message) -> None:
        acked.append(message.offset())
        raise ValueError("a bug in an acknowledgement")

    producer = broker.producer()
    for _ in range(3):
        producer.send(Record(topic, b"", None, (), 0), ack)
    assert producer.flush(20) == 0
    producer.close()

    assert acked == [0, 1, 2]


def test_an_acknowledgement_knows_what_its_record_was_sent_with(broker: Broker, world: Any) -> None:
    topic = world.topic()
    producer = broker.producer()
    told: list[tuple[int, BrokerError | None, int | None]] = []

    for number in range(3):
        producer.send(Record(topic, b"", None, (), 0), lambda about, error, message: told.append((about, error, message.offset())), number)
    assert producer.flush(20) == 0
    producer.close()

    assert told == [(0, None, 0), (1, None, 1), (2, None, 2)]


def test_records_without_callback_are_delivered_too(broker: Broker, world: Any) -> None:
    topic = world.topic()
    producer = broker.producer()

    producer.send(Record(topic, b"a", None, (), 0))
    assert producer.flush(20) == 0
    producer.close()

    assert [m.value() for m in world.read(world.reader({TopicPartition(topic, 0): 0}), 1)] == [b"a"]


def test_a_healthy_producer_has_no_fatal_error(broker: Broker, world: Any) -> None:
    world.send(world.topic(), b"a")

    assert world.producer.fatal() is None
