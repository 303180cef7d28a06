"""A program that runs jobs in child processes and does not end as it should: `python -m tests.support.child_program deaf|ends`."""

from __future__ import annotations

import sys

from streamjobs.worker.executors import Gate
from streamjobs.worker.executors.processes import Processes
from tests.support.child_app import app
from tests.unit.worker.jobs import ByHand


def main(how: str) -> None:
    hand = ByHand()
    executor = Processes(1, Gate(), app.in_child())
    job = hand.job(app.job_types["deaf" if how == "deaf" else "brief"], {"n": 1})
    executor.submit(hand.chunk([job]))
    hand.result(timeout=120)  # of a deaf one it never comes


if __name__ == "__main__":
    main(sys.argv[1])
