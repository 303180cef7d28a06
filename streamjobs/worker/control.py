"""Control: a thread that follows the control topic, and each loop's own view of what it asks for."""

from __future__ import annotations

import logging
import threading
import time
from queue import SimpleQueue

from streamjobs.broker import Broker, Message, TopicPartition
from streamjobs.core.control import Desired
from streamjobs.core.topics import Names
from streamjobs.errors import BrokerError

logger = logging.getLogger(__name__)

#: A reader that has not heard of its topic for so long makes the worker not ready; the last state stays in force.
STALE_S = 30.0


class View:
    """One loop's desired state: it takes in what the reader has read when the loop asks, on the loop's thread."""

    def __init__(self) -> None:
        self._desired = Desired()
        self._read: SimpleQueue[tuple[str, bytes | None, int, float]] = SimpleQueue()

    def put(self, key: str, value: bytes | None, offset: int, appended: float) -> None:
        self._read.put((key, value, offset, appended))

    def __call__(self) -> Desired:
        while not self._read.empty():
            self._desired.apply(*self._read.get_nowait())
        return self._desired


class ControlReader:
    """Reads the topic to its end in `start`, then follows it; every order goes to every view, in the topic's order."""

    def __init__(self, broker: Broker, names: Names) -> None:
        self._views: list[View] = []
        self._broker = broker
        self._partition = TopicPartition(names.control, 0)
        self._heard = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._consumer = broker.consumer(None, patient=True)

    def view(self) -> View:
        """A view for one more loop; to be asked for before `start`, so that it misses nothing."""
        view = View()
        self._views.append(view)
        return view

    def start(self, timeout: float = 30.0) -> None:
        """Raises BrokerError if the topic can't be read to the end that it has now."""
        self.read_to_end(timeout)
        self._thread = threading.Thread(target=self._follow, name="streamjobs-control", daemon=True)
        self._thread.start()

    def read_to_end(self, timeout: float = 30.0) -> None:
        """Every order that stands now is known when it returns."""
        low, high = self._consumer.log_bounds(self._partition)
        self._consumer.assign({self._partition: low})
        deadline = time.monotonic() + timeout
        while self._consumer.positions([self._partition])[self._partition] < high:
            self._apply(self._consumer.fetch(500, 0.1))
            if time.monotonic() > deadline:
                raise BrokerError("_TIMED_OUT", f"{self._partition.topic} could not be read to its end in {timeout:g} s")
        self._heard = time.monotonic()

    def poll(self, timeout: float = 0.0) -> None:
        """Applies what has arrived since."""
        messages = self._consumer.fetch(500, timeout)
        self._apply(messages)
        faults = self._consumer.faults()
        for _, error in faults:
            logger.warning("reading %s: %s", self._partition.topic, error)
        if not faults:
            self._heard = time.monotonic()

    def _apply(self, messages: list[Message]) -> None:
        for message in messages:
            key = (message.key() or b"").decode("utf-8", "replace")
            for view in self._views:
                view.put(key, message.value(), message.offset(), message.timestamp()[1] / 1000)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.poll(0.5)

    @property
    def stale(self) -> bool:
        return time.monotonic() - self._heard > STALE_S

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._consumer.close()
