"""`streamjobs doctor`: each check, well and not well."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from streamjobs import provision, tables
from streamjobs.app import App
from streamjobs.broker import Admin, Broker, Cluster
from streamjobs.cli import doctor
from streamjobs.cli.session import Session
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.testing import MemoryBroker
from streamjobs.testing.admin import MemoryAdmin

Run = Callable[..., Result]


@pytest.fixture
def broker(app: App) -> MemoryBroker:
    broker = MemoryBroker()
    app._broker = broker
    return broker


@pytest.fixture
def examined(shop: str, app: App, broker: MemoryBroker) -> Callable[[], dict[str, doctor.Check]]:
    """The checks of the shop by name (of several with one name: the last)."""

    def examine() -> dict[str, doctor.Check]:
        session = Session()
        session.app_ref = f"{shop}:app"
        return {check.check: check for check in doctor.examine(session)}

    return examine


Examined = Callable[[], dict[str, doctor.Check]]


def statuses(checks: dict[str, doctor.Check]) -> dict[str, str]:
    return {name: check.status for name, check in checks.items()}


def provisioned(app: App) -> None:
    provision.apply(app, provision.plan(app))


def seen_as(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """The cluster answers as it does, but for these."""
    real = MemoryAdmin.cluster
    monkeypatch.setattr(MemoryAdmin, "cluster", lambda admin: replace(real(admin), **changes))


def test_all_is_well(app: App, examined: Examined) -> None:
    provisioned(app)

    checks = examined()

    assert list(checks) == ["settings", "job types", "broker", "version", "topics", "group protocol", "clock"]
    assert set(statuses(checks).values()) == {"ok"}, checks
    assert checks["job types"].found == "2 job types in 2 queues, each with a schema"


def test_it_prints_json_and_fails_when_something_fails(run: Run, shop: str, broker: MemoryBroker) -> None:
    result = run("doctor", "-A", f"{shop}:app", "-o", "json")

    checks = json.loads(result.stdout)
    assert result.exit_code == 1
    assert result.stderr == "1 check failed\n"
    assert {tuple(check) for check in checks} == {("status", "check", "found", "advice")}
    [topics] = [check for check in checks if check["check"] == "topics"]
    assert topics["status"] == "fail"
    assert topics["advice"] == f"run `streamjobs topic apply -A {shop}:app`"


def test_people_see_each_check_with_what_to_do(run: Run, shop: str, broker: MemoryBroker) -> None:
    lines = run("doctor", "-A", f"{shop}:app").stdout.splitlines()

    assert lines[0].split()[:2] == ["ok", "settings"]
    place = next(i for i, line in enumerate(lines) if line.startswith("fail  topics"))
    assert lines[place + 1].strip() == f"→ run `streamjobs topic apply -A {shop}:app`"


def test_without_a_topic_to_write_to_clocks_are_not_compared(examined: Examined) -> None:
    """A record for a topic that does not exist takes 5 s to fail."""
    assert "clock" not in examined()


def test_it_says_what_to_do_wherever_something_is_wrong(examined: Examined) -> None:
    assert all(check.advice for check in examined().values() if check.status != "ok")


def test_wrong_settings_end_it(shop: str, directory: Path, run: Run) -> None:
    (directory / "streamjobs.toml").write_text("partitoins = 1\n")

    [check] = json.loads(run("doctor", "-A", f"{shop}:app", "-o", "json").stdout)

    assert check["status"] == "fail"
    assert "did you mean partitions" in check["found"]


def test_an_app_that_can_not_be_loaded_fails(run: Run) -> None:
    result = run("doctor", "-A", "nowhere:app", "-o", "json")

    assert result.exit_code == 1
    assert "no module named 'nowhere'" in json.loads(result.stdout)[0]["found"]


def test_a_job_type_without_a_schema_fails(app: App, examined: Examined) -> None:
    @app.job
    def broken(connection: Any, *rest: object) -> None: ...

    check = examined()["job types"]

    assert check.status == "fail"
    assert "broken" in check.advice


@pytest.mark.parametrize(("installed", "status"), [(False, "fail"), (True, "warn")])
def test_a_registry_that_can_not_be_asked_is_told(
    app: App, examined: Examined, monkeypatch: pytest.MonkeyPatch, installed: bool, status: str
) -> None:
    """What bit: its client was not installed, no worker started, and the doctor found nothing wrong."""
    if installed:
        pytest.importorskip("confluent_kafka.schema_registry", exc_type=ImportError, reason="the extra `registry` is not installed")
    else:
        monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    assert "schema registry" not in examined()
    app._settings = None
    app.configure({"schemas.registry": "http://127.0.0.1:1"})

    assert examined()["schema registry"].status == status


def test_a_client_that_can_not_be_made_is_no_silent_broker(monkeypatch: pytest.MonkeyPatch, broker: MemoryBroker, examined: Examined) -> None:
    def refused(_: Admin) -> Cluster:
        raise BrokerError("_INVALID_ARG", "sasl.username and sasl.password must be set")

    monkeypatch.setattr(MemoryAdmin, "cluster", refused)

    check = examined()["broker"]

    assert check.status == "fail"
    assert check.found.startswith("localhost:9092: sasl.username and sasl.password must be set")
    assert "is it running" not in check.advice


def test_a_broker_that_does_not_answer_ends_it(broker: MemoryBroker, examined: Examined) -> None:
    broker.down()

    checks = examined()

    assert statuses(checks) == {"settings": "ok", "job types": "ok", "broker": "fail"}
    assert checks["broker"].found.startswith("localhost:9092 does not answer: ")


def test_the_embedded_broker_says_what_it_lacks(
    broker: MemoryBroker, examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "lacks", frozenset({"transactions"}), raising=False)

    check = examined()["version"]

    assert (check.status, check.found) == ("warn", "the embedded broker, which lacks transactions")


def test_what_workers_apply_themselves_is_nobody_s_task(app: App, examined: Examined) -> None:
    app.configure({"provision": "auto"})

    check = examined()["topics"]

    assert (check.status, check.advice) == ("ok", "")
    assert check.found.endswith("changes pending, which a worker applies when it starts")


def test_nobody_is_sent_to_apply_topics_to_an_embedded_broker(
    broker: MemoryBroker, examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be another one, gone with the command."""
    monkeypatch.setattr(broker, "lacks", frozenset({"topic_admin", "topic_config"}), raising=False)

    assert not [check for check in examined().values() if "topic apply" in check.advice]


def test_a_topic_that_does_not_fit_fails_with_the_command(app: App, broker: MemoryBroker, examined: Examined) -> None:
    provisioned(app)
    broker.admin().alter_topic_config("jobs.mails", {"retention.ms": "1000"})

    check = examined()["topics"]

    assert check.status == "fail"
    assert check.found == "1 change pending: alter jobs.mails"


def test_what_apply_leaves_alone_is_told_by_how_much_it_hurts() -> None:
    findings = (provision.Finding("a", "t", "stops workers", blocks=True), provision.Finding("b", "t", "is odd"))

    checks = list(doctor._topics(provision.Plan((), findings, {}, "earliest"), "", by_workers=False))

    assert [(check.status, check.found) for check in checks] == [("fail", "stops workers"), ("warn", "is odd")]


# --- group protocol ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "protocols", "status", "says"),
    [
        ("auto", {"consumer", "classic"}, "ok", "consumer (KIP-848), as the cluster speaks it"),
        ("auto", {"classic"}, "ok", "classic, as the cluster speaks no other"),
        ("classic", {"consumer", "classic"}, "ok", "classic, as worker.protocol says"),
        ("consumer", {"classic"}, "fail", "the cluster does not speak it"),
    ],
)
def test_which_protocol_is_used_and_why(
    setting: str, protocols: set[str], status: str, says: str, app: App, examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioned(app)
    app._settings = None
    app.configure({"worker.protocol": setting})
    seen_as(monkeypatch, protocols=frozenset(protocols))

    check = examined()["group protocol"]

    assert check.status == status
    assert says in check.found


def test_before_topic_apply_the_cluster_s_own_timeout_holds(shop: str, examined: Examined) -> None:
    check = examined()["group protocol"]

    assert (check.status, check.advice) == ("warn", f"run `streamjobs topic apply -A {shop}:app`: it sets the timeout")
    assert check.found.endswith("a dead one is replaced after 45s")


def test_a_topic_that_was_changed_since_says_nothing_of_the_timeout(app: App, broker: MemoryBroker, examined: Examined) -> None:
    provisioned(app)
    broker.admin().alter_topic_config("jobs.mails", {"retention.ms": "1000"})

    check = examined()["group protocol"]

    assert (check.status, check.found.rpartition(" ")[2]) == ("ok", "10s")


def test_a_cluster_that_refuses_a_short_session_leaves_a_choice(
    app: App, examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: 45 s is the least that a broker with default settings takes, and a takeover took 49.9 s."""
    provisioned(app)

    def refuse(admin: Admin, group: str, config: dict[str, str]) -> None:
        raise BrokerError("INVALID_CONFIG", "consumer.session.timeout.ms must be at least 45000")

    monkeypatch.setattr(MemoryAdmin, "set_group_config", refuse)

    check = examined()["group protocol"]

    assert check.status == "warn"
    assert "replaced after 45s, since the cluster refuses less" in check.found
    assert 'worker.protocol = "classic"' in check.advice


# --- clock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("appended", "status", "says"),
    [
        (100.5, "ok", "the same as the broker's"),
        (100.0, "ok", "the same as the broker's"),
        (101.4, "ok", "this machine is 400ms behind the broker"),
        (103.0, "warn", "this machine is 2s behind the broker"),
        (97.0, "warn", "this machine is 3s ahead of the broker"),
        (4000.0, "fail", "this machine is 1h 4m behind the broker"),
    ],
)
def test_clocks_are_compared_less_the_time_it_took(appended: float, status: str, says: str) -> None:
    check = doctor._judged(appended, sent=100.0, acked=101.0)

    assert (check.status, check.found) == (status, says)


def test_the_broker_s_clock_is_its_append_time(app: App, broker: MemoryBroker, examined: Examined) -> None:
    provisioned(app)

    check = examined()["clock"]

    assert check.status == "ok"
    [tombstone] = broker.records("streamjobs.workers")
    assert (tombstone.key(), tombstone.value()) == (b"doctor", None)


def test_a_clock_that_can_not_be_compared_is_a_warning(app: App, broker: MemoryBroker, examined: Examined) -> None:
    provisioned(app)
    broker.fail("send", topic="streamjobs.workers", error="TOPIC_AUTHORIZATION_FAILED")

    check = examined()["clock"]

    assert check.status == "warn"
    assert "TOPIC_AUTHORIZATION_FAILED" in check.found


def test_a_client_s_own_time_says_nothing_of_the_broker_s(app: App) -> None:
    """A topic that somebody else made may keep the time of its writers."""
    broker = MemoryBroker()
    broker.create("t", message_timestamp_type="CreateTime")
    tables.write_once(broker, [Record("t", b"")])
    [message] = broker.records("t")

    check = doctor._compared(app, [(None, message)], sent=1.0, acked=2.0)

    assert (check.status, check.found) == ("ok", "not compared: this broker stamps records with the client's clock")


def test_the_embedded_broker_has_no_clock_that_could_be_wrong(app: App, embedded: Broker) -> None:
    """What bit: it says of any record that it was appended 1.234 s after the epoch. This machine was 56 years ahead, exit code 1."""
    app._broker = embedded

    check = doctor._clock(app)

    assert (check.status, check.found.partition(":")[0]) == ("ok", "not compared")


def test_a_slow_broker_is_a_warning(app: App) -> None:
    cluster = Cluster("c", ("a:9092",), frozenset({"consumer"}), "4.4")

    assert doctor._reached(app, cluster, 0.9).status == "warn"
    assert doctor._reached(app, cluster, 0.1).status == "ok"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_left_out_where_nobody_wants_them(no_color: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("click._compat.should_strip_ansi", lambda *_: False)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)

    doctor._print(doctor.Check("topics", "fail", "one is missing"))

    assert ("\x1b" not in capsys.readouterr().out) == bool(no_color)
