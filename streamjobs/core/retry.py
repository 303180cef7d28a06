"""When a failed job is tried again: pure policy values, the same on every worker and after every restart."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

from streamjobs.core import duration
from streamjobs.core.duration import Duration
from streamjobs.errors import JobTypeError

#: No policy tries more often: beyond it a budget is a typing error, not a wish.
MAX_ATTEMPTS = 10_000
#: No policy waits longer between two attempts.
MAX_WAIT_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after each failed attempt.

    The first waits are listed in `waits_s`; after the list, each is the one before times `factor`, never
    above `max_s`. `jitter` (0 … 1) spreads a wait evenly over ± that share of it, within `max_s`. It is
    drawn from the job's origin and the attempt, so that a redelivered job gets the wait it was given before.

    Make one with `exponential`, `fixed` or `steps`. Raises JobTypeError for values that make no sense.
    """

    waits_s: tuple[float, ...]
    factor: float = 1.0
    max_s: float = MAX_WAIT_S
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not self.waits_s:
            raise JobTypeError(
                "a backoff without a wait: give at least one, such as Backoff.steps('1s', '1m')"
            )
        if not all(0 <= wait <= MAX_WAIT_S for wait in self.waits_s):
            raise JobTypeError(
                f"a backoff waits between 0s and {duration.text(MAX_WAIT_S)}, not {self.waits_s!r} seconds"
            )
        if not 1 <= self.factor <= 100:
            raise JobTypeError(f"a backoff's factor is {self.factor!r}: it must lie between 1 and 100")
        if not 0 <= self.jitter <= 1:
            raise JobTypeError(
                f"a backoff's jitter is {self.jitter!r}: it is a share of the wait, from 0 to 1"
            )
        if not max(self.waits_s) <= self.max_s <= MAX_WAIT_S:
            raise JobTypeError(
                f"a backoff's max is {self.max_s!r} seconds: it must not be shorter than one of its waits,"
                f" nor longer than {duration.text(MAX_WAIT_S)}"
            )

    @classmethod
    def exponential(
        cls, first: Duration = "5s", max: Duration = "1h", factor: float = 2.0, jitter: float = 0.25
    ) -> Backoff:
        """`first`, then each wait `factor` times the one before, up to `max`."""
        return cls((_seconds(first),), factor, _seconds(max), jitter)

    @classmethod
    def fixed(cls, wait: Duration, jitter: float = 0.0) -> Backoff:
        """The same wait after every attempt."""
        return cls.steps(wait, jitter=jitter)

    @classmethod
    def steps(cls, *waits: Duration, jitter: float = 0.0) -> Backoff:
        """These waits one after the other; the last one stays."""
        waits_s = tuple(_seconds(wait) for wait in waits)
        return cls(waits_s, 1.0, max(waits_s, default=0.0), jitter)

    def capped(self, max: Duration) -> Backoff:
        """The same backoff with no wait above `max`: for a job that keeps its key waiting meanwhile."""
        limit = min(_seconds(max), self.max_s)
        return replace(self, waits_s=tuple(min(wait, limit) for wait in self.waits_s), max_s=limit)

    def delay(self, attempt: int, origin: str) -> float:
        """Seconds to wait after the failed `attempt` (from 1), before the next one."""
        wait = self._nominal(attempt)
        low, high = wait * (1 - self.jitter), min(wait * (1 + self.jitter), self.max_s)
        return min(low + (high - low) * _draw(origin, attempt), high) if high > low else wait

    def _nominal(self, attempt: int) -> float:
        beyond = attempt - len(self.waits_s)
        if beyond <= 0:
            return self.waits_s[max(attempt, 1) - 1]
        try:
            return min(self.waits_s[-1] * math.pow(self.factor, beyond), self.max_s)
        except OverflowError:
            return self.max_s if self.waits_s[-1] else 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a job is tried (`attempts`, the first one included) and how long it waits in between.

    The defaults try for about five hours before a job becomes a dead letter. Raises JobTypeError for values
    that make no sense.
    """

    attempts: int = 15
    backoff: Backoff = field(default_factory=Backoff.exponential)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise JobTypeError(f"attempts is {self.attempts!r}: it must be a whole number")
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise JobTypeError(
                f"attempts is {self.attempts}: it must lie between 1 (no retry) and {MAX_ATTEMPTS}"
            )
        if not isinstance(self.backoff, Backoff):
            raise JobTypeError(
                f"backoff is {self.backoff!r}: make one with Backoff.exponential, .fixed or .steps"
            )

    def delay(self, attempt: int, origin: str) -> float | None:
        """Seconds to wait after the failed `attempt` (from 1); None: that was the last one."""
        return self.backoff.delay(attempt, origin) if attempt < self.attempts else None


def _seconds(value: Duration) -> float:
    try:
        return duration.seconds(value)
    except ValueError as error:
        raise JobTypeError(f"a backoff's wait: {error}") from None


def _draw(origin: str, attempt: int) -> float:
    """A number in [0, 1) that only (origin, attempt) decide; neighbours' are as far apart as any."""
    digest = hashlib.blake2b(f"{origin}#{attempt}".encode("utf-8", "replace"), digest_size=7).digest()
    return (int.from_bytes(digest, "big") >> 3) / (1 << 53)
