"""What can be ordered of letters: replay, discard, edit. Each is planned and carried out by the same code.

An order looks at one letter and says what becomes of it; a plan asks it about the table as it is now and counts, an application
asks it again about the table that it reads behind the fence, and does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streamjobs import orders
from streamjobs.broker import Topic
from streamjobs.core import duration
from streamjobs.core.failures import Group, Groups
from streamjobs.core.filters import Filter
from streamjobs.core.letters import Kept, Letter, Route, Rules, edited, parked, replayed, tombstone
from streamjobs.core.record import Record
from streamjobs.core.topics import retry_group
from streamjobs.dead_letters.payloads import Change, Payloads
from streamjobs.dead_letters.table import Table
from streamjobs.errors import BrokerError, DecodeError, PayloadError, ReplayError, UsageError
from streamjobs.tables import Bounds


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
    _most_bytes: int = 0

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
        topics = self._topics([topic for topic in (main, self.destination, tier) if topic])
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
        if app.settings.kafka.get("compression.type", "none") == "none":
            self._most_bytes = int(topics[topic].config.get("max.message.bytes", 0))

    def _topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """With their settings, where one may read them: then the plan already says which letters are too large."""
        broker = self.table.app.broker
        with suppress(BrokerError):
            if "topic_config" not in broker.lacks:
                return broker.admin().topics(names, config=True)
        return broker.admin().topics(names)

    def _tier(self) -> str | None:
        """The ladder's topic in which delayed jobs wait: of the app that registered the queue."""
        app, group = self.table.app, self.table.group
        if self.delay_s > app.settings.max_delay:
            longest = duration.text(app.settings.max_delay)
            raise UsageError(f"a delay of {duration.text(self.delay_s)} is longer than max_delay ({longest})")
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
        job = replayed(letter, self._route, payload)
        if self._most_bytes and _size(job) > self._most_bytes:
            return Verdict(None, Kept.TOO_LARGE, f"{letter.id}: {_size(job):,} bytes, {job.topic} takes {self._most_bytes:,}")
        return Verdict(Move(letter, tombstone(letter), job))

    def prepare(self) -> None:
        self.payloads.store()

    def target(self) -> str:
        options = [f"to {self.to}"] if self.to else []
        options += [f"delayed {self.delay_s:g} s"] if self.delay_s else []
        options += ["set " + ", ".join(change.field for change in self.changes)] if self.changes else []
        return "; ".join([f"{self.table.topic}: {self.filter}", *options])


def _size(record: Record) -> int:
    """What it takes at least, as a record of a batch."""
    return len(record.value or b"") + len(record.key or b"") + sum(len(name) + len(value or b"") for name, value in record.headers)


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
    `why`, and `marks` of them are marked as parked. `groups`: the ones that move, by error and job type. `unknown`: ids that were
    named and that no letter has.
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
    unknown: set[str] = field(default_factory=set)


def plan(order: Order) -> Plan:
    """Raises ReplayError for an order that can't be carried out at all, UsageError, BrokerError."""
    order.check()
    made = Plan(order.action, order.table.topic, str(order.filter), unknown=set(order.filter.ids or ()))
    groups = Groups(("error", "type"))
    for letter in chosen(order, _looked_at(order.letters(order.table.bounds()), made.unknown)):
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


def _looked_at(letters: Iterator[Letter], unknown: set[str]) -> Iterator[Letter]:
    """The letters as they come; their ids are not unknown, whether a condition chooses them or not."""
    for letter in letters:
        if unknown:
            unknown -= {letter.id, letter.meta.job_id}
        yield letter


def chosen(order: Order, letters: Iterator[Letter]) -> Iterator[Letter]:
    return (letter for letter in letters if order.filter.matches(letter, order.at))
