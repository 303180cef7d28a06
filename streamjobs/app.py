"""App: settings, job types and lazily built adapters; the composition root of a program that uses streamjobs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from streamjobs.clock import SystemClock
from streamjobs.core.retry import Retry
from streamjobs.core.topics import Names, checked_name
from streamjobs.errors import JobTypeError, UsageError
from streamjobs.job import Duration, ExecutorKind, Job, JobType, OnTimeout, Order, Outbox

if TYPE_CHECKING:
    from pathlib import Path

    from streamjobs.avro.registry import ConfluentRegistry
    from streamjobs.avro.store import SchemaStore
    from streamjobs.broker import Broker
    from streamjobs.core.clock import Clock
    from streamjobs.core.letters import Letter
    from streamjobs.dead_letters import DeadLetters
    from streamjobs.kafka import EmbeddedBroker
    from streamjobs.publish import Publisher
    from streamjobs.settings import Settings
    from streamjobs.telemetry.tracing import Tracing
    from streamjobs.testing.app import Testing
    from streamjobs.worker.executors import Executor, Gate
    from streamjobs.worker.marks import Legacy
    from streamjobs.worker.process import Process

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Hook = TypeVar("Hook", bound=Callable[..., Any])


class Decorator(Protocol):
    """What `@app.job(…)` gives back: a job's parameters are the function's, without a leading `job: Job`."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Job, P], R]) -> JobType[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> JobType[P, R]: ...


class App:
    """A named set of job types and the cluster they live on.

    `name` is also the default consumer group. `imports` names the modules that declare job types; workers and the CLI import
    them. `transactional`: what a run leads to (its retry, dead letter, child jobs, events and its offset) is one Kafka transaction
    (docs/transactions.md). Further keywords are settings (the weakest source: streamjobs.toml, STREAMJOBS_* and flags override them).
    Nothing is read, connected or imported before it is needed.
    """

    def __init__(self, name: str, *, imports: Iterable[str] = (), transactional: bool = False, **settings: Any) -> None:
        self.name = checked_name("app", name)
        self.ref = ""  # MODULE:ATTR, if the command line found it
        self.imports = tuple(imports)
        self.job_types: dict[str, JobType[Any, Any]] = {}
        self.start_hooks: list[Callable[[], Any]] = []
        self.stop_hooks: list[Callable[[], Any]] = []
        self.dead_hooks: list[Callable[[Job, str], Any]] = []
        self._declared = {**settings, "worker.transactional": True} if transactional else settings
        self._flags: Mapping[str, Any] = {}
        self._file: Path | None = None
        self._settings: Settings | None = None
        self._broker: Broker | None = None
        self._publisher: Publisher | None = None
        self._lock = threading.RLock()
        self.clock: Clock = SystemClock()
        _living.add(self)

    # Declaring ------------------------------------------------------------------------------------------------------

    @overload
    def job(self, fn: Callable[Concatenate[Job, P], R], /) -> JobType[P, R]: ...
    @overload
    def job(self, fn: Callable[P, R], /) -> JobType[P, R]: ...
    @overload
    def job(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        key: str | Callable[..., Any] | None = None,
        order: Order | None = None,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        discard_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        executor: ExecutorKind | None = None,
        on_timeout: OnTimeout = "wait",
        schema: str | None = None,
    ) -> Decorator: ...
    def job(self, fn: Any = None, /, **options: Any) -> Any:
        """Makes a typed function a job type: its calls can be published, and workers run them.

        `queue`: its topic. `key`: the parameter (or a function of the arguments) whose jobs keep their order. `order`: `key`
        (the default: of jobs that have one), `key_strict`, `partition` or `none`. `timeout`: of one run. `retry`: attempts and backoff.
        `retry_on`, `discard_on`: exceptions that are retried (default: all) or make a dead letter at once.
        Raises JobTypeError for a declaration that can't work.
        """
        if fn is not None:
            return self._declare(fn, {})
        return lambda function: self._declare(function, options)

    def _declare(self, fn: Callable[..., Any], options: dict[str, Any]) -> JobType[Any, Any]:
        _check_options(fn, options)
        name = options.pop("name", None) or getattr(fn, "__name__", "")
        queue = checked_name("queue", options.pop("queue", "default"))
        for several in ("retry_on", "discard_on"):
            if isinstance(options.get(several), type):
                options[several] = (options[several],)
        job_type: JobType[Any, Any] = JobType(fn, name=name, queue=queue, publisher=lambda: self.publisher, **options)
        known = self.job_types.get(name)
        if known is not None and (known.fn.__module__, known.fn.__qualname__) != (fn.__module__, fn.__qualname__):
            raise JobTypeError(
                f"job type {name!r} is declared twice, in {known.fn.__module__} and in {fn.__module__}: give one of them name=…"
            )
        self.job_types[name] = job_type
        return job_type

    def on_start(self, hook: Hook) -> Hook:
        """Runs once in each worker process before its first job: open pools here."""
        self.start_hooks.append(hook)
        return hook

    def on_stop(self, hook: Hook) -> Hook:
        """Runs once in each worker process after its last job."""
        self.stop_hooks.append(hook)
        return hook

    def on_dead(self, hook: Hook) -> Hook:
        """Runs when a job became a dead letter, with the job and the reason; its own failure is logged, no more.

        `def`: on the loop of the worker, which waits for it; `async def`: beside the async handlers.
        """
        self.dead_hooks.append(hook)
        return hook

    def load(self) -> App:
        """Imports the modules of `imports`, so that all job types are declared."""
        for module in self.imports:
            importlib.import_module(module)
        return self

    def queues(self) -> list[str]:
        """The queues of its job types, sorted."""
        return sorted({job_type.queue for job_type in self.job_types.values()})

    # What it is built from --------------------------------------------------------------------------------------------

    def configure(self, flags: Mapping[str, Any], file: Path | None = None) -> App:
        """Adds settings of the strongest source (a command's flags). Raises UsageError once settings were read."""
        if self._settings is not None:
            raise UsageError("settings were read already: configure the app before its first use")
        self._flags = {**self._flags, **flags}
        self._file = file or self._file
        return self

    @property
    def settings(self) -> Settings:
        """Read at the first use. Raises SettingsError."""
        with self._lock:
            if self._settings is None:
                from streamjobs.settings import load

                self._settings = load(self._declared, file=self._file, flags=self._flags)
            return self._settings

    @property
    def group(self) -> str:
        """The consumer group of its workers: `worker.group`, or the app's name."""
        return checked_name("group", self.settings.worker.group or self.name)

    @property
    def names(self) -> Names:
        return Names(self.settings.jobs_prefix, self.settings.system_prefix)

    @property
    def broker(self) -> Broker:
        """The cluster at `bootstrap`; `embedded` is started by the process that asks for it first."""
        with self._lock:
            if self._broker is None:
                self._broker = self._connect()
            return self._broker

    def _connect(self) -> Broker:
        from streamjobs.kafka import EmbeddedBroker, KafkaBroker

        settings = self.settings
        kind = EmbeddedBroker if settings.bootstrap.partition(":")[0] == "embedded" else KafkaBroker
        broker = kind(
            settings.bootstrap,
            settings.kafka,
            protocol=settings.worker.protocol,
            session_timeout_s=settings.worker.session_timeout,
            max_poll_interval_s=settings.worker.max_poll_interval,
            client_id=self.name,
            max_message_bytes=settings.max_message_bytes,
        )
        if settings.bootstrap == "embedded" and isinstance(broker, EmbeddedBroker):
            self._lend(broker)
        return broker

    def _lend(self, broker: EmbeddedBroker) -> None:
        """The process that started the embedded broker owns it; the processes that it starts use it, too."""
        os.environ["STREAMJOBS_BOOTSTRAP"] = broker.url
        told = "embedded broker: all in it is gone when this process ends; for other programs it is at STREAMJOBS_BOOTSTRAP=%s"
        logger.warning(told, broker.url)

    @property
    def publisher(self) -> Publisher:
        with self._lock:
            if self._publisher is None:
                from streamjobs.publish import Publisher
                from streamjobs.telemetry.tracing import Tracing

                tracing = Tracing.find(self.settings.tracing.propagation)
                self._publisher = Publisher(self, trace=tracing.send if tracing is not None else None)
            return self._publisher

    def process(
        self,
        queues: Iterable[str] = (),
        *,
        slot: int = 0,
        clock: Clock | None = None,
        executors: Callable[[Gate], Iterable[Executor]] | None = None,
        errors: list[BaseException] | None = None,
        member: str = "",
        prepare_child: Callable[[App], None] | None = None,
        legacy: Legacy | None = None,
    ) -> Process:
        """One worker process for these queues (none named: all), after what it needs on the cluster was checked.

        `member`: a name that no other living worker has; the processes of one slot share it, one after the other.
        `prepare_child`: called in each child process that runs handlers; `legacy`: from a supervisor, if there is one.
        Raises ProvisionError with the command to run, BrokerError, or JobTypeError for a payload that can't be derived.
        """
        from streamjobs import provision
        from streamjobs.telemetry.metrics import Metrics
        from streamjobs.worker.marks import Legacy
        from streamjobs.worker.process import Process

        provision.require(self)
        store = self._schemas()
        tracing = self._trace_runs()
        published = Metrics(self.group, "main", self.job_types)
        self.publisher.observe = published.published
        return Process(
            self,
            published=published,
            store=store,
            learn=lambda: self._learn(store),
            new_metrics=lambda group, tier: Metrics(group, tier, self.job_types),
            queues=list(queues) or self.queues(),
            slot=slot,
            clock=clock,
            executors=executors,
            errors=errors,
            outbox=self.outbox(),
            member=member,
            load=self.in_child(prepare_child),
            trace_again=None if tracing is None else tracing.again,
            legacy=legacy or Legacy(),
        )

    def outbox(self) -> Outbox | None:
        """Of a transactional app: where from now on what handlers publish in this process waits for what settles their runs.

        Raises UsageError where the broker has no transactions.
        """
        if not self.settings.worker.transactional:
            return None
        if "transactions" in self.broker.lacks:
            raise UsageError(
                f"{self.name} is transactional, and the broker at {self.settings.bootstrap} has no transactions: use a Kafka cluster, "
                "or set worker.transactional to false"
            )
        self.publisher.outbox = Outbox(self.job_types)
        return self.publisher.outbox

    def in_child(self, prepare: Callable[[App], None] | None = None) -> Callable[[], App]:
        """What makes this app again in a child process, which imports the modules that declare its jobs; goes there by pickle.

        `prepare` is called with it there: such as to set up logging.
        """
        modules = {job_type.fn.__module__ for job_type in self.job_types.values()} | set(self.imports)
        if self.ref:
            modules.add(self.ref.partition(":")[0])  # where it is, though a function of another module may have made it
        return functools.partial(_load_in_child, self.name, sorted(modules), dict(self._flags), self._file, prepare)

    def _schemas(self) -> SchemaStore:
        """The schemas that its job types have now, and a registry's if one is set. Raises SettingsError if that can't be asked."""
        from streamjobs.avro.store import SchemaStore

        store = SchemaStore(self.registry())
        for job_type in self.job_types.values():
            store.add(job_type.payload.avro)
        return store

    def registry(self) -> ConfluentRegistry | None:
        """The schema registry of `schemas.registry`; None: none is set. Raises SettingsError."""
        if not self.settings.schemas.registry:
            return None
        from streamjobs.avro.registry import ConfluentRegistry

        return ConfluentRegistry(self.settings.schemas.registry, self.settings.registry)

    def _learn(self, store: SchemaStore) -> None:
        """What the schema topic knows besides. Raises BrokerError."""
        from streamjobs import tables

        for key, row in tables.read_table(self.broker, self.names.schemas, patience=5.0).items():
            with contextlib.suppress(ValueError):  # a stranger's record: no fingerprint, or no text
                store.learn(bytes.fromhex(key.decode()), row.value.decode())

    def dead_letters(self, queue: str, *, group: str = "") -> DeadLetters:
        """The dead letters of a queue, to look at, replay or discard; `group`: another one than the app's own."""
        from streamjobs.dead_letters.select import DeadLetters
        from streamjobs.dead_letters.table import Table
        from streamjobs.telemetry.log import Masking

        masking = Masking(self.settings.mask.patterns)
        return DeadLetters(Table(self, queue, group or self.group), self._payload_reader(), masking)

    def _payload_reader(self) -> Callable[[Letter], Any]:
        """Reads payloads by the schemas that wrote them; asks the schema topic once, when a schema is not the code's."""
        from streamjobs.avro.people import to_json
        from streamjobs.errors import UnknownSchemaError

        store, asked = self._schemas(), False

        def read(letter: Letter) -> Any:
            nonlocal asked
            job_type = self.job_types.get(letter.meta.job_type)
            current = job_type.payload.avro if job_type else None
            try:
                return to_json(letter.value, store, letter.meta.content_type, current)
            except UnknownSchemaError:
                if asked:
                    raise
                asked = True
                self._learn(store)
            return to_json(letter.value, store, letter.meta.content_type, current)

        return read

    def _trace_runs(self) -> Tracing | None:
        """Where this process has a tracer provider, every sampled run is a span; else nothing is done per job."""
        from streamjobs.telemetry.tracing import Tracing

        tracing = Tracing.find(self.settings.tracing.propagation, self.settings.mask.patterns)
        if tracing is not None:
            for job_type in self.job_types.values():
                job_type.run = tracing.around(job_type.bound(), self.group, is_async=job_type.is_async)
        return tracing

    def testing(self, *, now: float | None = None) -> Testing:
        """This app on a broker in memory, its workers run by hand: see `streamjobs.testing.app.Testing`.

        `now`: where its clock begins, in seconds since the epoch.
        """
        from streamjobs.testing.app import Testing

        return Testing(self, now=now)

    def lend(self, broker: Broker, clock: Clock) -> tuple[Any, ...]:
        """Puts another broker and clock in place of the app's, for a test; the answer is for `take_back`."""
        before = (self._broker, self._publisher, self._settings, self._flags, self.clock)
        self._broker, self._publisher, self._settings, self.clock = broker, None, None, clock
        self._flags = {**self._flags, "provision": "auto", "bootstrap": "memory"}
        return before

    def take_back(self, before: tuple[Any, ...]) -> None:
        """Undoes `lend`."""
        if self._publisher is not None:
            self._publisher.close()
        self._broker, self._publisher, self._settings, self._flags, self.clock = before

    def close(self) -> None:
        """Flushes what was published and closes every connection; the app can be used again afterwards."""
        with self._lock:
            publisher, self._publisher = self._publisher, None
            broker, self._broker = self._broker, None
        if publisher is not None:
            publisher.close()
        if broker is not None:
            broker.close()

    def __repr__(self) -> str:
        return f"App({self.name!r})"


_living: weakref.WeakSet[App] = weakref.WeakSet()


def _after_fork() -> None:
    """*Bites*: a thread connects for the first time while another one forks: the child waits for ever for who holds the lock there."""
    for app in list(_living):
        app._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)

#: What `@app.job` takes.
_OPTIONS = tuple(name for name in inspect.signature(JobType).parameters if name not in ("fn", "publisher"))


def _check_options(fn: Callable[..., Any], options: Iterable[str]) -> None:
    """*Bites*: an option that is misspelled is answered with an `__init__()` and a line that the user never wrote."""
    for name in options:
        if name not in _OPTIONS:
            near = get_close_matches(name, _OPTIONS, n=1)
            code = getattr(inspect.unwrap(fn), "__code__", None)
            where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
            has = f"did you mean {near[0]}?" if near else f"there is {', '.join(_OPTIONS)}"
            raise JobTypeError(f"@app.job has no option {name!r}{where}: {has}")


def _load_in_child(
    name: str, modules: Iterable[str], flags: Mapping[str, Any], file: Path | None, prepare: Callable[[App], None] | None
) -> App:
    """Raises UsageError for an app that is no module's: one that a function made can't be made again elsewhere."""
    for module in modules:
        importlib.import_module(module)
    contents = [list(getattr(module, "__dict__", {}).values()) for module in list(sys.modules.values())]
    app = next((thing for things in contents for thing in things if isinstance(thing, App) and thing.name == name), None)
    if app is None:
        raise UsageError(f"app {name!r} is not found in {', '.join(modules)}: child processes need it at the top level of a module")
    if flags or file:
        app.configure(flags, file)
    if prepare is not None:
        prepare(app)
    return app
