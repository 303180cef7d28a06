"""What is told of a run: one sentence, and a report that others can read later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from tests.chaos.checker import Verdict
from tests.chaos.run import Outcome


def sentence(outcome: Outcome) -> str:
    """The last line of a run: jobs, faults by kind, repeats, anomalies."""
    verdict, faults = outcome.verdict, fault_counts(outcome)
    return (
        f"seed {outcome.plan.seed}, {outcome.plan.seconds / 60:g} min, {outcome.plan.brokers or 'foreign'} broker(s): "
        f"{verdict.jobs:,} jobs ({verdict.runs:,} runs, {verdict.letters:,} letters); "
        f"{sum(faults.values())} faults ({_told(faults)}); "
        f"{sum(verdict.repeats.values())} repeats ({_told(verdict.repeats)}); "
        f"anomalies {len(verdict.anomalies)}{_anomalies(verdict)}"
    )


def fault_counts(outcome: Outcome) -> Counter[str]:
    return Counter(fault.name for fault in outcome.history.faults if fault.name != "join")


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _anomalies(verdict: Verdict) -> str:
    names = Counter(anomaly.name for anomaly in verdict.anomalies)
    return f" ({_told(names)})" if names else ""


def markdown(outcome: Outcome) -> str:
    verdict = outcome.verdict
    lines = ["# Chaos", "", sentence(outcome), "", *_lateness(verdict), f"Settled {outcome.settled_s:.1f} s after the last fault.", ""]
    lines += [f"- {note}" for note in outcome.notes]
    lines += ["", "## Anomalies", ""]
    lines += [f"- **{anomaly.name}**: {anomaly.text}" for anomaly in verdict.anomalies] or ["None."]
    lines += ["", "## Schedule", "", f"`python -m tests.chaos {arguments(outcome)}`", ""]
    lines += [f"- {act.at_s:7.2f} s  {act.name}, {act.lasts_s:g} s, pick {act.pick}" for act in outcome.acts]
    lines += ["", "## What was done", ""]
    began = min((fault.began for fault in outcome.history.faults), default=0.0)
    lines += [
        f"- {fault.began - began:7.2f} s  {fault.name}, {fault.ended - fault.began:.2f} s, {', '.join(map(str, fault.pids)) or 'all'}"
        for fault in sorted(outcome.history.faults, key=lambda fault: fault.began)
    ]
    return "\n".join(lines) + "\n"


def _lateness(verdict: Verdict) -> list[str]:
    late = verdict.late_s
    if not late:
        return []
    median, most = late[len(late) // 2], late[int(len(late) * 0.99)]
    return [f"Delayed runs started {median:.3f} s (median), {most:.3f} s (99 %), {late[-1]:.3f} s (latest) after they were due.", ""]


def arguments(outcome: Outcome) -> str:
    """The command that repeats the schedule."""
    order = outcome.plan
    return f"--minutes {order.seconds / 60:g} --seed {order.seed} --brokers {order.brokers} --protocol {order.protocol}"


def as_json(outcome: Outcome) -> str:
    verdict = outcome.verdict
    return json.dumps(
        {
            "seed": outcome.plan.seed,
            "arguments": arguments(outcome),
            "jobs": verdict.jobs,
            "runs": verdict.runs,
            "letters": verdict.letters,
            "faults": fault_counts(outcome),
            "repeats": verdict.repeats,
            "anomalies": [asdict(anomaly) for anomaly in verdict.anomalies],
            "settled_s": outcome.settled_s,
            "schedule": [asdict(act) for act in outcome.acts],
            "notes": outcome.notes,
        },
        indent=1,
    )
