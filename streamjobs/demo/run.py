"""The demo run: the embedded broker, two worker processes, a few thousand jobs, dead letters, a fix, a replay, a verdict.

It leaves nothing behind, however it ends: the broker lives in this process, files in one temporary directory, and the worker is
stopped (or, if it does not stop, killed with its processes).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from streamjobs import App, provision, tables
from streamjobs.backlog import Backlog, Collector
from streamjobs.broker import Message
from streamjobs.core.record import Meta, Record, origin_of
from streamjobs.core.topics import retry_group, timer_group
from streamjobs.demo import app as sample
from streamjobs.demo import broken, ledger, load, outside, worker
from streamjobs.demo.judge import UNSEEN, Evidence, Letter, judge
from streamjobs.demo.summary import Summary, error_rows, queue_rows, runs_by_process, type_rows
from streamjobs.errors import BrokerError, StreamjobsError
from streamjobs.settings import FILE, FILE_VARIABLE, PREFIX
from streamjobs.telemetry import events

PROCESSES = 2
#: Everything is as it would be in a long-running deployment, only that the steps of the delay ladder are short.
SETTINGS = f"""\
provision = "auto"

[worker]
processes = {PROCESSES}
slots = 4
drain = "5s"
listen = "off"

[delay]
tiers = ["1s", "2s", "5s"]
"""

WAVE_S = 0.125
LOOK_S = 0.25
READY_S, SETTLED_S, STOPPED_S = 60.0, 120.0, 15.0


@dataclass
class State:
    """What there is to see while it runs. Counts by job type."""

    step: str = ""
    published: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    depths: list[int] = field(default_factory=list)
    delayed: int = 0


class Watch(Protocol):
    """Whoever looks on."""

    def say(self, text: str) -> None:
        """A step is over; this is what came of it."""

    def show(self, state: State) -> None:
        """Called several times a second."""


def run(watch: Watch, *, lose: bool = False) -> Summary:
    """The whole run. `lose`: a broken layer loses one job. Raises StreamjobsError if it can't come to an end."""
    with interruptible() as check, ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamjobs-demo-")))
        stack.enter_context(environment(directory))
        return Run(watch, directory, stack, check, lose=lose).play()


class Run:
    """One run; `play` tells the story in order. What must be undone is left with the stack."""

    def __init__(
        self, watch: Watch, directory: Path, stack: ExitStack, check: Callable[[], None], *, lose: bool
    ) -> None:
        self._watch = watch
        self._directory = directory
        self._stack = stack
        self._check = check
        self._lose = lose
        self._began = time.monotonic()
        self._app = sample.app
        self._state = State()
        self._published: dict[str, str] = {}  # job → its type, by the broker's acknowledgement
        self._ledger = ledger.Reader(directory / "ledger")
        self._sampler = Sampler(self._app)

    def play(self) -> Summary:
        self._start_broker()
        self._start_worker()
        self._publish()
        self._wait_until_settled("running, retrying, burying")
        dead = self._letters()
        self._tell_letters(dead)
        replayed = self._fix_and_replay(dead)
        self._wait_until_settled("running what was replayed")
        self._stop_worker()
        return self._summary(dead, replayed)

    # Beginning --------------------------------------------------------------------------------------------------------

    def _start_broker(self) -> None:
        self._app.configure({"bootstrap": "embedded"}, self._directory / FILE)
        self._stack.callback(self._app.close)
        _ = self._app.broker
        applied = provision.require(self._app)
        self._watch.say(f"{len(applied.done)} topics and registrations applied")

    def _start_worker(self) -> None:
        module = (broken if self._lose else sample).__name__
        command = [sys.executable, "-m", worker.__name__, "-A", f"{module}:app"]
        self._state.step = f"starting {PROCESSES} worker processes, which share the partitions"
        self._worker = Worker(command, self._directory / "worker.log")
        self._stack.callback(self._worker.end)
        self._until(self._is_shared, READY_S, "two worker processes share the partitions")
        self._stack.callback(self._sampler.stop)
        self._sampler.start()
        self._watch.say(f"{PROCESSES} worker processes of group {self._app.group} are ready")

    def _is_shared(self) -> bool:
        """Each group has all of its members, and each of these a part of the partitions."""
        group = self._app.group
        wanted = {group: PROCESSES, retry_group(group): PROCESSES, timer_group(self._app.name): 1}
        found = self._app.broker.admin().groups(list(wanted))
        return all(
            sum(bool(member.assignment) for member in found[name].members) == count for name, count in wanted.items()
        )

    # Publishing -------------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._state.step = "publishing"
        began = time.monotonic()
        for number, wave in enumerate(load.waves()):
            self._until(_reached(began + number * WAVE_S), SETTLED_S, "the next wave's turn")
            for job_type, rows in wave:
                receipts = job_type.publish_many(rows)
                self._published |= dict.fromkeys((receipt.id for receipt in receipts), job_type.name)
                self._state.published[job_type.name] += len(receipts)
            if number == load.WAVES // 2:
                self._publish_garbage()
        took_s = time.monotonic() - began
        self._watch.say(f"{sum(self._state.published.values()):,} jobs and 1 record of garbage published in {took_s:.1f} s")

    def _publish_garbage(self) -> None:
        """As a program would that knows nothing of the layer: bytes, and a header that claims a job type."""
        topic = self._app.names.main("images")
        found: list[Message] = []
        producer = self._app.broker.producer()
        try:
            record = Record(topic, load.GARBAGE, headers=[("ce_type", b"make_thumbnail")])
            producer.send(record, lambda error, message: found.append(message) if error is None else None)
            producer.flush(self._app.settings.publish_timeout)
        finally:
            producer.close()
        if not found:
            raise StreamjobsError("the record of garbage was not acknowledged: run the demo again")
        topic_id = self._app.broker.admin().topics([topic])[topic].id
        self._published[origin_of(topic, topic_id, found[0].partition(), found[0].offset())] = ""

    # Waiting ----------------------------------------------------------------------------------------------------------

    def _wait_until_settled(self, step: str) -> None:
        """Until nothing is pending anywhere: in a queue, its retry topic, or the delay ladder."""
        self._state.step = step
        since = time.time()
        self._until(lambda: self._sampler.idle_since(since), SETTLED_S, "all jobs settled")

    def _until(self, fact: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits on a fact and shows how things go meanwhile. Raises StreamjobsError, or KeyboardInterrupt."""
        deadline = time.monotonic() + timeout
        self._check()
        while not fact():
            self._check()
            if not self._worker.alive:
                raise StreamjobsError(f"the worker ended before its time; its log says: {self._worker.last_words}")
            if time.monotonic() > deadline:
                raise StreamjobsError(f"not within {timeout:g} s: {what}; the worker's log says: {self._worker.last_words}")
            self._show()
            time.sleep(0.05)

    def _show(self) -> None:
        state = self._state
        for entry in self._ledger.read():
            state.ended[entry.job_type] += entry.what == "ended"
            state.failed += entry.what == "failed"
        looks = list(self._sampler.looks)
        state.depths = [look.pending for look in looks]
        state.delayed = sum(looks[-1].delayed.values()) if looks else 0
        self._watch.show(state)

    # Letters ----------------------------------------------------------------------------------------------------------

    def _letters(self) -> list[Letter]:
        """The dead letters that stand now, read off their tables."""
        app = self._app
        topics = [app.names.dead(queue, app.group) for queue in app.queues()]
        return [_letter(message) for topic in topics for message in tables.live(app.broker, topic)]

    def _tell_letters(self, dead: list[Letter]) -> None:
        """As `streamjobs dlt stats` would."""
        sorts = Counter(f"{letter.error_type} ({letter.reason})" for letter in dead)
        told = ", ".join(f"{count} × {sort}" for sort, count in sorts.most_common())
        self._watch.say(f"{len(dead)} dead letters: {told}")

    def _fix_and_replay(self, dead: list[Letter]) -> Mapping[str, int]:
        """Deploys the fix, and puts every letter back that was a job once; the answer: how many of each job have gone."""
        self._state.step = "replaying"
        Path(os.environ[outside.FIX]).touch()
        for queue in self._app.queues():
            letters = self._app.dead_letters(queue).where("reason!=undecodable")
            letters.replay(reason="the fix is deployed")
        gone = Counter(letter.job for letter in set(dead) - set(self._letters()))
        self._watch.say(f"fix deployed, {sum(gone.values())} letters replayed, {len(dead) - sum(gone.values())} left")
        return gone

    # Ending -----------------------------------------------------------------------------------------------------------

    def _stop_worker(self) -> None:
        self._state.step = "stopping"
        code = self._worker.stop()
        self._sampler.stop()
        self._show()
        self._watch.say(f"worker stopped, exit code {code}")

    def _summary(self, dead: list[Letter], replayed: Mapping[str, int]) -> Summary:
        self._ledger.read()
        entries = self._ledger.entries
        standing = self._letters()
        verdict = judge(Evidence(self._published, entries, standing, replayed))
        looks = self._sampler.looks
        return Summary(
            jobs=type_rows(self._published, entries, dead, replayed, self._events()),
            errors=error_rows(entries, dead),
            queues=queue_rows(looks),
            peak_delayed=max((sum(look.delayed.values()) for look in looks), default=0),
            standing=len(standing),
            runs_by_process=runs_by_process(entries),
            verdict=verdict,
            took_s=time.monotonic() - self._began,
        )

    def _events(self) -> Iterator[events.Event]:
        broker, topic = self._app.broker, self._app.names.events
        for message in tables.changes(broker, tables.bounds(broker, topic)):
            yield from events.decode(message.value() or b"")


def _reached(instant: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= instant


def _letter(message: Message) -> Letter:
    meta = Meta.parse(message.headers())
    job_type = "" if meta.reason in UNSEEN else meta.job_type
    return Letter(meta.job_id or meta.origin, meta.run, meta.reason, job_type, meta.error_type)


class Worker:
    """`streamjobs worker`, in a session of its own, so that Ctrl-C is left to the demo; it ends when its standard input does."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:]) or "nothing"

    def stop(self) -> int:
        """Lets running jobs end; the exit code. Raises StreamjobsError if the worker does not end."""
        self._process.terminate()
        try:
            return self._process.wait(STOPPED_S)
        except subprocess.TimeoutExpired:
            raise StreamjobsError(f"the worker did not end in {STOPPED_S:g} s; its log says: {self.last_words}") from None

    def end(self, patience: float = STOPPED_S) -> None:
        """Whatever it still does, it and its processes end."""
        if not self.alive:
            return
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Sampler:
    """Looks at the backlog four times a second, in a thread of its own; `looks` has what it saw."""

    def __init__(self, app: App) -> None:
        self.looks: list[Backlog] = []
        self._app = app
        self._idle_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="demo-sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _look(self) -> None:
        collector = Collector(self._app)
        while not self._stop.is_set():
            began = time.time()
            try:
                look = collector.collect()
            except BrokerError:
                continue  # the broker is this process's own: the next look answers, or the run ends
            finally:
                self._stop.wait(LOOK_S)
            self.looks.append(look)
            if not look.pending and not any(look.delayed.values()):
                self._idle_at = began

    def idle_since(self, instant: float) -> bool:
        """Whether a look that began later saw nothing pending anywhere.

        One such look is proof: commits are read before ends, and what a run leads to is appended before its offset is finished.
        So what stood at the ends had been finished, and had led to nothing that was not finished, too.
        """
        return self._idle_at > instant

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


@contextmanager
def environment(directory: Path) -> Iterator[None]:
    """Settings of the demo's own, for this process and those that it starts; nobody's settings get in."""
    (directory / FILE).write_text(SETTINGS)
    before = dict(os.environ)
    for name in before:
        if name.startswith(PREFIX):
            del os.environ[name]
    os.environ[FILE_VARIABLE] = str(directory / FILE)
    os.environ[ledger.LEDGER] = str(directory / "ledger")
    os.environ[outside.FIX] = str(directory / "fixed")
    os.environ[broken.LOSS] = str(directory / "lost")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM and a closed terminal interrupt as Ctrl-C does. Yields what raises KeyboardInterrupt once one of them came.

    It is raised where it is asked for and nowhere else: inside the Kafka client it would come out as a SystemError, and in the
    middle of cleaning up it would leave something behind.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda found, _: came.append(found)) for number in _SIGNALS}

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
