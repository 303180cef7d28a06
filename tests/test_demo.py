"""`streamjobs demo` as a newcomer runs it: its verdict, what it prints, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs.demo import load
from tests.support.workers import eventually


class Demo:
    """One `streamjobs demo`; its files go into a directory of their own, and its processes carry a mark."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.files = directory / "tmp"
        self.files.mkdir(parents=True)
        self._mark = f"DEMO_MARK={directory}"
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        (directory / "streamjobs.toml").write_text('bootstrap = "nowhere.invalid:1"\nno_such_setting = 1\n')
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamjobs", "demo", *arguments],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "TMPDIR": str(self.files),
                "DEMO_MARK": str(directory),
                "STREAMJOBS_BOOTSTRAP": "nowhere.invalid:1",
            },
            stdout=self._stdout.open("wb"),
            stderr=self._stderr.open("wb"),
        )

    def wait(self, timeout: float = 120.0) -> int:
        return self.process.wait(timeout)

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def processes(self) -> list[int]:
        """Its processes that live, and those that they started."""
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self._has_mark(path)]

    def _has_mark(self, environ: Path) -> bool:
        try:
            return self._mark.encode() in environ.read_bytes().split(b"\0")
        except OSError:
            return False

    def left_behind(self) -> list[object]:
        return [*self.files.iterdir(), *self.processes]

    def end(self) -> None:
        for pid in self.processes:
            os.kill(pid, signal.SIGKILL)


Start = Callable[..., Demo]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path_factory.mktemp("demo"), *arguments))
        return started[-1]

    yield start
    for demo in started:
        demo.end()


@pytest.fixture(scope="module")
def two_runs(start: Start) -> tuple[Demo, Demo]:
    """An honest one and a broken one, side by side; neither minds the other, nor the settings of whoever started them."""
    honest, broken = start("-o", "json"), start("--break")
    honest.wait()
    broken.wait()
    return honest, broken


@pytest.fixture(scope="module")
def told(two_runs: tuple[Demo, Demo]) -> dict[str, Any]:
    honest, _ = two_runs
    assert honest.process.returncode == 0, honest.stderr
    data: dict[str, Any] = json.loads(honest.stdout)
    return data


def test_nothing_is_lost_and_all_is_explained(told: dict[str, Any]) -> None:
    assert told["verdict"] == "lost 0, unexplained 0"
    assert told["lost"] == told["unexplained"] == {}
    assert told["standing"] == 1
    assert told["took_s"] < 60


def test_both_worker_processes_ran_jobs(told: dict[str, Any]) -> None:
    runs = list(told["runs_by_process"].values())

    assert len(runs) == 2
    assert min(runs) > sum(runs) / 5


def test_every_sort_of_job_met_every_fate(told: dict[str, Any]) -> None:
    """Each type has retries and dead letters, which are all replayed and succeed; only the garbage stays a letter."""
    rows = {row["job_type"]: row for row in told["jobs"]}
    garbage = rows.pop(None)

    assert {name: row["published"] for name, row in rows.items()} == load.JOBS
    for row in rows.values():
        assert row["succeeded"] == row["published"]
        assert row["retried"] >= 2 * row["published"] // 25
        assert row["dead"] == row["replayed"] == row["published"] // 50
        assert 0 < row["run_s"]["p50"] <= row["run_s"]["p95"] <= row["run_s"]["p99"]
        assert 0 < row["wait_s"]["p50"] <= row["wait_s"]["p99"]
    assert (garbage["published"], garbage["succeeded"], garbage["dead"], garbage["replayed"]) == (1, 0, 1, 0)


def test_errors_and_depths_are_told(told: dict[str, Any]) -> None:
    errors = {row["error_type"] for row in told["errors"]}
    assert {"UnknownFormat", "EndpointGone", "Reject", "TimeoutError", "DecodeError"} <= errors

    assert {row["queue"] for row in told["queues"]} == {"images", "payments", "webhooks"}
    assert told["peak_delayed"] > 0
    for row in told["queues"]:
        assert row["peak"] > 0
        assert row["pending"][-1] == 0
        assert max(growth or 0 for growth in row["growth"]) > 0 > min(growth or 0 for growth in row["growth"])


def test_a_layer_that_loses_a_job_is_found_out(two_runs: tuple[Demo, Demo]) -> None:
    _, broken = two_runs

    assert broken.process.returncode == 1, broken.stderr
    assert broken.stdout.rstrip().endswith("lost 1, unexplained 0")
    assert "run 1 failed" in broken.stdout
    assert "PUBLISHED" in broken.stdout


def test_steps_are_told_on_stderr(two_runs: tuple[Demo, Demo]) -> None:
    honest, _ = two_runs

    for step in ("embedded broker", "2 worker processes", "3,000 jobs", "61 dead letters", "replayed", "exit code 0"):
        assert step in honest.stderr


def test_nothing_is_left_behind(two_runs: tuple[Demo, Demo]) -> None:
    assert [demo.left_behind() for demo in two_runs] == [[], []]


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, "applied"), (signal.SIGTERM, "published")])
def test_nothing_is_left_behind_when_it_is_interrupted(start: Start, number: int, after: str) -> None:
    demo = start()
    while after not in demo.stderr and demo.process.poll() is None:
        time.sleep(0.02)

    demo.process.send_signal(number)

    assert demo.wait(30) == 130, demo.stderr
    assert demo.left_behind() == []


def test_no_process_is_left_behind_when_it_is_killed(start: Start) -> None:
    """What bit: its worker went on for ever, waiting for a broker that had died with the demo."""
    demo = start()
    eventually(lambda: "2 worker processes" in demo.stderr, 60, "the worker runs")

    demo.process.kill()
    demo.wait(10)

    eventually(lambda: not demo.processes, 10, "its processes are gone")
