"""Faults that a test injects into a MemoryBroker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamjobs.errors import BrokerError

Operation = Literal["send", "fetch", "commit", "committed", "transaction", "admin"]

_RETRIABLE_CODES = """
    BROKER_NOT_AVAILABLE CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE
    ILLEGAL_GENERATION FENCED_MEMBER_EPOCH LEADER_NOT_AVAILABLE NETWORK_EXCEPTION NOT_COORDINATOR
    NOT_ENOUGH_REPLICAS NOT_LEADER_FOR_PARTITION REBALANCE_IN_PROGRESS REQUEST_TIMED_OUT STALE_MEMBER_EPOCH
    THROTTLING_QUOTA_EXCEEDED UNRELEASED_INSTANCE_ID UNSTABLE_OFFSET_COMMIT _ALL_BROKERS_DOWN
    _MAX_POLL_EXCEEDED _MSG_TIMED_OUT _PURGE_QUEUE _QUEUE_FULL _TIMED_OUT _TRANSPORT
"""
_RETRIABLE = frozenset(_RETRIABLE_CODES.split())


def broker_error(code: str, message: str = "", *, fatal: bool = False) -> BrokerError:
    """Kafka's error of that name, retriable if Kafka's is. `_FENCED` is always fatal."""
    fatal = fatal or code == "_FENCED"
    return BrokerError(code, message, retriable=code in _RETRIABLE and not fatal, fatal=fatal)


def to_abort(error: BrokerError) -> BrokerError:
    """The same error, as one after which the transaction can only be aborted; a fatal one stays what it is."""
    if error.fatal:
        return error
    return BrokerError(error.code, str(error).removesuffix(f" ({error.code})"), abortable=True)


@dataclass(eq=False, slots=True)
class Fault:
    """An operation that fails: `left` times more (None: until `lift()`), `hits` times so far.

    `applied`: the broker did what it was asked, and only its answer was lost.
    """

    operation: Operation
    error: BrokerError
    topic: str | None = None
    left: int | None = 1
    applied: bool = False
    hits: int = 0

    def lift(self) -> None:
        """Ends the fault."""
        self.left = 0

    def strikes(self, operation: Operation, topic: str | None) -> bool:
        """Whether it hits this call; counts the hit."""
        if operation != self.operation or self.left == 0 or self.topic not in (None, topic):
            return False
        self.hits += 1
        self.left = self.left if self.left is None else self.left - 1
        return True


class Faults:
    """All faults of a broker; the oldest that matches hits."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        self._faults = [standing for standing in self._faults if standing.left != 0] + [fault]
        return fault

    def hit(self, operation: Operation, topic: str | None = None) -> Fault | None:
        return next((fault for fault in self._faults if fault.strikes(operation, topic)), None)

    def strike(self, operation: Operation, *topics: str) -> None:
        """Raises the error of a fault that hits, if one does."""
        for topic in topics or (None,):
            if fault := self.hit(operation, topic):
                raise fault.error
