"""`@app.job` keeps a function's parameters for type checkers and editors: `publishing.py` through mypy's own API, in strict mode."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SUBJECT = HERE / "publishing.py"
_SAID = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): (?P<level>error|note): (?P<text>.*?)(?:  \[(?P<code>[a-z-]+)\])?$")
#: How mypy spells a NamedTuple: by its fields, and its name last.
_NAMED_TUPLE = re.compile(r"tuple\[[^\[\]]*fallback=([\w.]+)\]")


@pytest.fixture(scope="module")
def said() -> list[re.Match[str]]:
    """What mypy says of the file, message by message."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--strict", "--no-error-summary", "--hide-error-context"]
    out, err, _ = api.run([*options, "--no-pretty", "--show-error-codes", str(SUBJECT)])
    assert err == ""
    messages = [_SAID.match(line) for line in out.splitlines()]
    assert all(messages), out
    return [message for message in messages if message is not None and message["file"].endswith("publishing.py")]


def expected(marker: str) -> dict[int, str]:
    lines = SUBJECT.read_text("utf-8").splitlines()
    return {number: line.partition(marker)[2] for number, line in enumerate(lines, 1) if marker in line}


def test_types_are_inferred(said: list[re.Match[str]]) -> None:
    revealed = {int(m["line"]): m["text"].removeprefix('Revealed type is "').rstrip('"') for m in said if m["text"].startswith("Revealed")}
    revealed = {line: _NAMED_TUPLE.sub(r"\1", what) for line, what in revealed.items()}
    wanted = expected("  # reveals: ")

    assert {line: what.replace("builtins.", "") for line, what in revealed.items()} == wanted


def test_wrong_arguments_are_errors_and_right_ones_are_not(said: list[re.Match[str]]) -> None:
    found = Counter((int(m["line"]), m["code"]) for m in said if m["level"] == "error")
    wanted = Counter((line, code.strip()) for line, codes in expected("  # error: ").items() for code in codes.split(","))

    assert found == wanted
