"""What a clock is. `core/` itself never has one: it takes `now` as an argument."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch; may jump, also backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds since some instant; never goes backwards. For durations and deadlines."""
        ...
