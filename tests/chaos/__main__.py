"""Runs chaos from the command line; exit status 1 with anomalies."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.chaos.checker import judge
from tests.chaos.history import read
from tests.chaos.report import as_json, markdown, sentence
from tests.chaos.run import JOURNALS, Outcome, Plan, run
from tests.support.workers import ROOT


def main() -> int:
    options = _options()
    # Whoever ends a run must not leave brokers, workers and a network behind: its way out is that of an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.judge:
        return _judge_again(options.judge)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10_000)
    directory = options.directory or ROOT / "build" / "chaos" / f"seed-{seed}"
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    print(f"seed {seed}; report and, if something is wrong, logs in {directory}", flush=True)
    order = Plan(
        seed, options.minutes * 60, directory, options.brokers, options.bootstrap, options.rate, options.protocol, say=say
    )
    return _conclude(run(order), keep=options.keep)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults strike; a judge reads what happened.")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults come (default: 2)")
    parser.add_argument("--seed", type=int, help="repeats a schedule")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1, help="a cluster of so many, replicated (default: 1)")
    parser.add_argument("--bootstrap", default="", help="brokers that are there already and are left alone")
    parser.add_argument("--rate", type=float, default=40.0, help="jobs published per second (default: 40)")
    parser.add_argument("--protocol", choices=["auto", "consumer", "classic"], default="auto", help="group protocol of the workers")
    parser.add_argument("--directory", type=Path, help="for report, journals and logs (default: build/chaos/seed-N)")
    parser.add_argument("--keep", action="store_true", help="keep journals and logs of a run without anomalies, too")
    parser.add_argument("--judge", type=Path, metavar="DIRECTORY", help="only judge the journals of an earlier run again")
    options = parser.parse_args()
    options.brokers = 0 if options.bootstrap else options.brokers
    return options


def _conclude(outcome: Outcome, *, keep: bool) -> int:
    directory = outcome.plan.directory
    (directory / "report.md").write_text(markdown(outcome))
    (directory / "report.json").write_text(as_json(outcome))
    for anomaly in outcome.verdict.anomalies[:30]:
        print(f"{anomaly.name}: {anomaly.text}")
    for note in outcome.notes:
        print(note)
    if not (keep or outcome.verdict.anomalies):
        _tidy(directory)
    print(sentence(outcome))
    return 1 if outcome.verdict.anomalies else 0


def _tidy(directory: Path) -> None:
    """Only the report stays of a run without anomalies."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("report"):
            path.unlink()


def _judge_again(directory: Path) -> int:
    history = read([directory / name for name in JOURNALS])
    outcome = Outcome(Plan(0, 0, directory), [], judge(history), history)
    for anomaly in outcome.verdict.anomalies:
        print(f"{anomaly.name}: {anomaly.text}")
    print(sentence(outcome))
    return 1 if outcome.verdict.anomalies else 0


if __name__ == "__main__":
    sys.exit(main())
