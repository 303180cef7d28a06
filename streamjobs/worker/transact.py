"""Transactional settling: what settlements ask for, the events and the offsets, in one transaction.

    gathered ──tick, or a revoke──▶ begin · send · flush · send_offsets · commit ──▶ settled
                                      │ refused            no answer: │ asked again at the next turn, and nothing else meanwhile
                                      ▼                               │
                                    abort ──▶ put back: produced again in the next one; handlers don't run again

A transaction is opened, filled and ended by one call on the loop's thread, so trackers can't change while it is open, and no
record of ours hides those behind it for longer than that call. What may be committed although its records are not acknowledged
yet is worked out on a copy of the tracker (`Tracker.after`): an abort leaves nothing to undo, and nothing is sought.

Who fences whom: a member that lost its partitions is refused by the group's coordinator, which checks the generation that it sends
with the offsets (KIP-447). So a transactional id need not follow partitions: each loop of each process has its own. It stays the same
over the processes of one supervisor's slot (or of one `worker.instance`), so that a new one ends, before it joins, what its
predecessor left open; any other killed worker's open transaction ends by its timeout of 10 s.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from streamjobs.broker import Broker, Message, Producer, TopicPartition, TransactionalProducer
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.job import Cancel, Reject, Snooze
from streamjobs.telemetry.events import Cut, EventBatch, Packet
from streamjobs.worker import Stopped
from streamjobs.worker.commit import EVENTS_PATIENCE_S, Committer, Events, Snapshot, Ticking
from streamjobs.worker.poll import Poller
from streamjobs.worker.settle import LONGEST_BACKOFF_S, TOO_LARGE, Open, Settler, backoff

logger = logging.getLogger(__name__)

#: How long records of a transaction may stay unacknowledged before it is aborted.
FLUSH_S = 4.0
#: How long one call to the coordinator may take; one without an answer is made again at the next turn.
ANSWER_S = 5.0
#: One look at what was acknowledged and what was refused.
SLICE_S = 0.05
#: What an aborted transaction put back waits for about so long; exactly, for the tick.
AGAIN_S = 0.1
#: So many records that share no batch go with one transaction: each takes a round trip, and a transaction has ten seconds.
MOST_ALONE = 50
#: While something waits for it, a transaction comes early, but the loop spends no more than a tenth of its time in them.
SHARE = 10
#: After the events topic made a transaction abort, transactions go without events for so long, then twice as long …
WITHOUT_EVENTS_S = 1.0
#: So many producers lost to fatal errors in five minutes end the process.
LOST, LOST_S = 3, 300.0
#: Signals by which a handler says what becomes of its job: what it published stands. Any other exception undoes it.
DECIDED = (Reject, Snooze, Cancel)
#: After a refusal librdkafka and the broker disagree on how many records a partition got; one more abort, and they begin anew.
RECOUNTS = "OUT_OF_ORDER_SEQUENCE_NUMBER"
#: Not a refusal: the record fell with its transaction, because of another one.
FELL = frozenset({"_PURGE_QUEUE", "_PURGE_INFLIGHT", "_STATE", RECOUNTS})


def is_gone(home: Any) -> bool:
    """Whether a partition is ours no more: its next owner does its unfinished jobs, and tells of them."""
    return bool(home.epoch < 0)


class Transactions:
    """The transactional producers of one process: one for each loop. `member` is unique among living processes."""

    def __init__(self, broker: Broker, member: str) -> None:
        self._broker = broker
        self._member = member
        self._made: list[TransactionalProducer] = []

    def producer(self, group: str) -> TransactionalProducer:
        made = self._broker.transactional_producer(f"streamjobs.{group}.{self._member}")
        self._made.append(made)
        return made

    def close(self, timeout: float) -> None:
        while self._made:
            self._made.pop().close(timeout)


class Family(Open):
    """A settlement with child jobs, which the run published: sent with what its outcome asks for, or alone.

    With the offset -1 it finishes nothing: the job keeps its place.
    """

    __slots__ = ("_own", "children")

    def __init__(
        self,
        home: Partition,
        offset: int,
        record: Record | None,
        children: Sequence[Record],
        then: Callable[[], object],
        too_large: Callable[[], Record] | None = None,
    ) -> None:
        super().__init__(home, offset, record or children[0], then, too_large)
        self._own = record is not None
        self.children = children

    @property
    def records(self) -> Sequence[Record]:
        return (self.record, *self.children) if self._own else self.children


class Gathered(Settler):
    """The settlements of one loop that wait for a transaction. What it could not take backs off, as anywhere.

    A topic that refused a record is shut: one record at a time tries it again, ever more rarely, and what that one meets stands for
    all that wait. *Bites*: a retry topic is deleted; each of 1,000 failed jobs makes a transaction of everybody else abort.
    """

    def __init__(self, producer: Callable[[], Producer], now: Callable[[], float]) -> None:
        super().__init__(producer, now)
        self._ready: list[Open] = []
        self._shut: dict[str, tuple[float, float]] = {}  # until when, and for how long
        self.fresh = False
        """Something came since the last transaction that can go with the next one."""

    @property
    def open(self) -> int:
        return len(self._ready) + len(self._later)

    @property
    def unacknowledged(self) -> bool:
        return self.fresh

    def next_try(self) -> float | None:
        again = [at for at, _ in self._shut.values()] if self._shut else [self._now() + AGAIN_S]
        later = super().next_try()
        waits = [max(0.0, min(again) - self._now())] if self._ready and not self.fresh else []
        return min([*waits, *([] if later is None else [later])], default=None)

    def settle(self, item: Open) -> None:
        self._send(item)

    def _send(self, item: Open) -> None:
        self._ready.append(item)
        self.fresh = self.fresh or not self._shut

    def take(self) -> list[Open]:
        """What goes with the next transaction."""
        self.serve()
        self.fresh = False
        taken, kept = [], []
        tried: set[str] = set()
        alone = 0
        for item in self._ready:
            if item.epoch != item.home.epoch:
                continue
            shut = self._shut and {record.topic for record in item.records} & self._shut.keys()
            alone += item.alone
            too_many = item.alone and alone > MOST_ALONE
            if too_many or (shut and (shut & tried or any(self._shut[topic][0] > self._now() for topic in shut))):
                kept.append(item)
            else:
                tried |= shut or set()
                taken.append(item)
        self._ready = kept
        return taken

    def put_back(self, items: Iterable[Open]) -> None:
        """An aborted transaction's: they go again with the next one, in their order."""
        self._ready[:0] = items

    def refuse(self, item: Open, record: Record, error: BrokerError) -> None:
        """One of a settlement's records can't be written now; unless it is its own fault, what waits for its topic can't either."""
        self._refuse(item, record, error)
        if error.code in TOO_LARGE:
            return
        waiting, self._ready = self._ready, []
        for other in waiting:
            same = next((waits for waits in other.records if waits.topic == record.topic), None)
            if same is None:
                self._ready.append(other)
            else:
                self._refuse(other, same, error)
        _, before = self._shut.get(record.topic, (0.0, 0.0))
        delay_s = min(LONGEST_BACKOFF_S, max(0.2, 2 * before))
        self._shut[record.topic] = self._now() + delay_s, delay_s

    def _refuse(self, item: Open, record: Record, error: BrokerError) -> None:
        if error.code in TOO_LARGE and not item.alone:
            self._failed(item, error)
        elif isinstance(item, Family) and any(record is child for child in item.children):
            self._note_blocked(record.topic, error)
            self._schedule(item, backoff(item.tries))
        else:
            self._failed(item, error)

    def sent(self, item: Open) -> None:
        """A transaction took it: its topics are open."""
        self.settled += 1
        for record in item.records:
            self.blocked.pop(record.topic, None)
            if self._shut.pop(record.topic, None):
                self.fresh = True

    def _items(self) -> list[Open]:
        return [*super()._items(), *self._ready]

    def forget(self, partitions: set[TopicPartition]) -> None:
        self._ready = [item for item in self._ready if item.tp not in partitions]
        super().forget(partitions)


class Sent:
    """A record of a transaction, and its acknowledgement. `item`: the settlement that it belongs to; None: it holds events."""

    __slots__ = ("item", "record", "work")

    def __init__(self, work: Work, item: Open | None, record: Record) -> None:
        self.work = work
        self.item = item
        self.record = record

    def __call__(self, error: BrokerError | None, _: Message | None = None) -> None:
        self.work.unacked.discard(self)
        if error is not None and error.code == RECOUNTS:
            self.work.recounts = True
        if error is not None and error.code not in FELL:
            self.work.refused.append((self, error))


class Telling(NamedTuple):
    """The events of one loop: what gathers them, and what makes a record of a packet; `now`: seconds since the epoch."""

    batch: EventBatch
    record: Callable[[Packet], Record]
    now: Callable[[], float]


class Work:
    """One transaction: what goes into it, and what became of it. `silent`: it goes without its events. `recounts`: see RECOUNTS."""

    __slots__ = ("commits", "cut", "error", "items", "recounts", "refused", "silent", "snapshot", "unacked")

    def __init__(self, snapshot: Snapshot, items: list[Open], cut: Cut | None, *, silent: bool = False) -> None:
        self.snapshot = snapshot
        self.items = items
        self.cut = cut
        self.silent = silent
        self.unacked: set[Sent] = set()
        self.refused: list[tuple[Sent, BrokerError]] = []
        self.error: BrokerError | None = None
        self.commits = self.recounts = False

    @property
    def packets(self) -> Sequence[Packet]:
        return () if self.cut is None or self.silent else self.cut.packets

    @property
    def empty(self) -> bool:
        return not (self.items or self.packets or self.snapshot.offsets)


class Transactor(Committer):
    """Commits what its loop's partitions finished, in transactions. One owner: the loop's thread. `telling`: None: it has no events."""

    def __init__(
        self,
        poller: Poller,
        gathered: Gathered,
        transactions: Transactions,
        how: Ticking,
        telling: Telling | None = None,
    ) -> None:
        super().__init__(poller, self._producer_now, how)
        self._gathered = gathered
        self._transactions = transactions
        self._telling = telling
        self._opened: TransactionalProducer | None = None
        self._initiated = False
        self._lost: list[float] = []  # when producers became unusable
        self._without_events = (0.0, WITHOUT_EVENTS_S)  # until when, and for how long the next time
        self._unanswered: Work | None = None
        self._ended: Stopped | None = None
        self._took_s = 0.0

    # When -------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the loop joins its group: ends what a predecessor left open. Raises Stopped."""
        self._initiate(ANSWER_S)

    def due(self) -> bool:
        if self._ended is not None:
            raise self._ended
        since = self._now() - self._last
        early = self._gathered.fresh and since >= min(self._tick_s, SHARE * self._took_s)
        return self._unanswered is None and (early or since >= self._tick_s)

    def tick(self, events: Events) -> None:
        """A transaction with all that was gathered, events too (so none are given here). Raises Stopped."""
        self._transact((), self._now() + FLUSH_S)

    def advance(self) -> None:
        """Asks again for what was not answered. Raises Stopped."""
        if self._ended is not None:
            raise self._ended
        if self._unanswered is not None:
            self._end(self._unanswered, ANSWER_S)

    def commit_now(self, homes: Collection[Partition], events: Events, timeout: float) -> None:
        """Before partitions leave. Called inside a rebalance callback, from which nothing can be raised: the next turn does."""
        deadline = self._now() + timeout
        with contextlib.suppress(Stopped):
            if self._unanswered is not None:
                self._end(self._unanswered, timeout)
            if self._unanswered is None:
                self._transact(homes, deadline)

    # One transaction --------------------------------------------------------------------------------------------------

    def _transact(self, leaving: Collection[Partition], deadline: float) -> None:
        """Until one is committed, without what made those before it abort; or none can be now."""
        self._last = began = self._now()
        work = self._gather(leaving)
        while not work.empty and self._attempt(work, deadline) and self._now() < deadline:
            work = self._gather(leaving)
        if work.empty:
            self._put_back(work)
        self._last = self._now()
        self._took_s = self._last - began

    def _gather(self, leaving: Collection[Partition]) -> Work:
        """What is to be done now, with offsets as they are once all of it is."""
        items = self._gathered.take()
        finishing: dict[Partition, list[int]] = {}
        for item in items:
            finishing.setdefault(item.home, []).append(item.offset)
        snapshot = Snapshot(self._last)
        self._poller.past_gaps()
        for home in self._poller.partitions.values():
            also = finishing.get(home, ())
            leaves = home in leaving and home.fetching
            if also or leaves or self._wants_commit(home, self._last):
                self._take(snapshot, home, clean=leaves, also=also)
        self._ask_whether_member(snapshot)
        if self._telling is None:
            return Work(snapshot, items, None)
        cut = self._telling.batch.cut([item.job for item in items if item.job is not None], self._telling.now())
        return Work(snapshot, items, cut, silent=self._without_events[0] > self._now())

    def _attempt(self, work: Work, deadline: float) -> bool:
        """True: it was aborted because of some of its records, and another one without these may be committed."""
        if not self._initiate(max(0.1, deadline - self._now())):
            self._put_back(work)
            return False
        self._failing_since = self._failing_since or self._now()
        producer = self._producer_now()
        try:
            producer.begin()
            self._fill(producer, work, deadline)
            work.commits = not work.refused
            if work.commits and work.snapshot.offsets:
                # Read on this thread, this late: one that is older belongs to a generation that may be over (edge 79).
                member = self._poller.consumer.group_metadata()
                producer.send_offsets(work.snapshot.offsets, member, ANSWER_S)
        except BrokerError as error:
            work.error, work.commits = error, False
            if error.fatal:
                self._renew(error)
                return self._put_back(work)
        return self._end(work, max(1.0, deadline - self._now()))

    def _fill(self, producer: TransactionalProducer, work: Work, deadline: float) -> None:
        for item in work.items:
            for record in item.records:
                self._send(producer, Sent(work, item, record), deadline)
        telling = self._telling
        for record in map(telling.record, work.packets) if telling is not None else ():
            self._send(producer, Sent(work, None, record), deadline)
        for number in _slices(deadline - self._now()):
            if work.refused or not work.unacked:
                return
            if number * SLICE_S > EVENTS_PATIENCE_S and all(sent.item is None for sent in work.unacked):
                break
            producer.flush(SLICE_S)
        work.refused += [(sent, _too_late(sent)) for sent in work.unacked]

    def _send(self, producer: TransactionalProducer, sent: Sent, deadline: float) -> None:
        sent.work.unacked.add(sent)
        for _ in _slices(deadline - self._now()):
            try:
                return producer.send(sent.record, sent, alone=sent.item is not None and sent.item.alone)
            except BrokerError as error:
                if error.fatal or error.code == "_STATE":
                    raise
                if error.code != "_QUEUE_FULL":
                    return sent(error)
            producer.poll(SLICE_S)
        sent(_too_late(sent))

    def _end(self, work: Work, timeout: float) -> bool:
        """Commits or aborts. True: aborted, because of some of its records."""
        producer = self._producer_now()
        self._unanswered = work
        try:
            if work.commits:
                producer.commit(timeout)
            else:
                producer.abort(timeout)
        except BrokerError as error:
            return self._not_ended(work, error, timeout)
        self._unanswered = None
        if work.commits:
            self._settled(work)
            return False
        return self._put_back(work)

    def _not_ended(self, work: Work, error: BrokerError, timeout: float) -> bool:
        if work.commits and error.abortable:
            work.error, work.commits = error, False
            return self._end(work, timeout)
        if work.commits and not error.retriable:
            self._stop(error)
        if error.retriable:
            logger.warning("group %s: %s; asked again", self._poller.group, error)
            return False
        self._unanswered = None
        self._renew(error)
        return self._put_back(work)

    def _renew(self, error: BrokerError) -> None:
        """The producer is unusable, and its transaction can't have been committed: another one with its id ends it.

        *Bites*: a topic is deleted; the client aborts a transaction that the coordinator has never heard of, which it takes for a
        fatal error.
        """
        now = self._now()
        self._lost = [at for at in self._lost if now - at < LOST_S] + [now]
        if error.code == "_FENCED" or len(self._lost) >= LOST:
            self._stop(error)
        logger.error("the transactional producer of group %s can't go on (%s): building another one", self._poller.group, error)
        producer, self._opened, self._initiated = self._opened, None, False
        if producer is not None:
            producer.close(0.0)

    def _stop(self, error: BrokerError) -> NoReturn:
        """Whether the last transaction was committed, only the group's offsets tell, and they tell the next process."""
        self._ended = Stopped(f"the transactional producer of group {self._poller.group} can't go on: {error}")
        raise self._ended from error

    # What became of it ------------------------------------------------------------------------------------------------

    def _settled(self, work: Work) -> None:
        if work.packets:
            self._without_events = (0.0, WITHOUT_EVENTS_S)
        elif work.cut is not None and work.cut.events:
            self._dropped(work.cut.events, "error")
        self._failing_since = None
        for item in work.items:
            self._gathered.sent(item)
            if item.epoch == item.home.epoch:
                item.then()
        self._answered(work.snapshot, dict.fromkeys(work.snapshot.offsets))

    def _put_back(self, work: Work) -> bool:
        """Everything again in the next transaction, but for what made this one abort. True: something did."""
        if self._telling is not None and work.cut is not None:
            self._telling.batch.put_back(work.cut, is_gone)
        of_items = {sent.item: (sent, error) for sent, error in work.refused if sent.item is not None}
        self._gathered.put_back(item for item in work.items if item not in of_items)
        for item, (sent, error) in of_items.items():
            self._gathered.refuse(item, sent.record, error)
        if work.refused and not of_items:
            self._leave_out_events(work.refused[0][1])
        if work.error is not None and not work.refused:
            logger.warning("a transaction of group %s was aborted: %s; it is produced again", self._poller.group, work.error)
            self.errors |= {tp: work.error for tp in work.snapshot.offsets if self._current(work.snapshot, tp)}
            self._told_of(False, self._now() - work.snapshot.asked)
        return bool(work.refused) or work.recounts or (work.error is not None and work.error.code == RECOUNTS)

    def _leave_out_events(self, error: BrokerError) -> None:
        """Events never keep a job from being settled: for a while transactions go without."""
        delay_s = self._without_events[1]
        self._without_events = self._now() + delay_s, min(LONGEST_BACKOFF_S, 2 * delay_s)
        logger.warning("group %s settles without events for %g s: %s", self._poller.group, delay_s, error)

    # The producer -----------------------------------------------------------------------------------------------------

    def _producer_now(self) -> TransactionalProducer:
        if self._opened is None:
            self._opened = self._transactions.producer(self._poller.group)
        return self._opened

    def _initiate(self, timeout: float) -> bool:
        if not self._initiated:
            try:
                self._producer_now().init(timeout)
            except BrokerError as error:
                if not error.retriable:
                    self._stop(error)
                logger.warning("group %s can't begin transactions yet: %s", self._poller.group, error)
                return False
            self._initiated = True
        return True


def _slices(left_s: float) -> range:
    """As many looks as fit: counted, since a test's clock does not move while it waits."""
    return range(max(1, int(left_s / SLICE_S)))


def _too_late(sent: Sent) -> BrokerError:
    text = f"a record to {sent.record.topic} was not acknowledged in time"
    return BrokerError("_MSG_TIMED_OUT", text, retriable=True)
