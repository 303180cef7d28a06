"""How a loop gives partitions up, and how it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import TopicPartition
from streamjobs.core.offsets import decode
from streamjobs.core.record import Meta
from streamjobs.errors import BrokerError
from streamjobs.testing.app import Testing
from streamjobs.worker.executors import Gate
from streamjobs.worker.executors.threads import Threads
from tests.support.workers import eventually

OnMemory = Callable[[App], Testing]
MAIN = TopicPartition("jobs.mails", 0)


def mails(**settings: Any) -> App:
    app = App("shop", partitions=1, **settings)
    app.job(name="mail", queue="mails")(lambda: None)
    return app


def counted(owner: Any, name: str) -> list[Any]:
    calls: list[Any] = []
    call = getattr(owner, name)

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return call(*args, **options)

    setattr(owner, name, counting)
    return calls


def patient(settler: Any) -> list[float]:
    """Its waits, which take their time: on a clock that stands still the broker in memory returns at once."""
    waits: list[float] = []

    def wait(timeout: float) -> None:
        waits.append(timeout)
        time.sleep(timeout)

    settler.wait = wait
    return waits


class Held:
    """A worker whose handlers run in two threads. Those of `holds` run until they are released."""

    def __init__(self, on_memory: OnMemory, partitions: int, *holds: int) -> None:
        self.app = App("shop", partitions=partitions, **{"worker.drain": "5s"})
        self.ran: list[int] = []
        self.releases = {n: threading.Event() for n in holds}

        @self.app.job(name="mail", queue="mails", key="k")
        def mail(n: int, k: str) -> None:
            self.ran.append(n)
            if n in self.releases:
                assert self.releases[n].wait(20)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Testing, "_executors", lambda _, gate: self._executors(gate))
            self.t = on_memory(self.app)
        self.loop: Any = self.t.process.loops[0]

    def _executors(self, gate: Gate) -> Iterator[Threads]:
        for kind in ("threads", "aio", "processes"):
            executor = Threads(2, gate)
            executor.kind = kind
            yield executor

    def publish(self, *jobs: tuple[int, str]) -> None:
        self.app.job_types["mail"].publish_many(jobs)
        eventually(self.all_run, 10, "those that are held run")

    def all_run(self) -> bool:
        self.loop.turn()
        return self.releases.keys() <= set(self.ran)

    def revoke(self, each_turn: Callable[[], object]) -> Any:
        """The first partition leaves; its commit. `each_turn` is called as long as that waits."""
        serve = self.loop.settler.serve
        self.loop.settler.serve = lambda: each_turn() and serve()
        self.loop.poller.revoked([MAIN])
        return self.t.broker.admin().committed(self.app.group, [MAIN])[MAIN]


def test_nothing_starts_in_a_partition_that_leaves_and_what_runs_there_is_waited_for(on_memory: OnMemory) -> None:  # edge 1
    """Two jobs run; the first ends, and one is behind it, which a loop that goes on would give out while it waits for the second."""
    held = Held(on_memory, 1, 0, 2)
    held.publish((0, "a"), (1, "a"), (2, "b"), (3, "c"))
    home = held.loop.poller.partitions[MAIN]
    turns_since = []

    def each_turn() -> bool:
        held.releases[0].set()
        if home.tracker.base == 1:
            turns_since.append(1)
        if len(turns_since) > 5:
            held.releases[2].set()
        return True

    commit = held.revoke(each_turn)
    mark = decode(*commit)
    assert held.ran == [0, 2]
    assert mark is not None and (commit.offset, [*mark.finished], mark.clean) == (1, [2], True)


def test_an_end_is_committed_though_its_list_goes_on_in_a_partition_that_stays(on_memory: OnMemory) -> None:  # edge 1
    """Two jobs are one list. The first has ended, nobody has looked at that yet, and its partition leaves while the second runs."""
    held = Held(on_memory, 2, 1)
    held.app.job_types["mail"].mean_s = 0.001
    held.publish((0, "a"), (1, "d"))
    (chunk,) = held.loop.execution.out
    assert [job.home.number for job in (*chunk.done, chunk.current)] == [0, 1]
    commit = held.revoke(lambda: True)
    held.releases[1].set()

    assert (held.ran, commit.offset) == ([0, 1], 1)


def test_a_loop_waits_for_acknowledgements_before_partitions_leave(on_memory: OnMemory) -> None:  # edge 2
    """An acknowledgement that never comes: the budget is waited for, not burned."""
    t = on_memory(mails(**{"worker.drain": "1s"}))
    t.run()
    loop: Any = t.process.loops[0]
    loop.poller.partitions[MAIN].open = 1
    looks, waits = counted(loop.settler, "serve"), patient(loop.settler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_mono", time.monotonic)
        loop.poller.revoked([MAIN])
    assert 1 <= len(looks) <= len(waits)


def test_a_loop_that_waits_for_what_leaves_is_well(on_memory: OnMemory) -> None:
    """For as long as worker.drain allows. What bit: after 30 s /healthz answered 503, and after 90 s the process was killed."""
    t = on_memory(mails(**{"worker.drain": "2m"}))
    t.run()
    loop: Any = t.process.loops[0]
    loop.poller.partitions[MAIN].open = 1
    sick: list[dict[str, str]] = []

    def wait(_: float) -> None:
        t.clock.advance(10)
        sick.append({name: why for name, why in t.process.sick().items() if name == "main"})

    loop.settler.wait = wait
    loop.poller.revoked([MAIN])

    assert sick == [{}] * 12


def test_partitions_that_leave_during_a_drain_start_nothing_of_the_others(on_memory: OnMemory) -> None:
    """What bit: ready jobs went to the executors, which gave them back at the closed gate, again and again, while others ended."""
    app = App("shop", partitions=2, **{"worker.drain": "1s"})
    app.job(name="mail", queue="mails")(lambda: None)
    t = on_memory(app)
    t.run()
    loop: Any = t.process.loops[0]
    app.job_types["mail"].publish_many([()] * 20)
    loop._fetch()
    loop.poller.partitions[MAIN].open = 1
    loop.draining = t.process.gate.closed = True
    patient(loop.settler)
    handed = counted(loop.execution, "hand_out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_mono", time.monotonic)
        loop.poller.revoked([MAIN])
    assert loop._dispatcher.count()
    assert handed == []


def test_a_timer_waits_for_acknowledgements_too(on_memory: OnMemory) -> None:
    t = on_memory(mails())
    t.run()
    timer: Any = t.process.timer
    tp, home = next(iter(timer.poller.partitions.items()))
    home.open = 1
    looks, waits = counted(timer.settler, "serve"), patient(timer.settler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timer, "_mono", time.monotonic)
        timer.poller.revoked([TopicPartition(*tp)])
    assert 1 <= len(looks) <= len(waits)


@pytest.mark.parametrize(("protocol", "timeout_s"), [("classic", 0.75), ("consumer", 2.0)])
def test_only_a_classic_member_must_be_done_in_half_its_session(on_memory: OnMemory, protocol: str, timeout_s: float) -> None:
    t = on_memory(mails())
    t.run()
    loop: Any = t.process.loops[0]
    loop._shared.session_timeout_s = 3.0
    t.broker.protocol = lambda: protocol  # type: ignore[method-assign, assignment, return-value]
    commits = counted(loop.committer, "commit_now")
    loop.poller.revoked([MAIN])
    assert [commit["timeout"] for commit in commits] == [timeout_s], "the last two seconds are the commit's, or half of less"


def refuse_commits(loop: Any, times: int) -> list[int]:
    """The synchronous commits of a loop's consumer fail so often; the list of those that were asked for."""
    commit_now, asked = loop.poller.consumer.commit_now, list[int]()

    def commit(offsets: Any, timeout: float) -> Any:
        asked.append(1)
        if len(asked) <= times:
            return dict.fromkeys(offsets, BrokerError("COORDINATOR_LOAD_IN_PROGRESS", "loading", retriable=True))
        return commit_now(offsets, timeout)

    loop.poller.consumer.commit_now = commit
    return asked


def test_what_left_can_be_committed_by_others(on_memory: OnMemory) -> None:
    """What bit: a commit was refused because the partition had another owner by then; this worker was not ready for ever."""
    app = mails()
    t = on_memory(app)
    loop: Any = t.process.loops[0]
    app.job_types["mail"].publish()
    t.run()
    t.broker.fail("commit", topic=MAIN.topic, error="UNKNOWN_MEMBER_ID", times=None)
    app.job_types["mail"].publish()
    for _ in range(3):
        loop.turn()
        t.advance(0.6)
    assert "jobs.mails/0" in t.process.unready()
    loop.poller.lost([MAIN])
    assert "jobs.mails/0" not in t.process.unready()


def test_the_last_commit_is_tried_again(on_memory: OnMemory) -> None:  # edge 8
    app = mails()
    t = on_memory(app)
    app.job_types["mail"].publish()
    t.run()
    loop: Any = t.process.loops[0]
    asked = refuse_commits(loop, 2)
    assert loop.drain(t.clock.monotonic())
    assert len(asked) == 3
    committed = t.broker.admin().committed(app.group, [MAIN])[MAIN]
    assert committed.offset == 1


def test_what_could_not_be_committed_is_told(on_memory: OnMemory, caplog: pytest.LogCaptureFixture) -> None:  # edge 8
    app = mails()
    t = on_memory(app)
    app.job_types["mail"].publish()
    t.run()
    loop: Any = t.process.loops[0]
    refuse_commits(loop, 1000)
    with caplog.at_level(logging.WARNING):
        assert not loop.drain(t.clock.monotonic())
    assert "jobs.mails/0 could not be committed" in caplog.text
    assert "runs again" in caplog.text


def test_settlements_that_are_left_at_the_end_are_told(on_memory: OnMemory, caplog: pytest.LogCaptureFixture) -> None:
    """A retry can't be written while the worker drains: it was not for nothing, but not all is done."""
    app = App("shop", partitions=1)

    @app.job(name="mail", queue="mails")
    def mail() -> None:
        raise ValueError

    t = on_memory(app)
    t.broker.down("jobs.mails.shop.retry", "streamjobs.shop.delay.1m", "streamjobs.shop.delay.15s", "streamjobs.shop.delay.5s")
    mail.publish()
    loop: Any = t.process.loops[0]
    for _ in range(3):
        loop.turn()
    assert loop.settler.open == 1
    with caplog.at_level(logging.WARNING):
        assert not loop.drain(t.clock.monotonic())
    assert "1 settlement" in caplog.text


def test_a_clock_that_is_set_forward_ends_no_job(on_memory: OnMemory) -> None:
    """Whether a thread's job is late is no matter of the wall. What bit: it was settled as timed out at once, and ran twice."""
    app = App("shop", partitions=1)
    late: list[bool] = []

    @app.job(name="mail", queue="mails", timeout="30s", on_timeout="retry")
    def mail() -> None:
        loop: Any = t.process.loops[0]
        (chunk,) = loop.execution.out
        for elapsed_s in (29.0, 31.0):
            chunk.clock = lambda elapsed_s=elapsed_s: chunk.current.started_at + elapsed_s
            t.clock.jump(3600)
            loop.outcomes.overdue(chunk, chunk.current)
            late.append(chunk.zombie is not None)

    t = on_memory(app)
    app.job_types["mail"].publish()
    t.run(raise_errors=False, through_delays=False)

    assert late == [False, True]


@pytest.mark.parametrize(("on_timeout", "attempts"), [("wait", []), ("retry", [2])])
def test_a_job_past_its_timeout_is_settled_while_it_runs_if_its_type_says_so(
    on_memory: OnMemory, on_timeout: Any, attempts: list[int]
) -> None:  # edge 72
    """Its end, which comes after that, means nothing."""
    app = App("shop", partitions=1)
    ends: list[int] = []

    @app.job(name="mail", queue="mails", timeout="30s", on_timeout=on_timeout)
    def mail() -> None:
        loop: Any = t.process.loops[0]
        (chunk,) = loop.execution.out
        started_at = chunk.current.started_at
        chunk.clock, chunk.to_epoch = lambda: started_at + 31.0, 0.0
        for _ in range(2):
            loop.outcomes.overdue(chunk, chunk.current)
        ends.append(loop.settler.open)

    t = on_memory(app)
    app.job_types["mail"].publish()
    for _ in range(3):
        t.run(raise_errors=False, through_delays=False)
        t.advance(0.6)

    written = [Meta.parse(r.headers()) for name in t.broker.admin().topics() if "delay" in name for r in t.broker.records(name)]
    assert ends == [len(attempts)]
    assert [meta.attempt for meta in written] == attempts
    assert t.broker.admin().committed(app.group, [MAIN])[MAIN].offset == 1
