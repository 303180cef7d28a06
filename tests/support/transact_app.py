"""The transactional app that broker tests run in worker processes: its handlers publish child jobs, fail, and give up."""

from __future__ import annotations

import os
import time

from streamjobs import App, Backoff, Job, Reject, Retry, Snooze
from tests.support.ledger import Ledger

app = App(
    os.environ.get("LEDGER_APP", "ledger"),
    transactional=os.environ.get("TRANSACTIONAL", "1") == "1",
    partitions=int(os.environ.get("LEDGER_PARTITIONS", "4")),
)
ledger = Ledger(os.environ.get("LEDGER", "/dev/null"))
QUEUE = os.environ.get("LEDGER_QUEUE", "work")
QUICKLY = Retry(attempts=5, backoff=Backoff.fixed("100ms"))
DOWN_THE_LADDER = Retry(attempts=5, backoff=Backoff.fixed("6s"))


if os.environ.get("DIE_IN_TRANSACTIONS"):
    from tests.support.dying import die_in_transactions

    die_in_transactions(ledger, float(os.environ["DIE_IN_TRANSACTIONS"]), int(os.environ["DEATHS"]))


def _run(job: Job, n: int, fails: int, children: int, ends: str, ms: int) -> None:
    ledger.note(what="start", n=n, id=job.id, run=job.run)
    if ms:
        time.sleep(ms / 1000)
    child.publish_many([{"parent": n, "run": job.run, "number": number} for number in range(children)])
    if job.run <= fails:
        raise ValueError(f"run {job.run} of {n} fails, and what it published with it")
    if ends == "rejected":
        raise Reject("never")
    if ends == "snoozed" and job.run == fails + 1:
        raise Snooze("100ms")


@app.job(queue=QUEUE, retry=QUICKLY)
def parent(job: Job, n: int, fails: int = 0, children: int = 0, ends: str = "", ms: int = 0) -> None:
    _run(job, n, fails, children, ends, ms)


@app.job(queue=QUEUE, retry=DOWN_THE_LADDER)
def patient(job: Job, n: int, fails: int = 0, children: int = 0, ends: str = "", ms: int = 0) -> None:
    _run(job, n, fails, children, ends, ms)


@app.job(queue=QUEUE, retry=QUICKLY, executor="processes")
def isolated(job: Job, n: int, fails: int = 0, children: int = 0, ends: str = "", ms: int = 0) -> None:
    _run(job, n, fails, children, ends, ms)


@app.job(queue=f"{QUEUE}-children")
def child(parent: int, run: int, number: int) -> None:
    ledger.note(what="child", n=parent, run=run, number=number)
