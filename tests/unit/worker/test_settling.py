"""Settling: a retry or a letter is stored before its source offset is finished, whatever goes wrong."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import App, Backoff, BrokerError, Job, Reject, Retry, Snooze
from streamjobs.broker import TopicPartition
from streamjobs.core.partitioner import partition_of, partition_of_job
from streamjobs.core.record import Meta, Record
from streamjobs.telemetry.log import Json, Masking
from streamjobs.testing.app import Testing
from tests.support.raised import hostile

OnMemory = Callable[[App], Testing]


def failing_app(**options: Any) -> tuple[App, list[int]]:
    app = App("shop", partitions=1)
    attempts: list[int] = []

    @app.job(name="fails", queue="mails", retry=Retry(attempts=2, backoff=Backoff.fixed("1s")), **options)
    def fails(job: Job, n: int) -> None:
        attempts.append(job.attempt)
        raise ValueError(n)

    return app, attempts


def committed(t: Testing, app: App, topic: str) -> int:
    commit = t.broker.admin().committed(app.group, [TopicPartition(topic, 0)]).get(TopicPartition(topic, 0))
    return commit.offset if commit else 0


def settle_and_tick(t: Testing, times: int = 3, step: float = 0.6) -> None:
    for _ in range(times):
        t.run(raise_errors=False, through_delays=False)
        t.advance(step)
    t.run(raise_errors=False, through_delays=False)


def test_a_retry_that_can_not_be_written_pins_its_offset(on_memory: OnMemory) -> None:  # edge 37
    """The retry topic is unreachable: the job keeps its place, nothing is committed past it, and when the topic is back the
    retry is written once."""
    app, attempts = failing_app()
    t = on_memory(app)
    fault = t.broker.fail("send", topic=app.names.retry("mails", app.group), error="TOPIC_AUTHORIZATION_FAILED", times=None)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t, 5)
    assert attempts == [1]
    assert committed(t, app, app.names.main("mails")) == 0
    assert "can't be written to" in " ".join(t.process.unready().values())

    fault.lift()
    settle_and_tick(t, 20, step=5.0)
    assert attempts == [1, 2]
    assert committed(t, app, app.names.main("mails")) == 1
    assert len(t.dead_letters("mails")) == 1


def test_a_letter_that_can_not_be_written_pins_its_offset(on_memory: OnMemory) -> None:  # edge 39
    app, attempts = failing_app(discard_on=ValueError)
    t = on_memory(app)
    fault = t.broker.fail("send", topic=app.names.dead("mails", app.group), error="UNKNOWN_TOPIC_OR_PART", times=None)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t, 5)
    assert committed(t, app, app.names.main("mails")) == 0

    fault.lift()
    settle_and_tick(t, 20, step=5.0)
    assert [letter.reason for letter in t.dead_letters("mails")] == ["discarded"]
    assert committed(t, app, app.names.main("mails")) == 1
    assert attempts == [1]


def test_a_letter_counts_as_done(on_memory: OnMemory) -> None:  # edge 40
    """A new owner does not bury a buried job again."""
    app, attempts = failing_app(discard_on=ValueError)
    t = on_memory(app)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t)

    t.restart()
    settle_and_tick(t)
    assert attempts == [1]
    assert len(t.broker.records(app.names.dead("mails", app.group))) == 1


def test_the_count_of_attempts_survives_its_worker(on_memory: OnMemory) -> None:  # edge 42
    """It travels in the record's headers: another process sees attempt 2, and the letter comes after two runs, not after four."""
    app, attempts = failing_app()
    t = on_memory(app)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t, 1)
    t.restart()
    t.run(raise_errors=False)
    assert attempts == [1, 2]
    (letter,) = t.dead_letters("mails")
    assert (letter.attempt, letter.run, letter.reason) == (2, 2, "exhausted")


def test_a_partition_that_left_while_its_job_failed_writes_nothing(on_memory: OnMemory) -> None:  # edge 41
    """
    The job runs; its partition is lost; the job fails. The next owner runs it again and settles it: if the old one wrote its
    retry, too, there would be two second runs.
    """
    app = App("shop", partitions=1)
    t: Testing

    @app.job(queue="mails", retry=Retry(attempts=5, backoff=Backoff.fixed("1s")))
    def fails(job: Job) -> None:
        loop = t.process.loops[0]
        loop.poller.lost([TopicPartition(*tp) for tp in loop.poller.partitions])
        assert job.cancelled
        raise ValueError

    t = on_memory(app)
    fails.publish()
    settle_and_tick(t, 2)

    assert t.broker.records(app.names.retry("mails", app.group)) == []
    assert committed(t, app, app.names.main("mails")) == 0


def test_headers_do_not_grow_with_the_attempts(on_memory: OnMemory) -> None:  # edge 43
    """Each retry replaces headers and adds none; free text is cut: a message of 100 kB and a deep trace fit."""
    app = App("shop", partitions=1)

    @app.job(queue="mails", retry=Retry(attempts=8, backoff=Backoff.fixed("1s")))
    def fails(n: int) -> None:
        raise ValueError("x" * 100_000)

    t = on_memory(app)
    fails.publish(n=1)
    t.run(raise_errors=False)

    sizes = [sum(len(n) + len(v) for n, v in m.headers()) for m in t.broker.records(app.names.retry("mails", app.group))]
    assert len(sizes) == 7
    assert max(sizes) - min(sizes) < 20
    (letter,) = t.dead_letters("mails")
    assert len(letter.error_message.encode()) <= 1024
    assert len(letter.error_stack.encode()) <= 8192


def test_a_letter_that_is_too_large_gives_up_headers_never_its_value(on_memory: OnMemory) -> None:  # edge 43
    """A foreign record of the size that the dead-letter topic takes, plus headers: the letter keeps value, type, id, origin."""
    app, _ = failing_app(discard_on=ValueError)
    t = on_memory(app)
    t.broker.admin().alter_topic_config(app.names.dead("mails", app.group), {"max.message.bytes": "3000"})
    payload = app.job_types["fails"].payload
    value = payload.encode(payload.bind((), {"n": 1}))
    headers = [("ce_type", b"fails"), ("x-own", b"y" * 6000)]
    t.produce(Record(app.names.main("mails"), value, headers=headers))
    settle_and_tick(t, 5)

    (record,) = t.broker.records(app.names.dead("mails", app.group))
    meta = Meta.parse(record.headers())
    assert record.value() == value
    assert (meta.job_type, meta.reason) == ("fails", "too_large")
    assert meta.origin.startswith("jobs.mails@")


def test_a_full_queue_of_the_client_is_waited_for(on_memory: OnMemory) -> None:  # edge 68
    app, attempts = failing_app()
    t = on_memory(app)
    t.broker.fail("send", topic=app.names.retry("mails", app.group), error="_QUEUE_FULL", times=3)
    app.job_types["fails"].publish(n=1)
    t.run(raise_errors=False, through_delays=False)
    assert (attempts, t.process.loops[0].settler.open) == ([1], 1)
    assert "can't be written" not in " ".join(t.process.unready().values()), "it is full for a moment, its topic is well"
    settle_and_tick(t, 10, step=2.0)
    assert attempts == [1, 2]


def test_groups_retry_for_themselves(on_memory: OnMemory) -> None:  # edge 60
    """A retry goes to the failing group's own topic: other groups of the queue do not run it again."""
    app, _ = failing_app()
    t = on_memory(app)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t, 1)
    assert len(t.broker.records(app.names.main("mails"))) == 1
    (record,) = t.broker.records(app.names.retry("mails", app.group))
    assert Meta.parse(record.headers()).run == 2


def test_retries_go_where_their_key_or_their_id_says(on_memory: OnMemory) -> None:  # edge 45
    """Never to the partition that they come from, which the retry topic may not have; and jobs of one key stay together."""
    app = App("shop", partitions=8)

    @app.job(name="fails", queue="mails", key="k", retry=Retry(attempts=2, backoff=Backoff.fixed("1s")))
    def fails(n: int, k: str | None) -> None:
        raise ValueError(n)

    t = on_memory(app)
    for n in range(16):
        fails.publish(n=n, k=f"k{n % 5}" if n < 10 else None)
    settle_and_tick(t, 1)

    records = t.broker.records(app.names.retry("mails", app.group))
    assert len(records) == 16
    for record in records:
        key, job_id = record.key(), Meta.parse(record.headers()).job_id.encode()
        assert record.partition() == (partition_of_job(job_id, 8) if key is None else partition_of(key, 8))


def test_publishing_says_why_it_failed(on_memory: OnMemory) -> None:
    app, _ = failing_app()
    t = on_memory(app)
    app.job_types["fails"].publish(n=0)
    t.broker.fail("send", topic=app.names.main("mails"), error="NOT_ENOUGH_REPLICAS")
    with pytest.raises(Exception, match="NOT_ENOUGH_REPLICAS") as refused:
        app.job_types["fails"].publish(n=1)
    assert isinstance(refused.value.__cause__, BrokerError)


def test_a_record_beside_one_that_is_too_large_is_not_too_large(on_memory: OnMemory) -> None:
    """Kafka refuses the whole batch: the innocent one is sent once more on its own and stored; no letter comes of it."""
    app, attempts = failing_app()
    t = on_memory(app)
    t.broker.fail("send", topic=app.names.retry("mails", app.group), error="MSG_SIZE_TOO_LARGE", times=1)
    app.job_types["fails"].publish(n=1)
    settle_and_tick(t, 10, step=1.0)
    assert attempts == [1, 2]
    (letter,) = t.dead_letters("mails")
    assert letter.reason == "exhausted"


def test_the_log_tells_of_runs_that_failed_and_of_no_other(on_memory: OnMemory, caplog: pytest.LogCaptureFixture) -> None:
    """What bit: a worker whose every job failed said nothing at all."""
    app, _ = failing_app()
    app.job(name="rejects", queue="mails")(_raising(Reject("never wanted")))
    app.job(name="sleeps", queue="mails")(_raising(Snooze("1h")))
    app.job(name="works", queue="mails")(lambda: None)
    t = on_memory(app)
    caplog.set_level("INFO", "streamjobs.worker.outcomes")
    app.job_types["fails"].publish(n=7)
    for name in ("rejects", "sleeps", "works"):
        app.job_types[name].publish()
    settle_and_tick(t, 10, step=1.0)

    told = {(r.levelname, r.getMessage()): r for r in caplog.records if r.name == "streamjobs.worker.outcomes"}
    assert set(told) == {
        ("WARNING", "fails: ValueError: 7; attempt 1 of 2, it runs again in 1s"),
        ("WARNING", "fails: ValueError: 7; attempt 2 of 2, it becomes a dead letter (exhausted)"),
        ("WARNING", "rejects: never wanted; attempt 1 of 15, it becomes a dead letter (rejected)"),
    }
    assert {message.split(":")[0] for (_, message), record in told.items() if record.exc_info} == {"fails"}
    assert {record.job.type for record in told.values()} == {"fails", "rejects"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", hostile(), ids=lambda error: type(error).__name__)
def test_whatever_an_exception_is_its_job_is_settled(on_memory: OnMemory, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """
    What bit: an exception whose `__str__` fails (or whose `__bool__` does, or that is a frozen dataclass) ended the loop that settled its
    job, in each process that ran it.
    """
    app = App("shop", partitions=1)
    app.job(name="fails", queue="mails", retry=Retry(attempts=2, backoff=Backoff.fixed("1s")))(_raising(error))
    told = io.StringIO()
    log = logging.getLogger("streamjobs.worker.outcomes")
    monkeypatch.setattr(log, "propagate", False)  # pytest's own handler can't print each of them
    monkeypatch.setattr(log, "handlers", [handler := logging.StreamHandler(told)])
    handler.setFormatter(Json({}, Masking(())))
    t = on_memory(app)
    for loop in t.process.loops:
        loop.outcomes._shared.errors = None  # as in a worker, which keeps none for a test
    app.job_types["fails"].publish()
    settle_and_tick(t, 10, step=1.0)

    (letter,) = t.dead_letters("mails")
    assert (letter.reason, letter.error_type, letter.attempt) == ("exhausted", type(error).__name__, 2)
    assert told.getvalue().count("it becomes a dead letter (exhausted)") == 1
    assert error.__traceback__ is None


def _raising(error: BaseException) -> Callable[[], None]:
    def handler() -> None:
        raise error

    return handler
