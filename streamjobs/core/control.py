"""What operators and workers ask for: the control topic's keys and values, and the state they add up to.

The topic is compacted, so its last record of each key is an *order* that holds. One rule for all of them:
the key is the order's own, so a tombstone takes away that order and nothing else. Where two orders of one
thing may stand side by side, the key ends in an id. *Bites*: the monitor reads an expired pause, an operator
pauses again, the monitor's tombstone takes away the new pause.

Keys (each part percent-encoded, so that a job's key with a slash in it can't spell another order)::

    pause/queue/<queue>/<order>                 cancel/<app>/<job id>/<order>
    pause/type/<app>/<job type>/<order>         skip/<group>/<origin>
    pause/key/<queue>/<key>/<order>             suspect/<group>/<topic>/<p>/<offset>
    rate/<app>/<job type>/<order>               group/<group>/<topic>  (a registration)
    slots/<app>/<group>/<order>                 started/<group>/<topic>/<topic id>/<p>
    command/<worker>/<order>                    seek/<group>/<topic>/<p>/<order>

Values are JSON objects: `actor`, `reason`, `at` and, for an order that ends, `until` (ms since the epoch),
and the fields of the kind (see the makers of values below).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote, unquote

from streamjobs.core.assignment import Beginning, Seek, where_to_start
from streamjobs.core.offsets import MAX_OFFSET
from streamjobs.core.record import MAX_COUNT, clipped

Action = Literal["drain", "stacks"]
Place = Literal["earliest", "latest"] | int

#: So many records that nobody can read are remembered with what is wrong with them.
MAX_UNREADABLE = 1_000
#: Milliseconds since the epoch are less than this (the year 33658).
_MAX_MS = 10**15


class Kind(StrEnum):
    """What an order is about; the first part of its key, or the first two."""

    PAUSE_QUEUE = "pause/queue"
    PAUSE_TYPE = "pause/type"
    PAUSE_KEY = "pause/key"
    CANCEL = "cancel"
    SKIP = "skip"
    RATE = "rate"
    SLOTS = "slots"
    SUSPECT = "suspect"
    COMMAND = "command"
    REGISTRATION = "group"
    STARTED = "started"
    SEEK = "seek"


PAUSES = (Kind.PAUSE_QUEUE, Kind.PAUSE_TYPE, Kind.PAUSE_KEY)

_PARTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.PAUSE_QUEUE: ("queue", "order"),
    Kind.PAUSE_TYPE: ("app", "job type", "order"),
    Kind.PAUSE_KEY: ("queue", "key", "order"),
    Kind.CANCEL: ("app", "job id", "order"),
    Kind.SKIP: ("group", "origin"),
    Kind.RATE: ("app", "job type", "order"),
    Kind.SLOTS: ("app", "group", "order"),
    Kind.SUSPECT: ("group", "topic", "partition", "offset"),
    Kind.COMMAND: ("worker", "order"),
    Kind.REGISTRATION: ("group", "topic"),
    Kind.STARTED: ("group", "topic", "topic id", "partition"),
    Kind.SEEK: ("group", "topic", "partition", "order"),
}
_NUMBERS = frozenset({"partition", "offset"})
_IDS = frozenset({"order", "topic id"})

Subject = tuple[str, ...]
"""What an order is about: its kind and the parts of its key without the order's id, or (of a mark) the topic's."""


# --- keys ---------------------------------------------------------------------------------------------------


class OrderKey(NamedTuple):
    """A key taken apart. A part of a job's key that is no UTF-8 is kept with surrogate escapes."""

    kind: Kind
    parts: tuple[str, ...]

    @property
    def subject(self) -> Subject:
        named = zip(_PARTS[self.kind], self.parts)
        return (self.kind, *(part for name, part in named if name not in _IDS))

    @property
    def text(self) -> str:
        return "/".join((self.kind.value, *map(_quoted, self.parts)))


def parse(key: str) -> OrderKey:
    """A key as its maker spelled it. Raises ValueError for anything else, also for other spellings."""
    for kind, names in _PARTS.items():
        if not key.startswith(kind.value + "/"):
            continue
        parts = tuple(_unquoted(part) for part in key[len(kind.value) + 1 :].split("/"))
        found = OrderKey(kind, parts)
        if len(parts) == len(names) and found.text == key and _numbers_are(names, parts):
            return found
        raise ValueError(f"a key of kind {kind.value} has the parts {', '.join(names)}, percent-encoded")
    raise ValueError("no kind of order begins like this key")


def pause_queue_key(queue: str, order: str) -> str:
    return OrderKey(Kind.PAUSE_QUEUE, (queue, order)).text


def pause_type_key(app: str, job_type: str, order: str) -> str:
    return OrderKey(Kind.PAUSE_TYPE, (app, job_type, order)).text


def pause_key_key(queue: str, key: str | bytes, order: str) -> str:
    return OrderKey(Kind.PAUSE_KEY, (queue, _key_text(key), order)).text


def cancel_key(app: str, job_id: str, order: str) -> str:
    return OrderKey(Kind.CANCEL, (app, job_id, order)).text


def skip_key(group: str, origin: str) -> str:
    return OrderKey(Kind.SKIP, (group, origin)).text


def rate_key(app: str, job_type: str, order: str) -> str:
    return OrderKey(Kind.RATE, (app, job_type, order)).text


def slots_key(app: str, group: str, order: str) -> str:
    return OrderKey(Kind.SLOTS, (app, group, order)).text


def suspect_key(group: str, topic: str, partition: int, offset: int) -> str:
    return OrderKey(Kind.SUSPECT, (group, topic, str(partition), str(offset))).text


def command_key(worker: str, order: str) -> str:
    return OrderKey(Kind.COMMAND, (worker, order)).text


def registration_key(group: str, topic: str) -> str:
    return OrderKey(Kind.REGISTRATION, (group, topic)).text


def started_key(group: str, topic: str, topic_id: bytes, partition: int) -> str:
    return OrderKey(Kind.STARTED, (group, topic, topic_id.hex(), str(partition))).text


def seek_key(group: str, topic: str, partition: int, order: str) -> str:
    """With an id of its own: else the owner that carried out one seek erases the next with its tombstone."""
    return OrderKey(Kind.SEEK, (group, topic, str(partition), order)).text


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="surrogateescape")


def _unquoted(part: str) -> str:
    return unquote(part, errors="surrogateescape")


def _key_text(key: str | bytes) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key


def _numbers_are(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return all(_is_offset(part) for name, part in zip(names, parts, strict=True) if name in _NUMBERS)


def _is_offset(text: str) -> bool:
    return (
        text.isascii()
        and text.isdigit()
        and len(text) <= 19
        and str(int(text)) == text
        and int(text) <= MAX_OFFSET
    )


# --- values -------------------------------------------------------------------------------------------------


def pause_value(*, actor: str, reason: str, at: float, until: float | None = None) -> bytes:
    """Of every kind of pause."""
    return _written({}, actor, reason, at, until)


def cancel_value(*, actor: str, reason: str, at: float, until: float) -> bytes:
    """A cancel has an end: else the cancel of `inv-7` skips next month's `inv-7` too."""
    return _written({}, actor, reason, at, until)


def skip_value(*, up_to_run: int, actor: str, reason: str, at: float, until: float | None = None) -> bytes:
    return _written({"up_to_run": up_to_run}, actor, reason, at, until)


def rate_value(
    *, limit: float, per_s: float, actor: str, reason: str, at: float, until: float | None = None
) -> bytes:
    """At most `limit` starts in `per_s` seconds."""
    return _written({"limit": limit, "per_s": per_s}, actor, reason, at, until)


def slots_value(*, slots: int, actor: str, reason: str, at: float, until: float | None = None) -> bytes:
    return _written({"slots": slots}, actor, reason, at, until)


def suspect_value(
    *, run: int, strikes: int, actor: str, reason: str, at: float, until: float | None = None
) -> bytes:
    """Of a job that ran, in this run, when its worker died; `strikes`: how often it was convicted."""
    return _written({"run": run, "strikes": strikes}, actor, reason, at, until)


def command_value(*, action: Action, actor: str, reason: str, at: float, until: float) -> bytes:
    return _written({"action": action}, actor, reason, at, until)


def registration_value(
    *, app: str, starts: Mapping[int, int], actor: str, at: float, reason: str = ""
) -> bytes:
    """`app`: whose ladder carries the topic's delays; `starts`: the start offset of each partition."""
    return _written(
        {"app": app, "starts": {str(p): start for p, start in starts.items()}}, actor, reason, at, None
    )


def started_value(*, actor: str, at: float) -> bytes:
    return _written({}, actor, "", at, None)


def seek_value(*, to: Place, actor: str, reason: str, at: float, until: float | None = None) -> bytes:
    """`to`: an offset, or the log's start or end at the moment when the owner carries it out."""
    return _written({"to": to}, actor, reason, at, until)


def _written(fields: Mapping[str, Any], actor: str, reason: str, at: float, until: float | None) -> bytes:
    value: dict[str, Any] = {"actor": clipped(actor), "reason": clipped(reason), "at": round(at * 1000)}
    if until is not None and until != math.inf:
        value["until"] = round(until * 1000)
    return json.dumps({**value, **fields}, separators=(",", ":")).encode()


_Check = Callable[[object], Any]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("is no text")


def _whole(value: object, least: int = 0, most: int = MAX_COUNT) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise ValueError(f"is no whole number from {least} to {most}")


def _ms(value: object) -> float:
    return _whole(value, 0, _MAX_MS) / 1000


def _positive(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_MS:
        return float(value)
    raise ValueError("is no positive number")


def _action(value: object) -> str:
    if value in get_args(Action):
        return _text(value)
    raise ValueError(f"is none of {', '.join(get_args(Action))}")


def _place(value: object) -> Place:
    if value == "earliest":
        return "earliest"
    if value == "latest":
        return "latest"
    return _whole(value, 0, MAX_OFFSET)


def _starts(value: object) -> dict[int, int]:
    if not isinstance(value, dict) or not all(_is_offset(partition) for partition in value):
        raise ValueError("is no object of partitions")
    return {int(partition): _whole(start, 0, MAX_OFFSET) for partition, start in value.items()}


_FIELDS: Mapping[Kind, Mapping[str, _Check]] = {
    Kind.SKIP: {"up_to_run": _whole},
    Kind.RATE: {"limit": _positive, "per_s": _positive},
    Kind.SLOTS: {"slots": _whole},
    Kind.SUSPECT: {"run": _whole, "strikes": _whole},
    Kind.COMMAND: {"action": _action},
    Kind.REGISTRATION: {"app": _text, "starts": _starts},
    Kind.SEEK: {"to": _place},
}


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it was read. `until`: when it ends (infinite: never); `appended`: when the broker took it;
    `offset`: in the control topic; `fields`: those of its kind, checked."""

    key: str
    kind: Kind
    subject: Subject
    actor: str
    reason: str
    at: float
    until: float
    offset: int
    appended: float
    fields: Mapping[str, Any]


def read(key: str, value: bytes, offset: int, appended: float) -> Order:
    """Raises ValueError that says what is wrong with the key or the value."""
    found = parse(key)
    content = _object(value)
    fields = {name: _field(content, name, check) for name, check in _FIELDS.get(found.kind, {}).items()}
    return Order(
        key,
        found.kind,
        found.subject,
        actor=_field(content, "actor", _text, ""),
        reason=_field(content, "reason", _text, ""),
        at=_field(content, "at", _ms, 0.0),
        until=_field(content, "until", _ms, math.inf),
        offset=offset,
        appended=appended,
        fields=fields,
    )


def _object(value: bytes) -> Mapping[str, object]:
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("the value is no JSON") from None
    if isinstance(content, dict):
        return content
    raise ValueError("the value is no JSON object")


def _field(content: Mapping[str, object], name: str, check: _Check, default: object = None) -> Any:
    value = content.get(name)
    if value is None and default is not None:
        return default
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"the field {name} {error}") from None


# --- the state that they add up to --------------------------------------------------------------------------


class Registration(NamedTuple):
    """Where a group begins in each partition of a topic without a commit; the rest begin at 0."""

    app: str
    starts: Mapping[int, int]


class Rate(NamedTuple):
    limit: float
    per_s: float


class Suspect(NamedTuple):
    """A job that ran when its worker died. `order`: what to write anew with more strikes, or take away."""

    topic: str
    partition: int
    offset: int
    run: int
    strikes: int
    order: Order


class Desired:
    """What the control topic asks for: the fold of its records, in the order of their offsets.

    The attributes are there so that whoever asks per job or per batch can skip the question: `version`
    changes with every record, and the flags are false while nothing of that sort is ordered. (They may be
    true for orders that have expired but still stand in the topic.)
    """

    def __init__(self) -> None:
        #: The offset of the last record; -1: none yet.
        self.offset = -1
        self.version = 0
        self.anything_paused = False
        self.anything_cancelled = False
        self.anything_skipped = False
        self.anything_suspected = False
        self.anything_limited = False
        #: Records that hold no order, by key, with what is wrong with them.
        self.unreadable: dict[str, str] = {}
        self._orders: dict[str, Order] = {}
        self._kinds: dict[Kind, dict[str, Order]] = {kind: {} for kind in Kind}
        self._subjects: dict[Subject, dict[str, Order]] = {}
        self._topics: dict[str, frozenset[str]] | None = {}

    def apply(self, key: str, value: bytes | None, offset: int, appended: float) -> None:
        """Takes in the next record. Never raises.

        One at or below the last offset is known already (a reader began anew) and changes nothing: applied
        again it would bring back, for a moment, what was since taken away.
        """
        if offset <= self.offset:
            return
        self.offset = offset
        self.version += 1
        self._forget(key)
        if value is not None:
            self._learn(key, value, offset, appended)
        self._set_flags()

    def _forget(self, key: str) -> None:
        self.unreadable.pop(key, None)
        order = self._orders.pop(key, None)
        if order is None:
            return
        del self._kinds[order.kind][key]
        same = self._subjects[order.subject]
        del same[key]
        if not same:
            del self._subjects[order.subject]
        self._topics = None

    def _learn(self, key: str, value: bytes, offset: int, appended: float) -> None:
        """A record that can't be read replaces its key's order all the same: whoever starts later sees
        nothing else."""
        try:
            order = read(key, value, offset, appended)
        except ValueError as error:
            if len(self.unreadable) < MAX_UNREADABLE:
                self.unreadable[key] = str(error)
            return
        self._orders[key] = self._kinds[order.kind][key] = order
        self._subjects.setdefault(order.subject, {})[key] = order
        self._topics = None

    def _set_flags(self) -> None:
        kinds = self._kinds
        self.anything_paused = any(kinds[kind] for kind in PAUSES)
        self.anything_cancelled = bool(kinds[Kind.CANCEL])
        self.anything_skipped = bool(kinds[Kind.SKIP])
        self.anything_suspected = bool(kinds[Kind.SUSPECT])
        self.anything_limited = bool(kinds[Kind.RATE])

    # --- questions: orders in general

    def orders(self, *kinds: Kind) -> list[Order]:
        """All that stand in the topic (of these kinds), oldest first, the expired ones too."""
        found = [order for kind in kinds or Kind for order in self._kinds[kind].values()]
        return sorted(found, key=lambda order: order.offset)

    def expired(self, now: float) -> list[str]:
        """Keys of the orders that have ended: for whoever takes them away."""
        return [order.key for order in self._orders.values() if order.until <= now]

    def _standing(self, now: float, *subject: str) -> list[Order]:
        """Those that hold now, oldest first. For most jobs there are none: that answer is a look-up."""
        orders = self._subjects.get(subject)
        return [order for order in orders.values() if order.until > now] if orders else []

    def _newest(self, now: float, *subject: str) -> Order | None:
        standing = self._standing(now, *subject)
        return standing[-1] if standing else None

    def _longest(self, now: float, *subject: str) -> Order | None:
        standing = self._standing(now, *subject)
        return max(standing, key=lambda order: order.until) if standing else None

    # --- questions: what may run

    def paused(
        self, queue: str, job_type: str, key: bytes | str | None, now: float, *, app: str
    ) -> Order | None:
        """The order that keeps such a job from running: of several that one which ends last."""
        if not self.anything_paused:
            return None
        found = [
            *self._standing(now, Kind.PAUSE_QUEUE, queue),
            *self._standing(now, Kind.PAUSE_TYPE, app, job_type),
        ]
        if key is not None:
            found += self._standing(now, Kind.PAUSE_KEY, queue, _key_text(key))
        return max(found, key=lambda order: order.until) if found else None

    def queue_paused(self, queue: str, now: float) -> Order | None:
        return self._longest(now, Kind.PAUSE_QUEUE, queue)

    def type_paused(self, app: str, job_type: str, now: float) -> Order | None:
        return self._longest(now, Kind.PAUSE_TYPE, app, job_type)

    def key_paused(self, queue: str, key: bytes | str, now: float) -> Order | None:
        return self._longest(now, Kind.PAUSE_KEY, queue, _key_text(key))

    def cancelled(self, app: str, job_id: str, appended: float, now: float) -> Order | None:
        """The order that cancels the job whose first record the broker appended at `appended`.

        Only jobs that were there before the order: a job that is published later with the same id is another
        one. Both times are the broker's; with publishers' clocks a fresh job would be cancelled, or an old
        one escape.
        """
        if not self.anything_cancelled:
            return None
        found = (
            order for order in self._standing(now, Kind.CANCEL, app, job_id) if appended <= order.appended
        )
        return next(found, None)

    def cancelled_since(self, offset: int, app: str) -> frozenset[str]:
        """Ids of the app's jobs about which cancel orders came behind this offset of the control topic."""
        orders = self._kinds[Kind.CANCEL].values()
        return frozenset(order.subject[2] for order in orders if order.offset > offset and order.subject[1] == app)

    def skip_up_to(self, group: str, origin: str, now: float = -math.inf) -> int | None:
        """Waiting runs of this job up to this one are not to start: a later one was published for them."""
        found = self._newest(now, Kind.SKIP, group, origin) if self.anything_skipped else None
        return found.fields["up_to_run"] if found else None

    def rate(self, app: str, job_type: str, now: float) -> Rate | None:
        found = self._newest(now, Kind.RATE, app, job_type) if self.anything_limited else None
        return Rate(**found.fields) if found else None

    def slots(self, app: str, group: str, now: float) -> int | None:
        found = self._newest(now, Kind.SLOTS, app, group)
        return found.fields["slots"] if found else None

    def suspect(
        self, group: str, topic: str, partition: int, offset: int, now: float = -math.inf
    ) -> Suspect | None:
        if not self.anything_suspected:
            return None
        found = self._newest(now, Kind.SUSPECT, group, topic, str(partition), str(offset))
        return _suspect(found) if found else None

    def suspects(self, group: str, now: float = -math.inf) -> list[Suspect]:
        orders = self._kinds[Kind.SUSPECT].values()
        return [_suspect(order) for order in orders if order.subject[1] == group and order.until > now]

    def commands(self, worker: str, now: float) -> list[Order]:
        """Orders to one worker (`fields["action"]`), oldest first."""
        return self._standing(now, Kind.COMMAND, worker)

    # --- questions: where a group begins

    def registration(self, group: str, topic: str) -> Registration | None:
        found = self._orders.get(registration_key(group, topic))
        return Registration(**found.fields) if found else None

    def registrations(self) -> dict[tuple[str, str], Registration]:
        """By (group, topic)."""
        orders = self._kinds[Kind.REGISTRATION].values()
        return {(order.subject[1], order.subject[2]): Registration(**order.fields) for order in orders}

    def registered_topics(self) -> Mapping[str, frozenset[str]]:
        """Every topic that groups are registered on, with them. Cheap: a timer asks for every record."""
        if self._topics is None:
            groups: dict[str, set[str]] = {}
            for group, topic in self.registrations():
                groups.setdefault(topic, set()).add(group)
            self._topics = {topic: frozenset(names) for topic, names in groups.items()}
        return self._topics

    def ladder_of(self, topic: str, asking: str = "") -> str | None:
        """The app whose ladder carries this topic's delays: the one that asks, if it registered the topic, else the last that did.

        *Bites*, with the last one for all: two apps read a queue; the one that registered it last is stopped for good, and what the
        other one delays for its own workers waits in a ladder that nobody reads.
        """
        orders = [order for order in self._kinds[Kind.REGISTRATION].values() if order.subject[2] == topic]
        if any(order.fields["app"] == asking for order in orders):
            return asking
        last = max(orders, key=lambda order: order.offset, default=None)
        return last.fields["app"] if last else None

    def started(self, group: str, topic: str, topic_id: bytes, partition: int) -> bool:
        """Whether the group has ever committed in this partition of this very topic: if it has and its commit
        is gone, it was lost."""
        return started_key(group, topic, topic_id, partition) in self._orders

    def started_before(self, group: str, topic: str, topic_id: bytes, partition: int) -> bool:
        """Whether the group has committed in this partition of an earlier topic of the name."""
        now = started_key(group, topic, topic_id, partition)
        return any(key != now for key in self._subjects.get((Kind.STARTED, group, topic, str(partition)), ()))

    def beginning(
        self, group: str, topic: str, topic_id: bytes, partition: int, log: tuple[int, int], commit: tuple[int, str] | None = None
    ) -> Beginning:
        """How whoever comes to own a partition will begin there, for those who tell of what waits or is skipped: without a commit where
        the group was registered, also where a commit that was there is lost. `log`: its start and its end."""
        registration = self.registration(group, topic)
        return where_to_start(
            commit=commit,
            topic_id=topic_id,
            started=commit is not None and self.started(group, topic, topic_id, partition),
            started_before=self.started_before(group, topic, topic_id, partition),
            seek=None,
            registered=registration.starts if registration else None,
            partition=partition,
            log_start=log[0],
            log_end=log[1],
        )

    def seek_for(self, group: str, topic: str, partition: int, now: float = -math.inf) -> Seek | None:
        """The newest seek order for a partition. When it is carried out, `seek_keys` go."""
        found = self._newest(now, Kind.SEEK, group, topic, str(partition))
        return Seek(found.fields["to"], found.offset) if found else None

    def seek_keys(self, group: str, topic: str, partition: int, up_to: int) -> list[str]:
        """Keys of a carried-out seek order (`up_to`: its `order`) and of those that it overtook, which must
        go with it, and before it (oldest first): the newest that is left would be carried out next."""
        orders = self._subjects.get((Kind.SEEK, group, topic, str(partition)), {}).values()
        return [order.key for order in orders if order.offset <= up_to]


def _suspect(order: Order) -> Suspect:
    _, _, topic, partition, offset = order.subject
    return Suspect(topic, int(partition), int(offset), order.fields["run"], order.fields["strikes"], order)
