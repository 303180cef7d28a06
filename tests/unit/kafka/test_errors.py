"""confluent_kafka's errors as ours."""

from __future__ import annotations

import pytest
from confluent_kafka.cimpl import KafkaError, KafkaException

from streamjobs.errors import BrokerError
from streamjobs.kafka.errors import (
    ADVICE,
    PERMANENT,
    RETRIABLE,
    Contact,
    as_broker_error,
    from_exception,
    persistently,
    translated,
)

CODES = {
    name: getattr(KafkaError, name) for name in dir(KafkaError) if name.isupper() and isinstance(getattr(KafkaError, name), int)
}


def test_every_error_of_the_client_is_either_retriable_or_permanent() -> None:
    """A version of the client that knows a new one turns this red: decide which it is."""
    known = {KafkaError(code).name() for code in CODES.values()}

    assert len(known) > 150
    assert known - RETRIABLE - PERMANENT == set()
    assert RETRIABLE & PERMANENT == frozenset()


def test_advice_is_for_errors_that_exist() -> None:
    assert ADVICE.keys() <= RETRIABLE | PERMANENT


@pytest.mark.parametrize("name", ["_TRANSPORT", "REBALANCE_IN_PROGRESS", "STALE_MEMBER_EPOCH", "NOT_COORDINATOR"])
def test_what_passes_is_retriable(name: str) -> None:  # edge 8
    error = translated(KafkaError(CODES[name]), "commit offsets")

    assert (error.code, error.retriable, error.fatal) == (name, True, False)
    assert str(error).startswith("commit offsets: ")


def test_what_does_not_pass_is_not() -> None:
    error = translated(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    assert not error.retriable
    assert "principal" in str(error)


@pytest.mark.parametrize("name", ["PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "_FENCED"])
def test_fenced_has_one_name_and_is_fatal(name: str) -> None:
    error = translated(KafkaError(CODES[name]))

    assert (error.code, error.fatal, error.retriable) == ("_FENCED", True, False)


def test_a_fatal_error_is_never_retriable() -> None:
    assert translated(KafkaError(KafkaError._TRANSPORT, "gone", True)).retriable is False


def test_whatever_the_client_raises_is_a_broker_error() -> None:
    with pytest.raises(BrokerError) as raised, as_broker_error("look"):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    assert raised.value.code == "_TIMED_OUT"

    with pytest.raises(BrokerError) as raised, as_broker_error("look"):
        raise TimeoutError
    assert raised.value.retriable

    assert from_exception(ValueError("x"), "callback").code == "_APPLICATION"


def heard(contact: Contact, code: int, *lines: str) -> None:
    for line in lines:
        contact.heard(KafkaError(code, line))


def test_who_is_refused_by_each_of_its_servers_is_told_by_whom_and_why() -> None:
    contact = Contact("a:9092, b:9092,")
    refusal = "{}:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 2ms in state CONNECT)"

    heard(contact, KafkaError._TRANSPORT, refusal.format("a"), refusal.format("a"))
    assert not contact.refused
    heard(contact, KafkaError._TRANSPORT, refusal.format("b"))
    heard(contact, KafkaError._ALL_BROKERS_DOWN, "2/2 brokers are down")
    assert contact.refused

    error = contact.refusal("list topics")
    assert error.retriable
    assert str(error).startswith("list topics at a:9092, b:9092,: Connect to ipv4#10.0.0.1:9092 failed: Connection refused: is the")
    contact.listen_again()
    assert not contact.refused


def test_an_error_of_a_broker_that_answers_has_no_address() -> None:
    contact = Contact("a:9092")

    assert " at a:9092: " in str(contact.told(KafkaError(KafkaError._MSG_TIMED_OUT), "deliver a record"))
    assert "a:9092" not in str(contact.told(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "deliver a record"))


def test_persistence_ends_at_success_a_permanent_error_or_the_timeout() -> None:
    answers: list[object] = [BrokerError("NOT_LEADER_FOR_PARTITION", "", retriable=True), 7]

    def call() -> object:
        answer = answers.pop(0)
        if isinstance(answer, BrokerError):
            raise answer
        return answer

    assert persistently(call, 5.0) == 7

    answers[:] = [BrokerError("POLICY_VIOLATION", ""), 7]
    with pytest.raises(BrokerError):
        persistently(call, 5.0)

    answers[:] = [BrokerError("_TRANSPORT", "", retriable=True), 7]
    with pytest.raises(BrokerError):
        persistently(call, 0.0)
