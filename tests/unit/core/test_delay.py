"""The delay ladder: its decisions, then a ladder of many timers whose clocks disagree by minutes."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.delay import (
    CLIMB,
    DESTINATION,
    HOLD_S,
    MAX_WAITING,
    MIN_STAY_S,
    RUN,
    TIERS,
    Ladder,
    NextTier,
    Retreat,
    Wait,
    on_receive,
    on_release,
    on_undeliverable,
    release_at,
)
from streamjobs.errors import SettingsError

LADDER = Ladder()
NOW = 1_790_000_000.0
YEAR_3000 = 32_503_680_000.0
WEEK = 7 * 86_400.0
SKEW = 600.0


# --- tiers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "tier"),
    [
        (-1, None),
        (4.999, None),
        (5, "5s"),
        (14.9, "5s"),
        (15, "15s"),
        (3599, "15m"),
        (3600, "1h"),
        (1e9, "7d"),
    ],
)
def test_a_record_enters_the_largest_tier_that_is_not_longer_than_the_time_left(
    left: float, tier: str | None
) -> None:
    assert LADDER.tier_for(left) == tier


def test_what_must_climb_with_little_time_left_enters_the_smallest_tier() -> None:
    assert LADDER.entry(3) == "5s"
    assert LADDER.entry(61) == "1m"


def test_tiers_are_kept_in_order_of_their_length() -> None:
    assert Ladder(("1m", "5s", "1h")).tiers == ("5s", "1m", "1h")
    assert Ladder(("1m", "5s")) == Ladder(("5s", "1m"))


def test_a_tier_that_left_the_settings_still_has_its_length() -> None:
    assert Ladder(("5s",)).seconds("30m") == 1800


@pytest.mark.parametrize(
    "tiers", [(), ("5s", "5s"), ("60s", "1m"), ("soon",), ("1.5h",), ("1h 30m",), ("0s",)]
)
def test_tiers_that_can_not_be_topics_or_have_no_length_are_refused(tiers: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="tier"):
        Ladder(tiers)


def test_a_hold_shorter_than_the_smallest_tier_is_refused() -> None:
    LADDER.check_hold(5)
    with pytest.raises(SettingsError, match="delay.hold is 1s, but the smallest tier is 5s"):
        LADDER.check_hold(1)


# --- a loop that meets a due time ---------------------------------------------------------------------------


def receive(
    due: float, appended: float = NOW, *, came_down: bool = False, waiting: int = 0, moves: int = 0
) -> object:
    return on_receive(NOW, due, appended, came_down=came_down, waiting=waiting, moves=moves)


def test_what_is_due_runs() -> None:
    assert receive(NOW) == RUN
    assert receive(0.0) == RUN


def test_what_is_due_by_the_brokers_clock_runs_though_this_clock_is_slow() -> None:
    assert receive(NOW + 60, appended=NOW + 61, came_down=True) == RUN


def test_a_few_seconds_are_waited_in_memory() -> None:
    assert receive(NOW + 5) == Wait(NOW + 5)


def test_a_longer_delay_never_blocks_a_partition_but_goes_to_the_ladder() -> None:  # edge 46
    assert receive(NOW + 5.001) == CLIMB
    assert receive(YEAR_3000) == CLIMB


def test_what_came_down_never_goes_back_for_its_due_time() -> None:  # edge 44
    """Two clocks ten minutes apart would pass it in a circle: the timer's says due, the loop's not yet."""
    assert receive(NOW + SKEW, came_down=True) == Wait(NOW + HOLD_S)
    assert receive(YEAR_3000, came_down=True) == Wait(NOW + HOLD_S)


def test_what_came_down_waits_at_most_from_its_append() -> None:
    assert receive(NOW + SKEW, appended=NOW - 3, came_down=True) == Wait(NOW + 2)
    assert receive(NOW + SKEW, appended=NOW - 60, came_down=True) == RUN


def test_a_loop_with_a_slow_clock_holds_nothing_longer() -> None:
    assert receive(NOW + 2 * SKEW, appended=NOW + SKEW, came_down=True) == Wait(NOW + HOLD_S)


@pytest.mark.parametrize("came_down", [True, False])
def test_at_most_a_thousand_of_a_partition_wait_in_memory(came_down: bool) -> None:
    assert receive(NOW + 2, came_down=came_down, waiting=MAX_WAITING - 1) == Wait(NOW + 2)
    assert receive(NOW + 2, came_down=came_down, waiting=MAX_WAITING) == CLIMB


def test_what_found_the_memory_full_twice_runs_instead_of_going_in_a_circle() -> None:
    assert receive(NOW + 2, came_down=True, waiting=MAX_WAITING, moves=1) == RUN


@given(
    due=st.floats(NOW - 1e6, YEAR_3000),
    appended=st.floats(NOW - 1e6, NOW + SKEW),
    came_down=st.booleans(),
    waiting=st.integers(0, 2 * MAX_WAITING),
)
def test_nothing_waits_in_memory_longer_than_the_hold_or_than_its_due(
    due: float, appended: float, came_down: bool, waiting: int
) -> None:
    decision = receive(due, appended, came_down=came_down, waiting=waiting)
    if isinstance(decision, Wait):
        assert NOW < decision.until <= min(due, NOW + HOLD_S)
        assert waiting < MAX_WAITING


# --- a timer ------------------------------------------------------------------------------------------------


def test_a_record_leaves_its_tier_when_due_or_when_the_tier_is_over() -> None:
    assert release_at(NOW + 70, NOW, 60) == NOW + 60
    assert release_at(NOW + 59.5, NOW, 60) == NOW + 59.5
    assert release_at(0.0, NOW, 60) == 0.0


def test_no_header_holds_a_record_longer_than_its_tier() -> None:  # edge 44
    assert release_at(YEAR_3000, NOW, WEEK) == NOW + WEEK


def test_a_timer_with_a_slow_clock_holds_a_record_no_longer_than_its_tier() -> None:  # edge 49
    assert release_at(NOW + 1e6, NOW + SKEW, 60, seen=NOW) == NOW + 60


def test_a_timer_with_a_fast_clock_does_not_release_at_once_what_it_has_just_put_there() -> None:  # edge 49
    """Ten minutes fast, 5 minutes left by its clock: 4m, back at once, 4m, back at once, … as fast as the
    broker acks."""
    assert release_at(NOW + 300, NOW - SKEW, 240, seen=NOW) == NOW + 60
    assert release_at(NOW + 20, NOW - SKEW, 15, seen=NOW) == NOW + 15


def test_after_a_long_stop_of_the_timer_what_is_due_leaves_at_once() -> None:
    assert release_at(NOW - 10, NOW - 3600, 240, seen=NOW) == NOW - 10


def test_a_released_record_goes_on_to_the_next_tier_or_to_its_destination() -> None:
    assert on_release(NOW, NOW + 20, LADDER) == NextTier("15s")
    assert on_release(NOW, NOW + 4.9, LADDER) == DESTINATION
    assert on_release(NOW, NOW - 1e6, LADDER) == DESTINATION


def test_a_due_time_in_the_year_3000_costs_one_move_a_week() -> None:  # edge 44
    now, moves = NOW, 0
    while now < NOW + 52 * WEEK:
        assert on_release(now, YEAR_3000, LADDER) == NextTier("7d")
        now, moves = release_at(YEAR_3000, now, WEEK, seen=now), moves + 1
    assert moves == 52


def test_a_record_that_can_not_leave_makes_room_after_a_minute_and_comes_again_after_another() -> None:
    assert on_undeliverable(NOW + 59, NOW, LADDER) is None
    assert on_undeliverable(NOW + 60, NOW, LADDER) == Retreat("1m", NOW + 120)


def test_a_record_that_retreated_stays_its_minute_though_its_due_time_was_long_ago() -> None:
    retreat = on_undeliverable(NOW, NOW - 60, LADDER)
    assert retreat is not None
    assert release_at(retreat.due, NOW, LADDER.seconds(retreat.tier), seen=NOW) == NOW + 60


# --- the whole ladder ---------------------------------------------------------------------------------------


@dataclass
class Journey:
    """One record's way through the ladder, in true time; every clock of it may be off by its own skew."""

    due: float
    rng: random.Random
    timers: list[float]
    broker: float = 0.0
    latency: float = 0.02
    now: float = NOW
    stays: list[tuple[float, float]] = field(default_factory=list)

    def start(self, publisher: float) -> str | None:
        return LADDER.tier_for(self.due - (self.now + publisher))

    def go_down(self, tier: str | None) -> float:
        """Moves from tier to tier until the record is at its destination; returns when that is."""
        while tier is not None:
            assert len(self.stays) < 200, "goes in a circle"
            tier = self.stay(tier)
        self.now += self.latency
        return self.now

    def stay(self, tier: str) -> str | None:
        self.now += self.latency
        appended, read = self.now + self.broker, self.now
        clock = self.rng.choice(self.timers)
        release = release_at(self.due, appended, LADDER.seconds(tier), seen=read + clock)
        self.now = max(read, release - clock)
        self.stays.append((LADDER.seconds(tier), self.now - read))
        moved = on_release(self.now + clock, self.due, LADDER)
        return moved.tier if isinstance(moved, NextTier) else None

    def run(self, loop: float) -> float:
        """When the loop that receives it runs it."""
        appended, now = self.now + self.broker, self.now + loop
        decision = on_receive(now, self.due, appended, came_down=bool(self.stays), waiting=0)
        assert decision is not CLIMB
        return decision.until - loop if isinstance(decision, Wait) else self.now


skews = st.floats(-SKEW, SKEW)
delays = st.one_of(st.floats(6, 120), st.floats(6, 3600), st.floats(6, 90 * 86_400))


@given(delays, st.lists(skews, min_size=1, max_size=5), skews, skews, st.integers())
def test_clocks_ten_minutes_apart_shift_a_record_by_no_more_and_never_pass_it_in_a_circle(  # edge 49
    delay: float, timers: list[float], broker: float, loop: float, seed: int
) -> None:
    journey = Journey(NOW + delay, random.Random(seed), timers, broker)
    tier = journey.start(publisher=0.0)
    if tier is None:
        return
    journey.go_down(tier)
    ran = journey.run(loop)
    early = max(0.0, broker, loop, max(timers) + max(0.0, loop - broker))
    late = max(0.0, -loop, *(-timer for timer in timers))
    assert all(stayed <= length + 1e-3 for length, stayed in journey.stays)
    assert journey.due - early - 0.1 <= ran <= journey.due + min(late, SKEW) + HOLD_S + 0.1
    # A clock that is 10 minutes fast moves what seems to have stayed long enough once a minute, not at once.
    assert len(journey.stays) <= most_hops(delay + SKEW) + 4 * SKEW / MIN_STAY_S + len(timers)


def hops_of_the_steps(delay: float) -> int:
    """How often a record of this delay moves when all clocks agree and nothing takes time."""
    hops = 0
    while (tier := LADDER.tier_for(delay)) is not None:
        delay -= LADDER.seconds(tier)
        hops += 1
    return hops


def most_hops(delay: float) -> int:
    """The most that a record of this delay or less can move: a move that takes a moment makes a round delay a
    crooked one."""
    lengths = [LADDER.seconds(tier) for tier in TIERS if LADDER.seconds(tier) <= delay]
    longer = [*lengths[1:], delay]
    return sum(math.ceil(after / length) for length, after in zip(lengths, longer, strict=True))


@given(delays, st.integers())
def test_with_one_clock_a_record_runs_when_it_is_due_and_never_before(delay: float, seed: int) -> None:
    journey = Journey(NOW + delay, random.Random(seed), [0.0])
    tier = journey.start(publisher=0.0)
    if tier is None:
        return
    journey.go_down(tier)
    assert journey.due - 1e-3 <= journey.run(0.0) <= journey.due + 2 * journey.latency
    assert len(journey.stays) <= (13 if delay <= 3600 else most_hops(delay))


def test_delays_up_to_an_hour_take_seven_hops_on_average_and_at_most_thirteen() -> None:
    hops = [hops_of_the_steps(second) for second in range(3600)]
    assert max(hops) <= 13
    assert 6 <= sum(hops) / len(hops) <= 7.5


@given(st.lists(st.floats(5, 1e6), min_size=2, max_size=30))
def test_in_a_tier_no_short_delay_waits_behind_a_long_one(wanted: list[float]) -> None:  # edge 48
    """Whatever is put into a tier in one order may leave it in that order."""
    tiers: dict[str, list[float]] = {}
    for number, delay in enumerate(wanted):
        at, tier = NOW + number / 100, LADDER.tier_for(delay)
        assert tier is not None
        tiers.setdefault(tier, []).append(release_at(at + delay, at, LADDER.seconds(tier)))
    assert all(releases == sorted(releases) for releases in tiers.values())
