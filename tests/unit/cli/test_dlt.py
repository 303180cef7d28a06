"""`streamjobs dlt`."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import Result

from streamjobs import provision
from streamjobs.app import App
from streamjobs.cli import dlt as module
from streamjobs.core.lifecycle import Reason
from streamjobs.core.record import Meta
from streamjobs.dead_letters import DeadLetters
from streamjobs.errors import BrokerError
from streamjobs.testing import ManualClock, MemoryBroker
from streamjobs.testing.producer import MemoryTransactionalProducer
from tests.support.letters import Letters

Run = Callable[..., Result]

RETRY = "jobs.invoices.shop.retry"
AUDIT = "streamjobs.audit"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def broker(app: App) -> Iterator[MemoryBroker]:
    clock = ManualClock()
    broker = MemoryBroker(clock)
    before = app.lend(broker, clock)
    provision.apply(app, provision.plan(app))
    yield broker
    app.take_back(before)


@pytest.fixture
def invoices(app: App, broker: MemoryBroker) -> Letters:
    return Letters(app, "send_invoice", TimeoutError("no answer from \x1b]0;owned\x07the bank; token=abc"))


@pytest.fixture
def dlt(run: Run, shop: str, app: App, broker: MemoryBroker, invoices: Letters) -> Run:
    def invoke(*args: str, **kwargs: Any) -> Result:
        result = run("dlt", *args, "-A", f"{shop}:app", **kwargs)
        app._broker = broker  # a command closes its app, which forgets its broker
        return result

    return invoke


@pytest.fixture
def table(app: App, broker: MemoryBroker) -> DeadLetters:
    return app.dead_letters("invoices")


def bury(invoices: Letters, count: int, **more: Any) -> None:
    invoices.write(invoices.record({"invoice_id": n, "customer_id": f"c{n % 3}"}, n, **more) for n in range(count))


# --- looking ------------------------------------------------------------------------------------------------------------------


def test_a_list_shows_the_newest_and_says_how_many_there_are(dlt: Run, invoices: Letters, broker: MemoryBroker) -> None:
    bury(invoices, 3)
    broker.clock.advance(60)  # type: ignore[attr-defined]
    invoices.write([invoices.record({"invoice_id": 9, "customer_id": "acme"}, 9)])

    result = dlt("list", "invoices", "--limit", "1")

    head, line = result.stdout.splitlines()
    assert head.split()[:3] == ["LETTER", "JOB", "TYPE"]
    assert "job-9" in line and "TimeoutError" in line and "exhausted" in line
    assert result.stderr == "the newest 1 of 4; --limit 0 shows all\n"


def test_all_letters_come_as_they_lie(dlt: Run, invoices: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages, so that a million of them take no memory."""
    monkeypatch.setattr(module, "_PAGE", 2)
    bury(invoices, 5)

    lines = dlt("list", "invoices", "--limit", "0").stdout.splitlines()

    assert len([line for line in lines if line.startswith("jobs.invoices@")]) == 5
    assert len([line for line in lines if line.startswith("LETTER")]) == 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_is_json_for_programs(count: int, dlt: Run, invoices: Letters) -> None:
    bury(invoices, count)

    rows = json.loads(dlt("list", "invoices", "-o", "json").stdout)

    assert sorted(row["job_id"] for row in rows) == [f"job-{n}" for n in range(count)]
    assert all(row["attempt"] == 15 and row["fingerprint"] and row["tags"] == [] for row in rows)


def test_a_list_in_json_can_be_cut(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 3)

    [row] = json.loads(dlt("list", "invoices", "-o", "json", "--limit", "1").stdout)

    assert row["origin"].startswith("jobs.invoices@")


def test_letters_are_chosen(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 6)

    chosen = dlt("list", "invoices", "-w", "key=c1", "--where", "error=TimeoutError", "--id", "job-1", "-o", "json")

    assert [row["job_id"] for row in json.loads(chosen.stdout)] == ["job-1"]


def test_a_wrong_condition_is_a_wrong_command(dlt: Run) -> None:
    result = dlt("list", "invoices", "--where", "eror=Timeout")

    assert (result.exit_code, result.stderr) == (2, "error: letters have no 'eror': did you mean 'error'?\n")


@pytest.mark.parametrize(
    "order", [["list", "invoices", "--id", ""], ["discard", "invoices", "--id", "job-0", "--id", "", "--apply", "--yes"], ["show", "invoices", ""],
              ["edit", "invoices", "", "--set", "invoice_id=3", "--apply", "--yes"]],
)  # fmt: skip
def test_an_id_that_a_shell_left_empty_is_a_wrong_command(order: list[str], dlt: Run, invoices: Letters, table: DeadLetters) -> None:
    """What bit: it chose every letter whose job has no id."""
    invoices.write([invoices.record({"invoice_id": 1, "customer_id": "c"}, 1, headers=[("ce_id", b"")])])
    before = [letter.value for letter in table]

    result = dlt(*order)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: an id is empty: name a letter or a job; a shell variable that is not set is empty, too\n"
    assert [letter.value for letter in table] == before


def test_a_queue_that_is_not_there_is_a_wrong_command(dlt: Run) -> None:
    result = dlt("stats", "invoice")

    assert result.exit_code == 2
    assert "did you mean queue 'invoices'?" in result.stderr


def test_stats(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 4)

    result = dlt("stats", "invoices", "--by", "error,type", "-o", "json")

    [group] = json.loads(result.stdout)
    assert (group["error"], group["type"], group["count"], group["kinds"]) == ("TimeoutError", "send_invoice", 4, 1)
    assert group["first"] == group["last"] and INSTANT.fullmatch(group["first"])
    assert result.stderr.startswith("4 letters")
    assert dlt("stats", "invoices", "-w", "error=Other").stderr == "no letters\n"


@pytest.mark.parametrize(
    ("command", "printed"), [(["list"], None), (["list", "--limit", "0"], ""), (["list", "-o", "json"], "[]\n"), (["export"], "")]
)
def test_who_looks_for_letters_that_are_not_there_is_told(dlt: Run, invoices: Letters, command: list[str], printed: str | None) -> None:
    bury(invoices, 1)

    result = dlt(command[0], "invoices", *command[1:], "--id", "nosuch")

    assert (result.exit_code, result.stderr) == (0, "no letters\n")
    assert printed in (None, result.stdout)


def test_a_column_is_shown_once(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 1)

    assert dlt("stats", "invoices", "--by", "message").stdout.splitlines()[0].split().count("MESSAGE") == 1


def test_a_letter_is_shown_whole_and_fit_for_a_terminal(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 1, headers=[("tenant", b"acme"), ("authorization", b"Bearer x")])

    text = dlt("show", "invoices", "job-0").stdout

    assert '"invoice_id": 0' in text
    assert "tenant: acme" in text and "authorization: ***" in text
    assert "TimeoutError: no answer from the bank; token=***" in text
    assert "\x1b" not in text and "\x07" not in text and "Bearer" not in text and "abc" not in text


def test_a_letter_is_json_for_programs(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 1)

    [row] = json.loads(dlt("show", "invoices", "job-0", "-o", "json").stdout)

    assert row["payload"] == {"invoice_id": 0, "customer_id": "c0"}
    assert row["payload_hex"] is None and "token=***" in row["message"]


def test_a_header_without_a_value_is_shown_as_such(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 1, headers=[("baggage", None)])

    [row] = json.loads(dlt("show", "invoices", "job-0", "-o", "json").stdout)

    assert row["headers"]["baggage"] is None
    assert "\n  baggage:" in dlt("show", "invoices", "job-0").stdout


def test_instants_are_written_one_way(dlt: Run, invoices: Letters) -> None:
    """What bit: `"died": 1795995410.22` beside `"published": "2026-…Z"`, and local time in `dlt show`."""
    bury(invoices, 1, headers=[("sj_first_attempt", b"1780000000123")])

    [row] = json.loads(dlt("show", "invoices", "job-0", "-o", "json").stdout)
    facts = dict(line.rsplit(maxsplit=1) for line in dlt("show", "invoices", "job-0").stdout.splitlines() if line.startswith(("DIED", "FIRST")))
    [exported] = map(json.loads, dlt("export", "invoices").stdout.splitlines())
    [group] = json.loads(dlt("replay", "invoices", "-o", "json").stdout)["groups"]

    assert row["first_attempt"] == facts["FIRST ATTEMPT"] == "2026-05-28T20:26:40.123Z"
    assert row["died"] == facts["DIED"] == exported["died"] == group["first"] == group["last"]
    assert INSTANT.fullmatch(row["died"])


def test_an_instant_beyond_the_calendar_hinders_nobody(dlt: Run, invoices: Letters) -> None:
    """What a damaged header says: a year of five digits."""
    bury(invoices, 1, headers=[("sj_died", b"999999999999999"), ("sj_first_attempt", b"999999999999999")])

    assert dlt("show", "invoices", "job-0").exit_code == 0
    [exported] = map(json.loads, dlt("export", "invoices").stdout.splitlines())
    assert exported["died"].startswith("9999-12-31T")


def test_an_undecodable_payload_is_shown_in_hexadecimal(dlt: Run, invoices: Letters) -> None:  # edge 61
    bury(invoices, 1, value=bytes(range(40)), reason=Reason.UNDECODABLE)

    text = dlt("show", "invoices", "job-0").stdout

    assert "PAYLOAD, in hexadecimal" in text
    assert "  20 21 22 23 24 25 26 27" in text


def test_a_letter_that_is_not_there(dlt: Run) -> None:
    result = dlt("show", "invoices", "job-0")

    assert result.exit_code == 2
    assert "it was replayed or discarded, or never there" in result.stderr


# --- acting -------------------------------------------------------------------------------------------------------------------


def test_a_replay_is_planned_first(dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 4)

    result = dlt("replay", "invoices", "--rate", "120/m", "--limit", "3", "--delay", "10m")

    assert result.exit_code == 3
    assert result.stdout.splitlines()[1].split()[:3] == ["TimeoutError", "send_invoice", "3"]
    assert "replay: 3 letters of jobs.invoices.shop.dlt → jobs.invoices.shop.retry, to run in 10m, about 1.5s at that rate" in result.stderr
    assert "1 more is chosen, behind the limit" in result.stderr
    assert "3 changes pending: run again with --apply" in result.stderr
    assert table.count() == 4 and not broker.records(RETRY)


def test_a_plan_is_json_for_programs(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 4)

    result = dlt("replay", "invoices", "-w", "key=c0", "-o", "json")

    plan = json.loads(result.stdout)
    assert (plan["count"], plan["where"], plan["topic"], plan["kept"]) == (2, "key=c0", "jobs.invoices.shop.dlt", {})
    assert result.exit_code == 3


def test_a_replay_acts_when_it_is_told_to(dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 4)

    result = dlt("replay", "invoices", "--apply", "--yes", "--reason", "the bank is back")

    assert result.exit_code == 0
    assert "4 letters replayed in" in result.stderr
    assert table.count() == 0 and len(broker.records(RETRY)) == 4
    assert json.loads(broker.records(AUDIT)[-1].value() or b"")["reason"] == "the bank is back"
    again = dlt("replay", "invoices", "--apply")
    assert (again.exit_code, again.stderr.splitlines()[-1]) == (0, "nothing to do")


def test_what_was_done_is_json_for_programs(dlt: Run, invoices: Letters) -> None:
    bury(invoices, 4)

    done = json.loads(dlt("replay", "invoices", "--apply", "-o", "json").stdout)

    assert (done["moved"], done["kept"], done["interrupted"]) == (4, {}, False)


def test_what_stays_is_said(dlt: Run, invoices: Letters, table: DeadLetters) -> None:
    bury(invoices, 2, headers=[("sj_replays", b"3")])

    result = dlt("replay", "invoices", "--apply")

    assert result.stderr.count("2 were replayed as often as max_replays allows and stay parked") == 1, "once, in the plan"
    assert table.where("parked=yes").count() == 2
    assert [line.split()[-1] for line in dlt("list", "invoices").stdout.splitlines()] == ["STATE", "parked", "parked"]


@pytest.mark.parametrize("more", [["--apply"], ["--apply", "-o", "json"]])
def test_what_stays_is_said_once_and_of_one_letter_as_of_one(more: list[str], dlt: Run, invoices: Letters) -> None:
    """What bit: the same line in the plan and in the report, and `1 were replayed`."""
    bury(invoices, 1, headers=[("sj_replays", b"3")])
    invoices.write([invoices.record({"invoice_id": 9, "customer_id": "acme"}, 9)])

    said = dlt("replay", "invoices", *more).stderr

    assert said.count("1 was replayed as often as max_replays allows and stays parked: ") == 1
    assert "1 letter replayed" in said


def test_a_change_that_does_not_fit_is_said_before_anything_moves(dlt: Run, invoices: Letters, table: DeadLetters) -> None:
    bury(invoices, 1)

    result = dlt("replay", "invoices", "--set", "invoice_id=many", "--apply")

    assert result.stderr.count("1 stays: its payload can't be changed so: jobs.invoices@") == 1
    assert "invoice_id takes int" in result.stderr
    assert table.count() == 1
    assert result.exit_code == 1


@pytest.mark.parametrize("more", [[], ["--apply"], ["--apply", "-o", "json"]])
@pytest.mark.parametrize(("order", "change"), [("edit", "invoice_id=abc"), ("replay", "nofield=3")])
def test_a_refused_change_is_no_success(order: str, change: str, more: list[str], dlt: Run, invoices: Letters) -> None:
    """What bit: "nothing to do", exit code 0, unless another letter could be changed."""
    bury(invoices, 1)

    which = ["job-0"] if order == "edit" else ["--id", "job-0"]
    result = dlt(order, "invoices", *which, "--set", change, *more)

    assert (result.exit_code, "nothing to do" in result.stderr) == (1, True)


@pytest.mark.parametrize("order", [["replay"], ["discard", "--apply", "--yes"], ["replay", "--apply", "-o", "json"]])
def test_an_id_that_no_letter_has_is_a_wrong_command(order: list[str], dlt: Run, invoices: Letters) -> None:
    bury(invoices, 1)

    result = dlt(*order, "invoices", "--id", "nosuch")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no letter or job 'nosuch' is on jobs.invoices.shop.dlt: it was replayed or discarded, or never there\n"
    assert dlt("edit", "invoices", "nosuch", "--set", "invoice_id=3").exit_code == 2
    assert dlt("replay", "invoices", "--id", "job-0", "-w", "age>2h").exit_code == 0, "it is there, and not chosen"


def test_an_unknown_id_among_others_is_said_and_they_are_acted_on(dlt: Run, invoices: Letters, table: DeadLetters) -> None:
    bury(invoices, 2)

    result = dlt("discard", "invoices", "--id", "job-0", "--id", "nosuch", "--apply", "-o", "json")

    assert (result.exit_code, json.loads(result.stdout)["moved"], table.count()) == (1, 1, 1)
    assert "no letter or job 'nosuch'" in result.stderr
    assert dlt("discard", "invoices", "--id", "job-1", "--id", "nosuch").exit_code == 3


def test_a_queue_that_is_gone_is_refused(dlt: Run, invoices: Letters, broker: MemoryBroker) -> None:  # edge 56
    bury(invoices, 1)
    broker.admin().delete_topics(["jobs.invoices"])

    result = dlt("replay", "invoices", "--apply")

    assert result.exit_code == 1
    assert "--to QUEUE" in result.stderr
    assert dlt("replay", "invoices", "--to", "mails", "--apply").exit_code == 0


@pytest.mark.parametrize("rate", ["0", "fast", "5/w", "-1"])
def test_a_rate_that_is_none(rate: str, dlt: Run) -> None:
    assert "is no rate" in dlt("replay", "invoices", f"--rate={rate}").stderr


def test_ctrl_c_finishes_the_batch_and_says_what_is_left(
    dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 500)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(module.render, "progress", _PressingCtrlC)

    result = dlt("replay", "invoices", "--apply")

    moved = len(broker.records(RETRY))
    assert result.exit_code == 130 and 0 < moved < 500
    assert f"stopped: about {500 - moved} are left; the same command goes on with them" in result.stderr
    assert table.count() == 500 - moved
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_ends_it_at_once(
    dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 500)
    monkeypatch.setattr(module.render, "progress", _PressingCtrlCTwice)

    result = dlt("replay", "invoices", "--apply")

    left = 500 - len(broker.records(RETRY))
    assert (result.exit_code, table.count()) == (130, left)
    assert f"stopped: about {left} are left; the same command goes on with them" in result.stderr


def test_the_second_ctrl_c_in_an_unanswered_commit_says_what_is_unknown(
    dlt: Run, invoices: Letters, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bit: the client waited for its answer, and did not hear the second one; or heard it, and the command said "interrupted"."""
    bury(invoices, 5)
    asked: list[float] = []

    def press_ctrl_c(_: Any, timeout: float) -> None:
        asked.append(timeout)
        with suppress(KeyboardInterrupt):  # as a callback of the client does
            os.kill(os.getpid(), signal.SIGINT)
        raise BrokerError("_TIMED_OUT", "commit a transaction", retriable=True)

    monkeypatch.setattr(MemoryTransactionalProducer, "commit", press_ctrl_c)

    result = dlt("replay", "invoices", "--apply")

    assert result.exit_code == 130
    assert "the broker did not say whether the last 5 letters were moved" in result.stderr
    assert len(asked) == 2 and max(asked) < 1


class _PressingCtrlC:
    """In place of the progress bar: presses Ctrl-C when the first batch is told of."""

    times = 1

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, by: int = 1) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGINT)


class _PressingCtrlCTwice(_PressingCtrlC):
    times = 2


def test_without_transactions_it_is_said_once(dlt: Run, invoices: Letters, broker: MemoryBroker) -> None:
    bury(invoices, 250)
    broker.lacks = frozenset({"transactions"})

    assert dlt("replay", "invoices", "--apply").stderr.count("this broker has no transactions") == 1


def test_letters_are_discarded(dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker) -> None:
    bury(invoices, 4)
    assert dlt("discard", "invoices", "-w", "key=c0").exit_code == 3

    result = dlt("discard", "invoices", "-w", "key=c0", "--apply")

    assert "2 letters discarded" in result.stderr
    assert table.count() == 2 and not broker.records(RETRY)


def test_a_letter_is_edited(dlt: Run, invoices: Letters, table: DeadLetters) -> None:
    bury(invoices, 2)

    result = dlt("edit", "invoices", "job-1", "--set", "customer_id=acme", "--apply")

    assert "1 letter edited" in result.stderr
    [letter] = table.get("job-1")
    assert table.shown(letter).json["customer_id"] == "acme"


def test_a_letter_is_edited_in_an_editor(
    dlt: Run, invoices: Letters, table: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 1)
    monkeypatch.setattr(module.click, "edit", lambda text, **_: text.replace("c0", "acme"))

    dlt("edit", "invoices", "job-0", "--apply")

    [letter] = table
    assert table.shown(letter).json == {"invoice_id": 0, "customer_id": "acme"}


@pytest.mark.parametrize(
    ("written", "says"),
    [("{", "not valid JSON"), ("{}", "a field is missing"), ('{"invoice_id": "***", "customer_id": ""}', "secret")],
)
def test_what_an_editor_may_give_back(
    written: str | None, says: str, dlt: Run, invoices: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 1)
    monkeypatch.setattr(module.click, "edit", lambda text, **_: written)

    result = dlt("edit", "invoices", "job-0", "--apply")

    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize("written", [None, '{"invoice_id": 0, "customer_id": "c0"}'])
def test_an_editor_that_changed_nothing_is_no_mistake(
    written: str | None, dlt: Run, invoices: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(invoices, 1)
    monkeypatch.setattr(module.click, "edit", lambda text, **_: written)

    result = dlt("edit", "invoices", "job-0", "--apply")

    assert (result.exit_code, result.stderr) == (0, "nothing was changed in the editor; --set FIELD=VALUE changes a field without one\n")


# --- out and in ---------------------------------------------------------------------------------------------------------------


def test_letters_go_out_and_come_back(dlt: Run, invoices: Letters, table: DeadLetters, directory: Path) -> None:
    bury(invoices, 3)
    lines = dlt("export", "invoices").stdout
    (directory / "letters.jsonl").write_text(lines)
    before = {letter.id: letter.value for letter in table}
    table.discard()

    planned = dlt("import", "invoices", "letters.jsonl")
    applied = dlt("import", "invoices", "letters.jsonl", "--apply")

    assert planned.exit_code == 3 and "3 are not on the table (any more)" in planned.stderr
    assert "3 letters imported" in applied.stderr
    assert {letter.id: letter.value for letter in table} == before
    assert "3 are on the table just so" in dlt("import", "invoices", "letters.jsonl", "--apply").stderr


def test_an_undecodable_letter_is_mended_in_a_pipe(
    dlt: Run, invoices: Letters, table: DeadLetters, broker: MemoryBroker
) -> None:  # edge 61
    bury(invoices, 1, value=b"garbage", reason=Reason.UNDECODABLE)
    row = json.loads(dlt("export", "invoices", "--where", "reason=undecodable").stdout)
    row["arguments"] = {"invoice_id": 7, "customer_id": "acme"}

    dlt("import", "invoices", "-", "--apply", stdin=json.dumps(row) + "\n\n")
    dlt("replay", "invoices", "--apply")

    [message] = broker.records(RETRY)
    assert (message.key(), Meta.parse(message.headers()).job_id) == (b"acme", "job-0")


def test_letters_of_another_table_are_refused(dlt: Run, invoices: Letters, app: App) -> None:
    bury(invoices, 1)
    lines = dlt("export", "invoices").stdout

    result = dlt("import", "mails", "-", "--apply", "--yes", stdin=lines)

    assert (result.exit_code, app.dead_letters("mails").count()) == (2, 0)
    assert "letter 1: it is a letter of jobs.invoices.shop.dlt, not of jobs.mails.shop.dlt" in result.stderr
    meant = {name: value for name, value in json.loads(lines).items() if name != "topic"}
    assert dlt("import", "mails", "-", "--apply", "--yes", stdin=json.dumps(meant)).exit_code == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "line 2 is not valid JSON"), ("[]", "line 2 is list"), ("{}", "letter 1"), ("[" * 100_000, "line 2 is nested too deeply")],
)
def test_a_line_that_is_no_letter(line: str, says: str, dlt: Run) -> None:
    result = dlt("import", "invoices", "-", "--apply", stdin=f"\n{line}\n")

    assert result.exit_code == 2
    assert says in result.stderr
