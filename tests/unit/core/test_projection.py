from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.lifecycle import Outcome
from streamjobs.core.projection import RANKS, Projection


@dataclass(frozen=True)
class Told:
    kind: str
    run: int = 1
    origin: str = "jobs.invoices@1f2e3d4c/3/70012"
    group: str = "billing"
    at: float = 0.0
    worker: str = "w1"


def fold(*events: Told) -> Told | None:
    projection: Projection[Told] = Projection()
    projection.apply_all(events)
    return projection.latest("billing", events[0].origin)


events = st.builds(
    Told,
    kind=st.sampled_from([*RANKS, "of a newer version"]),
    run=st.integers(1, 3),
    origin=st.sampled_from(["a", "b"]),
    group=st.sampled_from(["billing", "audit"]),
    at=st.sampled_from([1.0, 2.0]),
    worker=st.sampled_from(["w1", "w2"]),
)


@given(
    st.lists(events).flatmap(
        lambda told: st.tuples(
            st.just(told), st.permutations(told), st.lists(st.sampled_from(told or [Told("held")]))
        )
    )
)
def test_order_and_duplicates_of_events_change_nothing(
    case: tuple[list[Told], list[Told], list[Told]],
) -> None:
    told, shuffled, again = case
    one: Projection[Told] = Projection()
    other: Projection[Told] = Projection()

    one.apply_all(told)
    other.apply_all(shuffled)
    if told:
        other.apply_all(again)

    assert one.jobs() == other.jobs()
    for job in one.jobs():
        assert one.history(job.group, job.origin) == other.history(job.group, job.origin)


def test_a_replay_that_runs_is_not_seen_as_the_dead_job_it_was() -> None:
    """Bites: folded by (job, attempt), a replay's first attempt is "already seen, failed"."""
    latest = fold(Told("started", run=2), Told("dead", run=1), Told("replayed", run=1))

    assert latest is not None
    assert (latest.kind, latest.run) == ("started", 2)


def test_a_snooze_shows_its_second_start() -> None:
    latest = fold(Told("snoozed", run=1), Told("started", run=1), Told("started", run=2))

    assert latest is not None
    assert (latest.kind, latest.run) == ("started", 2)


def test_the_end_of_a_run_outranks_its_start_whatever_the_clocks_say() -> None:
    for end in RANKS.keys() - {"held", "started"}:
        latest = fold(Told(end, at=5.0), Told("started", at=9.0, worker="w2"))

        assert latest is not None and latest.kind == end


def test_a_run_that_ended_twice_is_what_leaves_more_to_do() -> None:
    """A worker acks the retry and dies before the commit; the next owner runs it again, and this time it
    succeeds."""
    latest = fold(Told("retried", at=1.0), Told("succeeded", at=2.0, worker="w2"))

    assert latest is not None and latest.kind == "retried"


def test_a_second_start_of_a_run_says_where_it_runs_now() -> None:
    latest = fold(Told("started", at=2.0, worker="w1"), Told("started", at=1.0, worker="w2"))

    assert latest is not None and latest.worker == "w1"


def test_groups_that_share_an_origin_do_not_mix() -> None:
    projection: Projection[Told] = Projection()
    projection.apply(Told("succeeded"))
    projection.apply(Told("dead", group="audit"))

    assert [job.kind for job in projection.jobs()] == ["dead", "succeeded"]


def test_the_history_has_an_event_for_each_run() -> None:
    first, second = Told("retried", run=1), Told("succeeded", run=2)
    projection: Projection[Told] = Projection()

    assert projection.apply_all([second, replace(first, kind="started"), first]) == 3
    assert projection.history("billing", first.origin) == [first, second]


def test_an_event_that_comes_twice_changes_something_once() -> None:
    projection: Projection[Told] = Projection()

    assert projection.apply(Told("started"))
    assert not projection.apply(Told("started"))


def test_an_event_of_an_unknown_kind_changes_nothing() -> None:
    projection: Projection[Told] = Projection()

    assert not projection.apply(Told("of a newer version"))
    assert projection.latest("billing", "nobody") is None
    assert projection.jobs() == []


def test_every_outcome_has_a_rank() -> None:
    assert {outcome.value for outcome in Outcome} <= RANKS.keys()
