"""Backoff and retry policies: bounds, determinism, and how long the defaults really try."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.retry import MAX_ATTEMPTS, Backoff, Retry
from streamjobs.errors import JobTypeError

ORIGIN = "jobs.invoices@1f2e3d4c/3/70012"
attempts = st.integers(1, 2_000_000)
origins = st.text(max_size=40)


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    waits = tuple(draw(st.lists(st.floats(0, 10_000), min_size=1, max_size=5)))
    factor = draw(st.floats(1, 100))
    return Backoff(waits, factor, draw(st.floats(max(waits), 1_000_000)), draw(st.floats(0, 1)))


@given(backoffs(), attempts, origins)
def test_a_wait_lies_between_nothing_and_the_cap_even_with_jitter(
    backoff: Backoff, attempt: int, origin: str
) -> None:
    assert 0 <= backoff.delay(attempt, origin) <= backoff.max_s


@given(backoffs(), attempts, origins)
def test_a_wait_is_the_same_wherever_and_whenever_it_is_asked_for(
    backoff: Backoff, attempt: int, origin: str
) -> None:
    again = pickle.loads(pickle.dumps(backoff))
    assert backoff.delay(attempt, origin) == again.delay(attempt, origin)


def test_jitter_does_not_depend_on_the_interpreter() -> None:
    """`hash()` of text differs from process to process: a redelivered job would get another wait."""
    waits = [round(Backoff.exponential().delay(attempt, ORIGIN), 6) for attempt in (1, 2, 11)]
    assert waits == [5.589801, 10.504471, 2826.973648]


@given(st.floats(0, 100), st.floats(1, 100), st.integers(1, 5_000), origins)
def test_without_jitter_waits_never_get_shorter(
    first: float, factor: float, attempt: int, origin: str
) -> None:
    backoff = Backoff((first,), factor, 3600)
    assert backoff.delay(attempt, origin) <= backoff.delay(attempt + 1, origin)


@given(backoffs(), attempts, origins)
def test_jitter_keeps_within_its_share_of_the_wait(backoff: Backoff, attempt: int, origin: str) -> None:
    plain = Backoff(backoff.waits_s, backoff.factor, backoff.max_s).delay(attempt, origin)
    assert abs(backoff.delay(attempt, origin) - plain) <= plain * backoff.jitter + 1e-9 * (1 + plain)


def test_jitter_spreads_a_thousand_neighbours_evenly() -> None:
    """A thousand jobs that fail together must not come back together, not even those that wait at the cap."""
    waits = [Backoff.exponential().delay(14, f"jobs.q@00000000/0/{offset}") for offset in range(1000)]
    tenths = [sum(2700 + 90 * n <= wait < 2790 + 90 * n for wait in waits) for n in range(10)]
    assert sum(tenths) == 1000
    assert all(60 <= count <= 140 for count in tenths)


def test_the_defaults_try_for_about_five_hours() -> None:
    """5 s doubling to 1 h, 14 waits: 5 h 25 min without jitter; with it from 4 to 5.8 hours, on average just
    under 5."""
    hours = [total_wait(Retry(), f"jobs.q@00000000/0/{offset}") / 3600 for offset in range(500)]
    assert total_wait(Retry(backoff=Backoff.exponential(jitter=0)), ORIGIN) == 19_515
    assert 4.0 <= min(hours) and max(hours) <= 5.8
    assert 4.85 <= sum(hours) / len(hours) <= 5.0


def total_wait(retry: Retry, origin: str) -> float:
    return sum(retry.delay(attempt, origin) or 0 for attempt in range(1, retry.attempts))


def test_exponential_doubles_up_to_its_cap() -> None:
    backoff = Backoff.exponential("5s", max="1m", jitter=0)
    assert [backoff.delay(n, ORIGIN) for n in range(1, 7)] == [5, 10, 20, 40, 60, 60]


def test_fixed_and_steps_wait_exactly_what_they_say() -> None:
    assert [Backoff.fixed("30s").delay(n, ORIGIN) for n in (1, 2, 900)] == [30, 30, 30]
    steps = Backoff.steps("1s", "1m", "10m", "2s")
    assert [steps.delay(n, ORIGIN) for n in (1, 2, 3, 4, 5)] == [1, 60, 600, 2, 2]


def test_an_attempt_beyond_all_floats_waits_the_cap() -> None:
    assert Backoff.exponential(jitter=0).delay(1_000_000, ORIGIN) == 3600
    assert Backoff.exponential("0s", jitter=0).delay(1_000_000, ORIGIN) == 0


def test_a_capped_backoff_waits_no_longer_than_the_cap() -> None:
    capped = Backoff.steps("1s", "10m").capped("1m")
    assert [capped.delay(n, ORIGIN) for n in (1, 2, 3)] == [1, 60, 60]
    assert Backoff.exponential().capped("1m").delay(14, ORIGIN) <= 60
    assert Backoff.fixed("5s").capped("1m") == Backoff.fixed("5s")


def test_the_last_attempt_has_no_wait_after_it() -> None:
    retry = Retry(attempts=3, backoff=Backoff.fixed("1s"))
    assert [retry.delay(n, ORIGIN) for n in (1, 2, 3, 4)] == [1, 1, None, None]
    assert Retry(attempts=1).delay(1, ORIGIN) is None


def test_policies_are_values() -> None:
    assert Retry() == Retry()
    assert len({Retry(), Retry(attempts=15)}) == 1
    with pytest.raises(FrozenInstanceError):
        Retry().attempts = 3  # type: ignore[misc]


@pytest.mark.parametrize("attempts", [0, -1, MAX_ATTEMPTS + 1, 2.5, "3", True, None])
def test_attempts_that_make_no_sense_are_refused(attempts: object) -> None:
    with pytest.raises(JobTypeError, match="attempts is"):
        Retry(attempts=attempts)  # type: ignore[arg-type]


def test_a_backoff_that_is_none_is_refused() -> None:
    with pytest.raises(JobTypeError, match=r"make one with Backoff\.exponential"):
        Retry(backoff="5s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Backoff.steps(), "without a wait"),
        (lambda: Backoff.fixed("soon"), "a backoff's wait: 'soon' is not a duration"),
        (lambda: Backoff.fixed("400d"), "between 0s and 365d"),
        (lambda: Backoff.exponential("5s", factor=0.5), "factor is 0.5"),
        (lambda: Backoff.exponential("5s", factor=float("nan")), "factor is nan"),
        (lambda: Backoff.exponential("5s", jitter=1.5), "jitter is 1.5"),
        (lambda: Backoff.exponential("5s", max="1s"), "max is 1.0 seconds"),
        (lambda: Backoff.exponential("5s", max="366d"), "nor longer than 365d"),
        (lambda: Backoff((float("nan"),)), "between 0s and 365d"),
    ],
)
def test_waits_that_make_no_sense_are_refused(make: object, why: str) -> None:
    with pytest.raises(JobTypeError, match=why):
        make()  # type: ignore[operator]
