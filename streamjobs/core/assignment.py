"""Where a partition starts, and when it may take on more, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from streamjobs.core.offsets import METADATA_LIMIT, NONE, Finished, Mark, Parked, decode

#: After so many owners in a row that died at one base, its unfinished jobs are suspects.
SUSPECT_AFTER = 3


class AlarmKind(Enum):
    """What an owner must raise when it takes a partition over. `value` is the name in metrics and events."""

    #: Jobs that were never finished are gone from the log (retention, DeleteRecords): `count` offsets.
    JOBS_DELETED = "jobs_deleted"
    #: The log ends before what was committed: it lost `count` offsets (power cut, unclean leader).
    LOG_TRUNCATED = "log_truncated"
    #: The commit belongs to an earlier topic of this name.
    TOPIC_RECREATED = "topic_recreated"
    #: The group has worked here before, and its commit is gone: nobody knows where to start.
    LOST_COMMIT = "lost_commit"
    #: The group was never registered for this topic.
    UNREGISTERED = "unregistered"


@dataclass(frozen=True, slots=True)
class Alarm:
    kind: AlarmKind
    count: int = 0


class Why(Enum):
    """What decided where a partition starts; the last three decide that it does not."""

    COMMITTED = "committed"
    REGISTERED = "registered"
    #: A seek order: the owner commits it at once, and removes the order when that is acked.
    SOUGHT = "sought"
    RECREATED = "recreated"
    LOST = "lost"
    NOT_REGISTERED = "not registered"
    #: Nothing is known: ask the broker again.
    LOOKUP_FAILED = "lookup failed"


class Lookup(Enum):
    FAILED = "failed"


LOOKUP_FAILED = Lookup.FAILED
"""In place of a commit: the broker did not answer (which is not the same as "there is none")."""


class Seek(NamedTuple):
    """A seek order: an offset, the log's start or its end. `order` tells it from others (its offset in the
    control topic).
    """

    to: int | Literal["earliest", "latest"]
    order: int


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a partition begins its epoch. `fetch=False`: it stays assigned, nothing is read from it, its
    siblings run.

    `finished` and `parked` come from the last owner; `takeovers` counts, this one included, the owners in a
    row that took over at this base without a clean hand-over; `sought` is to be stamped into every commit,
    like the topic's id.
    """

    offset: int
    finished: Finished = NONE
    fetch: bool = True
    alarms: tuple[Alarm, ...] = ()
    parked: tuple[Parked, ...] = ()
    takeovers: int = 0
    why: Why = Why.COMMITTED
    sought: int = -1

    @property
    def suspects(self) -> bool:
        """Is every unfinished job here a suspect, until the base moves?"""
        return self.takeovers >= SUSPECT_AFTER

    def takeovers_at(self, base: int) -> int:
        """What a commit at `base` says: the count holds until the base moves."""
        return self.takeovers if base <= self.offset else 0


def where_to_start(
    *,
    commit: tuple[int, str] | Lookup | None,
    topic_id: bytes,
    started: bool,
    seek: Seek | None,
    registered: Mapping[int, int] | None,
    partition: int,
    log_start: int,
    log_end: int,
    started_before: bool = False,
    registered_topic_id: bytes = b"",
) -> Beginning:
    """The first offset of a partition for its new owner, for every combination of what the cluster says.

    `commit`: offset and metadata; None: the group has none; LOOKUP_FAILED: unknown. A topic takes its commits
    with it when it is deleted; what the group registered stays. *Bites*: registered at "now" = 5,000, worked,
    the topic deleted and made again: its first 5,000 jobs would be skipped. `topic_id`: the topic's
    now (empty: unknown). `started`: the group has committed in this very topic before; `started_before`: in
    an earlier one of this name. `registered`: start offsets by partition; those beyond it start at 0; None:
    the group is not registered. `registered_topic_id`: the topic that these numbers were taken from, where it
    is known.

    The owner commits what it gets (if it may fetch) at once, before its first job. *Bites*: a log lost its
    tail, its owner begins at the shorter end and dies before its first commit; meanwhile jobs were appended
    up to the old base, and the next owner believes them finished. Takeovers, too, are counted only by owners
    that committed.
    """
    log = _Log(log_start, log_end)
    if isinstance(commit, Lookup) or not topic_id:
        return Beginning(log_start, fetch=False, why=Why.LOOKUP_FAILED)
    mark = decode(*commit) if commit else None
    if seek and (mark is None or mark.sought != seek.order):
        return Beginning(_place(seek, log), why=Why.SOUGHT, sought=seek.order)
    if commit:
        if _of_another_topic(commit[0], mark, topic_id, started, started_before, log):
            return _recreated(log, mark.sought if mark else -1)
        return _from_commit(commit[0], mark or Mark(topic_id[:4], clean=True), log)
    if started:
        return Beginning(log_start, fetch=False, alarms=(Alarm(AlarmKind.LOST_COMMIT),), why=Why.LOST)
    if registered is None:
        return Beginning(
            log_start, fetch=False, alarms=(Alarm(AlarmKind.UNREGISTERED),), why=Why.NOT_REGISTERED
        )
    if started_before or (registered_topic_id and registered_topic_id[:4] != topic_id[:4]):
        return _recreated(log)
    return _from_registration(registered.get(partition, 0), bool(registered_topic_id), log)


class _Log(NamedTuple):
    start: int
    end: int

    def clamp(self, offset: int) -> int:
        return max(self.start, min(offset, self.end))


def _place(seek: Seek, log: _Log) -> int:
    if seek.to == "earliest":
        return log.start
    return log.end if seek.to == "latest" else log.clamp(seek.to)


def _of_another_topic(
    base: int, mark: Mark | None, topic_id: bytes, started: bool, started_before: bool, log: _Log
) -> bool:
    """Metadata that is not ours names no topic; then the marks of first commits tell. In doubt nothing is
    skipped.
    """
    if mark:
        return mark.topic_id4 != topic_id[:4]
    return not started and (started_before or base > log.end)


def _from_commit(base: int, mark: Mark, log: _Log) -> Beginning:
    known = max(base, mark.finished.end, *(head.offset + 1 for head in mark.parked))
    if known > log.end:
        # A power cut shortens the log; new jobs are appended where the map says "finished": so no map.
        alarms = (Alarm(AlarmKind.LOG_TRUNCATED, known - log.end), *_deleted(base, NONE, log))
        return Beginning(log.clamp(base), alarms=alarms, sought=mark.sought)
    return _continued(base, mark, log)


def _continued(base: int, mark: Mark, log: _Log) -> Beginning:
    offset = log.clamp(base)
    unclean = 0 if mark.clean or offset != base else mark.takeovers + 1
    return Beginning(
        offset,
        finished=mark.finished.beyond(offset),
        alarms=_deleted(base, mark.finished, log),
        parked=tuple(
            head for head in mark.parked if head.offset >= offset and head.offset not in mark.finished
        ),
        takeovers=unclean,
        sought=mark.sought,
    )


def _from_registration(start: int, same_topic: bool, log: _Log) -> Beginning:
    """`same_topic`: it is known to be the one that was registered."""
    if start > log.end and not same_topic:
        return _recreated(log)
    if start > log.end:
        return Beginning(
            log.end, alarms=(Alarm(AlarmKind.LOG_TRUNCATED, start - log.end),), why=Why.REGISTERED
        )
    return Beginning(log.clamp(start), alarms=_deleted(start, NONE, log), why=Why.REGISTERED)


def _recreated(log: _Log, sought: int = -1) -> Beginning:
    return Beginning(log.start, alarms=(Alarm(AlarmKind.TOPIC_RECREATED),), why=Why.RECREATED, sought=sought)


def _deleted(base: int, finished: Finished, log: _Log) -> tuple[Alarm, ...]:
    """How many offsets from the base on are gone without having been finished (gaps in the log count, too)."""
    count = log.start - base - (len(finished) - len(finished.beyond(log.start)))
    return (Alarm(AlarmKind.JOBS_DELETED, count),) if count > 0 else ()


@dataclass(frozen=True, slots=True)
class Admission:
    """How much one partition may hold before nothing more is read from it.

    `window`: unfinished jobs; `window_bytes`: of their values; `map_chars`: of commit metadata, parked heads
    included; `span`: offsets between base and position.
    """

    window: int = 10_000
    window_bytes: int = 64 * 1024 * 1024
    map_chars: int = METADATA_LIMIT * 3 // 4
    span: int = 10_000_000

    def used(self, *, unfinished: int, held_bytes: int, map_chars: int, span: int) -> float:
        """The share of the limit that is nearest; 1.0 and more: full."""
        return max(
            unfinished / self.window,
            held_bytes / self.window_bytes,
            map_chars / self.map_chars,
            span / self.span,
        )

    def admits(self, used: float, *, admitting: bool) -> bool:
        """May more be read? Stops when full, and starts again only below 95 %, so that it doesn't flicker."""
        return used < (1.0 if admitting else _START_AGAIN)


_START_AGAIN = 0.95
