"""What can be ordered of letters: replay, discard, edit. Each is planned and carried out by the same code.

An order looks at one letter and says what becomes of it; a plan asks it about the table as it is now and counts, an application
asks it again about the table that it reads behind the fence, and does it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streamjobs import audit, orders
from streamjobs.core.failures import Group, Groups
from streamjobs.core.filters import Filter
from streamjobs.core.letters import Kept, Letter, Route, Rules, edited, parked, replayed, tombstone
from streamjobs.core.record import Record
from streamjobs.core.topics import retry_group
from streamjobs.dead_letters.desk import MOST_BYTES, Desk, Pace, at_desk
from streamjobs.dead_letters.payloads import Change, Payloads
from streamjobs.dead_letters.table import Table
from streamjobs.errors import BrokerError, DecodeError, PayloadError, ReplayError, UsageError
from streamjobs.tables import Bounds
from streamjobs.telemetry.events import Event, EventBatch

logger = logging.getLogger(__name__)

#: The broker, not the record, is at fault for none of these.
_SIZES = ("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE")


class Move(NamedTuple):
    """What one letter's order writes: a job, or none, and the row that takes the letter's place on the table."""

    letter: Letter
    row: Record
    job: Record | None = None
    moved: bool = True
    """False: it only notes something on the letter, which stays."""

    @property
    def size(self) -> int:
        return len(self.row.value or b"") + (len(self.job.value or b"") if self.job else 0) + 1_000


class Verdict(NamedTuple):
    """What becomes of a letter: a move, a reason why it stays (and more words for it), or both: it is parked, and marked so."""

    move: Move | None
    kept: Kept | None = None
    why: str = ""


class Order(Protocol):
    """An order on letters. `at`: the instant that ages count from."""

    action: str
    limit: int | None

    @property
    def table(self) -> Table: ...
    @property
    def filter(self) -> Filter: ...
    @property
    def at(self) -> float: ...
    def check(self) -> None:
        """Raises ReplayError or UsageError for an order that can't be carried out at all, and says what to do."""
        ...

    def letters(self, within: Bounds) -> Iterator[Letter]:
        """Those that it is about, of which the filter chooses."""
        ...

    def verdict(self, letter: Letter) -> Verdict: ...
    def prepare(self) -> None:
        """What has to be written before the first letter of a batch moves."""
        ...

    def target(self) -> str:
        """What the audit record says."""
        ...


# --- replay -------------------------------------------------------------------------------------------------------------------


@dataclass
class Replay:
    """Jobs go back to where this group's retries run, letters leave the table.

    `to`: another queue. `delay_s`: when they run; through the ladder. `changes`: to their payloads.
    """

    table: Table
    filter: Filter
    at: float
    payloads: Payloads
    limit: int | None = None
    to: str = ""
    delay_s: float = 0.0
    changes: tuple[Change, ...] = ()
    action = "replay"
    _rules: Rules = field(init=False)
    _route: Route = field(init=False)

    @property
    def queue(self) -> str:
        return self.to or self.table.queue

    @property
    def destination(self) -> str:
        """Where the jobs will run."""
        return self.table.app.names.retry(self.queue, self.table.group)

    def check(self) -> None:
        app, names = self.table.app, self.table.app.names
        main = names.main(self.table.queue)
        tier = self._tier()
        topics = app.broker.admin().topics([topic for topic in (main, self.destination, tier) if topic])
        if main not in topics and not self.to:
            raise ReplayError(
                f"queue {self.table.queue} is gone: there is no topic {main}. Put its jobs into another queue of group "
                f"{self.table.group} with --to QUEUE, or create it again with `streamjobs topic apply`"
            )
        for topic in (self.destination, tier):
            if topic and topic not in topics:
                raise ReplayError(f"there is no topic {topic}: `streamjobs topic apply` creates it, or choose another queue with --to")
        now = app.clock.now()
        self._rules = Rules(app.settings.max_replays, now + self.delay_s, main, None if self.to else topics[main].id[:4].hex())
        topic = tier or self.destination
        due = now + self.delay_s if self.delay_s else None
        self._route = Route(topic, topics[topic].partitions, self.destination if tier else None, due)

    def _tier(self) -> str | None:
        """The ladder's topic in which delayed jobs wait: of the app that registered the queue (PROTOCOLS §6)."""
        app, group = self.table.app, self.table.group
        if self.delay_s > app.settings.max_delay:
            raise UsageError(f"a delay of {self.delay_s:.0f} s is longer than max_delay ({app.settings.max_delay:.0f} s)")
        tier = app.settings.ladder.tier_for(self.delay_s)
        if tier is None:
            return None
        found = orders.read(app.broker, app.names).registration(retry_group(group), self.destination)
        if found is None:
            raise ReplayError(f"nobody moves delayed jobs to {self.destination}: run `streamjobs topic apply` for the app that reads it")
        return app.names.delay(found.app, tier)

    def letters(self, within: Bounds) -> Iterator[Letter]:
        return self.table.letters(within)

    def verdict(self, letter: Letter) -> Verdict:
        kept = self._rules.kept(letter)
        if kept is Kept.PARKED and not letter.meta.parked:
            return Verdict(Move(letter, parked(letter), moved=False), kept)
        if kept is not None:
            return Verdict(None, kept)
        try:
            payload = self.payloads.changed(letter, self.changes) if self.changes else None
        except (PayloadError, DecodeError) as error:
            return Verdict(None, Kept.REFUSED, f"{letter.id}: {error}")
        return Verdict(Move(letter, tombstone(letter), replayed(letter, self._route, payload)))

    def prepare(self) -> None:
        self.payloads.store()

    def target(self) -> str:
        options = [f"to {self.to}"] if self.to else []
        options += [f"delayed {self.delay_s:g} s"] if self.delay_s else []
        options += ["set " + ", ".join(change.field for change in self.changes)] if self.changes else []
        return "; ".join([f"{self.table.topic}: {self.filter}", *options])


# --- discard, edit --------------------------------------------------------------------------------------------------------------


@dataclass
class Discard:
    """Letters leave the table, and their jobs never run."""

    table: Table
    filter: Filter
    at: float
    limit: int | None = None
    action = "discard"

    def check(self) -> None:
        """It can always be done."""

    def letters(self, within: Bounds) -> Iterator[Letter]:
        return self.table.letters(within)

    def verdict(self, letter: Letter) -> Verdict:
        return Verdict(Move(letter, tombstone(letter)))

    def prepare(self) -> None:
        """Nothing comes before it."""

    def target(self) -> str:
        return f"{self.table.topic}: {self.filter}"


@dataclass
class Edit:
    """Letters stay, with another payload. The original bytes are gone then: `export` keeps them."""

    table: Table
    filter: Filter
    at: float
    payloads: Payloads
    changes: tuple[Change, ...]
    limit: int | None = None
    action = "edit"

    def check(self) -> None:
        if not self.changes:
            raise UsageError("what shall be changed? Name a field and its new value")

    def letters(self, within: Bounds) -> Iterator[Letter]:
        return self.table.letters(within)

    def verdict(self, letter: Letter) -> Verdict:
        try:
            return Verdict(Move(letter, edited(letter, self.payloads.changed(letter, self.changes))))
        except (PayloadError, DecodeError) as error:
            return Verdict(None, Kept.REFUSED, f"{letter.id}: {error}")

    def prepare(self) -> None:
        self.payloads.store()

    def target(self) -> str:
        return f"{self.table.topic}: {self.filter}; set {', '.join(change.field for change in self.changes)}"


# --- plan ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What an order would do with the table as it is now.

    `count` letters would move; `beyond` are chosen too, but lie behind the limit; `kept` stay, by the reason, with an example in
    `why`, and `marks` of them are marked as parked. `groups`: the ones that move, by error and job type.
    """

    action: str
    topic: str
    filter: str
    count: int = 0
    size: int = 0
    beyond: int = 0
    marks: int = 0
    kept: Counter[Kept] = field(default_factory=Counter)
    why: dict[Kept, str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)


def plan(order: Order) -> Plan:
    """Raises ReplayError for an order that can't be carried out at all, UsageError, BrokerError."""
    order.check()
    made = Plan(order.action, order.table.topic, str(order.filter))
    groups = Groups(("error", "type"))
    for letter in _chosen(order, order.letters(order.table.bounds())):
        verdict = order.verdict(letter)
        if verdict.kept is not None:
            made.kept[verdict.kept] += 1
            made.why.setdefault(verdict.kept, verdict.why)
            made.marks += verdict.move is not None
        elif order.limit is not None and made.count >= order.limit:
            made.beyond += 1
        else:
            made.count += 1
            made.size += letter.size
            groups.add((letter.meta.error_type, letter.meta.job_type), letter.died, "", "", letter.id)
    made.groups = list(groups)
    return made


def _chosen(order: Order, letters: Iterator[Letter]) -> Iterator[Letter]:
    return (letter for letter in letters if order.filter.matches(letter, order.at))


# --- carrying out -------------------------------------------------------------------------------------------------------------


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
    moved: Callable[[int], None] | None = None,
) -> Done:
    """Fences, reads, then acts on what of the order holds for the table as it is now; one audit record, however it ends.

    `rate`: letters a second. `stop`, once set, ends it behind the batch in hand. `moved`: called with the size of each batch.
    Raises ReplayError (refused, or another order took over), UsageError, BrokerError.
    """
    order.check()
    run = _Run(order, Pace(rate), stop or threading.Event(), moved or _nobody)
    result = "failed"
    try:
        run.run()
        result = "interrupted" if run.done.interrupted else "ok"
    except (ReplayError, BrokerError) as error:
        result = f"failed: {error}"
        raise
    finally:
        entry = audit.Entry(f"dlt {order.action}", order.target(), run.done.moved, result, reason)
        run.done.complaint = audit.record(order.table.app, entry, who=actor)
        if run.done.complaint:
            logger.warning("%s", run.done.complaint)
    return run.done


def _nobody(_: int) -> None:
    """Nobody watches."""


class _Run:
    """One application of an order."""

    def __init__(self, order: Order, pace: Pace, stop: threading.Event, watch: Callable[[int], None]) -> None:
        app = order.table.app
        self.done = Done(order.action)
        self._order = order
        self._pace = pace
        self._stop = stop
        self._watch = watch
        self._worker = f"dlt-{socket.gethostname()}-{os.getpid()}"
        self._events = EventBatch(self._worker, order.table.group, app.settings.events.mode)

    def run(self) -> None:
        began = time.monotonic()
        table = self._order.table
        with at_desk(table.app.broker, table.topic) as desk:
            self.done.fenced = desk.fenced
            try:
                for batch in self._batches(self._order.letters(table.bounds())):
                    self._move(desk, batch)
                    self._wait()
            finally:
                self.done.longest_s = desk.longest_s
                self.done.took_s = time.monotonic() - began

    def _batches(self, letters: Iterator[Letter]) -> Iterator[list[Move]]:
        """What moves together; nothing more once it shall stop, or the limit is reached."""
        batch: list[Move] = []
        size = going = 0
        for letter in _chosen(self._order, letters):
            if self._stop.is_set():
                self.done.interrupted = True
                return
            verdict = self._order.verdict(letter)
            if verdict.kept is not None:
                self.done.keep(verdict.kept, verdict.why)
            if verdict.move is None:
                continue
            if verdict.move.moved and self._order.limit is not None and going >= self._order.limit:
                break
            going += verdict.move.moved
            size += verdict.move.size
            batch.append(verdict.move)
            if len(batch) >= self._pace.size or size >= MOST_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _move(self, desk: Desk, batch: Sequence[Move]) -> None:
        """One that its topic takes for its size with no others stays; those around it go."""
        self._order.prepare()
        began = time.monotonic()
        try:
            dropped = desk.move([m.job for m in batch if m.job], [m.row for m in batch], self._told(batch))
        except BrokerError as error:
            if error.code not in _SIZES or error.fatal:
                raise
            return self._move_apart(desk, batch, error)
        self.done.events_dropped += dropped
        count = sum(move.moved for move in batch)
        self.done.moved += count
        self.done.batches += 1
        self._pace.went(len(batch), began, time.monotonic() - began)
        self._watch(count)

    def _move_apart(self, desk: Desk, batch: Sequence[Move], error: BrokerError) -> None:
        if len(batch) == 1:
            self.done.keep(Kept.TOO_LARGE, f"{batch[0].letter.id}: {error}")
            return
        half = len(batch) // 2
        self._move(desk, batch[:half])
        self._move(desk, batch[half:])

    def _told(self, batch: Sequence[Move]) -> list[Record]:
        """`replayed` events of the batch, for the topic that a monitor reads."""
        table = self._order.table
        for move in batch:
            if move.job is not None:
                self._events.tell(_event(move, table, self._worker))
        packets = self._events.take(table.app.clock.now())
        return [Record(table.app.names.events, packet.value, self._worker.encode()) for packet in packets]

    def _wait(self) -> None:
        """Keeps the rate, between transactions."""
        self._stop.wait(self._pace.wait_s(time.monotonic()))


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
