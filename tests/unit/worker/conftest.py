"""A worker process run by hand on a broker in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamjobs import App
from streamjobs.testing.app import Testing


@pytest.fixture
def on_memory(streamjobs_testing: Callable[[App], Testing]) -> Callable[[App], Testing]:
    """`t = on_memory(app)`: as `app.testing()`."""
    return streamjobs_testing
