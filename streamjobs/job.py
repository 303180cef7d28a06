"""Job types (what `@app.job` makes), jobs (one run, given to the handler) and the signals that a handler may raise."""

from __future__ import annotations

import inspect
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, ParamSpec, Protocol, Self, TypeVar, get_args

from streamjobs.core import record as wire
from streamjobs.core.dispatch import Entry, Partition
from streamjobs.core.duration import seconds
from streamjobs.core.lifecycle import Failure
from streamjobs.core.record import Meta, Record
from streamjobs.core.retry import Retry
from streamjobs.errors import JobTypeError, PublishError, UsageError, text_of

if TYPE_CHECKING:
    from streamjobs.avro.codec import Payload
    from streamjobs.broker import Message
    from streamjobs.publish import Publisher

P = ParamSpec("P")
R = TypeVar("R")

Duration = str | int | float | timedelta
Order = Literal["key", "key_strict", "partition", "none"]
ExecutorKind = Literal["threads", "aio", "processes"]
OnTimeout = Literal["wait", "retry"]


#: The longest delay or expiry: its instant has no more digits than a reader takes, whenever the job runs.
_LONGEST_S = 1_000 * 365 * 86_400


def _delay_s(delay: Duration) -> float:
    """Raises ValueError."""
    delay_s = seconds(delay)
    if delay_s > _LONGEST_S:
        raise ValueError(f"a job is not put off by more than 1,000 years, and {delay!r} is more")
    return delay_s


class Signal(BaseException):
    """What a handler raises to say what becomes of its job. Not an error, so that `except Exception` lets it pass.

    It may be raised in a task of an `asyncio.TaskGroup`, too: a group of nothing but signals means its first.
    """


class Reject(Signal):
    """Never run this job again: it becomes a dead letter with this reason: text, or the exception that says it."""

    def __init__(self, reason: str | BaseException = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


class Cancel(Signal):
    """End this job quietly: it is cancelled, not failed, and leaves no dead letter."""

    def __init__(self, reason: str | BaseException = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


class Snooze(Signal):
    """Run this job again after `delay`; no attempt is charged."""

    def __init__(self, delay: Duration) -> None:
        super().__init__(delay)
        self.delay_s = _delay_s(delay)


class RetryAfter(Signal):
    """Count this run as failed and run the job again after `delay` instead of its backoff."""

    def __init__(self, delay: Duration, reason: str | BaseException = "") -> None:
        super().__init__(reason or delay)
        self.delay_s = _delay_s(delay)
        self.reason = str(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryAfter, (self.delay_s, self.reason)


class JobCancelled(Signal):
    """Raised by `job.heartbeat()` inside a handler whose job was cancelled or has lost its partition."""


def meant(error: BaseException) -> BaseException:
    """What a handler raised; of a group that holds only signals, the first of them. *Bites*: `Reject` in a task of a task group comes out as
    a BaseExceptionGroup, and a job that should never run again is retried for hours."""
    signals = list(_leaves(error)) if isinstance(error, BaseExceptionGroup) else []
    return signals[0] if signals and all(isinstance(each, Signal) for each in signals) else error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


class Timeout(Exception):
    """A run that took longer than its job type's timeout; its `error_type` is `Timeout`."""


class Crashed(Exception):
    """A run whose process was killed, crashed or exited under it; its `error_type` is `Crashed`."""


def stack_of(error: BaseException) -> str:
    """Its traceback, as Python prints it, which asks some exceptions more than they answer: then its text. Of a long one the end, which says
    where it was raised, and what."""
    try:
        stack = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 (an exception without a traceback is still that exception)
        stack = f"{type(error).__qualname__}: {text_of(error)}"
    return stack if len(stack) <= wire.MAX_STACK else "…" + stack[3 - wire.MAX_STACK :]  # "…" are three bytes


class _Seldom:
    """What most jobs never have: such an attribute takes neither time nor room until it is set."""

    __slots__ = ()

    meta: Meta | None = None
    """Its headers, where they say more than type and id."""
    run: int = 1
    attempt: int = 1
    due: float = 0.0
    failure: Failure | None = None
    due_again: float = 0.0
    letter: str = ""
    traceparent: bytes = b""  # of the run's own span, where there is one
    probe: bool = False  # runs although its type is held, to see whether it works again
    held_since: float = 0.0
    strikes: int = 0  # deaths of a process for which only this job can be blamed
    children: tuple[Record, ...] | None = ()  # what a run of a transactional app published; None: it is over
    _progress: Any = None
    _origin: str = ""


class Job(_Seldom, Entry):
    """One run of a job.

    A handler that has a parameter annotated `Job` gets it. `id` is the same for every attempt: the idempotency key.
    `published_at` and `deadline` are aware datetimes in UTC, other instants seconds since the epoch.
    """

    __slots__ = (
        "__dict__",
        "appended_at",
        "args",
        "asked_to_stop",
        "duration_s",
        "error",
        "job_type",
        "lot",
        "message",
        "outcome",
        "raw_id",
        "started_at",
        "wait_s",
    )  # fmt: skip

    raw_id: bytes
    """Its id, as it stands in the record."""
    job_type: JobType[Any, Any]
    args: tuple[Any, ...]
    message: Message
    appended_at: float
    """When the broker appended this record, epoch seconds."""
    started_at: float
    """Epoch seconds; 0.0: not started."""
    duration_s: float
    wait_s: float
    """From when it could have run to its start; deliberate delay and backoff are no wait."""
    error: BaseException | None
    outcome: str
    asked_to_stop: bool
    lot: object
    """The same for jobs that were read together, of one partition and type, the first run of each; None: it is by itself."""

    @classmethod
    def of(
        cls,
        job_type: JobType[Any, Any],
        home: Partition,
        message: Message,
        meta: Meta | None,
        args: tuple[Any, ...],
        raw_id: bytes,
        lane: bytes | None = None,
        lot: object = None,
    ) -> Self:
        """The job of a record; no `__init__`, which would make it twice as dear."""
        job = cls()
        job.job_type = job_type
        job.kind = job_type.kind
        job.home = home
        job.epoch = home.epoch
        job.message = message
        job.appended_at = message.timestamp()[1] / 1000
        job.offset = message.offset()
        job.lane = lane
        job.lot = lot
        job.next = None
        job.args = args
        job.raw_id = raw_id
        job.started_at = job.duration_s = job.wait_s = 0.0
        job.error = None
        job.outcome = ""
        job.asked_to_stop = False
        if meta is not None:
            job.meta = meta
            job.run = meta.run
            job.attempt = meta.attempt
            job.due = meta.due
            job.strikes = meta.strikes
        return job

    @classmethod
    def local(cls, job_type: JobType[Any, Any], id: str = "local") -> Job:
        """The job that a handler gets when it is called as an ordinary function: attempt 1, no record behind it."""
        home = Partition("local", 0, job_type.queue, retry=False, topic_id=b"", epoch=0, tracker=None)
        meta = Meta(job_type=job_type.name, job_id=id, origin="local/0/0")
        return cls.of(job_type, home, _LocalMessage(), meta, (), id.encode())

    # What it is -----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The caller's id or a UUIDv7; the origin where the record has none."""
        return self.raw_id.decode()

    @property
    def type(self) -> str:
        return self.job_type.name

    @property
    def queue(self) -> str:
        return self.job_type.queue

    @property
    def key(self) -> str | None:
        raw = self.message.key()
        return None if raw is None else raw.decode("utf-8", "replace")

    @property
    def topic(self) -> str:
        return self.home.topic

    @property
    def partition(self) -> int:
        return self.home.number

    @property
    def max_attempts(self) -> int:
        return self.job_type.retry.attempts

    @property
    def headers(self) -> dict[str, bytes]:
        """All headers of the record, the publisher's own included; one that was written without a value is empty."""
        return {name: value or b"" for name, value in self.message.headers() or ()}

    @property
    def tags(self) -> tuple[str, ...]:
        tags = self.full_meta.tags
        return tuple(tags.split(",")) if tags else ()

    @property
    def full_meta(self) -> Meta:
        if self.meta is None:
            self.meta = Meta.parse(self.message.headers())
        return self.meta

    @property
    def origin(self) -> str:
        """The identity over all runs: where its first record lies."""
        if not self._origin:
            home = self.home
            known = self.meta.origin if self.meta is not None else ""
            self._origin = known or wire.origin_of(home.topic, home.topic_id, home.number, self.offset)
        return self._origin

    @property
    def first_appended_at(self) -> float:
        """When the broker appended the job's first record, epoch seconds."""
        return (self.meta.appended if self.meta is not None else 0.0) or self.appended_at

    @property
    def published_at(self) -> datetime:
        return datetime.fromtimestamp(self.first_appended_at, UTC)

    @property
    def error_type(self) -> str:
        failure = self.failure
        if failure is not None and failure.error_type:
            return failure.error_type
        return "" if self.error is None or isinstance(self.error, Signal) else type(self.error).__qualname__

    @property
    def error_message(self) -> str:
        return "" if self.error is None else text_of(self.error)

    @property
    def reason(self) -> str:
        """Why it did not succeed; of a dead letter, the reason's name."""
        return self.letter or ("" if self.failure is None else self.failure.reason)

    # What a running handler may ask and say ----------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """True once the job was cancelled, or its partition left: what it still does, the next owner does again."""
        return self.asked_to_stop or self.epoch != self.home.epoch

    @property
    def deadline(self) -> datetime | None:
        """When its timeout strikes; None: it has none, or has not started."""
        timeout_s = self.job_type.timeout_s
        return datetime.fromtimestamp(self.started_at + timeout_s, UTC) if timeout_s and self.started_at else None

    def heartbeat(self, progress: Any = None) -> None:
        """Says that the job goes on, with anything that shows how far it is. Raises JobCancelled if it should stop."""
        if progress is not None:
            self._progress = progress
        if self.cancelled:
            raise JobCancelled(f"job {self.id} is cancelled")

    @property
    def progress(self) -> Any:
        return self._progress

    def show_progress(self, progress: Any) -> None:
        """Notes what a handler said that runs in another process."""
        self._progress = progress

    def start(self, at: float) -> None:
        """Notes that the handler begins now (epoch seconds)."""
        self.started_at = at
        since = self.appended_at
        if self.due:
            since = max(since, self.due)
        self.wait_s = at - since if at > since else 0.0

    def is_expired(self, now: float) -> bool:
        """Whether it is too late for a run of it to begin (epoch seconds)."""
        meta = self.meta
        return meta is not None and 0 < meta.expires < now

    def cancel(self) -> None:
        """Marks the run as cancelled; its handler sees it at its next look at `cancelled` or `heartbeat()`."""
        self.asked_to_stop = True

    def __repr__(self) -> str:
        return f"Job({self.type} {self.id}, run {self.run}, attempt {self.attempt}, {self.topic}/{self.partition}@{self.offset})"


class Running(Protocol):
    """What runs one brief job after the other, and knows which one is the current one."""

    current: Job | None


CURRENT: ContextVar[Job | Running | None] = ContextVar("streamjobs_job", default=None)


def current_job() -> Job | None:
    """The job that this thread or task runs now: what log records say of it, and whose its child jobs are."""
    running = CURRENT.get()
    return running if running is None or isinstance(running, Job) else running.current


class _LocalMessage:
    """No record: what a local job has in its place."""

    def __len__(self) -> int:
        return 0

    def topic(self) -> str:
        return "local"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def headers(self) -> list[wire.Header] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (0, 0)


class Outbox:
    """Child jobs: what running handlers of a transactional app published. They are sent with what settles their run, or never.

    Handlers put, the loops close: whichever comes first, a record is either taken by `close` or refused by `put`.
    """

    def __init__(self, job_types: Mapping[str, JobType[Any, Any]]) -> None:
        self._job_types = job_types
        self._lock = threading.Lock()

    def put(self, records: Sequence[Record]) -> bool:
        """Keeps records for the run that publishes them; False: whoever publishes is none. Raises PublishError if it is over."""
        job = current_job()
        if job is None or self._job_types.get(job.type) is not job.job_type:
            return False
        with self._lock:
            if job.children is None:
                raise PublishError(f"{job!r} is settled already: a transactional app publishes child jobs before its handler returns")
            job.children += tuple(records)
        return True

    def close(self, jobs: Iterable[Job]) -> dict[Job, tuple[Record, ...]]:
        """What the runs of these jobs published, of those that did; they can't publish any more."""
        found = {}
        with self._lock:
            for job in jobs:
                if job.children:
                    found[job] = job.children
                job.children = None
        return found


class Receipt(NamedTuple):
    """Where a published job lies. The broker has acknowledged it: it is not lost, whatever crashes.

    Of a child job of a transactional app: where it will lie once its parent's run is settled; the offset (and a partition that
    follows from the key) is -1, since it is not known yet.
    """

    topic: str
    partition: int
    offset: int
    id: str


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is published. Instants as epoch seconds, durations as seconds."""

    delay_s: float | None = None
    at: float | None = None
    id: str | None = None
    key: str | None = None
    tags: tuple[str, ...] = ()
    expires_s: float | None = None
    headers: Mapping[str, str | bytes] = field(default_factory=dict)


NO_OPTIONS = Options()


class Published(Generic[P]):
    """A job type with options set, ready to publish: what `job_type.options(…)` returns."""

    def __init__(self, job_type: JobType[P, Any], options: Options) -> None:
        self._job_type = job_type
        self._options = options

    def publish(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """As `JobType.publish`, with the options."""
        job_type = self._job_type
        return job_type.publisher.publish(job_type, job_type.payload.bind(args, kwargs), self._options)

    async def publish_async(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """As `JobType.publish_async`, with the options."""
        job_type = self._job_type
        return await job_type.publisher.publish_async(job_type, job_type.payload.bind(args, kwargs), self._options)

    def publish_many(self, rows: Iterable[Any]) -> list[Receipt]:
        """As `JobType.publish_many`, with the options for every row."""
        job_type = self._job_type
        return job_type.publisher.publish_many(job_type, rows, self._options)


class JobType(Generic[P, R]):
    """A typed function whose calls can be published. Made by `@app.job`; still callable as the function it was."""

    def __init__(
        self,
        fn: Callable[..., R],
        *,
        name: str,
        queue: str,
        publisher: Callable[[], Publisher],
        key: str | Callable[..., Any] | None = None,
        order: Order | None = None,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        retry_on: tuple[type[BaseException], ...] = (),
        discard_on: tuple[type[BaseException], ...] = (),
        executor: ExecutorKind | None = None,
        on_timeout: OnTimeout = "wait",
        schema: str | None = None,
    ) -> None:
        self.fn = fn
        self.name = checked_type_name(name)
        self.queue = queue
        self.key = key
        self.order: Order = order or "key"  # of those that have one: a publisher may give it, whatever the type says
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.retry = Retry() if retry is None else retry
        self.retry_on = retry_on
        self.discard_on = discard_on
        self.is_async = inspect.iscoroutinefunction(fn)
        self.kind: ExecutorKind = executor or ("aio" if self.is_async else "threads")
        self.on_timeout = on_timeout
        self.schema_path = schema
        self.strict = self.order == "key_strict"
        self.mean_s: float | None = None  # of its runs in this process; steers the size of chunks
        self.run: Callable[[Job], Any] = self._first_run
        self._publisher = publisher
        self._payload: Payload | None = None
        self.__doc__ = fn.__doc__
        self.__name__ = getattr(fn, "__name__", name)
        self.__wrapped__ = fn
        self._job_parameter = _job_parameter(fn)
        self._check()

    def _check_options(self) -> None:
        """*Bites*: `order="key-strict"`, and its jobs run as by partition; `retry=3`, and the loop of the worker ends at the first failure."""
        for option, given, kind in (("order", self.order, Order), ("executor", self.kind, ExecutorKind), ("on_timeout", self.on_timeout, OnTimeout)):
            if given not in get_args(kind):
                raise JobTypeError(f"job type {self.name}: {option}={given!r} is none of {', '.join(map(repr, get_args(kind)))}")
        for option, errors in (("retry_on", self.retry_on), ("discard_on", self.discard_on)):
            if not isinstance(errors, tuple) or not all(isinstance(each, type) and issubclass(each, BaseException) for each in errors):
                raise JobTypeError(f"job type {self.name}: {option}={errors!r} is no class of exceptions, and no tuple of such")
        if not isinstance(self.retry, Retry):
            raise JobTypeError(f"job type {self.name}: retry={self.retry!r}: write it such as Retry(attempts=3)")
        if not (self.key is None or isinstance(self.key, str) or callable(self.key)):
            raise JobTypeError(f"job type {self.name}: key={self.key!r} is neither a parameter's name nor a function of the arguments")

    def _check(self) -> None:
        self._check_options()
        if self.order == "key_strict" and self.key is None:
            raise JobTypeError(f"job type {self.name}: order={self.order!r} needs key=…, the parameter whose jobs keep their order")
        if self.strict and self.kind == "threads" and self.on_timeout == "retry":
            raise JobTypeError(
                f"job type {self.name}: order='key_strict' can't have on_timeout='retry': a thread can't be ended, and the next run of the job "
                "would begin while this one goes on. Use executor='processes', an async function, or on_timeout='wait'"
            )
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise JobTypeError(f"job type {self.name}: timeout must be longer than 0")
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            raise JobTypeError(f"job type {self.name} is a generator, of which a call runs nothing: leave `yield` out of it")
        if self.is_async and self.kind != "aio":
            raise JobTypeError(f"job type {self.name} is async and can't run on {self.kind}: leave executor out")
        if not self.is_async and self.kind == "aio":
            raise JobTypeError(f"job type {self.name} is no async function: executor 'aio' can't run it")
        parameters = inspect.signature(self.fn).parameters
        if isinstance(self.key, str) and self.key not in parameters and not _takes_model(parameters.values()):
            raise JobTypeError(f"job type {self.name}: key={self.key!r} is none of its parameters ({', '.join(parameters)})")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function here and now; a parameter annotated `Job` gets a local job (attempt 1)."""
        name, place = self._job_parameter
        if not name or name in kwargs or any(isinstance(argument, Job) for argument in args):
            return self.fn(*args, **kwargs)
        if len(args) >= place:
            return self.fn(*args[:place], Job.local(self), *args[place:], **kwargs)
        return self.fn(*args, **{name: Job.local(self)}, **kwargs)

    def _first_run(self, job: Job) -> Any:
        """Binds how the handler is called with a job, then calls it."""
        self.run = self.bound()
        return self.run(job)

    def bound(self) -> Callable[[Job], Any]:
        """Calls the handler with a job's arguments."""
        return self.payload.caller(self.fn)

    def observe_mean(self, duration_s: float, jobs: int = 1) -> None:
        """A moving mean of its durations, to which so many jobs add this one; it only steers the size of chunks, so a lost update does
        no harm. *Bites*, with a tenth for each list, however long: the first job takes 100 µs in a cold process, the others 2, and
        until that is forgotten 30 chunks are too small."""
        mean = self.mean_s
        self.mean_s = duration_s if mean is None else mean + (duration_s - mean) * (1 - 0.9**jobs)

    @property
    def publisher(self) -> Publisher:
        return self._publisher()

    @property
    def payload(self) -> Payload:
        """Validates, encodes and decodes its arguments; derived at its first use. Raises JobTypeError."""
        if self._payload is None:
            from streamjobs.avro.codec import Payload

            self._payload = Payload(self.fn, name=self.name, schema=self.schema_path)
        return self._payload

    def publish(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Validates the arguments, sends the job and waits for the broker's acknowledgement.

        Raises PayloadError (nothing was sent) or, after `publish_timeout`, PublishError.
        """
        return self.publisher.publish(self, self.payload.bind(args, kwargs), NO_OPTIONS)

    async def publish_async(self, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """As `publish`, without blocking the event loop."""
        return await self.publisher.publish_async(self, self.payload.bind(args, kwargs), NO_OPTIONS)

    def publish_many(self, rows: Iterable[Any]) -> list[Receipt]:
        """Publishes one job a row, with one flush: mappings of arguments, tuples of them, or payload models.

        All rows are validated before the first is sent. Raises PayloadError naming the row, or PublishError, whose `receipts`
        say which rows are stored.
        """
        return self.publisher.publish_many(self, rows, NO_OPTIONS)

    def publish_arguments(self, arguments: Mapping[str, Any], **options: Any) -> Receipt:
        """As `options(**options).publish(**arguments)`, for callers that have the arguments as data."""
        return self.publisher.publish(self, self.payload.validate(arguments), make_options(**options))

    def options(
        self,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        id: str | None = None,
        key: str | None = None,
        tags: Iterable[str] = (),
        expires: Duration | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Published[P]:
        """This job type with options for publishing.

        `delay` or `at`: when it runs. `id`: instead of a UUIDv7; publishing one id twice makes two jobs. `key`: instead of the
        job type's. `expires`: this long after it was published, or after it was due, no run of it begins any more, a retry neither: it
        ends as expired, without a letter. `headers`: yours.
        """
        made = make_options(delay=delay, at=at, id=id, key=key, tags=tags, expires=expires, headers=headers)
        return Published(self, made)

    def key_of(self, arguments: Mapping[str, Any]) -> str | None:
        """The key of a job with these (validated) arguments."""
        key = self.key
        if key is None:
            return None
        value = arguments_value(arguments, key) if isinstance(key, str) else key(**arguments)
        return None if value is None else str(value)

    def keys_of(self, rows: Sequence[Sequence[Any]]) -> list[str | None]:
        """The keys of many jobs, from their (validated) arguments in the order of the payload's `names`."""
        if self.key is None:
            return [None] * len(rows)
        names = self.payload.names
        if self.key not in names:
            return [self.key_of(dict(zip(names, row, strict=True))) for row in rows]
        place = names.index(self.key)
        return [None if (value := row[place]) is None else str(value) for row in rows]

    def __repr__(self) -> str:
        return f"JobType({self.name!r}, queue={self.queue!r})"


def make_options(
    *,
    delay: Duration | None = None,
    at: datetime | None = None,
    id: str | None = None,
    key: str | None = None,
    tags: Iterable[str] = (),
    expires: Duration | None = None,
    headers: Mapping[str, str | bytes] | None = None,
) -> Options:
    """Options as a user writes them. Raises UsageError for those that contradict each other or can't travel."""
    if delay is not None and at is not None:
        raise UsageError("give delay= or at=, not both: they are two ways to say when the job runs")
    if at is not None and not isinstance(at, datetime):
        raise UsageError(f"at= is {at!r}: give a datetime with a time zone, or delay=")
    if at is not None and at.tzinfo is None:
        raise UsageError("at= needs a time zone (datetime.now(timezone.utc) + …): without one nobody knows when it is")
    if at is not None and at.timestamp() < 0:
        raise UsageError(f"at= is {at.isoformat()}: give an instant after 1970-01-01, from which those of jobs are counted")
    for what, text in (("id=", id), ("key=", key)):
        _check_text(what, "" if text is None else text)
    if id is not None and (not id or len(id.encode()) > 256):
        raise UsageError("id= is text of 1 to 256 bytes")
    expires_s = None if expires is None else seconds(expires)
    if expires_s == 0:
        raise UsageError("a job that expires after 0 s never runs: give it time, or leave `expires` out")
    if expires_s is not None and expires_s > _LONGEST_S:
        raise UsageError("a job that expires after more than 1,000 years never does: leave `expires` out")
    tags = (tags,) if isinstance(tags, str) else tuple(tags)
    _check_tags(tags)
    for name, value in (headers or {}).items():
        _check_header(name, value)
    return Options(
        delay_s=None if delay is None else seconds(delay),
        at=None if at is None else at.timestamp(),
        id=id,
        key=key,
        tags=tags,
        expires_s=expires_s,
        headers=dict(headers or {}),
    )


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{what} {text!r} is {type(text).__name__}: give text")
    if not wire.is_utf8(text):
        raise UsageError(f"{what} {text!r} can't be sent: it has lone surrogates, which UTF-8 has not; is its source in another encoding?")


def _check_tags(tags: Sequence[str]) -> None:
    """*Bites*: they make a longer header than one of ours may be, `publish` is acknowledged, and no worker can read the job."""
    for tag in tags:
        _check_text("tag", tag)
    if any("," in tag or not tag for tag in tags):
        raise UsageError("a tag is text without commas")
    size = len(",".join(tags).encode())
    if size > wire.MAX_HEADER:
        raise UsageError(f"tags= has {size:,} bytes with its commas, more than {wire.MAX_HEADER:,}: give fewer or shorter ones, or use headers=")


def _check_header(name: str, value: str | bytes) -> None:
    _check_text("header", name)
    if name.startswith(("ce_", "sj_")) or name.lower() == "content-type":
        raise UsageError(f"header {name!r} belongs to streamjobs: choose a name that does not begin with ce_ or sj_")
    if not wire.is_header_name(name):
        raise UsageError(f"header {name!r} can't be sent: a name is text without zeros, and without lone surrogates, which UTF-8 has not")
    if isinstance(value, str):
        _check_text(f"header {name!r}:", value)
    elif not isinstance(value, bytes):
        raise UsageError(f"header {name!r} is {type(value).__name__}: give text or bytes")


def checked_type_name(name: str) -> str:
    """A job type's name: what travels as `ce_type`. Raises JobTypeError."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}", name):
        return name
    raise JobTypeError(f"job type {name!r}: a name is a letter followed by letters, digits, '_', '-' or '.' (200 at most)")


def arguments_value(arguments: Mapping[str, Any], name: str) -> Any:
    """The argument of that name; of a payload that is one model, the model's field."""
    if name in arguments:
        return arguments[name]
    only = next(iter(arguments.values()), None)
    return getattr(only, name, None)


def _job_parameter(fn: Callable[..., Any]) -> tuple[str, int]:
    """Name and place of the parameter annotated `Job`; ("", 0): there is none."""
    for place, (name, parameter) in enumerate(inspect.signature(fn).parameters.items()):
        if _is_job(parameter):
            return name, place
    return "", 0


def _is_job(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    return annotation is Job or (isinstance(annotation, str) and annotation.rpartition(".")[2] == "Job")


def _takes_model(parameters: Iterable[inspect.Parameter]) -> bool:
    own = [p for p in parameters if not _is_job(p)]
    return len(own) == 1 and own[0].annotation not in (int, str, float, bool, bytes)

