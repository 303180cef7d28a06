"""What was promised (the figures of the project's performance budget), held against a run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.book import Book, Goal

KEYS = (("no key", "none"), ("10,000 keys", "key"), ("one hot key", "hot"))


def _drains() -> Iterator[Goal]:
    for fields, bound, bound_async in ((2, 0.40, 0.35), (11, 0.30, 0.28)):
        for name, kind in KEYS:
            case = f"{kind}{fields}"
            yield Goal(f"drain, {fields} fields, {name}: of bare", "drain", case, bound, to=(case, "bare"))
            yield Goal(f"drain, {fields} fields, {name}, async: of bare", "drain", f"async {case}", bound_async, to=(case, "bare"))
            if fields == 2:
                yield Goal(f"drain, {fields} fields, {name}: of bare + json", "drain", case, 0.75, to=("none2", "bare + json"))


GOALS = (
    *_drains(),
    Goal("publish_many, 2 fields: of bare", "publish", "many key2", 0.40, to=("many key2", "bare")),
    Goal("publish_many, 11 fields: of bare", "publish", "many key11", 0.40, to=("many key11", "bare")),
    Goal("publish one by one: of bare", "publish", "one", 0.85, to=("one", "bare")),
    *(
        Goal(f"20 ms of waiting, {case}{', async' * (who != 'ours')}: of the ideal", "waiting", case, 0.95, who=who)
        for case in ("no key, 1 partition", "keyed, 1 partition", "no key, 8 partitions", "keyed, 8 partitions")
        for who in ("ours", "ours, async")
    ),
    Goal("latency at 50/s, p50: of bare", "latency", "p50", 1.3, to=("p50", "bare"), most=True),
    Goal("latency at 50/s, p99, ms", "latency", "p99", 10, most=True),
    Goal("lateness of a 2 s delay, p99, ms", "delays", "2 s, p99", 150, most=True),
    Goal("lateness of a 7 s delay, p99, ms", "delays", "7 s, p99", 150, most=True),
    Goal("100,000 jobs delayed by an hour: growth, MiB", "memory", "100,000 delayed by 1 h: growth", 10, most=True),
    Goal("backlog of 1,000,000: peak, MiB", "memory", "backlog 1,000,000: peak", 150, most=True),
    Goal("backlog of 1,000,000: throughput of one of 100,000", "backlog", "1,000,000", 0.85, to=("100,000", "ours")),
    Goal("transactions: throughput of the default", "transactions", "key2", 0.6, to=("key2", "default")),
    Goal("telemetry on: throughput of off, 2 fields", "telemetry", "key2", 0.85, to=("key2", "off")),
    Goal("telemetry on: throughput of off, 11 fields", "telemetry", "key11", 0.85, to=("key11", "off")),
    Goal("idle worker process, MiB", "idle", "worker process", 70, most=True),
    Goal("idle worker and supervisor, % CPU", "idle", "both", 1.0, most=True),
    Goal("longest wait after a worker's SIGKILL, s (session timeout 10 s)", "takeover", "after SIGKILL", 11, most=True),
    Goal("one look at 1,000 queues, s", "monitor", "1,000 queues: first", 10, most=True),
    Goal("2 processes against 1, 1 ms of computing", "processes", "burn", 1.6, who="2", to=("burn", "1")),
)


def summary(book: Book) -> str:
    """The main ratios in one line, for whoever greps the last one."""
    wanted = (
        ("drain/bare", "drain", "key2", "ours", ("key2", "bare")),
        ("drain/bare+json", "drain", "key2", "ours", ("none2", "bare + json")),
        ("drain11/bare", "drain", "key11", "ours", ("key11", "bare")),
        ("async/bare", "drain", "async key2", "ours", ("key2", "bare")),
        ("publish_many/bare", "publish", "many key2", "ours", ("many key2", "bare")),
        ("publish/bare", "publish", "one", "ours", ("one", "bare")),
        ("latency/bare", "latency", "p50", "ours", ("p50", "bare")),
        ("telemetry on/off", "telemetry", "key2", "ours", ("key2", "off")),
        ("transactions/default", "transactions", "key2", "ours", ("key2", "default")),
        ("bare cpu/drain cpu", "drain cpu", "key2", "bare", ("key2", "ours")),
    )
    found = [(name, book.ratio(*rest)) for name, *rest in wanted]  # type: ignore[arg-type]
    return "  ".join(f"{name} {ratio:.2f}" for name, ratio in found if ratio is not None) or "no ratios"
