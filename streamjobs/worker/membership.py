"""Looks at a process's members of groups from their coordinators' side (`core/membership.py`), in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from streamjobs.broker import Admin, Group
from streamjobs.core.membership import Sight, astray
from streamjobs.worker.poll import Poller

#: A member that was sent to join anew, and has not agreed with its group since, is left alone for more and more looks, so many at most:
#: to join anew costs the group a rebalance, and what it has not mended once it hardly mends the next time.
LOOKS_OF_REST = 15


class Memberships:
    """`look` now and then; a poller that its coordinator has lost is told so."""

    def __init__(self, admin: Admin, pollers: Sequence[Poller]) -> None:
        self._admin = admin
        self._pollers = pollers
        self._before: dict[Poller, Sight | None] = {}
        self._sent: dict[Poller, int] = {}
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
            if now is not None:
                self._judge(poller, before.get(poller), now)

    def _judge(self, poller: Poller, before: Sight | None, now: Sight) -> None:
        if now.agrees:
            self._sent[poller] = self._rest[poller] = 0
        elif self._rest.get(poller):
            self._rest[poller] -= 1
        elif astray(before, now):
            self._sent[poller] = sent = self._sent.get(poller, 0) + 1
            self._rest[poller] = min(LOOKS_OF_REST, 2**sent)
            poller.astray.put(now)


def _sight(poller: Poller, group: Group) -> Sight | None:
    """None: it has not answered since the last look, or the coordinator does not know it."""
    answer, held = poller.held
    member = next((member for member in group.members if member.id == held.member), None)
    if answer != poller.asked or member is None or member.target is None:
        return None
    return Sight(held, frozenset(member.assignment), frozenset(member.target))
