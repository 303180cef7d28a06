"""Carrying an order out: fence, read, move in batches; and beginning anew where a batch failed."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from streamjobs import audit
from streamjobs.core.letters import Kept, Letter
from streamjobs.core.record import Record
from streamjobs.dead_letters.desk import MOST_BYTES, PATIENCE_S, Desk, Pace, at_desk
from streamjobs.dead_letters.orders import Move, Order, Verdict, chosen
from streamjobs.dead_letters.table import Table
from streamjobs.errors import BrokerError, ReplayError, of_ctrl_c
from streamjobs.telemetry.events import Event, EventBatch

logger = logging.getLogger(__name__)

#: Seconds between a round that failed and the next one.
PAUSE_S = 0.2
#: How long the audit topic is waited for by an order that ends at once.
NOTED_AT_ONCE_S = 1.0
_SIZES = ("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE")


@dataclass
class Done:
    """What an order did. `kept`, `why`: as in the plan. `interrupted`: it was asked to stop before its end.

    `longest_s`: the longest that a transaction was open. `fenced`: nobody else could write meanwhile. `complaint`: why the order
    could not be noted in the audit topic, or "".
    """

    action: str
    moved: int = 0
    kept: Counter[Kept] = field(default_factory=Counter)
    why: dict[Kept, str] = field(default_factory=dict)
    interrupted: bool = False
    batches: int = 0
    took_s: float = 0.0
    longest_s: float = 0.0
    events_dropped: int = 0
    fenced: bool = True
    complaint: str = ""

    def keep(self, kept: Kept, why: str) -> None:
        self.kept[kept] += 1
        if why:
            self.why.setdefault(kept, why)


def carry_out(
    order: Order,
    *,
    rate: float | None = None,
    reason: str = "",
    actor: str = "",
    stop: threading.Event | None = None,
    at_once: threading.Event | None = None,
    moved: Callable[[int], None] | None = None,
) -> Done:
    """Fences, reads, then acts on what of the order holds for the table as it is now; one audit record, however it ends.

    `rate`: letters a second. `stop`, once set, ends it behind the batch in hand, `at_once` also in the midst of it: Ctrl-C is no error
    then. `moved`: called with the size of each batch.
    Raises ReplayError (refused, or another order took over), UsageError, BrokerError.
    """
    order.check()
    at_once = at_once or threading.Event()
    run = _Run(order, rate, stop or threading.Event(), at_once, moved or _nobody)
    result = "failed"
    try:
        run.run()
        result = "interrupted" if run.done.interrupted else "ok"
    except (ReplayError, BrokerError) as error:
        result = f"failed: {error}"
        raise
    finally:
        entry = audit.Entry(f"dlt {order.action}", order.target(), run.done.moved, result, reason)
        run.done.complaint = audit.record(order.table.app, entry, who=actor, timeout=NOTED_AT_ONCE_S if at_once.is_set() else audit.NOTED_S)
        if run.done.complaint:
            logger.warning("%s", run.done.complaint)
    return run.done


def _nobody(_: int) -> None:
    """Nobody watches."""


class _BatchFailed(Exception):
    """Nothing of it was moved. `events`: the topic of events was at fault."""

    def __init__(self, batch: Sequence[Move], cause: BrokerError, *, events: bool) -> None:
        super().__init__(str(cause))
        self.batch = batch
        self.cause = cause
        self.events = events


class _Run:
    """One application of an order, in rounds: from the fence through the table to its end.

    After a batch that failed there is another round, with another producer and therefore another reading: going on with what was
    read before a new fence is how letters go back twice.
    """

    def __init__(
        self, order: Order, rate: float | None, stop: threading.Event, at_once: threading.Event, watch: Callable[[int], None]
    ) -> None:
        app = order.table.app
        self.done = Done(order.action)
        self._order = order
        self._pace = Pace(rate)
        self._stop = stop
        self._at_once = at_once
        self._watch = watch
        self._worker = f"dlt-{socket.gethostname()}-{os.getpid()}"
        self._events = EventBatch(self._worker, order.table.group, app.settings.events.mode)
        self._tell = True
        self._alone: set[bytes] = set()  # rows of a batch that was refused for its size: each goes by itself
        self._too_large: dict[bytes, str] = {}
        self._failing_since = 0.0

    def run(self) -> None:
        began = time.monotonic()
        try:
            while not self._round():
                if self._stop.wait(PAUSE_S):
                    self.done.interrupted = True
                    return
        except (KeyboardInterrupt, SystemError, BrokerError) as error:
            if not self._at_once.is_set() or not (isinstance(error, BrokerError) or of_ctrl_c(error)):
                raise  # else an answer was not waited for, or what went on was interrupted, and nothing of a batch was moved by it
            self.done.interrupted = True
        finally:
            self.done.took_s = time.monotonic() - began

    def _round(self) -> bool:
        """Whether it came to its end."""
        table = self._order.table
        self.done.kept.clear()
        with at_desk(table.app.broker, table.topic, self._at_once) as desk:
            self.done.fenced = desk.fenced
            try:
                for batch in self._batches(self._order.letters(table.bounds())):
                    self._move(desk, batch)
                    self._stop.wait(self._pace.wait_s(time.monotonic()))
            except _BatchFailed as failed:
                self._learn(failed)
                return False
            finally:
                self.done.longest_s = max(self.done.longest_s, desk.longest_s)
        return True

    def _batches(self, letters: Iterator[Letter]) -> Iterator[list[Move]]:
        """What moves together; nothing more once it shall stop, or the limit is reached."""
        batch: list[Move] = []
        size, going = 0, self.done.moved
        for letter in chosen(self._order, letters):
            if self._stop.is_set():
                self.done.interrupted = True
                return
            move = self._judged(letter)
            if move is None:
                continue
            if move.moved and going == self._order.limit:
                break
            if letter.row in self._alone:
                yield [move]
            else:
                batch.append(move)
                size += move.size
            going += move.moved
            if len(batch) >= self._pace.size or size >= MOST_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _judged(self, letter: Letter) -> Move | None:
        verdict = self._order.verdict(letter)
        if verdict.move is not None and letter.row in self._too_large:
            verdict = Verdict(None, Kept.TOO_LARGE, self._too_large[letter.row])
        if verdict.kept is not None:
            self.done.keep(verdict.kept, verdict.why)
        return verdict.move

    def _move(self, desk: Desk, batch: Sequence[Move]) -> None:
        self._order.prepare()
        events = self._told(batch)
        began = time.monotonic()
        try:
            desk.move([m.job for m in batch if m.job], [m.row for m in batch], events if self._tell else ())
        except BrokerError as error:
            if not desk.fenced:
                raise
            raise _BatchFailed(batch, error, events=desk.events_refused) from error
        self._pace.went(len(batch), began, time.monotonic() - began)
        self._count(batch, 0 if self._tell else len(events))

    def _count(self, batch: Sequence[Move], dropped: int) -> None:
        count = sum(move.moved for move in batch)
        self.done.moved += count
        self.done.batches += 1
        self.done.events_dropped += dropped
        self._failing_since = 0.0
        self._watch(count)

    def _learn(self, failed: _BatchFailed) -> None:
        """What makes the next round come further than this one; raises the cause if nothing does.

        What tells of a replay must not hold it up, nor one record that is too large all those around it.
        """
        cause = failed.cause
        self._failing_since = self._failing_since or time.monotonic()
        if failed.events and self._tell:
            logger.warning("events of this order can't be written: %s", cause)
            self._tell = False
        elif cause.code in _SIZES:
            self._set_apart(failed)
        elif not cause.retriable or time.monotonic() - self._failing_since > PATIENCE_S:
            raise cause
        else:
            logger.warning("a batch was not moved and is tried again: %s", cause)

    def _set_apart(self, failed: _BatchFailed) -> None:
        if len(failed.batch) == 1:
            letter = failed.batch[0].letter
            self._too_large[letter.row] = f"{letter.id}: {failed.cause}"
        else:
            self._alone |= {move.letter.row for move in failed.batch}

    def _told(self, batch: Sequence[Move]) -> list[Record]:
        """`replayed` events of the batch, for the topic that a monitor reads."""
        table = self._order.table
        for move in batch:
            if move.job is not None:
                self._events.tell(_event(move, table, self._worker))
        packets = self._events.take(table.app.clock.now())
        return [Record(table.app.names.events, packet.value, self._worker.encode()) for packet in packets]


def _event(move: Move, table: Table, worker: str) -> Event:
    meta, job = move.letter.meta, move.job
    assert job is not None
    due = dict(job.headers).get("sj_due")
    return Event(
        kind="replayed",
        job_id=meta.job_id,
        job_type=meta.job_type,
        queue=table.queue,
        group=table.group,
        origin=move.letter.origin,
        run=meta.run,
        attempt=meta.attempt,
        topic=move.letter.topic,
        partition=move.letter.partition,
        offset=move.letter.offset,
        at=table.app.clock.now(),
        reason=meta.reason,
        due=int(due) / 1000 if due else 0.0,
        worker=worker,
    )
