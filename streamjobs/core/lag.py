"""How far a group is behind, whether that grows, when it will be over, and what is wrong (if anything is).

All of it comes from offsets that the broker tells, sampled every few seconds: kill all workers, and the
numbers go on. Ask for commits *before* end offsets: what is appended in between makes a lag a little too
high, never negative.

A `Position` is one partition at one moment, a `Sample` a queue's partitions at one moment, and a sequence of
samples, oldest first (a `deque` with a maximum length), is what the functions here look at. A number that is
not known is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice, pairwise
from typing import Any, NamedTuple

from streamjobs.core import duration

#: Growth is told over 1, 5 and 15 minutes.
WINDOWS_S = (60.0, 300.0, 900.0)
#: Two intervals are the least that says anything about a rate; and half the window must be covered.
MIN_PAIRS = 2
MIN_COVERED = 0.5
#: A rate that differs by less (jobs/s, or this share of what arrives) does not differ.
DEADBAND, DEADBAND_SHARE = 0.1, 0.01
#: The rates of a partition that a forecast uses: what was measured two minutes ago counts half.
HALF_LIFE_S = 120.0
#: No forecast is told beyond it.
HORIZON_S = 7 * 86_400.0
#: Data older than this many intervals is no answer.
FRESH_INTERVALS = 3
STUCK_S = 300.0
STALLED_S = 60.0
STALLED_COMMITS = 3
#: Retention that will delete waiting jobs soon: this share of the log is waiting.
RETENTION_RISK = 0.8


# --- what is measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Position:
    """One partition as one group sees it.

    `base`: its commit, or (`committed=False`) where it will begin: its registered offset, else the log's
    start, never the log's end. `end`: where readers of committed data get to (the LSO); `high`: the log's
    end, where it is known. `finished`: jobs finished beyond the base (from the commit's map), `finished_deleted`: those of them that
    the log has lost (None: unknown, as many as can be). `gaps`: offsets beyond the base known to hold no job (markers, aborted or
    compacted records).
    """

    base: int
    end: int
    start: int = 0
    finished: int = 0
    gaps: int = 0
    high: int | None = None
    committed: bool = True
    topic_id: bytes = b""
    finished_deleted: int | None = None

    @property
    def pending(self) -> int:
        """Jobs that are there and not finished. What retention deleted is not pending, it is `deleted`."""
        lost = max(0, self.start - self.base)
        beyond_start = self.finished - (min(self.finished, lost) if self.finished_deleted is None else self.finished_deleted)
        return max(0, self.end - max(self.base, self.start) - beyond_start - self.gaps)

    @property
    def deleted(self) -> int:
        """Offsets that the log lost before the group had finished them (at most so many jobs)."""
        return max(0, self.start - self.base - (self.finished_deleted or 0))

    @property
    def truncated(self) -> bool:
        """The log ends before the commit: it lost its end, or the topic was made anew."""
        return self.base > max(self.end, self.high or 0)

    @property
    def done(self) -> int:
        """Grows by one with every finished job, also behind an unfinished head."""
        return self.base + self.finished


@dataclass(frozen=True, slots=True)
class Sample:
    """A queue's partitions at one moment (epoch seconds), under any names; with its retry topic's or not."""

    at: float
    positions: Mapping[Any, Position]

    @property
    def pending(self) -> int:
        return sum(position.pending for position in self.positions.values())


Samples = Sequence[Sample]


# --- growth -------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """Jobs per second that arrived and were done, over `covered_s` seconds that `samples` samples tell."""

    arrived: float
    done: float
    covered_s: float
    samples: int

    @property
    def growth(self) -> float:
        """Positive: the backlog grows."""
        return self.arrived - self.done

    @property
    def direction(self) -> int:
        """1: it grows, -1: it shrinks, 0: neither beyond what is noise."""
        if abs(self.growth) <= max(DEADBAND, DEADBAND_SHARE * self.arrived):
            return 0
        return 1 if self.growth > 0 else -1


class Trend(Enum):
    GROWING = "growing"
    SHRINKING = "shrinking"
    STEADY = "steady"
    UNKNOWN = "unknown"


def rates(samples: Samples, window_s: float, now: float | None = None) -> Rates | None:
    """The queue's rates over the last `window_s` seconds; None: too little is known.

    Pairs of samples between which something jumped are left out whole: an offset that fell (a replay, a seek,
    a recreated topic), partitions that came or went, a commit that retention overtook. Each of them would
    count as a million jobs.
    """
    pairs = [pair for pair in _pairs(samples, window_s, now) if _comparable(*pair)]
    return _rates(pairs, window_s, _totals)


def growth(samples: Samples, now: float | None = None) -> dict[float, Rates | None]:
    """The rates of each of `WINDOWS_S`."""
    return {window_s: rates(samples, window_s, now) for window_s in WINDOWS_S}


def trend(samples: Samples, now: float | None = None) -> Trend:
    """What the last 5 *and* 15 minutes agree on: a burst of one minute is no trend."""
    found = [rates(samples, window_s, now) for window_s in WINDOWS_S[1:]]
    directions = {rate.direction for rate in found if rate}
    if None in found:
        return Trend.UNKNOWN
    return _TRENDS[directions.pop()] if len(directions) == 1 else Trend.STEADY


_TRENDS = {1: Trend.GROWING, 0: Trend.STEADY, -1: Trend.SHRINKING}
_Pair = tuple[Sample, Sample]


def _pairs(samples: Samples, window_s: float, now: float | None) -> Iterator[_Pair]:
    """Neighbours whose later one lies in the window, the latest first. Those further apart than the window say
    nothing about it, and after a clock was set back there are samples from the future."""
    if not samples:
        return
    until = samples[-1].at if now is None else now
    for after, before in pairwise(reversed(samples)):
        if after.at <= until - window_s:
            return  # so are all that are older
        if after.at <= until and 0 < after.at - before.at <= window_s:
            yield before, after


def _comparable(before: Sample, after: Sample) -> bool:
    return before.positions.keys() == after.positions.keys() and all(
        _continuous(position, after.positions[name]) for name, position in before.positions.items()
    )


def _continuous(before: Position, after: Position) -> bool:
    """Whether the difference between the two is jobs that arrived or were done, and nothing else."""
    if before.topic_id != after.topic_id or after.end < before.end:
        return False
    if after.base < before.base or after.done < before.done:
        return False
    return before.start <= before.base and not before.start < after.start > before.base


def _totals(before: Sample, after: Sample) -> tuple[int, int]:
    arrived = sum(position.end - before.positions[name].end for name, position in after.positions.items())
    done = sum(position.done - before.positions[name].done for name, position in after.positions.items())
    return arrived, done


def _rates(
    pairs: Sequence[_Pair], window_s: float, count: Callable[[Sample, Sample], tuple[int, int]]
) -> Rates | None:
    covered = sum(after.at - before.at for before, after in pairs)
    if len(pairs) < MIN_PAIRS or covered < MIN_COVERED * window_s:
        return None
    arrived, done = (sum(numbers) for numbers in zip(*(count(*pair) for pair in pairs), strict=True))
    return Rates(arrived / covered, done / covered, covered, len(pairs) + 1)


# --- forecast -----------------------------------------------------------------------------------------------


class Drain(Enum):
    EMPTY = "empty"
    DRAINING = "draining"
    NOT_DRAINING = "not draining"
    PAUSED = "paused"
    UNKNOWN = "unknown"


class Eta(NamedTuple):
    """When the backlog will be gone; `seconds` only where it is draining (or empty: 0)."""

    state: Drain
    seconds: float | None = None

    @property
    def text(self) -> str:
        if self.state is not Drain.DRAINING or self.seconds is None:
            return self.state.value
        if self.seconds > HORIZON_S:
            return f"more than {duration.text(HORIZON_S)}"
        return duration.text(math.ceil(self.seconds))


def eta(samples: Samples, *, paused: bool = False, now: float | None = None) -> Eta:
    """When the last job of now will be done, if all goes on as it does: the slowest partition decides, since
    no other can take its jobs over. A sum would say "soon" while one hot partition grows for ever."""
    if not samples or not samples[-1].positions:
        return Eta(Drain.UNKNOWN)
    waiting = _waiting(samples[-1])
    if not waiting:
        return Eta(Drain.EMPTY, 0.0)
    if paused:
        return Eta(Drain.PAUSED)
    speeds = {name: recent_rates(samples, name, now) for name in waiting}
    if any(speed and speed.growth >= 0 for speed in speeds.values()):
        return Eta(Drain.NOT_DRAINING)
    known = {name: speed for name, speed in speeds.items() if speed}
    if len(known) < len(waiting):
        return Eta(Drain.UNKNOWN)
    return Eta(Drain.DRAINING, max(waiting[name] / -speed.growth for name, speed in known.items()))


def expected_wait(samples: Samples, now: float | None = None) -> float | None:
    """Seconds that a job published now waits in the slowest partition; infinite: it stands still."""
    if not samples or not samples[-1].positions:
        return None
    waits = [0.0]
    for name, pending in _waiting(samples[-1]).items():
        speed = recent_rates(samples, name, now)
        if speed is None:
            return None
        waits.append(pending / speed.done if speed.done else math.inf)
    return max(waits)


def recent_rates(samples: Samples, name: object, now: float | None = None) -> Rates | None:
    """One partition's rates, the latest weighing most (`HALF_LIFE_S`); None: too little is known."""
    weighted = covered = arrived = done = 0.0
    until = samples[-1].at if samples and now is None else now or 0.0
    count = 0
    for before, after in _pairs(samples, WINDOWS_S[-1], now):
        was, is_ = before.positions.get(name), after.positions.get(name)
        if was is None or is_ is None or not _continuous(was, is_):
            continue
        weight = math.pow(0.5, (until - after.at) / HALF_LIFE_S)
        weighted += weight * (after.at - before.at)
        covered += after.at - before.at
        arrived += weight * (is_.end - was.end)
        done += weight * (is_.done - was.done)
        count += 1
    return Rates(arrived / weighted, done / weighted, covered, count + 1) if count >= MIN_PAIRS else None


def _waiting(sample: Sample) -> dict[Any, int]:
    return {name: position.pending for name, position in sample.positions.items() if position.pending}


class Skew(NamedTuple):
    """How unevenly a backlog lies: the fullest partition, as a multiple of the average (1: even)."""

    partition: Any
    ratio: float


def skew(sample: Sample) -> Skew | None:
    """None: nothing waits. A key that is too popular shows here, and no further worker will help it."""
    if not sample.pending:
        return None
    fullest = max(sample.positions, key=lambda name: sample.positions[name].pending)
    average = sample.pending / len(sample.positions)
    return Skew(fullest, sample.positions[fullest].pending / average)


# --- status -------------------------------------------------------------------------------------------------


class Status(Enum):
    """What is to be said of a queue; the first that holds, in this order."""

    UNKNOWN = "unknown"
    PAUSED = "paused"
    LOSS = "loss"
    RETENTION_RISK = "retention_risk"
    NO_CONSUMER = "no_consumer"
    LSO_STUCK = "lso_stuck"
    REWOUND = "rewound"
    LONG_RUNNING = "long_running"
    STALLED = "stalled"
    FALLING_BEHIND = "falling_behind"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a status is judged by.

    `members`: whether the group has any; `unassigned`: partitions that no member has; `running`: partitions
    whose oldest unfinished job a live worker reports as running within its timeout; `keeps_all`: the topic's
    retention never deletes; `disturbed_at`: when the group last moved partitions, or was resumed: for
    `grace_s` after it nothing counts as stalled, and nobody as missing.
    """

    now: float
    samples: Samples
    paused: bool = False
    members: bool = True
    unassigned: frozenset[Any] = frozenset()
    running: frozenset[Any] = frozenset()
    keeps_all: bool = True
    interval_s: float = 5.0
    commit_s: float = 0.5
    disturbed_at: float = -math.inf
    grace_s: float = 30.0

    @property
    def latest(self) -> Sample:
        return self.samples[-1]

    @property
    def in_grace(self) -> bool:
        return self.now - self.disturbed_at < self.grace_s


def status(situation: Situation) -> Status:
    """The first status that holds."""
    return next((found for found, holds in _RULES if holds(situation)), Status.OK)


def _is_unknown(it: Situation) -> bool:
    if not it.samples or not it.latest.positions:
        return True
    return it.now - it.latest.at > FRESH_INTERVALS * it.interval_s


def _has_loss(it: Situation) -> bool:
    return any(position.deleted or position.truncated for position in it.latest.positions.values())


def _is_at_risk(it: Situation) -> bool:
    """Retention is finite and the oldest waiting job lies near the log's start: it is deleted next."""
    return not it.keeps_all and any(
        position.pending > RETENTION_RISK * (position.end - position.start) > 0 and position.start > 0
        for position in it.latest.positions.values()
    )


def _has_no_consumer(it: Situation) -> bool:
    waiting = _waiting(it.latest)
    return bool(waiting) and not it.in_grace and (not it.members or bool(it.unassigned & waiting.keys()))


def _has_stuck_transaction(it: Situation) -> bool:
    """A transaction that nobody ends hides all that is behind it: the lag looks small."""
    return any(
        _hides_some(position) and _unchanged_s(it, name, lambda p: (p.end, _hides_some(p))) >= STUCK_S
        for name, position in it.latest.positions.items()
    )


def _hides_some(position: Position) -> bool:
    return position.high is not None and position.high > position.end


def _is_rewound(it: Situation) -> bool:
    return any(
        position.committed and position.base < _furthest(it.samples, name, position)
        for name, position in it.latest.positions.items()
    )


def _furthest(samples: Samples, name: object, position: Position) -> int:
    """The highest base that was seen of the same topic."""
    seen = (sample.positions.get(name) for sample in samples)
    return max((p.base for p in seen if p and p.committed and p.topic_id == position.topic_id), default=0)


def _is_long_running(it: Situation) -> bool:
    """Every partition whose base stands still is explained by a job that runs."""
    frozen = _frozen(it, lambda position: position.base)
    return bool(frozen) and frozen <= it.running


def _is_stalled(it: Situation) -> bool:
    """Heartbeats prove nothing: a group may be stable with all its members, and its backlog frozen."""
    return not it.in_grace and bool(
        _frozen(it, lambda position: (position.base, position.finished)) - it.running
    )


def _is_falling_behind(it: Situation) -> bool:
    return trend(it.samples, it.now) is Trend.GROWING


_RULES: tuple[tuple[Status, Callable[[Situation], bool]], ...] = (
    (Status.UNKNOWN, _is_unknown),
    (Status.PAUSED, lambda it: it.paused),
    (Status.LOSS, _has_loss),
    (Status.RETENTION_RISK, _is_at_risk),
    (Status.NO_CONSUMER, _has_no_consumer),
    (Status.LSO_STUCK, _has_stuck_transaction),
    (Status.REWOUND, _is_rewound),
    (Status.LONG_RUNNING, _is_long_running),
    (Status.STALLED, _is_stalled),
    (Status.FALLING_BEHIND, _is_falling_behind),
)


def _frozen(it: Situation, progress: Callable[[Position], object]) -> frozenset[Any]:
    """Partitions in which jobs wait and nothing of the kind has moved for long enough to say so."""
    patience = max(STALLED_S, STALLED_COMMITS * it.commit_s)

    def look(position: Position) -> object:
        # A partition that was idle for an hour does not stand still since then when a job arrives.
        return progress(position), position.pending > 0

    return frozenset(name for name in _waiting(it.latest) if _unchanged_s(it, name, look) >= patience)


def _unchanged_s(it: Situation, name: object, look: Callable[[Position], object]) -> float:
    """For how long the latest samples of a partition have looked the same."""
    latest = it.latest.positions[name]
    since = it.latest.at
    for sample in reversed(it.samples):
        position = sample.positions.get(name)
        if position is None or look(position) != look(latest):
            break
        since = min(since, sample.at)
    return it.latest.at - since


# --- a line to draw -----------------------------------------------------------------------------------------


class Series(NamedTuple):
    """Columns of equal length for a chart, oldest first; None: a gap. Rates are jobs per second."""

    at: list[float]
    pending: list[int | None]
    arrived: list[float | None]
    done: list[float | None]
    growth: list[float | None]


def series(samples: Samples, points: int = 120) -> Series:
    """The samples' time in at most `points` equal steps: what waited at the end of each, and its rates."""
    found = Series([], [], [], [], [])
    steps, length, step = _steps(samples, points)
    parts: list[list[_Pair]] = [[] for _ in range(steps)]
    for before, after in pairwise(samples) if steps else ():
        parts[step(after)].append((before, after))
    for number, pairs in enumerate(parts, 1):
        _append(found, samples[0].at + number * length, pairs)
    return found


def depths(samples: Samples, points: int = 120) -> list[int | None]:
    """`series(…).pending` alone, which takes a twentieth of the time: of a thousand watched queues that is what a look may take."""
    steps, _, step = _steps(samples, points)
    last: list[Sample | None] = [None] * steps
    for sample in islice(samples, 1, None) if steps else ():
        last[step(sample)] = sample
    return [None if sample is None else sample.pending for sample in last]


def _steps(samples: Samples, points: int) -> tuple[int, float, Callable[[Sample], int]]:
    """How many, how long (s) each is, and in which of them a sample lies."""
    steps = min(points, len(samples) - 1)
    if steps < 1 or samples[-1].at <= samples[0].at:
        return 0, 0.0, lambda _: 0
    began, length = samples[0].at, (samples[-1].at - samples[0].at) / steps
    return steps, length, lambda sample: min(max(math.ceil((sample.at - began) / length) - 1, 0), steps - 1)


def _append(found: Series, at: float, pairs: Sequence[_Pair]) -> None:
    fit = [(before, after) for before, after in pairs if after.at > before.at and _comparable(before, after)]
    covered = sum(after.at - before.at for before, after in fit)
    arrived = sum(_totals(*pair)[0] for pair in fit) / covered if covered else None
    done = sum(_totals(*pair)[1] for pair in fit) / covered if covered else None
    found.at.append(round(at, 3))
    found.pending.append(pairs[-1][1].pending if pairs else None)
    found.arrived.append(_rounded(arrived))
    found.done.append(_rounded(done))
    found.growth.append(_rounded(None if arrived is None or done is None else arrived - done))


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)
