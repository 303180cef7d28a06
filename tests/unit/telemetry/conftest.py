"""Jobs as telemetry sees them: values that satisfy `FinishedJob` and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from streamjobs.core.record import Meta


@dataclass(frozen=True)
class FakeType:
    name: str = "send_invoice"


@dataclass(frozen=True)
class FakeHome:
    topic: str = "jobs.invoices"
    queue: str = "invoices"
    number: int = 3
    topic_id: bytes = bytes.fromhex("1f2e3d4c")
    retry: bool = False


@dataclass
class FakeJob:
    raw_id: bytes = b"inv-7"
    outcome: str = "succeeded"
    offset: int = 70012
    run: int = 1
    attempt: int = 1
    started_at: float = 1000.5
    duration_s: float = 0.25
    wait_s: float = 0.125
    job_type: FakeType = field(default_factory=FakeType)
    home: FakeHome = field(default_factory=FakeHome)
    meta: Meta | None = None
    first_appended_at: float = 1000.0
    error_type: str = ""
    error_message: str = ""
    reason: str = ""
    due_again: float = 0.0


@pytest.fixture
def job() -> Callable[..., FakeJob]:
    """Makes a job; `type=` and `queue=` are short for what they stand in."""

    def make(type: str = "send_invoice", queue: str = "invoices", **fields: object) -> FakeJob:
        home = FakeHome(topic=f"jobs.{queue}", queue=queue)
        return FakeJob(**{"job_type": FakeType(type), "home": home, **fields})  # type: ignore[arg-type]

    return make
