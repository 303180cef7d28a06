"""Jobs that were read together end together: one look instead of one each, unless something is different about one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App
from streamjobs.core.assignment import Parked
from streamjobs.core.dispatch import Partition
from streamjobs.core.offsets import Tracker
from streamjobs.job import Job
from streamjobs.telemetry.ended import Ended
from streamjobs.telemetry.metrics import merge
from streamjobs.testing.app import Testing
from streamjobs.worker.outcomes import _lots


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
    together, each = Ended(lot.jobs, [(lot.jobs[0], 5)]), Ended(lot.jobs)
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


def test_the_end_of_one_lot_and_the_beginning_of_another_are_still_looked_at_together(lot: Lot) -> None:
    """A batch has both where it goes on with the next partition."""
    for job in lot.jobs[3:]:
        job.lot = lot
    first, _, _, other, _ = lot.jobs
    assert _lots(lot.jobs) == [(first, 3), (other, 2)]
    lot.end()
    assert lot.left() == [] and lot.told() == {"succeeded": 5}


@pytest.mark.parametrize("lots", ["aabaa", "ababa", "abbaa", "abaab", "aabbc", "abccc", "abbcb"])
def test_lots_in_any_other_order_are_not(lot: Lot, lots: str) -> None:
    for job, of in zip(lot.jobs, lots, strict=True):
        job.lot = of
    assert _lots(lot.jobs) == []
    lot.end()
    assert lot.left() == [] and lot.told() == {"succeeded": 5}


def test_the_second_of_two_lots_may_have_lost_its_partition(lot: Lot) -> None:
    left = Partition("jobs.mails", 7, "mails", retry=False, topic_id=b"", epoch=-1, tracker=Tracker(0))
    for job in lot.jobs[3:]:
        job.lot, job.home = lot, left
    lot.end()
    assert lot.left() == [3, 4] and lot.told() == {"succeeded": 3} and lot.jobs[4].outcome == ""


def test_lists_of_several_runs_are_looked_at_one_by_one(lot: Lot) -> None:
    for place, run in ((3, 5), (4, 7)):
        lot.jobs[place].lot, lot.jobs[place].run = None, run
    lot.end()
    assert lot.left() == [] and lot.told() == {"succeeded": 5}
    assert [run for (_, _, _, run, _) in lot.loop.events._gathered[-1].shapes] == [1, 5, 7]


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
