"""A member that its coordinator has lost leaves the group and joins it anew (`core/membership.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import Group, Member
from streamjobs.errors import BrokerError
from streamjobs.testing.app import Testing
from streamjobs.worker.membership import LOOKS_OF_REST, Memberships

OnMemory = Callable[[App], Testing]


class Coordinator:
    """What the broker says of groups, but that each member should hold one partition less than it does, while `lost`."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin
        self.lost = True
        self.classic = False

    def groups(self, names: Any) -> dict[str, Group]:
        return {name: self._told(group) for name, group in self._admin.groups(names).items()}

    def _told(self, group: Group) -> Group:
        return replace(group, members=tuple(replace(member, target=self._target(member)) for member in group.members))

    def _target(self, member: Member) -> Any:
        return None if self.classic else member.target[1:] if self.lost and member.target else member.target


@pytest.fixture
def world(on_memory: OnMemory) -> tuple[Testing, Any, Coordinator, Memberships]:
    app = App("shop", partitions=3)

    @app.job(name="count", queue="mails")
    def count(n: int) -> None: ...

    t = on_memory(app)
    poller = t.process.loops[0].poller
    coordinator = Coordinator(t.broker.admin())
    turn(t)
    return t, poller, coordinator, Memberships(coordinator, [poller])  # type: ignore[arg-type]


def turn(t: Testing) -> None:
    """Long enough for a tick, and for what it asks of the consumer."""
    for _ in range(2):
        t.run(through_delays=False)
        t.advance(0.6)
    t.run(through_delays=False)


def look(t: Testing, memberships: Memberships, times: int) -> None:
    for _ in range(times):
        memberships.look()
        turn(t)


def test_it_joins_anew_when_two_looks_in_a_row_show_the_same(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    t, poller, coordinator, memberships = world
    before = poller.consumer.member_id()
    look(t, memberships, 2)
    assert poller.consumer.member_id() == before  # at the first one nobody had asked it yet
    look(t, memberships, 1)
    assert poller.consumer.member_id() != before
    assert "leaving the group to join it anew" in caplog.text
    assert len(poller.partitions) == 3

    coordinator.lost = False
    after = poller.consumer.member_id()
    look(t, memberships, 4)
    assert poller.consumer.member_id() == after


@pytest.mark.parametrize("change", ["well", "classic", "silent", "moved"])
def test_it_stays_otherwise(world: Any, change: str) -> None:
    t, poller, coordinator, memberships = world
    before = poller.consumer.member_id()
    coordinator.lost = change != "well"
    coordinator.classic = change == "classic"
    for _ in range(4):
        memberships.look()
        if change != "silent":  # it may be giving partitions up just now
            turn(t)
        if change == "moved":
            poller._epochs += 1
    turn(t)
    assert poller.consumer.member_id() == before


def test_it_does_not_leave_again_and_again(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What joining anew has not mended once: a difference that stays costs the group no rebalance every minute."""
    t, _, coordinator, memberships = world

    def leaves(looks: int) -> list[int]:
        """After how many looks it left, and then again, and again."""
        at, before = [], len(caplog.messages)
        for number in range(looks):
            look(t, memberships, 1)
            if len(caplog.messages) > before:
                before = len(caplog.messages)
                at.append(number)
        return [later - earlier for earlier, later in itertools.pairwise(at)]

    pauses = leaves(80)
    assert pauses == sorted(pauses) and pauses[0] < 5
    assert pauses[-1] == pauses[-2] == LOOKS_OF_REST + 2
    coordinator.lost = False
    look(t, memberships, 2)
    coordinator.lost = True
    assert leaves(12)[0] < 5


def test_a_look_that_fails_counts_for_nothing(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    t, poller, coordinator, memberships = world
    before = poller.consumer.member_id()
    look(t, memberships, 2)
    with monkeypatch.context() as context:
        context.setattr(coordinator, "groups", lambda _: (_ for _ in ()).throw(BrokerError("_TIMED_OUT", "no answer", retriable=True)))
        with pytest.raises(BrokerError):
            memberships.look()
    turn(t)
    look(t, memberships, 1)
    assert poller.consumer.member_id() == before
    look(t, memberships, 1)
    assert poller.consumer.member_id() != before


def test_a_group_that_cannot_be_described_hides_no_other(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retry topics' group asked first, by a coordinator that does not answer."""
    t, poller, coordinator, _ = world
    before, groups = poller.consumer.member_id(), coordinator.groups

    def partly(names: Any) -> Any:
        if poller.group not in names:
            raise BrokerError("_TIMED_OUT", "no answer", retriable=True)
        return groups(names)

    monkeypatch.setattr(coordinator, "groups", partly)
    memberships = Memberships(coordinator, [t.process.loops[1].poller, poller])  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(BrokerError):
            memberships.look()
        turn(t)
    assert poller.consumer.member_id() != before


def test_what_was_found_of_an_earlier_state_is_not_acted_on(world: Any) -> None:
    """It was giving partitions up in the same moment."""
    t, poller, _, memberships = world
    look(t, memberships, 2)
    memberships.look()
    assert not poller.astray.empty()
    poller._epochs += 1
    before = poller.consumer.member_id()
    turn(t)
    assert poller.astray.empty() and poller.consumer.member_id() == before
