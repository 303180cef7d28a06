"""Plans of topics and registrations, on a broker in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from streamjobs import orders, provision, tables
from streamjobs.broker import Commit, Topic, TopicPartition
from streamjobs.core import control
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError, ProvisionError
from streamjobs.testing import MemoryBroker

AppOn = Callable[..., Any]
MAIN, RETRY, DLT = "jobs.invoices", "jobs.invoices.billing.retry", "jobs.invoices.billing.dlt"


def applied(app: Any, **options: Any) -> provision.Applied:
    from_ = options.pop("from_", "earliest")
    return provision.apply(app, provision.plan(app, from_=from_), **options)


def publish(broker: MemoryBroker, topic: str, count: int, partition: int = 0) -> None:
    tables.write_once(broker, [Record(topic, b"x", partition=partition) for _ in range(count)])


def starts(app: Any, group: str = "billing", topic: str = MAIN) -> dict[int, int]:
    found = orders.read(app.broker, app.names).registration(group, topic)
    assert found is not None
    return dict(found.starts)


def targets(found: provision.Plan, action: str) -> list[str]:
    return [change.target for change in found.changes if change.action == action]


# --- what is planned ----------------------------------------------------------------------------------------


def test_a_worker_provisions_the_embedded_broker_by_itself(app_on: AppOn, memory: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: "run: streamjobs topic apply", which would start another embedded broker, and end it."""
    monkeypatch.setattr(memory, "lacks", frozenset({"topic_admin", "topic_config"}), raising=False)

    assert provision.require(app_on(memory, "invoices")).done


def test_every_topic_gets_the_settings_that_keep_jobs(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 29
    app = app_on(memory, "invoices", max_message_bytes=100_000)
    applied(app)

    found = memory.admin().topics(config=True)
    kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    stamp = {"message.timestamp.type": "LogAppendTime"}
    assert found[MAIN].config == {**kept, **stamp, "max.message.bytes": "100000"}
    larger = {"max.message.bytes": str(100_000 + 65_536)}
    assert found[RETRY].config == {**kept, **stamp, **larger}
    assert found["streamjobs.billing.delay.5s"].config == {**kept, **stamp, **larger}
    assert found[DLT].config == {"cleanup.policy": "compact", **stamp, **larger}
    assert found["streamjobs.control"].config == {"cleanup.policy": "compact", **stamp}
    assert found["streamjobs.events"].config == {
        "cleanup.policy": "delete",
        "retention.ms": "604800000",
        **stamp,
    }
    assert found["streamjobs.audit"].config == {
        "cleanup.policy": "delete",
        "retention.ms": "7776000000",
        **stamp,
    }


def test_partition_counts(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", partitions=3))

    counts = {name: topic.partitions for name, topic in memory.admin().topics().items()}
    assert (counts[MAIN], counts[RETRY], counts[DLT]) == (3, 3, 3)
    assert counts["streamjobs.billing.delay.1m"] == 4
    assert counts["streamjobs.control"] == 1


def test_nothing_is_changed_by_a_second_apply(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices", "mails")
    applied(app)
    written = len(memory.records("streamjobs.control"))

    again = applied(app)

    assert again.done == [] and again.failed == []
    assert len(memory.records("streamjobs.control")) == written
    assert provision.check(app) == []


def test_three_replicas_and_two_in_sync_where_there_are_brokers_enough(app_on: AppOn) -> None:
    broker = MemoryBroker(brokers=5)
    applied(app_on(broker, "invoices"))

    topic = broker.admin().topics([MAIN], config=True)[MAIN]
    assert topic.replication == 3
    assert topic.config["min.insync.replicas"] == "2"
    assert provision.plan(app_on(broker, "invoices")).changes == ()


def test_only_settings_of_ours_are_compared(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices")
    applied(app)
    admin = memory.admin()
    admin.alter_topic_config(MAIN, {"retention.ms": "60000", "compression.type": "zstd"})

    found = provision.plan(app)

    assert [change.text() for change in found.changes] == ["retention.ms: 60000 → -1"]
    provision.apply(app, found)
    assert admin.topics([MAIN], config=True)[MAIN].config["compression.type"] == "zstd"
    assert provision.plan(app).changes == ()


def test_a_larger_message_size_and_another_finite_retention_are_left_alone(
    memory: MemoryBroker, app_on: AppOn
) -> None:
    """Two apps that share a queue would lower each other's size for ever; how long events are kept is the
    operator's."""
    app = app_on(memory, "invoices")
    applied(app)
    memory.admin().alter_topic_config(MAIN, {"max.message.bytes": "5000000"})
    memory.admin().alter_topic_config("streamjobs.events", {"retention.ms": "1000000"})
    assert provision.plan(app).changes == ()

    memory.admin().alter_topic_config("streamjobs.events", {"retention.ms": "-1"})
    assert targets(provision.plan(app), "alter") == ["streamjobs.events"]


def test_what_cannot_be_changed_is_found_and_left(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", partitions=4))

    found = provision.plan(app_on(memory, "invoices", partitions=2))

    assert {(item.kind, item.target) for item in found.findings} == {
        ("fewer_partitions", MAIN),
        ("fewer_partitions", RETRY),
        ("dlt_partitions", DLT),
    }
    assert found.changes == ()


def test_a_dead_letter_topic_never_grows(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 45
    """A letter's tombstone goes to the partition in which the letter was read; keys would move with the
    count."""
    applied(app_on(memory, "invoices", partitions=2))
    app = app_on(memory, "invoices", partitions=4)

    found = provision.plan(app)
    provision.apply(app, found, yes=True)

    assert [(item.kind, item.target) for item in found.findings] == [("dlt_partitions", DLT)]
    counts = {name: topic.partitions for name, topic in memory.admin().topics().items()}
    assert (counts[MAIN], counts[RETRY], counts[DLT]) == (4, 4, 2)


# --- registrations ------------------------------------------------------------------------------------------


def test_every_consumer_group_is_registered_on_what_it_reads(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices")
    applied(app)

    assert set(orders.read(memory, app.names).registrations()) == {
        ("billing", MAIN),
        ("billing.retry", RETRY),
        ("billing.timer", "streamjobs.billing.delay.5s"),
        ("billing.timer", "streamjobs.billing.delay.1m"),
    }
    assert orders.read(memory, app.names).ladder_of(MAIN) == "billing"


def test_registrations_are_acknowledged_before_a_partition_is_created(
    memory: MemoryBroker, app_on: AppOn
) -> None:
    """*Bites*: a worker of an older version meets the new topic, finds no start offset, and holds the
    partition."""
    app = app_on(memory, "invoices")
    admin = memory.admin()
    admin.create_topics([Topic("streamjobs.control", 1, 1, {"cleanup.policy": "compact"})])
    memory.fail("send", topic="streamjobs.control", error="NOT_ENOUGH_REPLICAS")

    with pytest.raises(BrokerError):
        applied(app)

    assert MAIN not in admin.topics()


def test_from_now_starts_behind_what_is_there(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices"))
    publish(memory, MAIN, 5)

    late = app_on(memory, "invoices", name="reports")
    applied(late, from_="now")

    assert starts(late, "reports") == {0: 5, 1: 0}


def test_from_now_means_the_moment_of_the_apply(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices"))
    late = app_on(memory, "invoices", name="reports")
    shown = provision.plan(late, from_="now")
    publish(memory, MAIN, 5)

    provision.apply(late, shown)

    assert starts(late, "reports") == {0: 5, 1: 0}


def test_earliest_is_a_number_and_the_logs_start(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices"))
    publish(memory, MAIN, 5)
    memory.admin().delete_records({TopicPartition(MAIN, 0): 3})

    late = app_on(memory, "invoices", name="reports")
    applied(late)

    assert starts(late, "reports") == {0: 3, 1: 0}


def test_only_main_topics_follow_from_now(memory: MemoryBroker, app_on: AppOn) -> None:
    """What lies in a group's retry topic are its own jobs, and nobody else will run them."""
    app = app_on(memory, "invoices")
    applied(app)
    publish(memory, RETRY, 5)
    memory.admin().delete_records({TopicPartition(RETRY, 0): 2})
    orders.write(memory, app.names, {control.registration_key("billing.retry", RETRY): None})

    applied(app, from_="now")

    assert starts(app, "billing.retry", RETRY) == {0: 2, 1: 0}


def test_a_registration_is_never_moved(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices")
    applied(app)
    publish(memory, MAIN, 5)

    assert provision.plan(app, from_="now").changes == ()


def test_partitions_that_are_added_start_at_zero(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 30
    """With "from now" a job that is published between the growth and the worker's start would be passed
    over."""
    applied(app_on(memory, "invoices", partitions=1))
    publish(memory, MAIN, 5)
    app = app_on(memory, "invoices", partitions=3)

    result = applied(app, from_="now", yes=True)

    assert memory.admin().topics()[MAIN].partitions == 3
    assert starts(app) == {0: 0, 1: 0, 2: 0}
    actions = [change.action for change in result.done]
    assert actions.index("register") < actions.index("grow")


def test_a_recreated_topic_starts_at_zero(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 31
    """Registered at "now" = 5, deleted, made again: offsets 0 to 4 of the new topic are new jobs."""
    applied(app_on(memory, "invoices"))
    publish(memory, MAIN, 5)
    app = app_on(memory, "invoices", name="reports")
    applied(app, from_="now")
    memory.admin().delete_topics([MAIN])

    found = provision.plan(app, from_="now")
    provision.apply(app, found)

    assert "reports on jobs.invoices" in targets(found, "register")
    assert starts(app, "reports") == {0: 0, 1: 0}


@pytest.mark.parametrize(
    ("registered", "begin", "ends", "expected"),
    [
        ({}, {}, {}, {0: 0, 1: 0}),
        ({}, {0: 7, 1: 9}, {}, {0: 7, 1: 9}),
        ({}, {0: 7}, {}, {0: 7, 1: 0}),
        ({0: 7, 1: 0}, {}, {0: 7, 1: 4}, {0: 7, 1: 0}),
        ({0: 7, 1: 2}, {}, {0: 6, 1: 4}, {0: 0, 1: 2}),
        ({0: 7, 1: 2}, {}, {}, {0: 0, 1: 0}),
    ],
)
def test_starting_offsets(
    registered: dict[int, int], begin: dict[int, int], ends: dict[int, int], expected: dict[int, int]
) -> None:
    assert provision.starting_offsets(2, registered, begin, ends) == expected


# --- what needs a yes ---------------------------------------------------------------------------------------


def test_more_partitions_are_refused_without_yes(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 30
    applied(app_on(memory, "invoices", partitions=2))
    app = app_on(memory, "invoices", partitions=4)
    found = provision.plan(app)

    result = provision.apply(app, found)

    assert [change.target for change in result.refused] == [MAIN, RETRY]
    assert "order by key is broken" in result.refused[0].warning
    assert memory.admin().topics()[MAIN].partitions == 2


def test_a_ladder_grows_without_asking(memory: MemoryBroker, app_on: AppOn) -> None:
    """The order in which waiting jobs stand in a tier means nothing."""
    app = app_on(memory, "invoices")
    memory.create("streamjobs.billing.delay.5s", partitions=1)

    result = applied(app)

    assert result.refused == []
    assert memory.admin().topics()["streamjobs.billing.delay.5s"].partitions == 4


def test_only_what_was_approved_is_done(memory: MemoryBroker, app_on: AppOn) -> None:
    """Between the plan and the yes somebody deletes another topic: that is not what was agreed to."""
    app = app_on(memory, "invoices")
    applied(app)
    memory.admin().alter_topic_config(MAIN, {"retention.ms": "1"})
    shown = provision.plan(app)
    memory.admin().delete_topics([DLT])

    provision.apply(app, shown)

    topics = memory.admin().topics(config=True)
    assert topics[MAIN].config["retention.ms"] == "-1"
    assert DLT not in topics


# --- tiers that left the settings ---------------------------------------------------------------------------


def test_an_empty_tier_that_left_the_settings_is_deleted(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", **{"delay.tiers": ["5s", "1m", "1h"]}))
    app = app_on(memory, "invoices")

    result = applied(app)

    assert [change.target for change in result.done] == ["streamjobs.billing.delay.1h"]
    assert "streamjobs.billing.delay.1h" not in memory.admin().topics()
    assert "streamjobs.billing.delay.1h" not in orders.read(memory, app.names).registered_topics()
    assert provision.plan(app).changes == ()


def test_a_tier_with_waiting_jobs_stays(memory: MemoryBroker, app_on: AppOn) -> None:
    tier = "streamjobs.billing.delay.1h"
    applied(app_on(memory, "invoices", **{"delay.tiers": ["5s", "1m", "1h"]}))
    publish(memory, tier, 3, partition=2)
    app = app_on(memory, "invoices")

    found = provision.plan(app)
    assert found.changes == () and [item.kind for item in found.findings] == ["tier_draining"]

    memory.admin().alter_committed("billing.timer", {TopicPartition(tier, 2): Commit(2)})
    assert provision.plan(app).changes == ()
    memory.admin().alter_committed("billing.timer", {TopicPartition(tier, 2): Commit(3)})
    assert targets(provision.plan(app), "delete") == [tier]


def test_a_job_that_enters_a_tier_after_the_plan_saves_it(memory: MemoryBroker, app_on: AppOn) -> None:
    tier = "streamjobs.billing.delay.1h"
    applied(app_on(memory, "invoices", **{"delay.tiers": ["5s", "1m", "1h"]}))
    app = app_on(memory, "invoices")
    shown = provision.plan(app)
    publish(memory, tier, 1)

    provision.apply(app, shown)

    assert tier in memory.admin().topics()


def test_a_job_that_enters_a_tier_during_the_apply_saves_it(
    memory: MemoryBroker, app_on: AppOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of the old settings still runs while another topic is being altered."""
    tier = "streamjobs.billing.delay.1h"
    applied(app_on(memory, "invoices", **{"delay.tiers": ["5s", "1m", "1h"]}))
    memory.admin().alter_topic_config(MAIN, {"retention.ms": "1"})
    app = app_on(memory, "invoices")
    shown = provision.plan(app)
    monkeypatch.setattr(type(memory.admin()), "alter_topic_config", lambda *_: publish(memory, tier, 1))

    result = provision.apply(app, shown)

    assert [(change.target, error.code) for change, error in result.failed] == [(tier, "TOPIC_NOT_EMPTY")]
    assert tier in orders.read(memory, app.names).registered_topics()


def test_tiers_of_other_apps_are_theirs(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", name="other", **{"delay.tiers": ["5s", "1m", "1h"]}))
    applied(app_on(memory, "invoices"))

    assert "streamjobs.other.delay.1h" in memory.admin().topics()
    assert provision.plan(app_on(memory, "invoices")).changes == ()


def test_a_control_topic_that_can_not_be_made_says_why(memory: MemoryBroker, app_on: AppOn) -> None:
    """More copies than brokers. What bit: that the topic is missing, and to run `topic plan`, which said to run `topic apply`."""
    with pytest.raises(BrokerError) as refused:
        applied(app_on(memory, "invoices", replication=99))

    assert refused.value.code == "INVALID_REPLICATION_FACTOR"
    assert memory.admin().topics() == {}


# --- what a worker asks -------------------------------------------------------------------------------------


def test_a_worker_is_told_what_is_missing_and_what_to_run(
    memory: MemoryBroker, app_on: AppOn
) -> None:  # edge 32
    app = app_on(memory, "invoices")

    with pytest.raises(ProvisionError) as refused:
        provision.require(app)

    assert "streamjobs topic apply" in str(refused.value)
    assert memory.admin().topics() == {}


@pytest.mark.parametrize(
    ("spoil", "message", "command"),
    [
        (lambda admin: admin.delete_topics([RETRY]), f"topic {RETRY} is missing", "streamjobs topic apply"),
        (lambda admin: admin.delete_topics([DLT]), f"topic {DLT} is missing", "streamjobs topic apply"),
        (
            lambda admin: admin.alter_topic_config(RETRY, {"retention.ms": "1"}),
            f"topic {RETRY} is configured wrongly: retention.ms: 1 → -1",
            "streamjobs topic apply",
        ),
        (
            lambda admin: admin.alter_topic_config(MAIN, {"retention.bytes": "1", "cleanup.policy": "compact"}),
            f"topic {MAIN} is configured wrongly: cleanup.policy: compact → delete, retention.bytes: 1 → -1",
            "streamjobs topic apply",
        ),
        (
            lambda admin: admin.alter_topic_config("streamjobs.billing.delay.1m", {"retention.ms": "1"}),
            "topic streamjobs.billing.delay.1m is configured wrongly: retention.ms: 1 → -1",
            "streamjobs topic apply",
        ),
        (
            lambda admin: admin.alter_topic_config(MAIN, {"message.timestamp.type": "CreateTime"}),
            f"topic {MAIN} is configured wrongly: message.timestamp.type: CreateTime → LogAppendTime",
            "streamjobs topic apply",
        ),
        (
            lambda admin: admin.add_partitions("streamjobs.control", 2),
            "streamjobs.control has 2 partitions: orders need exactly one",
            "streamjobs topic apply",
        ),
    ],
)
def test_what_a_worker_needs(  # edge 32
    memory: MemoryBroker, app_on: AppOn, spoil: Callable[[Any], None], message: str, command: str
) -> None:
    app = app_on(memory, "invoices")
    applied(app)
    spoil(memory.admin())

    (problem,) = provision.check(app)

    assert problem.message.startswith(message)
    assert problem.command == command
    with pytest.raises(ProvisionError):
        provision.require(app)


def test_a_worker_advises_no_command_that_changes_nothing(memory: MemoryBroker, app_on: AppOn) -> None:
    """What bit: "run: streamjobs topic apply --yes", which said "nothing to do", as often as it was run."""
    app = app_on(memory, "invoices")
    applied(app)
    memory.admin().add_partitions("streamjobs.control", 2)

    with pytest.raises(ProvisionError) as refused:
        provision.require(app)

    assert str(refused.value).splitlines()[1:] == [
        "  - streamjobs.control has 2 partitions: orders need exactly one; stop all workers, delete it, then apply",
        "when that is done, run: streamjobs topic apply",
    ]
    memory.admin().delete_topics(["streamjobs.control"])
    applied(app)
    provision.require(app)


def test_too_few_partitions_are_a_problem(memory: MemoryBroker, app_on: AppOn) -> None:  # edge 45
    applied(app_on(memory, "invoices", partitions=2))

    problems = provision.check(app_on(memory, "invoices", partitions=4))

    assert f"topic {MAIN} has 2 partitions, the settings say 4" in [problem.message for problem in problems]
    assert f"topic {RETRY} has 2 partitions, the settings say 4" in [problem.message for problem in problems]


def test_a_missing_registration_is_a_problem(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices")
    applied(app)
    orders.write(memory, app.names, {control.registration_key("billing", MAIN): None})

    (problem,) = provision.check(app)

    assert problem.message == f"group billing is not registered on {MAIN} with a start offset per partition"


def test_auto_applies_and_then_the_worker_starts(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices", provision="auto")

    assert provision.require(app).done
    assert provision.require(app).done == []


def test_auto_breaks_no_order(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", partitions=2))

    with pytest.raises(ProvisionError, match="streamjobs topic apply --yes"):
        provision.require(app_on(memory, "invoices", partitions=4, provision="auto"))
    assert memory.admin().topics()[MAIN].partitions == 2


def test_an_old_tier_keeps_no_worker_from_starting(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices", **{"delay.tiers": ["5s", "1m", "1h"]}))

    assert provision.check(app_on(memory, "invoices")) == []


# --- what else an apply does --------------------------------------------------------------------------------


def test_another_group_has_topics_and_registrations_of_its_own(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices"))
    app = app_on(memory, "invoices", **{"worker.group": "night"})
    applied(app)

    pairs = orders.read(memory, app.names).registrations()
    assert {("night", MAIN), ("night.retry", "jobs.invoices.night.retry"), ("billing", MAIN)} <= set(pairs)
    assert "jobs.invoices.night.dlt" in memory.admin().topics()


def test_groups_get_a_short_session(memory: MemoryBroker, app_on: AppOn) -> None:
    found = provision.plan(app_on(memory, "invoices", **{"worker.session_timeout": "7s"}))

    assert found.group_settings["billing.retry"] == {
        "consumer.heartbeat.interval.ms": "1000",
        "consumer.session.timeout.ms": "7000",
    }
    assert set(found.group_settings) == {"billing", "billing.retry", "billing.timer"}


def test_a_cluster_that_refuses_group_settings_is_noted(
    memory: MemoryBroker, app_on: AppOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, group: str, config: dict[str, str]) -> None:
        if "consumer.session.timeout.ms" in config:
            raise BrokerError("INVALID_CONFIG", "must be at least 45000")

    monkeypatch.setattr(type(memory.admin()), "set_group_config", refuse)

    result = applied(app_on(memory, "invoices"))

    assert result.failed == []
    assert len(result.notes) == 1 and "consumer.session.timeout.ms=10000" in result.notes[0]


def test_an_apply_is_audited(memory: MemoryBroker, app_on: AppOn) -> None:
    applied(app_on(memory, "invoices"), reason="first deploy")

    (record,) = memory.records("streamjobs.audit")
    entry = json.loads(record.value() or b"")
    assert entry["action"] == "topic apply" and entry["result"] == "ok" and entry["reason"] == "first deploy"
    assert f"create {MAIN}" in entry["target"] and entry["count"] > 5 and entry["who"]


def test_two_who_apply_at_once_both_succeed(
    memory: MemoryBroker, app_on: AppOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one creates the topics between this one's plan and its request."""
    app = app_on(memory, "invoices")
    admin = type(memory.admin())
    create = admin.create_topics

    def late(self: Any, topics: Any) -> Any:
        create(self, topics)
        return create(self, topics)

    monkeypatch.setattr(admin, "create_topics", late)

    assert applied(app).failed == []


def test_on_the_embedded_broker_topics_appear_and_groups_are_registered(
    embedded: Any, app_on: AppOn, prefix: str
) -> None:
    app = app_on(embedded, "invoices", name=f"app-{prefix[-12:]}", system_prefix=f"s.{prefix[-12:]}")

    result = applied(app)

    assert result.failed == [] and result.notes == []
    assert starts(app, app.name) == {0: 0, 1: 0}
    assert provision.check(app) == [] and provision.plan(app).changes == ()


def test_what_is_listed(memory: MemoryBroker, app_on: AppOn) -> None:
    app = app_on(memory, "invoices")
    applied(app)
    publish(memory, MAIN, 3)
    memory.admin().delete_topics([DLT])
    memory.admin().alter_topic_config(RETRY, {"retention.ms": "1"})

    found = {item.topic.name: item for item in provision.listed(app)}

    assert (found[MAIN].records, found[MAIN].groups, found[MAIN].state) == (3, ("billing",), "ok")
    assert (found[DLT].topic.partitions, found[DLT].state) == (0, f"topic {DLT} is missing")
    assert "retention.ms" in found[RETRY].state
