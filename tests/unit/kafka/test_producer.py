"""Producers whose broker is gone."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest

from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.kafka import EmbeddedBroker
from streamjobs.kafka.producer import KafkaProducer

NOBODY = "embedded:127.0.0.1:1"


def test_a_full_buffer_is_told_at_once() -> None:  # edge 68
    producer = EmbeddedBroker(NOBODY, {"queue.buffering.max.messages": 3}).producer()

    with pytest.raises(BrokerError) as refused:
        for _ in range(10):
            producer.send(Record("t", b"x"))

    assert (refused.value.code, refused.value.retriable) == ("_QUEUE_FULL", True)
    producer.close(0.0)


def test_what_is_not_acknowledged_is_still_open() -> None:
    producer = EmbeddedBroker(NOBODY).producer()
    producer.send(Record("t", b"x"))

    assert producer.flush(0.1) == 1
    producer.close(0.0)


def test_it_is_gone_when_nobody_has_it_any_more() -> None:
    """With its threads and sockets, and not when the garbage collector comes: programs write one order, and another."""
    gc.collect()
    gc.disable()
    try:
        producer = EmbeddedBroker(NOBODY).producer()
        producer.close(0.0)
        gone = weakref.ref(producer)
        del producer
        assert gone() is None
    finally:
        gc.enable()


def test_close_is_bounded_and_tells_what_was_open(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Any] = []
    producer = EmbeddedBroker(NOBODY).producer()
    producer.send(Record("t", b"x"), lambda error, _: outcomes.append(error))
    started = time.monotonic()

    producer.close(0.2)

    assert time.monotonic() - started < 3
    assert "1 records that were not acknowledged" in caplog.text
    assert [error.code for error in outcomes] == ["_PURGE_QUEUE"]


def test_transactions_without_a_broker_time_out() -> None:
    producer = EmbeddedBroker(NOBODY).transactional_producer("id")

    with pytest.raises(BrokerError) as refused:
        producer.init(timeout=0.5)

    assert refused.value.retriable
    producer.close(0.0)


def test_both_clients_are_polled_while_one_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent alone goes by a second client. What bites: its broker is silent, and nothing else is acknowledged meanwhile."""
    polls: dict[str, int] = {"many": 0, "single": 0}

    class Client:
        def __init__(self, config: dict[str, Any]) -> None:
            self.name = "single" if config.get("batch.num.messages") == 1 else "many"

        def produce(self, *args: Any, **options: Any) -> None: ...

        def poll(self, timeout: float) -> int:
            polls[self.name] += 1
            return 0

        def __len__(self) -> int:
            return 1 if self.name == "single" else 0

    monkeypatch.setattr("streamjobs.kafka.producer.Client", Client)
    producer = KafkaProducer({})
    producer.poll(0.01)
    assert polls == {"many": 1, "single": 0}, "a client that nobody needed yet is not made"

    producer.send(Record("t", b"x"), alone=True)
    producer.poll(1.0)
    assert polls == {"many": 2, "single": 1}


class Flushing:
    """A client whose `flush` fails so."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def flush(self, timeout: float) -> int:
        raise self.error

    def purge(self) -> None: ...

    def poll(self, timeout: float) -> int:
        return 0

    def __len__(self) -> int:
        return 3


def test_a_flush_that_the_client_gets_wrong_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with two replays at once: `flush` of a producer that is being fenced "returned NULL without setting an exception",
    and the SystemError hid that another replay had taken over."""
    client = Flushing(SystemError("<method 'flush'> returned NULL without setting an exception"))
    monkeypatch.setattr("streamjobs.kafka.producer.Client", lambda config: client)
    producer = KafkaProducer({})
    assert producer.flush(1.0) == 3
    producer.close(0.1)


def test_ctrl_c_in_a_flush_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = SystemError("<method 'flush'> returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    monkeypatch.setattr("streamjobs.kafka.producer.Client", lambda config: Flushing(error))
    with pytest.raises(SystemError):
        KafkaProducer({}).flush(1.0)
