"""An app in a module of its own, as a user has one, and a way to run commands on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamjobs.app import App
from streamjobs.cli import root

SHOP = """
from streamjobs.app import App

app = App("shop")
spare = App("spare")
number = 7

@app.job(queue="invoices", key="customer_id")
def send_invoice(invoice_id: int, customer_id: str) -> None: ...

@app.job(queue="mails")
def send_mail(to: str) -> None: ...
"""

Run = Callable[..., Result]
_numbers = count()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the command runs: empty, importable, and without a trace of it afterwards."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    for name in ("STREAMJOBS_APP", "STREAMJOBS_CONFIG"):
        monkeypatch.setenv(name, "x")  # so that whatever a command sets is taken back
        monkeypatch.delenv(name)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def module(directory: Path) -> Callable[[str], str]:
    """Writes a module with this source; its name is used nowhere else."""

    def write(source: str) -> str:
        name = f"shop{next(_numbers)}"
        (directory / f"{name}.py").write_text(source)
        return name

    return write


@pytest.fixture
def shop(module: Callable[[str], str]) -> str:
    """The name of a module with `app`, `spare` and `number`."""
    return module(SHOP)


@pytest.fixture
def app(shop: str, directory: Path) -> App:
    """The app of the shop, as a command will find it: what a test sets on it, the command sees."""
    from streamjobs.cli.session import load_app

    return load_app(f"{shop}:app")


@pytest.fixture
def run() -> Run:
    """Runs `streamjobs …` in this process; its result has exit_code, stdout and stderr."""

    def invoke(*args: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(root, list(args), input=stdin, prog_name="streamjobs")

    return invoke
