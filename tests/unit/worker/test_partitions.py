"""Partitions that come, go, are lost, deleted or made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App, Job, orders, provision
from streamjobs.broker import Commit, TopicPartition
from streamjobs.core import control
from streamjobs.core.assignment import Beginning
from streamjobs.core.offsets import Finished
from streamjobs.core.record import Record
from streamjobs.testing.app import Testing
from streamjobs.testing.faults import broker_error
from streamjobs.worker import Stopped

OnMemory = Callable[[App], Testing]
MAIN = TopicPartition("jobs.mails", 0)


def counting_app(**settings: Any) -> tuple[App, list[int]]:
    app = App("shop", partitions=1, **settings)
    ran: list[int] = []

    @app.job(name="count", queue="mails")
    def count(n: int) -> None:
        ran.append(n)

    return app, ran


def publish(app: App, *numbers: int) -> None:
    app.job_types["count"].publish_many([(n,) for n in numbers])


def tick(t: Testing, times: int = 2) -> None:
    for _ in range(times):
        t.run(through_delays=False)
        t.advance(0.6)
    t.run(through_delays=False)


def committed(t: Testing, app: App) -> Commit | None:
    return t.broker.admin().committed(app.group, [MAIN]).get(MAIN)


def seek(t: Testing, app: App, order: str, to: int) -> str:
    """Orders that the group reads from `to` on; the order's key."""
    key = control.seek_key(app.group, *MAIN, order)
    orders.write(t.broker, app.names, {key: control.seek_value(to=to, actor="t", reason="r", at=t.clock.now())})
    return key


def main_loop(t: Testing) -> Any:
    return t.process.loops[0]


def commits_asked(t: Testing) -> list[Any]:
    """Every commit that the main loop's consumer is asked for from now on."""
    asked: list[Any] = []
    consumer = main_loop(t).poller.consumer
    soon, now = consumer.commit_soon, consumer.commit_now

    def commit_soon(offsets: Any, done: Any) -> None:
        asked.append(dict(offsets))
        soon(offsets, done)

    def commit_now(offsets: Any, timeout: float = 10.0) -> Any:
        asked.append(dict(offsets))
        return now(offsets, timeout)

    consumer.commit_soon, consumer.commit_now = commit_soon, commit_now
    return asked


def counted_commits(reader: Any) -> list[TopicPartition]:
    """Each partition that this loop, or the timer, asks to commit from now on."""
    asked: list[TopicPartition] = []
    reader.poller.consumer.commit_soon = lambda offsets, done: asked.extend(offsets)
    return asked


def test_lost_partitions_are_not_committed(on_memory: OnMemory) -> None:  # edge 2, 3
    """Others may own them already, and the broker would take the commit of a non-owner."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 1)
    t.run(through_delays=False)
    asked = commits_asked(t)
    main_loop(t).poller.lost([MAIN])
    t.advance(1)
    main_loop(t).committer.tick([])
    assert ran == [1]
    assert asked == []


def test_a_commit_that_waits_for_its_events_ends_with_its_partition(on_memory: OnMemory) -> None:  # edge 2
    """The tick is under way when the partition goes; what it was going to ask for, another owner may have passed long ago."""
    app, ran = counting_app()
    t = on_memory(app)
    tick(t)
    t.broker.down(app.names.events)
    publish(app, 1)
    t.run(through_delays=False)
    loop = main_loop(t)
    asked = commits_asked(t)
    t.advance(0.6)
    loop.turn()
    assert loop.committer._waiting is not None
    loop.poller.lost([MAIN])
    t.advance(3)
    loop.turn()
    assert (ran, loop.committer._waiting, asked) == ([1], None, [])


def test_revoked_partitions_are_committed_once_more_with_a_clean_mark(on_memory: OnMemory) -> None:  # edge 1
    from streamjobs.core.offsets import decode

    app, _ = counting_app()
    t = on_memory(app)
    publish(app, 1, 2)
    t.run(through_delays=False)
    main_loop(t).poller.revoked([MAIN])
    commit = committed(t, app)
    assert commit is not None
    assert commit.offset == 2
    mark = decode(commit.offset, commit.metadata)
    assert mark is not None
    assert mark.clean


def test_empty_and_unknown_partitions_in_callbacks_are_tolerated(on_memory: OnMemory) -> None:  # edge 3, 4
    app, _ = counting_app()
    t = on_memory(app)
    poller = main_loop(t).poller
    assert poller.assigned([]) == {}
    poller.revoked([])
    poller.lost([])
    poller.revoked([TopicPartition("jobs.other", 3)])
    publish(app, 1)
    assert t.run() == 1


def test_records_of_a_partition_that_has_left_are_dropped(on_memory: OnMemory) -> None:  # edge 6
    """A batch that was fetched while the revoke came: its records are another worker's now."""
    app, ran = counting_app()
    t = on_memory(app)
    t.run()
    loop = main_loop(t)
    assert MAIN in loop.poller.partitions
    publish(app, 1)
    messages = t.broker.records(MAIN.topic)
    loop.poller.lost([MAIN])
    loop.arrivals.receive(messages, loop.poller.partitions)
    loop.execution.hand_out()
    assert ran == []


def test_a_partition_that_is_assigned_twice_begins_a_new_epoch(on_memory: OnMemory) -> None:  # edge 11
    """A client that lost its member tells of no revoke. What ran in the old epoch runs again in the new one; were its old
    failure to count, too, its retry would make a third run."""
    app = App("shop", partitions=1)
    runs: list[int] = []

    @app.job(name="count", queue="mails")
    def count(n: int) -> None:
        runs.append(n)
        loop = main_loop(t)
        if len(runs) == 1:
            starts = loop.poller.assigned([MAIN])
            loop.poller.consumer.seek(MAIN, starts[MAIN].offset)
            raise ValueError

    t = on_memory(app)
    publish(app, 1)
    t.run(raise_errors=False)
    home = main_loop(t).poller.partitions[MAIN]
    assert (runs, home.tracker.base) == ([1, 1], 1)


@pytest.mark.parametrize(
    "code",
    ["ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS", "UNKNOWN_MEMBER_ID", "STALE_MEMBER_EPOCH", "FENCED_MEMBER_EPOCH"],
)
def test_a_refused_commit_is_tried_again(on_memory: OnMemory, code: str) -> None:  # edge 8
    """A rejected commit is never recorded as done, and kills nobody."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 1)
    t.broker.fail("commit", topic=MAIN.topic, error=code, times=3)  # the first is that of the assignment
    t.run(through_delays=False)
    t.advance(0.6)
    t.run(through_delays=False)
    assert (committed(t, app) or Commit(0)).offset == 0
    tick(t, 4)
    assert ran == [1]
    assert (committed(t, app) or Commit(0)).offset == 1


def test_a_commit_after_one_that_was_not_answered_is_repeated(on_memory: OnMemory) -> None:  # edge 19
    """A frozen broker may hold the unanswered one, and take it after the newer one."""
    app, _ = counting_app()
    t = on_memory(app)
    tick(t)
    publish(app, 1)
    t.broker.fail("commit", topic=MAIN.topic, error="_TIMED_OUT", times=1)
    asked = commits_asked(t)
    tick(t, 6)
    assert [offsets[MAIN].offset for offsets in asked] == [1, 1, 1]


def test_one_commit_is_in_flight_at_a_time(on_memory: OnMemory) -> None:  # edge 19
    """An older one that lands after a newer one would set the group back."""
    app, _ = counting_app()
    t = on_memory(app)
    publish(app, 1)
    t.run(through_delays=False)
    loop = main_loop(t)
    calls: list[Any] = []
    loop.poller.consumer.commit_soon = lambda offsets, done: calls.append((offsets, done))
    t.advance(1)
    loop.turn()
    publish(app, 2)
    for _ in range(5):
        loop.turn()
        t.advance(1)
    assert len(calls) == 1

    offsets, done = calls[0]
    done(dict.fromkeys(offsets))
    t.advance(1)
    for _ in range(3):
        loop.turn()
    assert [next(iter(call[0].values())).offset for call in calls] == [1, 2]


def test_a_commit_that_is_never_answered_is_given_up(on_memory: OnMemory) -> None:  # edge 36
    """The answer got lost: after two minutes the next commit is asked for. Not sooner: a client without a coordinator keeps a
    commit until it finds one, and the older one would then land after the newer."""
    app, _ = counting_app()
    t = on_memory(app)
    tick(t, 3)
    publish(app, 1)
    t.run(through_delays=False)
    loop = main_loop(t)
    calls: list[Any] = []
    loop.poller.consumer.commit_soon = lambda offsets, done: calls.append(offsets)
    for _ in range(110):
        t.advance(1)
        loop.turn()
    assert len(calls) == 1
    for _ in range(15):
        t.advance(1)
        loop.turn()
    assert len(calls) == 2


def test_only_finished_offsets_are_ever_committed(on_memory: OnMemory) -> None:  # edge 12, 20
    """The middle job runs when the worker ticks: the commit stops before it and maps what is done behind it."""
    from streamjobs.core.offsets import decode

    app = App("shop", partitions=1)
    seen: list[Commit | None] = []
    t: Testing

    @app.job(name="count", queue="mails")
    def count(n: int) -> None:
        if n == 2:
            loop = main_loop(t)
            home = loop.poller.partitions[MAIN]
            home.tracker.finish(2)
            loop.committer.commit_now([home], [], 1.0)
            seen.append(committed(t, app))

    t = on_memory(app)
    publish(app, 1, 2, 3)
    t.run(through_delays=False)
    (commit,) = seen
    assert commit is not None
    assert commit.offset <= 1
    mark = decode(commit.offset, commit.metadata)
    assert mark is not None
    assert 2 in mark.finished
    assert 1 not in mark.finished


def test_a_commit_reaches_the_end_of_a_log_that_ends_in_markers(on_memory: OnMemory) -> None:  # edge 16
    """After the last job comes the marker of its transaction, which nobody is ever given: without it the lag stays 1 for ever."""
    app, ran = counting_app()
    t = on_memory(app)
    payload = app.job_types["count"].payload
    producer = t.broker.transactional_producer("a publisher")
    producer.init(1)
    for ends in (producer.commit, producer.abort):
        producer.begin()
        producer.send(Record(MAIN.topic, payload.encode(payload.bind((), {"n": 1})), headers=[("ce_type", b"count")], partition=0))
        producer.flush(1)
        ends()
    tick(t, 3)
    end = t.broker.admin().offsets([MAIN], "latest")[MAIN]
    assert (ran, end, (committed(t, app) or Commit(0)).offset) == ([1], 4, 4)


def test_a_fatal_error_of_the_consumer_ends_the_process(on_memory: OnMemory) -> None:  # edge 24
    """It is not ignored in the loop: the supervisor starts another process."""
    from streamjobs.errors import BrokerError

    app, _ = counting_app()
    t = on_memory(app)
    main_loop(t).poller.faults.append((None, BrokerError("FENCED_INSTANCE_ID", "", fatal=True)))
    with pytest.raises(Stopped, match="FENCED_INSTANCE_ID"):
        main_loop(t).turn()


def test_a_fatal_error_of_the_timers_consumer_ends_the_process(on_memory: OnMemory) -> None:  # edge 24
    """It would go on without reading anything, and no delayed job of the app would run any more."""
    app, _ = counting_app()
    t = on_memory(app)
    timer = t.process.timer
    assert timer is not None
    timer.poller.faults.append((None, broker_error("UNKNOWN_MEMBER_ID", fatal=True)))
    with pytest.raises(Stopped, match="UNKNOWN_MEMBER_ID"):
        timer.turn()


def test_deleted_records_are_told_and_reading_goes_on(on_memory: OnMemory) -> None:  # edge 26, 27
    """Retention ate 50 pending jobs: `jobs_deleted` counts them, the rest runs; nothing is skipped in silence."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t)
    t.process.close_by_hand()
    publish(app, *range(1, 101))
    t.broker.admin().delete_records({MAIN: 51})
    t._start()
    tick(t)
    assert ran == [0, *range(51, 101)]
    counters = main_loop(t).metrics.snapshot().counters
    assert counters["jobs_deleted_total", ("mails", "shop")] == 50


def test_records_deleted_under_a_running_worker(on_memory: OnMemory) -> None:  # edge 27
    """`auto.offset.reset=error` says so once and then stays silent: the partition is begun anew, not dead."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t)
    loop = main_loop(t)
    loop.poller.consumer.pause([MAIN])
    publish(app, *range(1, 11))
    t.broker.admin().delete_records({MAIN: 6})
    loop.poller.consumer.seek(MAIN, 1)
    loop.poller.consumer.resume([MAIN])
    tick(t, 4)
    assert ran == [0, *range(6, 11)]


def test_a_partition_that_begins_anew_keeps_what_was_finished(on_memory: OnMemory) -> None:  # edge 27
    """Its log is the same one: what ended since the last tick is committed before the start is looked up. What bit: it ran again."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t)
    publish(app, 1, 2, 3)
    t.run(through_delays=False)
    assert (committed(t, app) or Commit(0)).offset == 1
    main_loop(t).poller.faults.append((MAIN, broker_error("_AUTO_OFFSET_RESET")))
    tick(t, 3)
    assert ran == [0, 1, 2, 3]
    assert (committed(t, app) or Commit(0)).offset == 4


def make_anew(t: Testing, tp: TopicPartition, reader: Any) -> None:
    """Its process looks after topics, as it does every few seconds; `reader` takes one turn, in which its client tells it nothing: a
    classic one never hears of it, and goes on where it was in the old one."""
    before = t.broker.admin().topics([tp.topic], config=True)[tp.topic]
    t.broker.admin().delete_topics([tp.topic])
    t.broker.admin().create_topics([before])
    t.process._look_at_topics()
    t.advance(1)
    assert tp in reader.poller.partitions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader.poller.consumer, "fetch", lambda limit, timeout: [])
        reader.turn()
    assert tp not in reader.poller.partitions, "its epoch is over"


def test_a_topic_that_is_made_anew_under_a_worker_gets_no_commit_of_the_old_one(on_memory: OnMemory) -> None:  # edge 31
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t)
    publish(app, 1, 2, 3)
    t.run(through_delays=False)
    asked = commits_asked(t)
    make_anew(t, MAIN, main_loop(t))
    assert asked == []
    publish(app, 4)
    tick(t, 4)
    assert ran == [0, 1, 2, 3, 4]


def test_a_tier_that_is_made_anew_under_its_timer_is_read_from_its_start(on_memory: OnMemory) -> None:  # edge 31
    """What bit: the timer went on at the offsets of the old one, so that delayed jobs below them waited until its process ended."""
    app, ran = counting_app()
    t = on_memory(app)
    receipts = [app.job_types["count"].options(delay="6s", key="k").publish(n=n) for n in range(2)]
    tier = TopicPartition(receipts[0].topic, receipts[0].partition)
    t.run()
    make_anew(t, tier, t.process.timer)
    app.job_types["count"].options(delay="6s", key="k").publish(n=2)
    tick(t, 20)
    assert ran == [0, 1, 2]


def test_lost_commits_hold_the_partition_and_say_so(on_memory: OnMemory) -> None:  # edge 28
    """The group has worked here and its commit is gone: neither the start nor the end of the log is right, so nothing is
    read until someone seeks; its alarm stands in /readyz. A seek order lets it go on."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0, 1, 2)
    tick(t, 3)
    t.process.close_by_hand()
    t.broker.expire_commits(app.group)
    publish(app, 3)
    t._start()
    tick(t)
    assert ran == [0, 1, 2]
    assert "is not read: lost" in " ".join(t.process.unready().values())

    key = seek(t, app, "1", 3)
    tick(t, 4)
    assert ran == [0, 1, 2, 3]
    assert (committed(t, app) or Commit(0)).offset == 4
    assert key not in {(m.key() or b"").decode() for m in _live(t, app)}, "a seek that is carried out is taken away"


def test_an_order_is_obeyed_after_the_control_topic_was_made_anew(on_memory: OnMemory) -> None:
    """What bit: the commit names the last order by its offset in the old topic, the next one has a lower number in the new topic; the
    living owner took it for an old one, and whoever owned the partition next carried it out by surprise."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0, 1, 2)
    tick(t, 3)
    for n in range(30):
        orders.write(t.broker, app.names, {f"pause/type/other/t/{n}": None})
    seek(t, app, "1", 2)
    tick(t, 4)
    assert ran == [0, 1, 2, 2]
    admin = t.broker.admin()
    topic = admin.topics([app.names.control], config=True)[app.names.control]
    admin.delete_topics([topic.name])
    admin.create_topics([topic])
    provision.apply(app, provision.plan(app))
    t.restart()
    tick(t)

    key = seek(t, app, "2", 1)
    tick(t, 4)

    assert ran == [0, 1, 2, 2, 1, 2], "obeyed, and once"
    assert key not in {(m.key() or b"").decode() for m in _live(t, app)}
    t.restart()
    tick(t)
    assert ran == [0, 1, 2, 2, 1, 2]


def _live(t: Testing, app: App) -> list[Any]:
    from streamjobs import tables

    return list(tables.live(t.broker, app.names.control))


def test_an_unchanged_commit_is_written_again_every_hour(on_memory: OnMemory) -> None:  # edge 28
    """A KIP-848 group's offsets age from their last commit, even while its members live."""
    app, _ = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t, 3)
    asked = commits_asked(t)
    for _ in range(5):
        t.advance(60)
        t.run(through_delays=False)
    assert not any(MAIN in offsets for offsets in asked)
    t.advance(3600)
    t.run(through_delays=False)
    assert sum(MAIN in offsets for offsets in asked) == 1


def test_a_new_owner_commits_at_once_however_large_its_map_is(on_memory: OnMemory) -> None:
    """What bit: the timer compared an instant of the wall's clock with one of the monotonic clock, and committed nothing of such a
    partition before its map was small; the next owner moved again what it had moved."""
    app, _ = counting_app()
    t = on_memory(app)
    tick(t)
    timer: Any = t.process.timer
    tp, home = next(iter(timer.poller.partitions.items()))
    timer.poller._begin(TopicPartition(*tp), Beginning(0, Finished.of(range(1, 8_000, 2))), home.topic_id)
    assert timer.poller.partitions[tp].tracker.map_size > 512
    asked = counted_commits(timer)
    t.advance(0.6)
    timer.turn()
    assert tp in asked


def test_a_topic_that_is_made_anew_is_read_from_its_start(on_memory: OnMemory) -> None:  # edge 31
    """Base 5 of the old log must not skip the first five jobs of the new one."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, *range(5))
    tick(t, 3)
    t.process.close_by_hand()
    admin = t.broker.admin()
    before = admin.topics([MAIN.topic], config=True)[MAIN.topic]
    admin.delete_topics([MAIN.topic])
    admin.create_topics([before])
    publish(app, *range(100, 108))
    t._start()
    tick(t, 3)
    assert sorted(ran) == [*range(5), *range(100, 108)]


def test_foreign_metadata_is_not_trusted(on_memory: OnMemory) -> None:  # edge 18
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, *range(5))
    t.process.close_by_hand()
    t.broker.admin().alter_committed(app.group, {MAIN: Commit(2, "n\x01junk that claims everything")})
    t._start()
    tick(t)
    assert ran[-3:] == [2, 3, 4]


def test_a_lookup_that_fails_is_no_answer(on_memory: OnMemory) -> None:  # edge 8, 28, 50
    """The broker does not say what is committed: the partition waits and is looked up again, instead of starting anywhere."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, *range(3))
    tick(t, 3)
    t.process.close_by_hand()
    publish(app, 3)
    fault = t.broker.fail("committed", error="COORDINATOR_NOT_AVAILABLE", times=None)
    t._start()
    tick(t)
    assert ran == [0, 1, 2]
    fault.lift()
    t.clock.jump(-3600)
    t.advance(2)
    tick(t)
    assert ran == [0, 1, 2, 3]


def test_nothing_more_is_read_when_nothing_can_be_committed(on_memory: OnMemory) -> None:  # edge 22
    """A coordinator that is gone for more than a minute bounds how much would run again."""
    app, ran = counting_app()
    t = on_memory(app)
    publish(app, 0)
    tick(t, 3)
    fault = t.broker.fail("commit", error="COORDINATOR_NOT_AVAILABLE", times=None)
    publish(app, 1)
    tick(t, 3)
    assert ran == [0, 1]
    t.advance(61)
    t.run(through_delays=False)
    publish(app, 2)
    tick(t, 3)
    assert ran == [0, 1]
    assert "none succeeded for a minute" in " ".join(t.process.unready().values())
    fault.lift()
    tick(t, 4)
    assert ran == [0, 1, 2]


def test_finished_jobs_behind_a_slow_head_do_not_run_again(on_memory: OnMemory) -> None:
    """The map in the metadata: a worker dies with 9,000 jobs finished behind one that still ran; only that one runs again."""
    app = App("shop", partitions=1, **{"worker.credit": 20_000, "worker.window": 20_000})
    ran: list[int] = []
    t: Testing

    @app.job(name="count", queue="mails")
    def count(job: Job, n: int) -> None:
        ran.append(n)
        if n == 0 and len(ran) == 1:
            raise KeyboardInterrupt  # stands for a job that has not ended: see below

    t = on_memory(app)
    publish(app, *range(9_001))
    loop = main_loop(t)
    settle = loop.outcomes.settle
    loop.outcomes.settle = lambda job, failure: None  # the head's end is never seen
    for _ in range(200):
        loop.turn()
        t.advance(0.05)
    assert len(ran) == 9_001
    loop.outcomes.settle = settle
    t.restart()
    tick(t, 3)
    assert ran[9_001:] == [0]
