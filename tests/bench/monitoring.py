"""A look at many queues, as a program that prints what it took as JSON: `python -m tests.bench.monitoring 1000`.

One partition a queue, one job in each, none finished. Connection and names come from the environment.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from streamjobs import App, provision
from streamjobs.backlog import Collector
from streamjobs.core.record import Record


def main(queues: int) -> None:
    app = App("monitored")
    for number in range(queues):
        app.job(queue=f"q{number}", name=f"job{number}")(nothing)
    provision.apply(app, provision.plan(app))
    producer = app.broker.producer()
    for number in range(queues):
        producer.send(Record(app.names.main(f"q{number}"), b"\0", headers=[("ce_type", f"job{number}".encode())]))
    assert not producer.flush(60)
    collector = Collector(app)
    first, *others = [_looked(collector, queues) for _ in range(4)]
    print(json.dumps({"first": first, "again": statistics.median(others)}))
    app.close()


def nothing(number: int) -> None: ...


def _looked(collector: Collector, queues: int) -> float:
    began = time.perf_counter()
    found = collector.collect()
    took_s = time.perf_counter() - began
    assert found.pending == queues, found.pending
    assert all(lag.oldest_s is not None for lag in found.queues)
    return took_s


if __name__ == "__main__":
    main(int(sys.argv[1]))
