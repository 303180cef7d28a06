"""Whatever happens to a loop, a strict key's jobs start in their order, none is lost, and the counts come out even."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamjobs import App, Backoff, Job, Retry, orders
from streamjobs.core import control
from streamjobs.core.record import Meta, Record
from streamjobs.worker.refusals import Unread

KEYS = st.sampled_from(["a", "b"])
PAUSE = control.pause_type_key("shop", "step", "1")


class Lanes(RuleBasedStateMachine):
    """One partition; strict and other jobs share its keys. `n` counts what was published, as offsets do."""

    @initialize()
    def begin(self) -> None:
        self.app = App("shop", partitions=1)
        self.starts: dict[str, list[tuple[int, int]]] = defaultdict(list)  # number and attempt, of this owner, by key
        self.ended: set[int] = set()
        self.cancelled: set[int] = set()
        self.fails: dict[int, int] = {}
        self.numbers = 0
        retry = Retry(attempts=5, backoff=Backoff.fixed("10s"))
        self.app.job(name="step", queue="steps", key="k", order="key_strict", retry=retry)(self._strict())
        self.app.job(name="loose", queue="steps", key="k")(self._loose())
        newer = App("other", partitions=1)
        newer.job(name="step", queue="steps", key="k", order="key_strict")(_newer)
        self.newer = newer.job_types["step"].payload
        self.testing = self.app.testing()
        self.t = self.testing.__enter__()
        self.t.run()

    def _strict(self) -> Any:
        def step(job: Job, k: str, n: int) -> None:
            self.starts[k].append((n, job.attempt))
            if job.attempt <= self.fails.get(n, 0):
                raise ValueError(n)
            self.ended.add(n)

        return step

    def _loose(self) -> Any:
        def loose(k: str, n: int) -> None:
            self.starts[k].append((n, 1))
            self.ended.add(n)

        return loose

    def next(self) -> int:
        self.numbers += 1
        return self.numbers - 1

    @rule(key=KEYS, fails=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def publish_strict(self, key: str, fails: list[int]) -> None:
        for times in fails:
            n = self.next()
            self.fails[n] = times
            self.app.job_types["step"].options(id=str(n)).publish(key, n)

    @rule(key=KEYS)
    def publish_loose(self, key: str) -> None:
        n = self.next()
        self.app.job_types["loose"].options(id=str(n)).publish(key, n)

    @rule(key=KEYS)
    def publish_unreadable(self, key: str) -> None:
        n = self.next()
        value = self.newer.encode({"k": key, "n": n, "note": ""})
        self.t.produce(Record("jobs.steps", value, key.encode(), headers=[("ce_type", b"step"), ("ce_id", str(n).encode())]))

    @rule()
    def make_readable(self) -> None:
        self.t.produce(Record("streamjobs.schemas", self.newer.canonical.encode(), self.newer.fingerprint.hex().encode()))

    @rule(back=st.integers(1, 6))
    def cancel(self, back: int) -> None:
        for _ in range(3):
            self.t._round()
        pending = [n for n in range(self.numbers) if n not in self.ended and n not in self.cancelled]
        if pending:
            n = pending[-back] if back <= len(pending) else pending[0]
            self.cancelled.add(n)
            self.t.advance(0.01)
            now = self.t.clock.now()
            value = control.cancel_value(actor="t", reason="r", at=now, until=now + 86_400)
            orders.write(self.t.broker, self.app.names, {control.cancel_key("shop", str(n), "1"): value})

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        value = control.pause_value(actor="t", reason="r", at=self.t.clock.now())
        orders.write(self.t.broker, self.app.names, {PAUSE: value if paused else None})

    @rule(turns=st.integers(1, 4), seconds=st.sampled_from([0.0, 0.6, 5.0, 11.0, 61.0]))
    def turn(self, turns: int, seconds: float) -> None:
        for _ in range(turns):
            self.t.advance(seconds)
            self.t._round()

    @rule()
    def run(self) -> None:
        self.t.run(raise_errors=False, through_delays=False)

    @rule(dies=st.booleans())
    def change_owner(self, dies: bool) -> None:
        if dies:
            self.t.restart()
        else:
            self.t.process.close_by_hand()
            self.t._start()
        self.starts.clear()

    @invariant()
    def a_key_starts_in_order_and_nothing_twice(self) -> None:
        for key, starts in getattr(self, "starts", {}).items():
            assert starts == sorted(set(starts)), (key, starts)

    @invariant()
    def what_waits_is_counted(self) -> None:
        if not hasattr(self, "t"):
            return
        for loop in self.t.process.loops:
            for home in loop.poller.partitions.values():
                asleep = [entry for entry in loop._sleepers if entry.home is home]
                waiting = [entry for entry in asleep if not isinstance(entry, Unread) and entry.offset not in home.parked]
                assert home.waiting == len(waiting)

    def teardown(self) -> None:
        if not hasattr(self, "t"):
            return
        self.make_readable()
        self.pause(paused=False)
        self.starts.clear()
        for _ in range(3):
            self.t.run(raise_errors=False)
            self.t.advance(1)
        self.a_key_starts_in_order_and_nothing_twice()
        published = {int(Meta.parse(record.headers()).job_id) for record in self.t.broker.records("jobs.steps")}
        letters = {int(letter.job_id) for letter in self.t.dead_letters()}
        assert published - self.cancelled <= self.ended | letters
        for loop in self.t.process.loops:
            for home in loop.poller.partitions.values():
                assert (home.tracker.unfinished, home.waiting, home.open, home.lanes, home.parked) == (0, 0, 0, {}, {}), home
        self.testing.__exit__(None, None, None)


def _newer(k: str, n: int, note: str = "") -> None: ...


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
