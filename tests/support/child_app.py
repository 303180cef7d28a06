"""An app whose jobs run in child processes: what they do there shows in a ledger, or in what becomes of them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

from streamjobs import App, Backoff, Job, Reject, Retry
from tests.support.ledger import Ledger

app = App("children", partitions=1, provision="auto")
ledger = Ledger(os.environ.get("LEDGER", "/dev/null"))
SOON = Retry(attempts=15, backoff=Backoff.fixed("100ms"))


def note(job: Job, what: str, **more: object) -> None:
    ledger.note(what=what, type=job.type, id=job.id, run=job.run, attempt=job.attempt, origin=job.origin, **more)


class TwoArguments(Exception):
    """Pickle can write it, and can't read it: its `args` are not what its `__init__` wants."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class WithLock(Exception):
    """Pickle can't even write it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@app.on_start
def started() -> None:
    ledger.note(what="hook")


@app.job(executor="processes", retry=SOON)
def facts(job: Job, n: int) -> None:
    """What the world looks like in there."""
    note(job, "start", n=n, kafka="confluent_kafka" in sys.modules, method=multiprocessing.get_start_method(allow_none=True),
         parent=os.getppid(), key=job.key, deadline=job.deadline and job.deadline.timestamp())  # fmt: skip
    note(job, "end", n=n)


@app.job(executor="processes", retry=SOON)
def brief(job: Job, n: int) -> None:
    note(job, "end", n=n)


@app.job(executor="processes", retry=SOON)
def dies(job: Job, how: str) -> None:
    note(job, "start", n=how)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "exit well":
        os._exit(0)


@app.job(executor="processes", timeout="300ms", retry=SOON)
def hangs(job: Job, n: int) -> None:
    note(job, "start", n=n)
    threading.Event().wait()


@app.job(executor="processes", retry=SOON)
def forks(job: Job, n: int) -> None:
    """The forked process takes itself for a program that ends here."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(10, os._exit, (9,)).start()
        sys.exit(7)
    note(job, "end", n=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@app.job(executor="processes", retry=SOON)
def raises(job: Job, what: str) -> None:
    if what == "two":
        raise TwoArguments(7, "two arguments")
    if what == "lock":
        raise WithLock("with a lock")
    if what == "local":

        class Local(Exception):
            pass

        raise Local("of a class that nobody can import")
    if what == "reject":
        raise Reject("never")
    if what == "group":
        raise BaseExceptionGroup("of one task", [Reject("in a task")])
    raise ValueError("plain")


@app.job(executor="processes", retry=SOON)
def patient(job: Job, n: int) -> None:
    """Goes on until it is cancelled; says how far it is."""
    note(job, "start", n=n)
    while True:
        job.heartbeat(progress={"at": n})
        time.sleep(0.01)


@app.job(executor="processes", retry=SOON)
def leaves_a_heartbeat(job: Job, n: int) -> None:
    """Its thread goes on when it has ended."""

    def beat() -> None:
        for _ in range(200):
            job.heartbeat({"at": n})
            time.sleep(0.002)

    threading.Thread(target=beat, daemon=True).start()


@app.job(executor="processes", retry=SOON)
def rests(job: Job, n: int) -> None:
    time.sleep(0.1)


@app.job(executor="processes", retry=SOON)
def deaf(job: Job, n: int) -> None:
    """Does not look whether it is cancelled."""
    note(job, "start", n=n)
    while True:
        time.sleep(0.01)


@app.job(retry=SOON)
def plain(job: Job, n: int) -> None:
    """An ordinary job, in a thread as a rule."""
    note(job, "start", n=n)
    note(job, "end", n=n)


@app.job(retry=SOON)
async def plain_async(job: Job, n: int) -> None:
    note(job, "start", n=n)
    note(job, "end", n=n)


@app.job(retry=SOON)
def fails(job: Job, n: int) -> None:
    note(job, "start", n=n)
    raise ValueError("an end that everybody sees")


@app.job(queue="strict", key="key", order="key_strict", executor="processes", retry=SOON)
def dies_in_place(job: Job, key: str, n: int) -> None:
    note(job, "start", n=n)
    if n == 0:
        os._exit(9)
    note(job, "end", n=n)


@app.job(queue="threads", timeout="200ms", retry=Retry(attempts=15, backoff=Backoff.fixed("1h")))
def hangs_in_a_thread(job: Job, n: int) -> None:
    note(job, "start", n=n, deadline=job.deadline and job.deadline.timestamp(), started=job.started_at)
    threading.Event().wait()


@app.job(queue="threads", timeout="200ms", retry=Retry(attempts=15, backoff=Backoff.fixed("1h")))
def hangs_although_cancelled(job: Job, n: int) -> None:
    """It was told before its timeout."""
    job.cancel()
    threading.Event().wait()


@app.job(queue="threads", timeout="200ms", retry=Retry(attempts=15, backoff=Backoff.fixed("1h")))
async def blocks_the_event_loop(job: Job, n: int) -> None:
    threading.Event().wait()


@app.job(queue="threads", retry=SOON)
def takes(job: Job, n: int, ms: int) -> None:
    note(job, "start", n=n)
    time.sleep(ms / 1000)
    note(job, "end", n=n)


@app.job(executor="processes")
def nothing(n: int) -> None:
    """Costs what the way to a child costs."""
