"""The publisher: a process that publishes a seeded mix of jobs until it is told to stop, and notes what it was told of each.

    python -m tests.chaos.publisher SEED JOBS_PER_SECOND
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from streamjobs.errors import PublishError
from tests.chaos.app import app, journal
from tests.chaos.history import Place, Publication

THREADS = 4
#: How many of a hundred jobs have each type.
MIX = {
    "step": 15, "keyed": 13, "brief": 12, "brief_async": 12, "shaky": 12, "strict": 10, "step_async": 10,
    "sleepy": 5, "refused": 5, "tardy": 3, "delayed": 3, "toxic": 0.15,
}  # fmt: skip


def arguments(kind: str, rng: random.Random) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(job type, arguments, options) of one more job."""
    return MAKERS[kind](rng)


def _ms(rng: random.Random) -> int:
    """Most jobs are short, one of a hundred is not."""
    return rng.randint(2_000, 4_000) if rng.random() < 0.01 else rng.randint(0, 30)


def _brief_ms(rng: random.Random) -> int:
    return rng.randint(30, 1_000) if rng.random() < 0.01 else 0


def _fails(rng: random.Random) -> int:
    return rng.choices([0, 1, 2, 99], [76, 12, 6, 6])[0]


def _customer(rng: random.Random, prefix: str) -> str:
    """A hot one, and many others."""
    return f"{prefix}{0 if rng.random() < 0.3 else rng.randint(1, 40)}"


def _delayed(rng: random.Random) -> tuple[str, dict[str, Any], dict[str, Any]]:
    kind = rng.choice(["step", "keyed", "shaky"])
    job_type, values, _ = MAKERS[kind](rng)
    return job_type, values, {"delay": rng.uniform(0.2, 25)}


MAKERS: dict[str, Callable[[random.Random], tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "step": lambda rng: ("step", {"ms": _ms(rng)}, {}),
    "keyed": lambda rng: ("keyed", {"ms": _ms(rng), "customer": _customer(rng, "c")}, {}),
    "brief": lambda rng: ("brief", {"ms": _brief_ms(rng), "customer": _customer(rng, "b")}, {}),
    "brief_async": lambda rng: ("brief_async", {"ms": _brief_ms(rng), "blocks": rng.random() < 0.5, "customer": _customer(rng, "d")}, {}),
    "shaky": lambda rng: ("shaky", {"ms": rng.randint(0, 20), "fails": _fails(rng)}, {}),
    "strict": lambda rng: ("strict", {"ms": rng.randint(0, 20), "fails": _fails(rng), "account": _customer(rng, "a")}, {}),
    "step_async": lambda rng: ("step_async", {"ms": _ms(rng)}, {}),
    "sleepy": lambda rng: ("sleepy", {"snoozes": rng.choice([0, 0, 1, 2])}, {}),
    "refused": lambda rng: ("refused", {"no": rng.random() < 0.3}, {}),
    "tardy": lambda rng: ("tardy", {"forever": rng.random() < 0.25}, {}),
    "toxic": lambda rng: ("toxic", {"deadly": rng.random() < 0.5}, {}),
    "delayed": _delayed,
}


def publish(number: int, rng: random.Random) -> None:
    (kind,) = rng.choices(list(MIX), list(MIX.values()))
    job_type, values, options = arguments(kind, rng)
    job_id = f"{job_type}-{number}"
    try:
        receipt = app.job_types[job_type].publish_arguments(values, id=job_id, **options)
    except PublishError as error:
        journal.write(Publication(job_id, job_type, time.time(), error=str(error)[:200]))
    else:
        journal.write(Publication(job_id, job_type, time.time(), Place(receipt.topic, receipt.partition, receipt.offset)))


def keep_publishing(thread: int, seed: int, per_second: float, stop: threading.Event) -> None:
    """Keeps its pace where it can; what an outage held up is not made up for."""
    rng = random.Random(f"{seed}/{thread}")
    number = thread
    while not stop.wait(rng.expovariate(per_second)):
        publish(number, rng)
        number += THREADS


def main(seed: int, per_second: float) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threads = [
        threading.Thread(target=keep_publishing, args=(thread, seed, per_second / THREADS, stop)) for thread in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    app.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
