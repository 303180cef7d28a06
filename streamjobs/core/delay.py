"""The delay ladder: how a job waits for its due time without a database.

A waiting record goes down tier topics of fixed delay, moved by timers; the last seconds it waits in the
memory of the loop that runs it. Here are the decisions alone, as functions of values; `worker/poll.py` and
`worker/timer.py` carry them out.

Three clocks meet in them: the publisher's (in `due`), the broker's (in `appended`) and the caller's (`now`,
`seen`). They may disagree by minutes; what then still holds is said at each function and simulated in
tests/unit/core/test_delay.py.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from streamjobs.core import duration
from streamjobs.errors import SettingsError

TIERS = ("5s", "15s", "1m", "4m", "15m", "1h", "4h", "12h", "1d", "7d")

#: How long a loop keeps a record in memory, and how many of a partition.
HOLD_S = 5.0
MAX_WAITING = 1_000
#: Waits of a job that may not run now, in minutes; together an hour.
HOLD_MINUTES = (1, 2, 4, 8, 10, 10, 10, 10, 10)
#: `key_strict`: the longest backoff in place, and how long a failing head may block its key.
STRICT_BACKOFF_S = 60.0
STRICT_BLOCK_S = 600.0
#: A record that can't reach its destination for so long makes room, and comes again after as long.
UNDELIVERABLE_S = 60.0
#: A timer keeps a record at least so long (or its tier, or until it is due, if that is sooner).
MIN_STAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Ladder:
    """The tiers of an app, as text, in ascending order. Raises SettingsError for tiers that can't be."""

    tiers: tuple[str, ...] = TIERS
    _seconds: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = sorted((_tier_seconds(tier), tier) for tier in self.tiers)
        lengths = tuple(length for length, _ in pairs)
        if not pairs or len(set(lengths)) < len(lengths):
            raise SettingsError(
                f"delay.tiers is {list(self.tiers)!r}: name at least one tier, and each length once"
            )
        object.__setattr__(self, "tiers", tuple(tier for _, tier in pairs))
        object.__setattr__(self, "_seconds", lengths)

    def tier_for(self, left_s: float) -> str | None:
        """The largest tier that is not longer than the time left; None: all are longer."""
        place = bisect_right(self._seconds, left_s)
        return self.tiers[place - 1] if place else None

    def entry(self, left_s: float) -> str:
        """The tier for a record that has to go to the ladder: `tier_for`, or the smallest one."""
        return self.tier_for(left_s) or self.tiers[0]

    def seconds(self, tier: str) -> float:
        """A tier's delay, also of one that left the settings. Raises SettingsError if it is none."""
        return _tier_seconds(tier)

    def check_hold(self, hold_s: float) -> None:
        """Raises SettingsError if loops keep records for less than the smallest tier: some ran early."""
        if hold_s < self._seconds[0]:
            raise SettingsError(
                f"delay.hold is {duration.text(hold_s)}, but the smallest tier is {self.tiers[0]}: what"
                " comes down the ladder may have that much left, and would run early."
                " Raise delay.hold, or add a smaller tier"
            )


def _tier_seconds(tier: str) -> float:
    try:
        length = duration.seconds(tier)
    except ValueError as error:
        raise SettingsError(f"a tier of the delay ladder: {error}") from None
    if length <= 0 or not tier.isalnum():
        raise SettingsError(
            f"a tier of the delay ladder is {tier!r}: write it like '5s' or '1h30m', without dots or spaces"
        )
    return length


# --- what a loop does with a record that has a due time -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """It may run now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits in this loop's memory until then, and runs whatever its due time says."""

    until: float


@dataclass(frozen=True, slots=True)
class Climb:
    """It goes to the ladder's `entry`, bound for *this group's* retry topic.

    With `sj_next` = main, each of G groups would send it there, and each copy would meet all G groups again.
    """


RUN = Run()
CLIMB = Climb()


def on_receive(
    now: float,
    due: float,
    appended: float,
    *,
    came_down: bool,
    waiting: int,
    moves: int = 0,
    hold_s: float = HOLD_S,
    max_waiting: int = MAX_WAITING,
) -> Run | Wait | Climb:
    """What a loop does with a record's `sj_due`.

    `appended`: when the broker appended this record; `came_down`: it has `sj_next`; `waiting`: how many of
    its partition wait in memory; `moves`: its `sj_holds`.

    A record that came down the ladder never goes back for its due time: two clocks ten minutes apart would
    pass it in a circle. It waits at most `hold_s`, counted from its append *and* from now, so a loop whose
    clock is slow holds it no longer. If the memory is full it takes one more trip through the smallest tier;
    if it has moved before, it runs (at most `hold_s` early), for that trip can be a circle too: a timer's
    clock says it is due, this loop's says it isn't.
    """
    # The broker has seen at least the time of the append: the later of the two clocks is nearer to the truth.
    if due <= max(now, appended):
        return RUN
    if not came_down and due > now + hold_s:
        return CLIMB
    until = min(due, appended + hold_s, now + hold_s) if came_down else due
    if until <= now:
        return RUN
    if waiting < max_waiting:
        return Wait(until)
    return RUN if came_down and moves else CLIMB


# --- what a timer does with a record in a tier --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NextTier:
    """It goes to that tier."""

    tier: str


@dataclass(frozen=True, slots=True)
class Destination:
    """It goes to its `sj_next`."""


@dataclass(frozen=True, slots=True)
class Retreat:
    """It can't reach its destination: it goes to `tier` with `sj_due` set to `due`, and the alarm
    `undeliverable` stands.

    With its old due time, which has passed, the tier would let it go at once.
    """

    tier: str
    due: float


DESTINATION = Destination()


def release_at(due: float, appended: float, tier_s: float, seen: float | None = None) -> float:
    """When a timer moves a record on: at min(due, append + tier), so nothing a header says can hold it longer
    than its tier.

    `seen` is the timer's own clock at the moment it read the record. With it the bound holds between clocks
    that disagree:

    - The timer's clock is slow: append + tier is far ahead. Not later than seen + tier.
    - The timer's clock is ten minutes fast: everything it puts into a tier of up to ten minutes seems to have
      stayed there long enough when it reads it back, and it moves the record round and round as fast as it
      can, for ten minutes. So not earlier than seen + a minute (or the tier, if that is less), unless it is
      due.
    """
    if seen is None:
        return min(due, appended + tier_s)
    stayed = max(appended + tier_s, seen + min(tier_s, MIN_STAY_S))
    return min(due, stayed, seen + tier_s)


def on_release(now: float, due: float, ladder: Ladder) -> NextTier | Destination:
    """Where a released record goes. A due time in the year 3000 costs one move a week."""
    tier = ladder.tier_for(due - now)
    return DESTINATION if tier is None else NextTier(tier)


def on_undeliverable(now: float, since: float, ladder: Ladder) -> Retreat | None:
    """What becomes of a record whose destination refused it (missing, denied, too large) first at `since`.

    None: try again, its offset stays pinned. After a minute it makes room: one queue's deleted retry topic
    must not stop the delays of all others.
    """
    if now - since < UNDELIVERABLE_S:
        return None
    return Retreat(ladder.entry(UNDELIVERABLE_S), now + UNDELIVERABLE_S)
