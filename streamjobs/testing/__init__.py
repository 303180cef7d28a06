"""Tests without Kafka: a broker in memory, and a clock that a test moves.

::

    clock = ManualClock()
    broker = MemoryBroker(clock)
    broker.create("jobs.invoices", partitions=4)
    …
    clock.advance(30)
    broker.down()
"""

from streamjobs.testing.app import Testing
from streamjobs.testing.broker import MemoryBroker
from streamjobs.testing.clock import ManualClock
from streamjobs.testing.consumer import MemoryConsumer
from streamjobs.testing.faults import Fault, Operation
from streamjobs.testing.log import MemoryMessage
from streamjobs.testing.producer import MemoryProducer, MemoryTransactionalProducer

__all__ = [
    "Fault",
    "ManualClock",
    "MemoryBroker",
    "MemoryConsumer",
    "MemoryMessage",
    "MemoryProducer",
    "MemoryTransactionalProducer",
    "Operation",
    "Testing",
]
