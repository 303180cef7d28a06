"""The world of a story: the app of `story_app` on a broker, and what is there to be read of it."""

from __future__ import annotations

import importlib
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streamjobs import App
from streamjobs.broker import Message, TopicPartition
from streamjobs.core.offsets import Mark, decode
from streamjobs.telemetry.events import Event
from streamjobs.telemetry.events import decode as decode_events
from tests.broker.conftest import World
from tests.support import story_app
from tests.support.workers import Worker


class Story(World):
    """A world whose jobs wait, fail and hang as the test wants it."""

    def _app(self) -> App:
        return importlib.reload(story_app).app

    def worker(self, *arguments: str, **env: str) -> Worker:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = Worker({**self.env, **env}, log, *arguments, app="tests.support.story_app:app")
        self.workers.append(worker)
        return worker

    @property
    def queue(self) -> str:
        return f"{self.name}-q"

    @property
    def main(self) -> str:
        return self.app.names.main(self.queue)

    @property
    def retry(self) -> str:
        return self.app.names.retry(self.queue, self.app.group)

    @property
    def dead(self) -> str:
        return self.app.names.dead(self.queue, self.app.group)

    def count(self, what: str) -> int:
        """How many entries of this kind there are: of a ledger that grows by thousands a second."""
        return self.ledger.path.read_bytes().count(f'"what": "{what}"'.encode()) if self.ledger.path.exists() else 0

    def spread(self, job_type: str, rows: list[Any], keys: int = 32) -> None:
        """Publishes over all partitions; jobs without a key go into one after the other."""
        for number in range(keys):
            self.publish_many(job_type, rows[number::keys], key=f"key-{number}")

    def entries_of(self, worker: Worker) -> list[dict[str, Any]]:
        """What this worker's jobs noted, whether it lives or not."""
        return [entry for entry in self.ledger.entries() if entry["session"] == worker.pid]

    def release(self) -> None:
        """From now on patient jobs end."""
        Path(f"{self.ledger.path}.released").touch()

    def committed(self, topic: str = "", partition: int = 0) -> tuple[int, Mark | None]:
        """Base and map of the main group's commit there."""
        tp = TopicPartition(topic or self.main, partition)
        commit = self.app.broker.admin().committed(self.app.group, [tp]).get(tp)
        return (0, None) if commit is None else (commit.offset, decode(commit.offset, commit.metadata))

    def finished(self, topic: str = "", partition: int = 0) -> set[int]:
        """The offsets that the group has committed as finished, one by one."""
        base, mark = self.committed(topic, partition)
        return {*range(base), *(mark.finished if mark else ())}

    def members(self) -> list[tuple[TopicPartition, ...]]:
        """What each member of the main group owns."""
        group = self.app.broker.admin().groups([self.app.group]).get(self.app.group)
        return [member.assignment for member in group.members] if group else []

    def records(self, topic: str) -> list[Message]:
        """All that can be read of a topic now."""
        return list(records(self.app, topic))

    def events(self) -> list[Event]:
        return [event for message in self.records(self.app.names.events) for event in decode_events(message.value() or b"")]


def records(app: App, topic: str) -> Iterator[Message]:
    admin = app.broker.admin()
    known = admin.topics([topic])
    if topic not in known:
        return
    tps = [TopicPartition(topic, number) for number in range(known[topic].partitions)]
    ends = admin.offsets(tps, "latest")
    starts = admin.offsets(tps, "earliest")
    reader = app.broker.consumer(None)
    try:
        reader.assign(starts)
        while any(position < ends[tp] for tp, position in reader.positions(tps).items()):
            yield from (m for m in reader.fetch(10_000, 0.2) if m.offset() < ends[TopicPartition(m.topic(), m.partition())])
    finally:
        reader.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def probe(port: int, page: str) -> tuple[int, dict[str, str]]:
    """Status and reasons of `/healthz` or `/readyz`; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.status, json.load(answer)["reasons"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["reasons"]
    except OSError:
        return 0, {}


def processes_of(worker: Worker, *, directly: bool = False) -> list[int]:
    """The worker's processes that live: its session; `directly`: those that its supervisor started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(path)
        if fields and int(fields[1 if directly else 3]) == worker.pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def cpu_s(worker: Worker) -> float:
    """Processor time that its processes have used."""
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in processes_of(worker) if (fields := _stat(Path(f"/proc/{pid}/stat"))))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes hold together, shared pages counted for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def _stat(path: Path) -> list[str]:
    """The fields behind the command's name: state, parent, group, session, …"""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def partition_of(entry: dict[str, Any]) -> int:
    return int(entry["origin"].split("/")[-2])
