"""What waits in memory: woken when it is due, unless its partition has left."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from streamjobs.core.dispatch import Partition
from streamjobs.testing.clock import ManualClock
from streamjobs.worker.sleepers import Sleepers, earliest


@dataclass
class Record:
    home: Partition
    name: str
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = self.home.epoch


class Asleep:
    """Records of one partition, and the names of those that were woken."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.home = Partition("jobs.mails", 0, "mails", retry=False, topic_id=b"", epoch=1, tracker=None)
        self.sleepers: Sleepers[Record] = Sleepers(self.clock)
        self.woken: list[str] = []

    def wait(self, name: str, seconds: float) -> None:
        self.sleepers.wake_at(self.clock.now() + seconds, Record(self.home, name), lambda record: self.woken.append(record.name))

    def after(self, seconds: float) -> int:
        self.clock.advance(seconds)
        return self.sleepers.wake()


@pytest.fixture
def asleep() -> Asleep:
    return Asleep()


def test_they_wake_in_the_order_in_which_they_are_due(asleep: Asleep) -> None:
    for name, seconds in (("third", 30), ("first", 10), ("second", 10)):
        asleep.wait(name, seconds)

    assert asleep.after(9.9) == 0
    assert asleep.after(0.1) == 2
    assert asleep.woken == ["first", "second"]
    assert asleep.sleepers.next_due() == asleep.clock.now() + 20
    assert asleep.after(20) == 1
    assert asleep.sleepers.next_due() is None


def test_what_was_read_before_its_partition_left_is_not_woken(asleep: Asleep) -> None:
    asleep.wait("read before", 10)
    asleep.home.epoch = 2
    asleep.wait("read again", 10)

    assert asleep.after(10) == 1
    assert asleep.woken == ["read again"]


def test_what_is_stale_takes_no_memory_until_it_is_due(asleep: Asleep) -> None:
    asleep.wait("read before", 3600)
    asleep.home.epoch = 2
    asleep.wait("read again", 7200)
    asleep.sleepers.forget_stale()

    assert [record.name for record in asleep.sleepers] == ["read again"]


def test_some_can_be_woken_early(asleep: Asleep) -> None:
    for name in ("other", "cancelled"):
        asleep.wait(name, 3600)
    asleep.sleepers.hasten(lambda record: record.name == "cancelled")

    assert asleep.after(0) == 1
    assert asleep.woken == ["cancelled"]


@pytest.mark.parametrize("then", ["wait", "wake"])
def test_a_clock_that_is_set_back_makes_nothing_wait_for_longer(asleep: Asleep, then: str) -> None:  # edge 49
    asleep.wait("read before", 10)
    asleep.clock.jump(-3600)
    if then == "wait":
        asleep.wait("read after", 20)

    assert asleep.after(10) == 1
    assert asleep.woken == ["read before"]


def test_the_earliest_is_of_those_that_come_at_all() -> None:
    assert earliest(None, 7.0, 0.0) == 0.0
    assert earliest(None, None) is None
