"""Dead letters on a real broker: the sequences in which a letter could be lost or go back twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from streamjobs import App, provision, tables
from streamjobs.broker import Broker
from streamjobs.core.record import Meta
from streamjobs.dead_letters import DeadLetters
from streamjobs.dead_letters.orders import Replay
from streamjobs.errors import BrokerError, ReplayError
from tests.support.letters import Letters
from tests.support.workers import eventually


@pytest.fixture
def app(kafka: Broker, prefix: str, app_on: Callable[..., App]) -> App:
    """An app with one job type, `step`, on topics of its own."""
    app = app_on(kafka, name=prefix, system_prefix=f"{prefix}-sys")

    @app.job(queue=f"{prefix}-q", key="k")
    def step(n: int, k: str) -> None: ...

    provision.apply(app, provision.plan(app))
    return app


@pytest.fixture
def letters(app: App) -> DeadLetters:
    return app.dead_letters(app.queues()[0])


@pytest.fixture
def steps(app: App) -> Letters:
    return Letters(app, "step")


def bury(steps: Letters, numbers: range) -> None:
    steps.write(steps.record({"n": n, "k": f"k{n % 7}"}, n) for n in numbers)


def replayed(app: App) -> Counter[str]:
    """How often each origin is on the retry topic, of what was committed."""
    topic = app.names.retry(app.queues()[0], app.group)
    changes = tables.changes(app.broker, tables.bounds(app.broker, topic))
    return Counter(Meta.parse(message.headers()).origin for message in changes)


def test_a_letter_that_arrives_between_list_and_tombstone_stays(
    app: App, steps: Letters, letters: DeadLetters
) -> None:  # edge 54
    """
    An operator lists the letters of `inv-7`; while he replays it, `inv-7`, published a second time, dies too.
    Keyed by job id, the tombstone of the first would erase the second, which nobody has seen.
    """
    steps.write([steps.record({"n": 1, "k": "k"}, 1, job_id="inv-7")])
    late = steps.record({"n": 1, "k": "k"}, 2, job_id="inv-7")
    listed = [letter.id for letter in letters.where(ids=["inv-7"])]

    done = letters.where(ids=listed).replay(moved=lambda _: steps.write([late]))

    assert done.moved == 1
    [left] = letters.get("inv-7")
    assert left.id.endswith("/2#15")
    assert letters.where(ids=["inv-7"]).replay().moved == 1
    assert sorted(replayed(app).values()) == [1, 1]


def test_one_id_published_twice_is_two_letters(app: App, steps: Letters, letters: DeadLetters) -> None:
    """Both die, both are there, both go back, and each tombstone takes its own."""
    steps.write([steps.record({"n": 1, "k": "k"}, offset, job_id="inv-7") for offset in (1, 2)])
    first, second = letters.get("inv-7")

    letters.where(ids=[first.id]).discard()
    assert [letter.id for letter in letters.get("inv-7")] == [second.id]

    assert letters.replay().moved == 1
    assert replayed(app) == {second.origin: 1}


def test_a_run_that_is_settled_twice_is_one_letter(app: App, steps: Letters, letters: DeadLetters) -> None:
    """A worker that dies before its commit leaves the letter, and its successor writes it again."""
    for _ in range(2):
        bury(steps, range(3))

    assert letters.replay().moved == 3
    assert set(replayed(app).values()) == {1} and letters.count() == 0


def test_two_operators_at_once_send_every_letter_back_once(app: App, kafka_with: Callable[..., Broker], steps: Letters) -> None:  # edge 55
    """
    Four replays of one table begin at the same time, again and again until nothing is left.
    Fenced only after the reading, six letters gave twelve jobs.
    """
    bury(steps, range(600))
    queue = app.queues()[0]
    start, outcomes = threading.Barrier(4), Counter[str]()

    def operate() -> None:
        letters = app.dead_letters(queue)
        start.wait(20)
        try:
            outcomes["moved"] += letters.replay(rate=3000).moved
        except ReplayError as error:
            assert "took over" in str(error)
            outcomes["fenced"] += 1

    threads = [threading.Thread(target=operate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    left = app.dead_letters(queue).count()
    back = replayed(app)
    assert set(back.values()) == {1}
    assert len(back) + left == 600
    app.dead_letters(queue).replay()
    assert set(replayed(app).values()) == {1} and sum(replayed(app).values()) == 600
    assert outcomes["moved"] <= 600, "who fences whom is chance (the next test has it for certain); that nothing is doubled is not"


def test_an_operator_who_was_fenced_writes_nothing_more(app: App, steps: Letters, letters: DeadLetters) -> None:  # edge 55
    bury(steps, range(500))
    taken = []

    def take_over(_: int) -> None:
        if not taken:
            taken.append(app.dead_letters(app.queues()[0]).replay(limit=50).moved)

    with pytest.raises(ReplayError, match="took over"):
        letters.replay(moved=take_over)

    back = replayed(app)
    assert set(back.values()) == {1}
    assert len(back) == 500 - letters.count()
    assert taken == [50]


def test_transactions_are_short(steps: Letters, letters: DeadLetters) -> None:
    """While one is open, nobody who reads committed records sees what lies behind it."""
    bury(steps, range(3000))

    done = letters.replay()

    print(f"\n3,000 letters in {done.batches} transactions, the longest {done.longest_s * 1000:.0f} ms, {done.moved / done.took_s:,.0f}/s")
    assert done.moved == 3000
    assert done.batches > 3


def test_a_rate_is_kept(steps: Letters, letters: DeadLetters) -> None:
    bury(steps, range(100))

    done = letters.replay(rate=100)

    assert done.moved == 100
    assert done.took_s > 0.8
    assert done.batches >= 4  # a hundred at an even pace; on a busy machine each transaction takes longer, and more letters


def test_an_order_is_bounded_by_the_end_at_its_start(app: App, steps: Letters, letters: DeadLetters) -> None:  # edge 58
    bury(steps, range(200))
    more = iter(range(1000, 2000))

    done = letters.replay(rate=1000, moved=lambda _: bury(steps, range(n := next(more), n + 1)))

    assert done.moved == 200
    assert letters.count() == done.batches


def test_a_missing_events_topic_holds_nothing_up(app: App, kafka: Broker, steps: Letters, letters: DeadLetters) -> None:
    """The transaction that it makes abort is repeated without events, and no letter goes twice."""
    bury(steps, range(5))
    kafka.admin().delete_topics([app.names.events])
    eventually(lambda: app.names.events not in kafka.admin().topics(), 20, "the events topic is gone")

    done = letters.replay()

    assert (done.moved, done.events_dropped) == (5, 1)
    assert set(replayed(app).values()) == {1} and len(replayed(app)) == 5


def test_a_queue_that_is_gone_is_not_made_again_by_a_replay(
    app: App, kafka: Broker, steps: Letters, letters: DeadLetters
) -> None:  # edge 56
    bury(steps, range(1))
    gone = [app.names.retry(app.queues()[0], app.group), app.names.main(app.queues()[0])]
    kafka.admin().delete_topics(gone)
    eventually(lambda: not set(gone) & set(kafka.admin().topics()), 20, "the topics are gone")

    with pytest.raises(ReplayError, match="topic apply"):
        letters.replay()

    assert not set(gone) & set(kafka.admin().topics())
    assert letters.count() == 1


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_record_too_large_for_its_topic_stays_alone(
    foreseen: bool, app: App, kafka: Broker, steps: Letters, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where nobody could foresee it, the broker refuses the whole batch, and its producer is of no use afterwards: the table is read
    again behind a new fence, each letter of that batch goes alone, and only the large one stays.
    """
    if not foreseen:
        monkeypatch.setattr(Replay, "_topics", lambda _, names: kafka.admin().topics(names))
    bury(steps, range(20))
    steps.write([steps.record({"n": 99, "k": "x" * 200_000}, 99)])
    kafka.admin().alter_topic_config(app.names.retry(app.queues()[0], app.group), {"max.message.bytes": "100000"})

    done = letters.replay()

    assert (done.moved, letters.count()) == (20, 1)
    assert set(replayed(app).values()) == {1}


def test_a_record_cant_be_purged_but_by_its_tombstone(app: App, kafka: Broker, steps: Letters, letters: DeadLetters) -> None:
    """Why there is `discard` and no truncation."""
    bury(steps, range(3))
    bounds = tables.bounds(kafka, letters.table.topic)

    errors = kafka.admin().delete_records({tp: end for tp, (start, end) in bounds.items() if end > start})

    assert {error.code for error in errors.values() if isinstance(error, BrokerError)} == {"POLICY_VIOLATION"}
    assert letters.discard().moved == 3 and letters.count() == 0


def test_a_replay_without_a_consumer_group_leaves_none_behind(app: App, kafka: Broker, steps: Letters, letters: DeadLetters) -> None:
    bury(steps, range(3))

    letters.replay()

    assert not [name for name in kafka.admin().group_names() if name.startswith(app.name)]
