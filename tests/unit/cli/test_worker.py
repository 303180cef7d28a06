"""`streamjobs worker`: what it refuses, and what it hands to the supervisor."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
import pytest
from click.testing import Result

from streamjobs.cli import worker as module
from streamjobs.cli.session import Session, load_app
from streamjobs.settings import documented
from streamjobs.worker.executors import Gate

Run = Callable[..., Result]
Started = list[tuple[str, Mapping[str, Any], list[str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What a supervisor was asked to run; it answers with exit code 4."""
    calls: Started = []

    def supervise(session: Session, given: Mapping[str, Any], queues: Iterable[str]) -> int:
        calls.append((session.app_ref, given, list(queues)))
        return 4

    monkeypatch.setattr(module, "_supervise", supervise)
    return calls


def test_flags_go_to_the_supervisor_as_settings(run: Run, shop: str, started: Started) -> None:
    options = "--slots 2 --processes 3 --group g --instance i --drain 5s --listen off --provision auto"

    result = run("worker", "-A", f"{shop}:app", "invoices", *options.split())

    assert result.exit_code == 4
    assert started == [
        (
            f"{shop}:app",
            {
                "worker.slots": 2,
                "worker.processes": 3,
                "worker.group": "g",
                "worker.instance": "i",
                "worker.drain": "5s",
                "worker.listen": "off",
                "provision": "auto",
            },
            ["invoices"],
        )
    ]


def test_who_is_told_to_stop_ends_though_it_had_begun_to_stop_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes room for another process, and hangs in that; then its supervisor is killed. What bit: the watch was for those that had not
    begun to stop."""
    armed: list[float] = []
    monkeypatch.setattr(module.faulthandler, "dump_traceback_later", lambda seconds, **_: armed.append(seconds))

    class MakesRoom:
        gate = Gate()
        told = False

        def tell_to_stop(self) -> None:
            self.told = True

    process: Any = MakesRoom()
    process.gate.closed = True
    module._stop(process, 39.0)
    module._stop(process, 39.0)
    assert armed == [39.0]


def test_what_was_not_given_is_left_to_the_settings(run: Run, shop: str, started: Started) -> None:
    run("worker", "-A", f"{shop}:app")

    assert started == [(f"{shop}:app", {}, [])]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["invoice"], "has no job type in a queue 'invoice': did you mean 'invoices'?"),
        (["--slots", "0"], "worker.slots (flag) is 0"),
        (["--drain", "soon"], "worker.drain (flag) is 'soon'"),
        (["--group", "a.b"], "worker.group (flag) is 'a.b'"),
    ],
)
def test_a_mistake_is_told_before_any_process_is_started(
    args: list[str], says: str, run: Run, shop: str, started: Started
) -> None:
    result = run("worker", "-A", f"{shop}:app", *args)

    assert result.exit_code == 2
    assert says in result.stderr
    assert started == []


def test_an_app_without_job_types_is_a_mistake(run: Run, shop: str, started: Started) -> None:
    result = run("worker", "-A", f"{shop}:spare")

    assert result.exit_code == 2
    assert "declares no job types" in result.stderr
    assert started == []


def test_its_log_hides_secrets_and_says_whose_it_is(shop: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As mask.patterns says. *Bites*: logs did so in tests alone; a worker wrote the passwords in the messages of errors."""
    monkeypatch.setenv("STREAMJOBS_LOG__FORMAT", "json")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        module._log(load_app(f"{shop}:app"))
        logging.getLogger("theirs").warning("login failed: password=hunter2", extra={"api_token": "hunter2"})
    finally:
        root.handlers[:] = before
        root.setLevel(level)

    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["api_token"]) == ("login failed: password=***", "***")
    assert (line["service"], line["group"]) == ("shop", "shop")


def test_the_help_names_the_defaults_of_the_settings() -> None:
    defaults = {setting.path.removeprefix("worker."): setting.default for setting in documented()}
    helps = {param.name: param.help for param in module.worker.params if isinstance(param, click.Option)}

    for name in ("slots", "processes", "drain", "listen", "provision"):
        assert f"default: {defaults[name]}." in (helps[name] or "")
