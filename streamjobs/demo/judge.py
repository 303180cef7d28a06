"""The judge: was a job lost, and is everything that happened explained? A pure function of the evidence.

The evidence comes from outside of the layer: what the broker acknowledged to the publisher, what the handlers wrote into their
ledger, which dead letters stand on the tables, and which of them an operator put back. A job may end more than once only if its
worker process crashed: at least once, and never more than that without a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from streamjobs.demo.ledger import Entry

#: Reasons of letters for records that no handler ever saw.
UNSEEN = frozenset({"undecodable", "type_unknown", "schema_unknown"})


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that stands on its table; `run` is the one that failed."""

    job: str
    run: int
    reason: str
    job_type: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Jobs are named by their ids (a record without one: by its origin).

    `acknowledged`: what was published, by the broker's word. `replays`: how many letters of each job were put back. `discarded`:
    jobs that were ended on purpose without a run.
    """

    acknowledged: Collection[str]
    ledger: Sequence[Entry]
    letters: Sequence[Letter] = ()
    replays: Mapping[str, int] | None = None
    discarded: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and why, by job."""

    lost: Mapping[str, str]
    unexplained: Mapping[str, str]

    @property
    def clean(self) -> bool:
        return not self.lost and not self.unexplained

    @property
    def line(self) -> str:
        return f"lost {len(self.lost)}, unexplained {len(self.unexplained)}"


def judge(evidence: Evidence) -> Verdict:
    """Lost: acknowledged, and neither ended nor a standing letter nor discarded.

    Unexplained: what ran, or became a letter, without a publish, a failure, a replay or a crash that accounts for it.
    """
    crashed = crashed_processes(evidence.ledger)
    histories = _histories(evidence)
    lost, unexplained = {}, {}
    known = frozenset(evidence.acknowledged)
    for job in [*evidence.acknowledged, *(job for job in histories if job not in known)]:
        history = histories.get(job) or History()
        if job in known and not history.settled and job not in evidence.discarded:
            lost[job] = history.last_words
        why = next(_oddities(history, crashed), "") if job in known else "it was never published"
        if why:
            unexplained[job] = why
    return Verdict(lost, unexplained)


def crashed_processes(ledger: Sequence[Entry]) -> frozenset[int]:
    """The worker processes that opened and never closed."""
    closed = {entry.pid for entry in ledger if entry.what == "closed"}
    return frozenset(entry.pid for entry in ledger if entry.what == "opened") - closed


class History:
    """All that is known of one job, in the order of the ledger."""

    def __init__(self) -> None:
        self.starts: dict[int, list[Entry]] = defaultdict(list)
        self.ends: list[Entry] = []
        self.failures: dict[int, list[Entry]] = defaultdict(list)
        self.letters: list[Letter] = []
        self.replays = 0

    def add(self, entry: Entry) -> None:
        if entry.what == "started":
            self.starts[entry.run].append(entry)
        elif entry.what == "ended":
            self.ends.append(entry)
        else:
            self.failures[entry.run].append(entry)

    @property
    def settled(self) -> bool:
        return bool(self.ends or self.letters)

    @property
    def last_words(self) -> str:
        """Where the trace of a lost job ends."""
        if not self.starts:
            return "it never ran" + (", though its letter was replayed" if self.replays else "")
        run = max(self.starts)
        failures = self.failures.get(run)
        if not failures:
            return f"run {run} began and did not come to an end"
        return f"run {run} failed with {failures[-1].error_type}, and neither another run nor a dead letter came of it"


def _histories(evidence: Evidence) -> dict[str, History]:
    found: dict[str, History] = defaultdict(History)
    for entry in evidence.ledger:
        if entry.job:
            found[entry.job].add(entry)
    for letter in evidence.letters:
        found[letter.job].letters.append(letter)
    for job, count in (evidence.replays or {}).items():
        found[job].replays = count
    return found


def _oddities(history: History, crashed: frozenset[int]) -> Iterator[str]:
    """What went on in a process that crashed may go on twice: the run is delivered again, and what it had led to is there."""
    repeats = sum(entry.pid in crashed for starts in history.starts.values() for entry in starts)
    yield from _odd_starts(history, crashed)
    yield from _odd_ends(history, crashed)
    yield from _odd_letters(history)
    if len(history.letters) > 1 + repeats:
        yield f"{len(history.letters)} dead letters of it stand"
    for letter in history.letters:
        if letter.run + 1 in history.starts and not repeats:
            yield f"run {letter.run + 1} started, and yet the dead letter of run {letter.run} stands"


def _odd_starts(history: History, crashed: frozenset[int]) -> Iterator[str]:
    begun_anew = 0
    for run, starts in sorted(history.starts.items()):
        attempt = starts[0].attempt
        begun_anew += run > 1 and attempt == 1
        if len(starts) > 1 + sum(entry.pid in crashed for entry in starts):
            yield f"run {run} started {len(starts)} times, and no crash explains it"
        if run == 1 and attempt != 1:
            yield f"its first run was attempt {attempt}"
        if run > 1 and not history.failures.get(run - 1):
            yield f"run {run} started, but run {run - 1} did not fail"
    if begun_anew > history.replays:
        yield f"it began anew {begun_anew} times, and was replayed {history.replays} times"


def _odd_ends(history: History, crashed: frozenset[int]) -> Iterator[str]:
    """Together with `_odd_starts`: a job ends once, and once more at most for each of its runs that met a crash."""
    for run in sorted(history.starts.keys() | history.failures.keys() | {end.run for end in history.ends}):
        starts = history.starts.get(run, [])
        over = len(history.failures.get(run, ())) + sum(end.run == run for end in history.ends)
        if over < sum(entry.pid not in crashed for entry in starts):
            yield f"run {run} began and did not come to an end"
        if over > len(starts):
            yield f"run {run} came to an end more often than it began"


def _odd_letters(history: History) -> Iterator[str]:
    for letter in history.letters:
        if letter.reason in UNSEEN and history.starts:
            yield f"it is a dead letter ({letter.reason}), yet it ran"
        if letter.reason not in UNSEEN and not history.failures.get(letter.run):
            yield f"it is a dead letter of run {letter.run}, which did not fail"
