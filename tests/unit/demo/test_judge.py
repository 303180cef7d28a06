"""The judge: honest histories are clean, and each planted fault is found, where it is and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.demo.judge import Evidence, Letter, Verdict, crashed_processes, judge
from streamjobs.demo.ledger import Entry, What

LIVING, CRASHED = 1, 2
PROCESSES = (Entry("opened", LIVING, 0), Entry("opened", CRASHED, 0), Entry("closed", LIVING, 9))


def entry(what: What, job: str, run: int = 1, attempt: int = 0, pid: int = LIVING) -> Entry:
    error = "ValueError" if what == "failed" else ""
    return Entry(what, pid, 1.0, job, "mail", run, attempt or run, error)


def succeeded(job: str, run: int = 1, attempt: int = 0, pid: int = LIVING) -> list[Entry]:
    return [entry("started", job, run, attempt, pid), entry("ended", job, run, attempt, pid)]


def failed(job: str, run: int = 1, attempt: int = 0, pid: int = LIVING) -> list[Entry]:
    return [entry("started", job, run, attempt, pid), entry("failed", job, run, attempt, pid)]


#: One job of each honest fate, and all there is to know of them.
LEDGER: tuple[Entry, ...] = (
    *PROCESSES,
    *succeeded("plain"),
    *failed("flaky", 1),
    *failed("flaky", 2),
    *succeeded("flaky", 3),
    *failed("dead", 1),
    *failed("dead", 2),
    *failed("replayed", 1),
    *succeeded("replayed", 2, attempt=1),
    entry("started", "crashed", pid=CRASHED),
    *succeeded("crashed"),
    *succeeded("uncommitted", pid=CRASHED),
    *succeeded("uncommitted"),
)
LETTERS = (Letter("dead", 2, "exhausted"), Letter("garbage", 1, "undecodable"))
HONEST = Evidence(
    ["plain", "flaky", "dead", "replayed", "crashed", "uncommitted", "garbage", "cancelled"],
    LEDGER,
    LETTERS,
    {"replayed": 1},
    {"cancelled"},
)


def test_an_honest_history_is_clean() -> None:
    assert judge(HONEST) == Verdict({}, {})
    assert judge(HONEST).line == "lost 0, unexplained 0"
    assert judge(HONEST).clean


def without(*dropped: Entry) -> list[Entry]:
    left = list(HONEST.ledger)
    for gone in dropped:
        left.remove(gone)
    return left


@pytest.mark.parametrize(
    ("evidence", "job", "why"),
    [
        (replace(HONEST, ledger=without(*succeeded("plain"))), "plain", "never ran"),
        (
            replace(HONEST, ledger=without(*succeeded("flaky", 3))),
            "flaky",
            "run 2 failed with ValueError, and neither another run nor a dead letter came of it",
        ),
        (replace(HONEST, letters=LETTERS[1:]), "dead", "run 2 failed"),
        (replace(HONEST, letters=LETTERS[:1]), "garbage", "never ran"),
        (replace(HONEST, ledger=without(*succeeded("replayed", 2, 1))), "replayed", "run 1 failed"),
        (replace(HONEST, discarded=()), "cancelled", "never ran"),
    ],
    ids=["never ran", "its retry", "its letter", "the garbage's letter", "its replay", "not discarded"],
)
def test_a_job_that_vanished_is_lost(evidence: Evidence, job: str, why: str) -> None:
    verdict = judge(evidence)

    assert list(verdict.lost) == [job]
    assert why in verdict.lost[job]
    assert not verdict.unexplained
    assert verdict.line == "lost 1, unexplained 0"
    assert not verdict.clean


def test_a_job_that_began_and_never_came_to_an_end_is_both() -> None:
    verdict = judge(replace(HONEST, ledger=without(entry("ended", "plain"))))

    assert verdict.lost == verdict.unexplained == {"plain": "run 1 began and did not come to an end"}


def test_a_replayed_letter_that_never_ran_is_lost() -> None:
    verdict = judge(replace(HONEST, letters=LETTERS[:1], replays={"replayed": 1, "garbage": 1}))

    assert verdict.lost == {"garbage": "it never ran, though its letter was replayed"}


def more(*entries: Entry) -> Evidence:
    return replace(HONEST, ledger=[*HONEST.ledger, *entries])


@pytest.mark.parametrize(
    ("evidence", "job", "why"),
    [
        (more(*succeeded("stranger")), "stranger", "it was never published"),
        (replace(HONEST, letters=[*LETTERS, Letter("x", 1, "exhausted")]), "x", "it was never published"),
        (replace(HONEST, replays={"replayed": 1, "y": 1}), "y", "it was never published"),
        (more(*succeeded("plain")), "plain", "run 1 started 2 times, and no crash explains it"),
        (more(*succeeded("crashed")), "crashed", "run 1 started 3 times, and no crash explains it"),
        (more(*succeeded("plain", 2)), "plain", "run 2 started, but run 1 did not fail"),
        (more(*failed("plain", 1, 1), *succeeded("plain", 2)), "plain", "run 1 started 2 times"),
        (more(*failed("dead", 3, attempt=1)), "dead", "it began anew 1 times, and was replayed 0 times"),
        (replace(HONEST, replays={}), "replayed", "it began anew 1 times, and was replayed 0 times"),
        (more(entry("ended", "plain")), "plain", "run 1 came to an end more often than it began"),
        (more(entry("failed", "plain")), "plain", "run 1 came to an end more often than it began"),
        (more(entry("started", "garbage")), "garbage", "run 1 began and did not come to an end"),
        (more(*failed("garbage")), "garbage", "it is a dead letter (undecodable), yet it ran"),
        (replace(HONEST, letters=[*LETTERS, Letter("plain", 1, "exhausted")]), "plain", "run 1, which did not fail"),
        (replace(HONEST, letters=[*LETTERS, Letter("garbage", 2, "undecodable")]), "garbage", "2 dead letters of it"),
        (replace(HONEST, letters=[*LETTERS, Letter("flaky", 2, "exhausted")]), "flaky", "yet the dead letter of run 2 stands"),
        (replace(HONEST, letters=[*LETTERS, Letter("dead", 1, "exhausted")]), "dead", "2 dead letters of it stand"),
        (
            replace(HONEST, ledger=[*without(*succeeded("plain")), *succeeded("plain", 1, attempt=2)]),
            "plain",
            "its first run was attempt 2",
        ),
    ],
)
def test_what_nothing_accounts_for_is_unexplained(evidence: Evidence, job: str, why: str) -> None:
    verdict = judge(evidence)

    assert list(verdict.unexplained) == [job]
    assert why in verdict.unexplained[job]
    assert not verdict.lost
    assert verdict.line == "lost 0, unexplained 1"
    assert not verdict.clean


def test_a_crash_explains_repeats_of_what_the_crashed_process_ran() -> None:
    assert crashed_processes(HONEST.ledger) == {CRASHED}

    survived = [*HONEST.ledger, Entry("closed", CRASHED, 9)]

    assert set(judge(replace(HONEST, ledger=survived)).unexplained) == {"crashed", "uncommitted"}


@pytest.mark.parametrize(
    ("happened", "letters"),
    [
        ([*succeeded("j", pid=CRASHED), *failed("j"), *succeeded("j", 2)], []),
        ([*succeeded("j", pid=CRASHED), *failed("j")], [Letter("j", 1, "rejected")]),
        ([*failed("j", pid=CRASHED), *succeeded("j"), *succeeded("j", 2)], []),
        ([*failed("j", pid=CRASHED), *succeeded("j")], [Letter("j", 1, "rejected")]),
        ([*failed("j", pid=CRASHED), *failed("j"), *succeeded("j", 2)], [Letter("j", 1, "rejected")]),
    ],
    ids=["ended, then failed", "ended, then died", "failed, then ended", "died, then ended", "failed, then died"],
)
def test_a_run_that_is_delivered_again_after_a_crash_may_go_another_way(
    happened: list[Entry], letters: list[Letter]
) -> None:
    """What the crashed process had written was acknowledged; only its commit was not."""
    honest = Evidence(["j"], [*PROCESSES, *happened], letters)
    assert judge(honest).clean

    assert not judge(replace(honest, ledger=[*honest.ledger, Entry("closed", CRASHED, 9)])).clean


def test_a_crash_does_not_explain_more_repeats_than_it_caused() -> None:
    once = [*failed("j", pid=CRASHED), *succeeded("j"), *succeeded("j", 2)]
    assert judge(Evidence(["j"], [*PROCESSES, *once])).clean

    for again in (succeeded("j"), succeeded("j", 2), succeeded("j", 3)):
        assert judge(Evidence(["j"], [*PROCESSES, *once, *again])).unexplained


# --- any history ------------------------------------------------------------------------------------------------------

Fate = tuple[Sequence[int], bool]
"""How many attempts failed in each round (a round is ended by a replay), and whether the last round succeeds."""

fates = st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=0, max_size=2), st.booleans()), min_size=1, max_size=5)


def happened(fates: Sequence[Fate]) -> Evidence:
    """What a faultless layer leaves of jobs with these fates."""
    ledger: list[Entry] = list(PROCESSES)
    letters, replays = [], {}
    for number, (rounds, ends) in enumerate(fates):
        job, run = f"job-{number}", 0
        for failures in rounds:
            for attempt in range(1, failures + 1):
                run += 1
                ledger += failed(job, run, attempt)
        replays[job] = max(0, len(rounds) - 1) + (ends and bool(rounds))
        if ends or not rounds:
            ledger += succeeded(job, run + 1, 1)
        else:
            letters.append(Letter(job, run, "exhausted"))
    return Evidence([f"job-{n}" for n in range(len(fates))], ledger, letters, replays)


@given(fates)
def test_whatever_happens_is_clean_if_the_layer_is_faultless(fates: list[Fate]) -> None:
    assert judge(happened(fates)) == Verdict({}, {})


@given(fates, st.data())
def test_one_thing_missing_or_doubled_is_always_found(fates: list[Fate], data: st.DataObject) -> None:
    """Whichever line of the ledger, or letter, is dropped or written twice: the verdict is not clean."""
    honest = happened(fates)
    ledger, letters = honest.ledger, honest.letters
    faults = [replace(honest, ledger=_dropped(ledger, line)) for line in ledger if line.job]
    faults += [replace(honest, ledger=[*ledger, line]) for line in ledger if line.job]
    faults += [replace(honest, letters=_dropped(letters, letter)) for letter in letters]
    faults += [replace(honest, letters=[*letters, letter]) for letter in letters]

    assert not judge(data.draw(st.sampled_from(faults))).clean


def _dropped(things: Sequence[Any], thing: Any) -> list[Any]:
    left = list(things)
    left.remove(thing)
    return left
