"""Jobs that were read together end together: one look instead of one each, unless something is different about one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App
from streamjobs.core.assignment import Parked
from streamjobs.job import Job
from streamjobs.telemetry.ended import Ended
from streamjobs.telemetry.metrics import merge
from streamjobs.testing.app import Testing


class Lot:
    """Five jobs of one partition, received and not run: they end when and how a test says."""

    def __init__(self, app: App, t: Testing) -> None:
        self.loop: Any = t.process.loops[0]
        self._snapshots = t.process.snapshots
        app.job_types["count"].options(key="one").publish_many([(n,) for n in range(5)])
        messages: list[Any] = []
        while not messages:
            messages = self.loop.poller.fetch(5, 0.01)
        self.home = self.loop.poller.partitions[messages[0].topic(), messages[0].partition()]
        for message in messages:
            assert self.home.tracker.receive(message.offset())
        self.jobs: list[Job] = self.loop.arrivals._decoder.decode_plain(messages, self.home)
        for job in self.jobs:
            job.started_at = job.appended_at

    def end(self) -> None:
        self.loop.outcomes.ended(self.jobs)

    def left(self) -> list[int]:
        """Places of the jobs whose offsets are not finished."""
        return [place for place, job in enumerate(self.jobs) if self.home.tracker.is_open(job.offset)]

    def told(self) -> dict[str, float]:
        """Of each outcome, how often the metrics say."""
        counters = merge(self._snapshots()).counters
        return {labels[-1]: count for (name, labels), count in counters.items() if name == "attempts_total" and count}


@pytest.fixture
def lot(on_memory: Callable[[App], Testing]) -> Lot:
    app = App("shop", partitions=1)

    @app.job(queue="mails", name="count")
    def count(n: int) -> None: ...

    return Lot(app, on_memory(app))


def test_jobs_that_were_read_together_are_settled_as_one(lot: Lot) -> None:
    assert len({id(job.lot) for job in lot.jobs}) == 1 and lot.jobs[0].lot is not None
    lot.end()
    assert lot.left() == [] and lot.told() == {"succeeded": 5}
    assert [job.outcome for job in lot.jobs] == ["succeeded"] * 5 and len(lot.loop.events) == 5


def test_one_lot_is_what_looking_at_each_finds(lot: Lot) -> None:
    """For `Ended`, which need not look then."""
    together, each = Ended(lot.jobs, one_lot=True), Ended(lot.jobs)
    assert (together.alike, together.plain) == (each.alike, each.plain) == ([(lot.jobs[0], 5)], True)


def test_the_end_of_a_job_that_was_settled_as_timed_out_means_nothing(lot: Lot) -> None:
    lot.jobs[2].outcome = "retried"
    lot.end()
    assert lot.left() == [2] and lot.jobs[2].outcome == "retried" and lot.told() == {"succeeded": 4}


def test_ends_mean_nothing_after_the_partition_has_left(lot: Lot) -> None:
    lot.home.epoch = -1
    lot.end()
    assert lot.left() == [0, 1, 2, 3, 4] and lot.told() == {} and lot.jobs[0].outcome == ""


def test_a_job_that_was_parked_is_so_no_more(lot: Lot) -> None:
    lot.home.parked[lot.jobs[3].offset] = Parked(lot.jobs[3].offset, 1, 0.0)
    lot.end()
    assert lot.left() == [] and not lot.home.parked


def test_one_that_failed_is_settled_by_itself(lot: Lot) -> None:
    lot.jobs[1].error = ValueError("no")
    lot.end()
    assert lot.jobs[1].outcome == "retried" and lot.told()["succeeded"] == 4


def test_lists_of_several_lots_are_looked_at_one_by_one(lot: Lot) -> None:
    lot.jobs[4].lot, lot.jobs[4].run = object(), 7
    lot.end()
    assert lot.left() == [] and lot.told() == {"succeeded": 5}
    assert [run for (_, _, _, run, _) in lot.loop.events._gathered[-1].shapes] == [1, 7]


def test_a_strict_job_that_runs_again_is_of_no_lot_any_more(on_memory: Callable[[App], Testing]) -> None:
    """Else its second run would be told of as the first of those behind it."""
    app = App("shop", partitions=1)
    lots: list[object] = []

    @app.job(queue="mails", name="count", key="of", order="key_strict")
    def count(of: str, job: Job) -> None:
        lots.append(job.lot)
        if job.run == 1:
            raise ValueError("again")

    t = on_memory(app)
    count.publish("one")
    t.run(raise_errors=False)
    t.advance(60)
    t.run(raise_errors=False)
    first, second = lots
    assert first is not None and second is None
