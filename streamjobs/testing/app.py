"""`app.testing()`: an app on a broker in memory, its workers run by hand, on one thread, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Self

from streamjobs.core.record import Meta, Record
from streamjobs.testing.broker import MemoryBroker
from streamjobs.testing.clock import ManualClock
from streamjobs.worker.executors import Chunk, Executor, Gate
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.executors.threads import run_chunk

if TYPE_CHECKING:
    from types import TracebackType

    from streamjobs.app import App
    from streamjobs.broker import Message
    from streamjobs.job import Job
    from streamjobs.worker.process import Process

#: A test that is not done after so many rounds never will be.
ROUNDS = 100_000


class InlineThreads:
    """Runs a chunk where it is submitted; those of child processes, too."""

    slots = 1

    def __init__(self, gate: Gate, clock: ManualClock, kind: str = "threads") -> None:
        self.kind = kind
        self._gate = gate
        self._clock = clock

    def submit(self, chunk: Chunk) -> None:
        run_chunk(chunk, self._gate, self._clock.now, 0.0)

    def cancel(self, job: Job) -> None:
        """Nothing runs while anyone could call this."""

    def stop(self, timeout: float) -> None:
        """Nothing to end."""


class InlineAio(Aio):
    """Runs a chunk of async handlers to its end where it is submitted, on the one event loop of a worker process.

    *Bites*, with a loop for each chunk: what an `on_start` hook opens, such as a pool, belongs to another one than each handler has.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__(1, gate)

    def submit(self, chunk: Chunk) -> None:
        self._run_to_end(self._run_chunk(chunk))

    def call(self, awaitable: Awaitable[Any], failed: Callable[[BaseException], None]) -> None:
        self._run_to_end(self._call(awaitable, failed))

    def _run_to_end(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def stop(self, timeout: float) -> None:
        super().stop(timeout)
        if self._loop is not None and not self._loop.is_running():
            self._loop.close()


class Testing:
    """An app under test. A context manager; `run` does what workers would do until nothing is left to do.

    ::

        with app.testing() as t:
            send_invoice.publish(invoice_id=7, customer_id="acme")
            t.run()
            assert not t.dead_letters()
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, app: App, *, now: float | None = None) -> None:
        self.app = app
        self.clock = ManualClock() if now is None else ManualClock(now)
        # A clock that jumps makes no worker slow: expelled for it, its timer would move what it has moved once more.
        self.broker = MemoryBroker(self.clock, max_poll_interval=math.inf)
        self.errors: list[BaseException] = []
        """The exceptions that handlers raised in the last `run`; signals are none."""
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self._before = self.app.lend(self.broker, self.clock)
        self.app.load()
        self._start()
        return self

    def _start(self) -> None:
        self._process = self.app.process(clock=self.clock, executors=self._executors, errors=self.errors)
        self._process.start_by_hand()
        self.clock.advance(self.app.settings.worker.session_timeout + 1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.close_by_hand()
        self.app.take_back(self._before)

    def _executors(self, gate: Gate) -> Iterable[Executor]:
        return InlineThreads(gate, self.clock), InlineThreads(gate, self.clock, "processes"), InlineAio(gate)

    @property
    def process(self) -> Process:
        assert self._process is not None, "use it as a context manager: with app.testing() as t"
        return self._process

    def run(self, *, raise_errors: bool = True, through_delays: bool = True) -> int:
        """Runs all jobs there are, and those that they publish; returns how many runs reached an outcome.

        An exception of a handler ends it and is raised here, unless `raise_errors` is False: then jobs are retried and
        buried as anywhere. `through_delays` moves the clock to when the next waiting job is due, again and again; without
        it, what waits stays waiting. Raises RuntimeError if there is no end.
        """
        before = sum(loop.finished for loop in self.process.loops)
        self.errors.clear()
        for _ in range(ROUNDS):
            worked = self._round()
            if raise_errors and self.errors:
                raise self.errors[0]
            if worked:
                continue
            due = self._next_due() if through_delays else None
            if due is None:
                return sum(loop.finished for loop in self.process.loops) - before
            self.clock.advance(max(0.001, due - self.clock.now()))
        raise RuntimeError(f"jobs went on for {ROUNDS} rounds: does a handler publish itself without end?")

    def _round(self) -> bool:
        process = self.process
        process.control.poll()
        worked = [loop.turn() for loop in process.loops]
        assert process.timer is not None
        worked.append(process.timer.turn())
        return any(worked) or not all(loop.idle for loop in process.loops)

    def _next_due(self) -> float | None:
        process = self.process
        found = [part.next_due() for part in (*process.loops, process.timer) if part is not None]
        return min((due for due in found if due is not None), default=None)

    def restart(self) -> None:
        """The worker process dies without a word, and another one takes its place after the session timeout."""
        for consumer in self._process_consumers():
            self.broker.kill(consumer)
        self._start()

    def _process_consumers(self) -> list[Any]:
        process = self.process
        pollers = [loop.poller for loop in process.loops] + ([process.timer.poller] if process.timer else [])
        return [poller.consumer for poller in pollers]

    def produce(self, record: Record) -> None:
        """Appends a record as any Kafka producer would."""
        from streamjobs import tables

        tables.write_once(self.broker, [record])

    def advance(self, seconds: float) -> None:
        """Moves the clock; the next `run` sees what is due by then."""
        self.clock.advance(seconds)

    def dead_letters(self, queue: str | None = None) -> list[Meta]:
        """The headers of the letters that stand on the dead-letter tables of one queue, or of all."""
        queues = self.app.queues() if queue is None else [queue]
        names, group = self.app.names, self.app.group
        return [Meta.parse(message.headers()) for q in queues for message in self._table(names.dead(q, group))]

    def _table(self, topic: str) -> list[Message]:
        from streamjobs import tables

        return list(tables.live(self.broker, topic))
