"""A run: brokers, workers, a publisher and the nemesis; then peace, a wait for facts, the evidence, and the judge."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streamjobs.app import App
from streamjobs.broker import TopicPartition
from streamjobs.core.topics import retry_group, timer_group
from streamjobs.errors import BrokerError
from tests.chaos import evidence
from tests.chaos.checker import Verdict, judge
from tests.chaos.cluster import Brokers
from tests.chaos.history import Handling, History, Journal, Publication, Rule, lines_of, read
from tests.chaos.nemesis import Nemesis, Timeline
from tests.chaos.network import Network, NoNamespace
from tests.chaos.schedule import Act, Needs, kinds_for, plan
from tests.chaos.workers import Crew
from tests.support.workers import ROOT, eventually

FIRST_WORKERS = 4
JOURNALS = ("published.jsonl", "handled.jsonl", "faults.jsonl", "evidence.jsonl")


@dataclass
class Plan:
    """What to do. `brokers` 0: those at `bootstrap`, which are left alone."""

    seed: int
    seconds: float
    directory: Path
    brokers: int = 1
    bootstrap: str = ""
    per_second: float = 40.0
    protocol: str = "auto"
    patience_s: float = 120.0
    say: Callable[[str], None] = print


@dataclass
class Outcome:
    """What came of it. `acts` is the schedule, `notes` what could not be done here."""

    plan: Plan
    acts: list[Act]
    verdict: Verdict
    history: History
    settled_s: float = 0.0
    notes: list[str] = field(default_factory=list)


def run(order: Plan) -> Outcome:
    """Everything that it starts has ended when it returns or raises."""
    shutil.rmtree(order.directory, ignore_errors=True)
    order.directory.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        return _Run(order, stack).all()


class _Run:
    def __init__(self, order: Plan, stack: contextlib.ExitStack) -> None:
        self._order = order
        self._stack = stack
        self._notes: list[str] = []
        self._pace = threading.Event()
        self._network = self._make_network()
        self._brokers, bootstrap = self._start_brokers()
        self._env = self._make_env(bootstrap)
        self._app = stack.enter_context(_app_with(self._env))
        self._journal = Journal(self._path("faults.jsonl"))
        outside = self._brokers.outside if self._brokers else ""
        worker_env = {**self._env, "CHAOS_JOURNAL": str(self._path("handled.jsonl"))}
        self._crew = Crew(worker_env, order.directory, self._journal, self._network, outside)
        stack.callback(self._crew.end_all)

    def _path(self, name: str) -> Path:
        return self._order.directory / name

    def _make_network(self) -> Network | None:
        if not self._order.brokers:
            return None
        try:
            network = Network()
        except NoNamespace as error:
            self._notes.append(f"no network was cut: {error}")
            return None
        self._stack.callback(network.close)
        return network

    def _start_brokers(self) -> tuple[Brokers | None, str]:
        if not self._order.brokers:
            return None, self._order.bootstrap
        host = self._network.host if self._network else ""
        brokers = Brokers(self._path("brokers"), self._order.brokers, host)
        self._stack.callback(brokers.destroy)
        return brokers, brokers.start()

    def _make_env(self, bootstrap: str) -> Mapping[str, str]:
        prefix = f"chaos{os.getpid():x}{int(time.time()) % 100_000}"
        return {
            "CHAOS_APP": prefix,
            "STREAMJOBS_BOOTSTRAP": bootstrap,
            "STREAMJOBS_JOBS_PREFIX": f"{prefix}-jobs",
            "STREAMJOBS_SYSTEM_PREFIX": f"{prefix}-sys",
            "STREAMJOBS_WORKER__PROTOCOL": self._order.protocol,
        }

    def _able(self) -> list[Needs]:
        able: list[Needs] = ["worker"]
        able += ["network"] if self._network else []
        if self._order.brokers:
            able.append("broker" if self._order.brokers == 1 else "three brokers")
        return able

    def all(self) -> Outcome:
        order = self._order
        acts = plan(order.seed, order.seconds, kinds_for(self._able()))
        self._write_rules()
        for _ in range(FIRST_WORKERS):
            self._crew.start()
        with self._publisher():
            self._strike(acts)
        settled_s = self._settle()
        self._dismiss()
        self._collect()
        history = read([self._path(name) for name in JOURNALS])
        return Outcome(order, acts, judge(history), history, settled_s, self._notes)

    def _write_rules(self) -> None:
        from streamjobs import provision

        provision.require(self._app)
        for job_type in self._app.job_types.values():
            self._journal.write(Rule(job_type.name, job_type.order, job_type.retry.attempts))

    @contextlib.contextmanager
    def _publisher(self) -> Iterator[None]:
        order = self._order
        command = [sys.executable, "-m", "tests.chaos.publisher", str(order.seed), str(order.per_second)]
        env = {**os.environ, **self._env, "CHAOS_JOURNAL": str(self._path("published.jsonl"))}
        with self._path("publisher.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
            process.wait()

    def _strike(self, acts: list[Act]) -> None:
        eventually(self._path("handled.jsonl").exists, 60, "a first job runs")
        nemesis = Nemesis(self._crew, self._brokers, self._network, self._journal, self._order.say)
        timeline = Timeline(nemesis, acts)
        while timeline.turn() or timeline.passed_s < self._order.seconds:
            self._crew.watch()
            self._pace.wait(0.05)
        nemesis.rest()

    def _owners(self) -> list[str]:
        """Who holds what, when something is left: which worker to look at."""
        admin = self._app.broker.admin()
        groups = admin.groups([self._app.group, retry_group(self._app.group), timer_group(self._app.name)])
        return [
            f"{name} ({group.state}): {member.id} at {member.host} has {_told(member.assignment)}, should have {_told(member.target)}"
            for name, group in groups.items() for member in group.members
        ]  # fmt: skip

    def _settle(self) -> float:
        """Waits until all that was acknowledged has ended and all is committed; seconds it took."""
        began = time.monotonic()
        progress = Progress(self._app, self._order.directory)
        deadline = began + self._order.patience_s
        while not progress.settled() and time.monotonic() < deadline:
            self._crew.watch()
            self._pace.wait(0.25)
        if not progress.settled():
            self._notes.append(f"not settled within {self._order.patience_s:g} s: {progress.left()}")
            self._notes += self._owners()
        return time.monotonic() - began

    def _dismiss(self) -> None:
        for member in list(self._crew.members):
            self._crew.tell_to_stop(member)
        while not self._crew.gone:
            self._crew.watch()
            self._pace.wait(0.05)

    def _collect(self) -> None:
        journal = Journal(self._path("evidence.jsonl"))
        for record in evidence.stored(self._app):
            journal.write(record)
        groups = (self._app.group, retry_group(self._app.group), timer_group(self._app.name))
        for commit in evidence.commits(self._app.broker, groups):
            journal.write(commit)


@contextlib.contextmanager
def _app_with(env: Mapping[str, str]) -> Iterator[App]:
    """The app under chaos, as seen from here."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    from tests.chaos import app as module

    app = importlib.reload(module).app
    try:
        yield app
    finally:
        app.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _told(partitions: Iterable[TopicPartition] | None) -> str:
    return ", ".join(f"{topic}/{number}" for topic, number in partitions or ()) or "none"


class Progress:
    """How far the jobs have come, from the journals and the dead letters."""

    def __init__(self, app: App, directory: Path) -> None:
        self._app = app
        self._directory = directory
        self._read: dict[str, int] = {}
        self._letters_read: dict[str, dict[TopicPartition, int]] = {}
        self._acknowledged: set[str] = set()
        self._ended: set[str] = set()
        self._lag = -1

    def settled(self) -> bool:
        """Every acknowledged job has ended, and nothing is left to be read or committed."""
        self._look()
        if self._acknowledged - self._ended:
            return False
        self._lag = self._count_lag()
        return self._lag == 0

    def left(self) -> str:
        waiting = sorted(self._acknowledged - self._ended)
        return f"{len(waiting)} jobs ({', '.join(waiting[:5])}), lag {self._lag}"

    def _look(self) -> None:
        for name in JOURNALS[:2]:
            lines, self._read[name] = lines_of(self._directory / name, self._read.get(name, 0))
            for line in lines:
                if isinstance(line, Publication) and line.place is not None:
                    self._acknowledged.add(line.id)
                elif isinstance(line, Handling) and line.what == "succeeded":
                    self._ended.add(line.id)
        with contextlib.suppress(BrokerError):
            for topic, role in evidence.job_topics(self._app).items():
                if role == "dead":
                    place = self._letters_read.setdefault(topic, {})
                    self._ended |= {letter.id for letter in evidence.stored_in(self._app.broker, topic, role, place)}

    def _count_lag(self) -> int:
        """Records of our topics that are not below a committed base; -1: the broker does not answer."""
        app, admin = self._app, self._app.broker.admin()
        groups = {"main": app.group, "retry": retry_group(app.group), "delay": timer_group(app.name)}
        lag = 0
        try:
            for topic, role in evidence.job_topics(app).items():
                if role in groups:
                    partitions = [TopicPartition(topic, n) for n in range(admin.topics([topic])[topic].partitions)]
                    committed = admin.committed(groups[role], partitions)
                    ends = admin.offsets(partitions, "latest")
                    lag += sum(ends[tp] - (committed[tp].offset if tp in committed else 0) for tp in partitions)
        except BrokerError:
            return -1
        return lag
