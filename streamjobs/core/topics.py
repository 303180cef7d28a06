"""Names of topics and of what owns them; the one place that knows how a topic is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from streamjobs.errors import SettingsError

Kind = Literal["main", "retry", "dead", "delay", "control", "events", "workers", "audit", "schemas"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
_SYSTEM: tuple[Kind, ...] = ("control", "events", "workers", "audit", "schemas")


@dataclass(frozen=True, slots=True)
class Role:
    """What a topic is for. `queue`, `group`, `app`, `tier` are "" where they don't apply."""

    kind: Kind
    queue: str = ""
    group: str = ""
    app: str = ""
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """Topic names under two prefixes: `jobs` for queues, `system` for everything that all queues share."""

    jobs: str = "jobs"
    system: str = "streamjobs"

    def main(self, queue: str) -> str:
        return f"{self.jobs}.{queue}"

    def retry(self, queue: str, group: str) -> str:
        return f"{self.jobs}.{queue}.{group}.retry"

    def dead(self, queue: str, group: str) -> str:
        return f"{self.jobs}.{queue}.{group}.dlt"

    def delay(self, app: str, tier: str) -> str:
        return f"{self.system}.{app}.delay.{tier}"

    @property
    def control(self) -> str:
        return f"{self.system}.control"

    @property
    def events(self) -> str:
        return f"{self.system}.events"

    @property
    def workers(self) -> str:
        return f"{self.system}.workers"

    @property
    def audit(self) -> str:
        return f"{self.system}.audit"

    @property
    def schemas(self) -> str:
        return f"{self.system}.schemas"

    def role(self, topic: str) -> Role | None:
        """What a topic is for; None: it is none of ours."""
        return self._role_in_jobs(topic) or self._role_in_system(topic)

    def _role_in_jobs(self, topic: str) -> Role | None:
        rest = topic.removeprefix(self.jobs + ".")
        parts = rest.split(".")
        if rest == topic or not all(parts):
            return None
        if len(parts) == 1:
            return Role("main", queue=parts[0])
        if len(parts) == 3 and parts[2] == "retry":
            return Role("retry", queue=parts[0], group=parts[1])
        if len(parts) == 3 and parts[2] == "dlt":
            return Role("dead", queue=parts[0], group=parts[1])
        return None

    def _role_in_system(self, topic: str) -> Role | None:
        rest = topic.removeprefix(self.system + ".")
        parts = rest.split(".")
        if rest == topic:
            return None
        for kind in _SYSTEM:
            if parts == [kind]:
                return Role(kind)
        if len(parts) == 3 and parts[1] == "delay" and all(parts):
            return Role("delay", app=parts[0], tier=parts[2])
        return None


def retry_group(group: str) -> str:
    """The consumer group of a group's retry topics: one of its own, so that its joins never stir the main group."""
    return f"{group}.retry"


def timer_group(app: str) -> str:
    """The consumer group that moves an app's delay ladder."""
    return f"{app}.timer"


def checked_name(kind: str, name: str) -> str:
    """The name of a queue, group or app, if it is one. Raises SettingsError: a dot in it would make topics ambiguous."""
    if _NAME.fullmatch(name):
        return name
    raise SettingsError(
        f"{kind} {name!r} can't be part of a topic's name: use up to 80 letters, digits, '-' and '_' (no dots)"
    )
