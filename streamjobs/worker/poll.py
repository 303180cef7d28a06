"""Polling: the consumer of one loop, its assigned partitions, and how much is admitted.

The loop's thread is the only one that ever calls the consumer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from streamjobs.broker import Admin, Commit, Consumer, Message, Start, TopicPartition
from streamjobs.core.assignment import (
    LOOKUP_FAILED,
    Admission,
    AlarmKind,
    Beginning,
    Lookup,
    Why,
    where_to_start,
)
from streamjobs.core.clock import Clock
from streamjobs.core.control import Desired
from streamjobs.core.dispatch import Partition
from streamjobs.core.membership import Held, Sight
from streamjobs.core.offsets import Mark, Tracker, encode, parked_size
from streamjobs.core.topics import Names
from streamjobs.errors import BrokerError

logger = logging.getLogger(__name__)

#: How often a partition whose start could not be found out is looked up again.
LOOKUP_AGAIN_S = 1.0
#: How long the group's commits are waited for; and that of one partition, once all together did not come.
COMMITS_S, ONE_COMMIT_S = 2.0, 0.5
#: After so many partitions without an answer the rest is asked next time, and first.
PATIENT_FOR = 2


class Owner(Protocol):
    """What a poller tells the loop that owns it."""

    def arrived(self, partition: Partition, beginning: Beginning) -> None:
        """A partition is ours; nothing of it was fetched yet."""

    def leaving(self, partitions: Sequence[Partition]) -> None:
        """Partitions are about to leave: settle and commit what can be, within the budget of a revoke."""

    def gone(self, partitions: Sequence[Partition], *, lost: bool) -> None:
        """Partitions are not ours any more; their epoch is over."""


class Poller:
    """One member of a group. `partitions` holds what is assigned now; an epoch is never used twice."""

    def __init__(
        self,
        consumer: Consumer,
        group: str,
        *,
        admin: Admin,
        names: Names,
        desired: Callable[[], Desired],
        limits: Admission,
        owner: Owner,
        clock: Clock,
    ) -> None:
        self.consumer = consumer
        self.group = group
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.full: set[Partition] = set()
        self.faults: list[tuple[TopicPartition | None, BrokerError]] = []
        self.assigned_once = self.rejoining = False
        self.asked = 0  # by another thread, again and again, what it holds
        self.held = (0, Held("", 0, frozenset()))  # its answer to the last of these questions
        self.astray: SimpleQueue[Sight] = SimpleQueue()
        self._admin = admin
        self._names = names
        self._desired = desired
        self._limits = limits
        self._owner = owner
        self._now, self._mono = clock.now, clock.monotonic
        self._epochs = 0
        self._obeyed = -1
        self._lookups: dict[TopicPartition, float] = {}
        self._fetching = False

    @property
    def inside_fetch(self) -> bool:
        """Whether a callback of its consumer asks: no answer of a commit arrives now."""
        return self._fetching

    @property
    def has_any(self) -> bool:
        """Whether it has any partition, one that is about to begin again included."""
        return bool(self.partitions or self._lookups)

    def subscribe(self, topics: Collection[str]) -> None:
        self.consumer.subscribe(sorted(topics), self)

    # Membership -------------------------------------------------------------------------------------------------------

    def tend_membership(self) -> None:
        """Says what it holds, if it was asked; joins anew where its coordinator has lost it."""
        if self.held[0] != self.asked:
            self.held = self.asked, self._held()
        if not self.astray.empty():
            sight = self.astray.get_nowait()
            if sight.held == self._held():
                self._join_anew(sight)

    def _held(self) -> Held:
        return Held(self.consumer.member_id(), self._epochs, frozenset(self.partitions) | frozenset(self._lookups))

    def _join_anew(self, sight: Sight) -> None:
        logger.warning(
            "this member of group %s holds %d partitions, and its coordinator believes that it holds %d, of %d that it should: "
            "leaving the group to join it anew",
            *(self.group, len(sight.held.partitions), len(sight.assigned), len(sight.target)),
        )
        # While the client leaves it sends no heartbeats. *Bites*: a job runs for longer than a session, the revoke waits for it, another
        # worker has its partition by then and runs it, too. So what runs is waited for before that.
        self._owner.leaving(list(self.partitions.values()))
        self.rejoining = True
        self.consumer.rejoin()

    # Fetching ---------------------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> list[Message]:
        """What arrived, up to `limit`; serves heartbeats and rebalances in any case."""
        self._fetching = True
        try:
            messages = self.consumer.fetch(limit, timeout)
        finally:
            self._fetching = False
        self.faults += self.consumer.faults()
        if self._lookups:
            self._look_up_again()
        return messages

    def admit(self, touched: Iterable[Partition]) -> None:
        """Stops reading a partition that holds as much as it may, and reads it again once it is just below."""
        for home in touched:
            full = not self._limits.admits(self.used(home), admitting=not home.full)
            if full != home.full:
                home.full = full
                (self.full.add if full else self.full.discard)(home)
                self._read_or_not(home)

    def admit_again(self) -> None:
        """Looks whether partitions that were full have room again."""
        if self.full:
            self.admit(list(self.full))

    def used(self, home: Partition) -> float:
        """The share of the partition's nearest limit that is used; 1.0 and more: full."""
        tracker = home.tracker
        unfinished = tracker.unfinished
        # The bytes follow from what is unfinished now. *Bites*: a partition is full by the bytes of its last batch; nothing more is
        # read of it, so nobody counts them again, and it stays full when all of it is finished.
        held_bytes = int(unfinished * home.size)
        map_chars = tracker.map_size + parked_size(len(home.parked))
        return self._limits.used(unfinished=unfinished, held_bytes=held_bytes, map_chars=map_chars, span=tracker.span)

    def weigh(self, messages: Sequence[Message], touched: Mapping[Partition, int]) -> None:
        """Takes note of the size of a batch that was received; `touched`: how many records of each partition were new."""
        mean = sum(map(len, messages)) / len(messages)
        for home, count in touched.items():
            unfinished = max(count, home.tracker.unfinished)
            home.size += (mean - home.size) * count / unfinished

    def bar(self, queues: Collection[str]) -> None:
        """Queues of which nothing may run now are not read, the others are."""
        for home in self.partitions.values():
            barred = home.queue in queues
            if barred != home.barred:
                home.barred = barred
                self._read_or_not(home)

    def _read_or_not(self, home: Partition) -> None:
        tp = TopicPartition(home.topic, home.number)
        if home.full or home.barred or not home.fetching:
            self.consumer.pause([tp])
        else:
            self.consumer.resume([tp])

    # Rebalances: called inside `fetch`, on the loop's thread ----------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        """Where each begins; the ones that can't be found out now stay assigned and are looked up again."""
        self.assigned_once = True
        self.rejoining = False
        starts = {}
        for tp, (beginning, topic_id) in self._beginnings(partitions).items():
            self._begin(tp, beginning, topic_id)
            starts[tp] = Start(beginning.offset, beginning.fetch)
        return starts

    def _begin(self, tp: TopicPartition, beginning: Beginning, topic_id: bytes) -> None:
        self._epochs += 1
        role = self._names.role(tp.topic)
        tracker = Tracker(beginning.offset, beginning.finished)
        home = Partition(
            tp.topic,
            tp.partition,
            role.queue if role else "",
            retry=role is not None and role.kind == "retry",
            topic_id=topic_id,
            epoch=self._epochs,
            tracker=tracker,
        )
        home.beginning = beginning
        home.fetching = beginning.fetch
        # Committed at once, changed or not: until then the last owner's "clean" stands, and a log that lost its end could grow past
        # the base again before anyone has said where it now begins.
        home.committed_version = -1
        home.committed_at = -math.inf
        home.started = self._desired().started(self.group, tp.topic, topic_id, tp.partition)
        before = self.partitions.get(tp)
        if before is not None:
            before.epoch = before.serving = -1
            self.full.discard(before)
        self.partitions[tp] = home
        for alarm in beginning.alarms:
            log = logger.error if alarm.kind in (AlarmKind.LOST_COMMIT, AlarmKind.UNREGISTERED) else logger.warning
            log("%s/%d of group %s: %s (%d); %s", *tp, self.group, alarm.kind.value, alarm.count, _ADVICE[alarm.kind])
        if beginning.why is Why.LOOKUP_FAILED:
            self._lookups[tp] = self._mono() + LOOKUP_AGAIN_S
        self._owner.arrived(home, beginning)

    def _beginnings(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[Beginning, bytes]]:
        commits: Mapping[TopicPartition, Commit | Lookup | None] | Lookup
        try:
            topics = self._admin.topics({tp.topic for tp in partitions})
            commits = self._commits(partitions)
            starts = self._admin.offsets(list(partitions), "earliest")
            ends = self._admin.offsets(list(partitions), "latest", "read_uncommitted")
        except BrokerError as error:
            logger.warning("can't find out where %d partitions of group %s begin (%s); trying again", len(partitions), self.group, error)
            topics, commits, starts, ends = {}, LOOKUP_FAILED, {}, {}
        desired = self._desired()
        found = {}
        for tp in partitions:
            topic = topics.get(tp.topic)
            topic_id = topic.id if topic else b""
            registration = desired.registration(self.group, tp.topic)
            beginning = where_to_start(
                commit=commits if isinstance(commits, Lookup) else commits.get(tp),
                topic_id=topic_id,
                started=desired.started(self.group, tp.topic, topic_id, tp.partition),
                started_before=desired.started_before(self.group, tp.topic, topic_id, tp.partition),
                seek=desired.seek_for(self.group, tp.topic, tp.partition, self._now()),
                registered=registration.starts if registration else None,
                partition=tp.partition,
                log_start=starts.get(tp, 0),
                log_end=ends.get(tp, 0),
            )
            found[tp] = beginning, topic_id
        return found

    def _commits(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Commit | Lookup | None]:
        """The group's commits. Raises BrokerError.

        What a dead worker's open transaction may yet commit is not told before that has ended, and then nothing
        is: so partitions are asked one by one, and those that it has nothing to do with begin at once.
        """
        again = [tp for tp in partitions if tp in self._lookups]
        if not again:
            try:
                return self.consumer.committed(list(partitions), COMMITS_S)
            except BrokerError as error:
                if error.code != "_TIMED_OUT":
                    raise
        found: dict[TopicPartition, Commit | Lookup | None] = dict.fromkeys(partitions, LOOKUP_FAILED)
        silent = 0
        for tp in partitions:
            try:
                found |= self.consumer.committed([tp], ONE_COMMIT_S)
            except BrokerError:
                silent += 1
            if silent == PATIENT_FOR:
                break
        return found

    def _look_up_again(self) -> None:
        now = self._mono()
        due = [tp for tp, at in self._lookups.items() if at <= now]
        if not due:
            return
        for tp, (beginning, topic_id) in self._beginnings(due).items():
            del self._lookups[tp]
            self._begin(tp, beginning, topic_id)
            if beginning.fetch:
                self.consumer.seek(tp, beginning.offset)
                self.consumer.resume([tp])

    def obey_orders(self) -> None:
        """Begins anew where an order asks for it: a seek, or a registration that was missing.

        A seek is another one if its number differs from the one in the commit, as for whoever owns the partition next (`where_to_start`).
        *Bites*: the control topic is made anew, and the next order's number is lower; taken for an old one it is left to the next owner,
        who carries it out hours later. An older order can't come up again: the one that overtook it is taken away after it.
        """
        desired = self._desired()
        if desired.version == self._obeyed:
            return
        self._obeyed = desired.version
        due = []
        for tp, home in self.partitions.items():
            seek = desired.seek_for(self.group, *tp, self._now())
            sought = seek is not None and seek.order != home.beginning.sought
            registered = home.beginning.why is Why.NOT_REGISTERED and desired.registration(self.group, tp[0]) is not None
            if sought or registered:
                due.append(TopicPartition(*tp))
        self.begin_again(due)

    def topics_seen(self, ids: Mapping[str, bytes]) -> None:
        """What the cluster says of topic ids now. One that changed: the topic was made anew, and a KIP-848 consumer would be silent
        about it."""
        changed = [TopicPartition(*tp) for tp, home in self.partitions.items() if ids.get(tp[0], home.topic_id) != home.topic_id]
        if changed:
            logger.warning("topics of group %s were made anew: %s", self.group, sorted({tp.topic for tp in changed}))
            self._end_here(changed)

    def begin_again(self, tps: Iterable[TopicPartition]) -> None:
        """Partitions of the same topics whose start is another now (a seek order came, a commit was repaired): a new epoch begins
        there, after what was finished is committed, as before any other end of an epoch. *Bites*: else it runs again."""
        ours = [tp for tp in tps if tp in self.partitions]
        if ours:
            self._owner.leaving([self.partitions[tp] for tp in ours])
            self._end_here(ours)

    def _end_here(self, tps: Iterable[TopicPartition]) -> None:
        """The epoch of partitions that stay assigned is over; where the next one begins is looked up."""
        for tp in tps:
            self._end([self.partitions[tp]], lost=True)
            self.consumer.pause([tp])
            self._lookups[tp] = -math.inf

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """on_revoke may list partitions that we no longer hold (edge 3), or none (edge 4)."""
        homes = [self.partitions[tp] for tp in partitions if tp in self.partitions]
        if homes:
            self._owner.leaving(homes)
        self._forget_lookups(partitions)
        self._end(homes, lost=False)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._forget_lookups(partitions)
        self._end([self.partitions[tp] for tp in partitions if tp in self.partitions], lost=True)

    def _forget_lookups(self, partitions: Sequence[TopicPartition]) -> None:
        """Of partitions that leave, those too that are to begin again and have no epoch now. *Bites*: a topic is made anew; its
        partitions leave in the very fetch that was to look them up: what is not assigned can't be sought, and the loop ends."""
        for tp in partitions:
            self._lookups.pop(tp, None)

    def _end(self, homes: Sequence[Partition], *, lost: bool) -> None:
        for home in homes:
            tp = TopicPartition(home.topic, home.number)
            self.partitions.pop(tp, None)
            self._lookups.pop(tp, None)
            home.epoch = home.serving = -1
            self.full.discard(home)
        if homes:
            self._owner.gone(homes, lost=lost)

    # Committing --------------------------------------------------------------------------------------------------------

    def snapshot(self, home: Partition, *, clean: bool = False, also: Collection[int] = ()) -> tuple[TopicPartition, Commit, int]:
        """Base and map of one instant, as they are committed, and the tracker's version at that instant (edges 13, 14).

        `also`: offsets that are to be finished by this very commit."""
        tracker = home.tracker.after(also) if also else home.tracker
        version = tracker.version
        base, finished = tracker.snapshot()
        beginning = home.beginning
        mark = Mark(
            home.topic_id[:4],
            finished,
            takeovers=beginning.takeovers_at(base),
            clean=clean,
            parked=tuple(head for head in home.parked.values() if head.offset not in also),
            sought=beginning.sought,
        )
        return TopicPartition(home.topic, home.number), Commit(base, encode(base, mark)), version

    def past_gaps(self) -> None:
        """The bases of idle partitions move past trailing gaps, so that their lag can reach 0 (edge 16).

        Not inside a fetch. *Bites*: the client has taken this partition's next records out of its queue when it meets the revoke of
        another one; it commits, by a position past records that the tracker has not seen, and drops them as finished.
        """
        if self.inside_fetch:
            return
        homes = {where: home for where, home in self.partitions.items() if home.fetching and home.epoch >= 0 and not home.tracker.unfinished}
        for tp, position in self.consumer.positions([TopicPartition(*where) for where in homes]).items():
            homes[tp].tracker.position_to(position)


_ADVICE = {
    AlarmKind.JOBS_DELETED: "jobs were deleted before they ran; check the topic's retention (`streamjobs topic plan`)",
    AlarmKind.LOG_TRUNCATED: "the log lost its end; what was appended since runs, some jobs may run again",
    AlarmKind.TOPIC_RECREATED: "the topic is a new one of the same name; it is read from its start",
    AlarmKind.LOST_COMMIT: "its commits are gone and nothing is read from it; set them with `streamjobs group seek`",
    AlarmKind.UNREGISTERED: "the group is not registered there and nothing is read; run `streamjobs topic apply`",
}
