"""Who was frozen or cut off for longer than its session starts nothing until it knows that its partitions are still its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import TopicPartition
from streamjobs.core.partitioner import partition_of
from streamjobs.testing.app import Testing
from streamjobs.worker.commit import Committer, Ticking
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors.threads import run_chunk

OnMemory = Callable[[App], Testing]
MAIN = TopicPartition("jobs.mails", 0)
SESSION_S = 10.0


class Frozen:
    """A worker that stands still right after its fetch has brought jobs, for longer than its session."""

    def __init__(self, on_memory: OnMemory, partitions: int = 1, other: str = "") -> None:
        self.app = App("shop", partitions=partitions, **{"worker.tick": "500ms"})
        self.ran: list[int] = []

        @self.app.job(name="count", queue="mails")
        def count(n: int) -> None:
            self.ran.append(n)

        if other:
            self.app.job(name="other", queue=other)(lambda: None)
        self.t = on_memory(self.app)
        self.loop: Any = self.t.process.loops[0]
        self.loop.committer._session_s = SESSION_S
        self.publish(0)
        self.turn(4)
        assert self.has_run(0)

    def has_run(self, *numbers: int) -> bool:
        """Whether these are all that ran; a thread that was not given its turn yet is waited for."""
        deadline = time.monotonic() + 5
        while self.ran != [*numbers] and time.monotonic() < deadline:
            self.loop.turn()
        return self.ran == [*numbers]

    def publish(self, *numbers: int) -> None:
        self.app.job_types["count"].publish_many([(n,) for n in numbers])

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.loop.turn()
            self.t.clock.advance(0.6)

    def hold_answers(self) -> tuple[list[Callable[[], None]], Callable[[], None]]:
        """The answers of commits, each to be given by the test; and what makes the broker answer by itself again."""
        answers: list[Callable[[], None]] = []
        consumer = self.loop.poller.consumer
        soon = consumer.commit_soon
        consumer.commit_soon = lambda offsets, done: answers.append(lambda: done(dict.fromkeys(offsets)))
        return answers, lambda: setattr(consumer, "commit_soon", soon)

    def freeze(self) -> None:
        """The next turn ends with jobs at hand, and a long time after its fetch."""
        consumer = self.loop.poller.consumer
        fetch = consumer.fetch

        def fetch_and_freeze(limit: int, timeout: float) -> list[Any]:
            messages: list[Any] = fetch(limit, timeout)
            assert messages
            consumer.fetch = fetch
            self.t.clock.advance(SESSION_S + 1)
            return messages

        consumer.fetch = fetch_and_freeze
        self.loop.turn()


@pytest.fixture
def worker(on_memory: OnMemory) -> Frozen:
    return Frozen(on_memory)


def test_a_thawed_member_goes_on_once_it_knows_that_it_is_one(worker: Frozen) -> None:
    worker.publish(1, 2)
    worker.freeze()
    assert worker.ran == [0], "nobody knows yet whose jobs these are"
    assert "membership of main" in worker.t.process.unready()
    worker.turn(3)
    assert worker.has_run(0, 1, 2)
    assert "membership of main" not in worker.t.process.unready()


def test_a_thawed_worker_starts_nothing_of_what_it_has_lost(worker: Frozen) -> None:  # edge 2
    """What bit: it ran all that it had at hand, which its partition's new owner ran too, until its heartbeat was refused."""
    worker.t.broker.fail("commit", topic=MAIN.topic, error="UNKNOWN_MEMBER_ID", times=None)
    worker.publish(1, 2)
    worker.freeze()
    worker.turn(3)
    worker.loop.poller.lost([MAIN])
    worker.turn(3)
    assert worker.ran == [0]


def test_who_has_nothing_left_doubts_nothing(worker: Frozen) -> None:
    """What bit: a thawed worker whose partitions all went to others was not ready for ever: it had nothing left to commit."""
    fault = worker.t.broker.fail("commit", topic=MAIN.topic, error="UNKNOWN_MEMBER_ID", times=None)
    worker.publish(1, 2)
    worker.freeze()
    worker.loop.poller.lost([MAIN])
    fault.lift()
    worker.turn(3)
    assert "membership of main" not in worker.t.process.unready()


def test_an_answer_from_before_proves_nothing(worker: Frozen) -> None:
    """A commit was asked for before the worker froze; its answer has waited as long as the worker did."""
    answers, answering = worker.hold_answers()
    worker.publish(1)
    worker.turn(2)
    assert len(answers) == 1
    worker.publish(2)
    worker.freeze()
    answers[0]()
    worker.turn(3)
    assert worker.has_run(0, 1)
    assert len(answers) == 2, "it asks again, though nothing has changed"
    answering()
    answers[1]()
    worker.turn(2)
    assert worker.has_run(0, 1, 2)


def test_who_can_commit_nothing_starts_nothing_after_a_session(worker: Frozen) -> None:  # edge 22
    """It turns, but is cut off from the group's coordinator: others may own its partitions."""
    fault = worker.t.broker.fail("commit", topic=MAIN.topic, error="_TRANSPORT", times=None)
    worker.publish(1)
    worker.turn(2)
    assert worker.has_run(0, 1), "an outage that is shorter than a session stops nothing"
    worker.turn(18)
    worker.publish(2)
    worker.turn(3)
    assert worker.has_run(0, 1)
    fault.lift()
    worker.turn(3)
    assert worker.has_run(0, 1, 2)
    assert worker.loop.stalled_for() < 1


def test_who_was_cut_off_with_nothing_to_commit_starts_nothing_before_it_knows(worker: Frozen) -> None:  # edge 2
    """What bit: an idle loop, cut off for 14 s; its first fetch after that brought eight jobs that the new owner had run, and they ran."""
    worker.publish(1)
    worker.turn(2)
    fault = worker.t.broker.fail("commit", topic=MAIN.topic, error="_TRANSPORT", times=None)
    worker.turn(17)
    worker.publish(2)
    worker.turn(3)
    assert worker.has_run(0, 1)
    fault.lift()
    worker.turn(3)
    assert worker.has_run(0, 1, 2)


def test_an_idle_member_goes_on_asking_and_never_doubts(worker: Frozen) -> None:
    for _ in range(40):
        worker.turn(1)
        assert "membership of main" not in worker.t.process.unready()


def test_a_long_revoke_is_no_silence(worker: Frozen) -> None:
    """The partitions that stay go on while the callback waits for jobs of those that leave; no answer of a commit arrives in it."""
    consumer, doubts = worker.loop.poller.consumer, []
    fetch = consumer.fetch

    def fetch_and_call_back(limit: int, timeout: float) -> Any:
        consumer.fetch = fetch
        for _ in range(25):
            worker.t.clock.advance(1.0)
            doubts.append(worker.loop.committer.doubts())
        return fetch(limit, timeout)

    consumer.fetch = fetch_and_call_back
    worker.loop.turn()
    assert doubts == [False] * 25


def test_who_had_nothing_for_long_begins_without_a_doubt(worker: Frozen) -> None:
    """A timer that is assigned its first partition a minute after its start has nobody to ask before that."""
    worker.loop.poller.lost([MAIN])
    worker.turn(40)
    worker.loop.poller.assigned([MAIN])
    assert not worker.loop.committer.doubts()


def test_an_answer_that_comes_late_does_not_undo_a_newer_one(worker: Frozen) -> None:
    answers, answering = worker.hold_answers()
    worker.publish(1)
    worker.turn(2)
    answering()
    for _ in range(12):
        worker.t.clock.advance(1.0)
        worker.loop.committer._looked = worker.t.clock.monotonic()
    worker.loop.committer.commit_first(list(worker.loop.poller.partitions.values()))
    (late,) = answers
    late()
    assert not worker.loop.committer.doubts()


def test_what_was_refused_once_is_tried_again_while_others_are_committed(on_memory: OnMemory) -> None:
    """What bit: the ask of an idle partition was refused once; another one was busy from then on, so nobody asked again, and the worker
    was not ready for an hour."""
    worker = Frozen(on_memory, partitions=2)
    committer = worker.loop.committer
    worker.t.broker.fail("commit", topic=MAIN.topic, error="NOT_COORDINATOR", times=1)
    while not committer.errors:
        worker.turn(1)
    (refused,) = committer.errors
    busy = next(key for key in "abcdefgh" if partition_of(key.encode(), 2) != refused.partition)
    for _ in range(4):
        worker.app.job_types["count"].options(key=busy).publish(1)
        worker.turn(1)
    assert not committer.errors


def test_a_partition_that_can_not_be_committed_is_not_asked_for_all(on_memory: OnMemory) -> None:
    """Its topic was just deleted, say; the others are read, and the group answers for them."""
    worker = Frozen(on_memory, other="post")
    worker.t.broker.fail("commit", topic=MAIN.topic, error="UNKNOWN_TOPIC_OR_PART", times=None)
    for _ in range(40):
        worker.turn(1)
        assert "membership of main" not in worker.t.process.unready()
    assert worker.loop.committer.errors


def test_a_member_that_ticks_rarely_asks_in_time(worker: Frozen) -> None:
    """A tick that is longer than the session."""
    loop = worker.loop
    committer = Committer(loop.poller, loop.committer._producer, Ticking(60.0, loop._mono, lambda _: None, lambda _: None, SESSION_S))
    worker.t.clock.advance(SESSION_S / 2)
    assert committer.due()


def test_a_loop_that_reads_nothing_for_another_reason_is_not_asked(worker: Frozen) -> None:
    """Nothing may be committed of such a partition, so no answer could end the doubt."""
    (home,) = worker.loop.poller.partitions.values()
    home.fetching = False
    worker.turn(40)
    assert "membership of main" not in worker.t.process.unready()


def test_a_thawed_timer_moves_nothing_until_it_knows(on_memory: OnMemory) -> None:
    """What it moves, the new owner of its partitions moves, too."""
    worker = Frozen(on_memory)
    timer = worker.t.process.timer
    assert timer is not None
    worker.app.job_types["count"].options(delay="7s").publish(1)
    timer.turn()
    timer.committer._session_s = SESSION_S
    fault = worker.t.broker.fail("commit", error="UNKNOWN_MEMBER_ID", times=None)
    worker.t.clock.advance(SESSION_S + 1)
    for _ in range(3):
        timer.turn()
        worker.t.clock.advance(0.6)
    assert timer.moved == 0
    fault.lift()
    for _ in range(4):
        timer.turn()
        worker.t.clock.advance(0.6)
    assert timer.moved == 1


def test_a_thread_that_is_awake_before_its_loop_starts_nothing_old() -> None:
    """What bit: of a thawed process every chunk that waited for a slot began before the loop had its first turn."""
    results: SimpleQueue[Chunk] = SimpleQueue()
    chunk = Chunk("threads", [object()], results)  # type: ignore[list-item]  # nothing looks at it
    chunk.born -= SESSION_S + 1
    run_chunk(chunk, Gate(SESSION_S))
    assert results.get_nowait() is chunk
    assert (len(chunk.returned), chunk.done) == (1, [])
