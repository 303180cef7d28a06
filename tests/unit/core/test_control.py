"""The control topic: keys that can't be forged, values that can't do harm, and what they add up to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core import control
from streamjobs.core.assignment import Seek
from streamjobs.core.control import Desired, Kind, Rate, Registration

NOW = 1_790_000_000.0
ORIGIN = "jobs.invoices@1f2e3d4c/3/70012"
ID = bytes(range(16))

#: One maker of a key and one of a value for every kind.
MAKERS: dict[Kind, tuple[Callable[..., str], tuple[object, ...], bytes]] = {}


def of_kind(kind: Kind, key: Callable[..., str], parts: tuple[object, ...], value: bytes) -> None:
    MAKERS[kind] = key, parts, value


pause = control.pause_value(actor="ann", reason="bank is down", at=NOW, until=NOW + 60)
cancel = control.cancel_value(actor="ann", reason="twice", at=NOW, until=NOW + 60)
of_kind(Kind.PAUSE_QUEUE, control.pause_queue_key, ("invoices", "o1"), pause)
of_kind(Kind.PAUSE_TYPE, control.pause_type_key, ("billing", "send_invoice", "o1"), pause)
of_kind(Kind.PAUSE_KEY, control.pause_key_key, ("invoices", "acme", "o1"), pause)
of_kind(Kind.CANCEL, control.cancel_key, ("billing", "inv-7", "o1"), cancel)
of_kind(
    Kind.SKIP,
    control.skip_key,
    ("billing", ORIGIN),
    control.skip_value(up_to_run=2, actor="ann", reason="", at=NOW),
)
of_kind(
    Kind.RATE,
    control.rate_key,
    ("billing", "send_invoice", "o1"),
    control.rate_value(limit=10, per_s=60, actor="ann", reason="", at=NOW),
)
of_kind(
    Kind.SLOTS,
    control.slots_key,
    ("billing", "billing", "o1"),
    control.slots_value(slots=4, actor="ann", reason="", at=NOW),
)
of_kind(
    Kind.SUSPECT,
    control.suspect_key,
    ("billing", "jobs.invoices", 3, 70012),
    control.suspect_value(run=1, strikes=2, actor="w1", reason="died", at=NOW, until=NOW + 86_400),
)
of_kind(
    Kind.COMMAND,
    control.command_key,
    ("w1", "o1"),
    control.command_value(action="drain", actor="ann", reason="", at=NOW, until=NOW + 60),
)
of_kind(
    Kind.REGISTRATION,
    control.registration_key,
    ("billing", "jobs.invoices"),
    control.registration_value(app="billing", starts={0: 0, 11: 50_000}, actor="ann", at=NOW),
)
of_kind(
    Kind.STARTED,
    control.started_key,
    ("billing", "jobs.invoices", ID, 3),
    control.started_value(actor="w1", at=NOW),
)
of_kind(
    Kind.SEEK,
    control.seek_key,
    ("billing", "jobs.invoices", 3, "o1"),
    control.seek_value(to="earliest", actor="ann", reason="", at=NOW),
)


def key_of(kind: Kind) -> str:
    make, parts, _ = MAKERS[kind]
    return make(*parts)


class Topic:
    """A control topic whose records are applied as they are written, a millisecond after one another."""

    def __init__(self) -> None:
        self.desired = Desired()
        self.log: list[tuple[str, bytes | None, int, float]] = []

    def write(self, key: str, value: bytes | None) -> None:
        offset = len(self.log)
        self.log.append((key, value, offset, NOW + offset / 1000))
        self.desired.apply(*self.log[-1])


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_key_is_read_as_it_was_made(kind: Kind) -> None:
    key = key_of(kind)
    found = control.parse(key)
    assert (found.kind, found.text) == (kind, key)


parts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(parts, parts, parts)
def test_whatever_stands_in_its_parts_a_key_is_read_as_it_was_made(queue: str, key: str, order: str) -> None:
    assert control.parse(control.pause_key_key(queue, key, order)).parts == (queue, key, order)
    assert control.parse(control.cancel_key(queue, key, order)).parts == (queue, key, order)


@given(st.binary(max_size=12))
def test_a_jobs_key_need_not_be_text(key: bytes) -> None:
    topic = Topic()
    topic.write(control.pause_key_key("invoices", key, "o1"), pause)
    assert topic.desired.key_paused("invoices", key, NOW)


def test_a_job_id_with_slashes_can_not_forge_another_order() -> None:
    """Without escaping, cancelling the job `x/o1` of one app spells the cancel `o1` … of the job `x`."""
    topic = Topic()
    topic.write(control.cancel_key("billing", "x/o1", "o2"), cancel)
    topic.write(control.pause_key_key("invoices", "a/b", "o3"), pause)
    assert topic.desired.cancelled("billing", "x/o1", NOW - 1, NOW)
    assert not topic.desired.cancelled("billing", "x", NOW - 1, NOW)
    assert not topic.desired.key_paused("invoices", "a", NOW)
    topic.write(control.cancel_key("billing", "x", "o1"), None)
    assert topic.desired.cancelled("billing", "x/o1", NOW - 1, NOW)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "nonsense",
        "pause",
        "pause/queue/invoices",
        "pause/queue/invoices/o1/more",
        "pause/topic/invoices/o1",
        "cancel/billing/a b/o1",
        "cancel/billing/%61/o1",
        "cancel/billing/a%2fb/o1",
        "suspect/billing/jobs.q/x/1",
        "suspect/billing/jobs.q/01/1",
        "suspect/billing/jobs.q/0/-1",
        "suspect/billing/jobs.q/0/9223372036854775808",
        "seek/billing/jobs.q/٣/o1",
    ],
)
def test_any_other_spelling_is_no_key(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        control.parse(key)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_value_is_read_as_it_was_made(kind: Kind) -> None:
    found = control.read(key_of(kind), MAKERS[kind][2], 7, NOW)
    assert (found.kind, found.offset, found.appended, found.at) == (kind, 7, NOW, NOW)
    assert found.actor in ("ann", "w1")


def test_a_value_says_who_why_when_and_until_when_in_milliseconds() -> None:
    assert json.loads(pause) == {
        "actor": "ann",
        "reason": "bank is down",
        "at": 1_790_000_000_000,
        "until": 1_790_000_060_000,
    }


def test_an_order_without_end_has_no_until() -> None:
    value = control.pause_value(actor="ann", reason="", at=NOW, until=math.inf)
    assert "until" not in json.loads(value)
    assert control.read(key_of(Kind.PAUSE_QUEUE), value, 0, NOW).until == math.inf


HARMFUL = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{",
    b"[" * 200_000,
    b'{"until": 1.5}',
    b'{"until": -1}',
    b'{"until": true}',
    b'{"until": 1e400}',
    b'{"until": ' + b"9" * 5000 + b"}",
    b'{"actor": 7}',
]


@pytest.mark.parametrize("value", HARMFUL)
@pytest.mark.parametrize("kind", Kind)
def test_no_value_raises_and_each_unreadable_one_is_told(kind: Kind, value: bytes) -> None:
    topic = Topic()
    topic.write(key_of(kind), value)
    assert list(topic.desired.unreadable) == [key_of(kind)]
    assert topic.desired.orders() == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.SKIP, {"up_to_run": "2"}),
        (Kind.SKIP, {}),
        (Kind.SKIP, {"up_to_run": 10**9}),
        (Kind.RATE, {"limit": 0, "per_s": 60}),
        (Kind.RATE, {"limit": math.inf, "per_s": 60}),
        (Kind.RATE, {"limit": math.nan, "per_s": 60}),
        (Kind.SLOTS, {"slots": -1}),
        (Kind.SUSPECT, {"run": 1, "strikes": True}),
        (Kind.COMMAND, {"action": "explode"}),
        (Kind.COMMAND, {"action": ["drain"]}),
        (Kind.REGISTRATION, {"app": "billing", "starts": [0, 1]}),
        (Kind.REGISTRATION, {"app": "billing", "starts": {"0": -1}}),
        (Kind.REGISTRATION, {"app": "billing", "starts": {"01": 1}}),
        (Kind.REGISTRATION, {"starts": {}}),
        (Kind.SEEK, {"to": "somewhere"}),
        (Kind.SEEK, {"to": 2**63}),
    ],
)
def test_a_field_that_makes_no_sense_makes_the_record_unreadable(
    kind: Kind, fields: dict[str, object]
) -> None:
    topic = Topic()
    topic.write(key_of(kind), json.dumps({"actor": "ann", **fields}).encode())
    assert next(iter(topic.desired.unreadable.values())).startswith("the field ")


def test_a_field_that_a_newer_version_added_does_no_harm() -> None:
    topic = Topic()
    topic.write(key_of(Kind.PAUSE_QUEUE), b'{"actor": "ann", "severity": "high"}')
    assert topic.desired.queue_paused("invoices", NOW)


def test_an_unreadable_record_takes_the_place_of_its_keys_order() -> None:
    """Compaction keeps only the later one: a worker that starts now must see what the others see."""
    topic = Topic()
    topic.write(key_of(Kind.PAUSE_QUEUE), pause)
    topic.write(key_of(Kind.PAUSE_QUEUE), b"garbage")
    assert topic.desired.queue_paused("invoices", NOW) is None
    topic.write(key_of(Kind.PAUSE_QUEUE), None)
    assert topic.desired.unreadable == {}


def test_a_flood_of_garbage_does_not_fill_the_memory() -> None:
    topic = Topic()
    for number in range(control.MAX_UNREADABLE + 5):
        topic.write(f"garbage {number}", b"")
    assert len(topic.desired.unreadable) == control.MAX_UNREADABLE


# --- questions ----------------------------------------------------------------------------------------------


def paused_at(desired: Desired, now: float, **job: object) -> control.Order | None:
    kept = {"queue": "invoices", "job_type": "send_invoice", "key": b"acme", "app": "billing", **job}
    return desired.paused(now=now, **kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", control.PAUSES)
def test_a_pause_holds_for_what_it_names_until_it_ends(kind: Kind) -> None:
    topic = Topic()
    topic.write(key_of(kind), pause)
    found = paused_at(topic.desired, NOW + 59)
    assert found and (found.reason, found.until) == ("bank is down", NOW + 60)
    assert paused_at(topic.desired, NOW + 60) is None
    assert paused_at(topic.desired, NOW, queue="other", app="other") is None
    assert bool(paused_at(topic.desired, NOW, key=None, job_type="other")) == (kind is Kind.PAUSE_QUEUE)


def test_of_several_pauses_the_one_that_ends_last_is_told() -> None:
    topic = Topic()
    topic.write(
        control.pause_queue_key("invoices", "o1"), control.pause_value(actor="ann", reason="b", at=NOW)
    )
    topic.write(control.pause_queue_key("invoices", "o2"), pause)
    topic.write(control.pause_type_key("billing", "send_invoice", "o3"), pause)
    found = paused_at(topic.desired, NOW)
    assert found and found.until == math.inf


def test_taking_away_an_expired_pause_leaves_the_new_one() -> None:
    """The monitor reads an expired pause, the operator pauses again, the monitor's tombstone erases … only
    what it read."""
    topic = Topic()
    topic.write(control.pause_queue_key("invoices", "o1"), pause)
    expired = topic.desired.expired(NOW + 60)
    topic.write(
        control.pause_queue_key("invoices", "o2"),
        control.pause_value(actor="ann", reason="again", at=NOW + 60),
    )
    for key in expired:
        topic.write(key, None)
    assert expired == [control.pause_queue_key("invoices", "o1")]
    assert topic.desired.queue_paused("invoices", NOW + 61)


def test_a_cancel_reaches_only_jobs_that_were_there_before_it() -> None:
    """A cancel of `inv-7` must not skip next month's `inv-7`."""
    topic = Topic()
    topic.write("garbage", b"")
    topic.write(control.cancel_key("billing", "inv-7", "o1"), cancel)
    appended = topic.log[-1][3]
    assert topic.desired.cancelled("billing", "inv-7", appended - 5, NOW)
    assert not topic.desired.cancelled("billing", "inv-7", appended + 0.001, NOW)
    assert not topic.desired.cancelled("billing", "inv-7", appended - 5, NOW + 60)
    assert not topic.desired.cancelled("shop", "inv-7", appended - 5, NOW)


def test_a_later_cancel_of_the_same_id_reaches_the_later_job() -> None:
    topic = Topic()
    topic.write(control.cancel_key("billing", "inv-7", "o1"), cancel)
    topic.write(control.cancel_key("billing", "inv-7", "o2"), cancel)
    assert topic.desired.cancelled("billing", "inv-7", topic.log[1][3] - 0.0001, NOW)


def test_a_skip_names_the_last_run_that_is_not_to_start() -> None:
    topic = Topic()
    topic.write(*((key_of(Kind.SKIP), MAKERS[Kind.SKIP][2])))
    assert topic.desired.skip_up_to("billing", ORIGIN) == 2
    assert topic.desired.skip_up_to("other", ORIGIN) is None


def test_the_newest_order_wins_where_one_value_is_needed() -> None:
    topic = Topic()
    for order, slots, until in (("z", 4, None), ("a", 8, NOW + 60)):
        value = control.slots_value(slots=slots, actor="ann", reason="", at=NOW, until=until)
        topic.write(control.slots_key("billing", "billing", order), value)
    assert topic.desired.slots("billing", "billing", NOW) == 8
    assert topic.desired.slots("billing", "billing", NOW + 60) == 4


def test_an_order_that_is_written_again_is_as_new_as_its_last_record() -> None:
    topic = Topic()
    for order, limit in (("a", 1), ("b", 2), ("a", 3)):
        value = control.rate_value(limit=limit, per_s=60, actor="ann", reason="", at=NOW)
        topic.write(control.rate_key("billing", "send_invoice", order), value)
    assert topic.desired.rate("billing", "send_invoice", NOW) == Rate(3, 60)


def test_suspects_are_found_by_place_and_by_group_until_they_expire() -> None:
    topic = Topic()
    topic.write(key_of(Kind.SUSPECT), MAKERS[Kind.SUSPECT][2])
    found = topic.desired.suspect("billing", "jobs.invoices", 3, 70012)
    assert found and (found.run, found.strikes, found.order.key) == (1, 2, key_of(Kind.SUSPECT))
    assert topic.desired.suspects("billing", NOW) == [found]
    assert topic.desired.suspects("other") == topic.desired.suspects("billing", NOW + 86_400) == []
    assert topic.desired.suspect("billing", "jobs.invoices", 3, 70013) is None


def test_commands_reach_one_worker_in_their_order() -> None:
    topic = Topic()
    orders: tuple[tuple[str, control.Action], ...] = ("z", "stacks"), ("a", "drain")
    for order, action in orders:
        value = control.command_value(action=action, actor="ann", reason="", at=NOW, until=NOW + 60)
        topic.write(control.command_key("w1", order), value)
    assert [order.fields["action"] for order in topic.desired.commands("w1", NOW)] == ["stacks", "drain"]
    assert topic.desired.commands("w2", NOW) == topic.desired.commands("w1", NOW + 60) == []


def test_a_registration_says_where_each_partition_begins_and_whose_ladder_it_uses() -> None:
    topic = Topic()
    topic.write(key_of(Kind.REGISTRATION), MAKERS[Kind.REGISTRATION][2])
    registration = Registration("billing", {0: 0, 11: 50_000})
    assert topic.desired.registration("billing", "jobs.invoices") == registration
    assert topic.desired.registrations() == {("billing", "jobs.invoices"): registration}
    assert topic.desired.ladder_of("jobs.invoices") == "billing"
    assert (
        topic.desired.registration("billing", "jobs.other") is topic.desired.ladder_of("jobs.other") is None
    )


def test_a_topic_is_registered_while_any_group_is() -> None:
    topic = Topic()
    for group in ("billing", "audit"):
        value = control.registration_value(app=group, starts={}, actor="ann", at=NOW)
        topic.write(control.registration_key(group, "jobs.invoices"), value)
    assert topic.desired.registered_topics() == {"jobs.invoices": {"billing", "audit"}}
    assert topic.desired.ladder_of("jobs.invoices") == "audit"
    assert topic.desired.ladder_of("jobs.invoices", "billing") == "billing"
    assert topic.desired.ladder_of("jobs.invoices", "other") == "audit"
    topic.write(control.registration_key("audit", "jobs.invoices"), None)
    assert topic.desired.registered_topics() == {"jobs.invoices": {"billing"}}
    topic.write(control.registration_key("billing", "jobs.invoices"), None)
    assert topic.desired.registered_topics() == {}


def test_a_started_mark_is_for_one_topic_id() -> None:
    """A recreated topic is another one: its missing commit was never there, and is not lost."""
    topic = Topic()
    topic.write(key_of(Kind.STARTED), MAKERS[Kind.STARTED][2])
    assert topic.desired.started("billing", "jobs.invoices", ID, 3)
    assert not topic.desired.started("billing", "jobs.invoices", bytes(16), 3)
    assert not topic.desired.started("billing", "jobs.invoices", ID, 4)


def seek_orders(topic: Topic, *places: control.Place) -> None:
    for to in places:
        value = control.seek_value(to=to, actor="ann", reason="", at=NOW)
        topic.write(control.seek_key("billing", "jobs.invoices", 3, f"o{len(topic.log)}"), value)


def carry_out(topic: Topic, seek: Seek) -> None:
    for key in topic.desired.seek_keys("billing", "jobs.invoices", 3, up_to=seek.order):
        topic.write(key, None)


def test_the_newest_seek_counts_and_takes_the_ones_before_it_along() -> None:
    """Oldest first. *Bites*: the newest is taken away before the one that it overtook; the owner sees that one alone, and obeys it."""
    topic = Topic()
    seek_orders(topic, "earliest", 500)
    assert topic.desired.seek_for("billing", "jobs.invoices", 3) == Seek(500, 1)
    keys = topic.desired.seek_keys("billing", "jobs.invoices", 3, up_to=1)
    assert [key.rpartition("/")[2] for key in keys] == ["o0", "o1"]
    carry_out(topic, Seek(500, 1))
    assert topic.desired.seek_for("billing", "jobs.invoices", 3) is None


def test_a_seek_that_was_ordered_while_another_was_carried_out_stays() -> None:
    topic = Topic()
    seek_orders(topic, "earliest", "latest")
    carry_out(topic, Seek("earliest", 0))
    assert topic.desired.seek_for("billing", "jobs.invoices", 3) == Seek("latest", 1)


def test_the_flags_say_that_nothing_is_ordered() -> None:
    topic = Topic()
    flags = {
        "anything_paused": control.PAUSES,
        "anything_cancelled": (Kind.CANCEL,),
        "anything_skipped": (Kind.SKIP,),
        "anything_suspected": (Kind.SUSPECT,),
        "anything_limited": (Kind.RATE,),
    }
    for flag, kinds in flags.items():
        for kind in kinds:
            assert not getattr(topic.desired, flag)
            topic.write(key_of(kind), MAKERS[kind][2])
            assert getattr(topic.desired, flag)
            topic.write(key_of(kind), None)
        assert not getattr(topic.desired, flag)


def test_the_version_changes_with_every_record() -> None:
    topic = Topic()
    versions = [topic.desired.version]
    for value in (pause, b"garbage", None, None):
        topic.write(key_of(Kind.PAUSE_QUEUE), value)
        versions.append(topic.desired.version)
    assert len(set(versions)) == 5
    assert topic.desired.offset == 3


def test_a_reader_that_begins_anew_brings_nothing_back() -> None:
    """Read again from the beginning, a lifted pause would hold until the reader meets its tombstone."""
    topic = Topic()
    topic.write(key_of(Kind.PAUSE_QUEUE), pause)
    topic.write(key_of(Kind.PAUSE_QUEUE), None)
    topic.desired.apply(*topic.log[0])
    assert not topic.desired.anything_paused
    assert topic.desired.version == 2


# --- the fold against a naive model -------------------------------------------------------------------------

small = st.sampled_from(["a", "b", "a/b"])
untils = st.sampled_from([None, NOW + 1, NOW + 2, NOW + 1e6])


@st.composite
def records(draw: st.DrawFn) -> tuple[str, bytes | None]:
    until = draw(untils)
    common = {"actor": "ann", "reason": "", "at": NOW, "until": until}
    kind = draw(st.sampled_from(["queue", "type", "key", "cancel", "skip", "slots", "garbage"]))
    if kind == "queue":
        found = control.pause_queue_key(draw(small), draw(small)), control.pause_value(**common)
    elif kind == "type":
        found = control.pause_type_key("app", draw(small), draw(small)), control.pause_value(**common)
    elif kind == "key":
        found = control.pause_key_key(draw(small), draw(small), draw(small)), control.pause_value(**common)
    elif kind == "cancel":
        found = control.cancel_key("app", draw(small), draw(small)), control.cancel_value(**common)
    elif kind == "skip":
        found = (
            control.skip_key("g", draw(small)),
            control.skip_value(up_to_run=draw(st.integers(1, 5)), **common),
        )
    elif kind == "slots":
        found = (
            control.slots_key("app", draw(small), draw(small)),
            control.slots_value(slots=draw(st.integers(0, 9)), **common),
        )
    else:
        found = control.pause_queue_key(draw(small), draw(small)), b"garbage"
    return found[0], draw(st.sampled_from([found[1], found[1], None]))


class Model:
    """The last record of each key, looked through whole for every question."""

    def __init__(self, log: list[tuple[str, bytes | None, int, float]]) -> None:
        self.last = {key: (value, offset, appended) for key, value, offset, appended in log}

    def orders(self, now: float, *wanted: str) -> list[tuple[dict[str, float], int, float]]:
        found = []
        for key, (value, offset, appended) in self.last.items():
            parsed = control.parse(key)
            about = (parsed.kind, *(parsed.parts if parsed.kind == "skip" else parsed.parts[:-1]))
            if value in (None, b"garbage") or about != wanted:
                continue
            content = json.loads(value or b"")
            if content.get("until", math.inf) > now * 1000:
                found.append((content, offset, appended))
        return sorted(found, key=lambda order: order[1])

    def until(self, now: float, *wanted: str) -> float | None:
        ends = [content.get("until", math.inf) / 1000 for content, _, _ in self.orders(now, *wanted)]
        return max(ends, default=None)


def same_answers(desired: Desired, model: Model, now: float) -> None:
    for one in ("a", "b", "a/b"):
        for order, wanted in (
            (desired.queue_paused(one, now), ("pause/queue", one)),
            (desired.type_paused("app", one, now), ("pause/type", "app", one)),
            (desired.key_paused("a", one.encode(), now), ("pause/key", "a", one)),
        ):
            assert (order.until if order else None) == model.until(now, *wanted)
        cancels = [appended for _, _, appended in model.orders(now, "cancel", "app", one)]
        for appended in (NOW, NOW + 0.005, NOW + 1):
            assert bool(desired.cancelled("app", one, appended, now)) == any(appended <= at for at in cancels)
        runs = [content["up_to_run"] for content, _, _ in model.orders(now, "skip", "g", one)]
        assert desired.skip_up_to("g", one, now) == (runs[-1] if runs else None)
        slots = [content["slots"] for content, _, _ in model.orders(now, "slots", "app", one)]
        assert desired.slots("app", one, now) == (slots[-1] if slots else None)


@given(st.lists(records(), max_size=30), st.integers(0, 30))
def test_any_orders_and_tombstones_in_any_order_give_what_a_naive_reading_gives(
    written: list[tuple[str, bytes | None]], again: int
) -> None:
    topic = Topic()
    for key, value in written:
        topic.write(key, value)
    for record in topic.log[:again]:
        topic.desired.apply(*record)
    for now in (NOW, NOW + 1, NOW + 2):
        same_answers(topic.desired, Model(topic.log), now)


@given(st.lists(records(), max_size=30), st.data())
def test_whoever_reads_the_compacted_topic_sees_the_same(
    written: list[tuple[str, bytes | None]], data: st.DataObject
) -> None:
    """Compaction drops overtaken records, sooner or later, and with them a tombstone, once nothing before it
    is left."""
    topic, late = Topic(), Desired()
    for key, value in written:
        topic.write(key, value)
    last = {key: (value, offset) for key, value, offset, _ in topic.log}
    gone = {key for key, (value, _) in last.items() if value is None and data.draw(st.booleans())}
    for key, value, offset, appended in topic.log:
        if key not in gone and (last[key][1] == offset or data.draw(st.booleans())):
            late.apply(key, value, offset, appended)
    assert late.orders() == topic.desired.orders()
    assert late.unreadable == topic.desired.unreadable


@given(st.lists(records(), max_size=30))
def test_expired_names_what_has_ended_and_nothing_that_holds(written: list[tuple[str, bytes | None]]) -> None:
    topic = Topic()
    for key, value in written:
        topic.write(key, value)
    before = Model(topic.log)
    for key in topic.desired.expired(NOW + 1):
        topic.write(key, None)
    assert topic.desired.expired(NOW + 1) == []
    same_answers(topic.desired, before, NOW + 1)


def test_a_start_in_an_earlier_topic_of_the_name_is_told_apart() -> None:  # edge 31
    """The mark of a first commit names the topic's id: a topic that was made anew has not been started, its earlier self has."""
    desired = control.Desired()
    value = control.started_value(actor="w", at=1.0)
    desired.apply(control.started_key("g", "jobs.a", b"\x01" * 16, 3), value, 0, 1.0)
    assert desired.started("g", "jobs.a", b"\x01" * 16, 3)
    assert not desired.started_before("g", "jobs.a", b"\x01" * 16, 3)
    assert desired.started_before("g", "jobs.a", b"\x02" * 16, 3)
    assert not desired.started_before("g", "jobs.a", b"\x02" * 16, 4)
    assert not desired.started_before("h", "jobs.a", b"\x02" * 16, 3)
