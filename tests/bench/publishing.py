"""Publishers under test, each a program that prints what it measured as JSON: `python -m tests.bench.publishing many key2 100000`.

Connection and names come from the environment. Times are taken inside, around the calls that a user makes.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from confluent_kafka import Producer

from streamjobs import JobType
from tests.bench.jobs import QUEUE, app, rows

CHUNK = 10_000
FIRST = 25
#: So many records a topic of 8 partitions has before anything is timed. *Bites* (traced): the first entry in the index of a partition, with
#: the first batch after 4,096 bytes, writes to a mapped file for the first time, and the broker's thread waits 41 ms for its file system.
#: That is once in a segment's life; in a new topic it was all that a percentile showed.
GROWN = 2_000
HEADERS: list[tuple[str, bytes]] = [
    ("ce_type", b"key2"),
    ("ce_id", b"0190f3c2-7b5e-7d1c-9a60-0123456789ab"),
    ("ce_specversion", b"1.0"),
    ("ce_source", b"bench"),
    ("ce_time", b"2026-07-29T12:00:00.000Z"),
    ("content-type", b"application/avro"),
]


def job_type() -> JobType[Any, Any]:
    """Its topics are made if they are not there."""
    from streamjobs import provision

    provision.require(app)
    return app.job_types[QUEUE]


def producer() -> Producer:
    """As safe as ours: every record acknowledged by all, none twice."""
    return Producer({"bootstrap.servers": os.environ["STREAMJOBS_BOOTSTRAP"], "acks": "all", "enable.idempotence": True})


def fill(count: int, size: int = 100) -> None:
    publish, source = job_type().publish_many, rows(QUEUE, count, size)
    while chunk := list(islice(source, CHUNK if size < 1000 else 100)):
        publish(chunk)


def fill_json(count: int, topic: str) -> None:
    """The same arguments as JSON, the same headers: what `bare + decode` reads."""
    client = producer()
    for row in rows(QUEUE, count):
        value = json.dumps({f"field_{number}": field for number, field in enumerate(row)}).encode()
        _produce(client, topic, value, row[0].encode() if QUEUE.startswith(("key", "hot")) else None)
    client.flush()


def fill_delayed(count: int, delay: str) -> None:
    publish, source = job_type().options(delay=delay).publish_many, rows(QUEUE, count)
    while chunk := list(islice(source, CHUNK)):
        publish(chunk)


def many(count: int) -> float:
    """Jobs a second by `publish_many`, the rows given as tuples."""
    publish, given = job_type().publish_many, list(rows(QUEUE, count))
    for at in range(0, GROWN, GROWN // 2):
        publish(given[at : at + GROWN // 2])
    began = time.perf_counter()
    for at in range(0, count, CHUNK):
        publish(given[at : at + CHUNK])
    return count / (time.perf_counter() - began)


def many_bare(count: int, topic: str, encode: str = "") -> float:
    """Records a second by produce with headers and a callback, then flush; `encode`: JSON made of each, else one value for all."""
    client, given, done = producer(), list(rows(QUEUE, count)), [0]
    value = json.dumps(given[0]).encode()

    def delivered(error: Any, message: Any) -> None:
        done[0] += 1

    def send(chunk: list[Any]) -> None:
        made = value
        for row in chunk:
            if encode:
                made = json.dumps(row).encode()
            _produce(client, topic, made, row[0].encode(), delivered)
        client.flush()

    for at in range(0, GROWN, GROWN // 2):
        send(given[at : at + GROWN // 2])
    done[0] = 0
    began = time.perf_counter()
    for at in range(0, count, CHUNK):
        send(given[at : at + CHUNK])
    assert done[0] == count
    return count / (time.perf_counter() - began)


def one(count: int) -> float:
    """Jobs a second by `publish`, each waiting for its acknowledgement."""
    publish, given = job_type().publish, list(rows(QUEUE, count))
    for row in given[:GROWN]:
        publish(*row)
    began = time.perf_counter()
    for row in given:
        publish(*row)
    return count / (time.perf_counter() - began)


def one_bare(count: int, topic: str) -> float:
    """Records a second by produce and flush."""
    client, given = producer(), list(rows(QUEUE, count))
    value = json.dumps(given[0]).encode()

    def send(row: Any) -> None:
        client.produce(topic, value, row[0].encode(), headers=HEADERS)
        client.flush()

    for row in given[:GROWN]:
        send(row)
    began = time.perf_counter()
    for row in given:
        send(row)
    return count / (time.perf_counter() - began)


def pace(count: int, per_second: float) -> None:
    publish = job_type().publish
    _paced(count, per_second, lambda: publish(time.time()))


def pace_bare(count: int, per_second: float, topic: str) -> None:
    client = producer()

    def send() -> None:
        client.produce(topic, struct.pack("<d", time.time()), headers=HEADERS)
        client.flush()

    _paced(count, per_second, send)


def delayed(count: int, delay_s: float, per_second: float) -> None:
    """Jobs due in `delay_s`; each carries the instant at which it is due."""
    options = job_type().options
    _paced(count, per_second, lambda: options(delay=delay_s).publish(time.time() + delay_s))


def _paced(count: int, per_second: float, send: Callable[[], object]) -> None:
    """`FIRST` more than asked for, before: while connections are made and groups and caches settle down, nothing is measured."""
    count += FIRST
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began + number / per_second - time.perf_counter()))
        send()


def _produce(client: Producer, topic: str, value: bytes, key: bytes | None, callback: Any = None) -> None:
    while True:
        try:
            return client.produce(topic, value, key, headers=HEADERS, callback=callback)
        except BufferError:
            client.poll(0.05)


def _read(text: str) -> float | int | str:
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except ValueError:
        return text


if __name__ == "__main__":
    program, _, *given = sys.argv[1:]  # the queue is in the environment
    print(json.dumps(globals()[program](*map(_read, given))))
    app.close()
