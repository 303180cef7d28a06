"""A worker's memory does not grow with what waits on the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.bench.memory import Memory, backlog, delayed

JOBS = 50_000
#: MiB of the process that runs jobs; it takes about 66 with nothing to do.
MOST = 150


@pytest.mark.long
@pytest.mark.parametrize("measure", [backlog, delayed])
def test_memory_stays_bounded(story: Callable[..., Any], measure: Callable[[Any, int], Memory]) -> None:
    """50,000 jobs, run or waiting for an hour: what is read ahead, held and remembered has bounds (`tests/bench/memory.py` has a million)."""
    memory = measure(story(partitions=8), JOBS)
    print(f"\n{memory}")
    assert memory.peak < MOST
