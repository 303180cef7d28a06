"""Whether a member of a group and its coordinator have lost each other.

Under KIP-848 a coordinator says what a member should hold once, in the answer to a heartbeat. *Bites* (measured, librdkafka 2.16): that
answer comes late, for a broker that stood still for more than a heartbeat; the client takes the heartbeat for lost, sends it again, and
is told that all is well. Now the coordinator waits for partitions to be given up by one who has not heard of it, and gives that member
no others: for five minutes nobody reads these. Or it has given what nobody knows of, and they wait until the group next changes.

It shows in what both sides say: twice, some time apart, with nothing moved in between. Who finds that leaves the group and joins anew.
"""

from __future__ import annotations

from dataclasses import dataclass

Partitions = frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Held:
    """What a member says: its id, how many epochs of partitions it has begun, and what it holds."""

    member: str
    epochs: int
    partitions: Partitions


@dataclass(frozen=True, slots=True)
class Sight:
    """A member as it says itself, and as its coordinator says at about that time: what it has, and what it should have."""

    held: Held
    assigned: Partitions
    target: Partitions

    @property
    def agrees(self) -> bool:
        """A target that holds more is no sign: the rest may be another member's still."""
        return self.assigned == self.held.partitions and self.held.partitions <= self.target


def astray(before: Sight | None, now: Sight | None) -> bool:
    """Of two sights in a row, longer apart than heartbeats, whose members spoke after the look before; None: it did not, or is unknown."""
    return now is not None and before == now and not now.agrees
