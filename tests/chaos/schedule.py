"""Which fault comes when. Pure: the same seed, length and kinds of faults give the same schedule."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Needs = Literal["worker", "broker", "three brokers", "network"]

#: Nothing happens before all workers have joined, nor in the last seconds.
FIRST_S, LAST_S = 4.0, 3.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what it needs, how often it comes in one round of the deck, and how long it lasts in seconds."""

    needs: Needs
    share: int
    shortest_s: float
    longest_s: float


#: The session timeout is 6 s: a freeze outlasts it, a blink does not.
KINDS: Mapping[str, Kind] = {
    "kill-worker": Kind("worker", 3, 0.5, 6),
    "kill-process": Kind("worker", 2, 0, 0),
    "kill-supervisor": Kind("worker", 1, 0.5, 3),
    "freeze-worker": Kind("worker", 2, 8, 13),
    "blink-worker": Kind("worker", 1, 0.3, 4),
    "term-worker": Kind("worker", 2, 0.5, 6),
    "add-worker": Kind("worker", 2, 0, 0),
    "remove-worker": Kind("worker", 2, 0, 0),
    "cut-network": Kind("network", 2, 3, 14),
    "restart-broker": Kind("broker", 1, 0, 3),
    "kill-broker": Kind("broker", 1, 0, 4),
    "freeze-broker": Kind("broker", 1, 2, 8),
    "lose-broker": Kind("three brokers", 2, 5, 20),
    "freeze-leader": Kind("three brokers", 1, 3, 15),
    "move-leaders": Kind("three brokers", 2, 1, 5),
}


@dataclass(frozen=True, slots=True)
class Act:
    """One fault to come. `pick` (0 … 1) chooses whom it hits among those who are there then."""

    at_s: float
    name: str
    pick: float
    lasts_s: float


def kinds_for(able: Iterable[Needs]) -> list[str]:
    """The faults that can be made here."""
    can = set(able)
    return [name for name, kind in KINDS.items() if kind.needs in can]


def plan(seed: int, seconds: float, names: Iterable[str], pause_s: tuple[float, float] = (1.5, 7.0)) -> list[Act]:
    """Faults for a run of that length, none after its end; every kind comes before any comes more often than its share."""
    rng = random.Random(seed)
    acts: list[Act] = []
    at_s = FIRST_S
    for name in _deck(rng, list(names)):
        kind = KINDS[name]
        act = Act(round(at_s, 2), name, round(rng.random(), 4), round(rng.uniform(kind.shortest_s, kind.longest_s), 2))
        at_s += rng.uniform(*pause_s)
        if act.at_s > seconds - LAST_S:
            return acts
        acts.append(act)
    return acts


def _deck(rng: random.Random, names: list[str]) -> Iterator[str]:
    """All kinds once in some order, then again and again as often as their shares say."""
    first = list(names)
    rng.shuffle(first)
    yield from first
    while names:
        cards = [name for name in names for _ in range(KINDS[name].share)]
        rng.shuffle(cards)
        yield from cards
