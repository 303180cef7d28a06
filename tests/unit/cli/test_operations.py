"""`streamjobs topic`, `lag` and `group`: what they print, what they do, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from click.testing import Result

from streamjobs import orders, provision, tables
from streamjobs.app import App
from streamjobs.broker import Commit, Group, Member, Start, Topic, TopicPartition
from streamjobs.cli import group as group_cli
from streamjobs.cli import lag as lag_cli
from streamjobs.core.offsets import Mark, encode
from streamjobs.core.record import Record
from streamjobs.errors import ProvisionError, UsageError
from streamjobs.telemetry import reports
from streamjobs.telemetry.metrics import Snapshot
from streamjobs.testing import ManualClock, MemoryBroker
from streamjobs.testing.faults import broker_error

Run = Callable[..., Result]
MAIN = "jobs.invoices"
P0 = TopicPartition(MAIN, 0)
DAY = 86_400.0


@pytest.fixture
def clock(app: App) -> ManualClock:
    app.clock = clock = ManualClock()
    return clock


@pytest.fixture
def broker(app: App, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    broker = MemoryBroker(clock)
    monkeypatch.setattr(App, "_connect", lambda _: broker)
    return broker


@pytest.fixture
def do(run: Run, shop: str, broker: MemoryBroker) -> Run:
    """Runs a command on the shop."""
    return lambda *args: run(*args, "-A", f"{shop}:app")


@pytest.fixture
def provisioned(app: App, broker: MemoryBroker) -> None:
    provision.apply(app, provision.plan(app))


def publish(broker: MemoryBroker, count: int, topic: str = MAIN) -> None:
    tables.write_once(broker, [Record(topic, b"x", partition=0)] * count)


def commit(broker: MemoryBroker, base: int, group: str = "shop") -> None:
    topic_id = broker.admin().topics([MAIN])[MAIN].id
    broker.admin().alter_committed(group, {P0: Commit(base, encode(base, Mark(topic_id[:4])))})


# --- topic --------------------------------------------------------------------------------------------------


def test_topic_plan_shows_and_changes_nothing(do: Run, broker: MemoryBroker) -> None:
    result = do("topic", "plan", "-o", "json")

    assert result.exit_code == 3
    assert {"create", "register"} == {row["action"] for row in json.loads(result.stdout)}
    assert broker.admin().topics() == {}


def test_topic_apply_then_nothing_is_pending(do: Run, broker: MemoryBroker) -> None:
    result = do("topic", "apply", "--yes")

    assert result.exit_code == 0, result.stderr
    assert MAIN in broker.admin().topics()
    again = do("topic", "plan")
    assert (again.exit_code, again.stdout) == (0, "")
    assert do("topic", "apply").exit_code == 0


@pytest.mark.parametrize("flags", [{}, {"worker.group": "other"}], ids=["own group", "--group other"])
def test_what_a_worker_advises_makes_it_start(
    flags: dict[str, str], run: Run, app: App, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as it stands there, where nothing else says which app, and of which group."""
    with pytest.raises(ProvisionError) as refused:
        provision.require(app.configure(flags))
    *variables, program, noun, verb, flag, ref = str(refused.value).rpartition("run: ")[2].split()
    app._settings, app._flags = None, {}  # it is another process that applies

    for variable in variables:
        monkeypatch.setenv(*variable.split("=", 1))
    result = run(noun, verb, flag, ref)

    assert (program, result.exit_code) == ("streamjobs", 0)
    assert "nothing to do" not in result.stderr
    app._settings, app._flags = None, flags
    provision.require(app)


@pytest.mark.usefixtures("provisioned")
def test_topic_apply_needs_a_yes_for_partitions(
    do: Run, app: App, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMJOBS_PARTITIONS", "12")
    app._settings = None  # as in another process

    refused = do("topic", "apply")
    assert refused.exit_code == 3
    assert "order by key is broken" in refused.stderr
    assert broker.admin().topics()[MAIN].partitions == 8

    assert do("topic", "apply", "--yes").exit_code == 0
    assert broker.admin().topics()[MAIN].partitions == 12


def test_what_apply_leaves_and_workers_refuse_is_a_failure(do: Run, broker: MemoryBroker) -> None:
    """What bit: a broker made the control topic, with three partitions; a deployment that went by the exit code of `topic apply` went on to
    workers that all refused to start."""
    broker.admin().create_topics([Topic("streamjobs.control", 3, 1)])
    told = "error: streamjobs.control has 3 partitions: orders need exactly one; stop all workers, delete it, then apply\n"

    for args in (["plan"], ["apply", "--yes"], ["apply", "--yes"], ["plan"]):
        result = do("topic", *args)
        assert (result.exit_code, told in result.stderr) == (1, True), args
    assert MAIN in broker.admin().topics(), "what can be done is done"
    assert "nothing to do" not in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_what_does_not_keep_workers_from_starting_is_a_note(do: Run, broker: MemoryBroker) -> None:
    broker.admin().add_partitions("jobs.invoices.shop.dlt", 12)

    for verb in ("plan", "apply"):
        result = do("topic", verb)
        assert result.exit_code == 0
        assert "note: jobs.invoices.shop.dlt has 12 partitions, the settings say 8; its count never changes\n" in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_topic_list(do: Run, broker: MemoryBroker) -> None:
    publish(broker, 3)
    broker.admin().delete_topics(["jobs.invoices.shop.dlt"])

    rows = {row["topic"]: row for row in json.loads(do("topic", "list", "-o", "json").stdout)}

    assert (rows[MAIN]["records"], rows[MAIN]["groups"], rows[MAIN]["state"]) == (3, ["shop"], "ok")
    assert rows["jobs.invoices.shop.dlt"]["state"] == "topic jobs.invoices.shop.dlt is missing"


@pytest.mark.usefixtures("provisioned")
def test_topic_trim_plans_and_applies(do: Run, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, 4)
    clock.advance(8 * DAY)
    commit(broker, 4)

    shown = do("topic", "trim", "-o", "json")
    assert shown.exit_code == 3
    assert [(row["topic"], row["count"]) for row in json.loads(shown.stdout)] == [(MAIN, 4)]
    assert broker.admin().offsets([P0], "earliest")[P0] == 0

    assert do("topic", "trim", "--apply").exit_code == 0
    assert broker.admin().offsets([P0], "earliest")[P0] == 4


@pytest.mark.usefixtures("provisioned")
def test_topic_trim_says_what_keeps_records(do: Run, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, 4)
    clock.advance(8 * DAY)

    result = do("topic", "trim", "--apply")

    assert result.exit_code == 0
    assert "group shop is registered on jobs.invoices/0 and has no commit there" in result.stdout


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("nosuch", "no topic 'nosuch' can be trimmed: there is jobs.invoices, "),
        ("invoices", "no topic 'invoices' can be trimmed: did you mean jobs.invoices?"),
        ("jobs.invoice", "did you mean jobs.invoices?"),
        ("streamjobs.audit", "nothing in streamjobs.audit is ever merely old"),
    ],
)
def test_topic_trim_of_a_topic_that_is_none(topic: str, says: str, do: Run) -> None:
    """What bit: "nothing to do", exit code 0."""
    result = do("topic", "trim", "jobs.mails", topic, "--apply", "--yes")

    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


# --- lag ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("provisioned")
def test_lag(do: Run, broker: MemoryBroker, clock: ManualClock) -> None:
    publish(broker, 5)
    publish(broker, 2, "jobs.invoices.shop.retry")
    publish(broker, 3, "streamjobs.shop.delay.1m")
    clock.advance(90)

    rows = json.loads(do("lag", "-o", "json").stdout)

    found = {(row["queue"], row["group"], row["tier"]): (row["pending"], row["oldest_s"]) for row in rows}
    assert found == {
        ("invoices", "shop", "main"): (5, 90.0),
        ("invoices", "shop", "retry"): (2, 90.0),
        ("mails", "shop", "main"): (0, 0.0),
        ("mails", "shop", "retry"): (0, 0.0),
        (None, "shop.timer", "delayed"): (3, None),
    }


@pytest.mark.usefixtures("provisioned")
def test_lag_fails_above_a_threshold(do: Run, broker: MemoryBroker) -> None:
    """Main and retry topics are one backlog; what is delayed is none."""
    publish(broker, 5)
    publish(broker, 2, "jobs.invoices.shop.retry")
    publish(broker, 30, "streamjobs.shop.delay.1m")

    assert do("lag", "--fail-above", "7").exit_code == 0
    exceeded = do("lag", "--fail-above", "6")
    assert (exceeded.exit_code, "invoices (shop): more than 6 pending" in exceeded.stderr) == (3, True)
    assert do("lag", "mails", "--fail-above", "6").exit_code == 0


@pytest.mark.parametrize("more", [[], ["-o", "json"]])
def test_lag_of_a_cluster_that_has_no_queue_is_said(more: list[str], do: Run) -> None:
    """What bit: a header, exit code 0; an alert on the wrong cluster was green for ever."""
    shown, alert = do("lag", *more), do("lag", "--fail-above", "1", *more)

    assert (shown.exit_code, alert.exit_code) == (0, 1)
    assert "not measured: there is no jobs.invoices, jobs.mails at localhost:9092; `streamjobs topic apply` makes" in alert.stderr
    assert shown.stderr == alert.stderr


@pytest.mark.usefixtures("provisioned")
def test_lag_of_one_queue_that_is_missing_fails_unless_another_exceeds(do: Run, broker: MemoryBroker) -> None:
    broker.admin().delete_topics(["jobs.mails"])
    publish(broker, 5)

    assert do("lag", "invoices", "--fail-above", "9").exit_code == 0
    assert do("lag", "--fail-above", "9").exit_code == 1
    assert do("lag", "--fail-above", "4").exit_code == 3


def test_lag_of_an_app_without_job_types_is_said(run: Run, shop: str, broker: MemoryBroker) -> None:
    result = run("lag", "--fail-above", "1", "-A", f"{shop}:spare")

    assert (result.exit_code, "app spare has no queue" in result.stderr) == (1, True)


def test_a_watch_that_never_ends_takes_no_threshold(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Bites*: a script waited for an exit code that was never to come."""
    monkeypatch.setattr(lag_cli, "_watch", lambda *_: None)

    result = do("lag", "--watch", "--fail-above", "1")

    assert result.exit_code == 2
    assert "--watch never ends" in result.stderr


def test_lag_of_an_unknown_queue(do: Run) -> None:
    result = do("lag", "invoice")

    assert result.exit_code == 2
    assert "did you mean 'invoices'?" in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_lag_watch_goes_on_until_it_is_interrupted(
    do: Run, broker: MemoryBroker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(4))
    collect = lag_cli.Collector.collect

    def look(self: Any, queues: Any) -> Any:
        if next(looks, None) is None:
            raise KeyboardInterrupt
        clock.advance(20)
        publish(broker, 30)
        return collect(self, queues)

    monkeypatch.setattr(lag_cli.Collector, "collect", look)

    result = do("lag", "invoices", "--watch", "--every", "100ms", "-o", "json")

    assert (result.exit_code, result.stderr.strip()) == (130, "interrupted")
    shown = [json.loads(line)[0] for line in result.stdout.splitlines()]
    assert [row["pending"] for row in shown] == [30, 60, 90, 120]
    assert [row["growth_per_s"] for row in shown] == [None, None, 1.5, 1.5]


@pytest.mark.usefixtures("provisioned")
def test_lag_watch_goes_on_while_a_broker_is_away(do: Run, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't pass by itself ends it."""
    looks = iter([None, broker_error("_TRANSPORT", "away"), None, broker_error("TOPIC_AUTHORIZATION_FAILED", "denied")])
    collect = lag_cli.Collector.collect

    def look(self: Any, queues: Any) -> Any:
        error = next(looks)
        if error is not None:
            raise error
        publish(broker, 1)
        return collect(self, queues)

    monkeypatch.setattr(lag_cli.Collector, "collect", look)

    result = do("lag", "invoices", "--watch", "--every", "100ms", "-o", "json")

    assert [json.loads(line)[0]["pending"] for line in result.stdout.splitlines()] == [1, 2]
    assert result.stderr.count("not measured: away") == 1
    assert (result.exit_code, "denied" in result.stderr) == (1, True)


def test_lag_watch_says_at_first_what_is_missing(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([lag_cli.Backlog((), {}, 0.0)] * 2)
    monkeypatch.setattr(lag_cli.Collector, "collect", lambda *_: next(looks, None) or interrupt())

    result = do("lag", "--watch", "--every", "100ms")

    assert result.exit_code == 130
    assert result.stderr.count("not measured: there is no jobs.invoices, jobs.mails at") == 1


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("every", ["0s", "99ms", "soon", "-1s", "99999999d"])
def test_lag_watch_refuses_an_interval_that_is_none(every: str, do: Run) -> None:
    result = do("lag", "--watch", f"--every={every}")

    assert (result.exit_code, "--every" in result.stderr) == (2, True)


def test_a_narrow_terminal_shows_what_matters() -> None:
    row = {"queue": "invoices", "group": "billing", "tier": "retry", "pending": 1_234_567, "growth_per_s": 12.5, "drain": "grows", "spark": "▁▂▃▄"}

    def titles(width: int) -> list[object]:
        return [column.header for column in lag_cli.watched([row], width).columns]

    assert titles(80) == ["QUEUE", "GROUP", "TIER", "PENDING", "OLDEST", "GROWTH", "DRAINED IN", "PENDING SO FAR"]
    assert titles(60) == ["QUEUE", "GROUP", "TIER", "PENDING", "OLDEST", "GROWTH"]
    assert len(titles(160)) == 11


def test_a_line_of_bars() -> None:
    assert lag_cli.spark([0, 1, None, 2, 4]) == "▁▃ ▅█"
    assert lag_cli.spark([0, 0]) == "▁▁"
    assert lag_cli.spark([]) == ""


# --- group --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("provisioned")
def test_group_list_and_show(do: Run, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 2)

    listed = {row["group"]: row for row in json.loads(do("group", "list", "-o", "json").stdout)}
    shown = {
        (row["topic"], row["partition"]): row
        for row in json.loads(do("group", "show", "shop", "-o", "json").stdout)
    }

    assert (listed["shop"]["state"], listed["shop"]["pending"]) == ("empty", 3)
    assert (shown[MAIN, 0]["committed"], shown[MAIN, 0]["pending"]) == (2, 3)
    assert shown[MAIN, 1]["committed"] is None


@pytest.mark.usefixtures("provisioned")
def test_group_show_tells_the_members_of_one_machine_apart(do: Run, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: `shop /127.0.0.1` for both."""
    workers = ["shop-3f2a91c07b64", "9bc0d4e1a2f3"]  # classic: the client's id comes first
    members = tuple(Member(id, "shop", "/127.0.0.1", None, (TopicPartition(MAIN, n),), None) for n, id in enumerate(workers))
    admin = type(broker.admin())
    monkeypatch.setattr(admin, "groups", lambda _, names: {"shop": Group("shop", "stable", "classic", members)})

    rows = json.loads(do("group", "show", "shop", "-o", "json").stdout)

    found = [(row["member"], row["member_id"], row["client_id"], row["host"]) for row in rows if row["topic"] == MAIN]
    assert found[:2] == [
        ("shop@127.0.0.1 (3f2a91c0)", "shop-3f2a91c07b64", "shop", "127.0.0.1"),
        ("shop@127.0.0.1 (9bc0d4e1)", "9bc0d4e1a2f3", "shop", "127.0.0.1"),
    ]
    assert found[2] == (None, None, None, None)
    lines = do("group", "show", "shop").stdout.splitlines()
    assert "MEMBER" not in lines[0] and lines[1].endswith("shop@127.0.0.1 (3f2a91c0)")


@pytest.mark.usefixtures("provisioned")
def test_group_show_of_an_unknown_group(do: Run) -> None:
    result = do("group", "show", "shopp")

    assert result.exit_code == 2
    assert "did you mean 'shop'?" in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_group_seek_plans_and_applies(do: Run, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 4)

    shown = do("group", "seek", "shop", MAIN, "--to", "earliest", "--partition", "0", "-o", "json")
    assert shown.exit_code == 3
    (row,) = json.loads(shown.stdout)
    assert (row["before"], row["to"], row["again"], row["skipped"]) == (4, 0, 4, 0)
    assert broker.admin().committed("shop")[P0].offset == 4

    assert do("group", "seek", "shop", MAIN, "--to", "earliest", "--partition", "0", "--apply").exit_code == 0
    assert broker.admin().committed("shop")[P0].offset == 0


@pytest.mark.usefixtures("provisioned")
def test_group_seek_to_where_it_stands_is_nothing_to_do(do: Run, broker: MemoryBroker) -> None:
    publish(broker, 5)
    commit(broker, 4)
    seek = ("group", "seek", "shop", MAIN, "--to", "earliest", "--apply")
    assert "8 partitions moved" in do(*seek).stderr

    result = do(*seek)

    assert (result.exit_code, result.stderr) == (0, "8 partitions left alone: shop stands there already\nnothing to do\n")


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize("number", ["8", "-1"])
def test_group_seek_of_a_partition_that_is_none(number: str, do: Run) -> None:
    result = do("group", "seek", "shop", MAIN, "--to", "earliest", "--partition", "0", "--partition", number)

    assert result.exit_code == 2
    assert f"there is no partition {number}: jobs.invoices has 0 to 7" in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_group_seek_in_a_topic_that_is_missing_fails(do: Run, broker: MemoryBroker) -> None:
    broker.admin().delete_topics([MAIN])

    result = do("group", "seek", "shop", "--to", "earliest", "--apply", "--yes")

    assert result.exit_code == 1
    assert f"topic {MAIN}, on which group shop is registered, is missing" in result.stderr


class Idle:
    """A member that begins where it is told to and does nothing."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Start]:
        return {tp: Start(0) for tp in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


@pytest.mark.usefixtures("provisioned")
def test_group_seek_says_who_carries_it_out(do: Run, broker: MemoryBroker) -> None:
    """The group lives, but its workers are those of another queue."""
    member = broker.consumer("shop")
    member.subscribe([MAIN], Idle())
    member.fetch(0, 0.0)
    seek = ("group", "seek", "shop", "--to", "earliest", "--apply")

    read, unread, both = do(*seek, MAIN), do(*seek, "jobs.mails"), do(*seek)

    assert read.stderr == "8 partitions ordered; the owners carry it out\n"
    note = "no member of shop reads jobs.mails now: the order waits for one that does, a day at most\n"
    assert unread.stderr == note + "8 partitions ordered; who reads them next carries it out\n"
    assert both.stderr == note + "16 partitions ordered; the owners carry it out\n"


def report_of(
    broker: MemoryBroker, worker: str, base: int, *, topic_id: bytes = b"", state: str = "reading"
) -> None:
    found = topic_id or broker.admin().topics([MAIN])[MAIN].id
    partition: reports.PartitionReport = {
        "topic": MAIN,
        "topic_id": found[:4],
        "partition": 0,
        "base": base,
        "unfinished": 0,
        "finished_beyond": 0,
        "state": state,
    }
    loops: list[reports.LoopReport] = [
        {"name": "main", "group": "shop", "turned_at": 0, "partitions": [partition]}
    ]
    report: reports.WorkerReport = {
        "worker": worker,
        "host": "h",
        "pid": 1,
        "slot": 0,
        "app": "shop",
        "group": "shop",
        "version": "",
        "python": "",
        "state": "running",
        "started_at": 0,
        "at": 0,
        "slots": 1,
        "control_offset": 0,
        "loops": loops,
        "running_count": 0,
        "running": [],
        "breakers": [],
        "alarms": [],
        "metrics": Snapshot({}, {}, {}),
    }
    tables.write_once(broker, [Record("streamjobs.workers", reports.encode(report), worker.encode())])


@pytest.mark.usefixtures("provisioned")
def test_group_seek_to_what_nobody_reported_fails_and_says_why(do: Run, broker: MemoryBroker) -> None:
    """As long as workers write no reports, it is no way out of a lost commit."""
    publish(broker, 9)

    for flags in ([], ["--apply"]):
        result = do("group", "seek", "shop", MAIN, "--to", "reported", *flags)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no worker has reported where shop stood" in result.stderr


@pytest.mark.usefixtures("provisioned")
def test_group_seek_to_what_was_reported(do: Run, broker: MemoryBroker, clock: ManualClock) -> None:
    """The newest report counts, of this very topic, and not that of an owner who does not know where to
    start."""
    publish(broker, 9)
    report_of(broker, "w1", 3)
    clock.advance(1)
    report_of(broker, "w2", 5)
    clock.advance(1)
    report_of(broker, "w3", 8, topic_id=b"else")
    report_of(broker, "w4", 0, state="lost_commit")
    tables.write_once(broker, [Record("streamjobs.workers", b"junk", b"w5")])

    result = do("group", "seek", "shop", MAIN, "--to", "reported", "--apply")

    assert result.exit_code == 0, result.stderr
    assert broker.admin().committed("shop") == {P0: broker.admin().committed("shop")[P0]}
    assert broker.admin().committed("shop")[P0].offset == 5
    assert "a worker report can't be read" in result.stderr
    assert "no report says where shop stood in jobs.invoices/1" in result.stderr


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("earliest", "earliest"),
        ("reported", "reported"),
        ("2h", 1_000_000.0 - 7200),
        ("1970-01-12T13:46:40Z", 1_000_000.0),
        ("1970-01-12T15:46:40+02:00", 1_000_000.0),
    ],
)
def test_places(text: str, place: object) -> None:
    assert group_cli.parse_place(text, 1_000_000.0) == place


def test_a_place_that_is_none() -> None:
    with pytest.raises(UsageError, match="an instant such as"):
        group_cli.parse_place("yesterday", 0.0)


@pytest.mark.usefixtures("provisioned")
def test_orders_are_written_in_the_users_name(do: Run, app: App, broker: MemoryBroker) -> None:
    do("group", "seek", "shop", MAIN, "--to", "latest", "--apply", "--reason", "not needed")

    entries = [json.loads(record.value() or b"") for record in broker.records("streamjobs.audit")]
    assert (entries[-1]["action"], entries[-1]["reason"]) == ("group seek", "not needed")
    assert entries[-1]["who"]
    assert orders.read(broker, app.names).orders() != []
