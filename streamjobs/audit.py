"""Who ordered what: one record in the audit topic for every order that was carried out or tried."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass

from streamjobs import tables
from streamjobs.core.record import Record, clipped
from streamjobs.deployment import Deployment
from streamjobs.errors import BrokerError


@dataclass(frozen=True, slots=True)
class Entry:
    """An order. `action`: noun and verb (`topic apply`); `count`: how many things it changed."""

    action: str
    target: str
    count: int
    result: str
    reason: str = ""


def actor() -> str:
    """The operating system's name of who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in passwd, as in many containers
        return "unknown"


#: How long an entry is tried to be written.
NOTED_S = 10.0


def record(app: Deployment, entry: Entry, *, who: str = "", timeout: float = NOTED_S) -> str:
    """Appends the entry; returns "" or, when it could not be written in time, a sentence for the one who gave
    the order.

    It never raises for that: the order is already carried out, and an exception would say that it is not.
    """
    value = json.dumps(
        {"who": who or actor(), "when": round(app.clock.now() * 1000), "app": app.name, **_fields(entry)}
    )
    try:
        tables.write_once(app.broker, [Record(app.names.audit, value.encode())], timeout)
    except BrokerError as error:
        return f"this order could not be noted in {app.names.audit}: {error}"
    return ""


def _fields(entry: Entry) -> dict[str, object]:
    return {
        name: clipped(value) if isinstance(value, str) else value for name, value in asdict(entry).items()
    }
