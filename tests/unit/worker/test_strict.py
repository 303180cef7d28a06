"""`order="key_strict"`: a head that failed keeps its place, and its key waits (PROTOCOLS §7)."""

from __future__ import annotations

from collections.abc import Callable

from streamjobs import App, Backoff, Job, Retry
from streamjobs.core.offsets import Parked
from streamjobs.testing.app import Testing


def test_a_key_waits_for_a_head_that_comes_later_than_its_failure(streamjobs_testing: Callable[[App], Testing]) -> None:  # edge 51
    """The head fails and is parked; then the next job of its key arrives: it waits until the head has ended.

    What bit: parking cleared the head's error before its lane was looked at, so the lane counted as empty and was dropped.
    """
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=3, backoff=Backoff.fixed("10s")))
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))
        if n == 1 and job.attempt == 1:
            raise ValueError(n)

    t = streamjobs_testing(app)
    book.publish(n=1, account="a")
    t.run(raise_errors=False, through_delays=False)
    book.publish(n=2, account="a")
    book.publish(n=3, account="b")
    t.run(raise_errors=False, through_delays=False)
    assert ran == [(1, 1), (3, 1)]

    t.advance(10)
    t.run()
    assert ran == [(1, 1), (3, 1), (1, 2), (2, 1)]


def test_a_key_goes_on_behind_a_head_that_became_a_letter(streamjobs_testing: Callable[[App], Testing]) -> None:
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(key="account", order="key_strict", retry=Retry(attempts=2, backoff=Backoff.fixed("10s")))
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))
        if n == 1:
            raise ValueError(n)

    t = streamjobs_testing(app)
    book.publish_many([(1, "a"), (2, "a")])
    t.run(raise_errors=False)

    assert ran == [(1, 1), (1, 2), (2, 1)]
    assert [letter.reason for letter in t.dead_letters()] == ["exhausted"]


def test_a_head_that_has_started_keeps_its_place_though_it_is_not_due(streamjobs_testing: Callable[[App], Testing]) -> None:
    """The last owner's clock was ahead: it parked a head that, by this one's, is due in three seconds."""
    app = App("shop", partitions=1)
    ran: list[tuple[int, int]] = []

    @app.job(name="book", queue="books", key="account", order="key_strict")
    def book(job: Job, n: int, account: str) -> None:
        ran.append((n, job.attempt))

    t = streamjobs_testing(app)
    t.run()
    home = t.process.loops[0].poller.partitions["jobs.books", 0]
    home.parked[0] = Parked(0, 1, 2.0)
    book.options(delay="3s").publish(n=1, account="a")
    book.publish(n=2, account="a")
    t.run()
    assert ran == [(1, 2), (2, 1)]
    assert (home.waiting, home.lanes, home.parked) == (0, {}, {})
