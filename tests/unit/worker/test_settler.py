"""Acknowledgements: only that of a settlement's last sending counts."""

from __future__ import annotations

from typing import Any

import pytest

from streamjobs.broker import Ack, TopicPartition
from streamjobs.core.dispatch import Partition
from streamjobs.core.offsets import Tracker
from streamjobs.core.record import Record
from streamjobs.testing.faults import broker_error
from streamjobs.worker.settle import Open, Settler
from streamjobs.worker.transact import Gathered


class Acks:
    """A producer whose acknowledgements come when the test says so."""

    def __init__(self) -> None:
        self.open: list[Ack] = []

    def send(self, record: Record, ack: Ack | None = None, *, alone: bool = False) -> None:
        assert ack is not None
        self.open.append(ack)

    def poll(self, timeout: float = 0.0) -> int:
        return 0


class Batches:
    """A producer that gathers what is sent until it is polled; a batch is refused whole for one record of over 1,000 bytes."""

    def __init__(self) -> None:
        self.open: list[list[tuple[Record, Ack]]] = [[]]
        self.stored: list[bytes | None] = []

    def send(self, record: Record, ack: Ack | None = None, *, alone: bool = False) -> None:
        assert ack is not None
        if alone:
            self.open.append([(record, ack)])
        else:
            self.open[0].append((record, ack))

    def poll(self, timeout: float = 0.0) -> int:
        batches, self.open = self.open, [[]]
        for batch in batches:
            refused = any(len(record.value or b"") > 1_000 for record, _ in batch)
            self.stored += [] if refused else [record.value for record, _ in batch]
            for _, ack in batch:
                ack(broker_error("MSG_SIZE_TOO_LARGE") if refused else None, None)  # type: ignore[arg-type]
        return len(batches)

    def fatal(self) -> None:
        return None


def test_a_record_beside_one_that_is_too_large_is_not_too_large_however_late_its_loop_is() -> None:  # edge 43
    """
    A retry of 10 kB and a small one share a batch, which is refused. What bit: both were to be sent again 50 ms apart; the loop came
    by after that (the machine was busy), sent both at once, they shared a batch again, and the small one became a letter `too_large`.
    """
    producer, now = Batches(), 0.0
    settler = Settler(lambda: producer, lambda: now)  # type: ignore[arg-type,return-value]
    home = Partition("jobs.q", 0, "q", retry=False, topic_id=b"id", epoch=1, tracker=Tracker(0))
    letters: list[int] = []

    def letter(offset: int) -> Record:
        letters.append(offset)
        return Record("dlt", b"letter")

    for offset, value in enumerate((bytes(10_000), b"small", bytes(20_000), b"tiny")):
        settler.settle(Open(home, offset, Record("retry", value), lambda: None, lambda offset=offset: letter(offset)))  # type: ignore[misc]
    for _ in range(6):
        settler.serve()
        now += 60.0

    assert letters == [0, 2]
    assert sorted(value or b"" for value in producer.stored) == [b"letter", b"letter", b"small", b"tiny"]
    assert settler.open == 0


def test_an_answer_of_a_replaced_producer_is_not_that_of_the_new_one() -> None:
    """
    A producer is lost and a settlement is sent again by the next one. Another loop still polls the old one, which reports the record as
    failed. What bit: that was taken for the answer of the new one, and the record was sent a third time, though it is stored.
    """
    old, new = Acks(), Acks()
    producers: list[Any] = [old]
    now = 0.0
    settler = Settler(lambda: producers[0], lambda: now)
    home = Partition("jobs.q", 0, "q", retry=False, topic_id=b"id", epoch=1, tracker=Tracker(0))
    settled: list[int] = []
    settler.settle(Open(home, 0, Record("jobs.q.g.retry", b""), lambda: settled.append(1)))
    producers[0] = new
    settler.serve()
    assert len(new.open) == 1

    old.open[0](broker_error("_PURGE_QUEUE"), None)  # type: ignore[arg-type]
    settler.serve()
    new.open[0](None, None)  # type: ignore[arg-type]
    now = 60.0
    settler.serve()

    assert settled == [1]
    assert len(new.open) == 1


def test_an_answer_after_the_end_of_an_epoch_settles_nothing_and_nothing_is_sent_again() -> None:  # edge 41
    """One is acknowledged then, one refused, and one was to be sent again: the next owner, or the next epoch here, does all three anew."""
    producer, now = Acks(), 0.0
    settler = Settler(lambda: producer, lambda: now)  # type: ignore[arg-type,return-value]
    settled: list[int] = []
    answered, refused, waiting = (
        Partition("jobs.q", number, "q", retry=False, topic_id=b"id", epoch=1, tracker=Tracker(0)) for number in range(3)
    )
    for home in (answered, refused, waiting):
        settler.settle(Open(home, 0, Record(f"topic {home.number}", b""), lambda home=home: settled.append(home.number)))  # type: ignore[misc]
    producer.open[2](broker_error("NOT_ENOUGH_REPLICAS"), None)  # type: ignore[arg-type]
    settler.serve()
    for home in (answered, refused, waiting):
        home.epoch = home.serving = -1
    producer.open[0](None, None)  # type: ignore[arg-type]
    producer.open[1](broker_error("NOT_ENOUGH_REPLICAS"), None)  # type: ignore[arg-type]
    now = 60.0
    settler.serve()
    now = 120.0
    settler.serve()

    assert (settled, len(producer.open), settler.open) == ([], 3, 0)
    assert set(settler.blocked) == {"topic 2"}, "what was refused after its epoch is no trouble of this worker"


@pytest.mark.parametrize("kind", [Settler, Gathered])
def test_what_refused_a_partition_that_left_is_forgotten_with_it(kind: type[Settler]) -> None:
    """Else the worker that let it go is not ready before something else is written to that topic."""
    settler = kind(Acks, lambda: 0.0)  # type: ignore[arg-type,return-value]
    gone, kept = (Partition("jobs.q", number, "q", retry=False, topic_id=b"id", epoch=1, tracker=Tracker(0)) for number in (0, 1))
    for home, topic in ((gone, "retry"), (kept, "dlt")):
        settler._failed(Open(home, 0, Record(topic, b""), lambda: None), broker_error("TOPIC_AUTHORIZATION_FAILED"))
    assert set(settler.blocked) == {"retry", "dlt"}

    settler.forget({TopicPartition("jobs.q", 0)})

    assert set(settler.blocked) == {"dlt"}
