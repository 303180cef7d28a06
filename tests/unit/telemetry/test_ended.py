"""Ended runs by column: what neighbours share, and where they are."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamjobs.telemetry.ended import Ended

HOMES, TYPES = (SimpleNamespace(number=0), SimpleNamespace(number=0)), (SimpleNamespace(name="mail"), SimpleNamespace(name="mail"))
JOBS = st.builds(
    SimpleNamespace,
    home=st.sampled_from(HOMES),
    job_type=st.sampled_from(TYPES),
    run=st.integers(1, 2),
    attempt=st.integers(1, 2),
    outcome=st.sampled_from(("succeeded", "dead")),
    offset=st.integers(0, 9),
    duration_s=st.just(0.5),
    wait_s=st.just(0.25),
    meta=st.sampled_from((None, object())),
)


def shared(job: Any) -> tuple[Any, ...]:
    return id(job.home), id(job.job_type), job.run, job.attempt, job.outcome


@given(st.lists(st.one_of(JOBS, st.shared(JOBS)), max_size=20))
def test_neighbours_are_alike_in_all_that_makes_a_series_or_a_shape(jobs: list[Any]) -> None:
    ended = Ended(jobs)
    assert [(shared(first), ended[place]) for first, place in ended.runs()] == [(key, list(group)) for key, group in groupby(jobs, shared)]


@given(st.lists(JOBS, max_size=5))
def test_columns_are_those_of_the_jobs(jobs: list[Any]) -> None:
    ended = Ended(jobs)
    assert ended == jobs
    assert Ended.of(ended) is ended
    assert ended.offsets == [job.offset for job in jobs]
    assert (ended.durations, ended.waits) == ([0.5] * len(jobs), [0.25] * len(jobs))
    assert ended.plain is all(job.meta is None for job in jobs)
