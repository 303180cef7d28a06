"""What ours is measured against: loops and publishers straight on confluent_kafka, each a program.

`python -m tests.bench.bare drain TOPIC`; connection and group come from the environment, as for a worker.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from confluent_kafka import Consumer, Message, TopicPartition

from streamjobs.core.offsets import Tracker
from tests.bench.ledger import PEN

BATCH = 500
COMMIT_S = 0.5
Handler = Callable[[bytes], object]
mark = PEN.mark


def consumer(topic: str, queue_backoff_ms: int = 2) -> Consumer:
    """With the client's default of 1000 ms a fast reader waits for a full buffer to be asked again."""
    made = Consumer(
        {
            "bootstrap.servers": os.environ["STREAMJOBS_BOOTSTRAP"],
            "group.id": os.environ["STREAMJOBS_WORKER__GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": queue_backoff_ms,
        }
    )
    made.subscribe([topic])
    return made


class Offsets:
    """The tracked offsets of what a loop reads, committed every half second."""

    def __init__(self, client: Consumer, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._trackers: dict[int, Tracker] = {}
        self._at = time.monotonic()

    def of(self, message: Message) -> Tracker:
        tracker = self._trackers.get(message.partition())
        if tracker is None:
            tracker = self._trackers[message.partition()] = Tracker(message.offset())
        return tracker

    def commit(self) -> None:
        now = time.monotonic()
        if now - self._at >= COMMIT_S and self._trackers:
            self._at = now
            done = [TopicPartition(self._topic, number, tracker.base) for number, tracker in self._trackers.items()]
            self._client.commit(offsets=done, asynchronous=True)


def drain(topic: str, handler: Handler, queue_backoff_ms: int = 2) -> None:
    """The fastest loop there is that loses nothing: batches, a tracker, an asynchronous commit every half second."""
    client = consumer(topic, queue_backoff_ms)
    offsets = Offsets(client, topic)
    of = offsets.of
    while True:
        for message in client.consume(BATCH, 0.1):
            if message.error():
                continue
            tracker, offset = of(message), message.offset()
            tracker.receive(offset)
            handler(message.value())
            tracker.finish(offset)
        offsets.commit()


def untuned(topic: str, handler: Handler) -> None:
    """The same loop as its user first writes it."""
    drain(topic, handler, 1000)


def poll(topic: str, handler: Handler) -> None:
    """One by one: what latency is measured against."""
    client = consumer(topic)
    offsets = Offsets(client, topic)
    while True:
        message = client.poll(0.5)
        if message is not None and not message.error():
            tracker, offset = offsets.of(message), message.offset()
            tracker.receive(offset)
            handler(message.value())
            tracker.finish(offset)
        offsets.commit()


def threads(topic: str, handler: Handler, slots: int = 100) -> None:
    """A loop that hands jobs to threads, one by one."""
    client = consumer(topic)
    offsets = Offsets(client, topic)
    work: SimpleQueue[Message] = SimpleQueue()
    done: SimpleQueue[Message] = SimpleQueue()

    def run() -> None:
        while True:
            message = work.get()
            handler(message.value())
            done.put(message)

    for _ in range(slots):
        threading.Thread(target=run, daemon=True).start()
    out = 0
    while True:
        room = 10 * slots - out
        for message in client.consume(min(BATCH, room), 0.001) if room > 0 else ():
            if not message.error():
                offsets.of(message).receive(message.offset())
                work.put(message)
                out += 1
        while not done.empty():
            message = done.get()
            offsets.of(message).finish(message.offset())
            out -= 1
        if room <= 0:
            time.sleep(0.001)
        offsets.commit()


def no_op(value: bytes) -> None:
    mark()


def decode(value: bytes) -> None:
    json.loads(value)
    mark()


def sleep(value: bytes) -> None:
    time.sleep(0.02)
    mark()


def tell(value: bytes) -> None:
    (at,) = struct.unpack("<d", value[-8:])
    PEN.tell(time.time() - at)


PROGRAMS: dict[str, tuple[Callable[[str, Handler], None], Handler]] = {
    "drain": (drain, no_op),
    "decode": (drain, decode),
    "untuned": (untuned, no_op),
    "poll": (poll, tell),
    "batches": (drain, tell),
    "threads": (threads, sleep),
}

if __name__ == "__main__":
    loop, what = PROGRAMS[sys.argv[1]]
    loop(sys.argv[2], what)
