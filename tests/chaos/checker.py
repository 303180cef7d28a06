"""The judge: a pure function of a history that names what must not happen, and counts the repeats that may.

At least once is the promise. So a run may be repeated that was in flight, or had ended and was not committed yet, when its worker
was struck; everything else that happens twice, too early, out of order or never is an anomaly:

=============================  =========================================================================================
lost-job                       acknowledged to the publisher, and neither ended nor waiting anywhere
stuck                          still waiting when all had had time to end; or ended, and never committed
skipped-offset                 a commit passed over a record that no handler ever saw, and that went nowhere
commit-past-unfinished         a commit says "finished" of a record before its end, or before its retry or letter was stored
commit-backwards               a commit takes back what an earlier one said, and (after an outage) is not set right at once
order-violation                jobs of one key started out of their order (key_strict: before the one ahead had ended)
double-settle                  one run has two next runs or two letters, or a job has both succeeded and died, unexplained
dead-letter-missing            failed for good, and no letter
duplicate-after-finish-known   a run started although a commit had said before that it is finished
repeat-unexplained             a run was repeated, and nothing had happened to its worker
released-early                 a delayed run started before it was due
attempts-wrong                 the budget of retries was not kept: an attempt skipped, repeated or charged wrongly
wrongly-convicted              a letter says "poison" of a job that kills nobody
identity-changed               one job under two origins
unknown-job                    a handler ran what nobody published
bad-exit                       a worker ended without being told to (other than: its brokers were away when it was started), badly
                               when it was told to, or not at all
=============================  =========================================================================================
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.case import CLOCK_S, COMMIT_S, Case
from tests.chaos.history import Exit, Fault, Handling, History, Place, Stored

#: A client sends a record again for so long.
SENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Anomaly:
    name: str
    text: str


@dataclass
class Verdict:
    """What the judge found. `repeats` by cause; `late_s`: by how much delayed runs started after they were due."""

    jobs: int = 0
    runs: int = 0
    letters: int = 0
    repeats: Counter[str] = field(default_factory=Counter)
    anomalies: list[Anomaly] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


def judge(history: History) -> Verdict:
    case = Case(history)
    verdict = Verdict(
        jobs=len(case.job_ids()),
        runs=sum(line.what == "start" for line in history.handlings),
        letters=sum(record.role == "dead" for record in history.stored),
        late_s=sorted(_lateness(case)),
    )
    for rule in RULES:
        verdict.anomalies += rule(case)
    _judge_repeats(case, verdict)
    _judge_copies(case, verdict)
    return verdict


# What became of every job ------------------------------------------------------------------------------------------------


def every_job_ends(case: Case) -> Iterator[Anomaly]:
    for job_id in case.job_ids():
        if case.succeeded(job_id) or case.letters(job_id):
            continue
        waiting = [r for r in case.records_of[job_id] if r.role != "dead" and r.place not in case.covered]
        final = _final_failure(case, job_id)
        if waiting:
            yield Anomaly("stuck", f"job {job_id} waits at {waiting[-1].place} ({_story(case, job_id)})")
        elif final is not None:
            yield Anomaly("dead-letter-missing", f"job {job_id} {final.what} for good in run {final.run}: {_story(case, job_id)}")
        elif case.records_of[job_id]:
            yield Anomaly("lost-job", f"job {job_id}: {_story(case, job_id)}")
        else:
            yield Anomaly("lost-job", f"job {job_id} was acknowledged at {case.acknowledged[job_id].place} and is not there")


def all_is_committed(case: Case) -> Iterator[Anomaly]:
    """What has ended is committed in the end."""
    left: Counter[tuple[str, int]] = Counter()
    for place, record in case.stored.items():
        ended = case.succeeded(record.id) or case.letters(record.id)
        if record.role != "dead" and ended and place not in case.covered:
            left[place.topic, place.partition] += 1
    for (topic, partition), count in left.items():
        yield Anomaly("stuck", f"{count} records of {topic}/{partition} have ended and were never committed")


def handlers_run_what_was_published(case: Case) -> Iterator[Anomaly]:
    published = {publication.id for publication in case.history.publications}
    for job_id in case.handlings_of:
        if job_id not in published:
            yield Anomaly("unknown-job", f"job {job_id} was never published")


def jobs_keep_their_identity(case: Case) -> Iterator[Anomaly]:
    for job_id in case.job_ids():
        found = {record.origin for record in case.records_of[job_id]} | {line.origin for line in case.handlings_of[job_id]}
        if len(found) > max(1, len(_published(case, job_id))):
            yield Anomaly("identity-changed", f"job {job_id} has the origins {', '.join(sorted(found))}")


def _published(case: Case, job_id: str) -> list[Stored]:
    """A job's first records: one, or more where its publisher's client sent it again, not knowing that it was stored."""
    records = [record for record in case.records_of[job_id] if record.role in ("main", "delay") and record.first]
    several = [record for record in records if record.place.topic == records[0].place.topic]
    known = len(several) < 2 or any(True for _ in case.hits(None, several[0].appended - SENT_S, several[-1].appended, abrupt=True))
    return several if known else several[:1]


def _final_failure(case: Case, job_id: str) -> Handling | None:
    """A run after which a job should be a letter."""
    for line in case.handlings_of[job_id]:
        if line.what == "rejected" or (line.what == "failed" and line.attempt >= case.rule(line.type).attempts):
            return line
    return None


# Commits -----------------------------------------------------------------------------------------------------------------


def commits_move_forward(case: Case) -> Iterator[Anomaly]:
    for setback in case.setbacks:
        if case.was_set_right(setback):
            continue
        before, after, offsets = setback
        what = f"{len(offsets)} finished offsets taken back, first {offsets[0]}" if offsets else "its base moved back"
        yield Anomaly(
            "commit-backwards", f"{after.topic}/{after.partition} of {after.group}: {before.base} → {after.base} at {after.at:.3f}: {what}"
        )


def commits_tell_the_truth(case: Case) -> Iterator[Anomaly]:
    for place, at in case.covered.items():
        record = case.stored[place]
        finished = case.finished_at(record)
        if finished is not None and finished <= at + CLOCK_S:
            continue
        seen = place in case.handled or record.role == "delay"
        name = "commit-past-unfinished" if seen or finished is not None else "skipped-offset"
        when = "never ended" if finished is None else f"ended {finished - at:.3f} s later"
        yield Anomaly(name, f"{place} (job {record.id}, run {record.run}) committed at {at:.3f}, {when}: {_story(case, record.id)}")


# Order and time ----------------------------------------------------------------------------------------------------------


def keys_start_in_order(case: Case) -> Iterator[Anomaly]:
    for (key, _), starts in _first_starts(case).items():
        for (offset, start), (later_offset, later) in pairwise(sorted(starts.items())):
            if later.at < start.at:
                yield Anomaly(
                    "order-violation",
                    f"key {key}: offset {later_offset} of {start.place.topic}/{start.place.partition} started"
                    f" {start.at - later.at:.3f} s before {offset}",
                )


def strict_keys_wait_for_ends(case: Case) -> Iterator[Anomaly]:
    for (key, strict), starts in _first_starts(case).items():
        if not strict:
            continue
        for (_, start), (_, later) in pairwise(sorted(starts.items())):
            record = case.stored.get(start.place)
            over = case.finished_at(record) if record else None
            if record and (over is None or over > later.at + CLOCK_S):
                yield Anomaly("order-violation", f"key {key} (strict): {later.place} started before the end of {start.place}")


def _first_starts(case: Case) -> dict[tuple[str, bool], dict[int, Handling]]:
    """By (partition and key, strict): the first start of each first run that was not delayed."""
    found: dict[tuple[str, bool], dict[int, Handling]] = defaultdict(dict)
    for (place, run), starts in case.starts.items():
        record, order = case.stored.get(place), case.rule(starts[0].type).order
        if run == 1 and record and record.role == "main" and record.key is not None and not record.due and order in ("key", "key_strict"):
            found[f"{place.topic}/{place.partition} {starts[0].key}", order == "key_strict"][place.offset] = starts[0]
    return found


def nothing_starts_early(case: Case) -> Iterator[Anomaly]:
    for start, record in _due_starts(case):
        if start.at < record.due - CLOCK_S:
            yield Anomaly("released-early", f"job {start.id}, run {start.run} started {record.due - start.at:.3f} s before it was due")


def _lateness(case: Case) -> Iterator[float]:
    for start, record in _due_starts(case):
        if case.starts[start.place, start.run][0] is start:
            yield start.at - record.due


def _due_starts(case: Case) -> Iterator[tuple[Handling, Stored]]:
    for (place, run), starts in case.starts.items():
        record = case.stored.get(place)
        if record is not None and record.due and record.run == run:
            for start in starts:
                yield start, record


def _could_not_replace(case: Case, end: Exit) -> bool:
    """It was told to stop while a process of it that had been killed could not be started again: no broker answered."""
    since = end.at - REPLACES_WITHIN_S
    return case.lost_a_process(end.pid, since, end.at) and case.no_broker(end.pid, since, end.at)


# Poison ------------------------------------------------------------------------------------------------------------------

TOXIC = "toxic"


def only_killers_are_convicted(case: Case) -> Iterator[Anomaly]:
    for record in case.history.stored:
        if record.role == "dead" and record.reason == "poison" and record.type != TOXIC:
            yield Anomaly("wrongly-convicted", f"job {record.id}, run {record.run}: {_story(case, record.id)}")


# Attempts ----------------------------------------------------------------------------------------------------------------


def attempts_are_kept(case: Case) -> Iterator[Anomaly]:
    """A failed run charges one attempt, a snooze none; the same run always has the same attempt."""
    for job_id, lines in case.handlings_of.items():
        attempts: dict[int, int] = {}
        charges: dict[int, int] = {}
        for line in lines:
            if attempts.setdefault(line.run, line.attempt) != line.attempt:
                yield Anomaly("attempts-wrong", f"job {job_id}, run {line.run}: attempt {attempts[line.run]} and {line.attempt}")
            if line.what in ("failed", "snoozed"):
                charges[line.run] = line.what == "failed"
        yield from _wrong_budget(job_id, attempts, charges)


def _wrong_budget(job_id: str, attempts: dict[int, int], charges: dict[int, int]) -> Iterator[Anomaly]:
    for run, attempt in attempts.items():
        if run == 1 and attempt != 1:
            yield Anomaly("attempts-wrong", f"job {job_id}: run 1 is attempt {attempt}")
        if run > 1 and run - 1 not in attempts:
            yield Anomaly("attempts-wrong", f"job {job_id}: run {run} without a run {run - 1}")
        elif run > 1 and attempt != attempts[run - 1] + charges.get(run - 1, 1):
            yield Anomaly("attempts-wrong", f"job {job_id}: run {run} is attempt {attempt} after attempt {attempts[run - 1]}")


# Workers -----------------------------------------------------------------------------------------------------------------

#: All was finished, or work was abandoned at the end of the drain.
GOOD_EXITS = (0, 4)
#: A worker that is told to stop while it is being started ends by the signal.
STARTS_WITHIN_S = 10.0
#: A process that was killed is replaced within this time, unless no broker answers.
REPLACES_WITHIN_S = 30.0


def workers_end_well(case: Case) -> Iterator[Anomaly]:
    for end in case.history.exits:
        born = case.born.get(end.pid, 0.0)
        if end.told and end.code == -signal.SIGTERM and end.at - born < STARTS_WITHIN_S:
            continue
        if end.code == 1 and case.no_broker(end.pid, born, min(end.at, born + STARTS_WITHIN_S)):
            continue
        if end.told and end.code == 1 and _could_not_replace(case, end):
            continue
        if not end.told:
            yield Anomaly("bad-exit", f"worker {end.pid} ended with {end.code} and nobody had told it to ({end.log})")
        elif end.code not in GOOD_EXITS:
            how = "did not end" if end.code is None else f"ended with {end.code}"
            yield Anomaly("bad-exit", f"worker {end.pid} was told to stop and {how} ({end.log})")


# Repeats -----------------------------------------------------------------------------------------------------------------


#: Nobody can tell it meanwhile that others run its partitions; it learns of it with its next heartbeat.
LATE = "by a worker that had been frozen or cut off"


def _judge_repeats(case: Case, verdict: Verdict) -> None:
    """Runs that one record started more than once."""
    for (place, run), starts in case.starts.items():
        for before, again in pairwise(starts):
            cause, name = _why_again(case, place, before, again)
            if cause:
                verdict.repeats[cause] += 1
            else:
                verdict.anomalies.append(Anomaly(name, _repeat_text(case, place, run, before, again)))


def _why_again(case: Case, place: Place, before: Handling, again: Handling) -> tuple[str, str]:
    """(why a run was allowed to start again, or "") and the anomaly that it is otherwise."""
    known = case.covered.get(place)
    if known is not None and known < again.at - CLOCK_S:
        late = case.asleep(again.pid, known, again.at)
        return (LATE if late else ""), "duplicate-after-finish-known"
    if again.pid != before.pid and case.asleep(again.pid, before.at, again.at):
        return LATE, ""
    end = next((e for e in case.ends[before.place, before.run] if e.pid == before.pid and e.at >= before.at), None)
    if end is None or end.at > again.at or case.handed_over(before, end.at, again.at):
        return _why_not_ended(case, before, again), "repeat-unexplained"
    return _why_not_committed(case, end, again), "repeat-unexplained"


def _why_not_ended(case: Case, before: Handling, again: Handling) -> str:
    if case.died(before.pid, before.at, again.at):
        return "in flight at a crash"
    if any(True for _ in case.hits(before.pid, before.at, again.at, abrupt=True)):
        return "in flight when its worker was frozen or cut off"
    return "in flight when its partition moved" if case.unsettled(before.at, again.at) else ""


def _why_not_committed(case: Case, end: Handling, again: Handling) -> str:
    for fault in case.hits(end.pid, end.at, again.at, abrupt=True):
        if _unsaved(fault, end):
            return "ended, not committed at a crash" if fault.dies else "ended, not committed when cut off"
    return ""


def _unsaved(fault: Fault, end: Handling) -> bool:
    """Whether an end could not have been committed before the fault struck, or while it lasted."""
    return fault.began - COMMIT_S <= end.at


def _repeat_text(case: Case, place: Place, run: int, before: Handling, again: Handling) -> str:
    known = case.covered.get(place)
    said = f", finished by a commit at {known:.3f}" if known else ""
    return (
        f"{place} (job {again.id}, run {run}) started at {before.at:.3f} by {before.pid}, again at {again.at:.3f} by {again.pid}"
        f"{said}: {_story(case, again.id)}"
    )


def _judge_copies(case: Case, verdict: Verdict) -> None:
    """Runs that have more than one record, jobs that have more than one end."""
    for job_id in case.job_ids():
        copies = _copies(case.records_of[job_id])
        for (role, run, _), records in copies.items():
            explained = _why_copied(case, records)
            if explained:
                verdict.repeats[explained] += len(records) - 1
            else:
                what = "letters" if role == "dead" else "records"
                text = f"job {job_id}, run {run} has {len(records)} {what}: {_story(case, job_id)}"
                verdict.anomalies.append(Anomaly("double-settle", text))
        verdict.anomalies += _two_ends(case, job_id)


def _copies(records: Iterable[Stored]) -> dict[tuple[str, int, int], list[Stored]]:
    """Records of one run that stand in one kind of topic; tiers are passed more than once, so they don't count."""
    found: dict[tuple[str, int, int], list[Stored]] = defaultdict(list)
    for record in records:
        if record.role != "delay":
            found[record.role, record.run, record.holds].append(record)
    return {identity: several for identity, several in found.items() if len(several) > 1}


def _why_copied(case: Case, records: list[Stored]) -> str:
    """The run before was repeated, or a fault came between a record's being stored and that being known."""
    role, run, job_id = records[0].role, records[0].run, records[0].id
    source = run if role == "dead" else run - 1
    settled = sum(line.what == "start" and line.run == source for line in case.handlings_of[job_id])
    if settled >= len(records):
        return "settled again after a repeat"
    entered = min(r.appended for r in case.records_of[job_id] if r.run == run)
    struck = any(True for _ in case.hits(None, entered - COMMIT_S, records[-1].appended, abrupt=True))
    return "stored again after a fault" if struck else ""


def _two_ends(case: Case, job_id: str) -> Iterator[Anomaly]:
    letters = {record.run for record in case.letters(job_id)}
    if len(letters) > 1:
        yield Anomaly("double-settle", f"job {job_id} has letters of the runs {sorted(letters)}: {_story(case, job_id)}")
    if letters and case.succeeded(job_id):
        yield Anomaly("double-settle", f"job {job_id} has succeeded and is a letter: {_story(case, job_id)}")


# Telling it --------------------------------------------------------------------------------------------------------------


def _story(case: Case, job_id: str, limit: int = 12) -> str:
    """What happened to a job, in order."""
    told = [(r.appended, f"{r.role} {r.place.partition}@{r.place.offset} run {r.run}") for r in case.records_of[job_id]]
    told += [(line.at, f"{line.what} run {line.run} by {line.pid}") for line in case.handlings_of[job_id]]
    lines = [f"{at:.3f} {text}" for at, text in sorted(told)]
    return "; ".join(lines[:limit]) + ("; …" if len(lines) > limit else "")


RULES: tuple[Callable[[Case], Iterator[Anomaly]], ...] = (
    every_job_ends,
    all_is_committed,
    handlers_run_what_was_published,
    jobs_keep_their_identity,
    commits_move_forward,
    commits_tell_the_truth,
    keys_start_in_order,
    strict_keys_wait_for_ends,
    nothing_starts_early,
    attempts_are_kept,
    workers_end_well,
    only_killers_are_convicted,
)
