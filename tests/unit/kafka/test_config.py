"""Our settings as librdkafka's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from streamjobs.errors import SettingsError
from streamjobs.kafka import KafkaBroker, config


def member(protocol: config.Protocol, **changes: Any) -> config.Config:
    options: dict[str, Any] = {
        "instance": None,
        "session_timeout_s": 10.0,
        "max_poll_interval_s": 300.0,
    } | changes
    return config.member("h:1", "app", {}, "read_committed", group="g", protocol=protocol, **options)


def test_importing_the_configuration_loads_no_client() -> None:
    code = "import sys, streamjobs.kafka.config, streamjobs.kafka; sys.exit('confluent_kafka' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", ["group.id", "acks", "enable.auto.commit", "error_cb", "partitioner", "message.timeout.ms"])
def test_a_key_of_ours_is_refused_with_the_reason(key: str) -> None:  # edge 20
    with pytest.raises(SettingsError, match=f"{key} can't be set: "):
        KafkaBroker("h:1", {key: "x"})


def test_other_keys_reach_every_client_untouched() -> None:
    passed = {
        "security.protocol": "SASL_SSL",
        "sasl.username": "u",
        "enable.ssl.certificate.verification": False,
    }

    for settings in (
        config.admin("h:1", "app", passed),
        config.reader("h:1", "app", passed, "read_committed"),
        config.producer("h:1", "app", passed, 1000),
    ):
        assert settings["security.protocol"] == "SASL_SSL"
        assert settings["sasl.username"] == "u"
        assert settings["enable.ssl.certificate.verification"] == "false"


def test_a_default_that_is_not_ours_to_keep_can_be_changed() -> None:
    assert config.reader("h:1", "app", {"fetch.wait.max.ms": 500}, "read_committed")["fetch.wait.max.ms"] == 500
    assert config.producer("h:1", "app", {"linger.ms": 50}, 1000)["linger.ms"] == 50


def test_a_patient_reader_asks_seldom_unless_it_is_told_how_often() -> None:
    reader = config.reader("h:1", "app", {}, "read_committed")
    waits = [config.patient(reader, {}, member=member)["fetch.wait.max.ms"] for member in (True, False)]
    assert [reader["fetch.wait.max.ms"], *waits] == [100, 200, 500]
    assert config.patient(reader, {"fetch.wait.max.ms": 10}, member=False)["fetch.wait.max.ms"] == 10


def test_nothing_is_ever_committed_or_begun_by_the_client_itself() -> None:  # edge 20
    for settings in (
        member("consumer"),
        member("classic"),
        config.reader("h:1", "app", {}, "read_committed"),
    ):
        assert settings["enable.auto.commit"] is False
        assert settings["enable.auto.offset.store"] is False
        assert settings["auto.offset.reset"] == "error"
        assert settings["isolation.level"] == "read_committed"
        assert settings["allow.auto.create.topics"] is False


def test_kip_848_refuses_what_the_classic_protocol_needs() -> None:
    refused = {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"}

    assert not refused & member("consumer").keys()
    assert refused <= member("classic").keys()
    assert member("classic")["partition.assignment.strategy"] == "cooperative-sticky"
    assert member("classic")["session.timeout.ms"] == 10_000


def test_a_session_is_never_longer_than_the_poll_interval() -> None:
    """The client refuses to start otherwise."""
    settings = member("classic", session_timeout_s=45.0, max_poll_interval_s=8.0)

    assert (settings["session.timeout.ms"], settings["max.poll.interval.ms"]) == (8_000, 8_000)
    assert settings["heartbeat.interval.ms"] < settings["session.timeout.ms"]


def test_an_instance_makes_a_static_member() -> None:
    assert member("consumer", instance="pod-3")["group.instance.id"] == "pod-3"
    assert "group.instance.id" not in member("consumer")


def test_a_record_of_the_largest_size_may_take_on_headers() -> None:  # edge 43
    assert config.producer("h:1", "app", {}, 1_048_576)["message.max.bytes"] == 1_048_576 + 65_536


def test_a_batch_is_no_larger_than_a_topic_accepts() -> None:
    """Topics take records up to `max_message_bytes`, and a batch counts as one: a larger one would be refused whole."""
    assert config.producer("h:1", "app", {}, 20_000)["batch.size"] == 20_000
    assert config.producer("h:1", "app", {}, 10_000_000)["batch.size"] == 1_000_000


def test_what_a_publish_raised_for_is_not_delivered_later() -> None:
    plain = config.producer("h:1", "app", {}, 1000)
    transactional = config.transactional(plain, "id")

    assert plain["message.timeout.ms"] < 10_000
    assert transactional["message.timeout.ms"] < transactional["transaction.timeout.ms"] == 10_000
    assert transactional["transactional.id"] == "id"
