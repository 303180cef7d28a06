"""Records that are no jobs here: letters, or put aside until a worker knows their type or schema.

Where order is strict such a record keeps its place: it enters its lane at once, and its key waits. *Bites*: it goes to the ladder, and
the next job of its key books on an account that it was to open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from streamjobs.broker import Message
from streamjobs.core.control import Desired
from streamjobs.core.delay import HOLD_MINUTES, STRICT_BACKOFF_S, STRICT_BLOCK_S
from streamjobs.core.dispatch import UNREAD, Dispatcher, Entry, Partition
from streamjobs.core.lifecycle import Reason
from streamjobs.core.offsets import Parked
from streamjobs.core.record import Meta
from streamjobs.errors import HeaderError
from streamjobs.job import Job
from streamjobs.telemetry.events import Event, EventBatch
from streamjobs.worker.decode import Decoder, Undecodable
from streamjobs.worker.settle import Cause, Open, Routes, Settler, held_record, letter_record
from streamjobs.worker.sleepers import Sleepers

logger = logging.getLogger(__name__)

#: So many heads that can't be read are looked at in one turn.
LOOKS = 500
_DECODE_LABELS = {"undecodable": "payload", "type_unknown": "header", "schema_unknown": "schema", "tombstone": "payload"}


class Counting(Protocol):
    def count(self, name: str, *labels: str, by: float = 1) -> None: ...


class Unread(Entry):
    """A record in its lane that can't be read yet; `looks`: how often it was looked at as its head."""

    __slots__ = ("bad", "looks")

    def __init__(self, bad: Undecodable) -> None:
        self.bad = bad
        self.looks = 0
        self.home = bad.home
        self.epoch = bad.home.epoch
        self.offset = bad.message.offset()
        self.lane = bad.message.key()
        self.next = None
        self.kind = UNREAD


class Refusals:
    """What becomes of such records of one loop. One owner: the loop's thread.

    `admit` gets jobs that can be read after all, `enter` those that have a place in a lane. `events` gathers what became of the others.
    `heads`: what can't be read and is first in its lane.
    """

    def __init__(
        self,
        *,
        app: str,
        routes: Routes,
        decoder: Decoder,
        dispatcher: Dispatcher[Job],
        settler: Settler,
        sleepers: Sleepers[Entry],
        desired: Callable[[], Desired],
        now: Callable[[], float],
        metrics: Counting,
        learn_schemas: Callable[[Callable[[], None]], None],
        hold_s: float,
        admit: Callable[[Job], None],
        enter: Callable[[Job], None],
        events: EventBatch,
    ) -> None:
        self._app = app
        self._routes = routes
        self._decoder = decoder
        self._dispatcher = dispatcher
        self._settler = settler
        self._sleepers = sleepers
        self._desired = desired
        self._now = now
        self._metrics = metrics
        self._learn_schemas = learn_schemas
        self._hold_s = hold_s
        self._admit = admit
        self._enter = enter
        self._events = events
        self._unknown: list[Undecodable | Unread] = []
        self._learned: SimpleQueue[bool] = SimpleQueue()
        self.heads: set[Unread] = set()

    def refuse(self, bad: Undecodable) -> None:
        if bad.kind == "tombstone":
            logger.warning("%s/%d@%d has no value: skipped", bad.home.topic, bad.home.number, bad.message.offset())
            self._count(bad)
            bad.home.tracker.finish(bad.message.offset())
        elif self._keeps_its_place(bad):
            self._count(bad)
            entry: Any = Unread(bad)
            self._dispatcher.add(entry)
        elif bad.kind == "schema_unknown":
            self._learn(bad)
        else:
            self._put_aside(bad)

    def _keeps_its_place(self, bad: Undecodable) -> bool:
        """What is due later is not in its lane yet, and takes the ladder as any."""
        readable_later = bad.kind in ("schema_unknown", "type_unknown")
        return readable_later and self._decoder.is_strict(bad) and bad.meta.due <= self._now() + self._hold_s

    def _count(self, bad: Undecodable) -> None:
        reason = "header" if isinstance(bad.error, HeaderError) else _DECODE_LABELS[bad.kind]
        self._metrics.count("decode_errors_total", bad.home.queue, reason)

    # Looking again ----------------------------------------------------------------------------------------------------

    def _learn(self, bad: Undecodable | Unread) -> None:
        """Its schema may have come after the last look at the schema topic: look again, then decide."""
        self._unknown.append(bad)
        if len(self._unknown) == 1:
            self._learn_schemas(lambda: self._learned.put(True))

    @property
    def learning(self) -> bool:
        """Records wait for a look at the schema topic."""
        return bool(self._unknown)

    def look_again(self) -> None:
        """Decides over the records that waited for a look at the schema topic, once it has been taken; then over new heads."""
        if not self._learned.empty():
            self._learned.get_nowait()
            waiting, self._unknown = self._unknown, []
            for bad in waiting:
                if isinstance(bad, Unread):
                    self._read_head(bad)
                else:
                    self._read(bad)
        if self._dispatcher.ready[UNREAD]:
            heads: Any = self._dispatcher.take(UNREAD, LOOKS)
            for head in heads:
                self._look_at(head)

    def _read(self, bad: Undecodable) -> None:
        found = self._decoder.decode(bad.message, bad.home)
        if isinstance(found, Job):
            self._admit(found)
        else:
            self._put_aside(found)

    def forget_stale(self) -> None:
        """Drops what waits of partitions that have left."""
        self._unknown = [bad for bad in self._unknown if bad.home.epoch >= 0]
        self.heads = {head for head in self.heads if head.home.epoch >= 0}

    # In its lane ------------------------------------------------------------------------------------------------------

    def _look_at(self, head: Unread) -> None:
        self.heads.add(head)
        if head.bad.kind == "schema_unknown":
            self._learn(head)
        else:
            self._wait(head)

    def _read_head(self, head: Unread) -> None:
        job = self._decoder.decode(head.bad.message, head.home)
        if isinstance(job, Job):
            self.heads.discard(head)
            self._dispatcher.replace(head, job)
            self._enter(job)
        else:
            self._wait(head)

    def _wait(self, head: Unread) -> None:
        """Until it is looked at again, at another owner perhaps: the commit says how long it has blocked its key."""
        home, now = head.home, self._now()
        parked = home.parked.get(head.offset) or Parked(head.offset, 0, 0.0)
        wait_s = min(STRICT_BACKOFF_S, 2.0 ** min(head.looks, 10))
        blocked_s = parked.blocked_s if self._is_paused(head, now) else parked.blocked_s + wait_s
        if blocked_s > STRICT_BLOCK_S:
            self._bury(head.bad, lambda: self._leave(head))
            return
        if not head.looks:
            where = f"{home.topic}/{home.number}@{head.offset}"
            logger.warning("%s: %s; its key waits for a worker that knows it, %g s at most", where, head.bad.error, STRICT_BLOCK_S)
        head.looks += 1
        home.parked[head.offset] = parked._replace(blocked_s=blocked_s)
        home.tracker.touch()
        self._sleepers.wake_at(now + wait_s, head, self._look_at)

    def _is_paused(self, head: Unread, now: float) -> bool:
        """A key is blocked only while its job may run."""
        meta, queue = head.bad.meta, head.home.queue
        return self._desired().paused(queue, meta.job_type, head.lane, now, app=self._app) is not None

    def _leave(self, head: Unread) -> None:
        self.heads.discard(head)
        head.home.parked.pop(head.offset, None)
        self._dispatcher.stopped(head)  # type: ignore[arg-type]

    # Elsewhere --------------------------------------------------------------------------------------------------------

    def _put_aside(self, bad: Undecodable) -> None:
        """What another version of the code may know waits in the ladder for an hour; the rest is a letter at once."""
        self._count(bad)
        holds = bad.meta.holds if bad.meta.reason == bad.kind else 0
        if bad.kind == "undecodable" or holds >= len(HOLD_MINUTES):
            self._bury(bad)
            return
        minutes = HOLD_MINUTES[holds]
        where = f"{bad.home.topic}/{bad.home.number}@{bad.message.offset()}"
        logger.warning("%s: %s; it waits %d min for a worker that knows it", where, bad.error, minutes)
        due = self._now() + 60 * minutes
        self.hold(bad.message, bad.home, bad.meta, due, bad.kind, lambda: self._tell(bad, "held", due))

    def _bury(self, bad: Undecodable, then: Callable[[], None] = lambda: None) -> None:
        cause = Cause(Reason(bad.kind), bad.error, run=bad.meta.run, attempt=bad.meta.attempt)
        record = letter_record(self._routes, bad.message, bad.home, bad.meta, cause)
        logger.error("%s/%d@%d is a dead letter: %s", bad.home.topic, bad.home.number, bad.message.offset(), bad.error)
        self._settler.settle(Open(bad.home, bad.message.offset(), record, lambda: self._buried(bad, then)))

    def _buried(self, bad: Undecodable, then: Callable[[], None]) -> None:
        bad.home.tracker.finish(bad.message.offset())
        self._metrics.count("dead_letters_total", bad.home.queue, "_unknown", bad.kind)
        self._tell(bad, "dead")
        then()

    def _tell(self, bad: Undecodable, kind: str, due: float = 0.0) -> None:
        """*Bites*: a record of garbage was a dead letter of which no event ever spoke, and whoever counts letters by events had too few."""
        home, meta, error = bad.home, bad.meta, bad.error
        event = Event(
            kind=kind,
            job_id=meta.job_id,
            job_type=meta.job_type,
            queue=home.queue,
            group=self._routes.group,
            origin=meta.origin,
            run=meta.run,
            attempt=meta.attempt,
            topic=home.topic,
            partition=home.number,
            offset=bad.message.offset(),
            at=0.0,  # when the batch is taken
            error_type=type(error).__qualname__ if error is not None else "",
            error_message=str(error or ""),
            reason=bad.kind,
            due=due,
        )
        self._events.tell(event, home.topic_id)

    def hold(
        self, message: Message, home: Partition, meta: Meta, due: float, reason: str, then: Callable[[], None] = lambda: None
    ) -> None:
        """Moves a record to the ladder without a new run; `then` is called when it is there."""
        record = held_record(self._routes, message, home, meta, due, reason, self._now())
        offset = message.offset()

        def moved() -> None:
            home.tracker.finish(offset)
            then()

        self._settler.settle(Open(home, offset, record, moved))
