"""streamjobs: background jobs on Apache Kafka.

The public names, loaded when they are first used: importing this package reads and connects nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.core.retry import Backoff, Retry
    from streamjobs.errors import (
        BrokerError,
        DecodeError,
        JobTypeError,
        PayloadError,
        ProvisionError,
        PublishError,
        ReplayError,
        SettingsError,
        StreamjobsError,
        UsageError,
    )
    from streamjobs.job import Cancel, Crashed, Job, JobCancelled, JobType, Receipt, Reject, RetryAfter, Snooze, Timeout

__version__ = "0.1.0"

_HOME = {
    "streamjobs.app": ("App",),
    "streamjobs.core.retry": ("Backoff", "Retry"),
    "streamjobs.job": ("Cancel", "Crashed", "Job", "JobCancelled", "JobType", "Receipt", "Reject", "RetryAfter", "Snooze", "Timeout"),
    "streamjobs.errors": (
        "BrokerError", "DecodeError", "JobTypeError", "PayloadError", "ProvisionError", "PublishError", "ReplayError",
        "SettingsError", "StreamjobsError", "UsageError",
    ),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "App", "Backoff", "BrokerError", "Cancel", "Crashed", "DecodeError", "Job", "JobCancelled", "JobType", "JobTypeError", "PayloadError",
    "ProvisionError", "PublishError", "Receipt", "Reject", "ReplayError", "Retry", "RetryAfter", "SettingsError", "Snooze",
    "StreamjobsError", "Timeout", "UsageError", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module 'streamjobs' has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
