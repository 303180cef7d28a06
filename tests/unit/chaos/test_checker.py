"""The judge of the chaos runs: a clean history has no anomalies, and every planted fault is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.checker import Verdict, judge
from tests.chaos.history import (
    Committed,
    Exit,
    Fault,
    Handling,
    History,
    Journal,
    Place,
    Publication,
    Rule,
    Stored,
    from_json,
    read,
    to_json,
)

MAIN, RETRY, DEAD, TIER = "jobs.q", "jobs.q.g.retry", "jobs.q.g.dlt", "sys.g.delay.5s"
GROUPS = {MAIN: "g", RETRY: "g.retry", TIER: "g.timer"}
ROLES = {MAIN: "main", RETRY: "retry", DEAD: "dead", TIER: "delay"}
ALICE, BOB = 11, 12


class Tale:
    """Builds a history; every line without an instant comes 0.1 s after the one before."""

    def __init__(self, *rules: Rule) -> None:
        self.history = History()
        self.now = 1000.0
        for rule in rules or (Rule("step"), Rule("keyed", "key"), Rule("strict", "key_strict", 3), Rule("shaky", attempts=2)):
            self.history.add(rule)

    def _at(self, at: float | None) -> float:
        self.now = self.now + 0.1 if at is None else at
        return self.now

    def stored(self, job: str, offset: int, topic: str = MAIN, at: float | None = None, **more: object) -> Stored:
        record = Stored(ROLES[topic], Place(topic, 0, offset), self._at(at), job, job.split("-", maxsplit=1)[0], origin=f"o-{job}", **more)  # type: ignore[arg-type]
        self.history.add(record)
        return record

    def published(self, job: str, offset: int, topic: str = MAIN, **more: object) -> Stored:
        record = self.stored(job, offset, topic, **{"first": True, **more})
        self.history.add(Publication(job, record.type, self.now, record.place))
        return record

    def handled(self, what: str, record: Stored, pid: int = ALICE, at: float | None = None, run: int = 0, attempt: int = 0) -> None:
        run, attempt = run or record.run, attempt or record.attempt
        line = Handling(
            what, self._at(at), pid, record.id, record.type, run, attempt, record.origin, record.place, record.key
        )
        self.history.add(line)

    def ran(self, record: Stored, what: str = "succeeded", pid: int = ALICE, **more: int) -> None:
        self.handled("start", record, pid, **more)  # type: ignore[arg-type]
        self.handled(what, record, pid, **more)  # type: ignore[arg-type]

    def committed(self, base: int, topic: str = MAIN, *finished: tuple[int, int], at: float | None = None, cut: bool = False) -> None:
        self.history.add(Committed(GROUPS[topic], topic, 0, base, self._at(at), finished, cut))

    def struck(self, name: str, pids: tuple[int, ...] = (ALICE,), lasts_s: float = 0.1, **more: object) -> None:
        began = self._at(None)
        self.now += lasts_s
        self.history.add(Fault(name, began, self.now, pids, **more))  # type: ignore[arg-type]

    def killed(self, pid: int = ALICE) -> None:
        self.struck("kill", (pid,), dies=True)

    def quiet(self) -> None:
        """Long enough that no earlier fault explains anything."""
        self.now += 60


def names(tale: Tale) -> list[str]:
    return sorted({anomaly.name for anomaly in judge(tale.history).anomalies})


def verdict(tale: Tale) -> Verdict:
    return judge(tale.history)


def clean() -> Tale:
    """Jobs of every kind, a crash, a freeze and a broker's restart; nothing that must not happen."""
    tale = Tale()
    one, two = tale.published("step-1", 0), tale.published("keyed-2", 1, key="k")
    three = tale.published("keyed-3", 2, key="k")
    tale.ran(one)
    tale.ran(two)
    tale.committed(1, MAIN, (1, 2))
    tale.handled("start", three)
    tale.killed()
    tale.ran(three, pid=BOB)
    tale.committed(3)
    shaky = tale.published("shaky-4", 3)
    tale.ran(shaky, "failed", BOB)
    tier = tale.stored("shaky-4", 0, TIER, run=2, attempt=2, due=tale.now + 6)
    tale.committed(4)
    again = tale.stored("shaky-4", 0, RETRY, at=tale.now + 5, run=2, attempt=2, due=tier.due)
    tale.committed(1, TIER)
    tale.now = tier.due
    tale.ran(again, "failed", BOB)
    tale.stored("shaky-4", 0, DEAD, run=2, attempt=2)
    tale.committed(1, RETRY)
    strict, behind = tale.published("strict-5", 4, key="s"), tale.published("strict-6", 5, key="s")
    tale.ran(strict, "failed", BOB)
    tale.ran(strict, "succeeded", BOB, run=2, attempt=2)
    tale.ran(behind, "succeeded", BOB)
    tale.committed(6)
    return tale


def test_a_clean_history_has_no_anomalies() -> None:
    """Every kind of job, and repeats that a crash explains: nothing to complain of, one repeat counted."""
    found = verdict(clean())

    assert found.anomalies == []
    assert (found.jobs, found.letters) == (6, 1)
    assert dict(found.repeats) == {"in flight at a crash": 1}
    assert found.late_s == [pytest.approx(0.1)]


# Jobs that do not end ----------------------------------------------------------------------------------------------------


def test_a_job_that_is_nowhere_is_lost() -> None:
    tale = Tale()
    tale.history.add(Publication("step-1", "step", 1.0, Place(MAIN, 0, 7)))

    assert names(tale) == ["lost-job"]


def test_a_job_that_was_committed_and_never_ended_is_lost() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.handled("start", record)
    tale.committed(1)

    assert names(tale) == ["commit-past-unfinished", "lost-job"]


def test_an_unacknowledged_job_need_not_exist() -> None:
    tale = Tale()
    tale.history.add(Publication("step-1", "step", 1.0, error="not acknowledged"))

    assert names(tale) == []


def test_an_unacknowledged_job_that_is_stored_must_end() -> None:
    tale = Tale()
    tale.history.add(Publication("step-1", "step", 1.0, error="not acknowledged"))
    tale.stored("step-1", 0)

    assert names(tale) == ["stuck"]


def test_a_job_that_still_waits_in_a_tier_is_stuck() -> None:
    tale = Tale()
    tale.ran(tale.published("shaky-1", 0), "failed")
    tale.stored("shaky-1", 0, TIER, run=2, attempt=2)
    tale.committed(1)

    assert names(tale) == ["stuck"]


def test_an_end_that_is_never_committed_is_stuck() -> None:
    tale = Tale()
    tale.ran(tale.published("step-1", 0))

    assert names(tale) == ["stuck"]


def test_a_job_that_failed_for_good_needs_a_letter() -> None:
    tale = Tale()
    tale.ran(tale.published("shaky-1", 0, attempt=1), "rejected")
    tale.committed(1)

    assert names(tale) == ["commit-past-unfinished", "dead-letter-missing"]


def test_a_handler_that_runs_what_nobody_published_is_told() -> None:
    tale = Tale()
    tale.ran(tale.stored("step-1", 0))
    tale.committed(1)

    assert names(tale) == ["unknown-job"]


def test_a_job_keeps_its_origin() -> None:
    """A tier's copy that forgets where the job came from makes two jobs of one."""
    tale = Tale()
    tale.published("step-1", 0, TIER)
    record = replace(tale.stored("step-1", 0), origin="another")
    tale.history.stored[-1] = record
    tale.committed(1, TIER)
    tale.ran(record)
    tale.committed(1)

    assert names(tale) == ["identity-changed"]


@pytest.mark.parametrize("outage", [True, False])
def test_a_client_may_store_a_job_twice_in_an_outage(outage: bool) -> None:
    """It was sent again, for nobody could say whether the first had arrived: two records of one job, each its own origin."""
    tale = Tale()
    tale.ran(tale.published("step-1", 0))
    if outage:
        tale.struck("freeze-leader", ())
    else:
        tale.quiet()
    second = replace(tale.stored("step-1", 1, first=True), origin="another")
    tale.history.stored[-1] = second
    tale.ran(second)
    tale.committed(2)

    assert names(tale) == ([] if outage else ["double-settle", "identity-changed"])


# Commits -----------------------------------------------------------------------------------------------------------------


def test_a_commit_that_passes_over_an_unseen_record_skips_it() -> None:
    tale = Tale()
    tale.published("step-1", 0)
    tale.ran(tale.published("step-2", 1))
    tale.committed(2)

    assert names(tale) == ["lost-job", "skipped-offset"]


def test_a_map_that_names_a_running_job_passes_over_it() -> None:
    tale = Tale()
    tale.published("step-1", 0)
    second = tale.published("step-2", 1)
    tale.handled("start", second)
    tale.committed(0, MAIN, (1, 2))
    tale.handled("succeeded", second)
    tale.ran(tale.history.stored[0])
    tale.committed(2)

    assert names(tale) == ["commit-past-unfinished"]


def test_a_commit_must_not_precede_the_retry_that_it_relies_on() -> None:
    tale = Tale()
    tale.ran(tale.published("shaky-1", 0), "failed")
    tale.committed(1)
    tale.ran(tale.stored("shaky-1", 0, RETRY, run=2, attempt=2))
    tale.committed(1, RETRY)

    assert names(tale) == ["commit-past-unfinished"]


def test_a_tier_must_not_be_committed_before_its_record_has_moved_on() -> None:
    tale = Tale()
    tale.published("step-1", 0, TIER)
    tale.committed(1, TIER)
    tale.ran(tale.stored("step-1", 0))
    tale.committed(1)

    assert names(tale) == ["commit-past-unfinished"]


def test_a_record_moved_without_a_run_may_be_committed() -> None:
    """A hold: the same run, moved to the ladder, is not skipped."""
    tale = Tale()
    tale.published("step-1", 0)
    tale.stored("step-1", 0, TIER, holds=1)
    tale.committed(1)
    tale.ran(tale.stored("step-1", 0, RETRY, holds=1))
    tale.committed(1, TIER)
    tale.committed(1, RETRY)

    assert names(tale) == []


def test_a_base_that_moves_back_is_told() -> None:
    tale = Tale()
    for n in range(3):
        tale.ran(tale.published(f"step-{n}", n))
    tale.committed(3)
    tale.committed(1)
    tale.committed(3)

    assert names(tale) == ["commit-backwards"]


def test_a_base_that_a_frozen_broker_moved_back_must_be_set_right_soon() -> None:
    """It was frozen with an older commit in its hands, and took it after the newer one."""
    for back_after_s, found in ((1.0, []), (60.0, ["commit-backwards"])):
        tale = Tale()
        for n in range(3):
            tale.ran(tale.published(f"step-{n}", n))
        tale.struck("freeze-leader", ())
        tale.committed(3)
        tale.committed(1)
        tale.now += back_after_s
        tale.committed(3)
        assert names(tale) == found


def test_a_map_that_forgets_is_told() -> None:
    tale = Tale()
    head = tale.published("step-0", 0)
    tale.ran(tale.published("step-1", 1))
    tale.committed(0, MAIN, (1, 2))
    tale.committed(0)
    tale.ran(head)
    tale.committed(2)

    assert names(tale) == ["commit-backwards"]


def test_a_map_that_was_cut_to_its_limit_may_forget() -> None:
    tale = Tale()
    head = tale.published("step-0", 0)
    tale.ran(tale.published("step-1", 1))
    tale.committed(0, MAIN, (1, 2))
    tale.committed(0, cut=True)
    tale.ran(head)
    tale.committed(2)

    assert names(tale) == []


# Order and time ----------------------------------------------------------------------------------------------------------


def test_jobs_without_a_key_start_as_they_like() -> None:
    """Whatever the order of their type."""
    tale = Tale()
    first, second = tale.published("keyed-1", 0), tale.published("keyed-2", 1)
    tale.ran(second)
    tale.ran(first)
    tale.committed(2)

    assert names(tale) == []


def test_jobs_of_one_key_start_in_order() -> None:
    tale = Tale()
    first, second = tale.published("keyed-1", 0, key="k"), tale.published("keyed-2", 1, key="k")
    tale.ran(second)
    tale.ran(first)
    tale.committed(2)

    assert names(tale) == ["order-violation"]


def test_jobs_of_different_keys_may_pass_each_other() -> None:
    tale = Tale()
    first, second = tale.published("keyed-1", 0, key="k"), tale.published("keyed-2", 1, key="l")
    tale.ran(second)
    tale.ran(first)
    tale.committed(2)

    assert names(tale) == []


def test_a_repeat_does_not_break_the_order() -> None:
    tale = Tale()
    first, second = tale.published("keyed-1", 0, key="k"), tale.published("keyed-2", 1, key="k")
    tale.ran(first)
    tale.ran(second)
    tale.killed()
    tale.ran(first, pid=BOB)
    tale.ran(second, pid=BOB)
    tale.committed(2)

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"ended, not committed at a crash": 2}


def test_a_strict_key_waits_for_a_failed_head() -> None:
    tale = Tale()
    first, second = tale.published("strict-1", 0, key="k"), tale.published("strict-2", 1, key="k")
    tale.ran(first, "failed")
    tale.ran(second)
    tale.ran(first, run=2, attempt=2)
    tale.committed(2)

    assert names(tale) == ["order-violation"]


def test_a_delayed_job_must_not_start_early() -> None:
    tale = Tale()
    record = tale.published("step-1", 0, due=tale.now + 10)
    tale.ran(record)
    tale.committed(1)

    assert names(tale) == ["released-early"]


# Poison ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "bad"), [("toxic-1", False), ("step-1", True)])
def test_only_a_job_that_kills_is_convicted(job: str, bad: bool) -> None:
    tale = Tale()
    tale.handled("start", tale.published(job, 0))
    tale.stored(job, 0, DEAD, reason="poison")
    tale.committed(1)

    assert names(tale) == (["wrongly-convicted"] if bad else [])


# Attempts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "attempt"), [(2, 1), (2, 3), (3, 2)])
def test_the_budget_of_retries_is_kept(run: int, attempt: int) -> None:
    """A failure that is not charged, charged twice, or a run that was left out."""
    tale = Tale(Rule("shaky", attempts=9))
    tale.ran(tale.published("shaky-1", 0), "failed")
    again = tale.stored("shaky-1", 0, RETRY, run=run, attempt=attempt)
    tale.committed(1)
    tale.ran(again)
    tale.committed(1, RETRY)

    assert names(tale) == ["attempts-wrong"]


def test_a_snooze_charges_no_attempt() -> None:
    tale = Tale()
    tale.ran(tale.published("step-1", 0), "snoozed")
    again = tale.stored("step-1", 0, RETRY, run=2)
    tale.committed(1)
    tale.ran(again)
    tale.committed(1, RETRY)

    assert names(tale) == []


# Repeats -----------------------------------------------------------------------------------------------------------------


def repeated(before_the_second: str) -> Tale:
    """A job that ran, and runs again at another worker after something."""
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.ran(record)
    getattr(tale, before_the_second)()
    tale.ran(record, pid=BOB)
    tale.committed(1)
    return tale


def test_a_repeat_without_a_cause_is_told() -> None:
    assert names(repeated("quiet")) == ["repeat-unexplained"]


def test_a_repeat_after_a_crash_is_counted() -> None:
    tale = repeated("killed")

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"ended, not committed at a crash": 1}


def test_an_end_long_before_the_crash_should_have_been_committed() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.ran(record)
    tale.quiet()
    tale.killed()
    tale.ran(record, pid=BOB)
    tale.committed(1)

    assert names(tale) == ["repeat-unexplained"]


def test_a_worker_that_was_told_to_stop_has_no_excuse_for_what_had_ended() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.ran(record)
    tale.struck("term-worker", abrupt=False)
    tale.ran(record, pid=BOB)
    tale.committed(1)

    assert names(tale) == ["repeat-unexplained"]


def test_a_job_that_outlives_the_hand_over_may_run_again() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.handled("start", record)
    tale.struck("add", (BOB,), abrupt=False)
    tale.ran(record, pid=BOB)
    tale.handled("succeeded", record)
    tale.committed(1)

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"in flight when its partition moved": 1}


def test_an_end_that_came_just_after_the_hand_over_may_be_repeated() -> None:
    """The old owner waited as long as it may, committed and let go; then its job ended, and the next owner had it already."""
    tale = Tale()
    first, record = tale.published("step-0", 0), tale.published("step-1", 1)
    tale.handled("start", record)
    tale.ran(first)
    tale.struck("add", (BOB,), abrupt=False)
    tale.committed(1)
    tale.handled("succeeded", record)
    tale.ran(record, pid=BOB)
    tale.committed(2)

    assert names(tale) == []


def test_an_owner_that_goes_on_has_not_handed_over() -> None:
    """It starts the next job of the same partition after that commit, so it should have committed the end, too."""
    tale = Tale()
    first, record, third = (tale.published(f"step-{n}", n) for n in range(3))
    tale.handled("start", record)
    tale.ran(first)
    tale.struck("add", (BOB,), abrupt=False)
    tale.committed(1)
    tale.handled("succeeded", record)
    tale.ran(third)
    tale.ran(record, pid=BOB)
    tale.committed(3)

    assert names(tale) == ["repeat-unexplained"]


def test_a_run_whose_finish_was_committed_must_not_start_again() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.ran(record)
    tale.committed(1)
    tale.killed()
    tale.ran(record, pid=BOB)

    assert names(tale) == ["duplicate-after-finish-known"]


def test_a_worker_that_was_frozen_while_others_committed_may_start_it() -> None:
    """Nobody can tell a frozen process that its partitions have moved; what it starts before it learns of it is a repeat."""
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.struck("freeze", (ALICE,), lasts_s=10)
    tale.ran(record, pid=BOB, at=tale.now - 2)
    tale.committed(1)
    tale.now += 2
    tale.ran(record)

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"by a worker that had been frozen or cut off": 1}


def test_a_worker_that_was_cut_off_may_repeat_what_others_have_ended() -> None:
    """It reads on when it is let in again, before it learns that its partitions are others' now."""
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.struck("cut", (ALICE,), lasts_s=7)
    tale.ran(record, pid=BOB, at=tale.now - 1)
    tale.now += 2
    tale.ran(record)
    tale.committed(1)

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"by a worker that had been frozen or cut off": 1}


def test_faults_that_follow_each_other_are_one_spell() -> None:
    """Cut off, then frozen, then its broker was away: it could learn of nothing in between."""
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.struck("cut", (ALICE,), lasts_s=10)
    tale.ran(record, pid=BOB, at=tale.now - 2)
    tale.committed(1)
    tale.now += 5
    tale.struck("freeze", (ALICE,), lasts_s=10)
    tale.now += 5
    tale.struck("kill-broker", (), lasts_s=10)
    tale.now += 5
    tale.ran(record)

    assert names(tale) == []


def test_a_worker_that_was_frozen_long_ago_has_no_excuse() -> None:
    tale = Tale()
    record = tale.published("step-1", 0)
    tale.struck("freeze", (ALICE,), lasts_s=10)
    tale.ran(record, pid=BOB)
    tale.committed(1)
    tale.quiet()
    tale.ran(record)

    assert names(tale) == ["duplicate-after-finish-known"]


def retried(copies: int, pause: str = "quiet") -> Tale:
    """A job whose failed first run left several records of its second."""
    tale = Tale()
    tale.ran(tale.published("shaky-1", 0), "failed")
    if pause == "quiet":
        tale.quiet()
    else:
        tale.struck("broker-kill", ())
    again = [tale.stored("shaky-1", n, RETRY, run=2, attempt=2) for n in range(copies)]
    tale.committed(1)
    tale.ran(again[0])
    tale.committed(copies, RETRY)
    return tale


def test_one_run_has_one_next_run() -> None:
    assert names(retried(1)) == []
    assert names(retried(2)) == ["double-settle"]


def test_a_record_that_was_stored_before_the_broker_died_may_be_stored_again() -> None:
    tale = retried(2, "broker-kill")

    assert names(tale) == []
    assert dict(verdict(tale).repeats) == {"stored again after a fault": 1}


def test_one_job_has_one_end() -> None:
    """Dead in two runs, or dead and succeeded: handlers here do the same in every repeat, so neither can be."""
    tale = Tale()
    record = tale.published("shaky-1", 0)
    tale.ran(record, "rejected")
    for run in (1, 2):
        tale.stored("shaky-1", run, DEAD, run=run)
    tale.committed(1)
    assert names(tale) == ["double-settle"]

    tale.history.stored.pop()
    assert names(tale) == []

    tale.handled("succeeded", record)
    assert names(tale) == ["double-settle"]


# Workers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "code", "bad"), [(True, 0, False), (True, 4, False), (True, 1, True), (True, None, True), (False, 0, True)])
def test_a_worker_ends_when_it_is_told_to(told: bool, code: int | None, bad: bool) -> None:
    tale = clean()
    tale.history.add(Exit(1.0, ALICE, told, code))

    assert names(tale) == (["bad-exit"] if bad else [])


def test_a_worker_may_not_start_while_its_brokers_are_away() -> None:
    tale = clean()
    tale.struck("kill-broker", (), lasts_s=10)
    tale.history.add(Fault("join", tale.now, tale.now, (BOB,), abrupt=False))
    tale.history.add(Exit(tale.now + 5, BOB, False, 1))
    assert names(tale) == []

    tale.history.add(Exit(tale.now + 5, BOB, False, 137))
    assert names(tale) == ["bad-exit"]


def test_a_worker_that_is_told_to_stop_while_it_starts_ends_by_the_signal() -> None:
    tale = clean()
    tale.history.add(Fault("join", tale.now, tale.now, (BOB,), abrupt=False))
    tale.history.add(Exit(tale.now + 2, BOB, True, -15))
    assert names(tale) == []

    tale.history.add(Exit(tale.now + 20, BOB, True, -15))
    assert names(tale) == ["bad-exit"]


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_that_can_not_replace_a_process_may_say_so_at_its_end(killed: bool) -> None:
    """Its process was killed while the broker was away, then it was told to stop; without a kill it has no such excuse."""
    tale = clean()
    tale.quiet()
    tale.history.add(Fault("blink-worker", tale.now, tale.now + 1, (BOB, 21)))
    tale.quiet()
    tale.struck("kill-broker", (), lasts_s=5)
    if killed:
        tale.killed(21)
    tale.history.add(Exit(tale.now + 1, BOB, True, 1))

    assert names(tale) == ([] if killed else ["bad-exit"])


# Journals ----------------------------------------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    """Every line of a history survives the way through a file; half a line at its end is left alone."""
    history = clean().history
    history.add(Exit(1.0, ALICE, True, None, "worker.log"))
    journal = Journal(tmp_path / "a.jsonl")
    lists = (history.publications, history.handlings, history.stored, history.commits, history.faults, history.exits, history.rules.values())
    for line in (line for lines in lists for line in lines):
        assert from_json(to_json(line)) == line
        journal.write(line)
    with journal.path.open("a") as file:
        file.write('{"kind": "handl')

    assert read([journal.path]) == history
