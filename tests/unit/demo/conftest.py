"""The sample application with a ledger of its own, on a broker in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamjobs.demo import app as sample
from streamjobs.demo import ledger, outside
from streamjobs.testing.app import Testing


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ledger.Reader:
    monkeypatch.setenv(ledger.LEDGER, str(tmp_path / "ledger"))
    return ledger.Reader(tmp_path / "ledger")


@pytest.fixture
def fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Once it is touched, what is broken works."""
    monkeypatch.setenv(outside.FIX, str(tmp_path / "fixed"))
    return tmp_path / "fixed"


@pytest.fixture
def world(book: ledger.Reader, fix: Path) -> Iterator[Testing]:
    with sample.app.testing() as testing:
        yield testing
