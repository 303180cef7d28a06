"""Looks at a process's members of groups from their coordinators' side (`core/membership.py`), in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from streamjobs.broker import Admin, Group
from streamjobs.core.membership import Sight, astray
from streamjobs.worker.poll import Poller


class Memberships:
    """`look` now and then; a poller that its coordinator has lost is told so."""

    def __init__(self, admin: Admin, pollers: Sequence[Poller]) -> None:
        self._admin = admin
        self._pollers = pollers
        self._before: list[Sight | None] = [None] * len(pollers)

    def look(self) -> None:
        """Raises BrokerError."""
        groups = self._admin.groups([poller.group for poller in self._pollers])
        for number, poller in enumerate(self._pollers):
            before, now = self._before[number], _sight(poller, groups[poller.group])
            lost = astray(before, now)
            if lost and now is not None:
                poller.astray.put(now)
            self._before[number] = None if lost else now
            poller.asked += 1


def _sight(poller: Poller, group: Group) -> Sight | None:
    """None: it has not answered since the last look, or the coordinator does not know it."""
    answer, held = poller.held
    member = next((member for member in group.members if member.id == held.member), None)
    if answer != poller.asked or member is None or group.protocol != "consumer":
        return None
    return Sight(held, frozenset(member.assignment), frozenset(member.target))
