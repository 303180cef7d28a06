"""Holds: which jobs may not run now, and why: pauses that operators ordered, and breakers (PROTOCOLS §8)."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from streamjobs.core.breaker import Breaker
from streamjobs.core.control import Desired
from streamjobs.job import Cancel, Job, JobCancelled, Reject, Snooze
from streamjobs.worker.executors import Gate

logger = logging.getLogger(__name__)

#: Ends that say nothing about whether the handler works.
_NEUTRAL = (Reject, Snooze, Cancel, JobCancelled)


class Breakers:
    """One breaker a job type, for all loops of a process; the only thing of holds that they share, so it has a lock."""

    def __init__(self, gate: Gate) -> None:
        self._breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
        self._lock = threading.Lock()
        self._gate = gate

    def ended(self, jobs: Sequence[Job], now: float) -> None:
        """Runs that ended, before they are settled. Costs next to nothing while all is well."""
        if not self._breakers and all(job.error is None for job in jobs):
            return
        with self._lock:
            for job in jobs:
                if not isinstance(job.error, _NEUTRAL):
                    self._end(job.type, job.error is not None, now)

    def _end(self, job_type: str, failed: bool, now: float) -> None:
        if not failed and job_type not in self._breakers:
            return
        breaker = self._breakers[job_type]
        before = breaker.state
        breaker.ended([failed], now)
        if breaker.state != before:
            logger.warning("breaker of %s: %s", job_type, _SAYS[breaker.state].format(breaker.wait_s))
        if breaker.calm:
            del self._breakers[job_type]
        self._set_gate()

    def _set_gate(self) -> None:
        self._gate.held = frozenset(name for name, breaker in self._breakers.items() if breaker.state != "closed")

    def wavers(self, job_type: str) -> bool:
        """Whether runs of the type failed lately: then few of them are handed out at once."""
        return job_type in self._breakers

    @property
    def open(self) -> frozenset[str]:
        """Job types that are held now. Any thread may ask."""
        return self._gate.held

    def shuts(self, job_type: str, now: float) -> bool:
        """Whether no job of the type may run now, not even one to try."""
        if job_type not in self._gate.held:
            return False
        with self._lock:
            breaker = self._breakers.get(job_type)
            return breaker is not None and not breaker.probe_due(now)

    def wants_probe(self, job_type: str, now: float) -> bool:
        """Whether one job of the type may run now, to see."""
        with self._lock:
            breaker = self._breakers.get(job_type)
            return breaker is not None and breaker.wants_probe(now)


class Holds:
    """What one loop may not run now, by reason. One owner: the loop's thread; it asks per batch, and per job only while
    anything is held at all."""

    def __init__(self, app: str, breakers: Breakers, desired: Callable[[], Desired], now: Callable[[], float]) -> None:
        self._app = app
        self._breakers = breakers
        self._desired = desired
        self._now = now

    def anything(self) -> bool:
        return bool(self._breakers.open) or self._desired().anything_paused

    def why(self, job: Job) -> str | None:
        """The reason for which a job may not run now; None: it may."""
        if job.type in self._breakers.open and not job.probe:
            return f"breaker/{job.type}"
        desired = self._desired()
        if not desired.anything_paused:
            return None
        key = job.message.key()
        order = desired.paused(job.home.queue, job.type, key, self._now(), app=self._app)
        return None if order is None else f"paused/{order.key}"

    def until(self, job: Job) -> float | None:
        """When what holds the job ends by itself, epoch seconds; None: nobody knows."""
        order = self._desired().paused(job.home.queue, job.type, job.message.key(), self._now(), app=self._app)
        return None if order is None else order.until

    def probe(self, reasons: Iterable[str]) -> str | None:
        """The reason of which one held job should run now, to see whether its type works again."""
        for reason in reasons:
            kind, _, job_type = reason.partition("/")
            if kind == "breaker" and self._breakers.wants_probe(job_type, self._now()):
                return reason
        return None

    def queue_held(self, queue: str, job_types: Iterable[str]) -> bool:
        """Whether nothing of a queue may run: then it is not even fetched.

        A queue whose breakers are open is read once a probe is due. *Bites*: the breaker opens when the last job at hand has failed;
        of a queue that is not read no job is held, so none is tried, and it is never read again.
        """
        desired = self._desired()
        now = self._now()
        if desired.anything_paused and desired.queue_paused(queue, now) is not None:
            return True
        names = list(job_types)
        return bool(names) and all(self._held_type(name, desired, now) for name in names)

    def _held_type(self, name: str, desired: Desired, now: float) -> bool:
        return self._breakers.shuts(name, now) or (desired.anything_paused and desired.type_paused(self._app, name, now) is not None)


_SAYS = {
    "open": "open, its jobs are held; one is tried in {:g} s",
    "half_open": "half-open, one job is tried",
    "closed": "closed, its jobs run again",
}
