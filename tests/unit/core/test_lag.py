"""Depth, growth, forecast and status from sampled offsets; each pitfall of other lag tools is a test here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.lag import (
    Drain,
    Eta,
    Position,
    Rates,
    Sample,
    Situation,
    Status,
    Trend,
    depths,
    eta,
    expected_wait,
    growth,
    rates,
    recent_rates,
    series,
    skew,
    status,
    trend,
)

NOW = 1_790_000_000.0
STEP = 5.0


def history(seconds: float, **partitions: Callable[[float], Position]) -> deque[Sample]:
    """Samples every 5 s that end now; each partition says its position t seconds after the first."""
    count = int(seconds / STEP) + 1
    times = [number * STEP for number in range(count)]
    start = NOW - times[-1]
    return deque(Sample(start + t, {name: at(t) for name, at in partitions.items()}) for t in times)


def flow(arrive: float, done: float, *, backlog: int = 0, **fields: Any) -> Callable[[float], Position]:
    """A partition in which so many jobs a second arrive and are done."""
    return lambda t: Position(base=1000 + round(done * t), end=1000 + backlog + round(arrive * t), **fields)


def still(**fields: Any) -> Callable[[float], Position]:
    return lambda _: Position(**fields)


# --- depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "pending"),
    [
        (Position(base=10, end=25), 15),
        (Position(base=10, end=25, finished=9), 6),
        (Position(base=10, end=25, finished=9, gaps=4), 2),
        (Position(base=0, end=5000, start=4000, committed=False), 1000),
    ],
)
def test_pending_is_what_is_there_and_not_finished(position: Position, pending: int) -> None:
    assert position.pending == pending


def test_a_partition_without_a_commit_lags_from_where_the_group_will_begin() -> None:
    """Not from its end (nothing would seem to wait) and not by the whole log (registered from now on)."""
    assert Position(base=0, end=300, committed=False).pending == 300
    assert Position(base=300, end=300, committed=False).pending == 0


def test_what_retention_deleted_is_no_lag_but_a_loss() -> None:
    """A commit at 100 of a log that begins at 1,000,000 is no backlog of a million."""
    position = Position(base=100, end=1_000_050, start=1_000_000)
    assert (position.pending, position.deleted) == (50, 999_900)


def test_finished_jobs_that_retention_deleted_are_not_subtracted_from_what_is_left() -> None:
    assert Position(base=100, end=200, start=150, finished=40).pending == 50
    assert Position(base=100, end=200, start=150, finished=60).pending == 40


def test_a_tail_of_markers_is_no_lag() -> None:
    assert Position(base=90, end=100, gaps=10).pending == 0


def test_pending_is_never_negative_though_commits_and_ends_are_not_read_at_one_moment() -> None:
    assert Position(base=105, end=100, finished=3).pending == 0


def test_a_commit_beyond_the_end_of_the_log_is_a_truncated_log() -> None:
    assert Position(base=105, end=100).truncated
    assert not Position(base=105, end=100, high=110).truncated
    assert not Position(base=100, end=100).truncated


# --- growth -------------------------------------------------------------------------------------------------


def test_growth_is_what_arrives_less_what_is_done() -> None:
    found = rates(history(60, a=flow(10, 4), b=flow(2, 1)), 60)
    assert found == Rates(12, 5, 60, 13)
    assert found.growth == 7


def test_finished_jobs_behind_an_unfinished_head_count_as_done() -> None:
    """A two-hour job pins the base while its siblings finish: by the base alone nothing is done."""
    samples = history(60, a=lambda t: Position(base=0, end=round(10 * t), finished=round(8 * t)))
    assert rates(samples, 60) == Rates(10, 8, 60, 13)


def test_each_window_tells_its_own_growth() -> None:
    samples = history(900, a=lambda t: Position(base=0, end=round(max(0, t - 840) * 60)))
    found = growth(samples)
    assert {window: rate and rate.growth for window, rate in found.items()} == {60: 60, 300: 12, 900: 4}


@pytest.mark.parametrize("seconds", [0, 5, 25])
def test_two_samples_or_half_a_window_say_nothing(seconds: float) -> None:
    assert rates(history(seconds, a=flow(1, 1)), 60) is None


def test_one_long_interval_is_no_rate() -> None:
    assert rates([Sample(NOW - 50, {0: Position(0, 0)}), Sample(NOW, {0: Position(0, 50)})], 60) is None


def test_half_a_window_is_enough() -> None:
    assert rates(history(30, a=flow(1, 1)), 60) == Rates(1, 1, 30, 7)


def disturbed(change: Callable[[Position], Position]) -> deque[Sample]:
    """An even flow in which, from half a minute ago on, everything is changed."""
    samples = history(
        60, a=flow(10, 8, backlog=500, topic_id=b"1111"), b=flow(10, 8, backlog=500, topic_id=b"1111")
    )
    for number in range(7, 13):
        old = samples[number]
        samples[number] = Sample(old.at, {**old.positions, "a": change(old.positions["a"])})
    return samples


def moved(position: Position, by: int = 0, **fields: Any) -> Position:
    kept = {"base": position.base + by, "end": position.end + by, "topic_id": position.topic_id, **fields}
    return Position(**kept)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: moved(p, base=p.base - 900), id="the group was reset, or replays"),
        pytest.param(lambda p: moved(p, by=-900), id="the topic was recreated at the same id"),
        pytest.param(
            lambda p: moved(p, by=50_000, topic_id=b"2222"), id="the topic was recreated and grew past"
        ),
        pytest.param(lambda p: moved(p, end=p.end - 300), id="the log lost its end"),
        pytest.param(lambda p: moved(p, by=90_000, start=p.end + 5_000), id="retention moved the commit"),
    ],
)
def test_what_jumped_is_left_out_instead_of_counted_as_a_flood(
    change: Callable[[Position], Position],
) -> None:
    found = rates(disturbed(change), 60)
    assert found == Rates(20, 16, 55, 12)


def test_a_commit_below_the_logs_start_is_no_pair_until_it_is_back_inside() -> None:
    """Retention overtakes the commit (start > base); then the owner jumps to the start: 9,000 jobs were not
    done then."""
    samples = history(
        60,
        a=lambda t: Position(
            base=1000 if t < 30 else 10_000 + round(t), end=20_000, start=0 if t < 15 else 10_000
        ),
    )
    found = rates(samples, 60)
    assert found is not None
    assert found.done == 0.75


def test_partitions_that_came_or_went_are_left_out() -> None:
    samples = history(60, a=flow(10, 8))
    for number in range(7, 13):
        old = samples[number]
        samples[number] = Sample(old.at, {**old.positions, "new": Position(base=0, end=1_000_000)})
    assert rates(samples, 60) == Rates(10, 8, 55, 12)


def test_a_first_commit_is_no_jump() -> None:
    samples = history(60, a=lambda t: Position(base=round(t), end=500, committed=t > 30))
    assert rates(samples, 60) == Rates(0, 1, 60, 13)


def test_a_pause_of_the_monitor_is_no_minute() -> None:
    samples = history(60, a=flow(1, 1))
    late = deque(
        Sample(sample.at - (3600 if number < 6 else 0), sample.positions)
        for number, sample in enumerate(samples)
    )
    found = rates(late, 60)
    assert found is not None
    assert found.covered_s == 30


def test_a_clock_that_was_set_back_leaves_samples_of_the_future_out() -> None:
    """An hour is set back, and the hour before it seems to lie ahead."""
    before = [Sample(sample.at + 3600, sample.positions) for sample in history(60, a=flow(1000, 0))]
    after = history(60, a=flow(1, 1))
    assert rates([*before, *after], 60) == Rates(1, 1, 60, 13)


def test_a_clock_that_was_set_back_by_seconds_does_not_turn_time_round() -> None:
    samples = list(history(60, a=flow(1, 1)))
    late = [Sample(sample.at - 7 * (number < 6), sample.positions) for number, sample in enumerate(samples)]
    back = [Sample(sample.at + 7 * (number < 6), sample.positions) for number, sample in enumerate(samples)]
    assert rates(late, 70).covered_s == 67  # type: ignore[union-attr]
    assert rates(back, 60).covered_s == 55  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arrive", "done", "expected"),
    [
        (10, 8, Trend.GROWING),
        (8, 10, Trend.SHRINKING),
        (10, 10, Trend.STEADY),
        (0.05, 0, Trend.STEADY),
        (1000, 995, Trend.STEADY),
        (1000, 985, Trend.GROWING),
    ],
)
def test_a_trend_is_what_is_beyond_noise(arrive: float, done: float, expected: Trend) -> None:
    assert trend(history(900, a=flow(arrive, done, backlog=10_000))) is expected


def test_a_trend_needs_five_and_fifteen_minutes_to_agree() -> None:
    burst = history(
        900, a=lambda t: Position(base=round(10 * t), end=50_000 + round(8 * t) + (5000 if t > 700 else 0))
    )
    assert rates(burst, 300).direction == 1  # type: ignore[union-attr]
    assert rates(burst, 900).direction == 1  # type: ignore[union-attr]
    calm = history(
        900, a=lambda t: Position(base=round(10 * t), end=50_000 + round(8 * t) + (1600 if t > 700 else 0))
    )
    assert rates(calm, 300).direction == 1  # type: ignore[union-attr]
    assert trend(burst) is Trend.GROWING
    assert trend(calm) is Trend.STEADY
    assert trend(history(400, a=flow(10, 8))) is Trend.UNKNOWN


totals = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=13, max_size=13)


@given(totals)
def test_growth_times_time_is_the_change_of_the_backlog(steps: list[tuple[int, int]]) -> None:
    base, end, samples = 0, 10_000, []
    for number, (arrived, done) in enumerate(steps):
        base, end = base + done, end + arrived
        samples.append(Sample(NOW + number * STEP, {0: Position(base=base, end=end)}))
    found = rates(samples, 60)
    assert found is not None
    assert found.growth * 60 == pytest.approx(samples[-1].pending - samples[0].pending, abs=1e-6)


# --- forecast -----------------------------------------------------------------------------------------------


def test_the_slowest_partition_decides_when_a_backlog_is_gone() -> None:
    samples = history(300, a=flow(1, 3, backlog=1000), b=flow(1, 2, backlog=1000))
    found = eta(samples)
    assert found.state is Drain.DRAINING
    assert found.seconds == pytest.approx(700, rel=0.01)


def test_one_partition_that_grows_means_that_the_backlog_does_not_drain() -> None:
    """All together more is done than arrives; the hot partition never ends."""
    samples = history(300, a=flow(1, 50, backlog=20_000), b=flow(5, 4, backlog=10))
    assert rates(samples, 300).growth < 0  # type: ignore[union-attr]
    assert eta(samples) == Eta(Drain.NOT_DRAINING)
    assert eta(samples).text == "not draining"


def test_a_partition_that_grows_but_is_empty_does_not_matter() -> None:
    samples = history(300, a=flow(1, 3, backlog=1000), b=still(base=7, end=7))
    assert eta(samples).state is Drain.DRAINING


def test_an_eta_that_is_none_says_why() -> None:
    samples = history(300, a=flow(1, 3, backlog=1000))
    assert eta(samples, paused=True).text == "paused"
    assert eta(history(300, a=still(base=5, end=5)), paused=True) == Eta(Drain.EMPTY, 0.0)
    assert eta(history(5, a=flow(1, 3, backlog=1000))).text == "unknown"
    assert eta([]).text == eta([Sample(NOW, {})]).text == "unknown"


def test_no_eta_is_told_beyond_a_week() -> None:
    assert Eta(Drain.DRAINING, 8 * 86_400.0).text == "more than 7d"
    assert Eta(Drain.DRAINING, 61.2).text == "1m2s"


def test_recent_rates_weigh_the_last_minutes_most() -> None:
    samples = history(600, a=lambda t: Position(base=round(10 * max(0, t - 480)), end=10_000))
    found = recent_rates(samples, "a")
    assert found is not None
    assert 4.9 < found.done < 5.5


def test_a_reset_group_has_no_rates_from_its_jump() -> None:
    samples = disturbed(lambda p: moved(p, by=1_000_000, topic_id=b"2222"))
    assert recent_rates(samples, "a").done == pytest.approx(8, rel=0.01)  # type: ignore[union-attr]


def test_a_job_published_now_waits_as_long_as_the_slowest_partition_takes() -> None:
    assert expected_wait(history(300, a=flow(2, 2, backlog=100), b=flow(1, 1, backlog=10))) == pytest.approx(
        50, rel=0.01
    )
    assert expected_wait(history(300, a=still(base=3, end=3))) == 0
    assert expected_wait(history(300, a=still(base=3, end=4))) == math.inf
    assert expected_wait(history(5, a=flow(2, 2, backlog=100))) is None
    assert expected_wait([]) is None


def test_skew_names_the_partition_that_holds_more_than_its_share() -> None:
    even = Sample(NOW, {n: Position(base=0, end=10) for n in range(8)})
    hot = Sample(NOW, {n: Position(base=0, end=10 if n == 3 else 0) for n in range(8)})
    assert skew(even).ratio == 1  # type: ignore[union-attr]
    assert skew(hot) == (3, 8)
    assert skew(Sample(NOW, {0: Position(base=5, end=5)})) is skew(Sample(NOW, {})) is None


# --- status -------------------------------------------------------------------------------------------------


def judged(samples: deque[Sample], **facts: Any) -> Status:
    return status(Situation(**{"now": NOW, "samples": samples, **facts}))


BUSY = history(900, a=flow(10, 10, backlog=50), b=flow(10, 10, backlog=50))
STUCK = history(120, a=still(base=10, end=20, finished=3), b=flow(10, 10, backlog=50))
IDLE = history(900, a=still(base=10, end=10))


def test_a_queue_that_keeps_up_is_ok() -> None:
    assert judged(BUSY) is Status.OK
    assert judged(IDLE) is Status.OK


def test_old_data_is_no_answer_and_above_all_no_zero() -> None:
    """The broker is down: the last numbers stand, and are told to be old."""
    assert judged(BUSY, now=NOW + 15) is Status.OK
    assert judged(BUSY, now=NOW + 15.1) is Status.UNKNOWN
    assert judged(BUSY, now=NOW + 60, interval_s=30.0) is Status.OK


def test_a_topic_that_is_gone_is_unknown() -> None:
    assert judged(deque()) is Status.UNKNOWN
    assert judged(deque([Sample(NOW, {})])) is Status.UNKNOWN


def test_a_paused_queue_is_paused_whatever_stands_still_in_it() -> None:
    assert judged(STUCK, paused=True, members=False) is Status.PAUSED


def test_a_resumed_queue_does_not_count_as_stalled_at_once() -> None:
    assert judged(STUCK, disturbed_at=NOW - 29) is Status.OK
    assert judged(STUCK, disturbed_at=NOW - 30) is Status.STALLED


def test_deleted_jobs_and_a_truncated_log_are_a_loss() -> None:
    assert judged(history(60, a=still(base=10, end=500, start=11))) is Status.LOSS
    assert judged(history(60, a=still(base=510, end=500))) is Status.LOSS


def test_a_backlog_next_to_where_retention_deletes_is_at_risk() -> None:
    near = history(55, a=still(base=1010, end=2000, start=1000))
    assert judged(near, keeps_all=False) is Status.RETENTION_RISK
    assert judged(near) is Status.OK
    assert judged(history(55, a=still(base=10, end=1000)), keeps_all=False) is Status.OK


def test_waiting_jobs_that_nobody_can_take_have_no_consumer() -> None:
    assert judged(BUSY, members=False) is Status.NO_CONSUMER
    assert judged(BUSY, unassigned=frozenset("a")) is Status.NO_CONSUMER
    assert judged(IDLE, members=False) is Status.OK
    assert judged(STUCK, unassigned=frozenset("x"), running=frozenset("a")) is not Status.NO_CONSUMER


def test_while_the_group_moves_partitions_nobody_is_missing() -> None:
    assert judged(BUSY, members=False, disturbed_at=NOW - 5) is Status.OK


def test_an_open_transaction_that_hides_jobs_for_five_minutes_is_stuck() -> None:
    hidden = {"base": 100, "end": 100, "high": 105}
    assert judged(history(300, a=still(**hidden))) is Status.LSO_STUCK
    assert judged(history(295, a=still(**hidden))) is Status.OK
    assert (
        judged(history(300, a=lambda t: Position(base=100, end=100, high=105 if t > 10 else 100)))
        is Status.OK
    )
    assert (
        judged(history(300, a=lambda t: Position(base=100 + int(t), end=100 + int(t), high=500))) is Status.OK
    )


def test_a_group_whose_commit_fell_is_rewound_until_it_has_recovered() -> None:
    fell = history(120, a=lambda t: Position(base=5000 if t < 60 else 1000 + round(20 * (t - 60)), end=9000))
    assert judged(fell) is Status.REWOUND
    recovered = history(
        120, a=lambda t: Position(base=5000 if t < 60 else 1000 + round(70 * (t - 60)), end=9000)
    )
    assert judged(recovered) is Status.OK


def test_a_recreated_topic_is_not_rewound() -> None:
    anew = history(
        120,
        a=lambda t: Position(
            base=5000 if t < 60 else round(t), end=5000 if t < 60 else round(t), topic_id=b"%d" % (t < 60)
        ),
    )
    assert judged(anew) is Status.OK


def test_a_long_job_at_the_head_is_no_stall() -> None:
    assert judged(STUCK, running=frozenset("a")) is Status.LONG_RUNNING
    head = history(120, a=lambda t: Position(base=10, end=500, finished=round(t)))
    assert judged(head, running=frozenset("a")) is Status.LONG_RUNNING


def test_a_backlog_that_stands_still_for_a_minute_is_stalled_whatever_the_heartbeats_say() -> None:
    assert judged(STUCK) is Status.STALLED
    assert judged(history(55, a=still(base=10, end=20))) is Status.OK
    assert judged(history(60, a=still(base=10, end=20))) is Status.STALLED
    assert judged(history(60, a=still(base=10, end=20)), commit_s=30.0) is Status.OK


def test_a_long_job_on_one_partition_does_not_hide_a_stall_on_another() -> None:
    both = history(120, a=still(base=10, end=20), b=still(base=5, end=9))
    assert judged(both, running=frozenset("a")) is Status.STALLED


def test_jobs_that_finish_behind_a_head_are_no_stall() -> None:
    assert judged(history(120, a=lambda t: Position(base=10, end=500, finished=round(t)))) is Status.OK


def test_a_partition_that_was_idle_is_not_stalled_when_its_first_job_arrives() -> None:
    assert judged(history(900, a=lambda t: Position(base=10, end=11 if t >= 890 else 10))) is Status.OK


def test_a_backlog_that_grows_is_falling_behind() -> None:
    assert judged(history(900, a=flow(10, 8))) is Status.FALLING_BEHIND


# --- a line to draw -----------------------------------------------------------------------------------------


def test_a_chart_has_as_many_points_as_asked_for_and_tells_gaps() -> None:
    found = series(disturbed(lambda p: moved(p, by=50_000, topic_id=b"2222")), points=12)
    assert found.at[-1] == NOW
    assert {len(column) for column in found} == {12}
    assert found.growth.count(None) == found.arrived.count(None) == found.done.count(None) == 1
    assert set(found.growth) == {None, 4.0}
    assert found.pending[-1] == 1240


def test_a_chart_gathers_what_is_finer_than_its_points() -> None:
    found = series(history(900, a=flow(10, 8)), points=10)
    assert found.at == [NOW - 810 + 90 * n for n in range(10)]
    assert found.growth == [2.0] * 10
    assert found.arrived == [10.0] * 10


def test_a_chart_of_one_sample_is_empty() -> None:
    assert series([]).at == series(history(0, a=flow(1, 1))).at == series([Sample(NOW, {})] * 3).at == []


def test_a_chart_shows_where_the_monitor_slept() -> None:
    samples = [Sample(NOW + t, {0: Position(base=0, end=int(t))}) for t in (0, 10, 20, 90, 100)]
    found = series(samples, points=4)
    assert found.pending == [20, None, None, 100]


@given(st.lists(st.tuples(st.floats(-5, 100), st.integers(0, 50)), max_size=30), st.integers(1, 20))
def test_depths_are_those_of_the_series(steps: list[tuple[float, int]], points: int) -> None:
    at, samples = NOW, []
    for seconds, end in steps:
        at += seconds
        samples.append(Sample(at, {"a": Position(base=0, end=end)}))

    assert depths(samples, points) == series(samples, points).pending


def test_depths_are_told_without_comparing_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """*Bites*: a hundred queues watched for half an hour; drawing their lines took longer than the two seconds between two looks."""
    monkeypatch.setattr("streamjobs.core.lag._comparable", lambda *_: pytest.fail("rates are not asked for"))

    assert depths(history(900, a=flow(10, 8)), 3) == [600, 1200, 1800]
