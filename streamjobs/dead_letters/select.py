"""The public face: some letters of one queue, to look at or to act on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from streamjobs.core.duration import seconds
from streamjobs.core.failures import SHORT, Group, Groups, shape
from streamjobs.core.filters import ALL, TEXTS, Filter
from streamjobs.core.letters import Letter
from streamjobs.dead_letters import orders, run
from streamjobs.dead_letters.files import Import, exported
from streamjobs.dead_letters.orders import Discard, Edit, Order, Plan, Replay
from streamjobs.dead_letters.payloads import Change, Decode, Payloads, changes_of
from streamjobs.dead_letters.run import Done
from streamjobs.dead_letters.table import Table
from streamjobs.errors import DecodeError, UsageError

#: Bytes of an unreadable payload that are shown, in hexadecimal.
HEX_BYTES = 4096

Changes = Mapping[str, Any] | Sequence[Change]


class Masking(Protocol):
    """What hides secrets (`streamjobs.telemetry.log.Masking`)."""

    def field(self, name: str, value: Any) -> Any: ...
    def text(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """A payload as a person may see it. `json`: decoded by the schema that wrote it, secrets masked; or, where that can't be,
    `problem` says why and `hex` has its first bytes."""

    json: Any = None
    problem: str = ""
    hex: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Letters counted in groups, the largest first. `first`, `last`: when the oldest and newest of all died."""

    by: tuple[str, ...]
    count: int
    parked: int
    size: int
    first: float
    last: float
    groups: list[Group] = field(default_factory=list)


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of one queue in one group; `where` narrows them down.

    ::

        letters = app.dead_letters("invoices").where("age>2h", error="Timeout")
        print(letters.count(), letters.stats(by=["error", "type"]))
        letters.replay(rate=50, reason="the bank is back")

    Every question reads the table as it is then, from its beginning to its end. All may raise BrokerError, and UsageError if
    there is no such table.
    """

    table: Table
    decode: Decode = field(repr=False)
    masking: Masking = field(repr=False)
    filter: Filter = ALL

    def where(self, *conditions: str, ids: str | Iterable[str] | None = None, **equal: str | float) -> DeadLetters:
        """Only those for which all of it holds: conditions such as `"age>2h"`, `error="Timeout"`, letter or job ids.

        `ids`: one, or several; of an empty collection no letter has one. Raises UsageError for a condition or an id that is none.
        """
        texts = [*conditions, *(f"{name}={value}" for name, value in equal.items())]
        return replace(self, filter=self.filter.and_(Filter.of(texts, ids)))

    # Looking ----------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Letter]:
        """In the order of the table: by partition, there the one that died first."""
        now = self._now()
        return (letter for letter in self.table.letters() if self.filter.matches(letter, now))

    def count(self) -> int:
        return sum(1 for _ in self)

    def get(self, id: str) -> list[Letter]:
        """The letter of that id; or those of a job id, which may have been published more than once."""
        return list(self.where(ids=id))

    def stats(self, by: Sequence[str] = ("error", "type", "fingerprint")) -> Stats:
        """Counts by any of `core.filters.TEXTS` and `parked`. In bounded memory. Raises UsageError for another word."""
        columns = [_column(name) for name in by]
        groups = Groups(by)
        parked = size = 0
        first, last = float("inf"), 0.0
        for letter in self:
            meta, died, kind = letter.meta, letter.died, letter.fingerprint
            values = tuple([column(letter) if column else kind[:SHORT] for column in columns])
            groups.add(values, died, kind, meta.error_message, letter.id)
            parked += meta.parked
            size += letter.size
            first, last = min(first, died), max(last, died)
        found = list(groups)
        for group in found:
            group.message = self.masking.text(shape(group.message))
        return Stats(tuple(by), groups.count, parked, size, first if groups.count else 0.0, last, found)

    def shown(self, letter: Letter) -> Shown:
        """The letter's payload, fit for people. Never raises: an unreadable one is shown in hexadecimal."""
        try:
            return Shown(masked(self.decode(letter), self.masking))
        except DecodeError as error:
            return Shown(None, str(error), letter.value[:HEX_BYTES].hex())

    def export(self) -> Iterator[dict[str, Any]]:
        """Each letter as `json.dumps` takes it, with all that `import_` needs: its value in base64, unmasked."""
        for letter in self:
            shown = self.shown(letter)
            yield exported(letter, shown.json, shown.problem)

    # Acting -----------------------------------------------------------------------------------------------------------

    def replay(
        self,
        *,
        rate: float | None = None,
        limit: int | None = None,
        to: str = "",
        delay: str | float | timedelta = 0.0,
        changes: Changes = (),
        reason: str = "",
        actor: str = "",
        stop: threading.Event | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> Done:
        """Puts their jobs back, each exactly once, and takes the letters off the table.

        `rate`: letters a second. `limit`: so many at most. `to`: another queue. `delay`: they run so much later. `changes`: fields
        of their payloads set anew. `stop`: once set, it ends behind the batch in hand. `moved`: called with the size of each batch.
        What was replayed `max_replays` times, what has expired and what its job type refuses stays; the answer says so.
        Raises ReplayError (nowhere to go, or another order took over), PayloadError, UsageError.
        """
        order = self.replay_order(limit=limit, to=to, delay=delay, changes=changes)
        return run.carry_out(order, rate=rate, reason=reason, actor=actor, stop=stop, moved=moved)

    def discard(
        self,
        *,
        limit: int | None = None,
        reason: str = "",
        actor: str = "",
        stop: threading.Event | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> Done:
        """Takes them off the table; their jobs never run. Raises ReplayError."""
        return run.carry_out(self.discard_order(limit=limit), reason=reason, actor=actor, stop=stop, moved=moved)

    def edit(self, changes: Changes, *, reason: str = "", actor: str = "") -> Done:
        """Sets fields of their payloads anew, as their job types allow; they stay on the table. Raises ReplayError."""
        return run.carry_out(self.edit_order(changes), reason=reason, actor=actor)

    def import_(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        reason: str = "",
        actor: str = "",
        stop: threading.Event | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> Done:
        """Puts letters on the table as `export` gave them, or mended since (`arguments`: a new payload).

        Also those that have left it meanwhile: what was replayed since the export would run once more. Raises UsageError for a row
        that is no letter (nothing is imported then), ReplayError.
        """
        return run.carry_out(self.import_order(rows), reason=reason, actor=actor, stop=stop, moved=moved)

    def replay_order(
        self, *, limit: int | None = None, to: str = "", delay: str | float | timedelta = 0.0, changes: Changes = ()
    ) -> Replay:
        """What `replay` carries out, to be planned first. Raises UsageError."""
        try:
            delay_s = seconds(delay)
        except ValueError as error:
            raise UsageError(f"delay: {error}") from None
        return Replay(self.table, self.filter, self._now(), self._payloads(), limit, to, delay_s, changes_of(changes))

    def discard_order(self, *, limit: int | None = None) -> Discard:
        return Discard(self.table, self.filter, self._now(), limit)

    def edit_order(self, changes: Changes) -> Edit:
        return Edit(self.table, self.filter, self._now(), self._payloads(), changes_of(changes))

    def import_order(self, rows: Iterable[Mapping[str, Any]]) -> Import:
        """`rows` is read several times: an iterator is kept in memory."""
        kept = list(rows) if isinstance(rows, Iterator) else rows
        return Import(self.table, kept, self._payloads(), self._now())

    def plan(self, order: Order) -> Plan:
        """What an order would do now; nothing is written. Raises ReplayError for one that can't be carried out at all."""
        return orders.plan(order)

    def _payloads(self) -> Payloads:
        return Payloads(self.table.app, self.decode)

    def _now(self) -> float:
        return self.table.app.clock.now()


def masked(value: Any, masking: Masking) -> Any:
    """JSON without the values of fields whose names say that they are secret, however deep they lie."""
    if isinstance(value, Mapping):
        return {name: masked(masking.field(name, inner), masking) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, masking) for inner in value]
    return value


def _column(name: str) -> Callable[[Letter], str] | None:
    """None: the fingerprint, which is known anyway."""
    if name == "fingerprint":
        return None
    if name == "parked":
        return lambda letter: "yes" if letter.meta.parked else "no"
    if name == "message":
        return lambda letter: shape(letter.meta.error_message)
    if name in TEXTS:
        return TEXTS[name]
    raise UsageError(f"letters can't be grouped by {name!r}; there is {', '.join((*TEXTS, 'parked'))}")


__all__ = ["SHORT", "DeadLetters", "Masking", "Shown", "Stats", "masked"]
