"""Writing to a table of letters: as the only one who does, in short transactions, at a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from streamjobs import tables
from streamjobs.broker import Broker, Message, Producer, TransactionalProducer
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError, ReplayError, of_ctrl_c

#: A transaction hides what is behind it from everybody who reads the retry topic: none is open for longer.
OPEN_S = 0.1
#: Records and bytes of one batch at most; the first ones are smaller.
MOST, MOST_BYTES, FIRST = 1_000, 1_000_000, 100
#: How long an answer is waited for, and a batch tried again, while the cluster is busy or out of reach.
PATIENCE_S = 30.0
#: How long the client waits for an answer without a look at what else happened: Ctrl-C, or that it shall end at once.
SLICE_S = 0.2
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
    events_refused: bool
    """Whether the events topic was at fault when a batch failed."""

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> None:
        """Jobs, rows of the table (tombstones, or letters written anew) and events, acknowledged when it returns.

        Raises ReplayError if someone else took over, or the broker did not say what became of it; else BrokerError: then nothing
        was moved, and this desk is to be left (after a refused record, its producer's sequence numbers have a gap).
        """
        ...


@contextmanager
def at_desk(broker: Broker, topic: str, at_once: threading.Event | None = None) -> Iterator[Desk]:
    """Enter before the table is read. `at_once`, once set: no answer is waited for any longer.

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
    at_once = at_once or threading.Event()
    try:
        _until_answered(producer.init, at_once)
        yield Fenced(producer, topic, at_once)
    finally:
        producer.close(1.0)


class Plain:
    """On a broker without transactions: jobs are acknowledged before their letters go.

    A crash between leaves letters whose jobs run already, and none whose jobs never do; two operators at once both replay.
    """

    fenced = False
    events_refused = False

    def __init__(self, producer: Producer) -> None:
        self.longest_s = 0.0
        self._producer = producer

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> None:
        tables.write(self._producer, [*jobs, *events])
        tables.write(self._producer, rows)


class Fenced:
    """In transactions: all of a batch, or nothing of it."""

    fenced = True

    def __init__(self, producer: TransactionalProducer, topic: str, at_once: threading.Event) -> None:
        self.longest_s = 0.0
        self._producer = producer
        self._topic = topic
        self._at_once = at_once
        self.events_refused = False
        self._refusal: BrokerError | None = None

    def move(self, jobs: Sequence[Record], rows: Sequence[Record], events: Sequence[Record]) -> None:
        began = time.monotonic()
        producer = self._producer
        committing = False
        try:
            producer.begin()
            for record in (*jobs, *rows):
                producer.send(record, self._acked)
            for event in events:
                producer.send(event, self._event_acked)
            committing = True
            _until_answered(producer.commit, self._at_once)
        except BrokerError as error:
            if error.code == "_FENCED":
                raise taken_over(self._topic) from error
            if committing and _unanswered(error):
                raise _unknown(len(rows), error) from error
            with suppress(BrokerError):
                _until_answered(producer.abort, self._at_once)
            raise (self._refusal or error) from error
        except (KeyboardInterrupt, SystemError) as error:
            if committing:
                raise _unknown(len(rows), "interrupted" if of_ctrl_c(error) else error) from error
            with suppress(BrokerError):
                producer.abort(SLICE_S)
            raise
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _acked(self, error: BrokerError | None, _: Message) -> None:
        if error is not None and error.code not in _OF_THE_TRANSACTION:
            self._refusal = self._refusal or error

    def _event_acked(self, error: BrokerError | None, message: Message) -> None:
        if error is not None and error.code not in _OF_THE_TRANSACTION:
            self.events_refused = True


def _until_answered(call: Callable[[float], None], at_once: threading.Event) -> None:
    """An init, a commit or an abort without an answer is asked for again, and nothing else may follow it.

    In slices. *Bites*: the broker stands still, the client waits for ten seconds, and Ctrl-C is heard when it returns: of the two that
    were pressed meanwhile only one.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call(SLICE_S)
        except BrokerError as error:
            if not _unanswered(error) or at_once.is_set() or time.monotonic() > deadline:
                raise


def _unanswered(error: BrokerError) -> bool:
    return error.retriable and not error.abortable


def _unknown(count: int, why: object) -> ReplayError:
    return ReplayError(
        f"the broker did not say whether the last {count} letters were moved ({why}); they were all, or none of them. "
        "Run the same command again: it reads what is there"
    )


def taken_over(topic: str) -> ReplayError:
    return ReplayError(
        f"another order took over {topic} (or a transaction was open for too long): this one stopped, and the batch in hand is undone. "
        "Look what is left (`streamjobs dlt list`) before you run it again"
    )
