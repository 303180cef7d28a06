"""Executor `processes`: whatever a job does to its child process costs that job, and no other."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs.cli.session import load_app
from streamjobs.job import Crashed, Job, JobCancelled, JobTypeError, Reject, RetryAfter, Snooze, Timeout
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors import processes as executor_module
from streamjobs.worker.executors.child import Cells
from streamjobs.worker.executors.exceptions import pack, unpack
from streamjobs.worker.executors.processes import Batch, Processes
from streamjobs.worker.marks import Marks, memory
from tests.support import child_app
from tests.support.ledger import Ledger
from tests.support.raised import hostile
from tests.support.workers import ROOT
from tests.unit.worker.jobs import ByHand, wait_for

TYPES = child_app.app.job_types


class Room:
    """An executor with children, and the ledger that they write."""

    def __init__(self, ledger: Ledger, slots: int = 1) -> None:
        self.ledger = ledger
        self.gate = Gate()
        self.marks = Marks(memory(4))
        self.executor = Processes(slots, self.gate, child_app.app.in_child(), self.marks)
        self.hand = ByHand()

    def job(self, job_type: str, **arguments: Any) -> Job:
        return self.hand.job(TYPES[job_type], arguments)

    def submit(self, *jobs: Job) -> Chunk:
        chunk = self.hand.chunk(list(jobs))
        self.executor.submit(chunk)
        return chunk

    def run(self, *jobs: Job) -> Chunk:
        self.submit(*jobs)
        return self.hand.result()

    def noted(self, what: str) -> list[dict[str, Any]]:
        return [entry for entry in self.ledger.entries() if entry["what"] == what]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    room = Room(Ledger(tmp_path / "ledger"))
    yield room
    room.executor.stop(5.0)


def test_what_is_over_lives_on_nowhere(room: Room) -> None:
    """What feeds a child is its chunk's `jobs`, and knows the chunk."""

    def alive() -> int:
        return sum(isinstance(thing, Job) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        chunk = room.run(*[room.job("facts", n=n) for n in range(5)])
        assert len(chunk.done) == 5
        chunk.forget()
        del chunk
        wait_for(lambda: alive() <= before, "none of them is left")
    finally:
        gc.enable()


def test_a_child_knows_its_job_and_no_kafka(room: Room) -> None:  # edge 75 # edge 78
    """Spawned, so no handle of librdkafka is in it; it runs the start hooks, and the handler has the job's id, run and attempt:
    its key to doing things once."""
    job = room.job("facts", n=1)
    job.run, job.attempt = 4, 3
    done = room.run(job)

    assert [each.error for each in done.done] == [None]
    (seen,) = room.noted("start")
    assert (seen["kafka"], seen["method"], seen["parent"]) == (False, "spawn", os.getpid())
    assert (seen["id"], seen["run"], seen["attempt"], seen["origin"]) == (job.id, 4, 3, job.origin)
    assert len(room.noted("hook")) == 1
    assert done.stops == [job]


@pytest.mark.parametrize("how", ["killed", "segfault", "exit", "exit well"])
def test_a_child_that_dies_costs_its_own_job(room: Room, how: str) -> None:  # edge 74
    """Of a list of five the third kills the child: two are done, the third has crashed with a strike, two go back, and the next
    list runs in another child."""
    before = [room.job("brief", n=1), room.job("brief", n=2)]
    killer, after = room.job("dies", how=how), [room.job("brief", n=4), room.job("brief", n=5)]
    chunk = room.run(*before, killer, *after)

    assert chunk.done == [*before, killer]
    assert [job.error for job in before] == [None, None]
    assert isinstance(killer.error, Crashed)
    assert [job.strikes for job in (*before, killer, *after)] == [0, 0, 1, 0, 0]
    assert sorted(chunk.returned, key=lambda job: job.offset) == after
    assert room.marks.running() == []

    again = room.run(*after)
    assert [job.error for job in again.done] == [None, None]
    assert [entry["n"] for entry in room.noted("end")] == [1, 2, 4, 5]
    assert len({entry["pid"] for entry in room.noted("end")}) == 2


def test_what_its_child_died_of_is_said(room: Room) -> None:
    killed, left = room.job("dies", how="killed"), room.job("dies", how="exit")
    room.run(killed)
    room.run(left)
    assert (killed.error_message, left.error_message) == (
        "its process ended with signal SIGKILL", "its process ended with exit code 3",
    )  # fmt: skip


def test_a_job_that_hangs_is_killed_at_its_timeout(room: Room) -> None:  # edge 74
    hanging, next_one = room.job("hangs", n=1), room.job("brief", n=2)
    chunk = room.run(hanging, next_one)
    assert isinstance(hanging.error, Timeout)
    assert 0.3 <= hanging.duration_s < 3.0
    assert hanging.strikes == 1
    assert chunk.returned == [next_one]


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_is_set_changes_no_timeout(jump: float, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: set forward, it killed every child whose job had a timeout; set back, none that hung."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)

    hanging = room.job("hangs", n=1)
    room.run(hanging)

    assert isinstance(hanging.error, Timeout)
    assert 0.3 <= hanging.duration_s < 3.0


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("two", "TwoArguments", "two arguments (7)"),
        ("lock", "WithLock", "with a lock"),
        ("local", "raises.<locals>.Local", "of a class that nobody can import"),
        ("plain", "ValueError", "plain"),
    ],
)
def test_exceptions_come_back_whatever_they_are(room: Room, what: str, name: str, text: str) -> None:
    job = room.job("raises", what=what)
    room.run(job, room.job("brief", n=1))
    assert (type(job.error).__qualname__, str(job.error)) == (name, text)
    assert "child_app.py" in str(job.error.__cause__ if job.error else "")
    assert job.strikes == 0
    assert len(room.noted("end")) == 1  # the pipe is whole


def test_signals_come_back_as_themselves(room: Room) -> None:
    job = room.job("raises", what="reject")
    room.run(job)
    assert isinstance(job.error, Reject)
    assert job.error.reason == "never"


def test_a_signal_of_a_task_group_comes_back_as_itself(room: Room) -> None:
    job = room.job("raises", what="group")
    room.run(job)
    assert isinstance(job.error, Reject)
    assert job.error.reason == "in a task"


@pytest.mark.parametrize("signal_", [RetryAfter("90s", "the bank is closed"), Snooze("10m"), Reject("no")])
def test_signals_survive_the_pipe(signal_: BaseException) -> None:
    back = unpack(pack(signal_))
    assert type(back) is type(signal_)
    assert {k: v for k, v in vars(back).items() if k != "__cause__"} == vars(signal_)


def test_an_exception_keeps_its_class_and_attributes() -> None:
    back = unpack(pack(child_app.TwoArguments(7, "seven")))
    assert isinstance(back, child_app.TwoArguments)
    assert (back.code, str(back)) == (7, "seven (7)")


@pytest.mark.parametrize("error", hostile(), ids=lambda error: type(error).__name__)
def test_what_comes_back_of_an_exception_is_never_another_fault(error: BaseException) -> None:
    """What bit: the way to the child was taken for broken, and jobs that had ended well beside it ran again."""
    back = unpack(pack(error))
    assert type(back).__name__ == type(error).__name__
    assert type(error).__name__ in str(back.__cause__)


def test_arguments_that_can_not_travel_are_named(room: Room) -> None:
    job, other = room.job("brief", n=threading.Lock()), room.job("brief", n=2)
    chunk = room.run(job, other)
    assert isinstance(job.error, JobTypeError)
    assert "the arguments of brief can't be sent to a child process" in str(job.error)
    assert chunk.done == [job, other]
    assert other.error is None


def test_a_process_that_a_handler_forks_runs_nothing_else(room: Room) -> None:
    """What bit: it said that its job had failed, and took the next ones of the list."""
    chunk = room.run(room.job("forks", n=1), room.job("brief", n=2), room.job("brief", n=3))
    assert [job.error for job in chunk.done] == [None] * 3
    assert [entry["n"] for entry in room.noted("end")] == [7, 2, 3]
    assert len({entry["pid"] for entry in room.noted("end")}) == 1


def test_a_job_that_is_cancelled_sees_it(room: Room) -> None:  # edge 76
    """The flag goes to the child; before it, the progress came from there."""
    job = room.job("patient", n=7)
    chunk = room.submit(job)
    wait_for(lambda: job.progress == {"at": 7}, "progress across the pipe")
    assert chunk.current is job

    job.cancel()
    room.executor.cancel(job)
    room.hand.result()
    assert isinstance(job.error, JobCancelled)
    assert job.strikes == 0
    room.executor.cancel(job)  # after its end: nothing happens
    assert [each.error for each in room.run(room.job("brief", n=1)).done] == [None]


def test_a_thread_that_a_handler_left_behind_speaks_for_nobody(room: Room) -> None:
    """What bit: it named its place in a longer list, so the child was killed, and the job that ran in it then was charged with that."""
    first = room.run(room.job("brief", n=1), room.job("leaves_a_heartbeat", n=2))
    assert [job.error for job in first.done] == [None, None]
    next_one = room.job("rests", n=3)
    room.run(next_one)
    assert (next_one.error, next_one.progress) == (None, None)


def test_a_job_that_does_not_listen_is_killed(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "CANCEL_S", 0.1)
    job = room.job("deaf", n=1)
    room.submit(job)
    wait_for(lambda: room.noted("start"), "the job's start")
    job.cancel()
    room.executor.cancel(job)
    room.hand.result()
    assert isinstance(job.error, JobCancelled)
    assert job.strikes == 0


def test_the_loop_takes_back_what_a_stuck_list_has_not_begun(room: Room) -> None:
    """The child has the whole list; whoever reads a job's ticket has the job."""
    stuck, waiting = room.job("deaf", n=1), [room.job("brief", n=n) for n in (2, 3)]
    chunk = room.submit(stuck, *waiting)
    wait_for(lambda: room.noted("start"), "the stuck job's start")
    taken = chunk.take_back()
    assert sorted(taken, key=lambda job: job.offset) == waiting
    assert chunk.current is stuck
    assert chunk.take_back() == []


def test_jobs_behind_a_head_go_with_it(room: Room) -> None:
    """Once a type's jobs are known to be short, a lane's stretch travels in one list, in its order."""
    room.run(room.job("brief", n=0))
    TYPES["brief"].mean_s = 0.0005
    lane = room.hand.jobs(TYPES["brief"], [{"n": n} for n in range(1, 6)])
    chunk = room.run(room.hand.lane(lane))
    assert chunk.done == lane
    assert chunk.stops == [lane[-1]]
    assert [entry["n"] for entry in room.noted("end")] == [0, 1, 2, 3, 4, 5]
    TYPES["brief"].mean_s = None


@pytest.mark.parametrize("barred", ["cancelled", "held"])
def test_a_head_runs_though_one_behind_it_may_not(room: Room, monkeypatch: pytest.MonkeyPatch, barred: str) -> None:  # edge 76
    """What bit: the whole list went back, was handed out at once, and went back again, for as long as the one behind was barred."""
    head, behind, last = room.job("brief", n=1), room.job("facts", n=2), room.job("brief", n=3)
    for job in (head, behind, last):
        job.lane = b"k"
    head.next, behind.next = behind, last
    monkeypatch.setattr(TYPES["brief"], "mean_s", 0.0001)
    if barred == "cancelled":
        behind.cancel()
    else:
        room.gate.held = frozenset(("facts",))
    chunk = room.run(head)
    assert (chunk.done, chunk.stops, chunk.returned) == ([head], [head], [])
    chunk = room.run(behind)
    assert (chunk.done, chunk.stops, chunk.returned) == ([], [], [behind])


def test_a_lane_that_is_through_is_told_of_while_the_list_goes_on(room: Room) -> None:
    """As threads do: else a key's next job waits for a stuck one of another key that came in the same list."""
    first, stuck = room.job("brief", n=1), room.job("deaf", n=2)
    first.lane, stuck.lane = b"a", b"b"
    chunk = room.submit(first, stuck)
    wait_for(lambda: room.noted("start"), "the stuck job's start")
    wait_for(lambda: chunk.done, "what the child finished")
    wait_for(lambda: chunk.stops, "the lane that is through", 5)
    assert (chunk.done, chunk.stops, chunk.current) == ([first], [first], stuck)


def test_a_closed_gate_starts_nothing(room: Room) -> None:
    room.gate.closed = True
    job = room.job("brief", n=1)
    chunk = room.run(job)
    assert (chunk.returned, chunk.done) == ([job], [])
    assert room.noted("end") == []


def test_what_a_child_runs_is_marked(room: Room) -> None:
    job = room.job("deaf", n=1)
    job.home.place = room.marks.place("jobs.by-hand", 0)
    room.submit(job)
    wait_for(room.marks.running, "a mark of what runs")
    assert [(mark.topic, mark.partition, mark.offset, mark.run) for mark in room.marks.running()] == [
        ("jobs.by-hand", 0, job.offset, 1)
    ]


def test_a_child_that_is_told_to_stop_goes_on_and_dies_with_its_parent(room: Room) -> None:
    """SIGINT and SIGTERM to the whole group are for the worker; when the pipe closes the child ends."""
    room.run(room.job("brief", n=0))
    pid = room.noted("end")[0]["pid"]
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    room.run(room.job("brief", n=1))
    assert [entry["pid"] for entry in room.noted("end")] == [pid, pid]

    room.executor.stop(5.0)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the child's end")


def test_a_child_that_can_not_start_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs are not charged; they go back, and each next try waits for longer."""
    monkeypatch.setattr(executor_module, "FIRST_PAUSE_S", 0.01)
    hand = ByHand()
    executor = Processes(1, Gate(), _can_not_load)
    executor._stopping = pauses = Pauses()
    job = hand.job(TYPES["brief"], {"n": 1})
    for _ in range(2):
        executor.submit(hand.chunk([job]))
        chunk = hand.result()
        assert (chunk.returned, chunk.done, job.strikes) == ([job], [], 0)
    assert pauses.waited == [0.01, 0.02]
    executor.stop(5.0)


class Pauses(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return super().wait(timeout)


def _can_not_load() -> Any:
    raise RuntimeError("the app can't be made")


def test_a_system_that_refuses_another_process_costs_no_job(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ran out, so a child was killed, and for the next one there is none. What bit: the job that it had run was neither done nor
    returned, its key waited for it for ever, and the executor's thread was gone."""
    monkeypatch.setattr(executor_module, "FIRST_PAUSE_S", 0.01)
    killer, after = room.job("dies", how="killed"), room.job("brief", n=2)
    room.run(room.job("brief", n=1))
    make, refusals = executor_module.Child, iter(range(2))

    def refuse(*arguments: Any) -> executor_module.Child:
        if next(refusals, None) is not None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return make(*arguments)

    monkeypatch.setattr(executor_module, "Child", refuse)
    chunk = room.run(killer, after)
    assert chunk.done == [killer]
    assert isinstance(killer.error, Crashed)
    assert chunk.returned == [after]

    assert room.run(after).returned == [after]
    assert room.run(after).done == [after]


def test_stop_kills_what_still_runs(room: Room) -> None:
    room.submit(room.job("deaf", n=1))
    wait_for(lambda: room.noted("start"), "the job's start")
    pid = room.noted("start")[0]["pid"]
    began = time.monotonic()
    room.executor.stop(5.0)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the child's end")
    assert time.monotonic() - began < 5.0


def program(how: str, ledger: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.child_program", how]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "LEDGER": str(ledger)})


def test_a_child_finds_an_app_that_another_modules_function_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: the child looked for it where its job types are declared, and found none, so no suspect ever ran, nor any job of a child."""
    made = "from streamjobs import App\ndef make():\n    app = App('made')\n    app.job(name='one')(lambda n: None)\n    return app\n"
    (tmp_path / "made_there.py").write_text(made)
    (tmp_path / "named_here.py").write_text("from made_there import make\napp = make()\n")
    monkeypatch.syspath_prepend(tmp_path)
    load = pickle.dumps(load_app("named_here:app").in_child())

    program = "import pickle, sys; print(*pickle.load(sys.stdin.buffer)().job_types)"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    child = subprocess.run([sys.executable, "-c", program], input=load, env=env, capture_output=True, timeout=60, check=False)
    assert child.stdout == b"one\n", child.stderr


def test_a_child_dies_with_its_parent_in_the_middle_of_a_job(tmp_path: Path) -> None:
    """A worker that is killed runs nothing on: the next owner runs those jobs again."""
    ledger = Ledger(tmp_path / "ledger")
    parent = program("deaf", ledger.path)
    wait_for(lambda: [e for e in ledger.entries() if e["what"] == "start"], "the job's start", 60)
    (start,) = [entry for entry in ledger.entries() if entry["what"] == "start"]
    parent.kill()
    parent.wait(10)
    wait_for(lambda: not Path(f"/proc/{start['pid']}").exists(), "the child's end")


def test_a_program_that_forgets_its_executor_ends(tmp_path: Path) -> None:
    """It would wait for its child, which waits for it."""
    parent = program("ends", tmp_path / "ledger")
    try:
        assert parent.wait(60) == 0
    finally:
        parent.kill()


def test_a_suspect_that_hangs_is_no_killer(room: Room) -> None:
    """A job type of another executor, run in a child because it is a suspect: killed at its timeout, charged no strike."""
    job = room.job("hangs_in_a_thread", n=1)
    job.kind = "processes"
    room.run(job)
    assert isinstance(job.error, Timeout)
    assert job.strikes == 0


def test_the_next_job_is_not_blamed_for_one_that_was_late(room: Room) -> None:
    """
    A job is found to be late; it ends, and the next one begins, just before the child is killed for it. That next one did nothing:
    it goes back, uncharged.
    """
    late, innocent = room.job("brief", n=1), room.job("deaf", n=2)
    room.run(room.job("brief", n=0))
    (keeper,) = room.executor._keepers
    keeper._overdue = lambda batch: (late, Timeout("late")) if batch.current is not None else None  # type: ignore[method-assign]
    chunk = room.run(innocent)
    assert (chunk.done, chunk.returned, innocent.strikes) == ([], [innocent], 0)


class NoChild:
    """What a list needs of a child; the test takes tickets in its place."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.tickets = multiprocessing.Pipe(duplex=False)
        os.set_blocking(self.tickets[0].fileno(), False)

    def take_ticket(self) -> None:
        assert os.read(self.tickets[0].fileno(), 1)


def listed(*lanes: int) -> tuple[Batch, Chunk, NoChild]:
    """A list of jobs in lanes of these lengths."""
    hand, child = ByHand(), NoChild()
    jobs = hand.jobs(TYPES["brief"], [{"n": n} for n in range(sum(lanes))])
    ends = list(itertools.accumulate(lanes))
    chunk = hand.chunk(jobs)
    batch = Batch(chunk, jobs, [(end - length, end - 1) for end, length in zip(ends, lanes, strict=True)], child)  # type: ignore[arg-type]
    chunk.jobs = batch
    return batch, chunk, child


def test_only_heads_of_lanes_are_taken_back() -> None:
    """Those behind a head become ready by it; taken back, too, they would run twice, and out of turn."""
    batch, chunk, child = listed(1, 3, 2)
    child.take_ticket()
    child.cells.begin(0)
    assert {job.offset for job in chunk.take_back()} == {1, 4}
    assert chunk.take_back() == []
    assert batch.unended == range(1)


def test_a_ticket_that_is_taken_shows_at_once() -> None:
    """
    The child has read a ticket and not said so yet. A revoke closes the gate, takes back the rest, and asks what runs: it must
    hear of this job, or commits while it runs.
    """
    _, chunk, child = listed(1, 1)
    child.take_ticket()
    assert [job.offset for job in chunk.take_back()] == [1]
    assert chunk.current is not None
    assert chunk.current.offset == 0
    child.cells.begin(0)
    child.cells.end(0, 0.1)
    assert chunk.take_back() == []
    assert chunk.current is None
