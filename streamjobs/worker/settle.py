"""Settling: a run's outcome → the records it asks for → acknowledged → its offset is finished.

A settlement that fails stays, backs off and tries again; it holds its place in the window. A stale epoch writes nothing.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from streamjobs.broker import Admin, Message, Producer, TopicPartition
from streamjobs.core import record as wire
from streamjobs.core.delay import Ladder
from streamjobs.core.dispatch import Partition
from streamjobs.core.lifecycle import Failure, Reason, Settlement
from streamjobs.core.partitioner import partition_of_job
from streamjobs.core.record import HeaderValue, Meta, Record, clipped, letter_id, replaced
from streamjobs.core.topics import Names
from streamjobs.errors import BrokerError, text_of
from streamjobs.job import Cancel, Job, JobCancelled, Reject, RetryAfter, Snooze, stack_of

logger = logging.getLogger(__name__)

LONGEST_BACKOFF_S = 30.0
#: A record is refused for its size, not because of its topic.
TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
#: Headers that survive on a letter that is too large with all of them.
_BARE = frozenset({"ce_type", "ce_id", "content-type", "sj_run", "sj_attempt", "sj_origin", "sj_reason", "sj_null", "sj_key"})


@dataclass
class Routes:
    """Where what leaves a loop goes: topics of one group, and the partition of keyless records."""

    names: Names
    app: str
    group: str
    ladder: Ladder
    counts: Mapping[str, int]

    @classmethod
    def read(cls, admin: Admin, names: Names, app: str, group: str, ladder: Ladder) -> Routes:
        """Asks the cluster for the partition counts of all topics of ours. Raises BrokerError."""
        counts = {name: topic.partitions for name, topic in admin.topics().items() if names.role(name)}
        return cls(names, app, group, ladder, counts)

    def partition(self, topic: str, key: bytes | None, job_id: bytes) -> int:
        """-1 with a key (its hash decides); else by job id, so that copies of one run meet."""
        if key is not None:
            return -1
        count = self.counts.get(topic, 0)
        return partition_of_job(job_id, count) if count else -1

    def again(
        self,
        message: Message,
        home: Partition,
        meta: Meta,
        due: float,
        tier: str | None,
        changes: Mapping[str, HeaderValue],
    ) -> Record:
        """The record with which a job runs again in this group: in a tier of the ladder, or (None) on its retry topic."""
        destination = self.names.retry(home.queue, self.group)
        topic = destination if tier is None else self.names.delay(self.app, tier)
        stamped: dict[str, HeaderValue] = {
            **identity(message, home, meta),
            "sj_due": due,
            "sj_next": None if tier is None else destination,
            **changes,
        }
        partition = self.partition(topic, message.key(), meta.job_id.encode())
        return Record(topic, message.value(), message.key(), replaced(message.headers(), stamped), partition)


def identity(message: Message, home: Partition, meta: Meta) -> dict[str, HeaderValue]:
    """The headers that a job keeps over all its records: its origin, and when the broker appended its first record."""
    origin = meta.origin or wire.origin_of(home.topic, home.topic_id, home.number, message.offset())
    return {"sj_origin": origin, "sj_appended": meta.appended or message.timestamp()[1] / 1000}


def classify(job: Job) -> Failure:
    """What a run that did not return asked for; any exception that is no signal by the job type's policy. Never raises.

    *Bites*: a user's own signal has an `__init__` that sets no delay, or no reason; the loop ends, and so does the next worker's that
    runs the job.
    """
    try:
        return _asked(job)
    except Exception as problem:  # noqa: BLE001 (whatever a user's class lacks)
        kind = type(job.error).__qualname__
        return Failure("failed", clipped(f"a {kind} that can't be read: {text_of(problem)}"), error_type=kind)


def _asked(job: Job) -> Failure:
    error = job.error
    assert error is not None
    kind = type(error).__qualname__
    text = clipped(text_of(error))
    if isinstance(error, Reject):
        return Failure("rejected", str(error.reason))
    if isinstance(error, Cancel | JobCancelled):
        return Failure("cancelled", text)
    if isinstance(error, Snooze):
        return Failure("snooze", "snoozed", error.delay_s)
    if isinstance(error, RetryAfter):
        return Failure("retry_after", error.reason or "asked to be retried", error.delay_s, kind)
    policy = job.job_type
    if isinstance(error, policy.discard_on) or (policy.retry_on and not isinstance(error, policy.retry_on)):
        return Failure("discarded", text, error_type=kind)
    return Failure("failed", text, error_type=kind)


def retry_record(routes: Routes, job: Job, settlement: Settlement, failure: Failure, now: float) -> Record:
    """The record of a job's next run."""
    meta = job.full_meta
    assert settlement.due is not None
    changes: dict[str, HeaderValue] = {
        "sj_run": settlement.run,
        "sj_attempt": settlement.attempt,
        "sj_strikes": job.strikes or None,
        "sj_first_attempt": meta.first_attempt or job.started_at or now,
        "sj_holds": None,
        "sj_reason": clipped(f"{failure.error_type}: {failure.reason}" if failure.error_type else failure.reason, 200),
    }
    tier = routes.ladder.tier_for(settlement.due - now)
    return routes.again(job.message, job.home, meta, settlement.due, tier, changes)


def held_record(routes: Routes, message: Message, home: Partition, meta: Meta, due: float, reason: str, now: float) -> Record:
    """The record of a job that may not run now: the same run, no attempt charged."""
    changes: dict[str, HeaderValue] = {
        "sj_run": meta.run, "sj_attempt": meta.attempt, "sj_holds": meta.holds + 1, "sj_reason": reason,
        "sj_strikes": meta.strikes or None,
    }  # fmt: skip
    return routes.again(message, home, meta, due, routes.ladder.entry(due - now), changes)


@dataclass
class Cause:
    """Why a job is a letter."""

    reason: Reason
    error: BaseException | None = None
    text: str = ""
    run: int = 1
    attempt: int = 1
    changes: Mapping[str, HeaderValue] = field(default_factory=dict)


def letter_record(routes: Routes, message: Message, home: Partition, meta: Meta, cause: Cause) -> Record:
    """The dead letter: the original bytes, untouched, and headers that say why, where from and how often."""
    stamped = identity(message, home, meta)
    value, key = message.value(), message.key()
    error = cause.error
    stamped |= {
        "sj_run": cause.run,
        "sj_attempt": cause.attempt,
        "sj_first_attempt": meta.first_attempt or None,
        "sj_reason": cause.reason.value,
        "sj_error_type": None if error is None else type(error).__qualname__,
        "sj_error_message": clipped(cause.text or ("" if error is None else text_of(error))) or None,
        "sj_error_stack": None if error is None else clipped(stack_of(error), wire.MAX_STACK),
        "sj_key": key,
        "sj_null": 1 if value is None else None,
        "sj_due": None,
        "sj_next": None,
        "sj_holds": None,
        **cause.changes,
    }
    letter = letter_id(str(stamped["sj_origin"]), cause.run).encode()
    topic = routes.names.dead(home.queue, routes.group)
    return Record(topic, b"" if value is None else value, letter, replaced(message.headers(), stamped))


def slimmed(record: Record) -> Record | None:
    """A letter that was too large, with less: without stack and trace, then only with what a replay needs; None: nothing left.

    There are no pointer letters: the value always stays with its letter. Of what still has a way to go nothing may be
    missing. *Bites*: a held job without `sj_next` goes round in the ladder for ever.
    """
    names = {name for name, _ in record.headers}
    if "sj_due" in names:
        return None
    dropped = {"sj_error_stack", "traceparent", "tracestate", "baggage"}
    if names & dropped:
        kept = [(n, v) for n, v in record.headers if n not in dropped]
    elif names - _BARE:
        kept = [(n, Reason.TOO_LARGE.value.encode() if n == "sj_reason" else v) for n, v in record.headers if n in _BARE]
    else:
        return None
    return Record(record.topic, record.value, record.key, kept, record.partition)


def backoff(tries: int) -> float:
    """Seconds until a settlement is tried again that failed so often."""
    return min(LONGEST_BACKOFF_S, 0.1 * 2.0 ** min(tries, 10))


class Open:
    """A settlement under way: a record that must be acknowledged before an offset may be finished.

    `too_large`: the record to send instead of one that its topic refuses for its size (else it is slimmed). `retreat`: the record
    to send instead of one that has failed for so many seconds, or None to try again. `job`: whose outcome a transaction tells of.
    """

    __slots__ = ("alone", "epoch", "failing_since", "home", "job", "offset", "record", "retreat", "then", "too_large", "tries")

    def __init__(
        self,
        home: Partition,
        offset: int,
        record: Record,
        then: Callable[[], object],
        too_large: Callable[[], Record] | None = None,
    ) -> None:
        self.home = home
        self.epoch = home.epoch
        self.offset = offset
        self.record = record
        self.then = then
        self.tries = 0
        self.too_large = too_large
        self.retreat: Callable[[float, BrokerError], Record | None] | None = None
        self.failing_since = 0.0
        self.alone = False  # to share no batch, after one that it was in was refused for its size
        self.job: Job | None = None

    @property
    def records(self) -> Sequence[Record]:
        """All that is to be sent, together or not at all."""
        return (self.record,)

    @property
    def tp(self) -> TopicPartition:
        return TopicPartition(self.home.topic, self.home.number)


class Settler:
    """Sends what settlements ask for and finishes their offsets once it is acknowledged. One owner: its loop.

    Acknowledgements come by any thread that polls the shared producer; they only append to a queue here.
    """

    def __init__(self, producer: Callable[[], Producer], now: Callable[[], float]) -> None:
        self._producer = producer
        self._now = now
        self._acks: deque[tuple[Open, int, BrokerError | None]] = deque()
        self._later: list[tuple[float, int, Open]] = []
        self._number = itertools.count()
        self._sent_with: Producer | None = None
        self._unacked: set[Open] = set()
        self.blocked: dict[str, BrokerError] = {}
        self.settled = 0  # so many have ended well so far

    @property
    def open(self) -> int:
        """Settlements not yet acknowledged."""
        return len(self._unacked) + len(self._later)

    @property
    def unacknowledged(self) -> bool:
        """Whether an acknowledgement is to be expected."""
        return bool(self._unacked)

    def next_try(self) -> float | None:
        """Seconds until a settlement that failed is tried again; None: none waits for that."""
        return max(0.0, self._later[0][0] - self._now()) if self._later else None

    def settle(self, item: Open) -> None:
        """Begins a settlement; `item.then` runs once it is acknowledged and its partition is still ours."""
        item.home.open += 1
        self._send(item)

    def _send(self, item: Open) -> None:
        if item.epoch != item.home.epoch:
            return
        producer, tries = self._producer(), item.tries
        self._follow(producer)
        try:
            producer.send(item.record, lambda error, _: self._acks.append((item, tries, error)), alone=item.alone)
        except BrokerError as error:
            self._failed(item, error)
        else:
            self._unacked.add(item)

    def _follow(self, producer: Producer) -> None:
        """After a fatal error there is a new producer: what the old one never acknowledged is sent again there."""
        if self._sent_with is not None and producer is not self._sent_with and self._unacked:
            stranded, self._unacked = self._unacked, set()
            for item in stranded:
                self._schedule(item, 0.0)
        self._sent_with = producer

    def wait(self, timeout: float) -> None:
        """Until there is something to serve, but no longer: an acknowledgement, or a settlement that is tried again."""
        self._producer().poll(min(timeout, self.next_try() or timeout))

    def serve(self) -> int:
        """Handles what was acknowledged or refused, and sends again what is due; returns how many were settled by that."""
        if self._unacked or self._acks:
            producer = self._producer()
            self._follow(producer)
            producer.poll(0)
        before = self.settled
        while self._acks:
            item, tries, error = self._acks.popleft()
            if item not in self._unacked or tries != item.tries:
                continue  # sent again since, by another producer: that acknowledgement counts
            self._unacked.remove(item)
            if error is not None:
                self._failed(item, error)
            elif item.epoch == item.home.epoch:
                self.settled += 1
                item.home.open -= 1
                self.blocked.pop(item.record.topic, None)
                item.then()
        while self._later and self._later[0][0] <= self._now():
            self._send(heapq.heappop(self._later)[2])
        return self.settled - before

    def _failed(self, item: Open, error: BrokerError) -> None:
        if item.epoch != item.home.epoch:
            return
        if error.code in TOO_LARGE and not item.alone:
            # Kafka refuses a whole batch for one record that is too large. *Bites*: retries beside it, of any size, became letters
            # `too_large`. So each is sent once more without a batch, and only what is refused then is too large.
            item.alone = True
            self._schedule(item, 0.0)
            return
        if error.code in TOO_LARGE:
            smaller = item.too_large() if item.too_large else slimmed(item.record)
            item.too_large = None
            if smaller is not None:
                item.record = smaller
                self._schedule(item, 0.0)
                return
        if error.code != "_QUEUE_FULL":
            self._note_blocked(item.record.topic, error)
            self._retreat(item, error)
        self._schedule(item, backoff(item.tries))

    def _note_blocked(self, topic: str, error: BrokerError) -> None:
        if topic not in self.blocked:
            logger.error("can't write to %s: %s; the jobs keep their place and are tried again", topic, error)
        self.blocked[topic] = error

    def _retreat(self, item: Open, error: BrokerError) -> None:
        item.failing_since = item.failing_since or self._now()
        if item.retreat is not None:
            item.record = item.retreat(self._now() - item.failing_since, error) or item.record

    def _schedule(self, item: Open, delay_s: float) -> None:
        item.tries += 1
        heapq.heappush(self._later, (self._now() + delay_s, next(self._number), item))

    def jobs(self) -> list[Job | None]:
        """Whose outcomes are being settled."""
        return [item.job for item in self._items()]

    def _items(self) -> list[Open]:
        return [*self._unacked, *(entry[2] for entry in self._later)]

    def forget(self, partitions: set[TopicPartition]) -> None:
        """Partitions that left: what is still open of them is the next owner's to do again. A topic for which nothing waits any more
        is no trouble of ours; else the worker would not be ready before something else is written there."""
        self._later = [entry for entry in self._later if entry[2].tp not in partitions]
        heapq.heapify(self._later)
        self._unacked = {item for item in self._unacked if item.tp not in partitions}
        wanted = {record.topic for item in self._items() for record in item.records}
        self.blocked = {topic: error for topic, error in self.blocked.items() if topic in wanted}
