"""Poison: of many running jobs one kills the process, again and again."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs import App, tables
from streamjobs.broker import Broker
from streamjobs.core.control import Desired
from streamjobs.core.record import Meta
from tests.broker.conftest import World
from tests.support import poison_app
from tests.support.workers import Worker, eventually

KILLER = 57


class Poisoned(World):
    """A world whose app has a job that kills."""

    def _app(self) -> App:
        return importlib.reload(poison_app).app

    def worker(self, *arguments: str, **env: str) -> Worker:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = Worker({**self.env, **env}, log, *arguments, app="tests.support.poison_app:app")
        self.workers.append(worker)
        return worker

    def publish(self, bystander: str, killer: str, *, everything: bool) -> None:
        """100 jobs, one of which kills when all of them run."""
        others = [{"n": n} for n in range(100) if n != KILLER]
        types = self.app.job_types
        together = 1 if killer == "killer_process" else 100
        types[bystander].publish_many(others[:KILLER])
        types[killer].publish(n=KILLER, together=together, everything=everything)
        types[bystander].publish_many(others[KILLER:])

    def release(self) -> None:
        """From now on bystanders end."""
        Path(f"{self.ledger.path}.released").touch()

    def kills(self) -> list[dict[str, Any]]:
        return [entry for entry in self.ledger.entries() if entry["n"] == KILLER]

    def first_death(self) -> bool:
        return any(not Path(f"/proc/{entry['pid']}").exists() for entry in self.kills())

    def letters(self) -> list[Meta]:
        (queue,) = self.app.queues()
        topic = self.app.names.dead(queue, self.app.group)
        return [Meta.parse(message.headers()) for message in tables.live(self.app.broker, topic)]

    def suspects(self) -> list[Any]:
        desired = Desired()
        for message in tables.live(self.app.broker, self.app.names.control):
            desired.apply((message.key() or b"").decode(), message.value(), message.offset(), 0.0)
        return desired.suspects(self.app.group)

    def assert_bystanders_were_charged_nothing(self) -> None:
        entries = [entry for entry in self.ledger.entries() if entry["n"] != KILLER]
        assert {entry["n"] for entry in entries if entry["what"] == "end"} == set(range(100)) - {KILLER}
        assert {(entry["run"], entry["attempt"]) for entry in entries} == {(1, 1)}


@pytest.fixture
def world(kafka: Broker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Poisoned]:
    world = Poisoned(kafka_bootstrap, prefix, tmp_path, 2, {})
    yield world
    world.close()


@pytest.mark.parametrize("kind", ["", "_async", "_process"])
def test_the_one_that_kills_its_process_is_convicted(world: Poisoned, kind: str) -> None:  # edge 74
    """
    100 jobs run, one kills the process. Its supervisor knows what ran: each of those runs alone next, and only the one that kills
    again is charged. After three strikes it is a letter; the 99 others completed, with no attempt charged.
    """
    world.publish(f"bystander{kind}", f"killer{kind}", everything=False)
    worker = world.worker("--slots", "100")
    if kind != "_process":  # with two children, all others would wait for them
        eventually(world.first_death, 60, "the first death")
    world.release()
    eventually(world.letters, 120, "a letter")
    eventually(lambda: len(set(world.ends())) == 99, 60, "the bystanders' ends")
    assert worker.stop() == 0

    (letter,) = world.letters()
    runs = [entry["run"] for entry in world.kills()]
    print(f"\n100 jobs, one kills its process ({kind or 'threads'}): killed {len(runs)} times in runs {runs}, strikes {letter.strikes}")
    assert (letter.reason, letter.strikes) == ("poison", 3)
    assert runs == [1, 2, 3] if kind == "_process" else [1, 1, 2, 3]
    world.assert_bystanders_were_charged_nothing()
    assert world.suspects() == []


def test_the_one_that_kills_its_supervisor_too_is_convicted(world: Poisoned) -> None:
    """
    As above, and each time the supervisor dies with the process, so that nobody is left to say what ran. Three owners in a row
    die at one base: then the jobs there run one by one, and the strike that is charged before the start survives all of them.
    """
    world.publish("bystander", "killer", everything=True)
    deaths = 0
    while not world.letters():
        world.worker("--slots", "100")
        eventually(lambda: world.letters() or not world.workers[-1].alive, 120, f"a letter, or death {deaths + 1}")
        deaths += not world.letters()
        if deaths == 3:
            world.release()
        assert deaths <= 10
    eventually(lambda: len(set(world.ends())) == 99, 60, "the bystanders' ends")
    assert world.workers[-1].stop() == 0

    (letter,) = world.letters()
    runs = [entry["run"] for entry in world.kills()]
    bystander_starts = Counter(entry["n"] for entry in world.ledger.entries() if entry["what"] == "start" and entry["n"] != KILLER)
    print(
        f"\n100 jobs, one kills process and supervisor: {deaths} deaths, then a letter with {letter.strikes} strikes; "
        f"bystanders started {min(bystander_starts.values())} to {max(bystander_starts.values())} times"
    )
    assert (letter.reason, letter.strikes) == ("poison", 3)
    assert runs == [1] * 6
    world.assert_bystanders_were_charged_nothing()
