"""Worker processes under test: `streamjobs worker` as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from streamjobs.errors import BrokerError

ROOT = Path(__file__).resolve().parents[2]
LEDGER_APP = "tests.support.ledger_app:app"


class Worker:
    """One `streamjobs worker`, in a session of its own, so that it can be killed with all its processes."""

    def __init__(
        self, env: Mapping[str, str], log: Path, *arguments: str, app: str = LEDGER_APP, inside: Sequence[str] = ()
    ) -> None:
        """`inside`: a command that runs another one, such as `ip netns exec NAME`."""
        self.log = log
        command = [sys.executable, "-m", "streamjobs", "worker", "-A", app, "--listen", "off", *arguments]
        self._process = subprocess.Popen(
            [*inside, *command], cwd=ROOT, env={**os.environ, **env}, stdout=log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL for supervisor and processes at once, as a machine that loses power."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def signal(self, number: int) -> None:
        """To the supervisor only."""
        self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def signal_all(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def stop(self, timeout: float = 40.0) -> int:
        """SIGTERM; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 40.0) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker did not end within {timeout} s; its log ends:\n{self.tail()}") from None

    def end(self) -> None:
        """For teardown: whatever is left of it is gone."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)

    def tail(self, size: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-size:]


def eventually(fact: Callable[[], object], timeout: float, what: str, why: Callable[[], str] = lambda: "") -> None:
    """Waits on a fact, never on time. Raises AssertionError that says what did not come; `why`: what there is instead."""
    deadline = time.monotonic() + timeout
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}{why()}")
        time.sleep(0.05)


def answered(ask: Callable[[], object]) -> object:
    """What `ask` gives; False: an error (a coordinator that has just started may still be loading)."""
    try:
        return ask()
    except BrokerError:
        return False
