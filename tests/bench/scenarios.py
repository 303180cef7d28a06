"""What is measured, and beside what. Each scenario does one round; the bare program and ours take turns within it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import offsets
from tests.bench.book import Book
from tests.bench.publishing import FIRST, GROWN
from tests.bench.world import Running, World, drained


@dataclass
class Round:
    """One round of one scenario. `scale`: 1.0, or less for a quick look. `others`: checkouts that take turns with ours."""

    world: World
    book: Book
    scale: float
    others: Mapping[str, Path]
    kept: dict[str, str]
    """Prefixes of topics that the next round uses again."""

    def count(self, jobs: int) -> int:
        return max(100, int(jobs * self.scale))

    def filled(self, queue: str, jobs: int, **settings: Any) -> str:
        """The prefix of a queue that holds so many jobs; of every further round the same."""
        name = f"{queue}-{jobs}-{sorted(settings.items())}"
        if name not in self.kept:
            self.kept[name] = self.world.prefix("b")
            self.world.fill(queue, self.kept[name], jobs, **settings)
        return self.kept[name]

    def ours(self) -> dict[str, Path | None]:
        """Who is measured as ours: this checkout, and the others that were named."""
        return {"ours": None, **self.others}


SHAPES = ("none2", "key2", "hot2", "none11", "key11", "hot11")


def drain(at: Round) -> None:
    """A backlog of no-op jobs on 8 partitions."""
    jobs = at.count(300_000)
    for queue in SHAPES:
        prefix = at.filled(queue, jobs)
        _drain_bare(at, "drain", queue, f"{prefix}.jobs.{queue}", jobs)
        if queue.startswith("none"):
            _drain_decoding(at, queue, jobs)
            with at.world.bare("untuned", f"{prefix}.jobs.{queue}") as running:
                _note_drained(at, "drain", queue, "bare, client's defaults", running, jobs)
        for who, tree in at.ours().items():
            for case, settings in ((queue, {}), (f"async {queue}", {"bench_async": 1})):
                with at.world.worker(queue, prefix, tree=tree, **settings) as running:
                    _note_drained(at, "drain", case, who, running, jobs)


def _drain_bare(at: Round, scenario: str, case: str, topic: str, jobs: int) -> None:
    with at.world.bare("drain", topic) as running:
        _note_drained(at, scenario, case, "bare", running, jobs)


def _drain_decoding(at: Round, queue: str, jobs: int) -> None:
    """The same arguments and headers, the value as JSON."""
    topic = at.kept.get(f"json-{queue}")
    if topic is None:
        topic = at.kept[f"json-{queue}"] = at.world.create(f"{at.world.prefix('json')}.{queue}", 8)
        at.world.publish("fill_json", queue, "unused", jobs, topic)
    with at.world.bare("decode", topic) as running:
        _note_drained(at, "drain", queue, "bare + json", running, jobs)


def _note_drained(at: Round, scenario: str, case: str, who: str, running: Running, jobs: int) -> None:
    found = drained(running, jobs)
    at.book.note(scenario, case, who, "jobs/s", found.rate)
    at.book.note(f"{scenario} cpu", case, who, "µs/job", found.cpu_us)


def publish(at: Round) -> None:
    """`publish_many`, and `publish` one by one. There and back: a broker gets faster from one run to the next, and that favours nobody."""
    jobs, one_by_one = at.count(100_000), at.count(6_000)
    for queue in ("key2", "key11"):
        _there_and_back(at, "many", f"many {queue}", queue, jobs, {"bare": (), "bare + json": ("json",)})
    _there_and_back(at, "one", "one", "key2", one_by_one, {"bare": ()})


def _there_and_back(at: Round, program: str, case: str, queue: str, jobs: int, bares: Mapping[str, tuple[str, ...]]) -> None:
    def bare(arguments: tuple[str, ...]) -> float:
        topic = at.world.create(f"{at.world.prefix('out')}.{queue}", 8)
        rate: float = at.world.publish(f"{program}_bare", queue, "unused", jobs, topic, *arguments)
        return rate

    def ours(tree: Path | None) -> float:
        rate: float = at.world.publish(program, queue, at.world.prefix("p"), jobs, tree=tree)
        return rate

    turns = [(who, partial(bare, arguments)) for who, arguments in bares.items()]
    turns += [(who, partial(ours, tree)) for who, tree in at.ours().items()]
    for who, rate in turns + turns[::-1]:
        at.book.note("publish", case, who, "jobs/s", rate())


def latency(at: Round) -> None:
    """From before `publish` to the handler's start, 50 jobs a second."""
    count = at.count(500)
    topic = at.world.create(at.world.prefix("out"), 8)
    with at.world.bare("poll", topic) as running:
        at.world.publish("pace_bare", "", "unused", GROWN, 1_000, topic)
        _told(running, GROWN)
        at.world.publish("pace_bare", "", "unused", count, 50, topic)
        _note_latency(at, "bare", running, count)
    for who, tree in at.ours().items():
        for name, settings in ((who, {}), (f"{who}, async", {"bench_async": 1})):
            prefix = at.world.prefix("l")
            with at.world.worker("stamp", prefix, tree=tree, **settings) as running:
                at.world.publish("pace", "stamp", prefix, GROWN, 1_000)
                _told(running, GROWN)
                at.world.publish("pace", "stamp", prefix, count, 50)
                _note_latency(at, name, running, count)


def _note_latency(at: Round, who: str, running: Running, count: int) -> None:
    found = _told(running, count)
    at.book.note("latency", "p50", who, "ms", statistics.median(found) * 1000)
    at.book.note("latency", "p99", who, "ms", found[int(len(found) * 0.99)] * 1000)


def _told(running: Running, count: int) -> list[float]:
    """What the last so many jobs told, sorted, once those before them have told it, too."""
    sent = running.sent = running.sent + FIRST + count
    running.wait(sent)
    return sorted(running.ledger.numbers()[sent - count : sent])


def waiting(at: Round) -> None:
    """Handlers that wait for 20 ms, 100 slots: 5,000 a second are possible."""
    jobs = at.count(20_000)
    for partitions in (1, 8):
        for queue in ("sleep", "sleepkey"):
            prefix = at.filled(queue, jobs, partitions=partitions)
            case = f"{'keyed' if queue == 'sleepkey' else 'no key'}, {partitions} partition{'s' * (partitions > 1)}"
            with at.world.bare("threads", f"{prefix}.jobs.{queue}") as running:
                _note_share(at, case, "bare", running, jobs)
            for who, tree in at.ours().items():
                for name, settings in ((who, {}), (f"{who}, async", {"bench_async": 1})):
                    with at.world.worker(queue, prefix, tree=tree, partitions=partitions, worker__slots=100, **settings) as running:
                        _note_share(at, case, name, running, jobs)


def _note_share(at: Round, case: str, who: str, running: Running, jobs: int) -> None:
    """Of what is possible. The first second (more threads start) and the end (fewer jobs than slots) are not counted."""
    skipped = jobs // 5
    began, first = running.wait(skipped), running.ledger.count()
    ended = running.wait(jobs - 200)
    at.book.note("waiting", case, who, "of 5,000/s", (jobs - 200 - first) / (ended - began) / 5000)


def delays(at: Round) -> None:
    """How late delayed jobs start: waited in memory (2 s), and through the ladder (7 s: a 5 s topic first)."""
    count = at.count(200)
    for who, tree in at.ours().items():
        prefix = at.world.prefix("t")
        with at.world.worker("stamp", prefix, tree=tree) as running:
            for delay_s in (2, 7):
                at.world.publish("delayed", "stamp", prefix, count, delay_s, 50)
                late = _told(running, count)
                at.book.note("delays", f"{delay_s} s, p50", who, "ms late", statistics.median(late) * 1000)
                at.book.note("delays", f"{delay_s} s, p99", who, "ms late", late[int(len(late) * 0.99)] * 1000)


def memory(at: Round) -> None:
    """An idle worker; a backlog of 10,000 and of 1,000,000; 100,000 jobs that wait for an hour."""
    prefix = at.world.prefix("m")
    at.world.fill("key2", prefix, 1)
    with at.world.worker("key2", prefix) as running:
        running.wait(1)
        time.sleep(3)
        before = running.usage()
        time.sleep(10 * at.scale)
        after = running.usage()
        supervisor, process = running.usages()[0], max(running.usages(), key=lambda usage: usage.cpu_s)
        at.book.note("idle", "worker process", "ours", "MiB", process.rss)
        at.book.note("idle", "supervisor", "ours", "MiB", supervisor.rss)
        at.book.note("idle", "both, shared pages once", "ours", "MiB", after.pss)
        at.book.note("idle", "both", "ours", "% CPU", (after.cpu_s - before.cpu_s) / (10 * at.scale) * 100)
        idle = process.rss
        delayed = at.count(100_000)
        at.world.publish("fill_delayed", "key2", prefix, delayed, "1h")
        time.sleep(5)
        process = max(running.usages(), key=lambda usage: usage.cpu_s)
        at.book.note("memory", f"{delayed:,} delayed by 1 h: growth", "ours", "MiB", process.rss - idle)
    for jobs in (at.count(10_000), at.count(100_000), at.count(1_000_000)):
        prefix = at.filled("key2", jobs)
        with at.world.worker("key2", prefix) as running:
            found = drained(running, jobs)
        at.book.note("memory", f"backlog {jobs:,}: peak", "ours", "MiB", found.peak_mib)
        at.book.note("backlog", f"{jobs:,}", "ours", "jobs/s", found.rate)
        _drain_bare(at, "backlog", f"{jobs:,}", f"{prefix}.jobs.key2", jobs)


def telemetry(at: Round) -> None:
    """All that is on by default against all off: no events, no counting, no endpoint."""
    jobs = at.count(300_000)
    for queue in ("key2", "key11"):
        prefix = at.filled(queue, jobs)
        for who, settings in (("off", {"events__mode": "off", "worker__listen": "off", "bench_uncounted": 1}), ("ours", {})):
            with at.world.worker(queue, prefix, **settings) as running:
                _note_drained(at, "telemetry", queue, who, running, jobs)


def transactions(at: Round) -> None:
    """A transactional app against the default."""
    jobs = at.count(200_000)
    prefix = at.filled("key2", jobs)
    for who, settings in (("default", {}), ("ours", {"worker__transactional": "true"})):
        with at.world.worker("key2", prefix, **settings) as running:
            _note_drained(at, "transactions", "key2", who, running, jobs)


def start(at: Round) -> None:
    """What an import costs, and how long it is from the command to the first job."""
    for who, code in (("bare", "import confluent_kafka"), ("python", "pass"), ("ours", "import streamjobs"), ("app", "import tests.bench.jobs")):
        at.book.note("start", "import", who, "ms", min(_import_ms(code) for _ in range(5)))
    prefix = at.filled("key2", 100)
    with at.world.bare("drain", f"{prefix}.jobs.key2") as running:
        at.book.note("start", "to the first job", "bare", "s", running.wait(1) - running.began)
    for who, tree in at.ours().items():
        group = {"worker__group": f"start-{who}-{prefix}"}
        with at.world.worker("key2", prefix, tree=tree, **group) as running:  # makes the group's topics
            running.wait(1)
            running.stop()
        at.world.publish("fill", "key2", prefix, 100, 100)
        with at.world.worker("key2", prefix, tree=tree, **group) as running:
            at.book.note("start", "to the first job", who, "s", running.wait(1) - running.began)


def _import_ms(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - began) * 1000


def scale(at: Round) -> None:
    """More partitions, fewer keys, larger payloads, more processes."""
    jobs = at.count(200_000)
    for partitions in (1, 10, 100):
        _scaled(at, "key2", f"{partitions} partitions", jobs, partitions=partitions)
    for keys in (1, 100, 10_000):
        _scaled(at, "key2", f"{keys:,} keys", jobs, bench_keys=keys)
    for size, count in ((100, jobs), (10_000, jobs // 10), (500_000, max(400, jobs // 100))):
        prefix = at.kept.get(f"load-{size}")
        if prefix is None:
            prefix = at.kept[f"load-{size}"] = at.world.prefix("s")
            at.world.publish("fill", "load", prefix, count, size)
        _drain_bare(at, "scale", f"{size:,} bytes", f"{prefix}.jobs.load", count)
        with at.world.worker("load", prefix) as running:
            _note_drained(at, "scale", f"{size:,} bytes", "ours", running, count)


def _scaled(at: Round, queue: str, case: str, jobs: int, **settings: Any) -> None:
    prefix = at.filled(queue, jobs, **settings)
    _drain_bare(at, "scale", case, f"{prefix}.jobs.{queue}", jobs)
    with at.world.worker(queue, prefix, **settings) as running:
        _note_drained(at, "scale", case, "ours", running, jobs)


def processes(at: Round) -> None:
    """Two worker processes against one: 1 ms of computing a job, and no-ops. The second half counts: by then both have partitions."""
    for queue, jobs in (("burn", at.count(30_000)), ("key2", at.count(1_500_000))):
        prefix = at.filled(queue, jobs)
        for count in (1, 2):
            with at.world.worker(queue, prefix, "--processes", str(count)) as running:
                found = drained(running, jobs, skipped=jobs // 2)
            at.book.note("processes", queue, f"{count}", "jobs/s", found.rate)
            at.book.note("processes cpu", queue, f"{count}", "µs/job", found.cpu_us)


def layers(at: Round) -> None:
    """Processor time a job of a consumer that does more and more of what a worker does."""
    jobs = at.count(300_000)
    for queue in ("key2", "key11"):
        prefix = at.filled(queue, jobs)
        for name, micros in at.world.layers(f"{prefix}.jobs.{queue}", queue, jobs).items():
            at.book.note("layers", f"{queue}: {name}", "ours", "µs/job", micros)


def monitor(at: Round) -> None:
    """One look at many queues of one partition each, with the age of the oldest job in each: the first, and the next ones."""
    queues = at.count(1_000)
    prefix = at.world.prefix("q")
    for name, took_s in at.world.look(prefix, queues).items():
        at.book.note("monitor", f"{queues:,} queues: {name}", "ours", "s", took_s)
    at.world.delete(prefix)


def takeover(at: Round) -> None:
    """Of two workers one is killed while jobs come; how long those of its partitions wait at most until the other one has run them. Offsets
    are committed often: what was run and not committed runs again, and has waited for longer."""
    prefix, count = at.world.prefix("k"), 800
    together = {"worker__group": f"takeover-{prefix}", "worker__tick": "50ms"}
    with at.world.worker("stamp", prefix, **together) as survivor:
        at.world.publish("pace", "stamp", prefix, 1, 50)
        survivor.wait(FIRST + 1)
        with at.world.worker("stamp", prefix, **together) as victim, ThreadPoolExecutor(1) as publisher:
            sent = publisher.submit(at.world.publish, "pace", "stamp", prefix, count, 50)
            victim.wait(50)
            victim.end()
            sent.result()
            survivor.wait(2 * FIRST + 1 + count - victim.ledger.count())
        at.book.note("takeover", "after SIGKILL", "ours", "s", max(survivor.ledger.numbers()))


def offset_map(at: Round) -> None:
    """Tracking offsets, and making a commit's map of them."""
    for name, micros in offsets.costs().items():
        at.book.note("offsets", name, "ours", "µs", micros)


SCENARIOS: dict[str, Callable[[Round], None]] = {
    "drain": drain,
    "layers": layers,
    "publish": publish,
    "latency": latency,
    "waiting": waiting,
    "delays": delays,
    "memory": memory,
    "telemetry": telemetry,
    "transactions": transactions,
    "start": start,
    "offsets": offset_map,
    "processes": processes,
    "scale": scale,
    "takeover": takeover,
    "monitor": monitor,
}
