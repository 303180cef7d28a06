"""librdkafka's log lines."""

from __future__ import annotations

import logging

import pytest

from streamjobs.kafka.log import QuietLog

FAIL = "FAIL [app#consumer-1] [thrd:127.0.0.1:9092/bootstrap]: Connect to ipv4#127.0.0.1:%d failed (after %dms in state CONNECT)"


def quiet_log(now: list[float]) -> QuietLog:
    return QuietLog(logging.getLogger("test.kafka"), lambda: now[0], interval=30.0)


def test_the_same_failure_is_said_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    log = quiet_log(now)

    for attempt in range(500):
        log.log(logging.ERROR, FAIL, 9092, attempt)
        now[0] += 0.05
    assert len(caplog.records) == 1

    now[0] += 30
    log.log(logging.ERROR, FAIL, 9092, 3)
    assert len(caplog.records) == 2
    assert "(499 more like it)" in caplog.text


def test_different_failures_are_both_said(caplog: pytest.LogCaptureFixture) -> None:
    log = quiet_log([0.0])

    log.log(logging.ERROR, "FAIL: %s", "connect")
    log.log(logging.ERROR, "SASL: %s", "denied")

    assert len(caplog.records) == 2


def test_a_key_for_the_other_kind_of_client_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    quiet_log([0.0]).log(logging.WARNING, "%s [%s] %s", "CONFWARN", "app#consumer-1", "linger.ms is a producer property")

    assert caplog.records == []


def test_a_line_that_is_malformed_raises_nothing() -> None:
    """An exception in the client's log callback destroys records."""
    quiet_log([0.0]).log(logging.WARNING, "%d", "no number")
