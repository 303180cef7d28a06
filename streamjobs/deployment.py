"""The port to an app: what plans, orders and questions need to know of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

from streamjobs.broker import Broker
from streamjobs.core.clock import Clock
from streamjobs.core.topics import Names, retry_group, timer_group

if TYPE_CHECKING:
    from streamjobs.settings import Settings


class Deployment(Protocol):
    """One app on one cluster. `group` is the consumer group of its main topics."""

    @property
    def name(self) -> str: ...
    @property
    def ref(self) -> str:
        """MODULE:ATTR, under which the command line found it; empty: it did not."""
        ...

    @property
    def group(self) -> str: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def names(self) -> Names: ...
    @property
    def broker(self) -> Broker: ...
    @property
    def clock(self) -> Clock: ...

    def queues(self) -> Collection[str]:
        """The queues that the app's job types are declared for."""
        ...


def applying(app: Deployment) -> str:
    """`streamjobs topic apply` as it has to be typed for this app.

    *Bites*: a worker that was started with `--group other` misses its registrations; `topic apply` knows no such flag, plans for the
    app's own group and says that there is nothing to do.
    """
    group = f"STREAMJOBS_WORKER__GROUP={app.group} " if app.settings.source("worker.group") == "flag" else ""
    ref = app.ref or app.settings.app
    return f"{group}streamjobs topic apply" + (f" -A {ref}" if ref else "")


def consumed(app: Deployment) -> Iterator[tuple[str, str]]:
    """(consumer group, topic) of everything that the app's own loops and its timer read."""
    for queue in sorted(app.queues()):
        yield app.group, app.names.main(queue)
        yield retry_group(app.group), app.names.retry(queue, app.group)
    for tier in app.settings.delay.tiers:
        yield timer_group(app.name), app.names.delay(app.name, tier)
