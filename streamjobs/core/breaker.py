"""The breaker of one job type in one process: a handler that always fails is not fed the whole queue.

    closed ──20 failures in a row, or more than half of 200──▶ open ──30 s, doubling to 5 min──▶ half-open
    half-open: one probe runs. It succeeds ──▶ closed; it fails ──▶ open, for twice as long.

After a worker's death it may open for a type that mostly works: the jobs that are redelivered are those that had not ended, failing ones
first of all. It is left so. Whether a failure is old or new says nothing of whether the next job would fail, and what a needless opening
costs is 30 s: held jobs keep place, run and attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

IN_A_ROW = 20
WINDOW = 200
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 300.0

State = Literal["closed", "open", "half_open"]


@dataclass(slots=True)
class Breaker:
    """What the ends of a type's runs add up to. `Reject`, `Snooze` and `Cancel` are neither success nor failure: not told."""

    state: State = "closed"
    wait_s: float = FIRST_WAIT_S
    changes_at: float = 0.0
    """When an open one becomes half-open; when a half-open one gives up on its probe and lets another one run."""
    _in_a_row: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _failures: int = 0

    @property
    def calm(self) -> bool:
        """Closed, and nothing failed lately: successes need not be told."""
        return self.state == "closed" and not self._failures

    def ended(self, failed: Iterable[bool], now: float) -> None:
        """Takes the ends of runs, in their order."""
        for failure in failed:
            if self.state == "half_open":
                self._probed(failure, now)
            elif self.state == "closed":
                self._count(failure, now)

    def _count(self, failure: bool, now: float) -> None:
        if len(self._recent) == WINDOW:
            self._failures -= self._recent[0]
        self._recent.append(failure)
        self._failures += failure
        self._in_a_row = self._in_a_row + 1 if failure else 0
        if self._in_a_row >= IN_A_ROW or self._failures > WINDOW // 2:
            self._open(FIRST_WAIT_S, now)

    def _open(self, wait_s: float, now: float) -> None:
        self.state = "open"
        self.wait_s = wait_s
        self.changes_at = now + wait_s
        self._recent.clear()
        self._failures = self._in_a_row = 0

    def _probed(self, failure: bool, now: float) -> None:
        if failure:
            self._open(min(LONGEST_WAIT_S, self.wait_s * 2), now)
        else:
            self.state, self.wait_s = "closed", FIRST_WAIT_S

    def probe_due(self, now: float) -> bool:
        """Whether it waits for a job to try."""
        return self.state != "closed" and now >= self.changes_at

    def wants_probe(self, now: float) -> bool:
        """Whether one job of the type may run now, to see; asking moves the state on, so that only one does.

        A probe whose end never comes (its partition left) is given up after as long as it waited for.
        """
        if not self.probe_due(now):
            return False
        self.state = "half_open"
        self.changes_at = now + self.wait_s
        return True
