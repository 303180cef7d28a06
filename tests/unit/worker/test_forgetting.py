"""A job that is over takes no room any more: not when the garbage collector comes, but at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamjobs import App, Retry
from streamjobs.job import Job
from streamjobs.testing.app import Testing

OnMemory = Callable[[App], Testing]
ONCE, TWICE = Retry(attempts=1), Retry(attempts=2)


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Nothing is told (a record of the log would keep the error, and its frames), and nothing is collected."""
    logging.disable()
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


@pytest.fixture
def on_memory(on_memory: OnMemory) -> OnMemory:
    """As a worker, which keeps no errors to be raised in a test."""

    def build(app: App) -> Testing:
        t = on_memory(app)
        for loop in t.process.loops:
            loop.outcomes._shared.errors = None
        return t

    return build


def jobs_alive() -> int:
    return sum(isinstance(thing, Job) for thing in gc.get_objects())


def fail(n: int) -> None:
    try:
        raise KeyError(n)
    except KeyError as error:
        raise ExceptionGroup("two", [ValueError(n), LookupError(n)]) from error


@pytest.mark.parametrize("retry", [ONCE, TWICE], ids=["dead", "retried"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "aio"])
def test_a_failed_job_is_gone_once_it_is_settled(on_memory: OnMemory, retry: Retry, asynchronous: bool) -> None:
    app = App("shop", partitions=1)
    buried = []

    if asynchronous:

        @app.job(queue="mails", name="mail", retry=retry)
        async def awaited(job: Job, n: int) -> None:
            fail(n)
    else:

        @app.job(queue="mails", name="mail", retry=retry)
        def called(job: Job, n: int) -> None:
            fail(n)

    @app.on_dead
    def note(job: Job, reason: str) -> None:
        assert job.error is not None and job.error.__traceback__ is not None, "a hook may look at it"
        buried.append(job.id)

    t = on_memory(app)
    before = jobs_alive()
    app.job_types["mail"].publish_many([(n,) for n in range(8)])
    t.run()

    assert len(buried) == 8
    assert jobs_alive() - before <= 1, "the last one may be at hand still"


def test_a_strict_job_that_keeps_its_place_lets_its_last_error_go(on_memory: OnMemory) -> None:
    app = App("shop", partitions=1)
    errors: list[Any] = []

    @app.job(queue="mails", key="n", order="key_strict", retry=Retry(attempts=3))
    def mail(n: int) -> None:
        error = ValueError(n)
        errors.append(error)
        raise error

    t = on_memory(app)
    mail.publish(n=1)
    t.run()

    assert len(errors) == 3
    assert [error.__traceback__ for error in errors] == [None] * 3
