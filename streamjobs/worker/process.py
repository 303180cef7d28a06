"""A worker process: loops for main and retry topics, the timer, executors, one producer and the control reader."""

from __future__ import annotations

import inspect
import logging
import math
import os
import platform
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from streamjobs import __version__
from streamjobs.broker import Broker, Message, Producer
from streamjobs.clock import SystemClock
from streamjobs.core.assignment import Admission
from streamjobs.core.clock import Clock
from streamjobs.core.control import started_key, started_value
from streamjobs.core.delay import Ladder
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Record
from streamjobs.core.topics import retry_group
from streamjobs.deployment import Deployment
from streamjobs.errors import BrokerError
from streamjobs.job import Job, JobType, Outbox
from streamjobs.worker import Stopped
from streamjobs.worker.control import ControlReader
from streamjobs.worker.decode import Decoder
from streamjobs.worker.executors import Executor, Gate
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.executors.child import Load
from streamjobs.worker.executors.processes import Processes
from streamjobs.worker.executors.threads import Threads
from streamjobs.worker.holds import Breakers
from streamjobs.worker.loop import Loop
from streamjobs.worker.marks import Legacy, Marks
from streamjobs.worker.membership import Memberships
from streamjobs.worker.quarantine import Orders, Quarantine
from streamjobs.worker.recycle import LOOK_S, resident, why_recycle
from streamjobs.worker.settle import Routes
from streamjobs.worker.shared import IDLE_POLL_S, Gatherer, Shared, TraceAgain
from streamjobs.worker.timer import Timer
from streamjobs.worker.transact import Transactions
from streamjobs.worker.turns import TakenOver, Turns

if TYPE_CHECKING:
    from streamjobs.avro.store import SchemaStore
    from streamjobs.settings import Settings

logger = logging.getLogger(__name__)

#: A loop that has not turned for so long is stuck: the process is not healthy and is replaced.
STUCK_LOOP_S = 30.0
#: How often the topics' ids are looked at, and the memberships: longer than a heartbeat, for which a cluster allows up to 15 s.
LOOK_AT_CLUSTER_S = 20.0
#: So many producers lost to fatal errors in five minutes end the process.
PRODUCERS, PRODUCERS_S = 3, 300.0


class Application(Deployment, Protocol):
    """What a worker process needs to know of an app, besides where it is deployed."""

    @property
    def job_types(self) -> Mapping[str, JobType[Any, Any]]: ...
    @property
    def start_hooks(self) -> Sequence[Callable[[], Any]]: ...
    @property
    def stop_hooks(self) -> Sequence[Callable[[], Any]]: ...
    @property
    def dead_hooks(self) -> Sequence[Callable[[Job, str], Any]]: ...


class Producers:
    """The producer of one process; another one is built when a fatal error has made it unusable."""

    def __init__(self, broker: Broker, now: Callable[[], float]) -> None:
        self._broker = broker
        self._now = now
        self._lock = threading.Lock()
        self._lost: list[float] = []
        self._current = broker.producer()

    def __call__(self) -> Producer:
        """Raises Stopped when producers are lost again and again."""
        if self._current.fatal() is None:
            return self._current
        with self._lock:
            error = self._current.fatal()
            if error is not None:
                self._replace(error)
            return self._current

    def _replace(self, error: BrokerError) -> None:
        now = self._now()
        self._lost = [at for at in self._lost if now - at < PRODUCERS_S] + [now]
        if len(self._lost) >= PRODUCERS:
            raise Stopped(f"{PRODUCERS} producers were lost within {PRODUCERS_S:g} s, the last one to: {error}") from error
        logger.error("the producer can't go on (%s): building another one and sending again what is open", error)
        self._current = self._broker.producer()

    def close(self, timeout: float) -> None:
        self._current.close(timeout)


class Process:
    """Everything that one worker process runs. `start`, then `stop` and `join`; or, for tests, `turn` by hand."""

    def __init__(
        self,
        app: Application,
        *,
        store: SchemaStore,
        learn: Callable[[], None],
        new_metrics: Callable[[str, str], Gatherer],
        queues: Collection[str],
        slot: int = 0,
        clock: Clock | None = None,
        published: Gatherer,
        executors: Callable[[Gate], Iterable[Executor]] | None = None,
        errors: list[BaseException] | None = None,
        outbox: Outbox | None = None,
        member: str = "",
        load: Load,
        trace_again: TraceAgain | None = None,
        legacy: Legacy = Legacy(),  # noqa: B008 (it can't be changed)
    ) -> None:
        settings = app.settings
        self._published = published
        self.app = app
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{slot}"
        self.clock = clock or SystemClock()
        session_s = settings.worker.session_timeout if executors is None else math.inf  # a test's clock that jumps is no freeze
        self.gate = Gate(session_s, exact=outbox is not None, now=self.clock.now)
        self.failure: BaseException | None = None
        self.abandoned = self.told = False
        self._learn = learn
        self._learners: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._threads: list[threading.Thread | Turns] = []
        self._broker = app.broker
        self._names = app.names
        self.control = ControlReader(self._broker, app.names)
        self.producers = Producers(self._broker, self.clock.monotonic)
        self.marks = Marks(legacy.memory)
        self.recycling: str | None = None
        self.suspects_told = False
        self._suspects = legacy.suspects
        self._orders = Orders(self.producers, app.names.control, app.group, self.worker_id, self.clock.now)
        made = executors(self.gate) if executors else self._executors(settings, load)
        self.executors = {executor.kind: executor for executor in made}
        self.breakers = Breakers(self.gate)
        threads = self.executors.get("threads")
        self._transactions = None if outbox is None else Transactions(self._broker, _member(settings, slot, member))
        shared = self._share(
            decoder=Decoder(app.job_types, store),
            new_metrics=new_metrics,
            learn_schemas=self._learn_schemas if executors is None else self._learn_now,
            instance=f"{settings.worker.instance}-{slot}" if settings.worker.instance else None,
            errors=errors,
            idle_poll_s=IDLE_POLL_S if executors is None else 0.0,
            session_timeout_s=self.gate.session_s,
            outbox=outbox,
            trace_again=trace_again,
            run_inline=threads.run_inline if executors is None and isinstance(threads, Threads) else None,
        )
        main = [app.names.main(queue) for queue in queues]
        retry = [app.names.retry(queue, app.group) for queue in queues]
        self.loops = [Loop("main", app.group, main, shared), Loop("retry", retry_group(app.group), retry, shared)]
        self.timer = Timer(shared) if slot == 0 else None
        self._begin_counting(queues)

    def _begin_counting(self, queues: Collection[str]) -> None:
        """What does not change, and 0 for what alerts watch. *Bites*: retention takes a queue's jobs; the counter of it appears with
        that number, which is no increase to Prometheus, and nobody is woken."""
        told, group = self._published, self.app.group
        kinds = {job_type.kind for job_type in self.app.job_types.values() if job_type.queue in queues}
        told.set("worker_slots", sum(executor.slots for kind, executor in self.executors.items() if kind in kinds), group)
        told.set("worker_info", 1, __version__, platform.python_version(), group)
        for queue in queues:
            told.prepare(queue, [name for name, job_type in self.app.job_types.items() if job_type.queue == queue])
            told.count("jobs_deleted_total", queue, group, by=0)
        for reason in ("timeout", "error"):
            told.count("lifecycle_events_dropped_total", group, reason, by=0)
        for part in (*self.loops, self.timer):
            if part is not None:
                told.count("commits_total", part.group, "error", by=0)

    def _share(self, **parts: Any) -> Shared:
        """What the loops share: `parts`, and the rest from the app, its settings and this process."""
        app, worker = self.app, self.app.settings.worker
        admin = self._broker.admin()
        return Shared(
            app=app.name,
            group=app.group,
            worker_id=self.worker_id,
            broker=self._broker,
            admin=admin,
            routes=Routes.read(admin, app.names, app.name, app.group, Ladder(tuple(app.settings.delay.tiers))),
            clock=self.clock,
            breakers=self.breakers,
            executors=self.executors,
            job_types=app.job_types,
            producer=self.producers,
            view=self.control.view,
            admission=Admission(window=worker.window, window_bytes=worker.window_bytes, span=worker.window_span),
            mark_started=self._mark_started,
            take_away=self._take_away,
            marks=self.marks,
            suspects=self._orders,
            recycling=lambda: self.recycling is not None,
            events_mode=app.settings.events.mode,
            hold_s=app.settings.delay.hold,
            credit=worker.credit,
            tick_s=worker.tick,
            drain_s=worker.drain,
            max_poll_interval_s=worker.max_poll_interval,
            dead_hooks=app.dead_hooks,
            transactions=self._transactions,
            **parts,
        )

    def _executors(self, settings: Settings, load: Load) -> Iterable[Executor]:
        worker, gate, marks = settings.worker, self.gate, self.marks
        return (
            Threads(worker.slots, gate, marks),
            Aio(worker.slots, gate, marks),
            Processes(children_of(settings), gate, load, marks),
            Quarantine(gate, load, marks, self._orders),
        )

    # Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Reads the control topic to its end, runs the start hooks, then the loops. Raises BrokerError."""
        self._tell_suspects()
        self.control.start()
        self._call_hooks(self.app.start_hooks)
        for loop in self.loops:
            self._threads.append(loop.turns)
            loop.turns.start(f"streamjobs-{loop.name}", lambda loop=loop: self._guarded(lambda: self._run_loop(loop)))  # type: ignore[misc]
        if self.timer is not None:
            self._spawn("timer", self._run_timer)
        self._spawn("health", self._watch_itself)
        threading.Thread(target=self._guarded, args=(self._watch_cluster,), name="streamjobs-cluster", daemon=True).start()
        topics = ", ".join(sorted(self.loops[0].topics))
        logger.info("started: group %s reads %s at %s", self.app.group, topics, self.app.settings.bootstrap)

    def _tell_suspects(self) -> None:
        """What ran when the process before this one died. Then the control topic is read again, so that the loops know of it, too,
        before their first job."""
        if self._suspects:
            self.control.read_to_end()
            self._orders.suspect(self._suspects, self.loops[0].known(), self._stopping.is_set)
        self.suspects_told = True

    def start_by_hand(self) -> None:
        """As `start`, but nothing turns unless the caller turns it: `control.poll()`, `loops`, `timer`."""
        self.control.read_to_end()
        self._call_hooks(self.app.start_hooks)
        for loop in self.loops:
            loop.poller.subscribe(loop.topics)
        if self.timer is not None:
            self.timer.subscribe()

    def close_by_hand(self) -> None:
        """The end of what `start_by_hand` began: commits, leaves, runs the stop hooks."""
        for loop in self.loops:
            loop.drain(self.clock.monotonic())
        if self.timer is not None:
            self.timer.drain()
        self._call_hooks(self.app.stop_hooks)
        self.close()

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(run,), name=f"streamjobs-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, run: Callable[[], None]) -> None:
        """A loop that can't go on ends the whole process: its siblings drain, and the supervisor starts another one."""
        try:
            run()
        except TakenOver:
            raise
        except BaseException as error:
            logger.exception("%s ended", threading.current_thread().name)
            self.failure = self.failure or error
            self.stop()

    def _run_loop(self, loop: Loop) -> None:
        if not loop.run(self._stopping.is_set):
            self.abandoned = True

    def _run_timer(self) -> None:
        assert self.timer is not None
        self.timer.run(self._stopping.is_set)

    def _watch_cluster(self) -> None:
        """The end of the process does not wait for it: while brokers are silent, its questions take their time."""
        timer = [] if self.timer is None else [self.timer.poller]
        pollers = [] if self._broker.protocol() == "classic" else [*(loop.poller for loop in self.loops), *timer]
        memberships = Memberships(self._broker.admin(), pollers)
        while not self._stopping.wait(LOOK_AT_CLUSTER_S * random.uniform(0.8, 1.2)):  # not all at once that were started at once
            for look in (self._look_at_topics, memberships.look):
                try:
                    look()
                except BrokerError as error:
                    logger.warning("can't look after topics and groups: %s", error)

    def _look_at_topics(self) -> None:
        """Tells the loops and the timer what ids their topics have now: a topic that is made anew is not always told by the consumer
        (edge 31)."""
        readers: list[Loop | Timer] = [*self.loops, *([] if self.timer is None else [self.timer])]
        topics = self._broker.admin().topics({topic for reader in readers for topic in reader.topics})
        ids = {name: topic.id for name, topic in topics.items()}
        for reader in readers:
            reader.topic_ids.put(ids)

    def _watch_itself(self) -> None:
        """Ends the process in good order when threads hang in it, or it has grown too large: the supervisor starts another."""
        worker = self.app.settings.worker
        limit = worker.zombies or max(min(2, worker.slots), worker.slots // 4)
        while not self._stopping.wait(LOOK_S):
            zombies = [job for loop in self.loops for job in loop.zombies()]
            reason = why_recycle(zombies, self.clock.now(), limit, resident() if worker.max_rss else 0, worker.max_rss)
            if reason is not None:
                logger.warning("this process makes room for another one: %s", reason)
                self.recycling = reason
                self.stop()

    def stop(self) -> None:
        """Begins to drain: nothing more is admitted, what runs may end.

        A signal may come in the midst of it, and ask for it, too. *Bites*: the supervisor's word and SIGTERM reach the process at the same
        moment; its main thread waits for the event's lock, which it has itself, and no loop is told.
        """
        if not self.gate.closed:
            self.gate.closed = True
            self._stopping.set()

    def tell_to_stop(self) -> None:
        """As `stop`, on somebody's order: no other process follows that would end what this one leaves."""
        self.told = True
        self.stop()

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout: float | None = None) -> int:
        """Waits for the end; the exit code, for the supervisor: 0, 4 work was abandoned, 75 start another one in my place.

        *Bites*, if who was told to stop says 75 for a loop that failed while it drained: its supervisor starts none again, and takes it for 0.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self.alive:
            return 4
        if not any(loop.zombies() for loop in self.loops):
            self._call_hooks(self.app.stop_hooks)
        self.close()
        self.marks.wipe()
        if self.told and (self.abandoned or self.failure is not None):
            return 4
        ended_early = self.failure is not None or self.recycling is not None
        return 75 if ended_early else 4 if self.abandoned else 0

    def close(self) -> None:
        for executor in self.executors.values():
            executor.stop(0.1 if self.recycling else 1.0)
        self.control.close()
        if self._transactions is not None:
            self._transactions.close(1.0)
        self.producers.close(5.0)

    def _call_hooks(self, hooks: Iterable[Callable[[], Any]]) -> None:
        """In order, on this thread; async ones on the event loop of the async handlers, unless one of these holds that up."""
        for hook in hooks:
            result = hook()
            if inspect.isawaitable(result):
                aio = self.executors.get("aio")
                assert isinstance(aio, Aio)
                if not aio.run(result):
                    logger.warning("%r was not run: an async handler blocks the event loop", hook)

    # What its loops ask for -------------------------------------------------------------------------------------------

    def _learn_schemas(self, then: Callable[[], None]) -> None:
        def learn() -> None:
            self._learn_now(then)

        threading.Thread(target=learn, name="streamjobs-schemas", daemon=True).start()

    def _learn_now(self, then: Callable[[], None]) -> None:
        try:
            self._learn()
        except BrokerError as error:
            logger.warning("can't read the schema topic: %s", error)
        finally:
            then()

    def _take_away(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                self.producers().send(Record(self._names.control, None, key.encode(), partition=0))
            except BrokerError as error:
                logger.warning("can't take the order %s away, which was carried out: %s", key, error)

    def _mark_started(self, group: str, home: Partition) -> None:
        """Unacknowledged marks are no loss: the next commit of the next owner writes another one."""
        key = started_key(group, home.topic, home.topic_id, home.number)
        value = started_value(actor=self.worker_id, at=self.clock.now())

        def acked(error: BrokerError | None, _: Message) -> None:
            home.started = error is None

        try:
            self.producers().send(Record(self._names.control, value, key.encode(), partition=0), acked)
        except BrokerError:
            home.started = False

    # What others ask of it --------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Any]:
        """The metrics of each loop, of the timer and of publishers at this moment."""
        parts: list[Loop | Timer] = [*self.loops, *([] if self.timer is None else [self.timer])]
        for part in parts:
            part.gauge()
        return [*(part.metrics.snapshot() for part in parts), self._published.snapshot()]

    def sick(self) -> dict[str, str]:
        """What makes the process unhealthy: a loop that does not turn, or turns and runs nothing of what is ready."""
        now = self.clock.monotonic()
        turning = [(loop.name, loop.turned_at) for loop in self.loops]
        if self.timer is not None:
            turning.append(("timer", self.timer.turned_at))
        found = {name: f"has not turned for {now - at:.0f} s" for name, at in turning if now - at > STUCK_LOOP_S}
        for loop in self.loops:
            if loop.stalled_for() > STUCK_LOOP_S:
                found[loop.name] = f"has had jobs to run and run none for {loop.stalled_for():.0f} s"
        return found

    def unready(self) -> dict[str, str]:
        """Why it does no work, or not all of it."""
        found = self.sick()
        if self._stopping.is_set():
            found["process"] = "draining"
        if self.control.stale:
            found["control"] = "the control topic was not heard of for 30 s"
        for loop in self.loops:
            if not loop.poller.assigned_once:
                found[loop.name] = "has not joined its group yet"
            for tp, error in list(loop.committer.errors.items()):
                found[f"{tp.topic}/{tp.partition}"] = f"can't be committed: {error}"
            if loop.committer.doubted:
                found[f"membership of {loop.name}"] = "others may own its partitions by now: nothing is started until a commit succeeds"
            if loop.committer.overdue:
                found[f"commits of {loop.name}"] = "none succeeded for a minute: nothing more is read"
            for topic, error in list(loop.settler.blocked.items()):
                found[topic] = f"can't be written to: {error}"
            for home in list(loop.poller.partitions.values()):
                if not home.fetching:
                    found[f"{home.topic}/{home.number}"] = f"is not read: {home.beginning.why.value}"
        if self.timer is not None:
            for topic, error in list(self.timer.undeliverable.items()):
                found[topic] = f"delayed jobs can't reach it: {error}"
        return found


def children_of(settings: Settings) -> int:
    """How many children a process has at most for jobs with executor="processes"."""
    return settings.worker.children or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()) or os.cpu_count() or 1


def marks_of(settings: Settings) -> int:
    """How many rows its table of marks needs: for the slots of threads and asyncio, the children, the quarantine, and both loops."""
    return 2 * settings.worker.slots + children_of(settings) + 1 + 2


def _member(settings: Settings, slot: int, member: str) -> str:
    """What tells this process's transactional ids from those of all others that live (see `worker/transact.py`)."""
    return f"{settings.worker.instance or member or uuid.uuid4().hex}-{slot}"

