"""`streamjobs demo`: what it prints of a summary, its exit codes, and its picture on a terminal."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from streamjobs.cli import root
from streamjobs.cli.demo import FINDINGS, picture
from streamjobs.core.lag import Series
from streamjobs.demo import run as module
from streamjobs.demo.judge import Verdict
from streamjobs.demo.run import State, Watch
from streamjobs.demo.summary import ErrorRow, QueueRow, Summary, TypeRow

TIMES = {"p50": 0.012, "p95": 1.5, "p99": None}


def summary(lost: Mapping[str, str] = {}, unexplained: Mapping[str, str] = {}) -> Summary:
    jobs = [TypeRow("mail", 2_000, 1_990, 80, 10, 9, TIMES, TIMES), TypeRow(None, 1, 0, 0, 1, 0, {}, {})]
    depths = QueueRow("mails", 700, Series([1, 2, 3], [0, 700, 350], [0, 350, 0], [0, 0, 175], [0, 350, -175]))
    errors = [ErrorRow("ValueError", "mail", 90), ErrorRow("DecodeError", None, 1)]
    return Summary(jobs, errors, [depths], 30, 1, {11: 1_200, 12: 900}, Verdict(lost, unexplained), 17.0)


def invoke(monkeypatch: pytest.MonkeyPatch, found: Summary, *args: str) -> Result:
    def run(watch: Watch, *, lose: bool = False) -> Summary:
        watch.say("all ran, loss ordered" if lose else "all ran")
        watch.show(State())
        return found

    monkeypatch.setattr(module, "run", run)
    return CliRunner().invoke(root, ["demo", *args], prog_name="streamjobs")


def test_it_ends_with_its_verdict_and_0(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, summary())

    assert result.exit_code == 0
    assert result.stderr == "all ran\n"
    assert result.stdout.endswith("\nlost 0, unexplained 0\n")


def test_its_tables_have_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.split() for line in invoke(monkeypatch, summary()).stdout.splitlines()]

    assert ["mail", "2,000", "1,990", "80", "10", "9"] in lines
    assert ["(garbage)", "1", "0", "0", "1", "0"] in lines
    assert ["mail", "12ms", "1.5s", "–", "12ms", "1.5s", "–"] in lines
    assert ["ValueError", "mail", "90"] in lines
    assert ["DecodeError", "(garbage)", "1"] in lines
    assert ["mails", "700", "▁█▅", "·↑↓", "+350.0/s"] in lines
    assert any("1,200 + 900" in " ".join(line) for line in lines)


def test_a_lost_job_is_named_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, summary(lost={"id-7": "it never ran"}), "--break")

    assert result.exit_code == 1
    assert result.stderr == "all ran, loss ordered\n"
    assert result.stdout.endswith("  id-7: it never ran\nlost 1, unexplained 0\n")


def test_what_is_unexplained_is_a_failure_too_and_many_findings_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, summary(unexplained={f"id-{n}": "it ended twice" for n in range(FINDINGS + 3)}))

    assert result.exit_code == 1
    assert result.stdout.count("it ended twice") == FINDINGS
    assert "and: 3 more" in result.stdout
    assert result.stdout.endswith(f"lost 0, unexplained {FINDINGS + 3}\n")


def test_as_json_it_is_the_same_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = summary(lost={"id-7": "it never ran"})

    result = invoke(monkeypatch, found, "-o", "json")

    assert json.loads(result.stdout) == json.loads(json.dumps(found.as_data()))
    assert result.exit_code == 1


def test_the_picture_shows_how_far_it_is() -> None:
    state = State("publishing", Counter(mail=1_000), Counter(mail=250), 12, [0, 400, 800], 33)
    console = Console(width=100, record=True, file=io.StringIO())

    console.print(picture(state))

    text = console.export_text()
    assert "publishing" in text
    assert "250 of 1,000" in text
    assert "▁▅█ 800" in text
    assert "failed runs 12, waiting in the delay ladder 33" in text


def test_the_picture_of_nothing_yet() -> None:
    console = Console(width=100, record=True, file=io.StringIO())

    console.print(picture(State("starting")))

    assert "starting" in console.export_text()
