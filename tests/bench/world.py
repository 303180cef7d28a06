"""What a benchmark runs in: a broker of its own, and the processes that it measures, started as a user starts them."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka.admin import AdminClient, NewTopic

from tests.bench.ledger import VARIABLE, Ledger

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What a process and its children have used so far; `rss`, `pss`: MiB now, `cpu_s`: since their start."""

    cpu_s: float
    rss: float
    pss: float


class Running:
    """A program under test, in a session of its own, and the ledger of what it ran."""

    def __init__(self, command: list[str], env: Mapping[str, str], tree: Path, ledger: Ledger, log: Path) -> None:
        self.ledger = ledger
        self.log = log
        self.began = time.perf_counter()
        self.sent = 0  # jobs that were published for it, where somebody counts them
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, cwd=tree, env=dict(env), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def wait(self, count: int, timeout: float = PATIENCE_S) -> float:
        """Waits until so many jobs ended; returns when (perf_counter)."""
        deadline = time.perf_counter() + timeout
        while self.ledger.count() < count:
            if time.perf_counter() > deadline or self._process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.ledger.count()} of {count} jobs ran within {timeout:g} s; the log ends:\n{tail}")
            time.sleep(0.002)
        return time.perf_counter()

    def pids(self) -> list[int]:
        found, left = [], [self._process.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
        return found

    def usage(self) -> Usage:
        return _added([_usage(pid) for pid in self.pids()])

    def usages(self) -> list[Usage]:
        """One for each process, parents first."""
        return [_usage(pid) for pid in self.pids()]

    def peak_rss(self) -> float:
        """MiB that the largest of its processes had at most."""
        return max(_status(pid, "VmHWM") for pid in self.pids())

    def stop(self) -> None:
        """As a user does: what runs may end, partitions are handed over."""
        self._process.terminate()
        self._process.wait(40)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


class Drained(NamedTuple):
    """How fast a backlog went, from a fifth of its jobs to the last."""

    rate: float
    cpu_us: float
    """Processor time of all its processes and their threads per job."""
    peak_mib: float


class World:
    """One broker and a directory; names that no other run of it has."""

    def __init__(self, bootstrap: str, directory: Path, tree: Path = ROOT) -> None:
        self.bootstrap = bootstrap
        self.tree = tree
        self._directory = directory
        self._numbers = itertools.count(1)
        self._run = uuid.uuid4().hex[:6]
        self._admin = AdminClient({"bootstrap.servers": bootstrap})

    def prefix(self, name: str) -> str:
        """A prefix for topics that begins anew: nothing lies in them."""
        return f"{name}{next(self._numbers)}-{self._run}"

    def environment(self, queue: str, prefix: str, **more: Any) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMJOBS_", "BENCH_"))}
        ours = {
            "bootstrap": self.bootstrap,
            "jobs_prefix": f"{prefix}.jobs",
            "system_prefix": f"{prefix}.system",
            "history": "1h",
            "worker__listen": "127.0.0.1:0",
            **more,
        }
        return kept | {"BENCH_QUEUE": queue} | {_variable(name): str(value) for name, value in ours.items()}

    @contextlib.contextmanager
    def worker(self, queue: str, prefix: str, *arguments: str, tree: Path | None = None, **settings: Any) -> Iterator[Running]:
        """`streamjobs worker` with a new group, which begins at the start of the queue. Settings as in the environment."""
        group = f"g{next(self._numbers)}-{self._run}"
        command = [sys.executable, "-m", "streamjobs", "worker", "-A", "tests.bench.jobs:app", queue, *arguments]
        env = self.environment(queue, prefix, **{"worker__group": group, **settings})
        with self._running(command, env, tree or self.tree) as running:
            yield running
        self._forget([f"{prefix}.jobs.{queue}.{group}.retry", f"{prefix}.jobs.{queue}.{group}.dlt"], group)

    @contextlib.contextmanager
    def bare(self, program: str, topic: str) -> Iterator[Running]:
        """A program of `tests.bench.bare` with a new group."""
        env = self.environment("", "bare", worker__group=f"g{next(self._numbers)}-{self._run}")
        with self._running([sys.executable, "-m", "tests.bench.bare", program, topic], env, self.tree) as running:
            yield running

    @contextlib.contextmanager
    def _running(self, command: list[str], env: dict[str, str], tree: Path) -> Iterator[Running]:
        number = next(self._numbers)
        ledger = Ledger(self._directory / f"{number}.ledger")
        running = Running(command, env | {VARIABLE: str(ledger.path)}, tree, ledger, self._directory / f"{number}.log")
        try:
            yield running
        finally:
            running.end()
            ledger.path.unlink()

    def layers(self, topic: str, queue: str, count: int) -> dict[str, float]:
        """What `tests.bench.layers` answers."""
        ledger = Ledger(self._directory / "layers.ledger")
        env = self.environment("", "layers", worker__group=f"g{next(self._numbers)}-{self._run}") | {VARIABLE: str(ledger.path)}
        found: dict[str, float] = self._answer_of("layers", topic, queue, count, env=env)
        return found

    def look(self, prefix: str, queues: int) -> dict[str, float]:
        """What `tests.bench.monitoring` answers."""
        found: dict[str, float] = self._answer_of("monitoring", queues, env=self.environment("", prefix, partitions=1))
        return found

    def publish(self, program: str, queue: str, prefix: str, count: int, *arguments: object, tree: Path | None = None, **settings: Any) -> Any:
        """What a program of `tests.bench.publishing` answers."""
        env = self.environment(queue, prefix, **settings)
        return self._answer_of("publishing", program, queue, count, *arguments, env=env, tree=tree)

    def _answer_of(self, module: str, *arguments: object, env: Mapping[str, str], tree: Path | None = None) -> Any:
        """The last line that a program of this package prints, which is JSON."""
        command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
        done = subprocess.run(command, cwd=tree or self.tree, env=env, stdout=subprocess.PIPE, check=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    def fill(self, queue: str, prefix: str, count: int, **settings: Any) -> str:
        """Puts so many jobs into a new queue; returns its topic."""
        self.publish("fill", queue, prefix, count, **settings)
        return f"{prefix}.jobs.{queue}"

    def create(self, topic: str, partitions: int) -> str:
        for future in self._admin.create_topics([NewTopic(topic, partitions)]).values():
            future.result()
        return topic

    def delete(self, prefix: str) -> None:
        """All topics that begin so."""
        self._forget([topic for topic in self._admin.list_topics(timeout=10).topics if topic.startswith(f"{prefix}.")])

    def _forget(self, topics: list[str], group: str = "") -> None:
        existing = self._admin.list_topics(timeout=10).topics
        if gone := [topic for topic in topics if topic in existing]:
            for future in self._admin.delete_topics(gone).values():
                future.result()


def drained(running: Running, count: int, skipped: int = 0) -> Drained:
    """Measured from outside: the ledger is looked at every 2 ms. What is skipped (a fifth) runs while fetching gets under way."""
    running.wait(skipped or count // 5)
    first, began, before = running.ledger.count(), time.perf_counter(), running.usage()
    ended = running.wait(count)
    after = running.usage()
    jobs = count - first
    return Drained(jobs / (ended - began), (after.cpu_s - before.cpu_s) / jobs * 1e6, running.peak_rss())


@contextlib.contextmanager
def world(bootstrap: str | None) -> Iterator[World]:
    """On the broker given, or one of its own, which is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="streamjobs-bench-"))
    try:
        if bootstrap:
            yield World(bootstrap, directory)
            return
        cluster = _local_kafka().LocalKafka(directory / "kafka", heap="2g")
        try:
            yield World(cluster.start(), directory)
        finally:
            cluster.destroy()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _local_kafka() -> Any:
    spec = importlib.util.spec_from_file_location("local_kafka", ROOT / "deploy/kafka/local.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _variable(name: str) -> str:
    return name.upper() if name.startswith("bench_") else f"STREAMJOBS_{name.upper()}"


def _usage(pid: int) -> Usage:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pss = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    except OSError:
        return Usage(0.0, 0.0, 0.0)
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, _status(pid, "VmRSS"), int(pss.split()[1]) / 1024)


def _status(pid: int, name: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _added(usages: list[Usage]) -> Usage:
    return Usage(*map(sum, zip(*usages)))
