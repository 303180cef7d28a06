"""When a member and its coordinator have lost each other."""

from __future__ import annotations

import pytest

from streamjobs.core.membership import Held, Partitions, Sight, astray


def of(*numbers: int) -> Partitions:
    return frozenset(("t", number) for number in numbers)


def sight(held: Partitions, assigned: Partitions, target: Partitions, epochs: int = 4) -> Sight:
    return Sight(Held("m", epochs, held), assigned, target)


@pytest.mark.parametrize(
    ("held", "assigned", "target", "lost"),
    [
        pytest.param(of(0, 1), of(0, 1), of(0, 1), False, id="all is well"),
        pytest.param(of(0, 1), of(0, 1), of(0, 1, 2), False, id="another member has not given up the rest"),
        pytest.param(of(), of(), of(), False, id="there is nothing for it"),
        pytest.param(of(0, 1), of(0, 1), of(0), True, id="it has not heard that it should give one up"),
        pytest.param(of(0, 1), of(0, 1, 2), of(0, 1, 2), True, id="it has not heard of what it was given"),
        pytest.param(of(), of(0), of(0), True, id="it holds nothing of what it was given"),
        pytest.param(of(0, 1), of(0), of(0), True, id="it has not given up what it was to"),
    ],
)
def test_what_both_sides_say_twice(held: Partitions, assigned: Partitions, target: Partitions, lost: bool) -> None:
    now = sight(held, assigned, target)
    assert astray(now, now) is lost


def test_something_has_moved() -> None:
    lost = sight(of(0, 1), of(0, 1), of(0))
    assert astray(lost, lost)
    for before in (
        None,
        sight(of(0, 1), of(0, 1), of(0), epochs=3),
        sight(of(0, 1, 2), of(0, 1), of(0)),
        sight(of(0, 1), of(0, 1, 2), of(0)),
        sight(of(0, 1), of(0, 1), of(1)),
    ):
        assert not astray(before, lost)
    assert not astray(lost, None)
