"""The sample application with a layer that loses one job: what `make demo BREAK=1` runs, to see that the judge finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamjobs import App
from streamjobs.broker import Ack, Admin, Broker, Consumer, GroupProtocol, Isolation, Producer, TransactionalProducer
from streamjobs.core.record import Record
from streamjobs.core.topics import Names
from streamjobs.demo import app as sample

if TYPE_CHECKING:
    from streamjobs.errors import BrokerError

#: Names a file that whoever loses the record creates, so that of all processes one loses one.
LOSS = "DEMO_LOSS"
#: Nobody reads it.
NOWHERE = "demo.nowhere"


class LosingProducer:
    """Sends the first record that is bound for the delay ladder to nowhere; its sender gets an acknowledgement all the same."""

    def __init__(self, producer: Producer, names: Names, flag: Path) -> None:
        self._producer = producer
        self._names = names
        self._flag = flag

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        role = self._names.role(record.topic)
        lost = role is not None and role.kind == "delay" and self._is_first()
        self._producer.send(record._replace(topic=NOWHERE, partition=-1) if lost else record, ack, about, alone=alone)

    def _is_first(self) -> bool:
        try:
            self._flag.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def poll(self, timeout: float = 0.0) -> int:
        return self._producer.poll(timeout)

    def flush(self, timeout: float) -> int:
        return self._producer.flush(timeout)

    def fatal(self) -> BrokerError | None:
        return self._producer.fatal()

    def close(self, timeout: float = 10.0) -> None:
        self._producer.close(timeout)


class LosingBroker:
    """A broker whose producers are losing ones."""

    def __init__(self, broker: Broker, names: Names, flag: Path) -> None:
        self.lacks = broker.lacks
        self._broker = broker
        self._names = names
        self._flag = flag

    def consumer(
        self, group: str | None, *, instance: str | None = None, isolation: Isolation = "read_committed", patient: bool = False
    ) -> Consumer:
        return self._broker.consumer(group, instance=instance, isolation=isolation, patient=patient)

    def producer(self, *, within: float | None = None) -> Producer:
        return LosingProducer(self._broker.producer(within=within), self._names, self._flag)

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        return self._broker.transactional_producer(transactional_id)

    def admin(self) -> Admin:
        return self._broker.admin()

    def protocol(self) -> GroupProtocol:
        return self._broker.protocol()

    def close(self) -> None:
        self._broker.close()


class LosingApp(App):
    """The sample application's jobs, on a losing broker."""

    def __init__(self, of: App, environ: Mapping[str, str], **settings: Any) -> None:
        super().__init__(of.name, **settings)
        self.job_types, self.start_hooks, self.stop_hooks = of.job_types, of.start_hooks, of.stop_hooks
        self._flag = Path(environ.get(LOSS) or os.devnull)

    @property
    def broker(self) -> Broker:
        return LosingBroker(super().broker, self.names, self._flag)


app = LosingApp(sample.app, os.environ)
