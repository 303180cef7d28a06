"""Chaos for less than a minute: every kind of fault once, and nothing that must not happen. `make chaos` is the long run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.chaos.report import markdown, sentence
from tests.chaos.run import Plan, run
from tests.conftest import local_kafka_module

CAN_START_BROKERS = shutil.which("java") is not None and (shutil.which("mvn") is not None or local_kafka_module().LIBS.exists())


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_nothing_is_lost_while_workers_and_broker_fail(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """
    Four workers and a broker of its own; every few seconds something is killed, frozen, stopped, cut off or restarted.
    The judge finds no anomaly in what publisher, handlers and topics say.
    """
    seed = int(os.environ.get("CHAOS_SEED", "12"))
    bootstrap = "" if CAN_START_BROKERS else request.getfixturevalue("kafka_bootstrap")
    outcome = run(Plan(seed, 50, tmp_path / "run", brokers=1 if CAN_START_BROKERS else 0, bootstrap=bootstrap))

    print(f"\n{sentence(outcome)}")
    assert not outcome.verdict.anomalies, markdown(outcome)
    assert outcome.verdict.jobs > 50, "a machine that is busy with other things publishes few, but not none"
    assert len({fault.name for fault in outcome.history.faults}) > 5


@pytest.mark.long
@pytest.mark.broker
@pytest.mark.timeout(600)
@pytest.mark.skipif(not CAN_START_BROKERS, reason="three brokers need Java, and Maven or the jars")
def test_nothing_is_lost_while_one_of_three_brokers_is_away(tmp_path: Path) -> None:
    """Replicated threefold, two in sync: a broker is killed and returns, leaders move, and nothing is lost."""
    outcome = run(Plan(3, 120, tmp_path / "run", brokers=3))

    print(f"\n{sentence(outcome)}")
    assert not outcome.verdict.anomalies, markdown(outcome)
