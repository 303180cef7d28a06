"""A client belongs to the process that made it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.support.workers import ROOT


def test_a_forked_child_publishes_with_clients_of_its_own(story: Callable[..., Any]) -> None:  # edge 75
    """
    A web server loads its app, publishes, and forks. What bit: the child had a producer of its own, but asked the parent's admin
    client, whose threads it does not have, for the partitions of a topic, and waited for ever; and it crashed when it exited.
    """
    world = story(partitions=2)

    command, env = [sys.executable, "-m", "tests.support.forking"], {**os.environ, **world.env}
    ran = subprocess.run(command, cwd=ROOT, env=env, timeout=60, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    stored = [record for topic in (world.main, world.app.names.main(f"{world.queue}-other")) for record in world.records(topic)]
    assert len(stored) == 4
