"""The world outside of the jobs, as unreliable as the real one: which calls fail is decided by numbers, so that it is
the same in every process and every run.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Names a file; once it exists, what was broken works: the fix is deployed.
FIX = "DEMO_FIX"

#: Attempts that fail when a call is flaky.
FLAKY_ATTEMPTS = 2
_FLAKY, _BROKEN = 25, 50


class UnknownFormat(Exception):
    """An image that the decoder can't open."""


class EndpointGone(Exception):
    """A webhook's receiver does not exist any more."""


def flaky(number: int, attempt: int) -> bool:
    """Whether this attempt fails: of one call in 25 the first two do."""
    return number % _FLAKY == 7 and attempt <= FLAKY_ATTEMPTS


def broken(number: int) -> bool:
    """Whether it fails whenever it is tried, until the fix is deployed: one call in 50."""
    return number % _BROKEN == 11 and not _fixed()


def _fixed() -> bool:
    return bool(os.environ.get(FIX)) and Path(os.environ[FIX]).exists()
