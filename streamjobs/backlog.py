"""How far each queue's groups are behind: depth, age of the oldest job, growth. From the broker alone.

Everything comes from broker offsets and commit metadata, so the numbers go on when no worker lives. Commits
are asked for before end offsets: a lag is then never negative, at worst a moment's work too high.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from streamjobs import orders, tables
from streamjobs.broker import Admin, Broker, Commit, Consumer, Message, Topic, TopicPartition
from streamjobs.core.assignment import Why
from streamjobs.core.control import Desired
from streamjobs.core.lag import WINDOWS_S, Position, Rates, Sample, rates
from streamjobs.core.offsets import decode
from streamjobs.core.record import Meta
from streamjobs.core.topics import Role, timer_group
from streamjobs.deployment import Deployment, consumed
from streamjobs.errors import HeaderError

Tier = Literal["main", "retry"]

#: Registrations are read again after so many seconds.
REGISTRATIONS_S = 30.0
#: Samples that are kept for each queue, group and tier.
SAMPLES = 720
#: The records at the heads are waited for this long; an age that is not known then stays unknown until the
#: next look.
_FETCH_S = 3.0


@dataclass(frozen=True, slots=True)
class QueueLag:
    """A group's lag in one topic of a queue, by partition.

    `ages`: seconds since the oldest waiting job could have run (None: unknown), of partitions in which one
    waits. `samples`: what was seen of it so far, oldest first: `core.lag` makes rates, trends and forecasts
    of it.
    """

    queue: str
    group: str
    tier: Tier
    topic: str
    positions: Mapping[int, Position]
    ages: Mapping[int, float | None]
    samples: Sequence[Sample]

    @property
    def pending(self) -> int:
        return sum(position.pending for position in self.positions.values())

    @property
    def deleted(self) -> int:
        return sum(position.deleted for position in self.positions.values())

    @property
    def oldest_s(self) -> float | None:
        """Of the oldest job that waits; 0 when none does; None: unknown."""
        known = [age for age in self.ages.values() if age is not None]
        return max(known) if known else None if self.ages else 0.0

    @property
    def rates(self) -> Rates | None:
        """Of the last minute, or of three looks if these take longer, or since the first look if that is less; None: too
        little is known."""
        at = [sample.at for sample in (self.samples[0], *list(self.samples)[-3:])]
        return rates(self.samples, min(max(WINDOWS_S[0], at[-1] - at[1]), at[-1] - at[0]))


@dataclass(frozen=True, slots=True)
class Backlog:
    """One look, at `taken` (epoch seconds). `delayed`: jobs in the app's delay ladder, by tier."""

    queues: tuple[QueueLag, ...]
    delayed: Mapping[str, int]
    taken: float

    @property
    def pending(self) -> int:
        return sum(found.pending for found in self.queues)


@dataclass(frozen=True, slots=True)
class Reading:
    """A topic as one of Kafka's consumer groups reads it; `role` is the topic's."""

    consumer: str
    topic: Topic
    role: Role

    @property
    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic.name, number) for number in range(self.topic.partitions)]


def positions(admin: Admin, readings: Sequence[Reading], desired: Desired) -> list[dict[int, Position]]:
    """Where each group stands in each partition of its topic. Raises BrokerError."""
    commits = _commits(admin, readings)
    partitions = list(dict.fromkeys(tp for reading in readings for tp in reading.partitions))
    if not partitions:
        return [{} for _ in readings]
    starts = admin.offsets(partitions, "earliest")
    ends = admin.offsets(partitions, "latest")
    highs = admin.offsets(partitions, "latest", "read_uncommitted")
    found: list[dict[int, Position]] = []
    for reading in readings:
        logs = {tp: Position(0, ends[tp], start=starts[tp], high=highs[tp]) for tp in reading.partitions}
        found.append(
            {tp.partition: _position(reading, tp, commits.get((reading.consumer, tp)), log, desired) for tp, log in logs.items()}
        )
    return found


def _position(reading: Reading, tp: TopicPartition, commit: Commit | None, log: Position, desired: Desired) -> Position:
    """`log` with the group's part in it: what its next owner would make of it, so that no job is pending here that would
    not run, and none would run that is not pending here."""
    registration, topic_id = desired.registration(reading.consumer, tp.topic), reading.topic.id
    bounds = (log.start, max(log.end, log.high or 0))
    beginning = desired.beginning(reading.consumer, tp.topic, topic_id, tp.partition, bounds, commit)
    if commit is None or beginning.why is Why.RECREATED:
        # Registered before what retention has taken since, or in an earlier topic of the name.
        first = registration.starts.get(tp.partition, 0) if registration and beginning.why is Why.REGISTERED else beginning.offset
        return replace(log, base=min(first, beginning.offset), committed=False, topic_id=topic_id)
    return _committed(commit, len(beginning.finished), log, topic_id)


def _committed(commit: Commit, finished: int, log: Position, topic_id: bytes) -> Position:
    """`finished`: of the jobs in the commit's map those that the log still has."""
    mark = decode(*commit)
    fits = mark is not None and mark.finished.end <= max(log.end, log.high or 0)
    beyond = len(mark.finished) if mark and fits else 0
    return replace(log, base=commit.offset, finished=beyond, finished_deleted=beyond - finished, topic_id=topic_id)


def _commits(admin: Admin, readings: Iterable[Reading]) -> dict[tuple[str, TopicPartition], Commit]:
    wanted: dict[str, list[TopicPartition]] = {}
    for reading in readings:
        wanted.setdefault(reading.consumer, []).extend(reading.partitions)
    return {
        (group, tp): commit
        for group, partitions in wanted.items()
        for tp, commit in admin.committed(group, partitions).items()
    }


class Collector:
    """Looks again and again, and remembers what makes the next look cheap: registrations, ages of heads,
    samples.

    For one thread at a time.
    """

    def __init__(self, app: Deployment) -> None:
        self._app = app
        self._ages = _Ages(app.broker)
        self._samples: dict[tuple[str, str], deque[Sample]] = {}
        self._desired = Desired()
        self._desired_until = 0.0

    def collect(self, queues: Collection[str] = ()) -> Backlog:
        """The backlog of these queues (none named: all of the app's). Raises BrokerError."""
        self._refresh()
        admin = self._app.broker.admin()
        readings = self._readings(admin, set(queues or self._app.queues()))
        pairs = list(zip(readings, positions(admin, readings, self._desired), strict=True))
        now = self._app.clock.now()
        jobs = [pair for pair in pairs if pair[0].role.kind != "delay"]
        since = self._ages.since(jobs)
        found = tuple(self._queue_lag(reading, places, since, now) for reading, places in jobs)
        return Backlog(found, _delayed(pairs), now)

    def _refresh(self) -> None:
        now = self._app.clock.now()
        if now >= self._desired_until:
            self._desired = orders.read(self._app.broker, self._app.names)
            self._desired_until = now + REGISTRATIONS_S

    def _readings(self, admin: Admin, queues: Collection[str]) -> list[Reading]:
        """Our own groups, all others that are registered on these queues, and the ladder, old tiers too."""
        names, app = self._app.names, self._app
        topics = admin.topics()
        ladder = [
            (timer_group(app.name), name) for name in sorted(topics) if _is_tier(names.role(name), app.name)
        ]
        found: list[Reading] = []
        for consumer, name in dict.fromkeys(
            [*consumed(app), *sorted(self._desired.registrations()), *ladder]
        ):
            role = names.role(name)
            if role and name in topics and (role.queue in queues or _is_tier(role, app.name)):
                found.append(Reading(consumer, topics[name], role))
        return found

    def _queue_lag(
        self, reading: Reading, places: Mapping[int, Position], since: _Since, now: float
    ) -> QueueLag:
        role, topic = reading.role, reading.topic.name
        heads = {number: since.get(_head(topic, number, place)) for number, place in places.items()}
        known = {
            number: replace(place, gaps=place.pending) if heads[number] == NOTHING else place
            for number, place in places.items()
        }
        ages = {number: _age(heads[number], now) for number, place in known.items() if place.pending}
        samples = self._samples.setdefault((reading.consumer, topic), deque(maxlen=SAMPLES))
        if samples and samples[-1].at > now:
            samples.clear()  # the clock was set back: they lie in the future
        samples.append(Sample(now, _sharing(known, samples[-1].positions if samples else {})))
        tier: Tier = "retry" if role.kind == "retry" else "main"
        return QueueLag(role.queue, role.group or reading.consumer, tier, topic, known, ages, samples)


def _sharing(positions: dict[int, Position], before: Mapping[int, Position]) -> Mapping[int, Position]:
    """What has not changed since the sample before is kept once: most partitions of a thousand queues rest."""
    if positions == before:
        return before
    return {number: before[number] if before.get(number) == place else place for number, place in positions.items()}


def _is_tier(role: Role | None, app: str) -> bool:
    return role is not None and role.kind == "delay" and role.app == app


def _delayed(pairs: Iterable[tuple[Reading, Mapping[int, Position]]]) -> dict[str, int]:
    return {
        reading.role.tier: sum(place.pending for place in places.values())
        for reading, places in pairs
        if reading.role.kind == "delay"
    }


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


# --- ages ---------------------------------------------------------------------------------------------------

_Head = tuple[TopicPartition, bytes, int]
"""A partition, the topic's id, and the first offset that a group has not finished there and the log still has."""

_Since = Mapping[_Head, float]
"""Since when the job at a head could have run."""

#: Of a head behind which, up to the end, there are only markers of transactions: no job can ever be there.
NOTHING = float("inf")


def _head(topic: str, number: int, place: Position) -> _Head:
    return TopicPartition(topic, number), place.topic_id, max(place.base, place.start)


class _Ages:
    """When the job at each head could first have run. A head that does not move is never fetched again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known: dict[_Head, float] = {}

    def since(self, pairs: Iterable[tuple[Reading, Mapping[int, Position]]]) -> _Since:
        """Of all heads at which something waits; those that did not answer in time are absent."""
        ends = {
            _head(reading.topic.name, number, place): place.end
            for reading, places in pairs
            for number, place in places.items()
            if place.pending
        }
        self._known = {
            head: since for head, since in self._known.items() if head in ends and since != NOTHING
        }
        self._fetch({head: end for head, end in ends.items() if head not in self._known})
        return self._known

    def _fetch(self, ends: Mapping[_Head, int]) -> None:
        """Two groups that stand at different offsets of one partition are read one after the other."""
        left = dict(ends)
        while left:
            turn = {head[0]: head for head in left}
            limits = {tp: (head[-1], left.pop(head)) for tp, head in turn.items()}
            for tp, message in first_records(self._broker, limits, _FETCH_S).items():
                self._known[turn[tp]] = NOTHING if message is None else available(message)


def first_records(
    broker: Broker, limits: tables.Bounds, timeout: float
) -> dict[TopicPartition, Message | None]:
    """The first record at or behind each start and before each end; None: there is none. Partitions that did
    not answer in time are absent."""
    reader = broker.consumer(None)
    found: dict[TopicPartition, Message | None] = {}
    open_ends = {tp: end for tp, (_, end) in limits.items()}
    deadline = time.monotonic() + timeout
    try:
        reader.assign({tp: start for tp, (start, _) in limits.items()})
        while open_ends and time.monotonic() < deadline:
            _take_first(reader, open_ends, found)
    finally:
        reader.close()
    return found


def _take_first(
    reader: Consumer, open_ends: dict[TopicPartition, int], found: dict[TopicPartition, Message | None]
) -> None:
    for message in reader.fetch(100, 0.1):
        partition = TopicPartition(message.topic(), message.partition())
        if message.offset() < open_ends.get(partition, 0):
            found.setdefault(partition, message)
    done = [tp for tp, position in reader.positions(open_ends).items() if tp in found or position >= open_ends[tp]]
    for partition in done:
        found.setdefault(partition, None)
        del open_ends[partition]
    if done:
        reader.pause(done)


def available(message: Message) -> float:
    """Since when the job could run: its due time, but not before its first record was there; else its publish, else its append.

    A record that the layer itself wrote (a retry, a replay) is as old as itself: a replayed job is not weeks
    late.
    """
    try:
        meta = Meta.parse(message.headers())
    except HeaderError:
        return tables.appended(message)
    if meta.due:
        return max(meta.due, meta.appended or tables.appended(message))
    if meta.run > 1 or meta.holds or not meta.published:
        return tables.appended(message)
    return _instant(meta.published) or tables.appended(message)


def _instant(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return found.timestamp() if found.tzinfo else 0.0
