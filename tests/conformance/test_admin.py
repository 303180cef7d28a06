"""Topics and offsets as the admin sees them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from streamjobs.broker import Broker, Topic, TopicPartition
from streamjobs.errors import BrokerError


def test_a_cluster_tells_its_brokers_and_protocols(broker: Broker, world: Any) -> None:
    cluster = world.admin.cluster()

    assert cluster.id
    assert cluster.brokers
    assert "classic" in cluster.protocols
    assert cluster.protocols <= {"classic", "consumer"}


def test_a_created_topic_is_there_with_an_id(broker: Broker, world: Any) -> None:
    name = world.topic()

    found = world.admin.topics([name, f"{world.prefix}.missing"])

    assert list(found) == [name]
    assert (found[name].partitions, found[name].replication, len(found[name].id)) == (4, 1, 16)
    assert name in world.admin.topics()


def test_asking_for_a_topic_does_not_create_it(broker: Broker, world: Any) -> None:
    name = f"{world.prefix}.asked-for"

    assert world.admin.topics([name]) == {}
    assert world.admin.topics([name], config=True) == {}
    assert name not in world.admin.topics()


def test_a_topic_that_exists_is_not_created_again(broker: Broker, world: Any) -> None:
    name = world.topic()

    result = world.admin.create_topics([Topic(name, 4)])

    error = result[name]
    assert error is not None
    assert error.code == "TOPIC_ALREADY_EXISTS"


@pytest.mark.needs("topic_config")
def test_config_is_what_was_set_explicitly(broker: Broker, world: Any) -> None:
    name = world.topic(cleanup_policy="compact", max_message_bytes="123456")
    assert world.admin.topics([name], config=True)[name].config == {
        "cleanup.policy": "compact",
        "max.message.bytes": "123456",
    }

    world.admin.alter_topic_config(name, {"retention.ms": "-1", "max.message.bytes": "200000"})

    assert world.admin.topics([name], config=True)[name].config == {
        "cleanup.policy": "compact",
        "max.message.bytes": "200000",
        "retention.ms": "-1",
    }


@pytest.mark.needs("topic_config")
def test_a_configuration_that_is_none_is_refused(broker: Broker, world: Any) -> None:
    name = f"{world.prefix}.t"

    error = world.admin.create_topics([Topic(name, 1, config={"no.such.key": "1"})])[name]

    assert error is not None
    assert error.code == "INVALID_CONFIG"
    with pytest.raises(BrokerError):
        world.admin.alter_topic_config(world.topic(), {"retention.ms": "soon"})


@pytest.mark.needs("topic_admin")
def test_one_bad_topic_does_not_keep_the_others_from_being_created(broker: Broker, world: Any) -> None:
    good, bad = f"{world.prefix}.good", f"{world.prefix}.bad"

    result = world.admin.create_topics([Topic(good, 1), Topic(bad, 1, replication=9)])

    assert result[good] is None
    error = result[bad]
    assert error is not None
    assert error.code == "INVALID_REPLICATION_FACTOR"
    assert list(world.admin.topics([good, bad])) == [good]


@pytest.mark.needs("topic_admin")
def test_partitions_are_only_ever_added(broker: Broker, world: Any) -> None:
    name = world.topic(2)

    world.admin.add_partitions(name, 5)

    assert world.admin.topics([name])[name].partitions == 5
    with pytest.raises(BrokerError) as refused:
        world.admin.add_partitions(name, 3)
    assert refused.value.code == "INVALID_PARTITIONS"


@pytest.mark.needs("topic_admin", "topic_ids")
def test_a_recreated_topic_has_another_id(broker: Broker, world: Any) -> None:  # edge 31
    name = world.topic()
    world.send(name, b"a")
    before = world.admin.topics([name])[name].id

    world.admin.delete_topics([name])
    assert world.admin.topics([name]) == {}
    assert world.admin.create_topics([Topic(name, 4)]) == {name: None}

    assert world.admin.topics([name])[name].id != before
    assert world.admin.offsets([TopicPartition(name, 0)], "latest") == {TopicPartition(name, 0): 0}


@pytest.mark.needs("topic_admin")
def test_deleting_a_topic_that_is_not_there_is_an_error(broker: Broker, world: Any) -> None:
    with pytest.raises(BrokerError) as refused:
        world.admin.delete_topics([f"{world.prefix}.missing"])

    assert refused.value.code == "UNKNOWN_TOPIC_OR_PART"


def test_offsets_at_the_ends(broker: Broker, world: Any) -> None:
    topic = world.topic()
    world.send(topic, b"a", b"b", b"c")
    full, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)

    assert world.admin.offsets([full, empty], "earliest") == {full: 0, empty: 0}
    assert world.admin.offsets([full, empty], "latest") == {full: 3, empty: 0}
    assert world.admin.offsets([], "latest") == {}


def test_offsets_at_an_instant(broker: Broker, world: Any, wait_until: Any) -> None:
    topic = world.topic()
    full, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
    world.send(topic, b"a", b"b")
    between = time.time() + 0.005
    wait_until(lambda: time.time() > between + 0.005)
    world.send(topic, b"c")

    assert world.admin.offsets([full, empty], between) == {full: 2, empty: 0}
    assert world.admin.offsets([full], 0.0) == {full: 0}
    assert world.admin.offsets([full, empty], time.time() + 3600) == {full: 3, empty: 0}


def test_an_instant_is_exact_to_the_millisecond(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where = TopicPartition(topic, 0)
    world.send(topic, b"a")
    (message,) = world.read(world.reader({where: 0}), 1)
    at = message.timestamp()[1] / 1000

    assert world.admin.offsets([where], at) == {where: 0}
    assert world.admin.offsets([where], at - 0.001) == {where: 0}
    assert world.admin.offsets([where], at + 0.0004) == {where: 1}


@pytest.mark.needs("topic_admin")
def test_offsets_of_a_topic_that_is_missing_are_an_error(broker: Broker, world: Any) -> None:
    with pytest.raises(BrokerError):
        world.admin.offsets([TopicPartition(f"{world.prefix}.missing", 0)], "latest")


@pytest.mark.needs("delete_records")
def test_deleted_records_move_the_start(broker: Broker, world: Any) -> None:
    topic = world.topic()
    where, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    world.send(topic, *[b""] * 10)

    result = world.admin.delete_records({where: 4, other: 3})

    assert result[where] is None
    error = result[other]
    assert error is not None
    assert error.code == "OFFSET_OUT_OF_RANGE"
    assert world.admin.offsets([where, other], "earliest") == {where: 4, other: 0}


@pytest.mark.needs("delete_records", "compaction")
def test_a_compacted_topic_is_not_trimmed(broker: Broker, world: Any) -> None:
    topic = world.topic(cleanup_policy="compact")
    world.send(topic, b"a", key=b"k")

    error = world.admin.delete_records({TopicPartition(topic, 0): 1})[TopicPartition(topic, 0)]

    assert error is not None
    assert error.code == "POLICY_VIOLATION"
