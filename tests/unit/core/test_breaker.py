"""The breaker: when it opens, tries and closes."""

from __future__ import annotations

from streamjobs.core.breaker import FIRST_WAIT_S, LONGEST_WAIT_S, Breaker


def test_twenty_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    breaker.ended([True] * 19 + [False] + [True] * 19, now=0.0)
    assert breaker.state == "closed"
    breaker.ended([True], now=0.0)
    assert breaker.state == "open"


def test_more_than_half_of_two_hundred_open_it() -> None:
    """Failures that never come in a row still open it: 100 of the last 200 do not, 101 do."""
    breaker = Breaker()
    breaker.ended([True, False] * 200, now=0.0)
    assert breaker.state == "closed"
    breaker.ended([True, True], now=0.0)
    assert breaker.state == "open"


def test_one_probe_closes_it_or_doubles_the_wait() -> None:
    breaker = Breaker()
    breaker.ended([True] * 20, now=0.0)
    assert not breaker.wants_probe(FIRST_WAIT_S - 0.1)
    assert breaker.wants_probe(FIRST_WAIT_S)
    assert not breaker.wants_probe(FIRST_WAIT_S + 0.1), "one probe at a time"
    breaker.ended([True], now=31.0)
    assert (breaker.state, breaker.wait_s) == ("open", 2 * FIRST_WAIT_S)
    assert breaker.wants_probe(31.0 + 60.0)
    breaker.ended([False], now=92.0)
    assert (breaker.state, breaker.wait_s) == ("closed", FIRST_WAIT_S)


def test_the_wait_ends_at_five_minutes() -> None:
    breaker = Breaker()
    breaker.ended([True] * 20, now=0.0)
    for _ in range(10):
        assert breaker.wants_probe(breaker.changes_at)
        breaker.ended([True], now=breaker.changes_at)
    assert breaker.wait_s == LONGEST_WAIT_S


def test_a_probe_whose_end_never_comes_is_given_up() -> None:
    """Its partition left while it ran: after the same wait another job may try."""
    breaker = Breaker()
    breaker.ended([True] * 20, now=0.0)
    assert breaker.wants_probe(30.0)
    assert not breaker.wants_probe(59.0)
    assert breaker.wants_probe(60.0)
