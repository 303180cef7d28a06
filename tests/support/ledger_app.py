"""The app that broker tests run in worker processes: its handlers note what they do in the ledger at LEDGER."""

from __future__ import annotations

import asyncio
import os
import time

from streamjobs import App, Backoff, Job, Reject, Retry
from tests.support.ledger import Ledger

app = App(
    os.environ.get("LEDGER_APP", "ledger"),
    partitions=int(os.environ.get("LEDGER_PARTITIONS", "8")),
    transactional=os.environ.get("TRANSACTIONAL") == "1",
)
ledger = Ledger(os.environ.get("LEDGER", "/dev/null"))
QUEUE = os.environ.get("LEDGER_QUEUE", "work")


def note(job: Job, what: str, **more: object) -> None:
    ledger.note(what=what, id=job.id, type=job.type, origin=job.origin, run=job.run, attempt=job.attempt, key=job.key, **more)


@app.job(queue=QUEUE, order="none")
def step(job: Job, n: int, ms: int = 0) -> None:
    note(job, "start", n=n)
    if ms:
        time.sleep(ms / 1000)
    note(job, "end", n=n)


@app.job(queue=QUEUE, key="k")
def keyed(job: Job, n: int, k: str, ms: int = 0) -> None:
    note(job, "start", n=n)
    if ms:
        time.sleep(ms / 1000)
    note(job, "end", n=n)


@app.job(queue=QUEUE, order="none")
async def step_async(job: Job, n: int, ms: int = 0) -> None:
    note(job, "start", n=n)
    await asyncio.sleep(ms / 1000)
    note(job, "end", n=n)


@app.job(queue=QUEUE, retry=Retry(attempts=3, backoff=Backoff.fixed("1s")), order="none")
def shaky(job: Job, n: int, fails: int) -> None:
    note(job, "start", n=n)
    if job.attempt <= fails:
        raise ValueError(f"attempt {job.attempt} of {n} fails")
    note(job, "end", n=n)


@app.job(queue=QUEUE, order="none")
def refused(job: Job, n: int) -> None:
    note(job, "start", n=n)
    raise Reject("never")
