"""Where a job's microseconds go: a consumer that does more and more of what a worker does, in one thread.

`python -m tests.bench.layers TOPIC QUEUE JOBS` prints a JSON object: processor time of the whole process a job (µs), up to and with
each layer. What a worker needs beyond the last one is the way between its threads, and its clocks, ticks and commits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from queue import SimpleQueue
from typing import Any

from confluent_kafka import Consumer, Message

from streamjobs.core.dispatch import Dispatcher, Partition
from streamjobs.core.offsets import Tracker
from streamjobs.worker.executors import Chunk, Gate
from streamjobs.worker.executors.threads import run_chunk
from tests.bench.bare import consumer
from tests.bench.core import Warm

BATCH = 500
Take = Callable[[Sequence[Message]], object]


def main(topic: str, queue: str, jobs: int) -> None:
    group = os.environ["STREAMJOBS_WORKER__GROUP"]
    costs = {}
    for number, (name, take) in enumerate(layers(queue)):
        os.environ["STREAMJOBS_WORKER__GROUP"] = f"{group}-{number}"
        costs[name] = _cost(consumer(topic), take, jobs)
    print(json.dumps(costs))


def layers(queue: str) -> Iterator[tuple[str, Take]]:
    """Each does what the one before it does, and more."""
    work = Work(queue)
    yield "consume(500), dropped", lambda messages: None
    yield "error, value, offset, partition", _fields
    yield "headers, key, timestamp", _headers
    yield "decoded: a job of each", work.decode
    yield "offsets received, in lanes, taken", work.enter
    yield "run: the handler notes its job", work.run
    yield "finished: offsets, events, metrics", work.finish


def _fields(messages: Sequence[Message]) -> None:
    for message in messages:
        message.error(), message.value(), message.offset(), message.partition()


def _headers(messages: Sequence[Message]) -> None:
    for message in messages:
        message.error(), message.value(), message.offset(), message.partition()
        message.headers(), message.key(), message.timestamp()


class Work:
    """The worker's own objects, driven by one thread."""

    def __init__(self, queue: str) -> None:
        world = Warm(queue)
        self._topic = world.home.topic
        self._queue = queue
        self._decode = world.loop.arrivals._decoder.decode_plain
        self._finish = world.loop.outcomes.ended
        self._homes: dict[int, Partition] = {}
        self._results: SimpleQueue[Chunk] = SimpleQueue()
        self._gate = Gate()

    def decode(self, messages: Sequence[Message]) -> list[Any]:
        """Partition by partition, as a batch comes."""
        jobs: list[Any] = []
        began = 0
        for end in range(1, len(messages) + 1):
            if end == len(messages) or messages[end].partition() != messages[began].partition():
                run = messages[began:end]
                jobs += self._decode(run, self._home(run))
                began = end
        return jobs

    def _home(self, run: Sequence[Message]) -> Partition:
        number, first = run[0].partition() or 0, run[0].offset() or 0
        home = self._homes.get(number)
        if home is None or first < home.tracker.position:
            tracker = Tracker(first)
            home = self._homes[number] = Partition(self._topic, number, self._queue, retry=False, topic_id=b"0" * 16, epoch=1, tracker=tracker)
        return home

    def enter(self, messages: Sequence[Message]) -> Iterator[list[Any]]:
        jobs = self.decode(messages)
        for job in jobs:
            job.home.tracker.receive(job.offset)
        dispatcher: Dispatcher[Any] = Dispatcher(["threads"])
        for _, some in groupby(jobs, attrgetter("home")):
            dispatcher.add_all(list(some))
        taken = []
        while ready := dispatcher.take("threads", BATCH):
            taken.append(ready)
            for job in ready:
                while job.next is not None:
                    job = job.next
                dispatcher.stopped(job)
        return iter(taken)

    def run(self, messages: Sequence[Message]) -> list[Chunk]:
        chunks = []
        for some in self.enter(messages):
            run_chunk(Chunk("threads", some, self._results), self._gate)
            chunks.append(self._results.get())
        return chunks

    def finish(self, messages: Sequence[Message]) -> None:
        for chunk in self.run(messages):
            self._finish(chunk.done)


def _cost(client: Consumer, take: Take, jobs: int) -> float:
    """µs a job, from a fifth of the jobs to the last."""
    seen, began, counted = 0, 0.0, 0
    while seen < jobs:
        messages = client.consume(BATCH, 0.1)
        take(messages)
        seen += len(messages)
        if not began and seen >= jobs // 5:
            began, counted = time.process_time(), jobs - seen
    cost = (time.process_time() - began) / counted * 1e6
    client.close()
    return cost


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
