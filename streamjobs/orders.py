"""The control topic through the port: the desired state that it holds, and orders that are added to it."""

from __future__ import annotations

from collections.abc import Mapping

from streamjobs import tables
from streamjobs.broker import Broker
from streamjobs.core.control import Desired
from streamjobs.core.record import Record
from streamjobs.core.topics import Names

#: Orders are folded by their offsets, so there is one partition, and it is named even where a broker made
#: more of them.
PARTITION = 0


def read(broker: Broker, names: Names) -> Desired:
    """What the control topic asks for now. Raises BrokerError."""
    desired = Desired()
    limits = {
        tp: limit for tp, limit in tables.bounds(broker, names.control).items() if tp.partition == PARTITION
    }
    for message in tables.changes(broker, limits):
        key = (message.key() or b"").decode("utf-8", "replace")
        desired.apply(key, message.value(), message.offset(), tables.appended(message))
    return desired


def write(broker: Broker, names: Names, orders: Mapping[str, bytes | None]) -> None:
    """Adds orders, or (None) takes them away; returns when all are acknowledged. Raises BrokerError."""
    tables.write_once(broker, [record(names, key, value) for key, value in orders.items()])


def record(names: Names, key: str, value: bytes | None) -> Record:
    """An order to be sent."""
    return Record(names.control, value, key.encode(), partition=PARTITION)
