"""Recycling: when a worker process should end so that another one begins in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from streamjobs.job import Job

#: How often a process looks at itself.
LOOK_S = 0.25
#: A job that runs for so many times its timeout is not waited for any longer.
HANGS = 2.0


def why_recycle(zombies: Sequence[Job], now: float, limit: int, rss: int, max_rss: int) -> str | None:
    """The reason, or None. `zombies`: jobs that run in threads past their timeouts; `limit`: so many are too many; `rss`, `max_rss`:
    bytes (0: no limit)."""
    if len(zombies) >= limit:
        return f"{len(zombies)} threads run jobs that are past their timeouts"
    for job in zombies:
        if now - job.started_at > HANGS * (job.job_type.timeout_s or 0.0):
            return f"{job!r} runs for more than {HANGS:g} times its timeout"
    if max_rss and rss > max_rss:
        return f"it has {rss:,} bytes of memory, more than max_rss ({max_rss:,})"
    return None


def resident() -> int:
    """Bytes of memory that this process has now; 0: unknown here."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
