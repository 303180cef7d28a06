"""`make bench`: throughput, latency and memory beside bare confluent-kafka programs, in one run on one machine.

::

    python -m tests.bench                                   # everything, 3 rounds
    python -m tests.bench --only drain --rounds 5           # some scenarios
    python -m tests.bench --quick                           # a tenth of the jobs, one round: does it still work?
    python -m tests.bench --only drain --shapes key2 --against ../before    # another checkout takes turns with this one

Rates are taken from outside: every handler appends to a ledger whose size is watched. The bare program and ours take turns;
a ratio is the median over the rounds of the two measurements of one round. On a machine that does other things, too, trust
ratios, and `cpu` (processor time of all threads a job) more than rates.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import confluent_kafka

from tests.bench import scenarios
from tests.bench.book import Book, columns, renew
from tests.bench.goals import GOALS, summary
from tests.bench.world import ROOT, world


def main() -> None:
    options = _options()
    if options.shapes:
        scenarios.SHAPES = tuple(options.shapes)
    book = Book()
    others = {path.name: path.resolve() for path in options.against}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = machine()
    with world(options.bootstrap) as made:
        kept: dict[str, str] = {}
        for number in range(options.rounds):
            for name in options.only or scenarios.SCENARIOS:
                began = time.monotonic()
                scenarios.SCENARIOS[name](scenarios.Round(made, book, options.scale, others, kept))
                book.write(options.json, found)
                print(f"round {number + 1} of {options.rounds}: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if options.write:
        told = ", ".join(f"{name} {value}" for name, value in found.items())
        renew(options.write, book, GOALS, f"Medians of {options.rounds} rounds; {told}.")
    print(columns(book.rows()), columns(book.held_against(GOALS)), f"written to {options.json}", summary(book), sep="\n\n")


def machine() -> dict[str, object]:
    """Where the figures come from."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "memory": f"{memory:.0f} GiB",
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "confluent-kafka": confluent_kafka.__version__,
        "librdkafka": confluent_kafka.libversion()[0],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=scenarios.SCENARIOS, metavar="SCENARIO", help=f"of {', '.join(scenarios.SCENARIOS)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the jobs")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round")
    parser.add_argument("--shapes", nargs="+", choices=scenarios.SHAPES, help="of the drain scenario")
    parser.add_argument("--against", nargs="+", type=Path, default=[], metavar="CHECKOUT", help="other checkouts that take turns with this one")
    parser.add_argument("--bootstrap", help="a broker; default: one is started for the run")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page whose measured part this run replaces")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    if options.quick:
        options.scale = 0.1
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
