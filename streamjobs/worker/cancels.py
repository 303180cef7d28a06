"""Cancel orders that come after their jobs were admitted: what waits ends without a start, what runs is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from streamjobs.core.control import Desired
from streamjobs.core.dispatch import Dispatcher, Entry
from streamjobs.job import Job
from streamjobs.worker.execute import Execution
from streamjobs.worker.sleepers import Sleepers


class Cancels:
    """Looks through the jobs of one loop when an order has come. One owner: the loop's thread.

    `heads`: at least one entry of each lane, from which all that has not ended is reached by `next`, and the jobs that have no lane.
    """

    def __init__(
        self,
        app: str,
        desired: Callable[[], Desired],
        now: Callable[[], float],
        *,
        dispatcher: Dispatcher[Job],
        sleepers: Sleepers[Entry],
        execution: Execution,
        heads: Callable[[], Iterable[Entry | None]],
        returned: Callable[[Sequence[Job]], None],
    ) -> None:
        self._app = app
        self._desired = desired
        self._now = now
        self._dispatcher = dispatcher
        self._sleepers = sleepers
        self._execution = execution
        self._heads = heads
        self._returned = returned
        self._seen = -1

    def obey(self) -> None:
        """Costs a comparison while no order comes."""
        desired = self._desired()
        if desired.offset == self._seen:
            return
        ids = desired.cancelled_since(self._seen, self._app)
        self._seen = desired.offset
        reached = [job for job in self._jobs() if job.id in ids and self._is_meant(job, desired)] if ids else []
        for job in reached:
            job.cancel()
        if reached:
            self._end()

    def _jobs(self) -> Iterator[Job]:
        for entry in self._heads():
            while entry is not None:
                if isinstance(entry, Job) and not entry.outcome:
                    yield entry
                entry = entry.next

    def _is_meant(self, job: Job, desired: Desired) -> bool:
        return desired.cancelled(self._app, job.id, job.first_appended_at, self._now()) is not None

    def _end(self) -> None:
        """Those that are first of their lanes, at once; those behind them when their turn comes, by the gate that every start passes.

        What executors have not begun is called back first: a child process has a whole list in hand, and asks no gate there.
        """
        self._execution.recall()
        self._sleepers.hasten(_is_cancelled)
        self._sleepers.wake()
        while cancelled := self._dispatcher.withdraw(_is_cancelled):
            self._returned(cancelled)


def _is_cancelled(entry: Entry) -> bool:
    return isinstance(entry, Job) and entry.asked_to_stop
