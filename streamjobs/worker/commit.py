"""Committing: at each tick the events are acknowledged first, then (base, map) of the same instant.

    idle ──tick──▶ events sent ──all acked, or 2 s──▶ commit asked for ──answered──▶ idle

One commit is in flight per group, so an older one never lands after a newer one (edge 19).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from streamjobs.broker import Commit, Message, Producer, TopicPartition
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.worker.poll import Poller

logger = logging.getLogger(__name__)

#: How long a commit waits for its events before it goes without them.
EVENTS_PATIENCE_S = 2.0
#: A commit whose answer does not come is given up, so that the next can be tried (edge 36). Not before any ordinary outage of a
#: coordinator is over: the client keeps the commit until there is one again, and it would land after the next one: base 153, then
#: 152, and the owner that dies now leaves a job to be run again that was known as finished.
COMMIT_PATIENCE_S = 120.0
#: Without a successful commit for so long, a loop reads nothing more.
UNCOMMITTED_S = 60.0
#: How long the first commit of an epoch may take; after that the next tick tries again.
FIRST_S = 2.0
#: An unchanged base is committed again, or the broker forgets it.
REFRESH_S = 3600.0
#: A member that has nothing to commit asks so often within a session whether it still is one.
ASKS = 3
#: A map of more characters than this is committed every 2 s at most.
LARGE_MAP = 512
LARGE_MAP_S = 2.0


Events = Sequence[tuple[Record, int]]
"""Records for the events topic, each with the number of events in it."""


def _untold(_: object, __: object) -> None:
    """Nobody asked to be told."""


class Ticking(NamedTuple):
    """When a loop commits (every `tick_s` by the monotonic clock `now`), and whom it tells: of each partition that was committed, how
    many events were dropped and why (`timeout`, `error`), and of each commit whether all of it was taken and how long that took.
    `session_s`: a member that is silent for so long has lost its partitions."""

    tick_s: float
    now: Callable[[], float]
    committed: Callable[[Partition], None]
    dropped: Callable[[int, str], None] = _untold
    session_s: float = 10.0
    answered: Callable[[bool, float], None] = _untold


class Snapshot:
    """What one tick commits: offsets, and the tracker versions they were taken at. Events are counted, not records. It was `asked` for
    when its events were acknowledged."""

    __slots__ = ("asked", "began", "failed_events", "homes", "offsets", "unacked")

    def __init__(self, began: float) -> None:
        self.offsets: dict[TopicPartition, Commit] = {}
        self.homes: dict[TopicPartition, tuple[Partition, int, int]] = {}
        self.began = self.asked = began
        self.unacked = 0
        self.failed_events = 0


class _Acked:
    """The acknowledgement of one record of events."""

    __slots__ = ("_count", "_snapshot")

    def __init__(self, snapshot: Snapshot, count: int) -> None:
        self._snapshot = snapshot
        self._count = count

    def __call__(self, error: BrokerError | None, _: Message | None) -> None:
        self._snapshot.unacked -= self._count
        if error is not None:
            self._snapshot.failed_events += self._count


class Committer:
    """Commits what its loop's partitions finished. One owner: the loop's thread."""

    def __init__(self, poller: Poller, producer: Callable[[], Producer], how: Ticking) -> None:
        self._poller = poller
        self._producer = producer
        self._tick_s = min(how.tick_s, how.session_s / ASKS)
        self._now = how.now
        self._committed = how.committed
        self._dropped = how.dropped
        self._told_of = how.answered
        self._session_s = how.session_s
        self._last = self._looked = self._now()
        self._waiting: Snapshot | None = None
        self._in_flight: Snapshot | None = None
        self._failing_since: float | None = None  # when the first commit was asked for since the last good one
        self._heard_at = self._now()  # when the last commit that succeeded was asked for
        self._doubted_at: float | None = None  # since when it is open whether this is still a member
        self.errors: dict[TopicPartition, BrokerError] = {}

    def begin(self) -> None:
        """Before its loop joins the group: nothing to prepare here."""

    def due(self) -> bool:
        """Whether a tick may begin now."""
        return self._waiting is None and self._in_flight is None and self._now() - self._last >= self._tick_s

    @property
    def overdue(self) -> bool:
        """Nothing could be committed for too long: what runs now may all run again, so nothing more is read (edge 22)."""
        return self._failing_since is not None and self._now() - self._failing_since > UNCOMMITTED_S

    @property
    def doubted(self) -> bool:
        """Whether others may own its partitions already; until a commit proves that they don't, nothing is to be started."""
        return self._doubted_at is not None

    def doubts(self) -> bool:
        """To be asked at every turn, before anything is started: `doubted`, by how long nothing was heard of the group.

        *Bites*: a worker is frozen, or cut off, for longer than its session; others own its partitions and run their jobs. It goes
        on, and starts all that it has at hand, until its next heartbeat is refused.
        """
        now = self._now()
        stood_still = now - self._looked > self._session_s
        unheard = now - self._heard_at > self._session_s and not self._poller.inside_fetch and self._can_ask()
        self._looked = now
        if not self._poller.has_any:
            self._doubted_at = None  # what comes is ours; and with nothing to commit it would stay open for ever
            self._heard_at = now
        elif stood_still or (unheard and not self.doubted):
            logger.warning("group %s: nothing is started until a commit shows that the partitions are still ours", self._poller.group)
            self._doubted_at = now
        return self.doubted

    def _can_ask(self) -> bool:
        return any(home.fetching for home in self._poller.partitions.values())

    def tick(self, events: Events) -> None:
        """Begins a tick: the events gathered since the last one, and the partitions as they are now."""
        now = self._last = self._now()
        snapshot = Snapshot(now)
        self._poller.past_gaps()
        for home in self._poller.partitions.values():
            if self._wants_commit(home, now):
                self._take(snapshot, home)
        self._ask_whether_member(snapshot)
        self._send_events(snapshot, events)
        if snapshot.offsets or snapshot.unacked:
            self._waiting = snapshot
            self.advance()

    def _wants_commit(self, home: Partition, now: float) -> bool:
        if not home.fetching or home.epoch < 0:
            return False
        if self.doubted or (self.errors and TopicPartition(home.topic, home.number) in self.errors):
            return True
        tracker = home.tracker
        since = now - home.committed_at
        if tracker.version == home.committed_version:
            return since > REFRESH_S
        return since >= LARGE_MAP_S or tracker.map_size <= LARGE_MAP

    def _ask_whether_member(self, snapshot: Snapshot) -> None:
        """Commits one partition again where nothing was committed for long, so that a silence of the group is noticed.

        *Bites*: an idle worker is cut off for longer than its session. It has nothing to commit, so nothing tells it; what its first
        fetch brings when the network is back, it starts, and another member has run it long ago.
        """
        asked = snapshot.offsets.keys() - self.errors.keys()
        if asked or snapshot.began - self._heard_at < self._session_s / ASKS:
            return
        homes = [home for tp, home in self._poller.partitions.items() if home.fetching and home.epoch >= 0 and tp not in self.errors]
        if homes:
            self._take(snapshot, homes[0])

    def _take(self, snapshot: Snapshot, home: Partition, *, clean: bool = False, also: Collection[int] = ()) -> None:
        tp, commit, version = self._poller.snapshot(home, clean=clean, also=also)
        snapshot.offsets[tp] = commit
        snapshot.homes[tp] = home, home.epoch, version

    def _send_events(self, snapshot: Snapshot, events: Events) -> None:
        producer = self._producer()
        for record, count in events:
            snapshot.unacked += count
            acked = _Acked(snapshot, count)
            try:
                producer.send(record, acked)
            except BrokerError as error:
                acked(error, None)

    def commit_first(self, homes: Collection[Partition]) -> None:
        """What an owner begins with, before its first job. *Bites*: a job kills its worker within a tick of its start; no owner
        ever committed, so the next one doesn't know that it is the fourth to die here."""
        snapshot = Snapshot(self._now())
        for home in homes:
            if home.fetching and home.epoch >= 0:
                self._take(snapshot, home)
        if snapshot.offsets:
            failed = self._poller.consumer.commit_now(snapshot.offsets, FIRST_S)
            self._answered(snapshot, {tp: failed.get(tp) for tp in snapshot.offsets})

    def advance(self) -> None:
        """Moves the tick on as far as it goes now."""
        snapshot = self._waiting
        if snapshot is not None:
            if snapshot.unacked:
                self._producer().poll(0)
            if not snapshot.unacked or self._now() - snapshot.began > EVENTS_PATIENCE_S:
                self._waiting = None
                self._count_dropped(snapshot)
                self._ask(snapshot)
        in_flight = self._in_flight
        if in_flight is not None and self._now() - in_flight.began > COMMIT_PATIENCE_S:
            logger.warning("a commit of group %s was not answered for %g s; trying again", self._poller.group, COMMIT_PATIENCE_S)
            self._in_flight = None
            self._told_of(False, self._now() - in_flight.asked)

    def _count_dropped(self, snapshot: Snapshot) -> None:
        for count, reason in ((snapshot.unacked, "timeout"), (snapshot.failed_events, "error")):
            if count:
                self._dropped(count, reason)

    def _ask(self, snapshot: Snapshot) -> None:
        offsets = {tp: commit for tp, commit in snapshot.offsets.items() if self._current(snapshot, tp)}
        if not offsets:
            return
        snapshot.asked = self._now()
        self._failing_since = self._failing_since or snapshot.asked
        self._in_flight = snapshot
        try:
            self._poller.consumer.commit_soon(offsets, lambda results: self._answered(snapshot, results))
        except BrokerError as error:
            self._answered(snapshot, dict.fromkeys(offsets, error))

    def _current(self, snapshot: Snapshot, tp: TopicPartition) -> bool:
        home, epoch, _ = snapshot.homes[tp]
        return home.epoch == epoch

    def _answered(self, snapshot: Snapshot, results: Mapping[TopicPartition, BrokerError | None]) -> None:
        """A rejected commit leaves the tracker as it was: the next tick tries again (edge 8).

        After one whose answer did not come, the next that succeeds is repeated once. *Bites*: a broker is frozen with a commit in its
        hands; the client gives it up and asks again; thawed, the broker takes the newer one first, and then the older.
        """
        if self._in_flight is snapshot:
            self._in_flight = None
        if results:
            self._told_of(not any(results.values()), self._now() - snapshot.asked)
        if any(error is None for error in results.values()):
            self._heard_at = max(self._heard_at, snapshot.began)  # an older answer may come after a newer one
            self._failing_since = None  # of partitions that have left since, too: they may be the last to be committed for long
            if self._doubted_at is not None and snapshot.began >= self._doubted_at:
                self._doubted_at = None  # not by an older one: its answer may have waited as long as we did
        for tp, error in results.items():
            if tp not in snapshot.homes or not self._current(snapshot, tp):
                continue
            if error is not None:
                self._refused(tp, error)
                continue
            home, _, version = snapshot.homes[tp]
            failed = self.errors.pop(tp, None)
            home.committed_version = -1 if failed is not None and failed.code == "_TIMED_OUT" else version
            home.committed_at = self._now()
            self._committed(home)

    def _refused(self, tp: TopicPartition, error: BrokerError) -> None:
        if tp not in self.errors:
            logger.warning("commit of %s/%d for group %s refused: %s; it is tried again", *tp, self._poller.group, error)
        self.errors[tp] = error

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions that left: whether they can be committed is no matter of this member."""
        for tp in partitions:
            self.errors.pop(tp, None)

    def commit_now(self, homes: Collection[Partition], events: Events, timeout: float) -> None:
        """Before partitions leave: their events, then a synchronous commit that marks a clean hand-over.

        Called inside a rebalance callback: nothing here waits for a commit in flight, whose answer never arrives there; it
        was sent on the same connection before this one.
        """
        deadline = self._now() + timeout
        snapshot = Snapshot(self._now())
        for home in homes:
            if home.fetching and home.epoch >= 0:
                self._take(snapshot, home, clean=True)
        self._send_events(snapshot, events)
        while snapshot.unacked and self._now() < deadline:
            if self._producer().poll(min(0.05, timeout)) == 0 and timeout <= 0:
                break
        self._count_dropped(snapshot)
        if snapshot.offsets:
            snapshot.asked = self._now()
            failed = self._poller.consumer.commit_now(snapshot.offsets, max(1.0, deadline - self._now()))
            self._answered(snapshot, {tp: failed.get(tp) for tp in snapshot.offsets})
