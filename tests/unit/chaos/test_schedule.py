"""Which fault comes when."""

from __future__ import annotations

from itertools import pairwise

from tests.chaos.schedule import KINDS, kinds_for, plan


def test_the_same_seed_gives_the_same_schedule() -> None:
    names = kinds_for(["worker", "broker"])

    assert plan(7, 600, names) == plan(7, 600, names)
    assert plan(7, 600, names) != plan(8, 600, names)


def test_every_kind_comes_early_and_none_after_the_end() -> None:
    names = kinds_for(["worker", "broker", "network"])
    acts = plan(3, 300, names)

    assert {act.name for act in acts[: len(names)]} == set(names)
    assert all(first.at_s < second.at_s for first, second in pairwise(acts))
    assert acts[-1].at_s <= 297
    assert all(KINDS[act.name].shortest_s <= act.lasts_s <= KINDS[act.name].longest_s for act in acts)


def test_only_what_can_be_done_is_planned() -> None:
    assert "cut-network" not in kinds_for(["worker", "broker"])
    assert "lose-broker" in kinds_for(["worker", "three brokers"])
    assert plan(1, 600, []) == []
