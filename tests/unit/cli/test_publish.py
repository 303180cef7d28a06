"""`streamjobs publish`: one job, or one for each line of standard input."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pytest
from click.testing import Result

from streamjobs import provision
from streamjobs.app import App
from streamjobs.cli import publish as cli
from streamjobs.cli.session import load_app
from streamjobs.core.record import Meta
from streamjobs.testing import MemoryBroker

Run = Callable[..., Result]

INVOICES = "jobs.invoices"
ACME = '{"invoice_id": 7, "customer_id": "acme"}'


@pytest.fixture
def broker(app: App) -> MemoryBroker:
    broker = MemoryBroker()
    app._broker = broker
    provision.apply(app, provision.plan(app))
    return broker


@pytest.fixture
def publish(run: Run, shop: str, broker: MemoryBroker) -> Run:
    def invoke(*args: str, **kwargs: Any) -> Result:
        return run("publish", "-A", f"{shop}:app", *args, **kwargs)

    return invoke


def published(broker: MemoryBroker, topic: str = INVOICES) -> list[Meta]:
    return [Meta.parse(message.headers()) for message in broker.records(topic)]


# --- one job ----------------------------------------------------------------------------------------------------------


def test_the_receipt_says_where_the_job_lies(publish: Run, broker: MemoryBroker) -> None:
    result = publish("send_invoice", ACME, "--id", "inv-7", "-o", "json")

    assert result.exit_code == 0, result.stderr
    receipt = json.loads(result.stdout)
    [message] = broker.records(INVOICES)
    assert receipt == {"id": "inv-7", "topic": INVOICES, "partition": message.partition(), "offset": 0}
    assert message.key() == b"acme"


def test_the_receipt_is_a_table_for_people(publish: Run) -> None:
    lines = publish("send_invoice", ACME, "--id", "inv-7").stdout.splitlines()

    assert lines[0].split() == ["ID", "inv-7"]
    assert lines[1].split() == ["TOPIC", INVOICES]


def test_options_reach_the_job(publish: Run, broker: MemoryBroker) -> None:
    publish(
        "send_invoice", ACME, "--key", "other", "--tag", "a", "--tag", "b", "--expires", "1h", "--header", "tenant=x=y"
    )

    [message] = broker.records(INVOICES)
    [meta] = published(broker)
    assert message.key() == b"other"
    assert meta.tags == "a,b"
    assert meta.expires > 0
    assert ("tenant", b"x=y") in (message.headers() or [])


@pytest.mark.parametrize("how", ["delay", "local time", "with an offset"])
def test_a_delayed_job_goes_to_the_ladder(how: str, publish: Run, broker: MemoryBroker) -> None:
    then = datetime.now() + timedelta(minutes=10)
    at = then if how == "local time" else then.astimezone(UTC)

    result = publish("send_invoice", ACME, *(["--delay", "10m"] if how == "delay" else ["--at", at.isoformat()]))

    assert result.exit_code == 0, result.stderr
    [meta] = published(broker, "streamjobs.shop.delay.4m")
    assert meta.next == INVOICES
    assert abs(meta.due - then.timestamp()) < 10


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["send_invoce", ACME], "has no job type 'send_invoce': did you mean 'send_invoice'?"),
        (["send_invoice", "{"], "the arguments are not valid JSON"),
        (["send_invoice", '{"invoice_id": 7, "customer_id": "acme", "invoice_id": 8}'], "'invoice_id' is given twice in the arguments"),
        (["send_invoice", '{"invoice_id": {"a": 1, "a": 1}, "customer_id": "acme"}'], "'a' is given twice in the arguments"),
        (["send_invoice", "[1]"], "the arguments are list, not an object"),
        (["send_invoice", '{"invoice_id": 7}'], "customer_id"),
        (["send_invoice", ACME, "--at", "2031-05-04T09:00", "--delay", "1h"], "give --delay or --at, not both"),
        (["send_invoice", ACME, "--delay", "100d"], "a delay of 100d is longer than max_delay (90d)"),
        (["send_invoice", ACME.replace("7", "99999999999999999999")], "invoice_id can't be stored: a whole number has at most 64 bits"),
        (["send_invoice", ACME, "--expires", "0s"], "a job that expires after 0 s never runs"),
        (["send_invoice", ACME, "--at", "soon"], "--at 'soon' is no time"),
        (["send_invoice", ACME, "--header", "tenant"], "--header 'tenant' is not NAME=VALUE"),
        (["send_invoice", ACME, "--header", "x-\udcff=1"], r"header 'x-\udcff' can't be sent"),
        (["send_invoice", ACME, "--delay", "soon"], "'--delay': 'soon' is not a duration"),
        (["send_invoice", "-", "--id", "x"], "--id names one job"),
    ],
)
def test_a_mistake_publishes_nothing(args: list[str], says: str, publish: Run, broker: MemoryBroker) -> None:
    result = publish(*args)

    assert result.exit_code == 2
    assert says in result.stderr
    assert broker.records(INVOICES) == []
    assert result.stdout == ""


MODELS = """
from pydantic import BaseModel
from streamjobs import App

app = App("models", partitions=1)

class Order(BaseModel):
    number: int

@app.job
def order(order: Order) -> None: ...

@app.job
def upload(content: bytes) -> None: ...
"""


# --- many -------------------------------------------------------------------------------------------------------------


def lines(*numbers: int) -> list[str]:
    return [json.dumps({"invoice_id": number, "customer_id": "acme"}) for number in numbers]


def test_a_line_with_a_key_twice_is_refused(publish: Run, broker: MemoryBroker) -> None:
    result = publish("send_invoice", "-", stdin="\n".join([*lines(1), '{"invoice_id": 2, "customer_id": "a", "customer_id": "b"}']))

    assert (result.exit_code, len(broker.records(INVOICES))) == (1, 1)
    assert "line 2: 'customer_id' is given twice in the arguments" in result.stderr


def test_every_line_is_a_job(publish: Run, broker: MemoryBroker) -> None:
    result = publish("send_invoice", "-", stdin="\n".join([*lines(*range(300)), "", "  "]))

    assert result.exit_code == 0
    assert result.stderr == "300 jobs published\n"
    assert result.stdout == ""
    assert len(broker.records(INVOICES)) == 300


def test_a_bad_line_is_named_and_nothing_else_is_lost(publish: Run, broker: MemoryBroker) -> None:
    good, bad = lines(1, 2, 3), ["{", '{"invoice_id": "\x1b[2Jx", "customer_id": "a"}', "7"]

    result = publish("send_invoice", "-", stdin="\n".join(chain(*zip(good, bad, strict=True))))

    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in told[:3]] == ["line 2", "line 4", "line 6"]
    assert told[3] == "3 jobs published; 3 lines refused"
    assert "\x1b" not in result.stderr
    assert len(broker.records(INVOICES)) == 3


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"invoice_id": 99999999999999999999, "customer_id": "a"}', "send_invoice: invoice_id can't be stored: a whole number has at most 64 bits"),
        (r'{"invoice_id": 7, "customer_id": "\ud800"}', "send_invoice: customer_id can't be stored"),
        (f'{{"invoice_id": 7, "customer_id": "{"a" * 520_000}"}}', "a send_invoice job of 1,"),
        ("[" * 100_000, "the arguments are nested too deeply"),
    ],
)
def test_a_line_that_can_be_read_and_not_be_published_is_named(bad: str, says: str, publish: Run, broker: MemoryBroker) -> None:
    """What bit: it was told as "row 1", and nothing that had arrived with it was published."""
    result = publish("send_invoice", "-", "-o", "json", stdin="\n".join([*lines(1, 2), bad, *lines(4), bad, *lines(6), ""]))

    told = result.stderr.splitlines()
    assert (result.exit_code, told[2:]) == (1, ["4 jobs published; 2 lines refused"])
    assert told[0].startswith(f"line 3: {says}") and told[1].startswith(f"line 5: {says}")
    assert len(result.stdout.splitlines()) == len(broker.records(INVOICES)) == 4


def test_what_is_refused_and_what_is_missing_are_told_apart(publish: Run, broker: MemoryBroker) -> None:
    bad = lines(99999999999999999999)
    broker.fail("send", topic=INVOICES, error="MSG_SIZE_TOO_LARGE")

    result = publish("send_invoice", "-", stdin="\n".join([*bad, *lines(2, 3), *bad, ""]))

    first, second, last = result.stderr.splitlines()
    assert first.startswith("line 1: send_invoice: invoice_id") and second.startswith("error: 1 of 1 jobs were not stored")
    assert last == "0 jobs published; 1 line refused; the others may be missing: publish again from line 2"


@pytest.mark.parametrize(
    ("options", "says"), [(["--delay", "100d"], "a delay of 100d is longer than"), (["--header", "sj_run=1"], "belongs to streamjobs")]
)
def test_options_that_no_line_can_have_are_told_once(options: list[str], says: str, publish: Run) -> None:
    result = publish("send_invoice", "-", *options, stdin="\n".join(lines(1, 2)))

    assert (result.exit_code, len(result.stderr.splitlines()), says in result.stderr) == (2, 1, True)


def test_a_line_says_as_much_as_one_jobs_arguments(module: Callable[[str], str], run: Run) -> None:
    """What bit: the fields of a model, and bytes, could be written in one job's arguments, and not in a line."""
    name = module(MODELS)
    app = load_app(f"{name}:app")
    app._broker = broker = MemoryBroker()
    provision.apply(app, provision.plan(app))

    for job, arguments in (("order", {"number": 7}), ("upload", {"content": {"$base64": "/w=="}})):
        for given, stdin in ((json.dumps(arguments), ""), ("-", json.dumps(arguments))):
            app._broker = broker
            assert run("publish", "-A", f"{name}:app", job, given, stdin=stdin).exit_code == 0

    first, second, third, fourth = (message.value() for message in broker.records("jobs.default"))
    assert (first, third) == (second, fourth)


def test_receipts_are_json_lines(publish: Run) -> None:
    result = publish("send_invoice", "-", "-o", "json", stdin="\n".join(lines(1, 2)))

    receipts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [receipt["offset"] for receipt in receipts] == [0, 1]


def test_a_broker_that_refuses_ends_it_and_says_where(publish: Run, broker: MemoryBroker) -> None:
    broker.fail("send", topic=INVOICES, error="MSG_SIZE_TOO_LARGE")

    result = publish("send_invoice", "-", stdin="\n".join([*lines(1, 2), ""]))

    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("error: 1 of 2 jobs were not stored, as far as is known: 1 were, 1 were refused")
    assert last == "1 job published; line 1 and all behind line 2 may be missing: publish these again"


def test_a_broker_that_takes_no_more_is_told_from_where(publish: Run, broker: MemoryBroker) -> None:
    """What bit: a line in hundreds was missing, and all were to be published again."""
    broker.fail("send", topic=INVOICES, error="_MSG_TIMED_OUT", times=None)

    result = publish("send_invoice", "-", "-o", "json", stdin="\n".join([*lines(1, 2, 3), ""]))

    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "0 jobs published; the others may be missing: publish again from line 1"


class Slow(io.RawIOBase):
    """A pipe in which these pieces arrive one after the other."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_lines_that_arrive_together_are_published_together() -> None:
    """A slow pipe is not held back until enough has come; a line may arrive in pieces."""
    stream = io.BufferedReader(Slow(b"a\nb\n", b"c", b"c", b"c\n\nd\n", b"e"))

    batches = [[(line.number, line.text) for line in batch] for batch in cli._batches(stream)]

    assert [batch for batch in batches if batch] == [
        [(1, b"a"), (2, b"b")],
        [(3, b"ccc"), (5, b"d")],
        [(6, b"e")],
    ]


def test_an_address_at_which_there_is_no_broker_is_told_before_the_producer_gives_up(
    run: Run, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bootstrap = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("STREAMJOBS_BOOTSTRAP", bootstrap)
    began = time.monotonic()

    result = run("publish", "-A", f"{shop}:app", "send_invoice", ACME)

    assert (result.exit_code, result.stdout) == (1, "")
    assert time.monotonic() - began < 8
    for part in (f" at {bootstrap}: ", "Connection refused: ", "is the broker running", "`streamjobs doctor`"):
        assert part in result.stderr
