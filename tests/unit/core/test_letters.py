"""Dead letters: what one says, what may become of it, and the records it asks for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.failures import MAX_GROUPS, Groups, fingerprint, frame, shape
from streamjobs.core.filters import ALL, TEXTS, Filter
from streamjobs.core.letters import Kept, Letter, Payload, Route, Rules, edited, parked, replayed, tombstone
from streamjobs.core.partitioner import partition_of_job
from streamjobs.core.record import Header, Headers, Meta
from streamjobs.errors import UsageError

NOW = 1_750_000_000.0
HEADERS = (
    ("ce_type", b"send_invoice"), ("ce_id", b"inv-7"), ("content-type", b"application/avro"), ("tenant", b"acme"),
    ("sj_origin", b"jobs.invoices@1f2e3d4c/3/70012"), ("sj_run", b"15"), ("sj_attempt", b"8"), ("sj_tags", b"eu,late"),
    ("sj_reason", b"exhausted"), ("sj_error_type", b"Timeout"), ("sj_error_message", b"Connection refused by 10.0.0.1"),
    ("sj_error_stack", b"Traceback \xe2\x80\xa6"), ("sj_key", b"acme"), ("sj_first_attempt", b"1749990000000"),
)  # fmt: skip


class Stored:
    """A record of the table as it is read."""

    def __init__(self, headers: Headers = HEADERS, value: bytes | None = b"\xc3\x01payload") -> None:
        self._headers, self._value = list(headers), value

    def topic(self) -> str:
        return "jobs.invoices.billing.dlt"

    def partition(self) -> int:
        return 5

    def offset(self) -> int:
        return 99

    def key(self) -> bytes | None:
        return b"jobs.invoices@1f2e3d4c/3/70012#15"

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[Header]:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 2, round((NOW - 3600) * 1000)


def letter(**headers: Any) -> Letter:
    """A letter with some headers set anew (`sj_` may be left out), or (None) left out."""
    changes = {(name if "_" in name and name[:3] in ("sj_", "ce_") else f"sj_{name}"): value for name, value in headers.items()}
    kept = [pair for pair in HEADERS if pair[0] not in changes]
    return Letter.of(Stored([*kept, *((n, str(v).encode()) for n, v in changes.items() if v is not None)]))


# --- what one says ------------------------------------------------------------------------------------------------------------


def test_a_letter_says_where_it_lies_and_what_it_was() -> None:
    found = letter()

    assert (found.topic, found.partition, found.offset) == ("jobs.invoices.billing.dlt", 5, 99)
    assert (found.id, found.key, found.tags) == ("jobs.invoices@1f2e3d4c/3/70012#15", "acme", ("eu", "late"))
    assert found.died == NOW - 3600


def test_headers_that_cant_be_read_hide_only_themselves() -> None:  # edge 44
    """A letter is often one *because* a header is garbage: it must be seen all the same."""
    found = letter(expires="soon")

    assert found.meta.job_id == "inv-7" and found.meta.expires == 0.0
    assert "sj_expires" in found.problem


def test_a_header_may_have_no_value() -> None:
    """Publishers of another make write some. What bit: one letter with such a header, and no command showed any letter of its table."""
    found = Letter.of(Stored([*HEADERS, ("baggage", None), ("sj_died", None), ("sj_expires", None)]))

    assert found.size == letter().size + len("baggage, sj_died, sj_expires".replace(", ", ""))
    assert (found.died, found.meta.expires, found.problem) == (NOW - 3600, 0.0, "")
    assert ("baggage", None) in replayed(found, RETRY).headers


def test_a_letter_that_was_written_again_still_says_when_it_died() -> None:
    """Its append time is that of the marking: by it, what is parked would always be young."""
    assert letter(died=round((NOW - 86_400) * 1000)).died == NOW - 86_400


@pytest.mark.parametrize("garbage", ["", "never", "9" * 40])
def test_when_it_died_is_read_strictly(garbage: str) -> None:
    assert letter(died=garbage).died == NOW - 3600


# --- what may become of it ----------------------------------------------------------------------------------------------------

RULES = Rules(max_replays=3, starts_at=NOW, main="jobs.invoices", main_id4="1f2e3d4c")


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({}, None),
        ({"replays": 2}, None),
        ({"replays": 3}, Kept.PARKED),
        ({"replays": 2, "parked": 1}, None),
        ({"expires": round(NOW * 1000)}, Kept.EXPIRED),
        ({"expires": round(NOW * 1000) + 1}, None),
        ({"origin": "jobs.invoices@aaaaaaaa/3/70012"}, Kept.SOURCE_GONE),
        ({"origin": "streamjobs.billing.delay.1h@aaaaaaaa/3/70012"}, None),
        ({"origin": None}, None),
    ],
)
def test_what_stays(headers: dict[str, Any], kept: Kept | None) -> None:  # edge 57 # edge 56
    """A letter that was replayed to its limit, has expired, or is from an earlier topic; the flag alone keeps none."""
    assert RULES.kept(letter(**headers)) is kept


def test_to_a_named_queue_letters_come_from_anywhere() -> None:
    anywhere = Rules(max_replays=3, starts_at=NOW, main="jobs.invoices", main_id4=None)

    assert anywhere.kept(letter(origin="jobs.invoices@aaaaaaaa/3/70012")) is None


# --- records ------------------------------------------------------------------------------------------------------------------

RETRY = Route("jobs.invoices.billing.retry", 8)


def test_a_replay_begins_a_run_with_a_fresh_budget() -> None:  # edge 59
    record = replayed(letter(replays=1), RETRY)
    meta = Meta.parse(record.headers)

    assert (record.topic, record.value, record.key) == ("jobs.invoices.billing.retry", b"\xc3\x01payload", b"acme")
    assert (meta.run, meta.attempt, meta.replays) == (16, 1, 2)
    assert (meta.job_type, meta.job_id, meta.tags, meta.origin) == (
        "send_invoice", "inv-7", "eu,late", "jobs.invoices@1f2e3d4c/3/70012",
    )  # fmt: skip
    assert meta.first_attempt == 1749990000.0
    assert ("tenant", b"acme") in record.headers


def test_a_replayed_job_carries_nothing_of_its_failure() -> None:
    """Left on it, three strikes make it a letter again before it starts, and an old due time sends it to the ladder."""
    old = {"strikes": 3, "holds": 2, "due": 1, "next": "jobs.x", "parked": 1, "null": 0, "died": 1}
    names = {name for name, _ in replayed(letter(**old), RETRY).headers}

    assert not names & {
        "sj_reason", "sj_error_type", "sj_error_message", "sj_error_stack", "sj_key", "sj_strikes", "sj_holds", "sj_due", "sj_next",
        "sj_parked", "sj_null", "sj_died",
    }  # fmt: skip


def test_a_job_keeps_its_origin_also_where_only_the_letters_id_says_it() -> None:
    """A letter that was slimmed to the bone, or came by another hand: without it the job is a new one for everybody."""
    assert dict(replayed(letter(origin=None), RETRY).headers)["sj_origin"] == b"jobs.invoices@1f2e3d4c/3/70012"


def test_a_delayed_replay_says_when_and_where_to() -> None:
    meta = Meta.parse(replayed(letter(), Route("streamjobs.billing.delay.4m", 4, "jobs.invoices.billing.retry", NOW + 600)).headers)

    assert (meta.due, meta.next) == (NOW + 600, "jobs.invoices.billing.retry")


def test_a_keyless_job_goes_where_its_copies_go() -> None:
    record = replayed(letter(key=None), RETRY)

    assert record.key is None
    assert record.partition == partition_of_job(b"inv-7", 8)


def test_a_null_value_is_null_again() -> None:  # edge 65
    """On the table it would have been a tombstone."""
    assert replayed(letter(null=1), RETRY).value is None
    assert parked(letter(null=1)).value is not None


def test_a_tombstone_goes_where_the_letter_was_read() -> None:  # edge 54
    record = tombstone(letter())

    assert (record.topic, record.partition, record.value) == ("jobs.invoices.billing.dlt", 5, None)
    assert record.key == b"jobs.invoices@1f2e3d4c/3/70012#15"


def test_a_parked_letter_keeps_its_reason_and_its_age() -> None:
    record = parked(letter())
    meta = Meta.parse(record.headers)

    assert meta.parked and meta.reason == "exhausted" and meta.error_type == "Timeout"
    assert (record.key, record.partition, record.value) == (letter().row, 5, letter().value)
    assert dict(record.headers)["sj_died"] == b"%d" % round(letter().died * 1000)


def test_an_edited_letter_keeps_all_but_its_payload() -> None:
    record = edited(letter(), Payload(b"new", b"other", b"application/avro"))
    meta = Meta.parse(record.headers)

    assert (record.value, meta.key, meta.run, meta.reason) == (b"new", b"other", 15, "exhausted")
    assert record.key == letter().row


# --- filters ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("error=Timeout", True),
        ("error=timeout", False),
        ("error!=Timeout", False),
        ("error~=time", True),
        ("type=send_invoice", True),
        ("type=send", False),
        ("key=acme", True),
        ("key=", False),
        ("tag=late", True),
        ("tag=la", False),
        ("tag!=late", False),
        ("tag!=us", True),
        ("reason=exhausted", True),
        ("reason=poison", False),
        ("message~=REFUSED by", True),
        ("message~=^Conn", False),
        ("message = Connection refused by 10.0.0.1", True),
        ("id=inv-7", True),
        ("origin~=/70012", True),
        ("age>59m", True),
        ("age>1h", False),
        ("age>=1h", True),
        ("age<1h", False),
        ("attempt>=8", True),
        ("attempt>8", False),
        ("attempt=8", True),
        ("attempt!=8", False),
        ("run<=15", True),
        ("replays=0", True),
        ("size<10", False),
        ("parked=no", True),
        ("parked=yes", False),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert Filter.of([condition]).matches(letter(), NOW) is holds


def test_a_fingerprint_is_named_by_its_beginning() -> None:
    found = letter()

    assert Filter.of([f"fingerprint={found.fingerprint[:12]}"]).matches(found, NOW)
    assert not Filter.of([f"fingerprint!={found.fingerprint[:12]}"]).matches(found, NOW)
    assert not Filter.of(["fingerprint=0000"]).matches(found, NOW)


def test_conditions_combine() -> None:
    both = Filter.of(["error=Timeout", "age>2h"])

    assert not both.matches(letter(), NOW)
    assert both.matches(letter(), NOW + 7200)
    assert Filter.of(["error=Timeout"]).and_(Filter.of(["age>2h"])) == both
    assert str(both) == "error=Timeout and age>2h"


@pytest.mark.parametrize("name", ["jobs.invoices@1f2e3d4c/3/70012#15", "inv-7"])
def test_letters_are_named_by_their_own_id_or_their_jobs(name: str) -> None:
    assert Filter.of(ids=[name]).matches(letter(), NOW)
    assert not Filter.of(ids=["inv-8"]).matches(letter(), NOW)
    assert not Filter.of(["error=Other"], ids=[name]).matches(letter(), NOW)


def test_two_sets_of_ids_meet() -> None:
    """Narrowing never widens: ids that have none in common choose nothing, not everything."""
    assert not Filter.of(ids=["inv-8"]).and_(Filter.of(ids=["inv-7"])).matches(letter(), NOW)
    assert Filter.of(ids=["inv-8", "inv-7"]).and_(Filter.of(ids=["inv-7"])).matches(letter(), NOW)
    assert ALL.and_(Filter.of(ids=["inv-7"])).ids == Filter.of(ids=["inv-7"]).and_(ALL).ids == {"inv-7"}


def test_of_no_ids_no_letter_has_one() -> None:
    """What bit: a query that found nothing chose the whole table, and `discard` took it."""
    nothing = Filter.of(ids=[])

    assert not nothing.matches(letter(), NOW)
    assert not ALL.and_(nothing).matches(letter(), NOW) and not nothing.and_(ALL).matches(letter(), NOW)
    assert nothing and str(nothing) == "id in ()"
    assert Filter.of(ids=None) == ALL


def test_one_text_is_one_id() -> None:
    """What bit: "12" was taken for the jobs 1 and 2."""
    assert Filter.of(ids="inv-7") == Filter.of(ids=["inv-7"])


@pytest.mark.parametrize("condition", ["key=", "error=", "type=", "message="])
def test_letters_that_have_none_can_be_told_from_those_that_have_one(condition: str) -> None:
    bare = letter(key=None, error_type=None, error_message=None, ce_type=None)

    assert Filter.of([condition]).matches(bare, NOW) and not Filter.of([condition]).matches(letter(), NOW)
    assert Filter.of([condition.replace("=", "!=")]).matches(letter(), NOW)


@pytest.mark.parametrize("condition", [f"{name}~=" for name in TEXTS] + ["fingerprint=", "fingerprint!= ", "tag=", "tag!=", "id=", "origin="])
def test_a_condition_without_a_value_does_not_choose_all(condition: str) -> None:
    """What bit: a variable that the shell did not know, and every letter was chosen."""
    with pytest.raises(UsageError, match="has no value, and .*: write one behind .*; a shell variable that is not set is empty"):
        Filter.of([condition])


@pytest.mark.parametrize("ids", ["", [""], ["inv-7", ""]])
def test_an_id_is_not_empty(ids: Any) -> None:
    """What bit: it chose every letter whose job has no id."""
    with pytest.raises(UsageError, match="an id is empty"):
        Filter.of(ids=ids)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("timeout", "FIELD=VALUE"),
        ("eror=Timeout", "did you mean 'error'?"),
        ("xyz=1", "there is error, type"),
        ("reason=exausted", "did you mean 'exhausted'?"),
        ("error>5", "error is text"),
        ("attempt~=5", "compare a number"),
        ("attempt>=many", "'many' is no number"),
        ("age>soon", "age>soon"),
        ("parked=maybe", "parked=yes or parked=no"),
    ],
)
def test_a_condition_that_is_none_says_what_to_write(condition: str, says: str) -> None:
    with pytest.raises(UsageError, match=r".*") as refused:
        Filter.of([condition])
    assert says in str(refused.value)


# --- failures that are the same -----------------------------------------------------------------------------------------------

STACK = """Traceback (most recent call last):
  File "/srv/billing/env/lib/python3.12/site-packages/streamjobs/worker/executors/threads.py", line 120, in run_chunk
    job.run(job)
  File "/srv/billing/billing/jobs.py", line 41, in send_invoice
    bank.pay(7)
  File "/srv/billing/billing/bank.py", line 12, in pay
    session.post(url)
  File "/srv/billing/env/lib/python3.12/site-packages/requests/sessions.py", line 637, in post
    return self.request("POST", url)
TimeoutError: timed out
"""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("invoice 7 is void", "invoice 70012 is void"),
        ("no 'acme'", "no 'umbrella inc.'"),
        ('no "acme"', 'no "x"'),
        ("018f2c1e-4b7a-7c3d-9e2f-1a2b3c4d5e6f is gone", "018f2c1f-0000-7000-8000-000000000000 is gone"),
        ("object at 0x7f3a2c", "object at 0x10"),
        ("digest deadbeef01 differs", "digest 00ff00ff99 differs"),
        ("took 1.5 s", "took 12 s"),
    ],
)
def test_messages_of_one_shape(one: str, other: str) -> None:
    assert shape(one) == shape(other)
    assert fingerprint("E", one) == fingerprint("E", other)


def test_an_apostrophe_is_no_quote() -> None:
    assert shape("can't reach it: the bank's down") == "can't reach it: the bank's down"


def test_words_are_no_numbers() -> None:
    assert shape("feedface decade") == "feedface decade"


def test_the_frame_is_the_innermost_of_the_application() -> None:
    assert frame(STACK) == "billing/bank.py:pay"
    assert frame("") == ""


def test_of_foreign_frames_the_innermost_is_better_than_none() -> None:
    foreign = "\n".join(line for line in STACK.splitlines() if "site-packages" in line)

    assert frame(foreign) == "requests/sessions.py:post"


def test_fingerprints_tell_apart_what_differs() -> None:
    same = fingerprint("TimeoutError", "timed out", STACK)

    assert same == fingerprint("TimeoutError", "timed out", STACK.replace("/srv", "/home/me/src").replace("line 12", "line 13"))
    assert same != fingerprint("ValueError", "timed out", STACK)
    assert same != fingerprint("TimeoutError", "refused", STACK)
    assert same != fingerprint("TimeoutError", "timed out", STACK.replace("in pay", "in ask"))


@given(st.text(max_size=1024))
def test_any_message_has_a_shape_without_digits(message: str) -> None:
    assert len(shape(message)) <= len(message)
    assert not any(character in "0123456789" for character in shape(message))


def test_groups_count_and_remember_when() -> None:
    groups = Groups(["error"])
    for seen, error in [(5.0, "A"), (3.0, "A"), (9.0, "B"), (4.0, "A")]:
        groups.add((error,), seen, f"kind-{seen > 4}", f"at {seen}", str(seen))

    first, second = groups
    assert (first.by, first.count, first.first, first.last, first.message, first.sample) == (("A",), 3, 3.0, 5.0, "at 5.0", "5.0")
    assert (second.count, groups.count) == (1, 4)
    assert first.fingerprints == {"kind-True": 1, "kind-False": 2}


def test_groups_are_bounded() -> None:
    """A million keys are a million groups: what is not told apart is still counted."""
    groups = Groups(["key"])
    for number in range(MAX_GROUPS + 7):
        groups.add((str(number),), 1.0, "kind", "", "")

    *known, rest = groups
    assert len(known) == MAX_GROUPS
    assert (rest.by, rest.count) == (("…",), 7)
