"""What goes to the events topic of one loop: its ends, gathered by `EventBatch`, and what runs at a tick."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamjobs.core.record import Record
from streamjobs.job import Job
from streamjobs.telemetry.events import EventBatch, Packet
from streamjobs.worker.shared import Gatherer, Shared


class Reporting:
    """Makes records of a loop's events. One owner: the loop's thread. `running`: the jobs that run now."""

    def __init__(self, shared: Shared, events: EventBatch, metrics: Gatherer, running: Callable[[], Iterable[Job]]) -> None:
        self._shared = shared
        self._events = events
        self._metrics = metrics
        self._running = running
        self._told: set[tuple[int, int]] = set()

    def records(self) -> list[tuple[Record, int]]:
        """All that is to be told now, with the number of events in each; none in transactions, each of which takes its own."""
        if self._events.mode == "off":
            return []
        self._tell_started()
        if self._shared.transactions is not None:
            return []
        return [(self.record(packet), packet.events) for packet in self._events.take(self._shared.clock.now())]

    def record(self, packet: Packet) -> Record:
        return Record(self._shared.routes.names.events, packet.value, self._shared.worker_id.encode())

    def _tell_started(self) -> None:
        """Jobs that run at this tick and were not told of yet."""
        running = [job for job in self._running() if job.started_at]
        fresh = [job for job in running if (job.epoch, job.offset) not in self._told]
        self._told = {(job.epoch, job.offset) for job in running}
        if fresh:
            self._events.started(fresh)

    def dropped(self, count: int, reason: str) -> None:
        self._events.drop(count)
        self._metrics.count("lifecycle_events_dropped_total", self._shared.group, reason, by=count)
