"""Clocks for tests."""

from __future__ import annotations

import time


class ManualClock:
    """A clock that stands still until a test moves it.

    `now()` is seconds since the epoch, `monotonic()` seconds since the clock was made. A `MemoryBroker` with
    a manual clock never blocks: what a real one would wait for has happened or has not.
    """

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Lets time pass. Raises ValueError for a negative number: `jump` sets a wall clock back."""
        if seconds < 0:
            raise ValueError(f"time can't pass by {seconds} s; jump() sets the wall clock back")
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back, as an administrator or NTP does; no time passes."""
        self._now += seconds


class SystemTime:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
