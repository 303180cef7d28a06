"""Writing to a table of letters: as the only one who does, in short transactions, at a rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from streamjobs import tables
from streamjobs.broker import Broker, Message, Producer, TransactionalProducer
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError, ReplayError

logger = logging.getLogger(__name__)

#: A transaction hides what is behind it from everybody who reads the retry topic: none is open for longer.
OPEN_S = 0.1
#: Records and bytes of one batch at most; the first ones are smaller.
MOST, MOST_BYTES, FIRST = 1_000, 1_000_000, 100
#: How long a batch is tried again while the cluster is busy or out of reach.
PATIENCE_S = 30.0
PAUSE_S = 0.2
#: What records of a transaction fail with that fails for another one's sake.
_OF_THE_TRANSACTION = ("_PURGE_QUEUE", "_PURGE_INFLIGHT", "_FENCED", "_STATE")


class Pace:
    """How many letters go in one batch, and when: as fast as `OPEN_S` allows, or `rate` letters a second."""

    def __init__(self, rate: float | None = None) -> None:
        self._rate = rate
        self._size = FIRST
        self._next = 0.0

    @property
    def size(self) -> int:
        """Letters of the next batch: of a rate a tenth of a second's, so that workers see a trickle and no waves."""
        return self._size if self._rate is None else max(1, min(self._size, int(self._rate / 10)))

    def wait_s(self, now: float) -> float:
        """Until the next batch may begin."""
        return max(0.0, self._next - now)

    def went(self, count: int, began: float, took_s: float) -> None:
        """A batch was moved: half as many next time if it took long, twice as many if there is room.

        Time lost to a slow broker is not made up for: a burst is what `rate` is there to prevent.
        """
        if took_s > 0.8 * OPEN_S:
            self._size = max(1, count // 2)
        elif took_s < 0.4 * OPEN_S and count >= self._size:
            self._size = min(MOST, self._size * 2)
        if self._rate is not None:
            self._next = max(self._next, began) + count / self._rate


class Desk(Protocol):
    """The right to write to one table, for as long as nobody else takes it."""

    longest_s: float
    """The longest that a transaction was open."""
    fenced: bool
    """Whether others are kept from it."""

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> int:
        """Jobs, rows of the table (tombstones, or letters written anew) and events, acknowledged when it returns.

        The answer: how many of the events could not be written; they hold nothing up. Raises ReplayError if someone else took
        over, else BrokerError.
        """
        ...


@contextmanager
def at_desk(broker: Broker, topic: str) -> Iterator[Desk]:
    """Enter before the table is read (PROTOCOLS §10).

    *Bites*: two operators read six letters each, then one fences the other, and both replay: twelve jobs.
    """
    if "transactions" in broker.lacks:
        plain = broker.producer()
        try:
            yield Plain(plain)
        finally:
            plain.close()
        return
    producer = broker.transactional_producer(f"streamjobs.dlt.{topic}")
    try:
        producer.init()
        yield Fenced(producer, topic)
    finally:
        producer.close(1.0)


class Plain:
    """On a broker without transactions: jobs are acknowledged before their letters go.

    A crash between leaves letters whose jobs run already, and none whose jobs never do; two operators at once both replay.
    """

    fenced = False

    def __init__(self, producer: Producer) -> None:
        self.longest_s = 0.0
        self._producer = producer

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> int:
        tables.write(self._producer, [*jobs, *events])
        tables.write(self._producer, rows)
        return 0


class Fenced:
    """In transactions: all of a batch, or nothing of it."""

    fenced = True

    def __init__(self, producer: TransactionalProducer, topic: str) -> None:
        self.longest_s = 0.0
        self._producer = producer
        self._topic = topic
        self._events_refused = False

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            sent = () if self._events_refused else events
            try:
                self._transaction([*jobs, *rows], sent)
                return len(events) - len(sent)
            except BrokerError as error:
                if error.code == "_FENCED":
                    raise taken_over(self._topic) from error
                if self._events_refused and sent:
                    continue
                if error.fatal or not error.retriable or time.monotonic() > deadline:
                    raise
                logger.warning("a batch was not moved (%s) and is tried again", error)
                time.sleep(PAUSE_S)

    def _transaction(self, records: Sequence[Record], events: Sequence[Record]) -> None:
        producer = self._producer
        began = time.monotonic()
        producer.begin()
        try:
            for record in records:
                producer.send(record)
            for event in events:
                producer.send(event, self._event_acked)
            self._commit()
        except BrokerError as error:
            if not error.fatal:
                producer.abort()
            raise
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _event_acked(self, error: BrokerError | None, _: Message) -> None:
        """A transaction that the events topic makes abort is repeated without events (PROTOCOLS §11)."""
        self._events_refused = self._events_refused or (error is not None and error.code not in _OF_THE_TRANSACTION)

    def _commit(self) -> None:
        """A commit that timed out goes on when it is asked for again; nothing else may follow it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._producer.commit()
            except BrokerError as error:
                if error.code != "_TIMED_OUT" or time.monotonic() > deadline:
                    raise


def taken_over(topic: str) -> ReplayError:
    return ReplayError(
        f"another order took over {topic}: this one stopped, and what it had begun and not finished is undone. "
        "Look what is left (`streamjobs dlt list`) before you run it again"
    )
