"""The pytest plugin: fixtures for testing an app without Kafka. Loaded by pytest itself; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.testing.app import Testing


@pytest.fixture
def streamjobs_testing() -> Iterator[Callable[[App], Testing]]:
    """`t = streamjobs_testing(app)`: the app on a broker in memory until the test ends (see `App.testing`)."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(app.testing())
