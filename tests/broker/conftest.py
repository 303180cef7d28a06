"""A world for broker tests: an app with a ledger, its topics, and worker processes, on the real broker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs import App
from streamjobs.broker import Broker
from streamjobs.kafka import KafkaBroker
from tests.support.ledger import Ledger
from tests.support.workers import Worker


class World:
    """One app of its own on the broker; everything it starts is gone with the test."""

    def __init__(self, bootstrap: str, prefix: str, directory: Path, partitions: int, env: dict[str, str]) -> None:
        self.name = prefix
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self.workers: list[Worker] = []
        self.env = {
            "STREAMJOBS_BOOTSTRAP": bootstrap,
            "STREAMJOBS_PROVISION": "auto",
            "STREAMJOBS_SYSTEM_PREFIX": f"{prefix}-sys",
            "STREAMJOBS_WORKER__SESSION_TIMEOUT": "6s",
            "STREAMJOBS_WORKER__TICK": "200ms",
            "LEDGER": str(self.ledger.path),
            "LEDGER_APP": prefix,
            "LEDGER_QUEUE": f"{prefix}-q",
            "LEDGER_PARTITIONS": str(partitions),
            **env,
        }
        self._before = {name: os.environ.get(name) for name in self.env}
        os.environ.update(self.env)
        self.app = self._app()
        from streamjobs import provision

        provision.require(self.app)

    def _app(self) -> App:
        import importlib

        from tests.support import ledger_app

        return importlib.reload(ledger_app).app

    def worker(self, *arguments: str, **env: str) -> Worker:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = Worker({**self.env, **env}, log, *arguments)
        self.workers.append(worker)
        return worker

    def publish_many(self, job_type: str, rows: list[Any], **options: Any) -> list[Any]:
        return self.app.job_types[job_type].options(**options).publish_many(rows)

    def owners(self) -> int:
        """How many members of the main group own partitions."""
        group = self.app.broker.admin().groups([self.app.group]).get(self.app.group)
        return sum(bool(member.assignment) for member in group.members) if group else 0

    def noted(self, what: str) -> list[Any]:
        return [entry["n"] for entry in self.ledger.entries() if entry["what"] == what]

    def starts(self) -> list[Any]:
        return self.noted("start")

    def ends(self) -> list[Any]:
        return self.noted("end")

    def uncommitted_when_killed(self, worker: Worker) -> int:
        """At most so many jobs of a killed worker were started and not committed: two ticks of what it ran, and its slots."""
        entries = self.ledger.entries()
        pids = pids_of(entries, worker)
        last = max((e["at"] for e in entries if e["pid"] in pids), default=0.0)
        return len({e["n"] for e in entries if e["pid"] in pids and e["at"] > last - 1.0})

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.app.close()
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def pids_of(entries: list[dict[str, Any]], worker: Worker) -> set[int]:
    """The processes that are gone: those of killed workers."""
    return {entry["pid"] for entry in entries if not Path(f"/proc/{entry['pid']}").exists()}


@pytest.fixture
def ledger_world(kafka: Broker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """`ledger_world(partitions=8)`: an app, its topics and ledger on the real broker."""
    assert isinstance(kafka, KafkaBroker)
    worlds: list[World] = []

    def build(partitions: int = 4, **env: str) -> World:
        world = World(kafka_bootstrap, prefix, tmp_path, partitions, env)
        worlds.append(world)
        return world

    yield build
    for world in worlds:
        world.close()


@pytest.fixture
def story(kafka: Broker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`story(partitions=4, STREAMJOBS_…="…")`: the app of `tests/support/story_app.py`, its topics and ledger on the real broker."""
    from tests.support.story import Story

    stories: list[Story] = []

    def build(partitions: int = 4, **env: str) -> Story:
        stories.append(Story(kafka_bootstrap, prefix, tmp_path, partitions, env))
        return stories[-1]

    yield build
    for each in stories:
        each.close()


@pytest.fixture(scope="module")
def own_kafka(local_kafka: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A broker that only these tests use, and may kill."""
    cluster = local_kafka.LocalKafka(tmp_path_factory.mktemp("own") / "cluster")
    cluster.start()
    yield cluster
    cluster.destroy()
