"""What tracking and committing offsets costs: `python -m tests.bench.offsets` prints µs per offset, sizes and
memory.
"""

from __future__ import annotations

import random
import statistics
import tracemalloc
from collections.abc import Callable
from time import perf_counter

from streamjobs.core.offsets import METADATA_LIMIT, Finished, Mark, Tracker, decode, encode

COUNT = 200_000
WINDOW = 10_000
ROUNDS = 5
TWO_HOURS = 7_200_000


def main() -> None:
    micros = [(name, f"{value:,.3g} µs") for name, value in costs().items()]
    for name, text in (*micros, *sizes(), old_head()):
        print(f"{name:<58} {text}")


def costs() -> dict[str, float]:
    """µs of each."""
    return dict((*speeds(), *snapshots()))


def speeds() -> list[tuple[str, float]]:
    shuffled = random.Random(1).sample(range(COUNT), COUNT)
    windows = [random.Random(at).sample(range(at, at + WINDOW), WINDOW) for at in range(0, COUNT, WINDOW)]
    return [
        ("receive", _per_offset(_empty, _receive_all)),
        ("receive, every second offset a gap", _per_offset(_empty, _receive_with_gaps)),
        ("finish, in order", _per_offset(_full, lambda tracker: _finish(tracker, range(COUNT)))),
        ("finish, reversed", _per_offset(_full, lambda tracker: _finish(tracker, range(COUNT - 1, -1, -1)))),
        ("finish, random", _per_offset(_full, lambda tracker: _finish(tracker, shuffled))),
        ("finish_many, random in lists of 250", _per_offset(_full, lambda t: _in_lists(t, shuffled))),
        ("receive, finish, map_size; random in 10,000", _per_offset(_empty, lambda t: _cycle(t, windows))),
    ]


def snapshots() -> list[tuple[str, float]]:
    tracker = _half_finished()
    base, finished = tracker.snapshot()
    mark = Mark(b"\1\2\3\4", finished)
    text = encode(base, mark)
    return [
        ("snapshot, 10,000 offsets, random half finished", _micros(tracker.snapshot)),
        ("encode of it", _micros(lambda: encode(base, mark))),
        ("decode of it", _micros(lambda: decode(base, text))),
        ("map_size of it", _micros(lambda: tracker.map_size)),
        ("base of it", _micros(lambda: tracker.base)),
    ]


def sizes() -> list[tuple[str, str]]:
    half = Finished.of(random.Random(2).sample(range(1, WINDOW), WINDOW // 2))
    alternating = Finished.of(range(1, WINDOW, 2))
    wide = Finished.of(random.Random(3).sample(range(1, 60_000), 30_000))
    scattered = Finished.of(range(1, 20_000_000, 2_000))
    return [
        ("metadata: random half of 10,000", _size(half)),
        ("metadata: every second of 10,000", _size(alternating)),
        ("metadata: one head, 7.2 M finished behind it", _size(Finished(((1, TWO_HOURS),)))),
        ("metadata: random half of 60,000 (cut)", _size(wide)),
        ("metadata: one in 2,000 of 20,000,000 (cut)", _size(scattered)),
    ]


def old_head() -> tuple[str, str]:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracker = Tracker(0)
    tracker.receive(0)
    for first in range(1, TWO_HOURS, 250):
        for offset in range(first, first + 250):
            tracker.receive(offset)
        tracker.finish_many(range(first, first + 250))
        tracker.base  # noqa: B018  what a loop asks at every batch; it tidies
    held, peak = (size - before for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    return "memory: one head, 7.2 M finished behind it", f"{held:,} bytes now, {peak:,} at most"


def _empty() -> Tracker:
    return Tracker(0)


def _full() -> Tracker:
    tracker = Tracker(0)
    _receive_all(tracker)
    return tracker


def _half_finished() -> Tracker:
    tracker = Tracker(0)
    for offset in range(WINDOW):
        tracker.receive(offset)
    tracker.finish_many(random.Random(2).sample(range(1, WINDOW), WINDOW // 2))
    return tracker


def _receive_all(tracker: Tracker) -> None:
    receive = tracker.receive
    for offset in range(COUNT):
        receive(offset)


def _receive_with_gaps(tracker: Tracker) -> None:
    receive = tracker.receive
    for offset in range(0, 2 * COUNT, 2):
        receive(offset)


def _finish(tracker: Tracker, offsets: range | list[int]) -> None:
    finish = tracker.finish
    for offset in offsets:
        finish(offset)


def _in_lists(tracker: Tracker, offsets: list[int]) -> None:
    for at in range(0, len(offsets), 250):
        tracker.finish_many(offsets[at : at + 250])


def _cycle(tracker: Tracker, windows: list[list[int]]) -> None:
    for window in windows:
        for offset in range(min(window), min(window) + WINDOW):
            tracker.receive(offset)
        for at in range(0, WINDOW, 250):
            tracker.finish_many(window[at : at + 250])
            tracker.map_size  # noqa: B018  admission asks it once per batch


def _per_offset(prepare: Callable[[], Tracker], work: Callable[[Tracker], None]) -> float:
    return statistics.median(_timed(prepare(), work) for _ in range(ROUNDS)) / COUNT * 1e6


def _timed(tracker: Tracker, work: Callable[[Tracker], None]) -> float:
    start = perf_counter()
    work(tracker)
    return perf_counter() - start


def _micros(work: Callable[[], object], times: int = 50) -> float:
    spent = []
    for _ in range(times):
        start = perf_counter()
        work()
        spent.append(perf_counter() - start)
    return statistics.median(spent) * 1e6


def _size(finished: Finished) -> str:
    text = encode(0, Mark(b"\1\2\3\4", finished))
    assert len(text) <= METADATA_LIMIT
    mark = decode(0, text)
    assert mark is not None
    return f"{len(text):,} characters for {len(mark.finished):,} of {len(finished):,} finished"


if __name__ == "__main__":
    main()
