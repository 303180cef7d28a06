"""An app with one job that kills whatever runs it, among bystanders."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from streamjobs import App, Backoff, Job, Retry
from tests.support.ledger import Ledger

app = App(os.environ.get("LEDGER_APP", "poison"), partitions=int(os.environ.get("LEDGER_PARTITIONS", "2")))
ledger = Ledger(os.environ.get("LEDGER", "/dev/null"))
QUEUE = os.environ.get("LEDGER_QUEUE", "poison")
#: While this file is missing, bystanders go on.
RELEASED = Path(os.environ.get("LEDGER", "/tmp/none") + ".released")
SOON = Retry(attempts=15, backoff=Backoff.fixed("100ms"))


def note(job: Job, what: str, n: int) -> None:
    ledger.note(what=what, n=n, type=job.type, id=job.id, origin=job.origin, run=job.run, attempt=job.attempt)


@app.job(queue=QUEUE, retry=SOON)
def bystander(job: Job, n: int) -> None:
    note(job, "start", n)
    while not RELEASED.exists():
        time.sleep(0.01)
    note(job, "end", n)


@app.job(queue=QUEUE, retry=SOON)
async def bystander_async(job: Job, n: int) -> None:
    note(job, "start", n)
    while not RELEASED.exists():
        await asyncio.sleep(0.01)
    note(job, "end", n)


@app.job(queue=QUEUE, retry=SOON, executor="processes")
def bystander_process(job: Job, n: int) -> None:
    note(job, "start", n)
    while not RELEASED.exists():
        time.sleep(0.01)
    note(job, "end", n)


@app.job(queue=QUEUE, retry=SOON)
def killer(job: Job, n: int, together: int, everything: bool) -> None:
    """Waits until `together` jobs run in this process, the first time; then kills it, or with it all that the worker is."""
    note(job, "start", n)
    while not enough(together):
        time.sleep(0.01)
    kill(everything)


@app.job(queue=QUEUE, retry=SOON)
async def killer_async(job: Job, n: int, together: int, everything: bool) -> None:
    note(job, "start", n)
    while not enough(together):
        await asyncio.sleep(0.01)
    kill(everything)


@app.job(queue=QUEUE, retry=SOON, executor="processes")
def killer_process(job: Job, n: int, together: int, everything: bool) -> None:
    note(job, "start", n)
    kill(everything)


def enough(together: int) -> bool:
    """Whether so many jobs have been started by this process; asked no more once bystanders end."""
    return RELEASED.exists() or len({entry["n"] for entry in ledger.entries() if entry["pid"] == os.getpid()}) >= together


def kill(everything: bool) -> None:
    if everything:
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
