"""librdkafka's log, quieted: through Python's logging, and not the same line every 50 ms while a broker is down."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

#: A line of one kind is written at most once in this many seconds; what was held back is counted in the next one.
INTERVAL = 30.0
#: One set of `[kafka]` keys serves producers and consumers alike: that some apply to only one of them is no news.
IGNORED = ("CONFWARN",)

_NUMBERS = re.compile(r"\d+")


class QuietLog:
    """What librdkafka takes for a logger: it only calls `log`. Never raises (an exception there destroys records)."""

    def __init__(
        self,
        logger: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
    ) -> None:
        self._logger = logger or logging.getLogger("streamjobs.kafka")
        self._clock = clock
        self._interval = interval
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def log(self, level: int, text: str, *values: object) -> None:
        try:
            self._log(level, text % values if values else text)
        except Exception:  # noqa: BLE001 - see the class
            return

    def _log(self, level: int, line: str) -> None:
        if any(name in line for name in IGNORED):
            return
        kind = _NUMBERS.sub("#", line)[:80]
        now = self._clock()
        if now - self._last.get(kind, -self._interval) < self._interval:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return
        if len(self._last) > 1000:
            self._last.clear()
        self._last[kind] = now
        held_back = self._held_back.pop(kind, 0)
        self._logger.log(level, "%s%s", line, f" ({held_back} more like it)" if held_back else "")
