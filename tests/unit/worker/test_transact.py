"""Transactional settling on the broker in memory: what goes into a transaction, and what becomes of one that can't be committed.

What a promise with "transaction" in it rests on is tested on a real broker: tests/broker/test_transact.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any

import pytest

from streamjobs import App, Backoff, BrokerError, Cancel, Job, PublishError, Reject, Retry, RetryAfter, Snooze, UsageError
from streamjobs.broker import Commit, TopicPartition
from streamjobs.core import offsets
from streamjobs.core.dispatch import Partition
from streamjobs.core.record import Meta, Record
from streamjobs.telemetry import events
from streamjobs.telemetry.metrics import Metrics
from streamjobs.testing.app import Testing
from streamjobs.testing.faults import broker_error
from streamjobs.testing.producer import MemoryTransactionalProducer
from streamjobs.worker import Stopped, transact
from streamjobs.worker.commit import Snapshot
from streamjobs.worker.settle import Open
from streamjobs.worker.transact import Gathered

OnMemory = Callable[[App], Testing]
ONCE_AGAIN = Retry(attempts=2, backoff=Backoff.fixed("1s"))


def shop(**options: Any) -> tuple[App, list[int]]:
    """An app whose job `order` ends as it is told, after it has published a job `ship`; and the orders that were shipped."""
    app = App("shop", transactional=True, partitions=1)
    shipped: list[int] = []

    @app.job(name="order", queue="orders", retry=ONCE_AGAIN, **options)
    def order(job: Job, n: int, ends: str = "") -> None:
        receipt = ship.publish(n=n)
        assert (receipt.topic, receipt.offset) == (app.names.main("shipping"), -1)
        if ends:
            end(ends, job)

    @app.job(name="ship", queue="shipping")
    def ship(n: int) -> None:
        shipped.append(n)

    return app, shipped


def end(how: str, job: Job) -> None:
    if job.run == 1 or how == "never":
        raise {
            "fails": ValueError("no"),
            "never": ValueError("never"),
            "retry_after": RetryAfter("1s"),
            "snooze": Snooze("1s"),
            "reject": Reject("no"),
            "cancel": Cancel("no"),
        }[how]


def committed(t: Testing, topic: str) -> int:
    where = TopicPartition(topic, 0)
    commit = t.broker.admin().committed(t.app.group, [where]).get(where)
    return commit.offset if commit else 0


def records(t: Testing, topic: str) -> list[Meta]:
    return [Meta.parse(message.headers()) for message in t.broker.records(topic)]


def ends_told(t: Testing, of: str = "order") -> list[str]:
    told = [event for message in t.broker.records(t.app.names.events) for event in events.decode(message.value() or b"")]
    return [event.kind for event in told if events.KINDS[event.kind].ends and event.job_type == of]


def runs(t: Testing, times: int = 4, step: float = 0.6) -> None:
    for _ in range(times):
        t.run(raise_errors=False, through_delays=False)
        t.advance(step)
    t.run(raise_errors=False, through_delays=False)


@pytest.fixture
def on_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`on_commit(error, …, of=group)`: the next commits of its transactions end with these errors; the codes of those that did.

    What is not answered was done all the same, as a commit whose answer is lost; asked again, the broker says that it is done.
    """

    def arrange(*outcomes: BrokerError | None, of: str = "shop") -> list[str]:
        left, met = list(outcomes), []
        plain = MemoryTransactionalProducer.commit

        def commit(producer: MemoryTransactionalProducer, timeout: float = 10.0) -> None:
            ours = producer._id.rpartition(".")[0] == f"streamjobs.{of}"
            error = left.pop(0) if left and ours else None
            if producer._transaction is not None and (error is None or error is UNANSWERED):
                plain(producer, timeout)
            if error is not None:
                met.append(error.code)
                raise error

        monkeypatch.setattr(MemoryTransactionalProducer, "commit", commit)
        return met

    return arrange


ABORTABLE = BrokerError("COORDINATOR_LOAD_IN_PROGRESS", "injected", abortable=True)
UNANSWERED = broker_error("_TIMED_OUT", "injected")


# --- child jobs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "published"),
    [("", 1), ("fails", 1), ("never", 0), ("retry_after", 1), ("snooze", 2), ("reject", 1), ("cancel", 1)],
)
def test_child_jobs_stand_with_what_their_run_decided(on_memory: OnMemory, ends: str, published: int) -> None:
    """A run that returns, and one that says with a signal what becomes of it, keeps what it published; an error undoes it."""
    app, shipped = shop()
    t = on_memory(app)

    app.job_types["order"].publish(n=7, ends=ends)
    t.run(raise_errors=False)

    assert shipped == [7] * published


def test_child_jobs_come_with_their_parents_offset(on_memory: OnMemory, on_commit: Any) -> None:
    """Until the transaction is committed, nobody sees the child job, and the parent's offset is not committed."""
    app, shipped = shop()
    t = on_memory(app)
    met = on_commit(ABORTABLE)
    app.job_types["order"].publish(n=1)

    t.run(through_delays=False)
    assert met
    assert (shipped, records(t, app.names.main("shipping")), committed(t, app.names.main("orders"))) == ([], [], 0)

    runs(t)
    assert (shipped, committed(t, app.names.main("orders"))) == ([1], 1)


def test_nobody_waits_for_child_jobs_so_no_time_is_measured(on_memory: OnMemory) -> None:
    """What bit: each counted as acknowledged within 0 s, and the median of all that a worker publishes said so."""
    app, _ = shop()
    t = on_memory(app)
    told: list[tuple[str, int, int, float | None]] = []
    app.publisher.observe = lambda job_type, *count: told.append((job_type.name, *count))

    app.job_types["order"].publish(n=7)
    t.run()
    assert [(name, took is None) for name, _, _, took in told] == [("order", False), ("ship", True)]

    metrics = Metrics("shop", "main", app.job_types)
    metrics.published(app.job_types["ship"], 1, 0, None)
    assert {name for name, _ in (*metrics.snapshot().counters, *metrics.snapshot().histograms)} == {"jobs_published_total"}


def test_async_handlers_publish_in_the_transaction_too(on_memory: OnMemory) -> None:
    app, shipped = shop()
    ship = app.job_types["ship"]

    @app.job(queue="orders", retry=ONCE_AGAIN)
    async def order_async(job: Job, n: int) -> None:
        await ship.publish_async(n=n)
        await asyncio.to_thread(ship.publish_many, [{"n": n + 1}, {"n": n + 2}])
        if job.run == 1:
            raise ValueError

    t = on_memory(app)
    order_async.publish(n=1)
    t.run(raise_errors=False)

    assert sorted(shipped) == [1, 2, 3]


def test_who_publishes_after_the_run_is_told(on_memory: OnMemory) -> None:
    """A task that outlives its handler can't publish for it: the run is settled. It hears so, instead of losing a job."""
    app, shipped = shop()
    refused: list[BaseException] = []

    @app.job(queue="orders")
    def hasty(job: Job) -> None:
        t.process.loops[0].outcomes._outbox.close([job])  # type: ignore[union-attr]
        try:
            app.job_types["ship"].publish(n=1)
        except PublishError as error:
            refused.append(error)

    t = on_memory(app)
    hasty.publish()
    t.run()

    assert (shipped, len(refused)) == ([], 1)
    assert "settled already" in str(refused[0])


def test_outside_of_a_run_a_job_is_published_at_once(on_memory: OnMemory) -> None:
    """In a hook, and by whoever else uses the app in the worker's process."""
    app, _ = shop()
    receipts: list[int] = []

    @app.on_dead
    def tell(job: Job, reason: str) -> None:
        receipts.append(app.job_types["ship"].publish(n=99).offset)

    t = on_memory(app)
    app.job_types["order"].publish(n=1, ends="reject")
    t.run()

    assert receipts == [2]  # behind the child job and its transaction's marker


def test_a_job_that_keeps_its_place_publishes_with_the_commit_of_its_start(on_memory: OnMemory) -> None:
    """`key_strict`: a snoozed head has no record of its own; its child job goes with the commit that counts the start."""
    app, shipped = shop(key="n", order="key_strict")
    t = on_memory(app)

    app.job_types["order"].publish(n=1, ends="snooze")
    t.run(through_delays=False)
    assert shipped == [1]
    assert committed(t, app.names.main("orders")) == 0

    t.run()
    runs(t)
    assert shipped == [1, 1]
    assert committed(t, app.names.main("orders")) == 1


def test_what_a_commit_finishes_is_not_parked_in_it(on_memory: OnMemory) -> None:
    """What is committed is worked out on a copy: the tracker and the parked heads stay as they are until it is."""
    app, _ = shop(key="n", order="key_strict")
    t = on_memory(app)
    t.run()
    poller = t.process.loops[0].poller
    home = poller.partitions[app.names.main("orders"), 0]
    for offset in range(3):
        home.tracker.receive(offset)
        home.parked[offset] = offsets.Parked(offset, 1, 1.0)

    _, commit, _ = poller.snapshot(home, also=[0, 2])
    mark = offsets.decode(*commit)

    assert mark is not None
    assert (commit.offset, list(mark.finished), [head.offset for head in mark.parked]) == (1, [2], [1])
    assert (home.tracker.base, home.tracker.unfinished, len(home.parked)) == (0, 3, 3)


def test_a_child_job_belongs_to_the_run_in_whose_context_it_is_published(on_memory: OnMemory) -> None:
    """A brief run leaves something behind that publishes while the next one of its chunk runs: it goes the way of the run that left it."""
    app = App("shop", transactional=True, partitions=1)
    left: list[Context] = []

    @app.job(queue="orders", retry=Retry(attempts=1))
    def fails(n: int) -> None:
        left.append(copy_context())
        if n == 2:
            left[-2].run(ship.publish, 1)
        raise ValueError(n) if n == 1 else Reject("no")

    @app.job(queue="shipping")
    def ship(n: int) -> None: ...

    t = on_memory(app)
    fails.publish(0)  # the first of a type has a chunk of its own
    t.run(raise_errors=False)
    fails.publish_many([(1,), (2,)])
    t.run(raise_errors=False)
    assert len(left) == 3 and not records(t, app.names.main("shipping"))


def test_without_transactions_child_jobs_are_published_at_once(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)
    offsets: list[int] = []

    @app.job(queue="orders")
    def order(n: int) -> None:
        offsets.append(order_child.publish(n=n).offset)

    @app.job(queue="shipping")
    def order_child(n: int) -> None:
        """Nothing."""

    t = on_memory(app)
    order.publish(n=1)
    t.run()

    assert offsets == [0]


# --- a transaction that is not committed ----------------------------------------------------------------------------------


def test_an_aborted_transaction_is_produced_again_and_no_handler_runs_again(on_memory: OnMemory, on_commit: Any) -> None:  # edge 80
    """What was aborted stays in the loop's hands: nothing is sought, nothing is lost, and the second transaction has all of it."""
    app = App("shop", transactional=True, partitions=1)
    starts: list[tuple[int, int]] = []

    @app.job(queue="orders", retry=ONCE_AGAIN)
    def order(job: Job, n: int) -> None:
        starts.append((n, job.run))
        if n == 1 and job.run == 1:
            raise ValueError

    t = on_memory(app)
    order.publish_many([{"n": n} for n in range(3)])
    met = on_commit(ABORTABLE, ABORTABLE)
    runs(t, 8)

    assert met == [ABORTABLE.code] * 2
    assert starts == [(0, 1), (1, 1), (2, 1), (1, 2)]
    assert [meta.run for meta in records(t, app.names.retry("orders", app.group))] == [2]
    assert committed(t, app.names.main("orders")) == 3
    assert len(ends_told(t)) == 4
    assert "can't be committed" not in " ".join(t.process.unready().values())


def test_a_commit_without_an_answer_is_asked_for_again(on_memory: OnMemory, on_commit: Any) -> None:  # edge 36
    """It may have been committed: so it is neither aborted nor produced again, and nothing else is begun before it is known."""
    app, shipped = shop()
    t = on_memory(app)
    met = on_commit(UNANSWERED, UNANSWERED, UNANSWERED)
    app.job_types["order"].publish(n=1, ends="reject")
    runs(t, 8)

    assert met == [UNANSWERED.code] * 3
    assert shipped == [1]
    assert len(t.broker.records(app.names.dead("orders", app.group))) == 1
    assert ends_told(t) == ["rejected"]


def test_who_was_fenced_is_replaced(on_memory: OnMemory) -> None:  # edge 68
    """Whether its last transaction was committed only the group's offsets tell: the next process reads them."""
    app, _ = shop()
    t = on_memory(app)
    app.job_types["order"].publish(n=1)
    t.run()
    producer = t.process.loops[0].committer._producer_now()  # type: ignore[attr-defined]
    t.broker.transactional_producer(producer._id).init()

    app.job_types["order"].publish(n=2)
    with pytest.raises(Stopped, match="_FENCED"):
        runs(t)

    t.restart()
    runs(t)
    assert committed(t, app.names.main("orders")) == 2


def test_who_is_fenced_inside_a_revoke_is_replaced_at_the_next_turn(on_memory: OnMemory) -> None:
    """From a callback nothing can be raised: it would destroy records of the client."""
    app, _ = shop()
    t = on_memory(app)
    app.job_types["order"].publish(n=1)
    t.run()
    for name in list(t.broker._state.transactional_ids):
        t.broker.transactional_producer(name).init()
    loop = t.process.loops[0]
    loop.committer.commit_now(list(loop.poller.partitions.values()), [], timeout=1.0)

    with pytest.raises(Stopped):
        loop.committer.due()


def test_offsets_of_one_who_is_no_member_are_not_sent(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch) -> None:  # edge 79
    """
    The session ends while the loop is busy; before it fetches again, a tick comes. The broker would take offsets without a
    member's name as they are, over those of the next owner.
    """
    app, shipped = shop()
    t = on_memory(app)
    consumer = t.process.loops[0].poller.consumer
    with monkeypatch.context() as patch:
        patch.setattr(consumer, "_member", None)
        committer = t.process.loops[0].committer
        app.publisher.publish(app.job_types["order"], {"n": 1, "ends": ""})
        patch.undo()
        t.run(through_delays=False)
        before = committed(t, app.names.main("orders"))
        patch.setattr(consumer, "_member", None)
        committer.commit_now(list(t.process.loops[0].poller.partitions.values()), [], timeout=1.0)

    assert committed(t, app.names.main("orders")) == before
    assert "UNKNOWN_MEMBER_ID" in str(next(iter(committer.errors.values())))
    assert shipped == [1]


# --- what makes one abort -------------------------------------------------------------------------------------------------


def test_events_never_keep_a_job_from_being_settled(on_memory: OnMemory) -> None:
    """The events topic refuses: the transaction is repeated without events; they count as dropped, and readers hear of it."""
    app, shipped = shop()
    t = on_memory(app)
    fault = t.broker.fail("send", topic=app.names.events, error="TOPIC_AUTHORIZATION_FAILED", times=None)
    app.job_types["order"].publish(n=1)
    app.job_types["order"].publish(n=2, ends="reject")
    runs(t)

    assert shipped == [1, 2]
    assert committed(t, app.names.main("orders")) == 2
    assert len(t.broker.records(app.names.dead("orders", app.group))) == 1
    assert ends_told(t) == []

    fault.lift()
    t.advance(60)
    app.job_types["order"].publish(n=3)
    runs(t)
    assert ends_told(t) == ["succeeded"]
    batches = [events.decode_batch(message.value() or b"") for message in t.broker.records(app.names.events)]
    assert max(batch.dropped for batch in batches) >= 2


def test_one_topic_that_refuses_holds_up_nobody_else(on_memory: OnMemory) -> None:  # edge 37
    """
    The retry topic refuses: the jobs that failed keep their places, and no transaction of the others is aborted for each of
    them. When it takes records again, each is written once.
    """
    app, shipped = shop()
    t = on_memory(app)
    fault = t.broker.fail("send", topic=app.names.retry("orders", app.group), error="TOPIC_AUTHORIZATION_FAILED", times=None)
    order = app.job_types["order"]
    for n in range(12):
        order.publish(n=n, ends="fails")
    order.publish(n=100)
    runs(t)

    assert shipped == [100]
    assert committed(t, app.names.main("orders")) == 0
    tried = fault.hits
    runs(t, 10, step=2.0)
    assert fault.hits - tried <= 7  # of twelve that wait one tries it, ever more rarely
    assert "can't be written to" in " ".join(t.process.unready().values())

    fault.lift()
    runs(t, 20, step=5.0)
    assert sorted(shipped) == [*range(12), 100]
    assert len(records(t, app.names.retry("orders", app.group))) == 12
    assert committed(t, app.names.main("orders")) == 13


def test_a_record_that_is_too_large_is_put_right_alone(on_memory: OnMemory) -> None:  # edge 43
    """Its transaction is aborted and repeated; the others' retries stay retries."""
    app = App("shop", transactional=True, partitions=1)

    @app.job(queue="orders", retry=ONCE_AGAIN)
    def order(job: Job, text: str) -> None:
        raise ValueError("no")

    t = on_memory(app)
    t.broker.admin().alter_topic_config(app.names.retry("orders", app.group), {"max.message.bytes": "2000"})
    for text in ("short", "x" * 3000, "short"):
        order.publish(text=text)
    runs(t, 8)

    assert len(records(t, app.names.retry("orders", app.group))) == 2
    assert sorted(letter.reason for letter in t.dead_letters("orders")) == ["exhausted", "exhausted", "too_large"]


def test_records_that_share_no_batch_go_a_few_at_a_time() -> None:
    """Each takes a round trip: a thousand of them, 10 ms each, and the broker ends the transaction, fences its producer and all begins anew."""
    gathered = Gathered(lambda: None, lambda: 0.0)  # type: ignore[arg-type,return-value]
    home = Partition("jobs.q", 0, "q", retry=False, topic_id=b"id", epoch=1, tracker=offsets.Tracker(0))
    for offset in range(2 * transact.MOST_ALONE + 3):
        item = Open(home, offset, Record("retry", b""), lambda: None)
        item.alone = offset % 2 == 0
        gathered.settle(item)

    first, second = gathered.take(), gathered.take()

    assert [sum(item.alone for item in taken) for taken in (first, second)] == [transact.MOST_ALONE, 2]
    assert len(first) + len(second) == 2 * transact.MOST_ALONE + 3


def test_who_counts_anew_tries_again_at_once_whatever_fell_after_it(on_memory: OnMemory) -> None:
    """After a refusal the next transaction is aborted once (OUT_OF_ORDER_SEQUENCE_NUMBER). That may come in the answer of its first
    record, and its second one meets a transaction that is over (`_STATE`). What bites, inside a revoke: there is no second attempt, and
    what was settled runs again elsewhere."""
    app = App("shop", transactional=True, partitions=1)
    app.job(name="mail", queue="mails")(lambda: None)
    t = on_memory(app)
    t.run()
    transactor: Any = t.process.loops[0].committer
    work = transact.Work(Snapshot(0.0), [], None)
    work.error = broker_error("_STATE")
    assert not transactor._put_back(work)

    transact.Sent(work, None, Record("retry", b""))(broker_error("OUT_OF_ORDER_SEQUENCE_NUMBER"))

    assert work.refused == []
    assert transactor._put_back(work)


def test_who_asks_whether_it_is_a_member_commits_no_less_than_it_settles(on_memory: OnMemory) -> None:
    """What bit: the answer before was long ago, so one partition was taken again, without what the transaction finishes of it: the retry
    was stored and its offset not committed, and the next owner ran the job again and stored a second one."""
    app = App("shop", transactional=True, partitions=1)

    @app.job(queue="orders", retry=ONCE_AGAIN)
    def order(n: int) -> None:
        raise ValueError(n)

    t = on_memory(app)
    runs(t)
    committer: Any = t.process.loops[0].committer
    committer._session_s = 100.0
    committer._heard_at = t.clock.monotonic() - 60.0
    order.publish(n=1)
    while not records(t, app.names.retry("orders", app.group)):
        t.process.loops[0].turn()
        t.clock.advance(0.1)

    assert committed(t, app.names.main("orders")) == 1


# --- partitions that leave ------------------------------------------------------------------------------------------------


def test_partitions_leave_with_a_transaction_of_all_that_was_gathered(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside on_revoke, before they are unassigned: what was settled is committed, and its next owner does none of it again."""
    app, _ = shop()
    t = on_memory(app)
    loop = t.process.loops[0]
    monkeypatch.setattr(loop.committer, "due", lambda: False)
    app.job_types["order"].publish(n=1, ends="fails")
    app.job_types["order"].publish(n=2)
    for _ in range(20):
        loop.turn()
    assert committed(t, app.names.main("orders")) == 0
    assert loop.settler.open == 2

    loop.poller.revoked([TopicPartition(*tp) for tp in loop.poller.partitions])
    assert committed(t, app.names.main("orders")) == 2
    assert len(records(t, app.names.retry("orders", app.group))) == 1
    assert len(records(t, app.names.main("shipping"))) == 1


def test_nobody_tells_of_jobs_whose_partition_was_lost(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """They succeeded, which was never committed: their next owner runs them again and tells of them. Once is enough."""
    app = App("shop", transactional=True, partitions=1)

    @app.job(name="order", queue="orders")
    def order(n: int) -> None:
        """Nothing."""

    t = on_memory(app)
    loop = t.process.loops[0]
    with monkeypatch.context() as patch:
        patch.setattr(loop.committer, "due", lambda: False)
        order.publish_many([{"n": n} for n in range(3)])
        t.run(through_delays=False)
        loop.poller.lost([TopicPartition(*tp) for tp in loop.poller.partitions])
    for _ in range(3):
        t.advance(0.6)
        loop.turn()
    assert (loop.finished, ends_told(t)) == (3, [])

    t.restart()
    runs(t)
    assert ends_told(t) == ["succeeded"] * 3


def test_what_an_abort_without_an_answer_puts_back_is_no_longer_of_a_lost_partition(
    on_memory: OnMemory, on_commit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # edge 41
    """The partition is lost before anybody knows how the transaction ended: neither its settlements nor its events are produced."""
    app, _ = shop()
    t = on_memory(app)
    loop = t.process.loops[0]
    plain, asked = MemoryTransactionalProducer.abort, []

    def abort(producer: MemoryTransactionalProducer, timeout: float = 10.0) -> None:
        asked.append(producer)
        if len(asked) == 1:
            raise UNANSWERED
        plain(producer, timeout)

    monkeypatch.setattr(MemoryTransactionalProducer, "abort", abort)
    on_commit(ABORTABLE)
    app.job_types["ship"].publish(n=0)
    app.job_types["order"].publish(n=1, ends="reject")
    with monkeypatch.context() as patch:
        patch.setattr(loop.committer, "due", lambda: False)
        for _ in range(20):
            loop.turn()
    t.advance(0.6)
    loop.turn()
    assert (loop.finished, len(asked)) == (1, 1)
    loop.poller.lost([TopicPartition(*tp) for tp in loop.poller.partitions])
    for _ in range(5):
        t.advance(0.6)
        loop.turn()

    assert len(asked) == 2
    assert ends_told(t) + ends_told(t, "ship") == []
    assert t.broker.records(app.names.dead("orders", app.group)) == []
    assert len(records(t, app.names.main("shipping"))) == 1  # the one that was published by hand


def test_a_producer_that_is_lost_in_its_commit_is_not_asked_again(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was committed, and nobody heard it: produced again it would be there twice. The next process reads the group's offsets."""
    app, shipped = shop()
    t = on_memory(app)
    plain, left = MemoryTransactionalProducer.commit, [1]

    def commit(producer: MemoryTransactionalProducer, timeout: float = 10.0) -> None:
        plain(producer, timeout)
        if left and producer._id.startswith("streamjobs.shop.") and ".retry." not in producer._id and ".timer." not in producer._id:
            left.pop()
            raise BrokerError("INVALID_TXN_STATE", "injected", fatal=True)

    app.job_types["order"].publish(n=1)
    monkeypatch.setattr(MemoryTransactionalProducer, "commit", commit)
    with pytest.raises(Stopped):
        runs(t)

    t.restart()
    runs(t)
    assert shipped == [1]


def test_a_producer_that_is_lost_before_its_commit_is_replaced_in_its_process(
    on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch
) -> None:  # edge 68
    """
    It can't have committed anything, so all is produced again with another one, and no job is disturbed. Three in five minutes are
    no accident any more: then the process ends.
    """
    app, shipped = shop()
    t = on_memory(app)
    left = [1]
    plain = MemoryTransactionalProducer.send_offsets

    def send_offsets(producer: MemoryTransactionalProducer, *args: Any) -> None:
        if left:
            left.pop()
            raise BrokerError("INVALID_TXN_STATE", "injected", fatal=True)
        plain(producer, *args)

    monkeypatch.setattr(MemoryTransactionalProducer, "send_offsets", send_offsets)
    app.job_types["order"].publish(n=1)
    runs(t)
    assert (shipped, committed(t, app.names.main("orders"))) == ([1], 1)

    left.extend([1] * 3)
    app.job_types["order"].publish(n=2)
    with pytest.raises(Stopped, match="INVALID_TXN_STATE"):
        runs(t, 8)


def test_partitions_that_were_lost_write_nothing(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch) -> None:  # edge 41
    """What was gathered of them is the next owner's to do again."""
    app, shipped = shop()
    t = on_memory(app)
    loop = t.process.loops[0]
    with monkeypatch.context() as patch:
        patch.setattr(loop.committer, "due", lambda: False)
        app.job_types["order"].publish(n=1)
        for _ in range(20):
            loop.turn()
        assert loop.settler.open == 1
        loop.poller.lost([TopicPartition(*tp) for tp in loop.poller.partitions])
    for _ in range(3):
        t.advance(1)
        loop.turn()
    assert records(t, app.names.main("shipping")) == []

    t.restart()
    runs(t)
    assert shipped == [1]


def test_a_hanging_transaction_holds_up_only_its_own_partitions(on_memory: OnMemory) -> None:
    """
    A worker was killed in a transaction: what the group's commits of its partitions will be, nobody knows before it has ended. Its
    successor waits for these, and begins the other ones at once; nothing is read from a place that was guessed.
    """
    app = App("shop", transactional=True, partitions=2)
    done: list[str] = []

    @app.job(queue="orders")
    def order(where: str) -> None:
        done.append(where)

    t = on_memory(app)
    t.broker._state.limits = replace(t.broker._state.limits, transaction_timeout=60.0)
    t.run()
    dead = t.broker.transactional_producer("dead")
    dead.init()
    dead.begin()
    hidden = TopicPartition(app.names.main("orders"), 0)
    dead.send_offsets({hidden: Commit(0)}, t.process.loops[0].poller.consumer.group_metadata())
    t.broker.kill(dead)
    partition_of: dict[int, str] = {}
    for number in range(20):
        receipt = order.options(key=str(number)).publish(where=str(number))
        partition_of[receipt.partition] = str(number)

    t.restart()
    runs(t)
    assert partition_of[1] in done
    assert partition_of[0] not in done
    assert f"{hidden.topic}/0" in t.process.unready()

    runs(t, 40, step=2.0)
    assert sorted(done, key=int) == [str(number) for number in range(20)]


# --- the timer ------------------------------------------------------------------------------------------------------------


def test_the_timer_moves_records_in_transactions(on_memory: OnMemory, on_commit: Any) -> None:  # edge 38
    """A move and the offset of what was moved are one: nothing is in two tiers."""
    app, shipped = shop()
    t = on_memory(app)
    app.job_types["ship"].options(delay="6s").publish(n=1)
    tier = app.names.delay(app.name, "5s")
    assert len(records(t, tier)) == 1
    runs(t, 2)
    met = on_commit(ABORTABLE, of="shop.timer")
    t.run()

    assert met
    assert shipped == [1]
    assert len(records(t, app.names.main("shipping"))) == 1


# --- where it can't be had ------------------------------------------------------------------------------------------------


def test_a_broker_without_transactions_is_refused() -> None:
    from streamjobs.kafka import EmbeddedBroker

    app = App("shop", transactional=True, bootstrap="embedded")
    app._broker = EmbeddedBroker.__new__(EmbeddedBroker)

    with pytest.raises(UsageError, match="no transactions"):
        app.outbox()
