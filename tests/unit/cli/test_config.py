"""`streamjobs config show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from streamjobs.settings import MASKED, documented

Run = Callable[..., Result]


def test_each_value_that_was_set_is_shown_with_its_source(
    run: Run, shop: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "streamjobs.toml").write_text(f'app = "{shop}:app"\n[worker]\nslots = 3\n')
    monkeypatch.setenv("STREAMJOBS_KAFKA__SASL_PASSWORD", "hush")

    result = run("config", "show", "-o", "json")

    assert json.loads(result.stdout) == [
        {"path": "app", "value": f"{shop}:app", "source": "streamjobs.toml:app"},
        {"path": "worker.slots", "value": "3", "source": "streamjobs.toml:worker.slots"},
        {"path": "kafka.sasl.password", "value": MASKED, "source": "env STREAMJOBS_KAFKA__SASL_PASSWORD"},
    ]


def test_secrets_are_masked_in_the_table_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMJOBS_KAFKA__SASL_PASSWORD", "hush")

    for args in (["config", "show"], ["config", "show", "--all"]):
        result = run(*args)
        assert "kafka.sasl.password" in result.stdout
        assert "hush" not in result.output


def test_what_the_code_says_is_shown_when_there_is_an_app(run: Run, module: Callable[[str], str]) -> None:
    name = module("from streamjobs.app import App\napp = App('a', worker={'slots': 2})\n")

    result = run("config", "show", "-A", f"{name}:app", "-o", "json")

    assert json.loads(result.stdout) == [{"path": "worker.slots", "value": "2", "source": "code"}]


def test_all_shows_every_setting_with_its_meaning(run: Run) -> None:
    rows = json.loads(run("config", "show", "--all", "-o", "json").stdout)

    described = {setting.path: (setting.env, setting.meaning) for setting in documented()[:-2]}
    assert {row["path"]: (row["env"], row["meaning"]) for row in rows} == described


def test_a_mistake_is_told(run: Run, directory: Path) -> None:
    (directory / "streamjobs.toml").write_text("partitoins = 5\n")

    result = run("config", "show")

    assert result.exit_code == 2
    assert result.stderr == (
        "error: partitoins (streamjobs.toml:partitoins) is no setting: did you mean partitions?\n"
    )
