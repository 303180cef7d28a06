"""Who is a suspect, and who is convicted."""

from __future__ import annotations

import pytest

from streamjobs.core.assignment import Beginning
from streamjobs.core.control import Desired, Suspect, suspect_key, suspect_value
from streamjobs.core.poison import CROWD, SKEW_S, STRIKES, convicted, in_crowd, open_strikes


def ordered(strikes: int, appended: float = 100.0) -> Suspect | None:
    desired = Desired()
    value = suspect_value(run=1, strikes=strikes, actor="w", reason="", at=appended)
    desired.apply(suspect_key("g", "jobs.a", 0, 7), value, 0, appended)
    return desired.suspect("g", "jobs.a", 0, 7)


@pytest.mark.parametrize(
    ("charged", "order", "crowd", "strikes"),
    [
        (0, None, False, None),  # as nearly all jobs are
        (0, None, True, 0),
        (1, None, False, 1),  # its record carries a death of an earlier run
        (0, ordered(0), False, 0),  # it ran when its worker died
        (0, ordered(2), False, 2),  # charged before starts that nobody saw the end of
        (2, ordered(0), False, 2),
        (1, ordered(2), True, 2),
    ],
)
def test_open_strikes(charged: int, order: Suspect | None, crowd: bool, strikes: int | None) -> None:
    assert open_strikes(charged, order, 50.0, crowd=crowd) == strikes


def test_an_order_about_an_earlier_record_is_none() -> None:
    """The topic was made anew: what stands at this offset now was appended after the order."""
    assert open_strikes(0, ordered(3, appended=100.0), 100.5 + SKEW_S, crowd=False) is None
    assert open_strikes(0, ordered(3, appended=100.0), 100.0 + SKEW_S, crowd=False) == 3


def test_three_convict() -> None:
    assert [convicted(n) for n in range(STRIKES + 1)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("takeovers", "base", "counted", "suspect"),
    [(2, 10, 0, False), (3, 10, 0, True), (4, 10, CROWD - 1, True), (3, 10, CROWD, False), (3, 11, 0, False)],
)
def test_a_crowd_is_under_suspicion_until_the_base_moves(takeovers: int, base: int, counted: int, suspect: bool) -> None:
    assert in_crowd(Beginning(10, takeovers=takeovers), base, counted) == suspect
