"""Looks at a process's members of groups from their coordinators' side (`core/membership.py`), in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from streamjobs.broker import Admin, Group
from streamjobs.core.membership import Sight, astray
from streamjobs.worker.poll import Poller

#: A member that was sent to join anew is left alone for so many looks, though it look astray again: to join anew costs its group a
#: rebalance, and what it has not mended once it hardly mends the next time.
LOOKS_OF_REST = 15


class Memberships:
    """`look` now and then; a poller that its coordinator has lost is told so."""

    def __init__(self, admin: Admin, pollers: Sequence[Poller]) -> None:
        self._admin = admin
        self._pollers = pollers
        self._before: dict[Poller, Sight | None] = {}
        self._rest: dict[Poller, int] = {}

    def look(self) -> None:
        """Raises BrokerError."""
        before, self._before = self._before, {}
        try:
            groups = self._admin.groups([poller.group for poller in self._pollers])
            self._before = {poller: _sight(poller, groups[poller.group]) for poller in self._pollers}
        finally:
            for poller in self._pollers:
                poller.asked += 1
        for poller, now in self._before.items():
            rest = self._rest[poller] = max(0, self._rest.get(poller, 0) - 1)
            if now is not None and astray(before.get(poller), now) and not rest:
                self._rest[poller] = LOOKS_OF_REST
                poller.astray.put(now)


def _sight(poller: Poller, group: Group) -> Sight | None:
    """None: it has not answered since the last look, or the coordinator does not know it."""
    answer, held = poller.held
    member = next((member for member in group.members if member.id == held.member), None)
    if answer != poller.asked or member is None or member.target is None:
        return None
    return Sight(held, frozenset(member.assignment), frozenset(member.target))
