"""Durations as text, in and out; and instants, out."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.duration import instant, seconds, text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 250ms ", 0.25),
        ("7d", 604_800),
        ("1.5h", 5400),
        ("2d3h4m5s6ms", 183_845.006),
        ("0s", 0),
        ("25", 25),
        (25, 25),
        (0.5, 0.5),
        (timedelta(minutes=2, milliseconds=5), 120.005),
    ],
)
def test_a_duration_is_read_in_seconds(written: str, meant: float) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "s",
        "10 apples",
        "10M",
        "-5s",
        "1m1h",
        "5s5s",
        "1e3s",
        "٣s",
        "inf",
        "nan",
        "1:30",
        "9" * 400 + "s",
    ],
)
def test_text_that_is_no_duration_is_refused_with_what_is_allowed(written: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write a number with its unit, such as '250ms'"):
        seconds(written)


@pytest.mark.parametrize(
    "value", [True, None, b"5s", -1, -0.5, float("inf"), float("nan"), 10**400, timedelta(seconds=-1)]
)
def test_values_that_are_no_duration_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "written"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (60, "1m"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (604_800, "7d"),
        (-5, "-5s"),
        (1e-9, "0s"),
    ],
)
def test_a_duration_is_printed_as_people_write_it(length: float, written: str) -> None:
    assert text(length) == written


@given(st.integers(0, 400 * 86_400_000))
def test_what_is_printed_is_read_back_to_the_millisecond(ms: int) -> None:
    assert round(seconds(text(ms / 1000)) * 1000) == ms


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (1_780_000_000.25, "2026-05-28T20:26:40.250Z"),
        (1_795_995_410.22, "2026-11-29T23:36:50.220Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (999_999_999_999.999, "9999-12-31T23:59:59.000Z"),
        (9.3e15, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_instants(at: float, shown: str) -> None:
    assert instant(at) == shown
