"""What events say about jobs: a fold that gives the same answer in any order and however often an event comes.

Events arrive out of order (retry and main loops have their own batches, workers their own partitions) and
twice (a batch that was sent again). So no event is ever "applied to a state": of each run the transition of
the highest rank stands, and a job is what its highest run is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

#: Of two transitions of one run the higher rank stands. One run can end twice: its worker dies after the end
#: and before the commit, and the next owner runs it again. Then the end that leaves more to do wins, because
#: its record exists.
RANKS: dict[str, int] = {
    "held": 1,
    "started": 2,
    "succeeded": 3,
    "expired": 4,
    "cancelled": 5,
    "rejected": 6,
    "dead": 7,
    "snoozed": 8,
    "retried": 9,
    "replayed": 10,
}

Precedence = tuple[int, int, float, str]


class Transition(Protocol):
    """What the fold reads of an event."""

    @property
    def kind(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def run(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def worker(self) -> str: ...


T = TypeVar("T", bound=Transition)


def precedence(event: Transition) -> Precedence:
    """Of two events of one job the one with the greater precedence says what the job is.

    Time decides only between equals (a run that starts a second time, on another worker). Raises KeyError for
    an unknown kind.
    """
    return event.run, RANKS[event.kind], event.at, event.worker


class Projection(Generic[T]):
    """The fold in memory. A store that folds in its own tables asks `precedence` in the same way."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], dict[int, T]] = {}

    def apply(self, event: T) -> bool:
        """Whether this changed anything. A kind that only newer workers know changes nothing."""
        if event.kind not in RANKS:
            return False
        runs = self._runs.setdefault((event.group, event.origin), {})
        known = runs.get(event.run)
        if known is not None and precedence(known) >= precedence(event):
            return False
        runs[event.run] = event
        return True

    def apply_all(self, events: Iterable[T]) -> int:
        """How many of them changed something."""
        return sum(map(self.apply, events))

    def latest(self, group: str, origin: str) -> T | None:
        """The event that says what this job is now; None: no event spoke of it."""
        runs = self._runs.get((group, origin))
        return runs[max(runs)] if runs else None

    def history(self, group: str, origin: str) -> list[T]:
        """One event for each known run, oldest run first."""
        runs = self._runs.get((group, origin), {})
        return [runs[run] for run in sorted(runs)]

    def jobs(self) -> list[T]:
        """The latest event of every job, ordered by (group, origin)."""
        return [runs[max(runs)] for _, runs in sorted(self._runs.items())]
