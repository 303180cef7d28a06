"""`expires`: no run begins too late, wherever the job has waited until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App, Backoff, Job, Retry
from streamjobs.testing.app import Testing


def ends(t: Testing) -> dict[str, int]:
    counters = t.process.loops[0].metrics.snapshot().counters
    return {labels[2]: int(count) for (name, labels), count in counters.items() if name == "jobs_completed_total" and count}


@pytest.mark.parametrize("order", ["key", "key_strict", "partition"])
def test_a_job_that_expires_behind_another_one_does_not_begin(order: Any, streamjobs_testing: Callable[[App], Testing]) -> None:
    """It was received in time, and waited in memory for its turn: it ran, however late. Those behind it go on."""
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(key="account", order=order)
    def send(account: str, n: int) -> None:
        ran.append(n)
        if n == 0:
            t.clock.advance(60)

    t = streamjobs_testing(app)
    send.publish(account="a", n=0)
    send.options(expires="7s").publish_many([("a", 1), ("a", 2)])
    send.options(expires="5m").publish(account="a", n=3)
    send.publish(account="a", n=4)
    t.run()

    assert ran == [0, 3, 4]
    assert ends(t) == {"succeeded": 3, "expired": 2}
    assert t.dead_letters() == []


def test_an_async_job_does_not_begin_too_late_either(streamjobs_testing: Callable[[App], Testing]) -> None:
    app = App("shop", partitions=1)
    ran: list[int] = []

    @app.job(order="partition")
    async def send(n: int) -> None:
        ran.append(n)
        t.clock.advance(60)

    t = streamjobs_testing(app)
    send.publish(n=0)
    send.options(expires="7s").publish(n=1)
    t.run()

    assert (ran, ends(t)) == ([0], {"succeeded": 1, "expired": 1})


def test_a_strict_job_does_not_begin_again_in_its_place(streamjobs_testing: Callable[[App], Testing]) -> None:
    app = App("shop", partitions=1)
    ran: list[tuple[str, int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=4, backoff=Backoff.fixed("5s", jitter=0)))
    def send(job: Job, account: str, fails: bool) -> None:
        ran.append((account, job.attempt))
        if fails:
            raise ValueError(account)

    t = streamjobs_testing(app)
    send.options(expires="7s").publish(account="a", fails=True)
    send.publish(account="a", fails=False)
    t.run(raise_errors=False)

    assert ran == [("a", 1), ("a", 2), ("a", 1)]
    assert ends(t) == {"succeeded": 1, "expired": 1}
