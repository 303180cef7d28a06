"""The supervisor: a worker that once worked is kept alive through the outages of its brokers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from streamjobs.errors import BrokerError
from streamjobs.worker.marks import Legacy
from streamjobs.worker.supervise import Report, Supervisor, await_broker
from tests.support.story import processes_of
from tests.support.workers import ROOT, Worker, eventually


class NoTotals:
    def report(self, process: tuple[int, int], snapshot: Any) -> None: ...
    def ended(self, process: tuple[int, int]) -> None: ...


def met_by_an_outage(slot: int, connection: Connection, legacy: Legacy) -> None:
    """The first works, then dies; the second finds no broker; the third works."""
    count = Path(os.environ["COUNT_IN"])
    number = count.stat().st_size
    with count.open("a") as file:
        file.write("x")
    if number == 1:
        os._exit(1)
    connection.send(Report(None, {}, {}, True))
    if number == 0:
        connection.poll(5)  # until the supervisor has taken the report
        os._exit(9)
    connection.poll(30)


def never_starting(slot: int, connection: Connection, legacy: Legacy) -> None:
    os._exit(1)


def test_a_process_that_finds_no_broker_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process is killed while the broker is restarted; its successor can't start and says so with exit code 1.
    What bit: the supervisor took that for a mistake of its user, stopped, and the worker was gone for good.
    """
    count = tmp_path / "count"
    count.touch()
    monkeypatch.setenv("COUNT_IN", str(count))
    monkeypatch.setattr("streamjobs.worker.supervise.FIRST_PAUSE_S", 0.01)
    supervisor = Supervisor(met_by_an_outage, 1, 1.0, NoTotals(), 4, lambda: None)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()

    def third_works() -> bool:
        assert thread.is_alive(), "the supervisor gave up"
        return count.stat().st_size == 3 and supervisor.ready()[0]

    eventually(third_works, 30, "a third process works")
    supervisor.stop()
    thread.join(20)


def test_a_worker_that_never_started_says_why_and_ends() -> None:
    """A mistake of its user is the same at every try."""
    assert Supervisor(never_starting, 1, 1.0, NoTotals(), 4, lambda: None).run() == 1


def killed_once_it_works(slot: int, connection: Connection, legacy: Legacy) -> None:
    connection.send(Report(None, {}, {}, True))
    connection.poll(5)  # until the supervisor has taken the report
    os.kill(os.getpid(), signal.SIGKILL)


def test_who_is_stopped_before_a_dead_process_has_a_successor_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ran any more. What bit: a deployment in that pause, and exit code 1 for a process that had been told of."""
    monkeypatch.setattr("streamjobs.worker.supervise.FIRST_PAUSE_S", 30.0)
    deaths: list[int] = []
    supervisor = Supervisor(killed_once_it_works, 1, 1.0, NoTotals(), 4, lambda: deaths.append(1))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True)
    thread.start()
    eventually(lambda: deaths, 30, "it was killed")
    # What bit: for up to 30 s it answered by the last report of the dead process, and was ready.
    eventually(lambda: supervisor.ready() == (False, {"process 0": "has ended"}), 5, "/readyz says so")
    supervisor.stop()
    thread.join(30)
    assert codes == [0]


def freezing_in_a_report(slot: int, connection: Connection, legacy: Legacy) -> None:
    """Reports once, then begins a report and never ends it."""
    connection.send(Report(None, {}, {}, True))
    os.write(connection.fileno(), b"\x00\x00\x10\x00half")
    threading.Event().wait()


def test_a_process_that_freezes_in_a_report_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: the supervisor waited in `recv` for the other half, and could neither kill the process nor be stopped."""
    monkeypatch.setattr("streamjobs.worker.supervise.SILENT_S", 0.5)
    deaths: list[int] = []
    supervisor = Supervisor(freezing_in_a_report, 1, 0.1, NoTotals(), 4, lambda: deaths.append(1))
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    eventually(lambda: deaths, 30, "the frozen process is replaced")
    supervisor.stop()
    thread.join(30)
    assert not thread.is_alive()


class Living:
    """A process that lives until it is killed."""

    exitcode, pid = None, 1

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize("still", [True, False])
def test_a_supervisor_that_stood_still_itself_kills_nobody(still: bool) -> None:
    """Ctrl-Z, and `fg` a minute later. What bit: its first look found that nobody had reported for a minute."""
    supervisor = Supervisor(freezing_in_a_report, 1, 0.1, NoTotals(), 4, lambda: None)
    (slot,) = supervisor._slots
    process = Living()
    slot.process, slot.report = process, Report(None, {}, {}, True)  # type: ignore[assignment]
    slot.heard = slot.well = time.monotonic() - 60
    if still:
        supervisor._looked = slot.heard
    supervisor._forgive()
    supervisor._reap()
    assert process.killed == (not still)


def no_broker() -> None:
    raise BrokerError("_TRANSPORT", "nobody there", retriable=True)


def test_a_worker_that_finds_no_broker_waits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: one that was first started during an outage ended with exit code 1, and nobody started it again."""
    monkeypatch.setattr("streamjobs.worker.supervise.ASK_AGAIN_S", 0.01)
    ours, theirs = Pipe()
    away = threading.Event()
    away.set()
    met: list[bool] = []
    thread = threading.Thread(target=lambda: met.append(await_broker(lambda: no_broker() if away.is_set() else None, theirs, None)))
    thread.start()
    reasons: dict[str, str] = {}

    def says_so() -> bool:
        report = ours.recv()
        reasons.update(report.unready)
        return not report.started and "nobody there" in reasons["broker"]

    eventually(says_so, 10, "its report says what it waits for")
    away.clear()
    thread.join(10)
    assert met == [True]


def test_who_waits_for_a_broker_hears_of_the_end() -> None:
    ours, theirs = Pipe()
    ours.send("stop")
    assert not await_broker(no_broker, theirs, None)


def test_no_waiting_for_what_waiting_does_not_mend() -> None:
    def refused() -> None:
        raise BrokerError("CLUSTER_AUTHORIZATION_FAILED", "not you")

    ours, theirs = Pipe()
    with pytest.raises(BrokerError, match="not you"):
        await_broker(refused, theirs, None)
    ours.close()


def test_a_fault_of_another_kind_ends_the_wait() -> None:
    """What bit: the thread that asks died of it, and the process waited for its answer for ever."""

    def broken() -> None:
        raise RuntimeError("no token")

    ours, theirs = Pipe()
    stop = threading.Timer(20, ours.send, ["stop"])
    stop.start()
    with pytest.raises(RuntimeError, match="no token"):
        await_broker(broken, theirs, None)
    stop.cancel()


def waiting_then_mistaken(slot: int, connection: Connection, legacy: Legacy) -> None:
    """Its broker comes, and then a topic is missing."""
    connection.send(Report(None, {}, {}, suspects_told=False, started=False))
    os._exit(1)


def test_a_mistake_that_shows_after_an_outage_is_one_all_the_same() -> None:
    assert Supervisor(waiting_then_mistaken, 1, 1.0, NoTotals(), 4, lambda: None).run() == 1


def slow_to_start(slot: int, connection: Connection, legacy: Legacy) -> None:
    """Its broker answers at once; in its start hooks it says nothing."""
    connection.send(Report(None, {}, {}, suspects_told=False, started=False))
    connection.poll(30)


def test_start_hooks_have_their_time_after_a_wait_for_the_broker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: whose start hooks took longer than a minute was killed as sick, again and again: its last report was that it waited."""
    monkeypatch.setattr("streamjobs.worker.supervise.SICK_S", 0.0)
    monkeypatch.setattr("streamjobs.worker.supervise.SILENT_S", 0.0)
    deaths: list[int] = []
    supervisor = Supervisor(slow_to_start, 1, 1.0, NoTotals(), 4, lambda: deaths.append(1))
    reap, looks = supervisor._reap, itertools.count()

    def reap_a_few_times() -> None:
        reap()
        if deaths or (supervisor._slots[0].report is not None and next(looks) > 2):
            supervisor.stop()

    monkeypatch.setattr(supervisor, "_reap", reap_a_few_times)
    supervisor.run()
    assert not deaths


class Named:
    """A process, as far as a second signal cares."""

    pid = 1

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_all_at_once(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit codes that docs/commands.md has for it."""
    ended: list[int] = []
    monkeypatch.setattr("streamjobs.worker.supervise.os._exit", ended.append)
    supervisor = Supervisor(never_starting, 2, 1.0, NoTotals(), 4, lambda: None)
    processes = [Named(), Named()]
    for slot, process in zip(supervisor._slots, processes, strict=True):
        slot.process = process  # type: ignore[assignment]

    supervisor._on_signal(number, None)
    assert not ended and not any(process.killed for process in processes)
    supervisor._on_signal(number, None)
    assert ended == [code] and all(process.killed for process in processes)


def making_room(slot: int, connection: Connection, legacy: Legacy) -> None:
    connection.send(Report(None, {}, {}, True))
    if connection.poll(10):
        sys.exit(75)


def test_a_process_that_makes_room_at_the_end_is_no_failure() -> None:
    """75 is said to the supervisor, which would start another one; nobody else hears of it."""
    supervisor = Supervisor(making_room, 1, 1.0, NoTotals(), 4, lambda: None)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True)
    thread.start()
    eventually(lambda: supervisor.ready()[0], 30, "it works")
    supervisor.stop()
    thread.join(30)
    assert codes == [0]


def test_ctrl_c_while_a_worker_starts_is_a_clean_stop(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the worker. What bit: the one that was importing died of it: exit code 1."""
    nowhere = {"STREAMJOBS_BOOTSTRAP": "127.0.0.1:1", "LEDGER": str(tmp_path / "ledger")}
    worker = Worker(nowhere, tmp_path / "log")
    try:
        eventually(lambda: len(processes_of(worker)) > 2, 30, "the worker has a process")
        worker.signal_all(signal.SIGINT)
        assert worker.wait(20) == 0, worker.tail()
        assert "Traceback" not in worker.tail()
    finally:
        worker.end()


def test_who_is_spared_interrupts_does_not_spare_its_programs() -> None:
    """What bit: a program that a handler had started took no notice of the SIGINT by which the handler told it to end."""
    program = """
        import os, signal, subprocess, sys
        from streamjobs.worker.supervise import spared_interrupts
        spared_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        started = subprocess.Popen(["sleep", "5"])
        started.send_signal(signal.SIGINT)
        print(started.wait())
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert ran.stdout == b"-2\n", ran.stderr


def test_a_process_ends_although_a_pools_thread_hangs() -> None:
    """Python waits for the threads of a pool. What bit: `asyncio.to_thread` in a handler whose timeout had ended it, and a worker that had
    settled and committed all, and was killed for being late: exit code 1."""
    program = """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from streamjobs.cli import worker
        ThreadPoolExecutor().submit(threading.Event().wait)
        worker.POOLS_S = 0.1
        worker.end(4)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, timeout=30, check=False).returncode == 4


def test_what_the_supervisor_says_goes_where_the_log_goes(tmp_path: Path) -> None:
    """Of a killed process and of the drain, in the format and from the level that the settings name."""
    env = {"STREAMJOBS_BOOTSTRAP": "127.0.0.1:1", "LEDGER": str(tmp_path / "ledger"), "STREAMJOBS_LOG__FORMAT": "json"}
    worker = Worker(env, tmp_path / "log")

    def said() -> list[str]:
        return [json.loads(line)["message"] for line in worker.log.read_text().splitlines()]

    def waiting() -> int:
        return sum("waiting for the broker" in message for message in said())

    try:
        eventually(waiting, 60, "its process began")
        process = next(pid for pid in processes_of(worker) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(process, signal.SIGKILL)
        eventually(lambda: "worker process 0 ended with signal SIGKILL; another one starts in 0.5 s" in said(), 30, "its end is told")
        eventually(lambda: waiting() == 2, 60, "another one began")
        worker.signal(signal.SIGTERM)
        assert worker.wait(30) == 0, worker.tail()
        assert [message for message in said() if "draining" in message and "a second Ctrl-C" in message]
    finally:
        worker.end()
