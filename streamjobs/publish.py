"""Publishing: validated arguments → record → producer → receipt. Nothing is sent before it is validated and encoded."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from streamjobs.core import duration
from streamjobs.core import record as wire
from streamjobs.core.delay import Ladder
from streamjobs.core.partitioner import partition_of_job
from streamjobs.core.record import CONTENT_TYPE, HeaderValue, Record
from streamjobs.deployment import applying
from streamjobs.errors import BrokerError, PayloadError, PublishError
from streamjobs.job import NO_OPTIONS, JobType, Options, Outbox, Receipt, current_job

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.broker import Ack, Message, Producer

#: What retry and letter headers may add to a job; `publish` refuses one that leaves less.
HEADROOM = 32 * 1024
#: How long one thread serves acknowledgements before it looks whether its own has come through another thread.
_SLICE_S = 0.05
#: So much of `publish_timeout` the client has to deliver a job. *Bites*: `publish` raises after a second, its user publishes again, and
#: within the client's nine the broker is back, and has both.
_OF_ITS_TIME = 0.9
#: A job without options has fixed headers only: in bytes less than this.
_PLAIN_HEADERS = 2048
#: Of many jobs so many are under way at most, and that is looked at after so many. No more has a client ever in hand that is not slowed
#: down by its broker: a job takes longer to make than to send.
_UNDER_WAY, _LOOKS = 10_000, 1_000
_VERSION, _CONTENT_TYPE = ("ce_specversion", b"1.0"), ("content-type", CONTENT_TYPE)


Observe = Callable[[JobType[Any, Any], int, int, float | None], None]
"""Is told of each publication: job type, how many jobs, how many of them failed, seconds until all were acknowledged (None: in a
transaction, later)."""
Trace = Callable[..., tuple[list[wire.Header], Callable[..., None]]]
"""Puts a job's trace into its headers, and gives what ends the span (`telemetry.tracing.Tracing.send`)."""


Tuple = TypeVar("Tuple", bound=tuple[Any, ...])


class Sending:
    """One record on its way: set once, by whichever thread polls the producer."""

    __slots__ = ("done", "error", "job_id", "message", "span_ends", "then")

    def __init__(self, job_id: str, then: Callable[[Sending], object] | None = None) -> None:
        self.job_id = job_id
        self.message: Message | None = None
        self.error: BrokerError | None = None
        self.done = False
        self.then = then
        self.span_ends: Callable[..., None] | None = None

    def __call__(self, error: BrokerError | None, message: Message) -> None:
        self.error, self.message, self.done = error, message, True
        if self.span_ends is not None:
            self.span_ends(error, message.partition(), message.offset() if error is None else -1)
        if self.then is not None:
            self.then(self)

    def receipt_to_be(self, record: Record) -> Receipt:
        """Of a child job, which is sent later."""
        if self.span_ends is not None:
            self.span_ends(None, record.partition, -1)
        return Receipt(record.topic, record.partition, -1, self.job_id)

    def receipt(self) -> Receipt:
        """Raises PublishError if the broker refused it, or time was up. *Bites*: the partition's leader freezes with the job in hand, its
        publisher is told that it was not stored, publishes it anew with another id, and both run."""
        message, error = self.message, self.error
        if error is not None and (error.retriable or error.fatal):
            raise PublishError(f"job {self.job_id} was not acknowledged: {error}. {_again(self.job_id)}") from error
        if error is not None or message is None:
            raise PublishError(f"job {self.job_id} was not stored: {error}") from error
        return Receipt(message.topic(), message.partition(), message.offset(), self.job_id)


class Batch:
    """Many records on their way: `acked` is called once a record, by whichever thread polls the producer.

    It keeps numbers, not messages: to look through ten thousand more objects took the garbage collector as long as sending them.
    """

    __slots__ = ("errors", "left", "offsets", "partitions", "topic", "unsent")

    def __init__(self, topic: str, size: int) -> None:
        self.topic = topic
        self.left = size
        self.partitions = [-1] * size
        self.offsets: list[int | None] = [None] * size
        """Of what is known to be stored."""
        self.errors: list[Exception] = []
        self.unsent = 0

    def acked(self, place: int, error: BrokerError | None, message: Message) -> None:
        if error is None:
            self.partitions[place] = message.partition()
            self.offsets[place] = message.offset()
        else:
            self.errors.append(error)
        self.left -= 1

    @property
    def answered(self) -> int:
        return len(self.offsets) - self.left

    @property
    def stored(self) -> int:
        return self.answered - len(self.errors)

    def stopped(self, place: int, error: PublishError) -> None:
        """The record at this place could not be sent; so neither it nor those behind it are."""
        self.unsent = len(self.offsets) - place
        self.left -= self.unsent
        self.errors.insert(0, error)

    @property
    def done(self) -> bool:
        return self.left <= 0

    def receipts(self, ids: list[str]) -> list[Receipt]:
        """In the order of the rows. Raises PublishError if the broker refused any, or some were not sent."""
        receipts = list(_made(Receipt, repeat(self.topic), self.partitions, self.offsets, ids))
        if self.errors:
            raise self.failure(receipts, self.errors[0]) from self.errors[0]
        return receipts

    def failure(self, receipts: list[Receipt], why: Exception) -> PublishError:
        """What is known of each row, so that its publisher can go on."""
        stored: list[Receipt | None] = [None if receipt.offset is None else receipt for receipt in receipts]
        missing = stored.count(None)
        return PublishError(
            f"{missing} of {len(stored)} jobs were not stored, as far as is known: {len(stored) - missing} were, "
            f"{missing - self.unsent} were refused or not acknowledged, {self.unsent} were not sent; the error's `receipts` say "
            f"which. The first because: {why}",
            receipts=stored,
            unsent=self.unsent,
        )


class Publisher:
    """The publishing side of one App. Any thread may call it; a forked child gets a producer of its own."""

    def __init__(self, app: App, observe: Observe | None = None, trace: Trace | None = None) -> None:
        self._app = app
        self._settings = app.settings
        self._names = app.names
        self._producer: Producer | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._polling = threading.Lock()
        self._registered: set[bytes] = set()
        self._partitions: dict[str, int] = {}
        self._ladders: dict[str, str] = {}
        self._poller: threading.Thread | None = None
        self._closed = False
        self._limit = self._settings.max_message_bytes - HEADROOM
        self._ladder = Ladder(tuple(self._settings.delay.tiers))
        self._source = ("ce_source", app.name.encode())
        self._known: dict[JobType[Any, Any], tuple[str, tuple[str, bytes]]] = {}  # its topic and the header that names it
        self.observe = observe
        self.outbox: Outbox | None = None
        """Of a worker of a transactional app: takes what its handlers publish."""
        self.trace = trace
        _living.add(self)

    # The three ways to publish ---------------------------------------------------------------------------------------

    def publish(self, job_type: JobType[Any, Any], arguments: Mapping[str, Any], options: Options = NO_OPTIONS) -> Receipt:
        """Sends one job and waits for its acknowledgement. Raises PublishError after `publish_timeout`."""
        deadline = time.monotonic() + self._settings.publish_timeout
        sending, record = self._prepared(job_type, arguments, options)
        if self.outbox is not None and self._joins(job_type, [record]):
            return sending.receipt_to_be(record)
        began = time.monotonic()
        self._send(record, sending, deadline)
        self._wait(sending, deadline)
        if sending.error is not None:
            self._doubt(sending.error)
        self._observed(job_type, 1, 0 if sending.error is None else 1, time.monotonic() - began)
        return sending.receipt()

    def publish_many(self, job_type: JobType[Any, Any], rows: Iterable[Any], options: Options = NO_OPTIONS) -> list[Receipt]:
        """Sends a job a row and waits once for all. Raises PayloadError before anything is sent, or PublishError once nothing moves on
        for `publish_timeout`: many rows may take longer."""
        topic, ids, records = self._prepared_many(job_type, rows, options)
        if self.outbox is not None and self._joins(job_type, records := list(records)):
            return [Receipt(record.topic, record.partition, -1, job_id) for record, job_id in zip(records, ids, strict=True)]
        began = time.monotonic()
        batch = Batch(topic, len(ids))
        self._send_many(records, batch)
        try:
            self._wait_for_all(batch)
        except PublishError as late:
            batch.errors.append(late)
        self._doubt(*batch.errors)
        self._observed(job_type, len(ids), batch.offsets.count(None), time.monotonic() - began)
        return batch.receipts(ids)

    async def publish_async(
        self, job_type: JobType[Any, Any], arguments: Mapping[str, Any], options: Options = NO_OPTIONS
    ) -> Receipt:
        """Sends one job without blocking the event loop. Raises PublishError after `publish_timeout`."""
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[Receipt] = loop.create_future()
        # In this task's context: the trace that the job belongs to is in it.
        sending, record = await asyncio.to_thread(self._prepared, job_type, arguments, options)
        if self._joins(job_type, [record]):
            return sending.receipt_to_be(record)
        sending.then = lambda done: loop.call_soon_threadsafe(_resolve, future, done)
        began = time.monotonic()
        timeout = self._settings.publish_timeout
        await loop.run_in_executor(None, self._send, record, sending, began + timeout)
        self._start_poller()
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise self._late(sending) from None
        finally:
            ok = sending.done and sending.error is None
            self._doubt(sending.error)
            self._observed(job_type, 1, 0 if ok else 1, time.monotonic() - began)

    def _joins(self, job_type: JobType[Any, Any], records: list[Record]) -> bool:
        """Whether the records are child jobs of a run of a transactional app: then they are sent with what settles it."""
        if self.outbox is None or not self.outbox.put(records):
            return False
        self._observed(job_type, len(records), 0, None)
        return True

    def check(self, job_type: JobType[Any, Any], options: Options) -> None:
        """Raises PayloadError for options with which no job can be published, PublishError where its queue can't delay any."""
        self._route(job_type.queue, options, self._app.clock.now())

    # Making the record -----------------------------------------------------------------------------------------------

    def _prepared(self, job_type: JobType[Any, Any], arguments: Mapping[str, Any], options: Options) -> tuple[Sending, Record]:
        payload = job_type.payload
        if payload.fingerprint not in self._registered:
            self._register(payload)
        value = payload.encode(arguments)
        key = options.key if options.key is not None else job_type.key_of(arguments)
        job_id = options.id or new_id()
        now = self._app.clock.now()
        topic, headers = self._headers(job_type, options, job_id, now)
        record = Record(topic, value, None if key is None else key.encode(), headers, self._partition(topic, key, job_id))
        self._check_size(job_type, record)
        sending = Sending(job_id)
        if self.trace is not None:
            record, sending.span_ends = self._traced(self.trace, job_type, record, job_id)
        return sending, record

    def _traced(
        self, trace: Trace, job_type: JobType[Any, Any], record: Record, job_id: str
    ) -> tuple[Record, Callable[..., None]]:
        """The record with the trace it belongs to, and what ends the span of its sending."""
        key = None if record.key is None else record.key.decode("utf-8", "replace")
        sent = trace(record.topic, record.headers, job_id=job_id, job_type=job_type.name, queue=job_type.queue, key=key)
        return record._replace(headers=sent[0]), sent[1]

    def _prepared_many(
        self, job_type: JobType[Any, Any], rows: Iterable[Any], options: Options
    ) -> tuple[str, list[str], Iterable[Record]]:
        """Topic, ids and records. Each record is made when it is its turn, so that they do not all live at once."""
        payload = job_type.payload
        values, arguments = payload.encode_many(rows)
        if payload.fingerprint not in self._registered:
            self._register(payload)
        ids = [options.id] * len(values) if options.id else new_ids(len(values))
        topic, (type_, _, *rest) = self._headers(job_type, options, "", self._app.clock.now())
        keys = [options.key] * len(values) if options.key is not None else job_type.keys_of(arguments)
        raw_keys = [None if key is None else key.encode() for key in keys]
        records: Iterable[Record] = _made(
            Record,
            repeat(topic),
            values,
            raw_keys,
            ([type_, ("ce_id", job_id.encode()), *rest] for job_id in ids),
            [self._partition(topic, key, job_id) for key, job_id in zip(keys, ids, strict=True)],
        )
        room = self._limit - sum(len(n) + len(v) + 8 for n, v in rest) - 512
        if max(map(len, values), default=0) + max((len(key) for key in raw_keys if key), default=0) > room:
            records = list(records)
            for record in records:
                self._check_size(job_type, record)
        if self.trace is not None:
            records = map(partial(self._traced_at_once, self.trace, job_type), records, ids)
        return topic, ids, records

    def _traced_at_once(self, trace: Trace, job_type: JobType[Any, Any], record: Record, job_id: str) -> Record:
        record, end = self._traced(trace, job_type, record, job_id)
        end()
        return record

    def _headers(
        self, job_type: JobType[Any, Any], options: Options, job_id: str, now: float
    ) -> tuple[str, list[tuple[str, bytes]]]:
        known = self._known.get(job_type)
        if known is None:
            known = self._known[job_type] = self._names.main(job_type.queue), ("ce_type", job_type.name.encode())
        topic, type_header = known
        headers = [type_header, ("ce_id", job_id.encode()), _VERSION, self._source, ("ce_time", timestamp(now)), _CONTENT_TYPE]
        parent = current_job()
        if parent is not None:
            headers.append(("sj_parent", parent.id.encode()))
        if options is NO_OPTIONS:
            return topic, headers
        topic, ours = self._route(job_type.queue, options, now)
        ours["sj_tags"] = ",".join(options.tags) or None
        headers += wire.encoded(ours.items())
        headers += [(name, value if isinstance(value, bytes) else value.encode()) for name, value in options.headers.items()]
        return topic, headers

    def _route(self, queue: str, options: Options, now: float) -> tuple[str, dict[str, HeaderValue]]:
        """Where the record goes first: the queue's topic, or the ladder for a delay that is longer than its smallest tier."""
        main = self._names.main(queue)
        due = now + options.delay_s if options.delay_s is not None else options.at
        headers: dict[str, HeaderValue] = {}
        if options.expires_s is not None:
            headers["sj_expires"] = (due or now) + options.expires_s
        if due is None or due <= now:
            return main, headers
        if due - now > self._settings.max_delay:
            raise PayloadError(
                f"a delay of {duration.text(round(due - now))} is longer than max_delay ({duration.text(self._settings.max_delay)}): "
                "publish it later, or raise the setting"
            )
        headers["sj_due"] = due
        tier = self._ladder.tier_for(due - now)
        if tier is None:
            return main, headers
        headers["sj_next"] = main
        return self._names.delay(self._ladder_of(queue), tier), headers

    def _ladder_of(self, queue: str) -> str:
        """The app whose ladder carries this queue's delays: of those that registered it ours, else the last."""
        found = self._ladders.get(queue)
        if found is None:
            from streamjobs import orders

            found = orders.read(self._app.broker, self._names).ladder_of(self._names.main(queue), self._app.name)
            if found is None:
                raise PublishError(
                    f"queue {queue!r} can't delay jobs yet: no app has registered it; run `streamjobs topic apply` for the app "
                    "whose workers run it"
                )
            self._ladders[queue] = found
        return found

    def _partition(self, topic: str, key: str | None, job_id: str) -> int:
        """-1: by its key. A keyless record goes by its job id, so that copies of it meet."""
        if key is not None:
            return -1
        count = self._partitions.get(topic)
        if count is None:
            found = self._app.broker.admin().topics([topic])
            if topic not in found:
                raise PublishError(f"topic {topic} does not exist: run `{applying(self._app)}`, or check the queue's name")
            count = self._partitions[topic] = found[topic].partitions
        return partition_of_job(job_id.encode(), count)

    def _doubt(self, *errors: Exception | None) -> None:
        """A topic that was made again may have fewer partitions than it had: then they are counted anew."""
        if any(isinstance(error, BrokerError) and error.code == "_UNKNOWN_PARTITION" for error in errors):
            self._partitions.clear()

    def _check_size(self, job_type: JobType[Any, Any], record: Record) -> None:
        size, limit = len(record.value or b"") + len(record.key or b""), self._limit
        if len(record.headers) == len(wire.FIXED) and size + _PLAIN_HEADERS <= limit:
            return
        size += sum(len(name) + len(value or b"") + 8 for name, value in record.headers)
        if size > limit:
            raise PayloadError(
                f"a {job_type.name} job of {size:,} bytes is larger than {limit:,} (max_message_bytes less what retries add): "
                "store the data elsewhere and publish a reference, or raise the setting and run `streamjobs topic apply`"
            )

    def _register(self, payload: Any) -> None:
        """The schema is acknowledged before the first job that needs it."""
        key, value = payload.fingerprint.hex().encode(), payload.canonical.encode()
        deadline = time.monotonic() + self._settings.publish_timeout
        sending = Sending("")
        self._send(Record(self._names.schemas, value, key), sending, deadline)
        self._wait(sending, deadline)
        if sending.error is not None:
            raise PublishError(f"the job's schema could not be stored in {self._names.schemas}: {sending.error}") from sending.error
        self._registered.add(payload.fingerprint)

    # Sending ---------------------------------------------------------------------------------------------------------

    def producer(self) -> Producer:
        """This process's producer: one that was used before a fork delivers nothing in the child."""
        producer = self._producer
        if producer is not None and producer.fatal() is None:
            return producer
        with self._lock:
            if self._producer is not None and self._producer.fatal() is not None:
                self._producer.close(0)
                self._producer = None
            if self._producer is None:
                self._producer = self._app.broker.producer(within=_OF_ITS_TIME * self._settings.publish_timeout)
            return self._producer

    def _send(self, record: Record, ack: Ack, deadline: float, about: Any = None) -> None:
        """Queues it; while the client's queue is full, serves acknowledgements until there is room."""
        producer = self.producer()
        while True:
            try:
                return producer.send(record, ack, about)
            except BrokerError as error:
                if error.code != "_QUEUE_FULL" or time.monotonic() > deadline:
                    self._doubt(error)
                    raise PublishError(f"a job was not sent to {record.topic}: {error}") from error
            producer.poll(_SLICE_S)

    def _send_many(self, records: Iterable[Record], batch: Batch) -> None:
        send, acked = self.producer().send, batch.acked
        for place, record in enumerate(records):
            if place % _LOOKS == 0 and not self._makes_room(batch, place):
                why = next(iter(batch.errors), None) or self._late(batch)
                return batch.stopped(place, PublishError(f"no more were sent, for none gets through: {why}"))
            try:
                send(record, acked, place)
            except BrokerError:  # mostly a full queue
                try:
                    self._send(record, acked, time.monotonic() + self._settings.publish_timeout, place)
                except PublishError as error:
                    return batch.stopped(place, error)

    def _makes_room(self, batch: Batch, sent: int) -> bool:
        """Waits while too many are under way; False: none of them gets through.

        *Bites*: the broker takes 8,000 jobs a second, 100,000 wait in the client's queue, and the last ones are given up there after nine
        seconds, though nothing is wrong.
        """
        if sent - batch.answered <= _UNDER_WAY:
            return True
        before, stored = batch.answered, batch.stored
        answered, deadline = -1, 0.0
        while sent - batch.answered > _UNDER_WAY:
            if batch.answered != answered:
                answered, deadline = batch.answered, time.monotonic() + self._settings.publish_timeout
            elif time.monotonic() > deadline:
                return False
            self.producer().poll(_SLICE_S)
        return batch.stored > stored or batch.answered - before < _LOOKS  # a few may be refused, each for itself

    def _wait_for_all(self, batch: Batch) -> None:
        """Raises PublishError once none was acknowledged for as long as one may take."""
        left = -1
        while left != batch.left:
            left = batch.left
            try:
                return self._wait(batch, time.monotonic() + self._settings.publish_timeout)
            except PublishError as error:
                late = error
        raise late

    def _wait(self, sending: Sending | Batch, deadline: float) -> None:
        """Serves acknowledgements until all have theirs: one thread polls for all, the others look again after a moment."""
        producer = self.producer()
        while not sending.done:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late(sending)
            if self._polling.acquire(timeout=min(left, 0.002)):
                try:
                    if not sending.done:
                        producer.poll(min(left, _SLICE_S))
                finally:
                    self._polling.release()

    def _late(self, what: Sending | Batch) -> PublishError:
        within = f"within {self._settings.publish_timeout:g} s (publish_timeout): is the broker at {self._settings.bootstrap} reachable?"
        if isinstance(what, Batch):
            return PublishError(f"{what.left} job(s) were not acknowledged {within} {_again('')}")
        if not what.job_id:
            return PublishError(f"the job's schema was not acknowledged {within} The job was not sent")
        return PublishError(f"job {what.job_id} was not acknowledged {within} {_again(what.job_id)}")

    def _start_poller(self) -> None:
        """Acknowledgements of `publish_async` are served by a thread of their own."""
        with self._lock:
            if self._poller is None or not self._poller.is_alive():
                self._poller = threading.Thread(target=self._poll_forever, name="streamjobs-publish", daemon=True)
                self._poller.start()

    def _poll_forever(self) -> None:
        """Makes no producer. *Bites*: the app is closed between its look and its call: it connects once more, and nobody closes that; after a
        test, to a cluster named `memory`, which the app has from then on."""
        pid = self._pid
        while not self._closed and pid == os.getpid():
            producer = self._producer
            if producer is None:  # another one is being made for one that is of no use any more
                time.sleep(0.01)
            else:
                producer.poll(0.1)

    def _observed(self, job_type: JobType[Any, Any], count: int, failed: int, took_s: float | None) -> None:
        if self.observe is not None:
            self.observe(job_type, count, failed, took_s)

    def flush(self, timeout: float | None = None) -> int:
        """Waits for all that was sent; returns how many records are still open."""
        producer = self._producer
        return 0 if producer is None else producer.flush(self._settings.publish_timeout if timeout is None else timeout)

    def close(self) -> None:
        self._closed = True
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(self._settings.publish_timeout)

    def forget_producer(self) -> None:
        """In a forked child: the parent's producer is not ours, nor ours to close (see `kafka/forks.py`)."""
        self._lock = threading.RLock()
        self._polling = threading.Lock()
        self._producer = None
        self.outbox = None  # nobody here settles the run that put something into it
        self._poller = None
        self._pid = os.getpid()


def _again(job_id: str) -> str:
    """What to do about a job of which nobody knows whether it is stored; without an id: about many."""
    what, with_id = ("It", f"id={job_id!r}") if job_id else ("They", "the same id=")
    return f"{what} may still have been stored: publish again with {with_id}, and let the handler be idempotent"


def new_id() -> str:
    """A UUIDv7 as text (RFC 9562 §5.7): sortable by its millisecond."""
    ms, random = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    return f"{ms[:8]}-{ms[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"


def new_ids(count: int) -> list[str]:
    """So many of one millisecond, for less: each is the one before it plus one (RFC 9562 §6.2, method 2), so they sort as their rows.

    The last 48 bits of the first begin with 0, so none of fewer than 2^47 overflows.
    """
    begin, last = new_id()[:24], int.from_bytes(os.urandom(6), "big") >> 1
    return [f"{begin}{number:012x}" for number in range(last, last + count)]


#: The two bits of a hex digit that an id may choose, under the variant's two.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def timestamp(now: float) -> bytes:
    ms = round(now * 1_000_000) // 1000
    return b"%s.%03dZ" % (_second(ms // 1000), ms % 1000)


@lru_cache(maxsize=8)
def _second(at: int) -> bytes:
    """What all who publish within this second have in common: to make it anew took longer than to validate the arguments."""
    return datetime.fromtimestamp(at, UTC).isoformat()[:19].encode()


def _made(kind: type[Tuple], *columns: Iterable[Any]) -> Iterator[Tuple]:
    """Named tuples, one a row of the columns, for half of what calling their class costs."""
    return map(partial(tuple.__new__, kind), zip(*columns))


def _resolve(future: Any, sending: Sending) -> None:
    if future.done():
        return
    try:
        future.set_result(sending.receipt())
    except PublishError as error:
        future.set_exception(error)


_living: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _after_fork() -> None:
    for publisher in list(_living):
        publisher.forget_producer()


def _flush_all() -> None:
    for publisher in list(_living):
        publisher.flush()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_flush_all)
