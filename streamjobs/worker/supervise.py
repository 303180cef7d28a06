"""The supervisor: keeps worker processes alive, adds up what they report, and passes signals on. No Kafka, no user code."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from types import FrameType
from typing import Any, Protocol

from streamjobs.errors import BrokerError
from streamjobs.worker.marks import Legacy, Mark, Marks, memory

logger = logging.getLogger(__name__)

RESTART_ME = 75
#: A process that dies young is started again after a growing pause.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
#: A process that has not reported, or has reported to be sick, for so long is replaced.
SILENT_S = 45.0
SICK_S = 15.0
#: A supervisor that has not looked for so long stood still itself.
STILL_S = 5.0
#: A process may take so long to its first report: start hooks open pools.
STARTING_S = 300.0
#: A process that has not ended so long after its drain time was over is killed.
LATE_S = 15.0
REPORT_S = 1.0
#: How often the supervisor looks for reports and signals; the end of a process wakes it.
LISTEN_S = 0.5
#: A process that can't begin because no broker answers says so once in a while, and asks again after a moment.
TELL_S, ASK_AGAIN_S = 30.0, 1.0
#: A process that asks to be replaced is, at once, unless it has lived for less than this.
LIVED_S = 5.0

Entry = Callable[[int, Connection, Legacy], None]
"""What a worker process runs: (slot, connection to the supervisor, what it leaves and finds) → its exit code by `sys.exit`."""


class Totals(Protocol):
    """Adds up the metrics of processes; `telemetry.metrics.Totals`."""

    def report(self, process: tuple[int, int], snapshot: Any) -> None: ...
    def ended(self, process: tuple[int, int]) -> None: ...


@dataclass
class Report:
    """What a process tells every second."""

    metrics: Any
    sick: Mapping[str, str]
    unready: Mapping[str, str]
    suspects_told: bool
    """What its predecessor ran when it died is known to be suspect, wherever it runs next."""
    started: bool = True
    """False: it waits for its broker. Whether it can start is not known before that."""


@dataclass
class Slot:
    """One place for a worker process, and whoever has it now."""

    number: int
    marks: Marks
    suspects: set[Mark] = field(default_factory=set)
    process: SpawnProcess | None = None
    connection: Connection | None = None
    report: Report | None = None
    heard: float = 0.0
    well: float = 0.0
    started: float = 0.0
    deaths: int = 0
    start_at: float = 0.0
    exit_code: int | None = None
    told: bool = field(default=False)
    inbox: SimpleQueue[Report] = field(default_factory=SimpleQueue)
    reader: threading.Thread | None = None

    @property
    def identity(self) -> tuple[int, int]:
        return self.number, (self.process.pid or 0) if self.process else 0


class Supervisor:
    """`run` returns the exit code of the whole: 0, 4 if any process abandoned work, or that of one that could not start."""

    def __init__(
        self, entry: Entry, processes: int, drain_s: float, totals: Totals, rows: int, died: Callable[[], None]
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._entry = entry
        self._slots = [Slot(number, Marks(memory(rows))) for number in range(processes)]
        self._drain_s = drain_s
        self._totals = totals
        self._died = died
        self._signals = 0
        self._told_of_drain = False
        self._stopping_since: float | None = None
        self._looked = time.monotonic()
        self._worked = False  # some process of it has started once: one that can't is met by an outage, not by a mistake

    # What it answers ---------------------------------------------------------------------------------------------------

    def healthy(self) -> tuple[bool, Mapping[str, str]]:
        """False: kill this worker and start it again."""
        reasons: dict[str, str] = {}
        for slot in self._slots:
            report = slot.report
            if report is None or not report.started:
                continue
            silent_s = time.monotonic() - slot.heard
            if silent_s > SILENT_S:
                reasons[f"process {slot.number}"] = f"has not reported for {silent_s:.0f} s"
            reasons |= {f"process {slot.number}: {name}": why for name, why in report.sick.items()}
        return not reasons, reasons

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        """False: it does no work now, or not all of it."""
        _, reasons = self.healthy()
        found = dict(reasons)
        for slot in self._slots:
            report = slot.report  # one look: whoever asks is another thread
            if slot.process is None:
                found[f"process {slot.number}"] = "has ended"
            elif report is None:
                found[f"process {slot.number}"] = "is starting"
            else:
                found |= {f"process {slot.number}: {name}": why for name, why in report.unready.items()}
        return not found, found

    # Its life ----------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        self._take_signals()
        while True:
            self._start_missing()
            self._listen()
            self._forgive()
            self._reap()
            if self._stopping_since is not None and not any(slot.process for slot in self._slots):
                return self._exit_code()

    def stop(self) -> None:
        """Tells every process to drain."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """The first one drains, a second one ends at once."""
        self._signals += 1
        self.stop()
        if self._signals > 1:
            for slot in self._slots:
                if slot.process is not None and slot.process.pid:
                    slot.process.kill()
            os._exit(130 if number == signal.SIGINT else 128 + number)

    def _start_missing(self) -> None:
        for slot in self._slots:
            if self._stopping_since is None and slot.process is None and time.monotonic() >= slot.start_at:
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        ours, theirs = self._context.Pipe()
        slot.process = self._context.Process(
            target=self._entry,
            args=(slot.number, theirs, Legacy(slot.marks.memory, tuple(sorted(slot.suspects)))),
            name=f"streamjobs-worker-{slot.number}",
            daemon=False,
        )
        with _interrupts_blocked():
            slot.process.start()
        theirs.close()
        slot.connection = ours
        slot.inbox = SimpleQueue()
        slot.reader = threading.Thread(target=_read, args=(ours, slot.inbox), name=f"streamjobs-reports-{slot.number}", daemon=True)
        slot.reader.start()
        slot.report = None
        slot.told = False
        slot.started = slot.heard = slot.well = time.monotonic()

    def _listen(self) -> None:
        """Takes reports, and tells processes to stop; returns when one has ended, or after a moment."""
        if self._signals and not self._told_of_drain:  # not by the handler of the signal: it may come in the middle of another line
            self._told_of_drain = True
            logger.info("draining: running jobs have %g s to end; a second Ctrl-C or SIGTERM ends them at once", self._drain_s)
        if self._stopping_since is not None:
            for slot in self._slots:
                self._tell_to_stop(slot)
        wait([slot.process.sentinel for slot in self._slots if slot.process is not None], LISTEN_S)
        for slot in self._slots:
            self._receive(slot)

    def _receive(self, slot: Slot) -> None:
        while not slot.inbox.empty():
            self._take(slot, slot.inbox.get_nowait())

    def _take(self, slot: Slot, report: Report) -> None:
        slot.report = report
        self._worked = self._worked or report.started
        slot.heard = time.monotonic()
        if report.suspects_told:
            slot.suspects.clear()
        if not report.sick:
            slot.well = slot.heard
        self._totals.report(slot.identity, report.metrics)

    def _tell_to_stop(self, slot: Slot) -> None:
        if slot.connection is not None and not slot.told:
            slot.told = True
            try:
                slot.connection.send("stop")
            except OSError:
                slot.connection = None

    def _forgive(self) -> None:
        """Holds no silence against a process in which it could hear nobody. *Bites*: Ctrl-Z and a minute later `fg`, or a container that is
        paused: its first look finds nothing said for a minute, and healthy processes are killed, with all that runs in them."""
        now = time.monotonic()
        still_s, self._looked = now - self._looked, now
        if still_s > STILL_S:
            logger.warning("stood still for %.0f s", still_s)
            for slot in self._slots:
                slot.heard = min(now, slot.heard + still_s)
                slot.well = min(now, slot.well + still_s)

    def _reap(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            process = slot.process
            if process is None:
                continue
            if process.exitcode is None:
                self._end_stuck(slot, now)
                continue
            if slot.reader is not None:
                slot.reader.join(1.0)  # it ends with the last report
            self._receive(slot)
            self._totals.ended(slot.identity)
            self._ended(slot, process.exitcode)
            slot.process = slot.connection = slot.report = None

    def _end_stuck(self, slot: Slot, now: float) -> None:
        """A process that went silent, or does not end its drain, is killed: its jobs run elsewhere."""
        assert slot.process is not None
        late = self._stopping_since is not None and now - self._stopping_since > self._drain_s + LATE_S
        started = slot.report is not None and slot.report.started
        silent = now - slot.heard > (SILENT_S if started else STARTING_S)
        sick_for_s = now - slot.well if started else 0.0
        if silent or sick_for_s > SICK_S + SILENT_S or late:
            sick = dict(slot.report.sick) if slot.report else {}
            logger.error("worker process %d (pid %s) is stuck %s: killed", slot.number, slot.process.pid, sick or "and silent")
            slot.process.kill()
            slot.heard = slot.well = now

    def _ended(self, slot: Slot, code: int) -> None:
        slot.exit_code = code
        slot.suspects |= set(slot.marks.running())
        slot.marks.wipe()
        if self._stopping_since is not None:
            return
        if not self._worked and code in (1, 2):
            self.stop()  # it could not even start, and said why: another try would say the same
            return
        if code == RESTART_ME and time.monotonic() - slot.started > LIVED_S:
            logger.warning("worker process %d made room for another one", slot.number)
            return
        self._died()
        young = time.monotonic() - slot.started < 60
        slot.deaths = slot.deaths + 1 if young else 1
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (slot.deaths - 1))
        slot.exit_code = None  # told now; how the whole ends is said by what is there when it is stopped
        logger.error("worker process %d ended with %s; another one starts in %g s", slot.number, how(code), pause)
        slot.start_at = time.monotonic() + pause

    def _exit_code(self) -> int:
        codes = [slot.exit_code or 0 for slot in self._slots]
        for code in (1, 2, 4):
            if code in codes:
                return code
        return next((1 for code in codes if code not in (0, RESTART_ME, -signal.SIGTERM)), 0)


def _read(connection: Connection, inbox: SimpleQueue[Report]) -> None:
    """In a thread of its own, until the process has ended. *Bites*: a process that is frozen in the middle of a report blocks
    whoever reads it; were that the supervisor, nothing would be reaped or killed any more, this process included."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        return


def how(code: int) -> str:
    """How a process ended, in words; `code`: its exit code, or minus the signal that killed it."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """What is started inside does not hear of Ctrl-C before it says how (`spared_interrupts`): a terminal sends it to all its
    processes. *Bites*: a worker process that is still importing dies of it with exit code 1, and so does the worker."""
    resource_tracker.ensure_running()  # else the first start does that, and unblocks what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spared_interrupts() -> None:
    """For a process that is told by its supervisor when to stop, as the first thing that it does. No SIG_IGN: programs that a handler starts
    would inherit it, and could not be interrupted, not even by the handler."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def await_broker(ask: Callable[[], object], connection: Connection, nothing: Any) -> bool:
    """Waits until `ask` is answered; False: told to stop meanwhile. `nothing`: the metrics of one that has none yet.

    Raises what no waiting mends. *Bites*: a worker that is first started while its broker is away ends with exit code
    1, as one whose user made a mistake, and nobody starts it again.
    """
    answers: SimpleQueue[Exception | None] = SimpleQueue()
    threading.Thread(target=_ask_again, args=(ask, answers), name="streamjobs-broker", daemon=True).start()
    why, told_at = "has not answered yet", -TELL_S
    while True:
        while not answers.empty():
            error = answers.get()
            if error is None:
                return True
            if not may_pass(error):
                raise error
            why = str(error)
            if time.monotonic() - told_at >= TELL_S:
                told_at = time.monotonic()
                logger.warning("waiting for the broker: %s", why)
        try:
            connection.send(Report(nothing, {}, {"broker": why}, suspects_told=False, started=False))
            if connection.poll(REPORT_S / 5):
                return False
        except (EOFError, OSError):
            return False


def may_pass(error: Exception) -> bool:
    """Whether a start that failed with it is worth another try: the broker is away, and may come back."""
    return isinstance(error, BrokerError) and error.retriable


def _ask_again(ask: Callable[[], object], answers: SimpleQueue[Exception | None]) -> None:
    while True:
        try:
            ask()
        except Exception as error:  # noqa: BLE001 (whoever waits for the answer raises it)
            answers.put(error)
            if not may_pass(error):
                return
            time.sleep(ASK_AGAIN_S)
        else:
            answers.put(None)
            return


class Reporting:
    """The child's side of the connection: reports, and hears when to stop; the supervisor's death is a stop, too."""

    def __init__(self, connection: Connection, report: Callable[[], Report], stop: Callable[[], None]) -> None:
        self._connection = connection
        self._report = report
        self._stop = stop
        signal.signal(signal.SIGTERM, lambda *_: stop())

    def run(self, alive: Callable[[], bool]) -> None:
        """Until the process's threads have ended."""
        while alive():
            try:
                self._connection.send(self._report())
                if self._connection.poll(REPORT_S):
                    self._connection.recv()
                    self._stop()
            except (EOFError, OSError):
                self._stop()
                time.sleep(0.05)
        try:
            self._connection.send(self._report())
        except OSError:
            pass
