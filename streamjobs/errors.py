"""Every error that streamjobs raises, in one tree; the class says who is at fault.

::

    StreamjobsError
    ├── UsageError              the caller's code or command
    │   ├── PayloadError        arguments that the job type does not take
    │   ├── JobTypeError        a job type that is declared wrongly, or is not known
    │   └── SettingsError       a setting that is unknown, malformed or contradictory
    ├── PublishError            a job that was not acknowledged by the broker
    ├── DecodeError             a record that can't be read
    │   ├── HeaderError         … because of one of its headers
    │   └── UnknownSchemaError  … because nobody knows its writer's schema
    ├── ProvisionError          a topic or registration that is missing or too small
    ├── ReplayError             dead letters that could not be moved
    └── BrokerError             what the broker, or the way to it, refused

Each message says what happened, why, and what to do. Signals (`Reject`, `Snooze`, …) are not errors: see `job.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


#: Codes of BrokerErrors after which nobody knows whether there is a broker: it does not answer, or its address is wrong.
OUT_OF_REACH = frozenset({"_ALL_BROKERS_DOWN", "_MSG_TIMED_OUT", "_RESOLVE", "_TIMED_OUT", "_TRANSPORT"})


def text_of(thing: object) -> str:
    """What an exception, or anything else of a handler's, says. *Bites*, with `str`: one whose `__str__` fails, in a worker's loop: it ends,
    and so does the next worker's that runs the job."""
    try:
        return str(thing)
    except BaseException as problem:  # noqa: BLE001 (an exception whose text can't be made is still that exception)
        return f"<its text can't be made: {type(problem).__qualname__}>"


class StreamjobsError(Exception):
    """Base of all errors of streamjobs."""


class UsageError(StreamjobsError):
    """The calling code or command is wrong; trying again changes nothing."""


class PayloadError(UsageError):
    """Arguments that the job type does not take. `field` names the first one at fault, if one is."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class JobTypeError(UsageError):
    """A job type that is declared wrongly, declared twice, or is not known to this app."""


class SettingsError(UsageError):
    """A setting that is unknown, malformed or contradicts another one."""


class PublishError(StreamjobsError):
    """A job was not acknowledged by the broker: it may or may not have been stored.

    Of `publish_many`: `receipts` has an item a row, in their order: the receipt of a job that is stored, None for one that is not
    known to be. The last `unsent` rows were not even sent.
    """

    def __init__(self, message: str, *, receipts: Sequence[Any] = (), unsent: int = 0) -> None:
        super().__init__(message)
        self.receipts = receipts
        self.unsent = unsent


class DecodeError(StreamjobsError):
    """A record that can't be read; it becomes a dead letter with reason `undecodable`."""


class HeaderError(DecodeError):
    """A header of a record that is malformed, or out of its range."""


class UnknownSchemaError(DecodeError):
    """A value whose writer's schema nobody knows (yet).

    `transient`: a registry could not be asked; otherwise it was asked and does not know it.
    """

    def __init__(self, message: str, fingerprint: bytes, *, transient: bool = False) -> None:
        super().__init__(message)
        self.fingerprint = fingerprint
        self.transient = transient


class ProvisionError(StreamjobsError):
    """A topic or a registration that a worker needs is missing or unfit."""


class ReplayError(StreamjobsError):
    """Dead letters that could not be moved: their topic is gone, or another replay took over."""


class BrokerError(StreamjobsError):
    """What the broker, or the way to it, refused.

    `code` is Kafka's name of the error (`UNKNOWN_MEMBER_ID`, `_TRANSPORT`; a leading underscore: the client's own).
    `retriable`: the same call may succeed later. `fatal`: the client object is unusable from now on. `abortable`: the transaction in
    which it happened can only be aborted; the next one may succeed.
    """

    def __init__(
        self, code: str, message: str, *, retriable: bool = False, fatal: bool = False, abortable: bool = False
    ) -> None:
        super().__init__(f"{message} ({code})" if message else code)
        self.code = code
        self.retriable = retriable
        self.fatal = fatal
        self.abortable = abortable


def of_ctrl_c(error: BaseException) -> bool:
    """Whether it is Ctrl-C. Inside the Kafka client that comes out as a SystemError: the client returns a result although it was
    interrupted."""
    return isinstance(error.__cause__ if isinstance(error, SystemError) else error, KeyboardInterrupt)
