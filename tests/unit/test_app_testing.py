"""`app.testing()`: what a user's own tests see."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from streamjobs import App, Backoff, Cancel, Job, JobTypeError, PayloadError, Reject, Retry, RetryAfter, Snooze


def test_published_jobs_run_until_nothing_is_left(streamjobs_testing) -> None:
    """Jobs that jobs publish run, too."""
    app = App("shop")
    ran = []

    @app.job
    def parent(n: int) -> None:
        ran.append(("parent", n))
        child.publish(n=n + 1)

    @app.job
    async def child(n: int) -> None:
        ran.append(("child", n))

    t = streamjobs_testing(app)
    receipt = parent.publish(n=1)

    assert t.run() == 2
    assert ran == [("parent", 1), ("child", 2)]
    assert receipt.topic == "jobs.default"


def test_a_job_names_the_one_that_published_it(streamjobs_testing) -> None:
    """One by one, many at once, and from an async handler; over its retries, too."""
    app = App("shop")
    seen: dict[int, list[bytes | None]] = {}

    @app.job
    def parent() -> None:
        child.publish(1)
        child.options(tags=["a"]).publish_many([(2,), (3,)])

    @app.job
    async def async_parent() -> None:
        await child.publish_async(4)

    @app.job(retry=Retry(attempts=2, backoff=Backoff.fixed("1m")))
    def child(job: Job, n: int) -> None:
        seen.setdefault(n, []).append(job.headers.get("sj_parent"))
        if job.attempt == 1:
            raise ValueError("once more")

    t = streamjobs_testing(app)
    parent.options(id="p").publish()
    async_parent.options(id="ap").publish()
    child.publish(0)
    t.run(raise_errors=False)

    assert seen == {0: [None] * 2, 1: [b"p"] * 2, 2: [b"p"] * 2, 3: [b"p"] * 2, 4: [b"ap"] * 2}


def test_hooks_and_async_handlers_share_one_event_loop(streamjobs_testing) -> None:
    """As in a worker process: what a start hook opens is used by all handlers, run after run, and closed by the stop hook."""
    app = App("shop")
    loops: list[tuple[str, asyncio.AbstractEventLoop]] = []
    one = asyncio.Semaphore(1)  # belongs to the loop in which somebody first had to wait for it

    def note(where: str) -> None:
        loops.append((where, asyncio.get_running_loop()))

    @app.on_start
    async def start() -> None:
        note("start")

    @app.on_stop
    async def stop() -> None:
        note("stop")

    @app.on_dead
    async def dead(job: Job, reason: str) -> None:
        note("dead")

    @app.job
    async def handle(n: int) -> None:
        note("handler")
        await asyncio.gather(wait(), wait())
        raise Reject("void")

    async def wait() -> None:
        async with one:
            await asyncio.sleep(0)

    with app.testing() as t:
        handle.publish(1)
        t.run()
        handle.publish(2)
        t.run()

    assert [where for where, _ in loops] == ["start", "handler", "dead", "handler", "dead", "stop"]
    assert len({loop for _, loop in loops}) == 1
    assert loops[0][1].is_closed()
    assert [letter.reason for letter in t.dead_letters()] == ["rejected"] * 2, "none failed for the loop's sake"


def test_an_exception_of_a_handler_surfaces(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def fails(n: int) -> None:
        raise ZeroDivisionError(n)

    t = streamjobs_testing(app)
    fails.publish(n=3)

    with pytest.raises(ZeroDivisionError, match="3"):
        t.run()


def test_a_failing_job_is_retried_and_then_a_dead_letter(streamjobs_testing) -> None:
    """Three attempts, a minute apart, through ladder and retry topic; then the letter says why and how often."""
    app = App("shop")
    starts = []

    @app.job(queue="mails", key="to", retry=Retry(attempts=3, backoff=Backoff.fixed("1m")))
    def mail(job: Job, to: str) -> None:
        starts.append((job.attempt, job.run, t.clock.now()))
        raise ValueError("no such address")

    t = streamjobs_testing(app)
    mail.options(id="m-1").publish(to="a@b")
    began = t.clock.now()
    t.run(raise_errors=False)

    assert [(attempt, run) for attempt, run, _ in starts] == [(1, 1), (2, 2), (3, 3)]
    assert [round((at - began) / 60) for _, _, at in starts] == [0, 1, 2]
    (letter,) = t.dead_letters("mails")
    assert (letter.job_id, letter.reason, letter.attempt, letter.run) == ("m-1", "exhausted", 3, 3)
    assert (letter.error_type, letter.error_message, letter.key) == ("ValueError", "no such address", b"a@b")
    assert "ValueError: no such address" in letter.error_stack


def test_signals_say_what_becomes_of_a_job(streamjobs_testing) -> None:
    """Reject: a letter at once. Snooze: again, no attempt charged. RetryAfter: again, an attempt charged."""
    app = App("shop")
    seen: list[tuple[str, int, int]] = []

    @app.job
    def job_of(job: Job, what: str) -> None:
        seen.append((what, job.run, job.attempt))
        if job.run == 1 and what == "snooze":
            raise Snooze("10m")
        if job.run == 1 and what == "retry":
            raise RetryAfter("10m")
        if what == "reject":
            raise Reject("void")

    t = streamjobs_testing(app)
    job_of.publish_many([("snooze",), ("retry",), ("reject",)])
    t.run()

    assert sorted(seen) == [
        ("reject", 1, 1), ("retry", 1, 1), ("retry", 2, 2), ("snooze", 1, 1), ("snooze", 2, 1),
    ]  # fmt: skip
    assert [letter.reason for letter in t.dead_letters()] == ["rejected"]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Void(Reject):
    def __init__(self) -> None:
        """Without a reason: nobody called the signal's own."""


class Later(Snooze):
    def __init__(self) -> None:
        """Without a delay."""


class Wordy(Reject):
    def __init__(self) -> None:
        self.reason = 13


@pytest.mark.parametrize(
    ("raised", "letter"),
    [
        (Reject(ValueError("void")), ("rejected", "Reject", "void")),
        (Wordy(), ("rejected", "Wordy", "13")),
        (RetryAfter("1s", ValueError("busy")), ("exhausted", "RetryAfter", "busy")),
        (Cancel(ValueError("gone")), None),
        (Mute(), ("exhausted", "Mute", "<its text can't be made: RuntimeError>")),
        (Void(), ("exhausted", "Void", "a Void that can't be read: 'Void' object has no attribute 'reason'")),
        (Later(), ("exhausted", "Later", "a Later that can't be read: 'Later' object has no attribute 'delay_s'")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_handler_raises_the_worker_goes_on(streamjobs_testing, raised: BaseException, letter: tuple[str, str, str] | None) -> None:
    """A signal with an exception as its reason, an exception that can't say its text, signals of a user's own that lack what they need."""
    app = App("shop")
    ran = []

    @app.job(retry=Retry(attempts=2, backoff=Backoff.fixed("1s")))
    def raises() -> None:
        raise raised

    @app.job
    def other() -> None:
        ran.append("other")

    t = streamjobs_testing(app)
    raises.publish()
    other.publish()
    t.run(raise_errors=False)

    assert ran == ["other"]
    assert [(each.reason, each.error_type, each.error_message) for each in t.dead_letters()] == ([letter] if letter else [])


class Guarded(BaseModel):
    n: int

    refusal: ClassVar[BaseException | None] = None

    @field_validator("n")
    @classmethod
    def refuse(cls, n: int) -> int:
        if cls.refusal is not None:
            raise cls.refusal
        return n


@pytest.mark.parametrize(
    "refusal", [ValueError("void"), Mute(), Reject("void"), Snooze("1s"), SystemExit("void")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("alone", [True, False])
def test_whatever_a_model_raises_when_a_job_is_read_the_worker_goes_on(
    streamjobs_testing, monkeypatch, refusal: BaseException, alone: bool
) -> None:
    """A validator that came with the last version, and takes itself for a handler. Signals are no `Exception`s."""
    app = App("shop")
    ran = []

    if alone:

        @app.job
        def takes(guarded: Guarded) -> None: ...
    else:

        @app.job
        def takes(guarded: Guarded, n: int = 0) -> None: ...

    @app.job
    def other() -> None:
        ran.append("other")

    t = streamjobs_testing(app)
    takes.publish(Guarded(n=1))
    other.publish()
    monkeypatch.setattr(Guarded, "refusal", refusal)
    t.run()

    assert ran == ["other"]
    assert [(letter.reason, letter.error_type) for letter in t.dead_letters()] == [("undecodable", "DecodeError")]


def plainly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of async functions."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return call


def test_an_async_handler_that_nobody_would_await_fails(streamjobs_testing) -> None:
    """*Bites*: its jobs succeed, and none of them has run."""
    app = App("shop")

    @app.job(retry=Retry(attempts=1))
    @plainly
    async def send(to: str) -> None: ...

    @app.job
    @plainly
    def plain(to: str) -> Iterator[str]:
        return iter(to)

    t = streamjobs_testing(app)
    send.publish("me")
    plain.publish("me")
    t.run(raise_errors=False)

    (letter,) = t.dead_letters()
    assert (letter.job_type, letter.error_type) == ("send", "JobTypeError")
    assert "gave back a coroutine, which nobody runs" in letter.error_message


def test_a_generator_is_no_job_type() -> None:
    """Of one, a call runs nothing."""
    app = App("shop")

    def steps(n: int) -> Iterator[int]:
        yield n

    async def async_steps(n: int) -> AsyncIterator[int]:
        yield n

    for fn in (steps, async_steps):
        with pytest.raises(JobTypeError, match="is a generator, of which a call runs nothing"):
            app.job(fn)


def test_no_signal_puts_a_job_off_beyond_the_calendar(streamjobs_testing) -> None:
    """*Bites*: its due time has more digits than a reader takes, and the retry is a dead letter, `undecodable`."""
    app = App("shop")

    @app.job(retry=Retry(attempts=1))
    def patient() -> None:
        raise RetryAfter(10**12)

    t = streamjobs_testing(app)
    patient.publish()
    t.run(raise_errors=False)

    (letter,) = t.dead_letters()
    assert (letter.reason, letter.error_type) == ("exhausted", "ValueError")
    assert "1,000 years" in letter.error_message


def test_a_delayed_job_waits_for_its_time(streamjobs_testing) -> None:
    app = App("shop")
    at = []

    @app.job
    def later() -> None:
        at.append(t.clock.now())

    t = streamjobs_testing(app)
    began = t.clock.now()
    later.options(delay="2h30m").publish()
    t.run(through_delays=False)
    assert at == []
    t.run()

    assert at[0] - began == pytest.approx(9000, abs=6)
    assert at[0] >= began + 9000


def test_a_bad_argument_is_refused_before_anything_is_sent(streamjobs_testing) -> None:
    app = App("shop")

    @app.job
    def add(a: int, b: int) -> None: ...

    t = streamjobs_testing(app)
    with pytest.raises(PayloadError) as refused:
        add.publish(a=1, b="many")

    assert refused.value.field == "b"
    assert t.run() == 0


def test_an_expired_job_does_not_run(streamjobs_testing) -> None:
    app = App("shop")
    ran = []

    @app.job
    def greet(name: str) -> None:
        ran.append(name)

    t = streamjobs_testing(app)
    greet.options(expires="1m").publish("late")
    greet.options(expires="1h").publish("in time")
    t.advance(120)
    t.run()

    assert ran == ["in time"]


@pytest.mark.parametrize("ended", [ValueError("down"), RetryAfter("1m"), Snooze("1m")], ids=lambda error: type(error).__name__)
def test_no_retry_of_an_expired_job_begins(streamjobs_testing, ended: BaseException) -> None:
    """Its first run was in time; the next one would not be. It is over, and leaves no letter."""
    app = App("shop")
    runs = []

    @app.job(retry=Retry(attempts=3, backoff=Backoff.fixed("1m")))
    def greet(job: Job, name: str) -> None:
        runs.append((name, job.run))
        if job.run == 1:
            raise ended

    t = streamjobs_testing(app)
    greet.options(expires="10s").publish("late")
    greet.options(expires="1h").publish("in time")
    t.run(raise_errors=False)

    assert sorted(runs) == [("in time", 1), ("in time", 2), ("late", 1)]
    assert t.dead_letters() == []


def test_the_app_is_its_own_again_afterwards() -> None:
    app = App("shop", bootstrap="broker.example:9092")
    with app.testing():
        assert app.settings.bootstrap == "memory"
    assert app.settings.bootstrap == "broker.example:9092"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"order": "key-strict"}, "order='key-strict' is none of 'key', 'key_strict', 'partition', 'none'"),
        ({"executor": "thread"}, "executor='thread' is none of 'threads', 'aio', 'processes'"),
        ({"on_timeout": "raise"}, "on_timeout='raise' is none of 'wait', 'retry'"),
        ({"retry": 3}, "retry=3: write it such as Retry(attempts=3)"),
        ({"retry": 0}, "retry=0: write it such as Retry(attempts=3)"),
        ({"retry_on": [ValueError]}, "retry_on=[<class 'ValueError'>] is no class of exceptions, and no tuple of such"),
        ({"discard_on": "ValueError"}, "discard_on='ValueError' is no class of exceptions, and no tuple of such"),
        ({"key": 7}, "key=7 is neither a parameter's name nor a function of the arguments"),
    ],
    ids=str,
)
def test_an_option_that_can_not_be_is_refused_where_it_is_declared(option: dict[str, object], says: str) -> None:
    """*Bites*: it is found out by the loop of a worker, which ends; or never, and the jobs run in another order than was asked for."""
    with pytest.raises(JobTypeError, match=re.escape(f"job type send: {says}")):

        @App("shop").job(**option)
        def send(to: str) -> None: ...


def test_options_that_can_be_are_taken() -> None:
    @App("shop").job(order="key_strict", key="to", retry_on=OSError, discard_on=(KeyError, ValueError), executor="processes", on_timeout="retry")
    def send(to: str) -> None: ...

    assert (send.retry_on, send.discard_on) == ((OSError,), (KeyError, ValueError))


def test_a_job_that_old_code_can_not_read_is_a_letter_for_new_code(streamjobs_testing) -> None:
    """A rolling deployment: the old worker knows the schema, and has a parameter that it lacks."""
    old, new = App("shop"), App("shop")

    @old.job(name="send")
    def old_send(to: str, by: str) -> None: ...

    @new.job(name="send")
    def new_send(to: str) -> None: ...

    t = streamjobs_testing(old)
    before = new.lend(t.broker, t.clock)
    new_send.publish("me")
    t.run()
    assert [(letter.reason, letter.job_id != "") for letter in t.dead_letters()] == [("undecodable", True)]

    assert new.dead_letters("default").replay().moved == 1

    (again,) = t.broker.records("jobs.default.shop.retry")
    assert new_send.payload.decode(again.value(), new._schemas()) == ("me",)
    new.take_back(before)
