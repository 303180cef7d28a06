"""Poison: marks of what runs, suspects, strikes, quarantine, and recycling (§15)."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import Commit, TopicPartition
from streamjobs.clock import SystemClock
from streamjobs.core import offsets
from streamjobs.core.control import Desired, suspect_key, suspect_value
from streamjobs.core.delay import Ladder
from streamjobs.core.dispatch import QUARANTINE, Dispatcher
from streamjobs.core.record import Meta, Record
from streamjobs.job import Job, JobType
from streamjobs.testing import MemoryBroker
from streamjobs.testing.app import Testing
from streamjobs.worker import outcomes
from streamjobs.worker.execute import Execution
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors.aio import Aio
from streamjobs.worker.executors.threads import Threads
from streamjobs.worker.marks import HEAD, Legacy, Mark, Marks, memory
from streamjobs.worker.process import Process
from streamjobs.worker.quarantine import Orders
from streamjobs.worker.recycle import resident, why_recycle
from streamjobs.worker.settle import Routes, held_record
from streamjobs.worker.supervise import Report, Supervisor
from tests.support import child_app
from tests.support.ledger import Ledger
from tests.support.workers import eventually
from tests.unit.worker.jobs import ByHand

MAIN = "jobs.default"


class World:
    """The app of `child_app` on a broker in memory, with real executors."""

    def __init__(self, directory: Path) -> None:
        self.app = child_app.app
        self.broker = MemoryBroker()
        self.ledger = Ledger(directory / "ledger")
        self._before = self.app.lend(self.broker, SystemClock())
        self.app.configure({"worker.slots": 4, "worker.children": 1, "worker.tick": "50ms", "worker.drain": "40s"})
        self.processes: list[Process] = []
        self.types = self.app.job_types

    def provision(self) -> None:
        from streamjobs import provision

        provision.require(self.app)

    def start(self, *suspects: Mark) -> Process:
        process = self.app.process(legacy=Legacy(memory(20), suspects))
        self.processes.append(process)
        process.start()
        return process

    def noted(self, what: str) -> list[dict[str, Any]]:
        return [entry for entry in self.ledger.entries() if entry["what"] == what]

    def orders(self) -> list[tuple[str, bytes | None]]:
        """All that was ever ordered about suspects, in order."""
        records = self.broker.records(self.app.names.control)
        return [(key, r.value()) for r in records if (key := (r.key() or b"").decode()).startswith("suspect/")]

    def charges(self) -> list[int | None]:
        """The strikes of each order, one after the other; None: it was taken away."""
        return [None if value is None else json.loads(value)["strikes"] for _, value in self.orders()]

    def standing(self) -> list[int]:
        """The strikes of the orders that stand."""
        desired = Desired()
        for offset, (key, value) in enumerate(self.orders()):
            desired.apply(key, value, offset, 0.0)
        return [suspect.strikes for suspect in desired.suspects(self.app.group)]

    def letters(self, queue: str = "default") -> list[Meta]:
        return [Meta.parse(r.headers()) for r in self.broker.records(self.app.names.dead(queue, self.app.group))]

    def retries(self, queue: str = "default") -> list[Meta]:
        return [Meta.parse(r.headers()) for r in self.broker.records(self.app.names.retry(queue, self.app.group))]

    def base(self, topic: str = MAIN) -> int:
        commit = self.broker.admin().committed(self.app.group, [TopicPartition(topic, 0)]).get(TopicPartition(topic, 0))
        return commit.offset if commit else 0

    def close(self) -> None:
        for process in self.processes:
            process.stop()
        for process in self.processes:
            process.join(20)
        self.app.take_back(self._before)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr(child_app, "ledger", Ledger(tmp_path / "ledger"))
    world = World(tmp_path)
    yield world
    world.close()


# Marks ----------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_its_slot_runs() -> None:
    marks = Marks(memory(2))
    a, b = marks.place("jobs.a", 3), marks.place("jobs.b", 0)
    with marks.row() as first, marks.row() as second, marks.row() as one_too_many:
        first.mark(a, 17, 1)
        first.mark(a, 18, 1)
        second.mark(b, 2**62, 7)
        one_too_many.mark(b, 1, 1)
        assert Marks(marks.memory).running() == [Mark("jobs.a", 3, 18, 1), Mark("jobs.b", 0, 2**62, 7)]
        second.clear()
        assert marks.running() == [Mark("jobs.a", 3, 18, 1)]
    assert marks.running() == []
    with marks.row() as again:
        again.mark(a, 1, 1)
        assert len(marks.running()) == 1


@pytest.mark.parametrize("executor", [Threads, Aio])
def test_a_slot_marks_each_job_that_it_starts(executor: type[Threads | Aio]) -> None:
    """Also the second of a chunk; and nothing is left when the chunk is over."""
    marks, hand, seen = Marks(memory(2)), ByHand(), []
    job_type = JobType(lambda: None, name="looks", queue="q", publisher=lambda: None)  # type: ignore[arg-type,return-value]

    async def look_in_task(job: Job) -> None:
        seen.append(marks.running())

    job_type.run = look_in_task if executor is Aio else lambda job: seen.append(marks.running())
    hand.home.place = marks.place("jobs.by-hand", 0)
    at_work = executor(1, Gate(), marks)
    jobs = hand.jobs(job_type, [{}, {}])
    at_work.submit(hand.chunk(jobs))
    assert hand.result().done == jobs
    left = marks.running()
    at_work.stop(5.0)
    assert seen == [[Mark("jobs.by-hand", 0, 0, 1)], [Mark("jobs.by-hand", 0, 1, 1)]]
    assert left == []


def test_names_that_find_no_room_are_not_marked() -> None:
    marks = Marks(memory(1))
    places = [marks.place(f"jobs.{'x' * 200}{n}", 0) for n in range(HEAD // 200 + 10)]
    assert places[0] > 0 == places[-1]
    with marks.row() as row:
        row.mark(places[-1], 5, 1)
        assert marks.running() == []


# Suspects -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_type", ["plain", "plain_async"])
def test_a_suspect_runs_alone_and_is_acquitted(world: World, job_type: str) -> None:
    """It ran when its worker died. It starts in a child with a strike charged, ends well, and nothing is left of it."""
    world.provision()
    world.types[job_type].publish_many([{"n": n} for n in range(3)])
    process = world.start(Mark(MAIN, 0, 1, 1))
    eventually(lambda: len(world.noted("end")) == 3, 30, "three ends")
    eventually(lambda: world.base() == 3, 10, "the commit")

    pids = {entry["n"]: entry["pid"] for entry in world.noted("end")}
    assert [pids[0], pids[2]] == [os.getpid()] * 2
    assert pids[1] != os.getpid()
    assert {(entry["run"], entry["attempt"]) for entry in world.noted("start")} == {(1, 1)}
    key = suspect_key(world.app.group, MAIN, 0, 1)
    eventually(lambda: len(world.orders()) == 3, 10, "three orders")
    said, charged, acquitted = world.orders()
    assert {said[0], charged[0], acquitted[0]} == {key}
    assert (b'"strikes":0' in (said[1] or b""), b'"strikes":1' in (charged[1] or b""), acquitted[1]) == (True, True, None)
    assert process.suspects_told


def test_a_strike_is_taken_back_before_the_loop_hears_of_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: the loop settled the end at once, the worker was killed in that, and the strike stood: after three deaths that came
    after its end the job was buried as poison."""
    bases: list[int] = []
    take_back = Orders.take_back

    def slowly(orders: Orders, job: Job, give_up: Callable[[], bool]) -> None:
        take_back(orders, job, give_up)
        bases.append(world.base())
        time.sleep(0.5)  # ten ticks, in which the loop would commit the end if it knew of it
        bases.append(world.base())

    monkeypatch.setattr(Orders, "take_back", slowly)
    world.provision()
    world.types["plain"].publish_many([{"n": 0}])
    world.start(Mark(MAIN, 0, 0, 1))

    eventually(lambda: world.base() == 1, 30, "the commit")
    assert bases == [0, 0]
    assert world.charges()[:3] == [0, 1, None]


def test_nothing_starts_before_its_strike_is_acknowledged(world: World) -> None:
    """The control topic can't be written to: the suspect waits, its neighbours run."""
    world.provision()
    world.types["plain"].publish_many([{"n": n} for n in range(2)])
    process = world.start(Mark(MAIN, 0, 0, 1))
    eventually(lambda: len(world.noted("end")) == 2, 30, "two ends")

    fault = world.broker.fail("send", topic=world.app.names.control, error="_MSG_TIMED_OUT", times=None)
    again = world.types["plain"].publish(n=7)
    order_later(process, again.offset)
    world.types["plain"].publish(n=8)
    eventually(lambda: any(entry["n"] == 8 for entry in world.noted("end")), 20, "the neighbour's end")
    assert not any(entry["n"] == 7 for entry in world.noted("start"))
    fault.lift()
    eventually(lambda: any(entry["n"] == 7 for entry in world.noted("end")), 20, "the suspect's end")


def order_later(process: Process, offset: int) -> None:
    """As if the order had come by the control topic, which can't be written to."""
    key = suspect_key(process.app.group, MAIN, 0, offset)
    value = suspect_value(run=1, strikes=0, actor="test", reason="", at=process.clock.now())
    for view in process.control._views:
        view.put(key, value, 10**6 + offset, process.clock.now() + 60)


def test_a_process_job_that_kills_its_child_is_convicted(world: World) -> None:  # edge 74
    """The first death costs a run, an attempt and a strike; from then on it runs alone; the third strike makes it a letter."""
    world.provision()
    world.types["dies"].publish(how="exit")
    world.types["brief"].publish_many([{"n": n} for n in range(5)])
    world.start()
    eventually(world.letters, 60, "a letter")

    (letter,) = world.letters()
    assert (letter.reason, letter.strikes, letter.run, letter.attempt) == ("poison", 3, 3, 3)
    assert [(entry["run"], entry["attempt"]) for entry in world.noted("start")] == [(1, 1), (2, 2), (3, 3)]
    assert [(meta.run, meta.strikes) for meta in world.retries()] == [(2, 1), (3, 2)]
    eventually(lambda: world.base() == 6, 10, "the commit")
    eventually(lambda: world.standing() == [], 10, "orders taken away")
    assert sorted(entry["n"] for entry in world.noted("end")) == list(range(5))


def test_an_end_that_is_seen_takes_the_strike_back(world: World) -> None:
    """A suspect that fails is retried as any job, without a strike, and is no suspect any more."""
    world.provision()
    world.types["fails"].publish(n=1)
    world.start(Mark(MAIN, 0, 0, 1))
    eventually(lambda: len(world.noted("start")) >= 2, 30, "its second start")
    assert (world.retries()[0].strikes, world.retries()[0].attempt) == (0, 2)
    assert world.noted("start")[0]["pid"] != os.getpid()
    assert world.noted("start")[1]["pid"] == os.getpid()
    assert world.standing() == []


def test_a_suspect_that_its_worker_abandons_is_charged_nothing(world: World) -> None:
    """It runs for longer than the drain. What bit: the strike for its start stood, and after the third deployment it was buried as poison."""
    world.provision()
    world.types["takes"].publish(n=1, ms=60_000)
    process = world.start(Mark("jobs.threads", 0, 0, 1))
    eventually(lambda: world.noted("start"), 30, "it runs")
    for loop in process.loops:
        loop._shared.drain_s = 0.1
    process.stop()

    assert process.join(20) == 4
    assert world.charges()[:2] == [0, 1]
    assert world.standing() == []


def test_strikes_that_stand_are_kept_over_a_failure(world: World) -> None:
    """A container died twice of it, perhaps; then it fails in sight: its next record carries two strikes, not three."""
    world.provision()
    receipt = world.types["fails"].publish(n=1)
    value = suspect_value(run=1, strikes=2, actor="w", reason="charged before its start", at=0.0)
    key = suspect_key(world.app.group, MAIN, 0, receipt.offset)
    world.app.broker.producer().send(Record(world.app.names.control, value, key.encode(), partition=0))
    process = world.start(Mark(MAIN, 0, receipt.offset, 1))
    eventually(world.retries, 30, "a retry")
    assert world.retries()[0].strikes == 2
    eventually(lambda: world.charges()[:4] == [2, 3, 2, None], 10, "charged, taken back, and taken away when the retry is stored")
    process.stop()
    assert all(entry["pid"] != os.getpid() for entry in world.noted("start"))


def test_three_open_strikes_are_not_started(world: World) -> None:
    """The last death took everything with it: the strike had been charged before the start."""
    world.provision()
    receipt = world.types["plain"].publish(n=1)
    value = suspect_value(run=1, strikes=3, actor="w", reason="charged before its start", at=0.0)
    key = suspect_key(world.app.group, MAIN, 0, receipt.offset)
    world.app.broker.producer().send(Record(world.app.names.control, value, key.encode(), partition=0))
    world.start()
    eventually(world.letters, 30, "a letter")
    assert world.noted("start") == []
    assert (world.letters()[0].reason, world.letters()[0].strikes) == ("poison", 3)
    eventually(lambda: world.standing() == [], 10, "the order taken away")


def test_where_owner_after_owner_died_jobs_run_one_by_one(world: World) -> None:
    """No supervisor was left to say what ran; the commit says that this is the fourth owner at one base."""
    world.provision()
    world.types["plain"].publish_many([{"n": n} for n in range(3)])
    tp = TopicPartition(MAIN, 0)
    topic_id = world.broker.admin().topics([MAIN])[MAIN].id
    mark = offsets.Mark(topic_id[:4], offsets.NONE, takeovers=2, clean=False)
    world.broker.admin().alter_committed(world.app.group, {tp: Commit(0, offsets.encode(0, mark))})
    world.start()
    eventually(lambda: len(world.noted("end")) == 3, 30, "three ends")
    assert len({entry["pid"] for entry in world.noted("end")}) == 1
    assert world.noted("end")[0]["pid"] != os.getpid()
    eventually(lambda: world.standing() == [], 10, "orders taken away")


def test_an_owner_commits_before_its_first_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that kills within a tick of its start is counted all the same: each owner has said that it took over."""
    world.provision()
    seen: list[offsets.Mark | None] = []

    def look(job: Job) -> None:
        commit = world.broker.admin().committed(world.app.group, [TopicPartition(MAIN, 0)]).get(TopicPartition(MAIN, 0))
        seen.append(offsets.decode(commit.offset, commit.metadata) if commit else None)

    monkeypatch.setattr(world.types["plain"], "run", look)
    tp = TopicPartition(MAIN, 0)
    topic_id = world.broker.admin().topics([MAIN])[MAIN].id
    before = offsets.Mark(topic_id[:4], offsets.NONE, takeovers=1, clean=False)
    world.broker.admin().alter_committed(world.app.group, {tp: Commit(0, offsets.encode(0, before))})
    world.types["plain"].publish(n=1)
    world.start()
    eventually(lambda: seen, 30, "the job's start")
    assert seen[0] is not None
    assert (seen[0].takeovers, seen[0].clean) == (2, False)


def test_a_strict_job_that_kills_keeps_its_place(world: World) -> None:
    """Its key waits; it runs alone, in place; after three strikes it is a letter, and the key goes on."""
    world.provision()
    world.types["dies_in_place"].publish_many([{"key": "k", "n": n} for n in range(3)])
    world.start()
    eventually(lambda: world.letters("strict"), 60, "a letter")
    eventually(lambda: len(world.noted("end")) == 2, 30, "the ends of those behind")
    (letter,) = world.letters("strict")
    assert (letter.reason, letter.strikes) == ("poison", 3)
    assert [(entry["n"], entry["run"]) for entry in world.noted("start")] == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]
    assert world.retries("strict") == []
    assert [strikes for strikes, _ in itertools.groupby(world.charges())] == [1, 2, 3, None], "each death is noted before its next start"
    eventually(lambda: world.standing() == [], 10, "orders taken away")


def test_a_suspect_that_may_not_run_takes_its_strikes_along() -> None:
    """Held, it moves to the ladder: another record, to which no order points."""
    hand = ByHand()
    job = hand.job(child_app.app.job_types["plain"], {"n": 1})
    routes = Routes(child_app.app.names, "children", "children", Ladder(), {})
    for strikes, header in ((2, b"2"), (0, None)):
        job.full_meta.strikes = strikes
        record = held_record(routes, job.message, job.home, job.full_meta, 2_000_000_000.0, "held", 1_700_000_000.0)
        assert dict(record.headers).get("sj_strikes") == header


class Out:
    """An executor that keeps what it gets."""

    slots = 4

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.chunks: list[Chunk] = []

    def submit(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def cancel(self, job: Job) -> None: ...
    def stop(self, timeout: float) -> None: ...


def handed_out(*jobs: Job) -> tuple[Execution, Dispatcher[Job], Out, list[Job]]:
    """Jobs of types of which thousands run in a second, handed out."""
    out, returned = {kind: Out(kind) for kind in ("threads", QUARANTINE)}, []
    dispatcher: Dispatcher[Job] = Dispatcher(out)
    clock = itertools.count()
    execution = Execution(
        out, dispatcher, lambda: float(next(clock)), finished=lambda jobs: None, returned=returned.extend, overdue=lambda *_: None,
        wavers=lambda _: False,
    )  # fmt: skip
    for job in jobs:
        job.job_type.mean_s = 0.0001
        dispatcher.add(job)
    execution.hand_out()
    return execution, dispatcher, out[jobs[0].kind], returned


def test_suspects_are_handed_out_one_by_one_and_cost_no_credit() -> None:
    """A thousand of them would use up the credit of a loop, and nothing else would be read."""
    hand = ByHand()
    suspects = hand.jobs(child_app.app.job_types["plain"], [{"n": n} for n in range(3)])
    for job in suspects:
        job.kind = QUARANTINE
    _, dispatcher, out, _ = handed_out(*suspects)
    assert [list(chunk.jobs) for chunk in out.chunks] == [[suspects[0]]]
    assert (dispatcher.count(), dispatcher.count(QUARANTINE)) == (0, 2)


def test_a_key_does_not_wait_for_a_stuck_job_of_another_one() -> None:
    """Both were in one chunk: the first is done, the second hangs; then a job comes for the first one's key."""
    hand = ByHand()
    first, stuck, behind = hand.jobs(child_app.app.job_types["plain"], [{"n": n} for n in range(3)])
    first.lane = behind.lane = b"a"
    stuck.lane = b"b"
    execution, dispatcher, out, _ = handed_out(first, stuck)
    (chunk,) = out.chunks
    assert list(chunk.jobs) == [first, stuck]
    chunk.done.append(first)
    chunk.stops.append(first)
    chunk.current = stuck
    dispatcher.add(behind)
    assert dispatcher.count() == 0
    execution.watch()
    assert list(dispatcher.ready["threads"]) == [behind]
    chunk.results.put(chunk)
    execution.take_results()
    assert list(dispatcher.ready["threads"]) == [behind], "and only once"


def test_a_revoke_calls_back_first(streamjobs_testing: Callable[[App], Testing]) -> None:
    """A child has a whole list in hand: the gate is not asked there."""
    app = App("shop", partitions=1)
    app.job(name="mail", queue="mails")(lambda: None)
    t = streamjobs_testing(app)
    t.run()
    loop = t.process.loops[0]
    asked: list[str] = []
    loop.execution.recall = lambda: asked.append("recall")  # type: ignore[method-assign]
    loop._busy = lambda going: asked.append("busy")  # type: ignore[assignment,method-assign,return-value]
    loop.poller.revoked([TopicPartition("jobs.mails", 0)])
    assert asked == ["recall", "busy"]


def test_what_has_not_begun_is_called_back_when_partitions_leave() -> None:
    hand = ByHand()
    jobs = hand.jobs(child_app.app.job_types["plain"], [{"n": n} for n in range(3)])
    execution, _, out, returned = handed_out(*jobs)
    next(out.chunks[0].jobs)
    execution.recall()
    assert returned == jobs[1:]


# Recycling ------------------------------------------------------------------------------------------------------------


def test_a_process_with_a_hanging_thread_makes_room(world: World) -> None:  # edge 72
    """What is healthy ends, what hangs is settled as timed out (attempt 2 later, not attempt 1 for ever), all is committed, and
    the exit code asks for another process."""
    world.provision()
    world.types["hangs_in_a_thread"].publish(n=1)
    world.types["takes"].publish(n=2, ms=700)
    process = world.start()
    eventually(lambda: not process.alive, 30, "the end of the process")
    assert process.join(10) == 75
    assert "times its timeout" in (process.recycling or "")
    assert process.marks.running() == []  # though its thread hangs there for ever: nobody is a suspect
    assert [entry["n"] for entry in world.noted("end")] == [2]
    ladder = [name for name in world.broker.admin().topics() if ".delay." in name]
    waiting = [Meta.parse(r.headers()) for name in ladder for r in world.broker.records(name)]
    assert [(meta.run, meta.attempt, meta.reason.partition(":")[0]) for meta in waiting] == [(2, 2, "Timeout")]
    assert world.base("jobs.threads") == 2
    (start,) = [entry for entry in world.noted("start") if entry["n"] == 1]
    assert start["deadline"] == pytest.approx(start["started"] + 0.2, abs=0.001)


@pytest.mark.parametrize("job_type", ["hangs_although_cancelled", "blocks_the_event_loop"])
def test_whatever_hangs_its_process_makes_room(world: World, monkeypatch: pytest.MonkeyPatch, job_type: str) -> None:
    """What bit: the slot of a job that was cancelled (or whose partition left) before its timeout was gone without a word, and an async
    handler that blocks the event loop stopped all others for ever."""
    monkeypatch.setitem(outcomes.PATIENCE_S, "aio", 0.1)
    world.provision()
    world.types[job_type].publish(n=1)
    process = world.start()
    eventually(lambda: not process.alive, 20, "the end of the process")
    assert process.join(10) == 75
    assert "times its timeout" in (process.recycling or "")
    assert world.base("jobs.threads") == 1, "settled as timed out"


def test_a_signal_in_the_midst_of_a_stop_hangs_nothing(world: World) -> None:
    """SIGTERM comes to a process that its supervisor tells to stop at that moment: one thread would take the event's lock twice."""
    world.provision()
    process = world.start()
    event = process._stopping

    class Interrupted:
        def __enter__(self) -> None:
            lock.acquire()
            process.stop()

        def __exit__(self, *_: object) -> None:
            lock.release()

        def notify_all(self) -> None:
            condition.notify_all()

    condition: Any = event._cond  # type: ignore[attr-defined]
    lock = condition._lock
    event._cond = Interrupted()  # type: ignore[attr-defined]
    stopping = threading.Thread(target=process.stop, daemon=True)
    stopping.start()
    stopping.join(10)
    event._cond = condition  # type: ignore[attr-defined]
    assert not stopping.is_alive()
    assert process.join(20) == 0


@pytest.mark.parametrize(("told", "code"), [(True, 4), (False, 75)])
def test_who_fails_at_its_end_says_what_its_supervisor_can_use(
    world: World, monkeypatch: pytest.MonkeyPatch, told: bool, code: int
) -> None:
    """Told to stop, a loop failed while it drained. What bit: it asked to be started again, which nobody did, and the worker said 0: all was
    finished."""
    world.provision()
    process = world.start()

    def fails(_: float) -> bool:
        raise RuntimeError("no way to drain")

    monkeypatch.setattr(process.loops[0], "drain", fails)
    process.tell_to_stop() if told else process.stop()
    assert process.join(20) == code


def late(seconds: float) -> Job:
    hand = ByHand()
    job = hand.job(child_app.app.job_types["hangs_in_a_thread"], {"n": 1})
    job.start(1000.0 - seconds)
    return job


@pytest.mark.parametrize(
    ("zombies", "rss", "max_rss", "says"),
    [
        ([], 10**9, 0, None),
        ([0.3], 0, 0, None),
        ([0.3, 0.3], 0, 0, "2 threads"),
        ([0.5], 0, 0, "more than 2 times its timeout"),
        ([], 2_000, 1_000, "2,000 bytes"),
        ([], 1_000, 1_000, None),
    ],
)
def test_when_a_process_makes_room(zombies: list[float], rss: int, max_rss: int, says: str | None) -> None:
    reason = why_recycle([late(seconds) for seconds in zombies], 1000.0, 2, rss, max_rss)
    assert (reason is None) == (says is None)
    assert (says or "") in (reason or "")


def test_memory_is_known() -> None:
    assert 1_000_000 < resident() < 10**11


# The supervisor -------------------------------------------------------------------------------------------------------


class NoTotals:
    def report(self, process: tuple[int, int], snapshot: Any) -> None: ...
    def ended(self, process: tuple[int, int]) -> None: ...


def dying(slot: int, connection: Connection, legacy: Legacy) -> None:
    """The first one dies with a job running, the second before it has told of it, the third tells, the fourth has nothing to tell."""
    marks = Marks(legacy.memory)
    number = int(os.environ["COUNT_IN"] and Path(os.environ["COUNT_IN"]).stat().st_size)
    with Path(os.environ["COUNT_IN"]).open("a") as file:
        file.write("x")
    suspects = {f"{mark.topic}/{mark.partition}@{mark.offset}": str(mark.run) for mark in legacy.suspects}
    if number < 2:
        marks.row_of(number).mark(marks.place("jobs.a", 3), 17 + number, 2)
        os._exit(0)
    connection.send(Report(None, suspects, {}, number == 2 and bool(suspects)))
    if number == 2:
        connection.poll(5)  # until the supervisor has taken the report
        os._exit(1)
    connection.poll(30)


def test_what_ran_is_kept_until_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies leaves marks; they go to each next one until one reports that the orders about them are acknowledged."""
    monkeypatch.setenv("COUNT_IN", str(tmp_path / "count"))
    (tmp_path / "count").touch()
    monkeypatch.setattr("streamjobs.worker.supervise.FIRST_PAUSE_S", 0.01)
    deaths: list[bool] = []
    supervisor = Supervisor(dying, 1, 1.0, NoTotals(), 4, lambda: deaths.append(True))
    told: list[dict[str, str]] = []
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()

    def look() -> bool:
        sick = {name.partition(": ")[2]: run for name, run in supervisor.healthy()[1].items()}
        if sick not in told:
            told.append(sick)
        return len(deaths) >= 3 and supervisor._slots[0].report is not None and not sick

    eventually(look, 60, "a process with nothing to tell")
    assert {"jobs.a/3@17": "2", "jobs.a/3@18": "2"} in told
    supervisor.stop()
    thread.join(20)


def makes_room(slot: int, connection: Connection, legacy: Legacy) -> None:
    """The first one asks for another; that one stays."""
    with Path(os.environ["COUNT_IN"]).open("a") as file:
        file.write("x")
    connection.send(Report(None, {}, {}, True))
    if Path(os.environ["COUNT_IN"]).stat().st_size == 1:
        os._exit(75)
    connection.poll(60)


def test_a_process_that_makes_room_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no death, and nobody waits for its successor."""
    monkeypatch.setenv("COUNT_IN", str(tmp_path / "count"))
    monkeypatch.setattr("streamjobs.worker.supervise.LIVED_S", 0.0)
    monkeypatch.setattr("streamjobs.worker.supervise.FIRST_PAUSE_S", 600.0)
    deaths: list[bool] = []
    supervisor = Supervisor(makes_room, 1, 1.0, NoTotals(), 4, lambda: deaths.append(True))
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    eventually(lambda: (tmp_path / "count").exists() and (tmp_path / "count").read_text() == "xx", 60, "a second process")
    supervisor.stop()
    thread.join(20)
    assert deaths == []


def test_an_orderly_end_leaves_no_marks() -> None:
    marks = Marks(memory(1))
    with marks.row() as row:
        row.mark(marks.place("jobs.a", 0), 1, 1)
        marks.wipe()
        assert marks.running() == []


def test_nothing_is_left_in_dev_shm() -> None:
    """A supervisor that is killed can't clean up: the memory has no name."""
    if not Path("/dev/shm").exists():
        pytest.skip("no /dev/shm here")
    shared = Marks(memory(100)).memory
    assert {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("psm_", f"pym-{os.getpid()}-"))} == set()
    del shared
