"""What becomes of a job: its states, and the one outcome of every end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from streamjobs.core.retry import Retry


class State(str, Enum):
    """Where a job is, as a person sees it. `gone`: its worker is gone; the job will be delivered again."""

    WAITING = "waiting"
    DELAYED = "delayed"
    RETRYING = "retrying"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    GONE = "gone"


#: The legal transitions; the diagram in DESIGN.md is drawn from this table.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.DELAYED, State.CANCELLED, State.EXPIRED, State.DEAD}),
    State.DELAYED: frozenset({State.WAITING, State.RUNNING, State.CANCELLED, State.EXPIRED, State.DEAD}),
    State.RETRYING: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.DEAD}),
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.RETRYING, State.DELAYED, State.DEAD, State.CANCELLED, State.EXPIRED, State.GONE}
    ),
    State.GONE: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.DEAD}),
    State.DEAD: frozenset({State.RETRYING}),
    State.SUCCEEDED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}


class Outcome(str, Enum):
    """How one run ended."""

    SUCCEEDED = "succeeded"
    RETRIED = "retried"
    REJECTED = "rejected"
    DEAD = "dead"
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Reason(str, Enum):
    """Why a job is a dead letter."""

    REJECTED = "rejected"
    EXHAUSTED = "exhausted"
    DISCARDED = "discarded"
    UNDECODABLE = "undecodable"
    SCHEMA_UNKNOWN = "schema_unknown"
    TYPE_UNKNOWN = "type_unknown"
    POISON = "poison"
    TOO_LARGE = "too_large"


FailureKind = Literal["failed", "discarded", "rejected", "cancelled", "snooze", "retry_after", "expired", "poison"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not return: what it asked for, or what its exception was classified as."""

    kind: FailureKind
    reason: str = ""
    delay_s: float = 0.0
    error_type: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The one outcome of a run. `due` (epoch seconds): it runs again then; `letter`: it is a dead letter for that reason.

    Neither: nothing more is written. `run` and `attempt` are those of the record to write.
    """

    outcome: Outcome
    run: int
    attempt: int
    due: float | None = None
    letter: Reason | None = None


def decide(failure: Failure, policy: Retry, *, run: int, attempt: int, origin: str, now: float) -> Settlement:
    """Total: every failure has exactly one settlement."""
    kind = failure.kind
    if kind == "rejected":
        return Settlement(Outcome.REJECTED, run, attempt, letter=Reason.REJECTED)
    if kind == "cancelled":
        return Settlement(Outcome.CANCELLED, run, attempt)
    if kind == "expired":
        return Settlement(Outcome.EXPIRED, run, attempt)
    if kind == "poison":
        return Settlement(Outcome.DEAD, run, attempt, letter=Reason.POISON)
    if kind == "discarded":
        return Settlement(Outcome.DEAD, run, attempt, letter=Reason.DISCARDED)
    if kind == "snooze":
        return Settlement(Outcome.SNOOZED, run + 1, attempt, due=now + failure.delay_s)
    if attempt >= policy.attempts:
        return Settlement(Outcome.DEAD, run, attempt, letter=Reason.EXHAUSTED)
    delay_s = failure.delay_s if kind == "retry_after" else policy.backoff.delay(attempt, origin)
    return Settlement(Outcome.RETRIED, run + 1, attempt + 1, due=now + delay_s)
