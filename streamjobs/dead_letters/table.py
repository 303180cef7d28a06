"""The table of one queue's dead letters in one group: where it lies, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from streamjobs import tables
from streamjobs.core.clock import Clock
from streamjobs.core.letters import Letter
from streamjobs.deployment import Deployment
from streamjobs.errors import UsageError
from streamjobs.job import JobType
from streamjobs.tables import Bounds


class Application(Deployment, Protocol):
    """What dead letters need to know of an app."""

    @property
    def job_types(self) -> Mapping[str, JobType[Any, Any]]: ...
    @property
    def clock(self) -> Clock: ...


@dataclass(frozen=True, slots=True)
class Table:
    """One compacted topic of letters."""

    app: Application
    queue: str
    group: str

    @property
    def topic(self) -> str:
        return self.app.names.dead(self.queue, self.group)

    def bounds(self) -> Bounds:
        """Where it starts and ends now, open transactions included. Raises UsageError if there is no such table, BrokerError."""
        found = tables.bounds(self.app.broker, self.topic)
        if not found:
            raise UsageError(f"there is no {self.topic}{self._instead()}")
        return found

    def letters(self, within: Bounds | None = None) -> Iterator[Letter]:
        """Every letter that stands on it, up to `within` (default: to its end as it is now), one at a time.

        In bounded memory, whatever it holds: see `tables.live`. Raises UsageError, BrokerError.
        """
        limits = self.bounds() if within is None else within
        for message in tables.live(self.app.broker, self.topic, within=limits):
            if message.key() is not None:
                yield Letter.of(message)

    def _instead(self) -> str:
        roles = map(self.app.names.role, self.app.broker.admin().topics())
        known = sorted({(role.queue, role.group) for role in roles if role and role.kind == "dead"})
        groups = [group for queue, group in known if queue == self.queue]
        if groups:
            return f": of queue {self.queue}, letters are kept for group {', '.join(groups)} (--group)"
        queues = sorted({queue for queue, group in known if group == self.group})
        near = get_close_matches(self.queue, queues, n=1)
        if near:
            return f": did you mean queue {near[0]!r}?"
        return f": group {self.group} has letters of {', '.join(queues)}" if queues else "; `streamjobs topic apply` makes it"
