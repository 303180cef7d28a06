"""An answer of the coordinator that does not arrive: the member and the group find each other again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.conftest import World
from tests.support.wire import Wire, gives_partitions, second_listener
from tests.support.workers import answered, eventually


@pytest.fixture
def wired(kafka: Any, local_kafka: Any, tmp_path: Path) -> Iterator[tuple[Any, Wire, str]]:
    """A broker, and a wire that leads to it: its bootstrap. (`kafka` is named so that a run without a real broker says so.)"""
    listens, advertised = local_kafka.free_ports(2)

    class Cluster(local_kafka.LocalKafka):  # type: ignore[misc, name-defined]
        def _write_properties(self, node: Any) -> None:
            super()._write_properties(node)
            with self._properties(node).open("a") as file:
                file.write(second_listener(node, f"127.0.0.1:{listens}", f"127.0.0.1:{advertised}"))

    cluster = Cluster(tmp_path / "cluster")
    cluster.start()
    with Wire(advertised, listens) as wire:
        yield cluster, wire, f"127.0.0.1:{advertised}"
    cluster.destroy()


def test_a_member_that_has_not_heard_what_to_give_up(wired: tuple[Any, Wire, str], prefix: str, tmp_path: Path) -> None:
    """
    A worker has all partitions; another one joins, and the answer that asks the first to give up half of them is lost. *Bites*: the
    client sends its heartbeat again and hears that all is well; the other worker would have nothing for five minutes. And what runs for
    longer than a session while the first leaves to join anew runs once.
    """
    cluster, wire, through_the_wire = wired
    world = World(cluster.bootstrap, prefix, tmp_path, 4, {})
    looks, jobs = itertools.count(), itertools.count()

    def keep_it_busy() -> bool:
        """Every two seconds jobs that run for nine (a session lasts six). Whether both workers have partitions."""
        if next(looks) % 40 == 0:
            for key in range(8):
                world.publish_many("step", [{"n": next(jobs), "ms": 9_000}], key=f"key-{key}")
        return world.owners() == 2

    try:
        first = world.worker(STREAMJOBS_BOOTSTRAP=through_the_wire)
        eventually(lambda: answered(lambda: world.owners() == 1), 60, "the first worker has joined")
        wire.loses = gives_partitions
        world.worker()
        eventually(lambda: wire.lost >= 3, 60, "the answers to its main, retry and timer member are lost")
        wire.loses = lambda _: False
        eventually(keep_it_busy, 90, "both workers have partitions", first.tail)
        assert "leaving the group to join it anew" in first.tail(10_000)
        eventually(lambda: set(world.starts()) == set(world.ends()), 60, "all jobs run")
        starts = world.starts()  # once: some may wait yet, and start between two looks
        assert len(starts) == len(set(starts)), "none runs twice"
    finally:
        world.close()
