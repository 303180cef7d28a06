"""What transactions cost: `python -m tests.bench.transact [JOBS] [ROUNDS]` drains the same backlogs with and without them, in turn.

Needs a broker: STREAMJOBS_TEST_BOOTSTRAP, or localhost:9092. Prints jobs/s (medians) and their ratio; each run is a process of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from streamjobs import App, Backoff, Job, Retry

BOOTSTRAP = os.environ.get("STREAMJOBS_TEST_BOOTSTRAP", "localhost:9092")
SLICE = 10_000
KINDS = ("no-op", "1 in 20 fails once", "each has a child")


def app_of(name: str, *, transactional: bool) -> App:
    app = App(
        name,
        transactional=transactional,
        bootstrap=BOOTSTRAP,
        provision="auto",
        system_prefix=f"{name}-sys",
        jobs_prefix=f"{name}-jobs",
        **{"worker.listen": "off", "log.level": "error"},
    )

    @app.job(name="noop", queue="work")
    def noop(number: int, text: str) -> None:
        """Nothing."""

    @app.job(name="shaky", queue="work", retry=Retry(backoff=Backoff.fixed("10ms")))
    def shaky(job: Job, number: int, text: str) -> None:
        if number % 20 == 0 and job.run == 1:
            raise ValueError("the first run of this one fails")

    @app.job(name="parent", queue="work")
    def parent(number: int, text: str) -> None:
        noop_of_children.publish(number=number, text=text)

    @app.job(name="child", queue="children")
    def noop_of_children(number: int, text: str) -> None:
        """Nothing."""

    return app


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for kind in KINDS:
        rates: dict[bool, list[float]] = {False: [], True: []}
        count = jobs if kind == KINDS[0] else jobs // 4 if kind == KINDS[1] else jobs // 40
        for _ in range(rounds):
            for transactional in (False, True):
                rates[transactional].append(run(kind, count, transactional=transactional))
        plain, with_transactions = (statistics.median(rates[mode]) for mode in (False, True))
        print(
            f"{kind:<20} {count:>7,} jobs: default {plain:>9,.0f}/s, transactional {with_transactions:>9,.0f}/s, "
            f"ratio {with_transactions / plain:.2f}",
            flush=True,
        )


def run(kind: str, count: int, *, transactional: bool) -> float:
    """Jobs a second of one worker process that finds a backlog."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    arguments = [sys.executable, "-m", "tests.bench.transact", "--drain", name, kind, str(count), str(int(transactional))]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def drain(name: str, kind: str, count: int, transactional: bool) -> float:
    from streamjobs import provision

    app = app_of(name, transactional=transactional)
    provision.require(app)
    job_type: Any = app.job_types[("noop", "shaky", "parent")[KINDS.index(kind)]]
    for first in range(0, count, SLICE):
        numbers = range(first, min(count, first + SLICE))
        job_type.publish_many([{"number": number, "text": f"number {number}"} for number in numbers])
    ends = count + (count // 20 if kind == KINDS[1] else count if kind == KINDS[2] else 0)
    process = app.process()
    process.start()
    finished: Callable[[], int] = lambda: sum(loop.finished for loop in process.loops)
    while not finished():
        time.sleep(0.001)
    began = time.perf_counter()
    while finished() < ends:
        time.sleep(0.005)
    took = time.perf_counter() - began
    process.stop()
    process.join(30)
    app.close()
    return count / took


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drain"]:
        _, _, NAME, KIND, COUNT, MODE = sys.argv
        print(drain(NAME, KIND, int(COUNT), MODE == "1"))
        sys.stdout.flush()
        os._exit(0)
    main()
