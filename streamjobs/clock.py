"""The machine's clock; tests have others (`streamjobs.testing.ManualClock`)."""

from __future__ import annotations

import time


class SystemClock:
    """Implements `core.clock.Clock`."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
