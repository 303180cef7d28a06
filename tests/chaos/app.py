"""The app under chaos: its handlers note every start and end in the journal at CHAOS_JOURNAL.

What a handler does depends on its arguments and on run and attempt alone, so that a repeat does the same again. Of each type most
runs succeed: a type that always fails would open its breaker, and be held.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from streamjobs import App, Backoff, Job, Reject, Retry, Snooze
from streamjobs.worker import execute
from tests.chaos.history import Fault, Handling, Journal, Place

if "CHAOS_JOURNAL" in os.environ:  # not where a test only imports this
    execute.BRIEF = 4  # jobs of half a millisecond, so that some run in their loop's thread on a busy machine, too

app = App(
    os.environ.get("CHAOS_APP", "chaos"),
    provision="auto",
    partitions=6,
    delay={"tiers": ["1s", "4s", "15s"]},
    worker={"session_timeout": "6s", "tick": "200ms", "drain": "8s", "slots": 16},
)
journal = Journal(os.environ.get("CHAOS_JOURNAL", os.devnull))


class Failing(Exception):
    """What a handler here fails with."""


def note(what: str, job: Job) -> None:
    place = Place(job.topic, job.partition, job.offset)
    journal.write(
        Handling(what, time.time(), os.getpid(), job.id, job.type, job.run, job.attempt, job.origin, place, job.key)
    )


def work(job: Job, ms: int, fails: int = 0) -> None:
    """Takes its time, and fails in its first `fails` attempts."""
    note("start", job)
    if ms:
        time.sleep(ms / 1000)
    if job.attempt <= fails:
        note("failed", job)
        raise Failing(f"attempt {job.attempt}")
    note("succeeded", job)


@app.job(queue="plain")
def step(job: Job, ms: int) -> None:
    work(job, ms)


@app.job(queue="plain", retry=Retry(attempts=3, backoff=Backoff.steps("500ms", "3s")))
def shaky(job: Job, ms: int, fails: int) -> None:
    work(job, ms, fails)


@app.job(queue="keyed", key="customer")
def keyed(job: Job, ms: int, customer: str) -> None:
    work(job, ms)


@app.job(queue="brief", key="customer")
def brief(job: Job, ms: int, customer: str) -> None:
    """Takes so little that it runs in its loop's thread, and now and then holds that up."""
    work(job, ms)


@app.job(queue="brief", key="customer")
async def brief_async(job: Job, ms: int, blocks: bool, customer: str) -> None:
    """Takes so little that the event loop's thread turns its loop, and now and then holds that up, or waits."""
    if ms and not blocks:
        note("start", job)
        await asyncio.sleep(ms / 1000)
        note("succeeded", job)
    else:
        work(job, ms)


@app.job(queue="keyed", key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("700ms")))
def strict(job: Job, ms: int, fails: int, account: str) -> None:
    work(job, ms, fails)


@app.job(queue="plain")
def refused(job: Job, no: bool) -> None:
    note("start", job)
    if no:
        note("rejected", job)
        raise Reject("refused")
    note("succeeded", job)


@app.job(queue="plain")
def sleepy(job: Job, snoozes: int) -> None:
    note("start", job)
    if job.run <= snoozes:
        note("snoozed", job)
        raise Snooze("2s")
    note("succeeded", job)


@app.job(queue="plain", retry=Retry(attempts=6, backoff=Backoff.fixed("500ms")))
def toxic(job: Job, deadly: bool) -> None:
    """Kills the process that runs it, as a bug in a C library would."""
    note("start", job)
    if deadly:
        now, pid = time.time(), os.getpid()
        journal.write(Fault("poison", now, now, (pid,), dies=True))
        os.kill(pid, signal.SIGKILL)
    note("succeeded", job)


@app.job(queue="plain")
async def step_async(job: Job, ms: int) -> None:
    note("start", job)
    await asyncio.sleep(ms / 1000)
    note("succeeded", job)


@app.job(queue="plain", timeout="1500ms", retry=Retry(attempts=2, backoff=Backoff.fixed("1s")))
async def tardy(job: Job, forever: bool) -> None:
    note("start", job)
    if forever:
        try:
            await asyncio.sleep(3600)
        finally:
            note("failed", job)
    note("succeeded", job)
