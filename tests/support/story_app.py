"""An app for stories about trouble: jobs that wait for the test, that fail as asked, and that stop their whole interpreter."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path

from streamjobs import App, Backoff, Job, Reject, Retry, Snooze
from tests.support.ledger import Ledger

app = App(os.environ.get("LEDGER_APP", "story"), partitions=int(os.environ.get("LEDGER_PARTITIONS", "4")))
ledger = Ledger(os.environ.get("LEDGER", "/dev/null"))
QUEUE = os.environ.get("LEDGER_QUEUE", "story")
#: While this file is missing, patient jobs go on.
RELEASED = Path(os.environ.get("LEDGER", "/tmp/none") + ".released")
#: Whoever makes this file first is the one that stops its interpreter.
STOPPED = Path(os.environ.get("LEDGER", "/tmp/none") + ".stopped")
SOON = Retry(attempts=15, backoff=Backoff.fixed("100ms"))


def note(job: Job, what: str, n: int) -> None:
    """With the session of its process, which is that of its worker."""
    ledger.note(what=what, n=n, type=job.type, origin=job.origin, run=job.run, attempt=job.attempt, session=os.getsid(0))


if os.environ.get("HANGS_AT_ITS_END"):

    @app.on_stop
    def hang() -> None:
        time.sleep(1_000)


@app.job(queue=QUEUE, order="none")
def step(job: Job, n: int, ms: float = 0) -> None:
    note(job, "start", n)
    if ms:
        time.sleep(ms / 1000)
    note(job, "end", n)


@app.job(queue=f"{QUEUE}-other", order="none")
def elsewhere(job: Job, n: int, ms: float = 0) -> None:
    """The same on a topic of its own."""
    note(job, "start", n)
    if ms:
        time.sleep(ms / 1000)
    note(job, "end", n)


@app.job(queue=QUEUE, order="none")
async def patient(job: Job, n: int) -> None:
    note(job, "start", n)
    while not RELEASED.exists():
        await asyncio.sleep(0.01)
    note(job, "end", n)


@app.job(queue=QUEUE, retry=SOON, order="none")
def failing(job: Job, n: int, fails: int, ms: float = 0, ballast: str = "") -> None:
    """Fails the first times, each after a while."""
    note(job, "start", n)
    if ms:
        time.sleep(ms / 1000)
    if job.attempt <= fails:
        raise ValueError(f"attempt {job.attempt} of {n} fails")
    note(job, "end", n)


@app.job(queue=QUEUE, order="none")
def snoozing(job: Job, n: int, times: int, ms: float = 0) -> None:
    """Runs again a few times, which is no failure: no breaker holds it."""
    note(job, "start", n)
    if ms:
        time.sleep(ms / 1000)
    if job.run <= times:
        raise Snooze("100ms")
    note(job, "end", n)


@app.job(queue=QUEUE, order="none")
def refused(job: Job, n: int) -> None:
    note(job, "start", n)
    raise Reject("never")


@app.job(queue=QUEUE, retry=SOON, order="none")
def gripping(job: Job, n: int) -> None:
    """The first run keeps the interpreter to itself, as a regular expression or an extension may: no other thread moves."""
    note(job, "start", n)
    if not STOPPED.exists():
        STOPPED.touch()
        ctypes.PyDLL(None).sleep(600)
    note(job, "end", n)


@app.job(queue=QUEUE, order="none")
def silent(n: int) -> None:
    """Leaves no trace, so that a million of them fill no ledger."""
