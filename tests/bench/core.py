"""`make bench-core`: what one job costs in instructions, stage by stage, without a broker.

::

    python -m tests.bench.core               # instructions a job, counted by Callgrind (Debian's valgrind): stable from run to run
    python -m tests.bench.core --time        # ns of processor time a job, the best of some runs: quick, and noisy

An instruction count does not depend on who else uses the machine, so a change of 1 % in the hot path can be seen. The counted
program runs each stage once to warm up and once more between two calls of `getppid`, at which Callgrind begins a new count.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

JOBS = 2_000
LIST = 250
ROUNDS = 30
#: The program under Callgrind is this module with this argument.
COUNTED = "--counted"

Stage = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="measure time instead")
    parser.add_argument("--only", help="stages whose names contain this")
    parser.add_argument(COUNTED, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.set_threshold(50_000, 10, 10)  # as in a worker process
    if options.counted:
        _run_counted(options.only)
        return
    costs = _times(options.only) if options.time else _instructions(options.only)
    for name, cost in costs.items():
        print(f"{name:<44} {cost:>10,.0f} {'ns' if options.time else 'instructions'} a job")


def stages(only: str | None) -> Iterator[tuple[str, Callable[[], Stage]]]:
    """Names, and what makes the work: called before each measurement, so that it starts from the same state."""
    made = {
        "offsets: receive": lambda: _receive(_tracker()),
        "offsets: finish, in lists": _finish,
        "offsets: base and map to text": _encode,
        "lanes: no key": lambda: _dispatch("none2"),
        "lanes: 10,000 keys": lambda: _dispatch("key2"),
        "lanes: one hot key": lambda: _dispatch("hot2"),
        "decode: 2 fields": lambda: _decode("key2"),
        "decode: 11 fields": lambda: _decode("key11"),
        "execute: a no-op, no key": lambda: _execute("none2"),
        "execute: a no-op, one hot key": lambda: _execute("hot2"),
        "settle: successes": _settle,
        "events: columns": _events,
        "metrics: lists": _metrics,
        "loop: all of it, 2 fields, no key": lambda: _loop("none2"),
        "loop: all of it, 2 fields, 10,000 keys": lambda: _loop("key2"),
        "loop: all of it, 2 fields, one hot key": lambda: _loop("hot2"),
        "loop: all of it, 11 fields, 10,000 keys": lambda: _loop("key11"),
    }
    return ((name, make) for name, make in made.items() if only is None or only in name)


# Stages -----------------------------------------------------------------------------------------------------------------


def _tracker() -> Any:
    from streamjobs.core.offsets import Tracker

    return Tracker(0)


def _receive(tracker: Any) -> Stage:
    def run() -> None:
        receive = tracker.receive
        for offset in range(JOBS):
            receive(offset)

    return run


def _finish() -> Stage:
    tracker = _tracker()
    _receive(tracker)()
    lists = [list(range(at, at + LIST))[::-1] for at in range(0, JOBS, LIST)]

    def run() -> None:
        for offsets in lists:
            tracker.finish_many(offsets)
            tracker.map_size  # noqa: B018

    return run


def _encode() -> Stage:
    from streamjobs.core.offsets import Mark, encode

    tracker = _tracker()
    _receive(tracker)()
    tracker.finish_many(range(1, JOBS, 2))

    def run() -> None:
        base, finished = tracker.snapshot()
        encode(base, Mark(b"\1\2\3\4", finished))

    return run


class Warm:
    """A worker process run by hand, and records of its queue as the client gives them."""

    def __init__(self, queue: str) -> None:
        from confluent_kafka import Message

        from streamjobs import App
        from tests.bench import jobs

        jobs.app = App("bench", provision="auto")
        jobs.declare(queue)
        self.app = jobs.app
        self._testing = self.app.testing()
        self._testing.__enter__()
        self.loop = self._testing.process.loops[0]
        self.job_type = self.app.job_types[queue]
        while not self.loop.poller.partitions:
            self.loop.turn()
        self.home = next(home for home in self.loop.poller.partitions.values() if home.number == 0)
        rows = list(jobs.rows(queue, JOBS))
        _topic, _ids, records = self.app.publisher._prepared_many(self.job_type, rows, _no_options())
        stamp = int(self._testing.clock.now() * 1000)
        self.messages = [
            Message(self.home.topic, 0, offset, record.key, record.value, record.headers, None, (2, stamp))  # type: ignore[call-arg,arg-type]
            for offset, record in enumerate(records)
        ]

    def jobs(self) -> list[Any]:
        return self.loop.arrivals._decoder.decode_plain(self.messages, self.home)

    def ended(self, outcome: str = "succeeded") -> list[list[Any]]:
        """Lists of jobs that have run; without an outcome they are to be settled yet."""
        for job in (jobs := self.jobs()):
            job.started_at = job.appended_at + 1.0
            job.duration_s = 0.001
            job.outcome = outcome
        return _lists(jobs)


def _no_options() -> Any:
    from streamjobs.job import NO_OPTIONS

    return NO_OPTIONS


def _lists(things: list[Any]) -> list[list[Any]]:
    return [things[at : at + LIST] for at in range(0, len(things), LIST)]


def _dispatch(queue: str) -> Stage:
    from streamjobs.core.dispatch import Dispatcher

    jobs = Warm(queue).jobs()
    dispatcher: Dispatcher[Any] = Dispatcher(["threads"])

    def run() -> None:
        for some in _lists(jobs):
            dispatcher.add_all(some)
        while taken := dispatcher.take("threads", LIST):
            for job in taken:
                while job.next is not None:  # as a thread follows it
                    job = job.next
                dispatcher.stopped(job)

    return run


def _decode(queue: str) -> Stage:
    world = Warm(queue)
    return lambda: world.jobs()


def _execute(queue: str) -> Stage:
    from queue import SimpleQueue

    from streamjobs.core.dispatch import Dispatcher
    from streamjobs.worker.executors import Chunk, Gate
    from streamjobs.worker.executors.threads import run_chunk

    dispatcher: Dispatcher[Any] = Dispatcher(["threads"])
    for job in Warm(queue).jobs():
        dispatcher.add(job)
    results: SimpleQueue[Chunk] = SimpleQueue()
    gate = Gate()

    def run() -> None:
        while taken := dispatcher.take("threads", LIST):
            run_chunk(Chunk("threads", taken, results), gate)
            dispatcher.stopped_all(results.get().stops)

    return run


def _settle() -> Stage:
    world = Warm("key2")
    receive = world.home.tracker.receive
    for message in world.messages:
        receive(message.offset())
    lists = world.ended("")

    def run() -> None:
        for jobs in lists:
            world.loop.outcomes.ended(jobs)

    return run


def _events() -> Stage:
    from streamjobs.telemetry.events import EventBatch

    batch = EventBatch("worker-1", "bench")
    lists = Warm("key2").ended()

    def run() -> None:
        for jobs in lists:
            batch.add(jobs)
        batch.take(0.0)

    return run


def _metrics() -> Stage:
    from streamjobs.telemetry.metrics import Metrics

    metrics = Metrics("bench", "main", ["key2"])
    lists = Warm("key2").ended()

    def run() -> None:
        for jobs in lists:
            metrics.observe(jobs)

    return run


def _loop(queue: str) -> Stage:
    """Turns until all has run: the records come from a list instead of a client, the handlers run where they are submitted."""
    world = Warm(queue)
    loop, lists = world.loop, _lists(world.messages)[::-1]
    loop.poller.consumer.fetch = lambda limit, timeout: lists.pop() if lists and limit else []  # type: ignore[method-assign]
    world.job_type.mean_s, world.job_type.run = 1e-6, world.job_type.bound()  # as after its first job, which runs by itself
    wanted = loop.finished + JOBS

    def run() -> None:
        while loop.finished < wanted:
            loop.turn()

    return run


# Counting ---------------------------------------------------------------------------------------------------------------


def _run_counted(only: str | None) -> None:
    """Under Callgrind. Cold caches and first calls are paid for before the count begins."""
    for _, make in stages(only):
        make()()
        run = make()
        os.getppid()
        run()
        os.getppid()


def _instructions(only: str | None) -> dict[str, float]:
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (apt-get install valgrind); --time needs none")
    names = [name for name, _ in stages(only)]
    with tempfile.TemporaryDirectory(prefix="streamjobs-bench-") as directory:
        counts = _counted(Path(directory), [] if only is None else ["--only", only])
    return {name: count / JOBS for name, count in zip(names, counts[::2])}


def _counted(directory: Path, arguments: list[str]) -> list[int]:
    """The counts between the calls of `getppid`: a stage, what makes the next one, that stage …"""
    out = directory / "out"
    callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=getppid", "--quiet"]
    program = [sys.executable, "-m", "tests.bench.core", COUNTED, *arguments]
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"}
    subprocess.run([*callgrind, *program], check=True, env=env)
    dumps = sorted(directory.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    return [_total(path) for path in dumps[1:]]


def _total(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    assert found is not None, dump
    return int(found[1])


def _times(only: str | None) -> dict[str, float]:
    return {name: min(_timed(make()) for _ in range(ROUNDS)) / JOBS * 1e9 for name, make in stages(only)}


def _timed(run: Stage) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
