"""Transactional settling on a real broker: whoever reads committed records finds one outcome of each run, whatever was killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamjobs import App
from streamjobs.broker import Broker, Message, TopicPartition
from streamjobs.core.record import Meta, origin_of
from streamjobs.core.topics import retry_group, timer_group
from streamjobs.kafka import KafkaBroker
from streamjobs.telemetry import events
from tests.broker.conftest import World
from tests.support.story import processes_of
from tests.support.workers import Worker, eventually

APP = "tests.support.transact_app:app"


class Outcome(NamedTuple):
    """What should become of one published job."""

    fails: int
    children: int
    ends: str
    ladder: bool

    @property
    def runs(self) -> int:
        return self.fails + 1 + (self.ends == "snoozed")

    @property
    def fruitful(self) -> Iterable[int]:
        """The runs whose child jobs stand: those that returned, were snoozed or rejected; an error undoes them."""
        return range(self.fails + 1, self.runs + 1)


def outcome_of(n: int) -> Outcome:
    ends = {1: "rejected", 2: "snoozed"}.get(n % 5, "")
    fails = 2 if n % 32 == 7 else 1 if n % 8 == 3 else 0  # so few that no breaker opens, also where only second runs are left
    return Outcome(fails=fails, children=n % 3, ends=ends, ladder=n % 7 == 0)


class TransactionalWorld(World):
    _topic_ids: Mapping[str, bytes] = {}

    def _app(self) -> App:
        import importlib

        from tests.support import transact_app

        app: App = importlib.reload(transact_app).app
        return app

    def worker(self, *arguments: str, **env: str) -> Worker:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = Worker({**self.env, **env}, log, *arguments, app=APP)
        self.workers.append(worker)
        return worker

    def publish(self, numbers: Iterable[int], ms: int = 0, job_type: str = "parent") -> dict[str, int]:
        """Jobs with these numbers; their origins, and which number each has."""
        rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for n in numbers:
            expected = outcome_of(n)
            row: dict[str, Any] = {"n": n, "fails": expected.fails, "children": expected.children, "ends": expected.ends, "ms": ms}
            rows[expected.ladder].append(row)
        origins: dict[str, int] = {}
        for ladder, of in rows.items():
            receipts = self.publish_many("patient" if ladder else job_type, of)
            for row, receipt in zip(of, receipts, strict=True):
                origins[self.origin(receipt.topic, receipt.partition, receipt.offset)] = row["n"]
        return origins

    def origin(self, topic: str, partition: int, offset: int) -> str:
        return origin_of(topic, self.topic_ids[topic], partition, offset)

    @property
    def topic_ids(self) -> Mapping[str, bytes]:
        if not self._topic_ids:
            self._topic_ids = {name: topic.id for name, topic in self.app.broker.admin().topics().items()}
        return self._topic_ids

    def topics(self) -> dict[str, list[str]]:
        """Of each group of the app, the topics that it reads."""
        names, queue, group = self.app.names, self.env["LEDGER_QUEUE"], self.app.group
        queues = [queue, f"{queue}-children"]
        return {
            group: [names.main(q) for q in queues],
            retry_group(group): [names.retry(q, group) for q in queues],
            timer_group(self.app.name): [names.delay(self.app.name, tier) for tier in self.app.settings.delay.tiers],
        }

    def read(self, topic: str, isolation: str = "read_committed") -> list[Message]:
        """All that a reader sees of a topic."""
        broker = self.app.broker
        count = broker.admin().topics([topic])[topic].partitions
        ends = broker.admin().offsets([TopicPartition(topic, p) for p in range(count)], "latest", isolation)  # type: ignore[arg-type]
        reader = broker.consumer(None, isolation=isolation)  # type: ignore[arg-type]
        reader.assign(dict.fromkeys(ends, 0))
        found: list[Message] = []
        deadline = time.monotonic() + 30
        while any(position < ends[tp] for tp, position in reader.positions(ends).items()):
            assert time.monotonic() < deadline, f"{topic} can't be read to its end"
            found += reader.fetch(1_000, 0.05)
        reader.close()
        return found

    def lag(self) -> dict[TopicPartition, int]:
        """Of every partition that the app's groups read, what is not committed yet, markers included."""
        admin, left = self.app.broker.admin(), {}
        for group, topics in self.topics().items():
            known = admin.topics(topics)
            tps = [TopicPartition(name, p) for name, topic in known.items() for p in range(topic.partitions)]
            commits, ends = admin.committed(group, tps), admin.offsets(tps, "latest", "read_uncommitted")
            for tp in tps:
                base = commits[tp].offset if tp in commits else 0
                if ends[tp] != base:
                    left[tp] = ends[tp] - base
        return left

    def started(self) -> int:
        """How many jobs have begun."""
        return len({entry["n"] for entry in self.ledger.entries() if entry["what"] == "start"})

    def aborted(self) -> int:
        """Records that are in the logs of the app's topics, and that nobody who reads committed ones sees."""
        topics = [topic for of in self.topics().values() for topic in of if topic in self.topic_ids]
        return sum(len(self.read(topic, "read_uncommitted")) - len(self.read(topic)) for topic in topics)

    def processes(self) -> list[int]:
        """The worker processes that live and have run anything. *Bites*, asked whether /proc knows the pid: it is one of a process that
        was killed, and by now that of a thread of somebody else's, who would be killed next. Nor one that a worker process has
        started to run a suspect: the death of that one is the job's failure, as it should be."""
        ours = {pid for worker in self.workers for pid in processes_of(worker, directly=True)}
        return sorted(ours & {entry["pid"] for entry in self.ledger.entries()})


    def await_settled(self, origins: dict[str, int], timeout: float, what: str) -> None:
        """Until nothing is left to do: everything was read, and what every run led to was read again."""
        expected = [(n, run, i) for n in origins.values() for run in outcome_of(n).fruitful for i in range(outcome_of(n).children)]

        def unread() -> set[tuple[int, int, int]]:
            return set(expected) - {(e["n"], e["run"], e["number"]) for e in self.ledger.entries() if e["what"] == "child"}

        def why() -> str:
            logs = "".join(f"\n--- {worker.log.name}, alive: {worker.alive}\n{worker.tail(2_000)}" for worker in self.workers)
            dead = self.read(self.app.names.dead(self.env["LEDGER_QUEUE"], self.app.group))
            reasons = Counter(Meta.parse(letter.headers()).reason for letter in dead)
            return f"\nlag: {self.lag()}\nletters: {reasons}\nchildren (parent, run, number) that did not run: {sorted(unread())[:50]}{logs}"

        eventually(lambda: not self.lag() and not unread(), timeout, what, why)


@pytest.fixture
def transactional(kafka: Broker, kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., TransactionalWorld]]:
    assert isinstance(kafka, KafkaBroker)
    worlds: list[TransactionalWorld] = []

    def build(partitions: int = 4, **env: str) -> TransactionalWorld:
        worlds.append(TransactionalWorld(kafka_bootstrap, prefix, tmp_path, partitions, env))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


@pytest.fixture
def on_own_kafka(own_kafka: Any, kafka: Broker, prefix: str, tmp_path: Path) -> Iterator[TransactionalWorld]:
    """One on a broker that the test may restart. (`kafka` is named so that a run without a real broker says so.)"""
    world = TransactionalWorld(own_kafka.bootstrap, prefix, tmp_path, 4, {})
    yield world
    world.close()


def judge(world: TransactionalWorld, origins: dict[str, int]) -> Counter[str]:
    """Compares all that a reader of committed records sees with what must be there; counts what it saw."""
    names, group, queue = world.app.names, world.app.group, world.env["LEDGER_QUEUE"]
    seen: Counter[str] = Counter()

    def runs_in(topic: str) -> Counter[tuple[int, int]]:
        metas = [Meta.parse(message.headers()) for message in world.read(topic)]
        return Counter((origins[meta.origin], meta.run) for meta in metas)

    expected = {n: outcome_of(n) for n in origins.values()}
    again = {(n, run) for n, of in expected.items() for run in range(2, of.runs + 1)}
    laddered = {(n, run) for n, run in again if expected[n].ladder and run <= expected[n].fails + 1}
    dead = {(n, of.runs) for n, of in expected.items() if of.ends == "rejected"}
    offspring = {(n, run, i) for n, of in expected.items() for run in of.fruitful for i in range(of.children)}

    retried, tier = runs_in(names.retry(queue, group)), runs_in(names.delay(world.app.name, "5s"))
    letters = runs_in(names.dead(queue, group))
    payload, store = world.app.job_types["child"].payload, world.app._schemas()
    born = Counter(payload.decode(message.value() or b"", store) for message in world.read(names.main(f"{queue}-children")))
    told: Counter[tuple[str, int]] = Counter()
    for message in world.read(names.events):
        for event in events.decode(message.value() or b""):
            if events.KINDS[event.kind].ends:
                told[event.origin, event.run] += 1

    assert retried == Counter(again)
    assert tier == Counter(laddered)
    assert letters == Counter(dead)
    assert born == Counter(offspring)
    of_parents = {(origin, run) for origin, n in origins.items() for run in range(1, expected[n].runs + 1)}
    assert max(told.values()) == 1
    # On a machine so busy that a record of events takes over a second, jobs are settled without them, and the log says so.
    if not any("settles without events" in worker.log.read_text(errors="replace") for worker in world.workers):
        assert {key for key in told if key[0] in origins} == of_parents
        assert len(told) == len(of_parents) + len(offspring)
    seen.update(jobs=len(origins), runs=len(of_parents), retries=len(again), laddered=len(laddered), letters=len(dead))
    seen.update(children=len(offspring), events=sum(told.values()))
    return seen


def test_one_outcome_of_each_run_whatever_is_killed(transactional: Callable[..., TransactionalWorld]) -> None:  # edge 15, 16, 38, 71
    """
    Three workers run jobs that succeed, fail, are snoozed, rejected, go down the ladder and publish child jobs, while 24 times at a
    random moment SIGKILL hits a whole worker or one of its processes. Whoever reads committed records then finds every retry,
    letter, child job and end event of every run once; what was written by the dead is there, but aborted. And the lag is 0.
    """
    seed = int(os.environ.get("STREAMJOBS_TEST_SEED", random.SystemRandom().randrange(1_000_000)))
    chance = random.Random(seed)
    world = transactional(partitions=4, STREAMJOBS_DELAY__TIERS="5s,1m")
    for _ in range(3):
        world.worker("--slots", "8")
    origins = world.publish(range(400), ms=5)
    looks = 0

    def all_work() -> bool:
        """Each second a few jobs more: a worker that comes last must find some."""
        nonlocal looks
        looks += 1
        if looks % 20 == 0:
            origins.update(world.publish(range(looks * 1_000, looks * 1_000 + 20), ms=5))
        return len(world.processes()) == 3

    eventually(all_work, 60, "all three workers run jobs")

    kills: Counter[str] = Counter()
    for batch in range(24):
        origins |= world.publish(range(400 + 100 * batch, 500 + 100 * batch), ms=5)
        time.sleep(chance.uniform(0.05, 1.5))  # not to wait for anything: the moment of the fault
        processes = world.processes()
        if processes and chance.random() < 0.6:
            os.kill(chance.choice(processes), signal.SIGKILL)
            kills["process"] += 1
        else:
            victim = chance.choice([worker for worker in world.workers if worker.alive])
            victim.kill()
            world.worker("--slots", "8")
            kills["worker"] += 1
    began = time.monotonic()
    world.await_settled(origins, 120, "all is settled")

    seen = judge(world, origins)
    starts = Counter((e["n"], e["run"]) for e in world.ledger.entries() if e["what"] == "start")
    print(
        f"\nseed {seed}: {dict(kills)} killed; {dict(seen)} seen once each; {sum(starts.values()) - len(starts)} runs started again, "
        f"{world.aborted()} records aborted; settled {time.monotonic() - began:.0f} s after the last kill"
    )
    assert kills.total() >= 20


def test_a_process_may_die_at_any_step_of_a_transaction(transactional: Callable[..., TransactionalWorld]) -> None:  # edge 38
    """
    Twenty times a process is killed while it has a transaction open: after it was begun, when records or offsets were sent, while it
    is committed, or before anybody could take note of the commit. Its successor ends what it left open, and of every run there is
    one outcome; aborted records are in the logs, and nobody sees them.
    """
    world = transactional(partitions=4, STREAMJOBS_DELAY__TIERS="5s,1m", DIE_IN_TRANSACTIONS="0.08", DEATHS="20")
    for _ in range(3):
        world.worker("--slots", "4", "--processes", "2")
    origins: dict[str, int] = {}
    batch = 0

    def deaths() -> list[str]:
        return [entry["step"] for entry in world.ledger.entries() if entry["what"] == "death"]

    deadline = time.monotonic() + 120
    while len(deaths()) < 20:  # after that none dies any more, and all can be settled
        assert time.monotonic() < deadline, f"only {Counter(deaths())}"
        origins |= world.publish(range(50 * batch, 50 * batch + 50), ms=2)
        batch += 1
        known = len(origins)
        eventually(lambda known=known: world.started() >= known - 200, 60, "the jobs begin to run")  # type: ignore[misc]
    world.await_settled(origins, 120, "all is settled")

    seen = judge(world, origins)
    print(f"\ndeaths after {dict(Counter(deaths()))}; {dict(seen)} seen once each; {world.aborted()} records aborted")
    assert len(deaths()) >= 20
    assert world.aborted() > 0


@pytest.mark.long
def test_a_worker_that_comes_back_from_the_dead_settles_nothing(transactional: Callable[..., TransactionalWorld]) -> None:  # edge 78, 79
    """
    A worker is stopped in the middle of its work until another one has its partitions and has done its jobs. When it goes on, its
    handlers end, and what they led to is refused: its generation is over. The jobs ran twice, `job.id` was the same both times,
    and there is one outcome of each.
    """
    world = transactional(partitions=2)
    frozen = world.worker("--slots", "8")
    origins = world.publish(range(40))
    world.await_settled(origins, 60, "the worker works")
    origins |= world.publish(range(40, 120), ms=300)
    eventually(lambda: world.started() > 50, 30, "it runs the long jobs")
    frozen.signal_all(signal.SIGSTOP)
    world.worker("--slots", "8")
    world.await_settled(origins, 90, "the other one has done everything")

    frozen.signal_all(signal.SIGCONT)
    origins |= world.publish(range(120, 160))
    world.await_settled(origins, 60, "both go on")
    assert frozen.stop() in (0, 4)

    seen = judge(world, origins)
    starts = Counter((e["n"], e["run"]) for e in world.ledger.entries() if e["what"] == "start")
    ids = {(e["n"], e["id"]) for e in world.ledger.entries() if e["what"] == "start"}
    twice = sum(count > 1 for count in starts.values())
    print(f"\n{twice} runs started twice; {dict(seen)} seen once each")
    assert twice > 0
    assert len(ids) == len(origins)


def test_a_process_that_was_fenced_is_replaced(
    transactional: Callable[..., TransactionalWorld], kafka: Broker
) -> None:  # edge 68
    """Another one takes its transactional id; it can't know what became of its last transaction, so its successor reads it."""
    world = transactional(partitions=2)
    worker = world.worker("--instance", "only")
    origins = world.publish(range(20))
    world.await_settled(origins, 60, "the worker works")
    usurper = kafka.transactional_producer(f"streamjobs.{world.app.group}.only-0")
    usurper.init()
    usurper.close(1)

    origins |= world.publish(range(20, 60))
    world.await_settled(origins, 90, "its successor does the rest")

    judge(world, origins)
    assert "_FENCED" in worker.tail(20_000)
    assert len({e["pid"] for e in world.ledger.entries()}) > 1
    assert worker.stop() == 0


@pytest.mark.long
def test_jobs_are_settled_while_the_events_topic_is_gone(transactional: Callable[..., TransactionalWorld]) -> None:
    """Every transaction with events would be aborted: they are left out, and nothing else is missing."""
    world = transactional(partitions=2)
    world.worker("--slots", "8")
    origins = world.publish(range(20))
    world.await_settled(origins, 60, "the worker works")
    world.app.broker.admin().delete_topics([world.app.names.events])

    origins |= world.publish(range(20, 60))
    world.await_settled(origins, 60, "all is settled without events")
    assert "settles without events" in world.workers[0].tail(20_000)


def test_what_a_child_process_publishes_joins_the_transaction(transactional: Callable[..., TransactionalWorld]) -> None:
    """Handlers that run in child processes, where no Kafka producer is needed for it: their child jobs come with their settlement."""
    world = transactional(partitions=2)
    worker = world.worker("--slots", "4", STREAMJOBS_WORKER__CHILDREN="2")
    origins = world.publish(range(100), job_type="isolated")
    world.await_settled(origins, 90, "all is settled")

    judge(world, origins)
    assert worker.stop() == 0


def test_transactions_go_on_after_the_broker_has_restarted(on_own_kafka: TransactionalWorld, own_kafka: Any) -> None:  # edge 34
    """By themselves, and long before a worker that stands still is replaced. *Bites*: the client waits for the group's coordinator at a
    place where nobody is any more, for ever, in a call that has a timeout (`KafkaTransactionalProducer.send_offsets`)."""
    world = on_own_kafka
    worker = world.worker()
    origins = world.publish(range(20))
    world.await_settled(origins, 60, "the first jobs are settled")
    processes = world.processes()
    for how, numbers in ((signal.SIGTERM, range(20, 40)), (signal.SIGKILL, range(40, 60))):
        own_kafka.kill(1, how)
        own_kafka.restart(1)
        origins |= world.publish(numbers)
        world.await_settled(origins, 80, "jobs published after the restart are settled")
    assert world.processes() == processes, worker.tail()
    judge(world, origins)
    assert worker.stop() == 0
