"""Looks at a process's members of groups from their coordinators' side (`core/membership.py`), in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from streamjobs.broker import Admin, Group
from streamjobs.core.membership import Sight, astray
from streamjobs.errors import BrokerError
from streamjobs.worker.poll import Poller

#: A member that was sent to join anew, and has not agreed with its group since, is left alone for more and more looks, so many at most:
#: to join anew costs the group a rebalance, and what it has not mended once it hardly mends the next time.
LOOKS_OF_REST = 15


class Memberships:
    """`look` now and then; a poller that its coordinator has lost is told so."""

    def __init__(self, admin: Admin, pollers: Sequence[Poller]) -> None:
        self._admin = admin
        self._members = [_Member(poller) for poller in pollers]

    def look(self) -> None:
        """Raises BrokerError if it could not see all of them: a group that can't be described says nothing of the others."""
        failed = None
        for member in self._members:
            try:
                member.look(self._admin)
            except BrokerError as error:
                failed = error
        if failed is not None:
            raise failed


class _Member:
    """A poller, as it was seen at the last look."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._seen: Sight | None = None
        self._sent = 0  # so often was it sent to join anew since it last agreed with its group
        self._rest = 0  # so many looks is it left alone

    def look(self, admin: Admin) -> None:
        before, self._seen = self._seen, None
        try:
            group = admin.groups([self._poller.group])[self._poller.group]
            self._seen = _sight(self._poller, group)
        finally:
            self._poller.asked += 1
        if self._seen is not None:
            self._judge(before, self._seen)

    def _judge(self, before: Sight | None, now: Sight) -> None:
        if now.agrees:
            self._sent = self._rest = 0
        elif self._rest:
            self._rest -= 1
        elif astray(before, now):
            self._sent += 1
            self._rest = min(LOOKS_OF_REST, 2**self._sent)
            self._poller.astray.put(now)


def _sight(poller: Poller, group: Group) -> Sight | None:
    """None: it has not answered since the last look, or the coordinator does not know it."""
    answer, held = poller.held
    member = next((member for member in group.members if member.id == held.member), None)
    if answer != poller.asked or member is None or member.target is None:
        return None
    return Sight(held, frozenset(member.assignment), frozenset(member.target))
