"""What the loops of one worker process share, and what they count in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamjobs.broker import Admin, Broker, Producer
from streamjobs.core.assignment import Admission
from streamjobs.core.clock import Clock
from streamjobs.core.control import Desired
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Header
from streamjobs.job import Job, JobType, Outbox
from streamjobs.worker.decode import Decoder
from streamjobs.worker.executors import Chunk, Executor
from streamjobs.worker.holds import Breakers
from streamjobs.worker.marks import Marks
from streamjobs.worker.quarantine import Orders
from streamjobs.worker.settle import Routes
from streamjobs.worker.transact import Transactions

#: How long a loop waits for records at most while anything is under way of which it is not woken, and so many times as long while
#: nothing is: orders are seen that much later, and an idle worker takes 1.1 % of a CPU instead of 1.75.
IDLE_POLL_S, AT_REST = 0.05, 10


TraceAgain = Callable[..., tuple[list[Header], Callable[..., None]]]
"""Puts the trace of a run into the headers of its retry or letter, and gives what ends the span (`telemetry.tracing.Tracing.again`)."""


class Gatherer(Protocol):
    """What a loop counts; see `telemetry/catalogue.py` for names and labels."""

    def observe(self, jobs: Sequence[Job]) -> None: ...
    def count(self, name: str, *labels: str, by: float = 1) -> None: ...
    def time(self, name: str, seconds: float, *labels: str) -> None: ...
    def set(self, name: str, value: float, *labels: str) -> None: ...
    def replace(self, name: str, values: Mapping[tuple[str, ...], float]) -> None: ...
    def prepare(self, queue: str, job_types: Collection[str]) -> None: ...
    def snapshot(self) -> Any: ...


def commit_answered(metrics: Gatherer, group: str, taken: bool, took_s: float) -> None:
    """Counts a commit, or a transaction, of a group: whether all of it was taken, and how long that took."""
    metrics.count("commits_total", group, "ok" if taken else "error")
    metrics.time("commit_duration_seconds", took_s, group)


@dataclass
class Shared:
    """What the loops of one process share. Built once, by the process."""

    app: str
    group: str
    worker_id: str
    broker: Broker
    admin: Admin
    routes: Routes
    clock: Clock
    breakers: Breakers
    executors: Mapping[str, Executor]
    job_types: Mapping[str, JobType[Any, Any]]
    decoder: Decoder
    producer: Callable[[], Producer]
    view: Callable[[], Callable[[], Desired]]
    """Makes a loop's own view of the desired state."""
    new_metrics: Callable[[str, str], Gatherer]
    admission: Admission
    learn_schemas: Callable[[Callable[[], None]], None]
    """Reads the schema topic up to its end in the background, then calls back."""
    take_away: Callable[[Iterable[str]], None]
    """Takes orders off the control topic that are carried out."""
    mark_started: Callable[[str, Partition], None]
    """Writes that a group has committed in a partition."""
    marks: Marks
    """Where executors note what they start."""
    suspects: Orders
    recycling: Callable[[], bool] = lambda: False
    """Whether the process ends because threads hang in it, or it has grown too large."""
    events_mode: Any = "all"
    hold_s: float = 5.0
    credit: int = 1000
    tick_s: float = 0.5
    drain_s: float = 25.0
    max_poll_interval_s: float = 300.0
    session_timeout_s: float = 10.0
    instance: str | None = None
    dead_hooks: Sequence[Callable[[Job, str], Any]] = ()
    errors: list[BaseException] | None = None
    """Where handlers' exceptions are kept for a test; None: nowhere."""
    idle_poll_s: float = IDLE_POLL_S
    """See `longest_wait`; 0.0 where turns are made by hand."""
    run_inline: Callable[[Chunk], None] | None = None
    """Takes a chunk, to run it in the thread of a loop that lends itself for that; None where turns are made by hand."""
    transactions: Transactions | None = None
    """Of a transactional app; None: settlements and commits are acknowledged one after the other."""
    trace_again: TraceAgain | None = None
    """None: this process has no tracer provider."""
    outbox: Outbox | None = None
    """Of a transactional app: where its handlers' child jobs are until their runs are settled."""

    def longest_wait(self, *, at_rest: bool) -> float:
        """For how long (s) a loop may wait for records."""
        return self.idle_poll_s * (AT_REST if at_rest else 1)
