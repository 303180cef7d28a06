"""The workers under chaos: three to six of them, some in a network of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.chaos.history import Exit, Fault, Journal
from tests.chaos.network import Network
from tests.support.workers import Worker

FEWEST, MOST = 3, 6
#: A worker that was told to stop has this long: its drain of 8 s, and what the supervisor adds.
ENDS_WITHIN_S = 40.0


class Member:
    """One `streamjobs worker`. `busy`: it is frozen, and left alone until it goes on."""

    def __init__(self, number: int, worker: Worker, *, networked: bool) -> None:
        self.number = number
        self.worker = worker
        self.networked = networked
        self.busy = False
        self.told_at = 0.0

    def pids(self) -> tuple[int, ...]:
        """Supervisor and processes."""
        return tuple(_group(self.worker.pid))

    def process(self) -> int | None:
        """A worker process of it; None: it has none at this moment."""
        return next((pid for pid in self.pids() if pid != self.worker.pid and _runs_jobs(pid)), None)


class Crew:
    """Starts workers, tells them to go, and notes how they end."""

    def __init__(self, env: Mapping[str, str], directory: Path, journal: Journal, network: Network | None, outside: str) -> None:
        self.members: list[Member] = []
        self._leaving: list[Member] = []
        self._orphans: list[Member] = []
        self._env = env
        self._directory = directory
        self._journal = journal
        self._network = network
        self._outside = outside
        self._count = 0

    def start(self, *, networked: bool | None = None) -> Member:
        """One more; of each three one is in the other network, if there is one."""
        self._count += 1
        inside = self._network is not None and (self._count % 3 == 2 if networked is None else networked)
        env = {**self._env, **({"STREAMJOBS_BOOTSTRAP": self._outside} if inside else {})}
        log = self._directory / f"worker-{self._count}.log"
        worker = Worker(env, log, app="tests.chaos.app:app", inside=self._network.inside if self._network and inside else ())
        member = Member(self._count, worker, networked=inside)
        self.members.append(member)
        now = time.time()
        self._journal.write(Fault("join", now, now, (worker.pid,), abrupt=False))
        return member

    def free(self) -> list[Member]:
        return [member for member in self.members if not member.busy and member.worker.alive]

    def drop(self, member: Member) -> None:
        """It was killed."""
        self.members.remove(member)

    def orphan(self, member: Member) -> None:
        """Its supervisor was killed: its processes must end by themselves."""
        member.told_at = time.time()
        self.members.remove(member)
        self._orphans.append(member)

    def tell_to_stop(self, member: Member) -> None:
        member.told_at = time.time()
        member.worker.signal(signal.SIGTERM)
        self.members.remove(member)
        self._leaving.append(member)

    def watch(self) -> None:
        """Notes who has ended, who does not end, and replaces who ended by itself."""
        for member in [m for m in self.members if not m.worker.alive]:
            self._note(member, told=False, code=member.worker.wait(1))
            self.members.remove(member)
            self.start(networked=member.networked)
        for member in [m for m in self._leaving if not m.worker.alive]:
            self._note(member, told=True, code=member.worker.wait(1))
            self._leaving.remove(member)
        self._orphans = [member for member in self._orphans if member.pids()]
        for several in (self._leaving, self._orphans):
            for member in [m for m in several if time.time() - m.told_at > ENDS_WITHIN_S]:
                self._note(member, told=True, code=None)
                several.remove(member)
                member.worker.end()

    def _note(self, member: Member, *, told: bool, code: int | None) -> None:
        self._journal.write(Exit(time.time(), member.worker.pid, told, code, member.worker.log.name))

    @property
    def gone(self) -> bool:
        """Nobody is left who was told to go."""
        return not (self._leaving or self._orphans)

    def end_all(self) -> None:
        for member in (*self.members, *self._leaving, *self._orphans):
            member.worker.end()


def _group(leader: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            try:
                if os.getpgid(pid) == leader and not _is_zombie(entry):
                    yield pid
            except (ProcessLookupError, FileNotFoundError):
                continue


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _runs_jobs(pid: int) -> bool:
    """The children of a supervisor are worker processes and Python's own resource tracker."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
