"""Dead letters: looked at, replayed, discarded, edited, taken out and brought back, on a broker in memory."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel

from streamjobs import App, Reject, provision, tables
from streamjobs.avro.codec import Payload
from streamjobs.core.failures import MAX_GROUPS
from streamjobs.core.lifecycle import Reason
from streamjobs.core.record import Meta, Record
from streamjobs.dead_letters import DeadLetters, Kept, desk, orders, run
from streamjobs.dead_letters.desk import Pace
from streamjobs.dead_letters.payloads import Change, store_schemas
from streamjobs.errors import BrokerError, ReplayError, UsageError
from streamjobs.telemetry.events import decode
from streamjobs.testing import ManualClock, MemoryBroker
from streamjobs.testing.producer import MemoryTransactionalProducer
from tests.support.letters import Letters

DLT = "jobs.invoices.billing.dlt"
RETRY = "jobs.invoices.billing.retry"
AUDIT = "streamjobs.audit"
EVENTS = "streamjobs.events"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest.fixture
def app(broker: MemoryBroker, clock: ManualClock) -> Iterator[App]:
    app = App("billing", partitions=4)

    @app.job(queue="invoices", key="customer_id")
    def send_invoice(invoice_id: int, customer_id: str, password: str = "hunter2") -> None: ...

    @app.job(queue="invoices")
    def remind(invoice_id: int) -> None: ...

    @app.job(queue="mails")
    def send_mail(to: str) -> None: ...

    before = app.lend(broker, clock)
    provision.apply(app, provision.plan(app))
    yield app
    app.take_back(before)


@pytest.fixture
def invoices(app: App) -> Letters:
    return Letters(app, "send_invoice", TimeoutError("no answer from 'bank' in 30 s"))


@pytest.fixture
def letters(app: App) -> DeadLetters:
    return app.dead_letters("invoices")


def bury(invoices: Letters, count: int, **more: Any) -> None:
    """Letters of invoices 0, 1, … of customers c0, c1, c2."""
    invoices.write(
        invoices.record({"invoice_id": n, "customer_id": f"c{n % 3}"}, n, **{name: of(n) for name, of in more.items()})
        for n in range(count)
    )


def interrupted_in_the_client() -> SystemError:
    """As CPython reports a C function that returns a result with an exception set."""
    error = SystemError("<built-in method …> returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    return error


def jobs(broker: MemoryBroker, topic: str = RETRY) -> list[Meta]:
    return [Meta.parse(message.headers()) for message in broker.records(topic)]


def origins(broker: MemoryBroker) -> list[str]:
    return sorted(meta.origin for meta in jobs(broker))


def audit(broker: MemoryBroker) -> list[dict[str, Any]]:
    """Without the one that made the topics."""
    found = [json.loads(message.value() or b"") for message in broker.records(AUDIT)]
    return [entry for entry in found if entry["action"].startswith("dlt")]


# --- looking ------------------------------------------------------------------------------------------------------------------


def test_letters_are_looked_at_and_chosen(invoices: Letters, letters: DeadLetters, clock: ManualClock) -> None:
    bury(invoices, 9)
    clock.advance(7200)
    bury(Letters(invoices.app, "remind", Reject("void")), 0)
    invoices.write([Letters(invoices.app, "remind", ValueError("void")).record({"invoice_id": 1}, 100)])

    assert letters.count() == 10
    assert letters.where("age>1h", key="c1").count() == 3
    assert letters.where(error="ValueError").count() == 1
    assert letters.where("age<1h").count() == 1
    assert [letter.meta.job_id for letter in letters.where(ids=["job-4"])] == ["job-4"]
    assert [letter.meta.job_id for letter in letters.get("job-100")] == ["job-100"]


def test_an_empty_list_of_ids_takes_nothing(invoices: Letters, letters: DeadLetters) -> None:
    """What bit: a query that found no job discarded them all."""
    bury(invoices, 3)

    assert letters.where(ids=[]).discard().moved == 0
    assert (letters.count(), letters.where(ids=iter(())).count(), letters.where(ids=None).count()) == (3, 0, 3)
    assert [letter.meta.job_id for letter in letters.where(ids="job-1")] == ["job-1"]


def test_stats_count_what_failed_alike(invoices: Letters, letters: DeadLetters, clock: ManualClock) -> None:
    bury(invoices, 6)
    clock.advance(60)
    invoices.write([Letters(invoices.app, "remind", ValueError("void")).record({"invoice_id": 1}, 100)])

    stats = letters.stats(["error", "type"])

    assert [(group.by, group.count) for group in stats.groups] == [(("TimeoutError", "send_invoice"), 6), (("ValueError", "remind"), 1)]
    assert (stats.count, stats.groups[0].message) == (7, "no answer from … in … s")
    assert stats.last - stats.first == 60
    assert len(letters.stats(["key"]).groups) == 4
    with pytest.raises(UsageError, match="can't be grouped by 'colour'"):
        letters.stats(["colour"])


def test_stats_are_bounded(invoices: Letters, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamjobs.core.failures.MAX_GROUPS", 5)
    bury(invoices, 9)

    assert [group.count for group in letters.stats(["id"]).groups] == [1, 1, 1, 1, 1, 4]
    assert MAX_GROUPS > 5


def test_a_payload_is_shown_by_its_own_schema_without_secrets(invoices: Letters, letters: DeadLetters) -> None:
    bury(invoices, 1)

    [letter] = letters

    assert letters.shown(letter).json == {"invoice_id": 0, "customer_id": "c0", "password": "***"}


def test_a_payload_of_an_older_schema_is_read_from_the_schema_topic(
    app: App, invoices: Letters, letters: DeadLetters
) -> None:
    """The job type has another parameter by now; what the letter holds is shown as it was written."""
    old = App("old")

    @old.job(name="send_invoice", queue="invoices")
    def send_invoice_v1(invoice_id: int, amount: float) -> None: ...

    payload = old.job_types["send_invoice"].payload
    value = payload.encode({"invoice_id": 7, "amount": 1.5})
    invoices.write([invoices.record({"invoice_id": 7, "customer_id": "c"}, 7, value=value)])
    [letter] = letters

    unknown = app.dead_letters("invoices").shown(letter)
    tables.write_once(app.broker, [Record(app.names.schemas, payload.canonical.encode(), payload.fingerprint.hex().encode())])
    known = app.dead_letters("invoices").shown(letter)

    assert "no schema is known" in unknown.problem and unknown.hex == value.hex()
    assert known.json == {"invoice_id": 7, "amount": 1.5}


def test_an_undecodable_letter_is_shown_in_hexadecimal(invoices: Letters, letters: DeadLetters) -> None:  # edge 61
    garbage = b"\xff\x00garbage"
    invoices.write([invoices.record({"invoice_id": 7, "customer_id": "c"}, 7, value=garbage, reason=Reason.UNDECODABLE)])

    [letter] = letters.where(reason="undecodable")

    assert letters.shown(letter).hex == garbage.hex()
    assert "FF 00" in letters.shown(letter).problem


def test_a_table_that_is_not_there_says_which_are(app: App, broker: MemoryBroker) -> None:
    with pytest.raises(UsageError, match="did you mean queue 'invoices'"):
        app.dead_letters("invoice").count()
    with pytest.raises(UsageError, match="group billing"):
        app.dead_letters("invoices", group="shop").count()
    assert "jobs.invoice.billing.dlt" not in broker.admin().topics()


# --- replay -------------------------------------------------------------------------------------------------------------------


def test_every_letter_goes_back_once_and_its_letter_goes(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 55
    bury(invoices, 250)

    done = letters.replay(reason="the bank is back")

    assert (done.moved, letters.count()) == (250, 0)
    assert Counter(origins(broker)) == Counter({f"jobs.invoices@{invoices.main.id[:4].hex()}/0/{n}": 1 for n in range(250)})
    assert {(meta.run, meta.attempt, meta.replays) for meta in jobs(broker)} == {(16, 1, 1)}
    assert letters.replay().moved == 0
    assert len(broker.records(RETRY)) == 250


def test_every_order_leaves_one_record_in_the_audit(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 7)

    letters.where(key="c1").replay(reason="the bank is back", actor="ann")
    letters.discard(limit=2)

    replay, discard = audit(broker)
    assert (replay["who"], replay["action"], replay["count"], replay["result"]) == ("ann", "dlt replay", 2, "ok")
    assert (replay["target"], replay["reason"]) == (f"{DLT}: key=c1", "the bank is back")
    assert (discard["action"], discard["count"], discard["target"]) == ("dlt discard", 2, f"{DLT}: all")


def test_events_tell_the_monitor_which_run_was_replayed(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 3)
    offsets = {letter.origin: letter.offset for letter in letters}

    letters.replay()

    events = [event for message in broker.records(EVENTS) for event in decode(message.value() or b"")]
    assert {event.origin: event.offset for event in events} == offsets
    assert {(e.kind, e.run, e.attempt, e.queue, e.group, e.topic, e.reason) for e in events} == {
        ("replayed", 15, 15, "invoices", "billing", DLT, "exhausted")
    }


def test_without_an_events_topic_letters_go_all_the_same(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:
    """What tells of a replay must not hold it up; that it could not be told is."""
    bury(invoices, 3)
    broker.admin().delete_topics([EVENTS])

    done = letters.replay()

    assert (done.moved, done.events_dropped, letters.count()) == (3, 1, 0)
    assert len(broker.records(RETRY)) == 3


def test_only_what_was_chosen_goes(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 9)

    assert letters.where(key="c1").replay().moved == 3
    assert letters.replay(limit=4).moved == 4

    assert len(jobs(broker)) == 7
    assert letters.count() == 2


def test_a_plan_writes_nothing_and_says_what_would_go(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 5, headers=lambda n: [("sj_replays", b"3" if n == 4 else b"0")])

    plan = letters.plan(letters.replay_order(limit=3))

    assert (plan.count, plan.beyond, plan.kept, plan.marks) == (3, 1, {Kept.PARKED: 1}, 1)
    assert [(group.by, group.count) for group in plan.groups] == [(("TimeoutError", "send_invoice"), 3)]
    assert letters.count() == 5 and not broker.records(RETRY) and not audit(broker)


def test_what_died_after_the_plan_is_not_older_than_it(
    invoices: Letters, letters: DeadLetters, clock: ManualClock
) -> None:
    """`age>1m` was shown for ten letters; while the operator reads, others grow old enough. They were not shown."""
    bury(invoices, 1)
    clock.advance(61)
    bury(invoices, 2)
    order = letters.where("age>1m").replay_order()
    before = letters.plan(order).count
    clock.advance(61)

    assert (before, run.carry_out(order).moved) == (0, 0)
    assert run.carry_out(letters.where("age>1m").replay_order()).moved == 2


def test_a_letter_replayed_too_often_is_parked_and_reported(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 57
    bury(invoices, 3, headers=lambda n: [("sj_replays", b"3" if n else b"2")])

    done = letters.replay()

    assert (done.moved, done.kept) == (1, {Kept.PARKED: 2})
    assert letters.where("parked=yes", reason="exhausted").count() == 2
    ends = tables.bounds(broker, DLT)
    assert letters.replay().kept == {Kept.PARKED: 2}
    assert tables.bounds(broker, DLT) == ends, "they are marked once"
    app._settings = app.settings.model_copy(update={"max_replays": 4})
    assert letters.replay().moved == 2
    assert {meta.parked for meta in jobs(broker)} == {False}


def test_an_expired_letter_stays(invoices: Letters, letters: DeadLetters, clock: ManualClock) -> None:
    """Put back, a worker would skip it without a word, and it would be nowhere."""
    soon = b"%d" % round((clock.now() + 60) * 1000)
    bury(invoices, 2, headers=lambda n: [("sj_expires", soon)] if n else [])

    assert letters.replay(delay="2m").kept == {Kept.EXPIRED: 1}


def test_a_queue_that_is_gone_is_refused_with_what_to_do(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 56
    bury(invoices, 2)
    broker.admin().delete_topics(["jobs.invoices"])

    with pytest.raises(ReplayError, match=r"no topic jobs\.invoices\..*--to QUEUE"):
        letters.replay()
    assert letters.count() == 2 and "jobs.invoices" not in broker.admin().topics()

    assert letters.replay(to="mails").moved == 2
    assert len(jobs(broker, "jobs.mails.billing.retry")) == 2


def test_a_retry_topic_that_is_gone_is_refused(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:  # edge 56
    bury(invoices, 1)
    broker.admin().delete_topics([RETRY])

    with pytest.raises(ReplayError, match=r"no topic jobs\.invoices\.billing\.retry: `streamjobs topic apply`"):
        letters.replay()
    with pytest.raises(ReplayError, match=r"no topic jobs\.nowhere\.billing\.retry"):
        letters.replay(to="nowhere")


def test_letters_of_an_earlier_topic_stay_unless_a_queue_is_named(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 56
    bury(invoices, 2)
    broker.admin().delete_topics(["jobs.invoices"])
    provision.apply(app, provision.plan(app))

    assert letters.replay().kept == {Kept.SOURCE_GONE: 2}
    assert letters.replay(to="invoices").moved == 2


def test_a_delayed_replay_goes_through_the_ladder_of_who_registered(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker, clock: ManualClock
) -> None:
    bury(invoices, 2)

    letters.replay(delay="10m")

    assert not jobs(broker)
    assert {(meta.next, meta.due) for meta in jobs(broker, "streamjobs.billing.delay.4m")} == {(RETRY, clock.now() + 600)}


def test_a_short_delay_is_waited_for_by_the_worker(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, clock: ManualClock
) -> None:
    bury(invoices, 1)

    letters.replay(delay="2s")

    assert [(meta.next, meta.due) for meta in jobs(broker)] == [("", clock.now() + 2)]


def test_a_delay_needs_someone_who_moves_it(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker, clock: ManualClock
) -> None:
    bury(invoices, 1)
    with pytest.raises(UsageError, match=r"a delay of \d+d is longer than max_delay \(90d\)"):
        letters.replay(delay="91d")
    with pytest.raises(UsageError, match="delay"):
        letters.replay(delay="soon")
    tables.write_once(broker, [Record(app.names.control, None, message.key(), partition=0) for message in broker.records(app.names.control)])

    with pytest.raises(ReplayError, match="nobody moves delayed jobs"):
        letters.replay(delay="10m")
    assert letters.count() == 1


def test_jobs_of_one_key_stay_together(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 30)

    letters.replay()

    found: dict[bytes | None, set[int]] = {}
    for message in broker.records(RETRY):
        found.setdefault(message.key(), set()).add(message.partition())
    assert {key: len(partitions) for key, partitions in found.items()} == {b"c0": 1, b"c1": 1, b"c2": 1}


@pytest.mark.parametrize(("compression", "says"), [("none", "takes 80,000"), ("lz4", "MSG_SIZE_TOO_LARGE")])
def test_a_letter_that_its_topic_refuses_stays_and_the_others_go(
    compression: str, says: str, app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:
    """
    One job of 180 kB on a topic that was made smaller must not keep forty others.
    The plan says so; unless records are compressed: then only the broker can tell.
    """
    app._settings = app.settings.model_copy(update={"kafka": {"compression.type": compression}})
    bury(invoices, 40)
    invoices.write([invoices.record({"invoice_id": 99, "customer_id": "x" * 90_000}, 99)])
    broker.admin().alter_topic_config(RETRY, {"max.message.bytes": "80000"})

    done = letters.replay()

    assert (done.moved, done.kept, letters.count()) == (40, {Kept.TOO_LARGE: 1}, 1)
    assert says in done.why[Kept.TOO_LARGE]
    assert letters.plan(letters.replay_order()).kept == ({Kept.TOO_LARGE: 1} if compression == "none" else {})


def test_what_arrives_while_it_runs_is_left(invoices: Letters, letters: DeadLetters) -> None:  # edge 58
    """Bounded by the end at its start: a replay of jobs that die again would never end."""
    bury(invoices, 300)

    def another(_: int) -> None:
        invoices.write([invoices.record({"invoice_id": 1, "customer_id": "c"}, 5_000)])

    assert letters.replay(moved=another).moved == 300
    assert letters.count() == 1


def test_stopping_ends_behind_the_batch_in_hand(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 500)
    stop = threading.Event()

    done = letters.replay(stop=stop, moved=lambda _: stop.set())

    assert done.interrupted and 0 < done.moved < 500
    assert len(jobs(broker)) == done.moved == 500 - letters.count()
    assert audit(broker)[-1]["result"] == "interrupted"
    assert letters.replay().moved == 500 - done.moved
    assert len(set(origins(broker))) == len(jobs(broker)) == 500


def in_the_second_batch(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Has something happen when the first batch is moved and the second one is about to be."""
    batches = count(1)
    monkeypatch.setattr(orders.Replay, "prepare", lambda _: then() if next(batches) == 2 else None)


def test_no_round_begins_once_it_shall_stop(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bit: Ctrl-C while the broker stood still; "finishing the batch", which failed, and the next round waited for the broker anew."""
    bury(invoices, 500)
    stop = threading.Event()

    def stop_and_fail() -> None:
        stop.set()
        broker.fail("send", topic=RETRY, error="NOT_ENOUGH_REPLICAS")

    in_the_second_batch(monkeypatch, stop_and_fail)
    done = letters.replay(stop=stop)

    assert done.interrupted and done.batches == 1
    assert len(jobs(broker)) == done.moved == 500 - letters.count()
    assert audit(broker)[-1]["result"] == "interrupted"


def test_at_once_waits_for_no_answer_and_says_what_is_unknown(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 500)
    stop, at_once = threading.Event(), threading.Event()
    asked = 0

    def twice(_: Any, *args: Any) -> None:
        nonlocal asked
        asked += 1
        (at_once if asked == 3 else stop).set()
        raise BrokerError("_TIMED_OUT", "commit", retriable=True)

    in_the_second_batch(monkeypatch, lambda: monkeypatch.setattr(MemoryTransactionalProducer, "commit", twice))
    with pytest.raises(ReplayError, match=r"did not say whether the last \d+ letters were moved.*all, or none.*Run the same command again"):
        run.carry_out(letters.replay_order(), stop=stop, at_once=at_once)

    assert asked == 3


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), interrupted_in_the_client()], ids=["Ctrl-C", "in the client"])
def test_ctrl_c_in_a_commit_says_what_is_unknown(
    raised: BaseException, invoices: Letters, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 5)

    def interrupted(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(MemoryTransactionalProducer, "commit", interrupted)
    with pytest.raises(ReplayError, match=r"the last 5 letters were moved \(interrupted\)"):
        letters.replay()


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), interrupted_in_the_client()], ids=["Ctrl-C", "in the client"])
def test_ctrl_c_before_a_commit_undoes_the_batch(
    raised: BaseException, invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error to who asked for it; to who did not it goes on."""
    bury(invoices, 500)
    at_once = threading.Event()

    def interrupted(*_: Any) -> None:
        raise raised

    in_the_second_batch(monkeypatch, lambda: monkeypatch.setattr(MemoryTransactionalProducer, "send", interrupted))
    with pytest.raises(type(raised)):
        letters.replay()
    monkeypatch.undo()
    moved = 500 - letters.count()
    assert len(jobs(broker)) == moved

    in_the_second_batch(monkeypatch, lambda: (at_once.set(), interrupted()))
    done = run.carry_out(letters.replay_order(), at_once=at_once)

    assert done.interrupted and done.batches == 1
    assert len(jobs(broker)) == moved + done.moved == 500 - letters.count()


def test_another_order_that_takes_over_stops_this_one(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 55
    """Two operators at once: the second fences the first, then reads what that one has left."""
    bury(invoices, 500)
    second: list[int] = []

    def take_over(_: int) -> None:
        if not second:
            second.append(app.dead_letters("invoices").replay().moved)

    with pytest.raises(ReplayError, match=r"another order took over jobs\.invoices\.billing\.dlt"):
        letters.replay(moved=take_over)

    assert len(set(origins(broker))) == len(jobs(broker)) == 500
    assert letters.count() == 0
    assert {(entry["count"], entry["result"].partition(":")[0]) for entry in audit(broker)} == {(second[0], "ok"), (500 - second[0], "failed")}


def test_the_fence_comes_before_the_reading(
    app: App, invoices: Letters, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch, broker: MemoryBroker
) -> None:  # edge 55
    """Read first, fenced later: whatever the other one moved in between goes back twice."""
    bury(invoices, 50)
    reading = orders.Replay.letters
    other = app.dead_letters("invoices")
    calls = iter([True])

    def read_slowly(self: Any, within: Any) -> Any:
        found = list(reading(self, within))
        if next(calls, False):
            other.replay()
        return iter(found)

    monkeypatch.setattr(orders.Replay, "letters", read_slowly)
    with pytest.raises(ReplayError):
        letters.replay()

    assert len(jobs(broker)) == 50


def test_a_busy_cluster_is_asked_again(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PAUSE_S", 0.0)
    bury(invoices, 10)
    broker.fail("send", topic=RETRY, error="NOT_ENOUGH_REPLICAS", times=2)

    assert letters.replay().moved == 10
    assert len(jobs(broker)) == 10


def test_a_limit_holds_over_what_was_begun_anew(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was moved before a batch failed counts; what stays is counted once."""
    monkeypatch.setattr(run, "PAUSE_S", 0.0)
    bury(invoices, 400, headers=lambda n: [("sj_replays", b"3")] if n % 4 == 0 else [])
    faults = iter(["NOT_ENOUGH_REPLICAS"])

    def trip(_: int) -> None:
        for error in faults:
            broker.fail("send", topic=RETRY, error=error)

    done = letters.replay(limit=200, moved=trip)

    assert (done.moved, len(jobs(broker))) == (200, 200)
    assert done.kept[Kept.PARKED] <= 100


def test_an_order_that_could_not_be_noted_says_so(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    """It is carried out: an exception would say that it is not."""
    bury(invoices, 3)
    broker.fail("send", topic=AUDIT, error="TOPIC_AUTHORIZATION_FAILED")

    done = letters.replay()

    assert done.moved == 3 and "could not be noted in streamjobs.audit" in done.complaint


def test_a_commit_without_an_answer_is_asked_for_again(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    """Aborted instead, or done anew, what was committed after all would go back twice."""
    bury(invoices, 500)
    faults = iter([1])

    def lose_an_answer(_: int) -> None:
        for times in faults:
            broker.fail("transaction", error="REQUEST_TIMED_OUT", times=times)

    assert letters.replay(moved=lose_an_answer).moved == 500
    assert len(jobs(broker)) == 500


def test_a_commit_that_is_never_answered_ends_it_with_what_to_do(
    invoices: Letters, letters: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "PATIENCE_S", 0.0)
    bury(invoices, 500)

    with pytest.raises(ReplayError, match=r"did not say whether the last \d+ letters were moved.*Run the same command again"):
        letters.replay(moved=lambda _: broker.fail("transaction", error="REQUEST_TIMED_OUT", times=None) and None)


def test_a_refusal_ends_it_and_nothing_is_lost(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:  # edge 33
    bury(invoices, 10)
    broker.fail("send", topic=RETRY, error="TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(BrokerError, match="TOPIC_AUTHORIZATION_FAILED"):
        letters.replay()

    assert letters.count() == 10 and not jobs(broker)
    assert audit(broker)[-1]["count"] == 0


def test_on_a_broker_without_transactions_jobs_go_first(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:
    """The embedded one: a crash between leaves letters whose jobs run, never letters whose jobs are gone."""
    bury(invoices, 10)
    broker.lacks = frozenset({"transactions"})
    denied = broker.fail("send", topic=DLT, error="TOPIC_AUTHORIZATION_FAILED", times=None)

    with pytest.raises(BrokerError):
        letters.replay()
    assert len(jobs(broker)) == letters.count() == 10

    denied.lift()
    assert not letters.replay().fenced
    assert letters.count() == 0


# --- changes ------------------------------------------------------------------------------------------------------------------


def payloads(app: App, broker: MemoryBroker) -> list[Any]:
    store = app._schemas()
    found = [app.job_types["send_invoice"].payload.decode(message.value() or b"", store) for message in broker.records(RETRY)]
    return sorted(found)


def test_a_changed_payload_is_checked_and_travels(app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 2)

    done = letters.replay(changes={"invoice_id": 70, "customer_id": "acme"}, reason="wrong customer")

    assert done.moved == 2
    assert payloads(app, broker) == [(70, "acme", "hunter2")] * 2
    assert {message.key() for message in broker.records(RETRY)} == {b"acme"}, "the key follows the payload"
    assert audit(broker)[-1]["target"] == f"{DLT}: all; set invoice_id, customer_id"
    fingerprint = app.job_types["send_invoice"].payload.fingerprint.hex().encode()
    assert [message.key() for message in broker.records(app.names.schemas)] == [fingerprint]


def test_a_change_reaches_into_nested_objects(app: App, broker: MemoryBroker) -> None:
    """The key that a job type makes of it follows."""

    @app.job(queue="invoices", key=lambda address: address["city"])
    def ship(address: dict[str, str]) -> None: ...

    letters = app.dead_letters("invoices")
    Letters(app, "ship").bury([{"address": {"city": "Rome", "zip": "1"}}, {"address": {"city": "Oslo", "zip": "2"}}])

    letters.edit([Change.parse("address.zip=9"), Change.parse("address.land=x")])

    assert [letters.shown(letter).json["address"] for letter in sorted(letters, key=lambda letter: letter.id)] == [
        {"city": "Rome", "zip": "9", "land": "x"}, {"city": "Oslo", "zip": "9", "land": "x"},
    ]  # fmt: skip
    letters.where(key="Rome").edit({"address.city": "Bern"})
    assert sorted(letter.key or "" for letter in letters) == ["Bern", "Oslo"]
    assert letters.edit({"address.city.name": "x"}).kept == {Kept.REFUSED: 2}


def test_a_letter_from_before_a_parameter_went_can_be_mended(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:
    """As a worker would run it: without what is no parameter any more."""

    def as_it_was(invoice_id: int, customer_id: str, sent_by: str) -> None: ...

    old = Payload(as_it_was, "send_invoice")
    store_schemas(broker, app.names, {old.fingerprint: old.canonical})
    value = old.encode({"invoice_id": 1, "customer_id": "c1", "sent_by": "me"})
    invoices.write([invoices.record({"invoice_id": 1, "customer_id": "c1"}, 1, value=value)])

    done = letters.replay(changes={"invoice_id": 70})

    assert (done.moved, done.why) == (1, {})
    assert payloads(app, broker) == [(70, "c1", "hunter2")]
    assert [message.key() for message in broker.records(RETRY)] == [b"c1"]


class Order(BaseModel):
    number: int
    note: str = ""


def test_a_misspelled_field_of_a_model_is_no_change(app: App) -> None:
    """*Bites*: the model passes over what it does not know, and the job runs once more as it was."""

    @app.job(queue="invoices")
    def ship(order: Order) -> None: ...

    Letters(app, "ship").bury([{"order": Order(number=1)}])

    done = app.dead_letters("invoices").replay(changes={"nmber": 7})

    assert (done.moved, done.kept) == (0, {Kept.REFUSED: 1})
    assert "ship: nmber is none of its fields: number, note" in done.why[Kept.REFUSED]


def test_a_key_that_its_publisher_chose_stays(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    record = invoices.record({"invoice_id": 1, "customer_id": "c"}, 1)
    chosen = [(name, b"chosen" if name == "sj_key" else value) for name, value in record.headers]
    invoices.write([Record(record.topic, record.value, record.key, chosen)])

    letters.replay(changes={"customer_id": "acme"})

    assert [message.key() for message in broker.records(RETRY)] == [b"chosen"]


def test_a_change_that_does_not_fit_leaves_the_letter(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 1)
    invoices.write([Letters(invoices.app, "remind").record({"invoice_id": 1}, 50)])

    done = letters.replay(changes={"customer_id": "acme"})

    assert (done.moved, done.kept) == (1, {Kept.REFUSED: 1})
    assert "customer_id is none of its parameters" in done.why[Kept.REFUSED]
    assert letters.count() == 1


@pytest.mark.parametrize(
    ("texts", "payload"),
    [
        (["invoice_id=7"], (7, "c0", "hunter2")),
        (["customer_id=42"], (0, "42", "hunter2")),
        (['customer_id="42"'], (0, "42", "hunter2")),
        (["invoice_id=7", "customer_id=42", "password=a=b"], (7, "42", "a=b")),
    ],
)
def test_changes_as_they_are_written(
    texts: list[str], payload: tuple[Any, ...], app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:
    """JSON where JSON is taken, else the text: `42` is a number for one field and a name for another."""
    bury(invoices, 1)

    letters.replay(changes=[Change.parse(text) for text in texts])

    assert payloads(app, broker) == [payload]


@pytest.mark.parametrize("text", ["invoice_id", "=7", "a..b=1"])
def test_a_change_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        Change.parse(text)


def test_an_edited_letter_stays_where_it_is(app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 3)

    done = letters.where(ids=["job-1"]).edit({"customer_id": "acme"}, reason="typo")

    assert (done.moved, letters.count()) == (1, 3)
    [letter] = letters.get("job-1")
    assert letters.shown(letter).json["customer_id"] == letter.key == "acme"
    assert letter.meta.reason == "exhausted"
    assert audit(broker)[-1]["target"] == f"{DLT}: id in (job-1); set customer_id"
    letters.replay()
    assert (1, "acme", "hunter2") in payloads(app, broker)


def test_an_edit_without_a_change_is_refused(letters: DeadLetters) -> None:
    with pytest.raises(UsageError, match="what shall be changed"):
        letters.edit({})


# --- out and in ---------------------------------------------------------------------------------------------------------------


def test_what_was_exported_comes_back_as_it_was(invoices: Letters, letters: DeadLetters, clock: ManualClock) -> None:
    bury(invoices, 5, headers=lambda n: [("raw", b"\xff\x00")])
    before = [(letter.id, letter.value, sorted(letter.headers)) for letter in letters]
    rows = json.loads(json.dumps(list(letters.export())))
    letters.discard()
    clock.advance(3600)

    done = letters.import_(rows)

    after = [(letter.id, letter.value, sorted(pair for pair in letter.headers if pair[0] != "sj_died")) for letter in letters]
    assert done.moved == 5 and sorted(after) == sorted(before)
    assert letters.where("age>=1h").count() == 5, "they are as old as they are"
    assert rows[0]["payload"]["password"] == "***"


def test_a_header_without_a_value_goes_every_way(invoices: Letters, letters: DeadLetters, broker: MemoryBroker) -> None:
    """Publishers of another make write some; the job goes back just so."""
    bury(invoices, 2, headers=lambda n: [("baggage", None), ("baggage", b"")])
    rows = json.loads(json.dumps(list(letters.export())))
    assert [pair for pair in rows[0]["headers"] if pair[0] == "baggage"] == [["baggage", None], ["baggage", ""]]
    assert letters.import_(rows).kept == {Kept.UNCHANGED: 2}
    letters.discard()

    letters.import_(rows)
    letters.replay()

    replayed = [[pair for pair in message.headers() or () if pair[0] == "baggage"] for message in broker.records(RETRY)]
    assert replayed == [[("baggage", None), ("baggage", b"")]] * 2


@pytest.mark.parametrize(("died", "read"), [(1780000000.123, b"1780000000123"), ("2026-05-28T22:26:40.123+02:00", b"1780000000123"), (None, None)])
def test_an_import_reads_when_it_died_as_exports_have_it_and_had_it(
    died: object, read: bytes | None, invoices: Letters, letters: DeadLetters
) -> None:
    bury(invoices, 1)
    [row] = letters.export()
    letters.discard()

    letters.import_([{**row, "died": died}])

    assert [dict(letter.headers).get("sj_died") for letter in letters] == [read]


def test_an_import_twice_changes_nothing(invoices: Letters, letters: DeadLetters) -> None:
    bury(invoices, 5)
    rows = list(letters.export())
    letters.discard(limit=2)

    order = letters.import_order(iter(rows))

    assert (letters.plan(order).count, order.absent) == (2, 2)
    assert letters.import_(rows).moved == 2
    assert letters.import_(rows).kept == {Kept.UNCHANGED: 5}
    assert letters.count() == 5


def test_an_import_replaces_a_letter_where_it_lies(invoices: Letters, letters: DeadLetters) -> None:
    """Written to another partition, the old version would stay beside the new one, and both would go back."""
    record = invoices.record({"invoice_id": 7, "customer_id": "c"}, 7)
    for partition in range(4):
        invoices.write([Record(record.topic, record.value, record.key, record.headers, partition)])
        [row] = letters.export()

        assert letters.import_([{**row, "arguments": {"invoice_id": 7, "customer_id": f"in {partition}"}}]).moved == 1

        assert [letter.key for letter in letters] == [f"in {partition}"]
        letters.discard()


def test_a_record_without_a_key_is_no_letter(letters: DeadLetters, broker: MemoryBroker) -> None:
    """On a topic that is not compacted a stranger may write one: no tombstone could take it away."""
    broker.admin().alter_topic_config(DLT, {"cleanup.policy": "delete"})
    tables.write_once(broker, [Record(DLT, b"what?")])

    assert letters.count() == letters.replay().moved == 0


def test_an_undecodable_letter_is_mended_outside_and_replayed(
    app: App, invoices: Letters, letters: DeadLetters, broker: MemoryBroker
) -> None:  # edge 61
    invoices.write([invoices.record({"invoice_id": 7, "customer_id": "c"}, 7, value=b"garbage", reason=Reason.UNDECODABLE)])
    [row] = letters.where(reason="undecodable").export()
    assert (row["payload"] is None and "no" in row["problem"]) or row["problem"]

    letters.import_([{**row, "arguments": {"invoice_id": 7, "customer_id": "acme"}}])
    letters.replay()

    assert payloads(app, broker) == [(7, "acme", "hunter2")]
    assert [message.key() for message in broker.records(RETRY)] == [b"acme"]
    assert letters.count() == 0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "letter 2: 'headers' is missing"),
        ({"headers": [], "value": "?", "id": "x"}, "letter 2: it is no letter"),
        ({"headers": [["a", 1]], "value": "", "id": "x"}, "letter 2: it is no letter"),
        ({"headers": [["a\udcff", "1"]], "value": "", "id": "x"}, r"a header can't be named 'a\udcff'"),
        ({"headers": [["ce_id\0", "1"]], "value": "", "id": "x"}, r"a header can't be named 'ce_id\x00'"),
        ({"headers": [["a", "\udcff"]], "value": "", "id": "x"}, "letter 2: it is no letter"),
        ({"headers": [], "value": "", "id": "x", "died": "2026-05-28T20:26:40"}, "without a time zone"),
        ({"headers": [], "value": "", "id": ""}, "letter 2: its id is empty"),
        ({"headers": [], "value": "", "id": "x", "arguments": 7}, "letter 2: its arguments are int"),
        ({"headers": [["ce_type", "send_invoice"]], "value": "", "id": "x", "arguments": {}}, "letter 2: send_invoice: invoice_id is missing"),
        ({"headers": [], "value": "", "id": "x", "topic": "jobs.mails.billing.dlt"}, "letter 2: it is a letter of jobs.mails.billing.dlt"),
        (
            {"headers": [["ce_type", "send_invoice"]], "value": "", "id": "x", "arguments": {"invoice_id": 1, "customer_id": "\udcff"}},
            r"letter 2: its key would be '\udcff'",
        ),
        ({"headers": [["ce_type", "nobody"]], "value": "", "id": "x", "arguments": {}}, "letter 2: no job type 'nobody'"),
    ],
)
def test_a_row_that_is_no_letter_stops_an_import_before_it_begins(
    row: dict[str, Any], says: str, invoices: Letters, letters: DeadLetters
) -> None:
    bury(invoices, 1)
    [good] = letters.export()
    letters.discard()

    with pytest.raises(UsageError) as refused:
        letters.import_([good, row])

    assert says in str(refused.value)
    assert letters.count() == 0


# --- pace ---------------------------------------------------------------------------------------------------------------------


def test_batches_grow_while_transactions_are_short_and_shrink_when_they_are_not() -> None:
    pace = Pace()
    sizes = []
    for took in (0.01, 0.01, 0.01, 0.01, 0.01, 0.09, 0.05, 0.2):
        sizes.append(pace.size)
        pace.went(pace.size, 0.0, took)

    assert sizes == [100, 200, 400, 800, 1000, 1000, 500, 500]
    assert pace.size == 250
    assert pace.wait_s(0.0) == 0.0


def test_a_rate_is_a_trickle_and_never_catches_up() -> None:
    pace = Pace(50.0)
    assert pace.size == 5

    pace.went(5, 100.0, 0.02)
    assert pace.wait_s(100.02) == pytest.approx(0.08)
    pace.went(5, 110.0, 0.02)  # the broker was away for ten seconds
    assert pace.wait_s(110.02) == pytest.approx(0.08)


def test_a_slow_rate_moves_one_at_a_time() -> None:
    pace = Pace(0.5)

    assert pace.size == 1
    pace.went(1, 100.0, 0.02)
    assert pace.wait_s(100.02) == pytest.approx(1.98)
