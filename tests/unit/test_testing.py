import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamjobs.broker import Commit, Start, Topic, TopicPartition
from streamjobs.core.partitioner import partition_of
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.testing import ManualClock, MemoryBroker

P0, P1, P2, P3 = (TopicPartition("jobs.a", partition) for partition in range(4))


class Owner:
    """A listener that starts where the group's commit is, and remembers what it was told."""

    def __init__(self, consumer, fetch=True):
        self.consumer, self.fetch = consumer, fetch
        self.owned, self.told, self.on_revoke = set(), [], lambda partitions: None

    def assigned(self, partitions):
        self.told.append(("assigned", list(partitions)))
        self.owned |= set(partitions)
        commits = self.consumer.committed(partitions)
        return {tp: Start(commit.offset if commit else 0, self.fetch) for tp, commit in commits.items()}

    def revoked(self, partitions):
        self.told.append(("revoked", list(partitions)))
        self.on_revoke(partitions)
        self.owned -= set(partitions)

    def lost(self, partitions):
        self.told.append(("lost", list(partitions)))
        self.owned -= set(partitions)


class Acks(list):
    """Acknowledgements in the order in which they came: the error's code or None, and the offset."""

    def __call__(self, error, message):
        self.append((error.code if error else None, message.offset()))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def broker(clock):
    broker = MemoryBroker(clock)
    broker.create("jobs.a", partitions=4)
    return broker


@pytest.fixture
def admin(broker):
    return broker.admin()


def member(broker, group="g", topics=("jobs.a",), **options):
    consumer = broker.consumer(group, **options)
    owner = Owner(consumer)
    consumer.subscribe(topics, owner)
    return consumer, owner


def reader(broker, *partitions, start=0, isolation="read_committed"):
    consumer = broker.consumer(None, isolation=isolation)
    consumer.assign(dict.fromkeys(partitions, start))
    return consumer


def fill(broker, *values, partition=0, key=None, topic="jobs.a"):
    producer, acks = broker.producer(), Acks()
    for value in values:
        producer.send(Record(topic, value, key, partition=partition), acks)
    assert producer.flush(1) == 0
    return acks


def values(messages):
    return [message.value() for message in messages]


def codes(faults):
    return [(where, error.code) for where, error in faults]


def settle(*consumers):
    """Lets every member fetch until none is told anything new."""
    for _ in range(2 * len(consumers) + 1):
        for consumer in consumers:
            consumer.fetch(0, 0)


def refused(call, *arguments, **options):
    with pytest.raises(BrokerError) as refusal:
        call(*arguments, **options)
    return refusal.value


class TestManualClock:
    def test_time_passes_only_when_told(self):
        clock = ManualClock(now=100.0)

        clock.advance(2.5)

        assert (clock.now(), clock.monotonic()) == (102.5, 2.5)

    def test_a_jump_of_the_wall_clock_is_no_time(self):
        clock = ManualClock(now=100.0)

        clock.jump(-50)

        assert (clock.now(), clock.monotonic()) == (50.0, 0.0)

    def test_time_does_not_go_backwards(self):
        with pytest.raises(ValueError, match="jump"):
            ManualClock().advance(-1)


class TestSending:
    def test_a_record_is_read_as_it_was_sent_with_the_append_time(self, broker, clock):
        broker.producer().send(Record("jobs.a", b"v", b"k", [("ce_type", b"x")], partition=2))

        (message,) = reader(broker, P2).fetch(10, 0)

        assert (message.topic(), message.partition(), message.offset()) == ("jobs.a", 2, 0)
        assert (message.key(), message.value(), message.headers()) == (b"k", b"v", [("ce_type", b"x")])
        assert message.timestamp() == (2, round(clock.now() * 1000))

    def test_a_topic_may_keep_the_clients_time(self, broker):
        broker.create("t", message_timestamp_type="CreateTime")
        fill(broker, b"v", topic="t")

        assert broker.records("t")[0].timestamp()[0] == 1

    def test_a_keyed_record_goes_where_java_puts_it(self, broker):
        keys = [b"%d" % number for number in range(200)]
        for key in keys:
            fill(broker, b"v", key=key, partition=-1)

        assert {m.key(): m.partition() for m in broker.records("jobs.a")} == {
            key: partition_of(key, 4) for key in keys
        }

    def test_keyless_records_reach_all_partitions_and_a_seed_decides_where_they_begin(self):
        def places(seed):
            broker = MemoryBroker(ManualClock(), seed=seed)
            broker.create("jobs.a", partitions=4)
            producer, partitions = broker.producer(), []
            for _ in range(4):
                producer.send(
                    Record("jobs.a", b"v"), lambda _, message: partitions.append(message.partition())
                )
            producer.flush(0)
            return partitions

        assert sorted(places(1)) == [0, 1, 2, 3]
        assert places(1) == places(1)
        assert len({tuple(places(seed)) for seed in range(20)}) == 4

    def test_acknowledgements_wait_for_poll(self, broker):
        producer, acks = broker.producer(), Acks()
        producer.send(Record("jobs.a", b"v", partition=0), acks)
        assert acks == []

        assert (producer.poll(), acks, producer.poll()) == (1, [(None, 0)], 0)

    @pytest.mark.parametrize(
        ("topic", "record", "code"),
        [
            ("t", {"topic": "missing"}, "UNKNOWN_TOPIC_OR_PART"),
            ("t", {"topic": "t", "partition": 1}, "_UNKNOWN_PARTITION"),
            ("t", {"topic": "t", "value": bytes(1000)}, "MSG_SIZE_TOO_LARGE"),
            ("t", {"topic": "t", "headers": [("h", bytes(100))] * 10}, "MSG_SIZE_TOO_LARGE"),
            ("table", {"topic": "table", "key": None}, "INVALID_RECORD"),
        ],
    )
    def test_what_a_topic_does_not_take_fails_in_the_acknowledgement(self, broker, topic, record, code):
        broker.create("t", max_message_bytes="1000")
        broker.create("table", cleanup_policy="compact")
        producer, acks = broker.producer(), Acks()

        producer.send(Record(**{"value": b"v", **record}), acks)

        assert (producer.flush(0), acks) == (0, [(code, -1001)])
        assert broker.records(topic) == []

    def test_a_record_above_the_clients_limit_is_refused_at_once(self):
        broker = MemoryBroker(ManualClock(), max_message_bytes=1000)

        assert refused(broker.producer().send, Record("t", bytes(67_000))).code == "MSG_SIZE_TOO_LARGE"

    def test_a_full_queue_takes_records_again_after_poll(self, clock):
        broker = MemoryBroker(clock, queue_limit=2)
        broker.create("jobs.a")
        producer, record = broker.producer(), Record("jobs.a", b"v")
        producer.send(record)
        producer.send(record)

        error = refused(producer.send, record)
        assert (error.code, error.retriable) == ("_QUEUE_FULL", True)

        producer.poll()
        producer.send(record)
        assert len(broker.records("jobs.a")) == 3

    def test_records_of_an_unreachable_broker_are_delivered_when_it_is_back(self, broker):
        producer, acks = broker.producer(), Acks()
        broker.down()
        producer.send(Record("jobs.a", b"1", partition=0), acks)
        producer.send(Record("jobs.a", b"2", partition=0), acks)
        assert (producer.flush(5), acks) == (2, [])

        broker.up()

        assert values(broker.records("jobs.a")) == [b"1", b"2"]
        assert (producer.poll(), acks) == (2, [(None, 0), (None, 1)])

    def test_a_record_that_waited_for_too_long_fails_and_is_never_stored(self, broker, clock):
        producer, acks = broker.producer(), Acks()
        broker.down()
        producer.send(Record("jobs.a", b"v", partition=0), acks)
        clock.advance(8.9)
        assert producer.poll() == 0

        clock.advance(0.1)
        broker.up()

        assert (producer.poll(), acks) == (1, [("_MSG_TIMED_OUT", -1001)])
        assert broker.records("jobs.a") == []

    def test_one_topic_can_be_out_of_reach_alone(self, broker):
        broker.create("jobs.b")
        producer, acks = broker.producer(), Acks()
        broker.down("jobs.b")
        producer.send(Record("jobs.b", b"v", partition=0), acks)
        producer.send(Record("jobs.a", b"v", partition=0), acks)
        assert (producer.poll(), values(broker.records("jobs.a"))) == (1, [b"v"])

        broker.up("jobs.b")

        assert (producer.flush(0), values(broker.records("jobs.b"))) == (0, [b"v"])

    def test_an_injected_fault_hits_so_often_and_only_its_topic(self, broker):
        broker.create("jobs.b")
        fault = broker.fail("send", topic="jobs.a", error="NOT_ENOUGH_REPLICAS", times=2)

        assert fill(broker, b"v", topic="jobs.b") == [(None, 0)]
        assert fill(broker, b"1", b"2", b"3") == [("NOT_ENOUGH_REPLICAS", -1001)] * 2 + [(None, 0)]
        assert (fault.hits, values(broker.records("jobs.a"))) == (2, [b"3"])

    def test_a_fault_without_end_ends_when_it_is_lifted(self, broker):
        fault = broker.fail("send", error="_TRANSPORT", times=None)
        assert [code for code, _ in fill(broker, *[b"v"] * 5)] == ["_TRANSPORT"] * 5

        fault.lift()

        assert fill(broker, b"v") == [(None, 0)]

    def test_a_lost_answer_leaves_the_record_stored(self, broker):
        broker.fail("send", error="_MSG_TIMED_OUT", applied=True)

        assert fill(broker, b"v") == [("_MSG_TIMED_OUT", 0)]
        assert values(broker.records("jobs.a")) == [b"v"]

    def test_a_fatal_error_makes_the_producer_unusable_and_no_other(self, broker):
        producer, acks = broker.producer(), Acks()
        broker.fail("send", error=BrokerError("OUT_OF_ORDER_SEQUENCE_NUMBER", "", fatal=True))
        producer.send(Record("jobs.a", b"1", partition=0), acks)
        producer.poll()

        assert producer.fatal().code == "OUT_OF_ORDER_SEQUENCE_NUMBER"
        assert refused(producer.send, Record("jobs.a", b"2")).fatal
        assert fill(broker, b"3") == [(None, 0)]

    def test_a_fatal_error_takes_the_waiting_records_with_it(self, broker):
        broker.create("jobs.b")
        broker.down("jobs.b")
        producer, acks = broker.producer(), Acks()
        producer.send(Record("jobs.b", b"waiting", partition=0), acks)
        broker.fail("send", topic="jobs.a", error="_FENCED")
        producer.send(Record("jobs.a", b"fatal", partition=0))

        assert (producer.flush(0), acks) == (0, [("_FENCED", -1001)])

    def test_an_acknowledgement_that_raises_is_logged_and_harms_no_other(self, broker, caplog):
        producer, acks = broker.producer(), Acks()
        producer.send(Record("jobs.a", b"1", partition=0), lambda error, message: {}["bug"])
        producer.send(Record("jobs.a", b"2", partition=0), acks)

        assert (producer.poll(), acks) == (2, [(None, 1)])
        assert "an acknowledgement callback failed" in caplog.text

    def test_a_killed_producer_delivers_nothing_more(self, broker, clock):
        producer, acks = broker.producer(), Acks()
        broker.kill(producer)
        producer.send(Record("jobs.a", b"v", partition=0), acks)
        broker.down()
        broker.up()
        clock.advance(9)

        producer.poll()

        assert (acks, broker.records("jobs.a")) == ([("_MSG_TIMED_OUT", -1001)], [])


class TestReading:
    def test_fetch_takes_at_most_limit_and_goes_on_there(self, broker):
        fill(broker, b"0", b"1", b"2")
        consumer = reader(broker, P0)

        assert [values(consumer.fetch(2, 0)) for _ in range(3)] == [[b"0", b"1"], [b"2"], []]

    def test_a_full_partition_does_not_starve_the_others(self, broker):
        fill(broker, *[b"a"] * 10)
        fill(broker, b"b", partition=1)
        consumer = reader(broker, P0, P1)

        assert values(consumer.fetch(4, 0) + consumer.fetch(4, 0)).count(b"b") == 1

    def test_a_paused_partition_gives_nothing_until_it_is_resumed(self, broker):
        fill(broker, b"v")
        consumer = reader(broker, P0)
        consumer.pause([P0])
        assert consumer.fetch(10, 0) == []

        consumer.resume([P0])

        assert values(consumer.fetch(10, 0)) == [b"v"]

    def test_seek_goes_back(self, broker):
        fill(broker, b"0", b"1")
        consumer = reader(broker, P0)
        consumer.fetch(10, 0)

        consumer.seek(P0, 1)

        assert values(consumer.fetch(10, 0)) == [b"1"]
        assert refused(consumer.seek, P1, 0).code == "_STATE"

    def test_an_offset_that_the_log_no_longer_has_is_one_fault_and_then_silence(self, broker, admin):
        fill(broker, *[b"v"] * 10)
        admin.delete_records({P0: 5})
        consumer = reader(broker, P0, P1)

        assert (consumer.fetch(10, 0), codes(consumer.faults())) == ([], [(P0, "_AUTO_OFFSET_RESET")])
        assert (consumer.fetch(10, 0), consumer.faults()) == ([], [])

        consumer.seek(P0, 5)
        assert len(consumer.fetch(10, 0)) == 5

    def test_an_offset_beyond_the_end_is_out_of_range_too(self, broker):
        consumer = reader(broker, P0, start=1)

        consumer.fetch(10, 0)

        assert codes(consumer.faults()) == [(P0, "_AUTO_OFFSET_RESET")]

    def test_bounds_and_positions(self, broker, admin):
        fill(broker, *[b"v"] * 10)
        admin.delete_records({P0: 3})
        consumer = reader(broker, P0, start=3)
        consumer.fetch(2, 0)

        assert (consumer.log_bounds(P0), consumer.positions([P0])[P0]) == ((3, 10), 5)
        assert refused(consumer.log_bounds, TopicPartition("jobs.a", 9)).code == "UNKNOWN_TOPIC_OR_PART"

    def test_a_deleted_topic_is_one_fault_for_a_reader(self, broker, admin):
        consumer = reader(broker, P0)
        admin.delete_topics(["jobs.a"])

        consumer.fetch(10, 0)
        consumer.fetch(10, 0)

        assert codes(consumer.faults()) == [(P0, "UNKNOWN_TOPIC_OR_PART")]

    def test_a_reader_does_not_go_on_in_a_topic_of_the_same_name(self, broker, admin):
        consumer = reader(broker, P0)
        admin.delete_topics(["jobs.a"])
        broker.create("jobs.a")
        fill(broker, b"new")

        assert consumer.fetch(10, 0) == []

    def test_a_broker_that_is_down_gives_nothing_and_no_error(self, broker):
        fill(broker, b"v")
        consumer = reader(broker, P0)
        broker.down()
        assert (consumer.fetch(10, 1), consumer.faults()) == ([], [])
        assert refused(consumer.log_bounds, P0).code == "_TIMED_OUT"

        broker.up()

        assert values(consumer.fetch(10, 0)) == [b"v"]

    def test_injected_faults_are_in_faults_and_lose_nothing(self, broker):
        fill(broker, b"v")
        consumer = reader(broker, P0)
        broker.fail("fetch", topic="jobs.a", error="TOPIC_AUTHORIZATION_FAILED")
        broker.fail("fetch", error="_ALL_BROKERS_DOWN")

        assert [values(consumer.fetch(10, 0)) for _ in range(3)] == [[], [], [b"v"]]
        assert codes(consumer.faults()) == [(None, "_ALL_BROKERS_DOWN"), (P0, "TOPIC_AUTHORIZATION_FAILED")]

    def test_two_threads_at_once_are_told_so(self, broker):
        consumer, owner = member(broker)
        errors = []

        def intrude(_):
            try:
                consumer.pause([P0])
            except RuntimeError as error:
                errors.append(str(error))

        def from_another_thread(partitions):
            thread = threading.Thread(target=intrude, args=[partitions])
            thread.start()
            thread.join()

        consumer.fetch(0, 0)
        owner.on_revoke = from_another_thread
        other, _ = member(broker)
        other.fetch(0, 0)
        consumer.fetch(0, 0)

        assert errors == ["two threads use one consumer at once: only its owner may call it"]


class TestTopics:
    def test_creation_says_what_is_wrong_with_each(self, admin):
        wrong = {
            "jobs.a": (Topic("jobs.a", 1), "TOPIC_ALREADY_EXISTS"),
            "no name": (Topic("no name", 1), "TOPIC_EXCEPTION"),
            "b": (Topic("b", 0), "INVALID_PARTITIONS"),
            "c": (Topic("c", 1, replication=3), "INVALID_REPLICATION_FACTOR"),
            "d": (Topic("d", 1, config={"retention": "1"}), "INVALID_CONFIG"),
            "e": (Topic("e", 1, config={"retention.ms": "7d"}), "INVALID_CONFIG"),
            "f": (Topic("f", 1, config={"cleanup.policy": "keep"}), "INVALID_CONFIG"),
            "g": (Topic("g", 1, config={"message.timestamp.type": "Now"}), "INVALID_CONFIG"),
        }

        outcome = admin.create_topics([topic for topic, _ in wrong.values()] + [Topic("fine", 2)])

        assert {name: error and error.code for name, error in outcome.items()} == {
            "fine": None,
            **{name: code for name, (_, code) in wrong.items()},
        }
        assert set(admin.topics()) == {"jobs.a", "fine"}

    def test_a_topic_is_described_with_its_id_and_what_is_set_explicitly(self, admin):
        admin.create_topics([Topic("t", 2, config={"retention.ms": "-1"})])
        admin.alter_topic_config("t", {"max.message.bytes": "5000"})

        found = admin.topics(["t", "missing"], config=True)

        assert found == {
            "t": Topic("t", 2, 1, {"retention.ms": "-1", "max.message.bytes": "5000"}, found["t"].id)
        }
        assert (len(found["t"].id), admin.topics(["t"])["t"].config) == (16, {})

    def test_a_recreated_topic_has_another_id_and_begins_at_zero(self, broker, admin):
        fill(broker, b"v")
        before = admin.topics()["jobs.a"].id
        admin.delete_topics(["jobs.a"])
        broker.create("jobs.a")

        assert admin.topics()["jobs.a"].id != before
        assert admin.offsets([P0], "latest") == {P0: 0}

    def test_partitions_are_only_ever_added(self, admin):
        admin.add_partitions("jobs.a", 6)

        assert admin.topics()["jobs.a"].partitions == 6
        assert refused(admin.add_partitions, "jobs.a", 6).code == "INVALID_PARTITIONS"

    def test_deleting_a_topic_that_is_not_there_is_an_error_and_deletes_the_others(self, admin):
        assert refused(admin.delete_topics, ["missing", "jobs.a"]).code == "UNKNOWN_TOPIC_OR_PART"
        assert admin.topics() == {}

    def test_records_can_be_deleted_up_to_the_end_and_not_from_a_table(self, broker, admin):
        fill(broker, *[b"v"] * 3)
        broker.create("table", cleanup_policy="compact")
        table = TopicPartition("table", 0)

        outcome = admin.delete_records({P0: 2, P1: 1, table: 0})

        assert {tp: error and error.code for tp, error in outcome.items()} == {
            P0: None,
            P1: "OFFSET_OUT_OF_RANGE",
            table: "POLICY_VIOLATION",
        }
        assert admin.offsets([P0], "earliest") == {P0: 2}

    def test_offsets_at_an_instant_are_of_the_first_record_as_young_as_that(self, broker, admin, clock):
        started = clock.now()
        for _ in range(3):
            fill(broker, b"v")
            clock.advance(10)

        assert [admin.offsets([P0], started + after)[P0] for after in (-1.0, 0.0, 0.001, 10.0, 99.0)] == [
            0,
            0,
            1,
            1,
            3,
        ]

    def test_a_records_own_time_finds_it(self):
        """An instant is a float, and 2.007 * 1000 is a hair above 2007."""
        clock = ManualClock(now=2.0)
        broker = MemoryBroker(clock)
        broker.create("jobs.a")
        for _ in range(200):
            fill(broker, b"v")
            clock.advance(0.001)

        messages, admin = broker.records("jobs.a"), broker.admin()

        assert len({m.timestamp() for m in messages}) == 200
        assert [admin.offsets([P0], m.timestamp()[1] / 1000)[P0] for m in messages] == list(range(200))

    def test_compaction_keeps_the_last_record_of_each_key_at_its_offset(self, broker, clock):
        broker.create("table", cleanup_policy="compact", delete_retention_ms="1000")
        for key, value in [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None)]:
            fill(broker, value, key=key, topic="table")

        broker.compact("table")
        assert [(m.offset(), m.value()) for m in broker.records("table")] == [(2, b"2"), (3, None)]

        clock.advance(1)
        broker.compact("table")
        assert [(m.offset(), m.value()) for m in broker.records("table")] == [(2, b"2")]

    def test_a_reader_passes_the_gaps_of_compaction(self, broker):
        broker.create("table", cleanup_policy="compact", delete_retention_ms="0")
        for value in (b"1", b"2", None):
            fill(broker, value, key=b"k", topic="table")
        broker.compact("table")
        consumer = reader(broker, TopicPartition("table", 0))

        assert (consumer.fetch(10, 0), list(consumer.positions([TopicPartition("table", 0)]).values())) == ([], [3])

    def test_retention_deletes_what_is_older(self, broker, admin, clock):
        admin.alter_topic_config("jobs.a", {"retention.ms": "5000"})
        fill(broker, b"old")
        clock.advance(5)
        fill(broker, b"young")
        clock.advance(0.001)

        broker.expire_records("jobs.a")

        assert (values(broker.records("jobs.a")), admin.offsets([P0], "earliest")) == ([b"young"], {P0: 1})

    def test_unlimited_retention_deletes_nothing(self, broker, admin, clock):
        admin.alter_topic_config("jobs.a", {"retention.ms": "-1"})
        fill(broker, b"v")
        clock.advance(1e9)

        broker.expire_records("jobs.a")

        assert len(broker.records("jobs.a")) == 1

    def test_admin_raises_while_the_broker_is_down_and_where_a_fault_is_injected(self, broker, admin):
        broker.down()
        assert refused(admin.topics).code == "_TRANSPORT"

        broker.up()
        broker.fail("admin", topic="jobs.a", error="TOPIC_AUTHORIZATION_FAILED")
        assert admin.cluster().protocols == {"consumer", "classic"}
        assert refused(admin.add_partitions, "jobs.a", 5).code == "TOPIC_AUTHORIZATION_FAILED"
        assert len(admin.topics()["jobs.a"].id) == 16


class TestCommits:
    @pytest.mark.parametrize("character", ["x", "漢"])
    def test_metadata_is_limited_in_utf16_units(self, broker, character):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)

        assert consumer.commit_now({P0: Commit(1, character * 4095)}) == {}
        assert consumer.commit_now({P0: Commit(2, character * 4096)})[P0].code == "OFFSET_METADATA_TOO_LARGE"
        assert consumer.committed([P0, P1]) == {P0: Commit(1, character * 4095), P1: None}

    def test_an_astral_character_is_two_units(self, broker):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)

        assert consumer.commit_now({P0: Commit(1, "🦊" * 2048)})[P0].code == "OFFSET_METADATA_TOO_LARGE"

    def test_one_partition_that_fails_does_not_keep_the_others_from_being_committed(self, broker):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        missing = TopicPartition("missing", 0)

        failed = consumer.commit_now({missing: Commit(1), P0: Commit(5)})

        assert {tp: error.code for tp, error in failed.items()} == {missing: "UNKNOWN_TOPIC_OR_PART"}
        assert consumer.committed([P0]) == {P0: Commit(5)}

    def test_a_commit_that_was_asked_for_is_answered_in_a_later_fetch(self, broker):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        answers = []

        consumer.commit_soon({P0: Commit(5)}, answers.append)
        assert answers == []

        consumer.fetch(0, 0)
        assert (answers, consumer.committed([P0])) == ([{P0: None}], {P0: Commit(5)})

    def test_a_member_that_does_not_own_a_partition_may_commit_it_even_backwards(self, broker):
        """Kafka does not check it: only a worker's own epochs keep an old owner from rewinding a new one."""
        old, _ = member(broker)
        old.fetch(0, 0)
        new, owner = member(broker)
        settle(old, new)
        taken = min(owner.owned)
        new.commit_now({taken: Commit(10)})

        assert old.commit_now({taken: Commit(3)}) == {}
        assert new.committed([taken]) == {taken: Commit(3)}

    def test_faults_of_commits(self, broker):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        broker.fail("commit", error="REBALANCE_IN_PROGRESS")
        assert consumer.commit_now({P0: Commit(1)})[P0].code == "REBALANCE_IN_PROGRESS"
        assert consumer.committed([P0]) == {P0: None}

        broker.fail("commit", error="_TIMED_OUT", applied=True)
        assert consumer.commit_now({P0: Commit(2)})[P0].retriable
        assert consumer.committed([P0]) == {P0: Commit(2)}

        broker.fail("committed", error="NOT_COORDINATOR")
        assert refused(consumer.committed, [P0]).code == "NOT_COORDINATOR"

        broker.down()
        assert consumer.commit_now({P0: Commit(3)})[P0].code == "_TIMED_OUT"
        assert refused(consumer.committed, [P0]).code == "_TIMED_OUT"

    def test_who_is_no_member_may_commit_only_while_the_group_is_empty(self, broker):
        stranger = broker.consumer("g")
        assert stranger.commit_now({P0: Commit(1)}) == {}

        consumer, _ = member(broker)
        consumer.fetch(0, 0)

        assert stranger.commit_now({P0: Commit(2)})[P0].code == "UNKNOWN_MEMBER_ID"
        assert consumer.committed([P0]) == {P0: Commit(1)}

    def test_offsets_of_a_missing_topic_cannot_be_altered(self, admin):
        missing = TopicPartition("missing", 0)

        assert refused(admin.alter_committed, "g", {missing: Commit(1)}).code == "UNKNOWN_TOPIC_OR_PART"
        assert admin.committed("g") == {}

    def test_only_the_commits_of_an_empty_group_can_be_altered(self, broker, admin):
        admin.alter_committed("g", {P0: Commit(7, "m")})
        consumer, _ = member(broker)
        consumer.fetch(0, 0)

        assert refused(admin.alter_committed, "g", {P0: Commit(1)}).code == "UNKNOWN_MEMBER_ID"
        assert admin.committed("g") == {P0: Commit(7, "m")}

        consumer.close()
        admin.alter_committed("g", {P0: Commit(1)})
        assert admin.committed("g", [P0, P1]) == {P0: Commit(1)}

    def test_commits_expire_when_a_test_says_so(self, broker, admin):
        admin.alter_committed("g", {P0: Commit(7), P1: Commit(7), P2: Commit(7)})

        broker.expire_commits("g", P0)
        assert set(admin.committed("g")) == {P1, P2}

        broker.expire_commits("g")
        assert admin.committed("g") == {}

    def test_the_commits_of_a_deleted_topic_go_with_it(self, broker, admin):
        broker.create("jobs.b")
        other = TopicPartition("jobs.b", 0)
        admin.alter_committed("g", {P0: Commit(7), other: Commit(7)})

        admin.delete_topics(["jobs.a"])

        assert set(admin.committed("g")) == {other}


class TestGroups:
    def test_a_partition_is_given_on_only_after_its_owner_was_told_and_committed(self, broker):
        first, old = member(broker)
        first.fetch(0, 0)
        second, new = member(broker)
        second.fetch(0, 0)
        assert (len(old.owned), new.owned) == (4, set())

        old.on_revoke = lambda partitions: first.commit_now({tp: Commit(42) for tp in partitions})
        first.fetch(0, 0)
        second.fetch(0, 0)

        assert (len(old.owned), len(new.owned)) == (2, 2)
        assert second.committed(sorted(new.owned)) == dict.fromkeys(new.owned, Commit(42))

    def test_a_partition_starts_where_the_listener_says_and_may_be_held(self, broker, admin):
        fill(broker, b"0", b"1")
        admin.alter_committed("g", {P0: Commit(1)})
        consumer, owner = member(broker)
        owner.fetch = False
        assert consumer.fetch(10, 0) == []

        consumer.resume([P0])

        assert values(consumer.fetch(10, 0)) == [b"1"]

    def test_a_listener_that_raises_is_a_fault_and_what_it_did_not_answer_is_held(self, broker):
        fill(broker, b"v")
        consumer, owner = member(broker)
        owner.assigned = lambda partitions: {}[0]

        assert consumer.fetch(10, 0) == []
        assert codes(consumer.faults()) == [(None, "_APPLICATION")]

    def test_a_pause_does_not_outlive_the_assignment(self, broker):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        consumer.pause([P0, P1, P2, P3])
        other, others = member(broker)
        settle(consumer, other)
        moved = min(others.owned)
        other.close()
        settle(consumer)
        fill(broker, b"v", partition=moved.partition)

        assert values(consumer.fetch(10, 0)) == [b"v"]

    def test_a_killed_member_keeps_its_partitions_for_the_session_timeout(self, broker, clock):
        dead, _ = member(broker)
        dead.fetch(0, 0)
        alive, owner = member(broker)
        broker.kill(dead)

        clock.advance(9.9)
        alive.fetch(0, 0)
        assert owner.owned == set()

        clock.advance(0.1)
        alive.fetch(0, 0)
        assert len(owner.owned) == 4

    def test_a_groups_own_session_timeout_goes_first(self, broker, admin, clock):
        admin.set_group_config("g", {"consumer.session.timeout.ms": "6000"})
        dead, _ = member(broker)
        dead.fetch(0, 0)
        broker.kill(dead)
        clock.advance(6)

        alive, owner = member(broker)
        alive.fetch(0, 0)

        assert len(owner.owned) == 4
        assert refused(admin.set_group_config, "g", {"session": "1"}).code == "INVALID_CONFIG"

    def test_a_killed_member_reaches_nothing(self, broker):
        fill(broker, b"v")
        dead, _ = member(broker)
        dead.fetch(0, 0)
        broker.kill(dead)

        assert dead.fetch(10, 0) == []
        assert dead.commit_now({P0: Commit(1)})[P0].code == "_TIMED_OUT"
        dead.close()
        assert broker.admin().groups(["g"])["g"].state == "stable"

    def test_a_member_that_did_not_fetch_for_too_long_loses_all_and_joins_again(self, broker, clock):
        stuck, owner = member(broker)
        stuck.fetch(0, 0)
        clock.advance(300)
        quick, other = member(broker)
        quick.fetch(0, 0)
        assert len(other.owned) == 4
        assert stuck.commit_now({P0: Commit(1)})[P0].code == "UNKNOWN_MEMBER_ID"

        stuck.fetch(0, 0)
        assert codes(stuck.faults()) == [(None, "_MAX_POLL_EXCEEDED")]
        assert owner.told[-1] == ("lost", [P0, P1, P2, P3])

        settle(stuck, quick)
        assert (len(owner.owned), len(other.owned)) == (2, 2)

    def test_fetching_nothing_is_enough_to_stay(self, broker, clock):
        consumer, owner = member(broker)
        for _ in range(4):
            consumer.fetch(0, 0)
            clock.advance(299)

        assert [what for what, _ in owner.told] == ["assigned"]

    def test_nobody_is_expelled_while_the_broker_is_down(self, broker, clock):
        consumer, owner = member(broker)
        consumer.fetch(0, 0)
        broker.down()
        clock.advance(1000)
        broker.producer().poll()
        broker.up()

        consumer.fetch(0, 0)

        assert [what for what, _ in owner.told] == ["assigned"]

    def test_closing_gives_everything_back_at_once_without_callbacks(self, broker):
        first, old = member(broker)
        second, new = member(broker)
        settle(first, second)

        first.close()
        second.fetch(0, 0)

        assert (len(new.owned), [what for what, _ in old.told]) == (4, ["assigned", "revoked"])
        with pytest.raises(RuntimeError, match="closed"):
            first.fetch(0, 0)

    def test_partitions_that_were_added_are_given_out(self, broker, admin):
        consumer, owner = member(broker)
        consumer.fetch(0, 0)

        admin.add_partitions("jobs.a", 6)
        consumer.fetch(0, 0)

        assert owner.told[-1] == ("assigned", [TopicPartition("jobs.a", 4), TopicPartition("jobs.a", 5)])

    def test_a_topic_that_appears_later_is_given_out(self, broker):
        consumer, owner = member(broker, topics=["jobs.later"])
        consumer.fetch(0, 0)
        assert owner.told == []

        broker.create("jobs.later")
        consumer.fetch(0, 0)

        assert owner.owned == {TopicPartition("jobs.later", 0)}

    def test_a_deleted_topic_is_revoked_without_a_fault(self, broker, admin):
        consumer, owner = member(broker)
        consumer.fetch(0, 0)

        admin.delete_topics(["jobs.a"])
        consumer.fetch(0, 0)

        assert (owner.told[-1][0], owner.owned, consumer.faults()) == ("revoked", set(), [])

    def test_a_recreated_topic_is_revoked_and_assigned_anew(self, broker, admin):
        consumer, owner = member(broker)
        fill(broker, b"old")
        consumer.fetch(10, 0)

        admin.delete_topics(["jobs.a"])
        broker.create("jobs.a")
        fill(broker, b"new")

        assert values(consumer.fetch(10, 0)) == [b"new"]
        assert owner.told[1:] == [("revoked", [P0, P1, P2, P3]), ("assigned", [P0])]

    def test_a_changed_subscription_moves_only_what_changed(self, broker):
        broker.create("jobs.b", partitions=2)
        consumer, owner = member(broker)
        consumer.fetch(0, 0)

        consumer.subscribe(["jobs.a", "jobs.b"], owner)
        consumer.fetch(0, 0)

        assert owner.told[1:] == [("assigned", [TopicPartition("jobs.b", 0), TopicPartition("jobs.b", 1)])]

    def test_members_get_only_what_they_subscribed_to(self, broker):
        broker.create("jobs.b", partitions=4)
        first, a = member(broker, topics=["jobs.a"])
        second, both = member(broker, topics=["jobs.a", "jobs.b"])
        settle(first, second)

        assert {tp.topic for tp in a.owned} == {"jobs.a"}
        assert (len(a.owned), len(both.owned)) == (4, 4)

    def test_nobody_is_given_what_it_did_not_subscribe_to_for_the_sake_of_balance(self, broker):
        broker.create("jobs.b", partitions=4)
        broker.create("jobs.c")
        first, _ = member(broker, topics=["jobs.b"])
        second, other = member(broker, topics=["jobs.c"])
        settle(first, second)

        assert other.owned == {TopicPartition("jobs.c", 0)}

    def test_a_topic_that_a_member_leaves_goes_to_who_still_wants_it(self, broker):
        broker.create("jobs.b")
        first, owner = member(broker, topics=["jobs.b"])
        second, other = member(broker, topics=["jobs.a", "jobs.b"])
        settle(first, second)
        assert owner.owned == {TopicPartition("jobs.b", 0)}

        first.subscribe(["jobs.a"], owner)
        settle(first, second)

        assert TopicPartition("jobs.b", 0) in other.owned

    def test_groups_do_not_share(self, broker):
        fill(broker, b"v")
        first, _ = member(broker, group="g")
        second, _ = member(broker, group="h")

        assert values(first.fetch(10, 0)) == values(second.fetch(10, 0)) == [b"v"]

    def test_a_group_is_described(self, broker, admin):
        consumer, _ = member(broker, instance="pod-1")
        assert admin.groups(["g"])["g"].state == "dead"

        consumer.fetch(0, 0)
        consumer.commit_now({P0: Commit(1)})
        group = admin.groups(["g"])["g"]
        assert (group.state, group.protocol, group.members[0].instance) == ("stable", "consumer", "pod-1")
        assert group.members[0].assignment == (P0, P1, P2, P3)

        second, _ = member(broker)
        second.fetch(0, 0)
        assert admin.groups(["g"])["g"].state == "reconciling"
        assert admin.group_names() == ["g"]

    def test_an_empty_group_is_one_with_commits_and_no_members(self, broker, admin):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        consumer.commit_now({P0: Commit(1)})

        consumer.close()

        assert (admin.groups(["g"])["g"].state, admin.group_names()) == ("empty", ["g"])

    def test_a_static_member_that_comes_back_in_time_gets_its_partitions_back(self, broker, admin, clock):
        admin.add_partitions("jobs.a", 5)
        first, old = member(broker, instance="pod-1")
        other, others = member(broker, instance="pod-2")
        settle(first, other)
        before = set(old.owned)

        first.close()
        settle(other)
        clock.advance(9)
        settle(other)
        again, owner = member(broker, instance="pod-1")
        settle(again, other)

        assert owner.owned == before
        assert [what for what, _ in others.told] == ["assigned"]

    def test_a_static_member_that_stays_away_is_expelled(self, broker, clock):
        first, _ = member(broker, instance="pod-1")
        other, others = member(broker, instance="pod-2")
        settle(first, other)
        first.close()

        clock.advance(10)
        settle(other)

        assert len(others.owned) == 4

    def test_an_instance_that_is_still_held_is_refused_until_the_session_ends(self, broker, clock):
        """SIGKILL and restart: with KIP-848 the new member is refused, until the old one has timed out."""
        killed, _ = member(broker, instance="pod-1")
        killed.fetch(0, 0)
        broker.kill(killed)

        early, _ = member(broker, instance="pod-1")
        early.fetch(0, 0)
        ((_, error),) = early.faults()
        assert (error.code, error.fatal) == ("UNRELEASED_INSTANCE_ID", True)
        assert (early.fetch(0, 0), early.faults()) == ([], [])

        clock.advance(10)
        late, owner = member(broker, instance="pod-1")
        late.fetch(0, 0)
        assert len(owner.owned) == 4


class TestTransactions:
    @pytest.fixture
    def producer(self, broker):
        producer = broker.transactional_producer("t")
        producer.init()
        return producer

    def test_records_are_visible_together_and_after_the_commit(self, broker, producer):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        fill(broker, b"behind")
        committed, uncommitted = reader(broker, P0), reader(broker, P0, isolation="read_uncommitted")

        assert committed.fetch(10, 0) == []
        assert values(uncommitted.fetch(10, 0)) == [b"0", b"behind"]

        producer.commit()
        assert values(committed.fetch(10, 0)) == [b"0", b"behind"]

    def test_aborted_records_are_never_visible_and_leave_a_gap(self, broker, producer, admin):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        producer.abort()
        fill(broker, b"1")
        consumer = reader(broker, P0)

        (message,) = consumer.fetch(10, 0)

        assert (message.value(), message.offset()) == (b"1", 2)
        assert admin.offsets([P0], "latest") == {P0: 3}

    def test_a_position_passes_the_marker_at_the_end(self, broker, producer):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        producer.commit()
        consumer = reader(broker, P0)

        assert (values(consumer.fetch(10, 0)), consumer.positions([P0])[P0]) == ([b"0"], 2)

    def test_the_end_of_what_is_readable_is_the_first_open_transaction(self, broker, producer, admin):
        fill(broker, b"0")
        producer.begin()
        producer.send(Record("jobs.a", b"1", partition=0))

        assert admin.offsets([P0], "latest") == {P0: 1}
        assert admin.offsets([P0], "latest", "read_uncommitted") == {P0: 2}
        assert reader(broker, P0).log_bounds(P0) == (0, 1)

    def test_offsets_are_committed_with_the_transaction_or_not_at_all(self, broker, producer, admin):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        for end in (producer.abort, producer.commit):
            producer.begin()
            producer.send_offsets({P0: Commit(5, "m")}, consumer.group_metadata())
            assert admin.committed("g") == {}
            end()

        assert consumer.committed([P0]) == {P0: Commit(5, "m")}

    def test_a_pending_transaction_blocks_whoever_asks_for_its_commits(self, broker, producer):
        """Else the next owner starts at the old commit, and runs what the transaction then commits."""
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        producer.begin()
        producer.send_offsets({P0: Commit(5)}, consumer.group_metadata())

        error = refused(consumer.committed, [P0, P1])
        assert (error.code, error.retriable) == ("_TIMED_OUT", True)
        assert consumer.committed([P1]) == {P1: None}

    def test_a_second_owner_fences_the_first_and_aborts_what_it_left(self, broker, producer):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))

        broker.transactional_producer("t").init()

        error = refused(producer.commit)
        assert (error.code, error.fatal, producer.fatal()) == ("_FENCED", True, error)
        assert refused(producer.begin).code == "_FENCED"
        assert broker.records("jobs.a") == []
        assert broker.admin().offsets([P0], "latest") == {P0: 2}

    def test_a_transaction_of_a_killed_producer_hides_records_until_its_timeout(
        self, broker, producer, clock
    ):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        broker.kill(producer)
        fill(broker, b"1")
        consumer = reader(broker, P0)

        clock.advance(9.9)
        assert consumer.fetch(10, 0) == []

        clock.advance(0.1)
        assert values(consumer.fetch(10, 0)) == [b"1"]

    def test_a_producer_whose_transaction_was_open_for_too_long_is_fenced(self, producer, clock):
        producer.begin()
        clock.advance(10)

        assert refused(producer.commit).code == "_FENCED"

    def test_a_record_that_failed_makes_its_transaction_abort(self, broker, producer):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        producer.send(Record("missing", b"1"))

        assert refused(producer.commit).code == "UNKNOWN_TOPIC_OR_PART"
        producer.abort()
        producer.begin()
        producer.send(Record("jobs.a", b"2", partition=0))
        producer.commit()

        assert values(broker.records("jobs.a")) == [b"2"]

    def test_offsets_of_an_expelled_member_are_refused(self, broker, producer, clock):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        metadata = consumer.group_metadata()
        clock.advance(300)
        producer.begin()

        assert refused(producer.send_offsets, {P0: Commit(1)}, metadata).code == "UNKNOWN_MEMBER_ID"

    def test_an_older_generation_may_commit_only_what_was_kept_since(self, broker, producer):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        metadata = consumer.group_metadata()
        other, owner = member(broker)
        settle(consumer, other)
        (moved, _), kept = sorted(owner.owned), P0

        def outcome(group_metadata, *partitions):
            producer.begin()
            try:
                producer.send_offsets(dict.fromkeys(partitions, Commit(1)), group_metadata)
            except BrokerError as error:
                return error.code
            finally:
                producer.abort()

        assert outcome(metadata, kept) is None
        assert outcome(metadata, kept, moved) == "ILLEGAL_GENERATION"
        assert outcome(consumer.group_metadata(), moved) is None

        other.close()
        settle(consumer)
        assert outcome(metadata, moved) == "ILLEGAL_GENERATION"

    def test_refused_offsets_make_their_transaction_abort(self, broker, producer):
        """Else the records are committed without the offsets, and their jobs run again."""
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        metadata = consumer.group_metadata()
        consumer.close()
        producer.begin()
        producer.send(Record("jobs.a", b"v", partition=0))

        assert refused(producer.send_offsets, {P0: Commit(1)}, metadata).code == "UNKNOWN_MEMBER_ID"
        assert refused(producer.commit).code == "UNKNOWN_MEMBER_ID"

        producer.abort()
        assert broker.records("jobs.a") == []

    def test_metadata_of_transactional_commits_has_the_same_limit(self, broker, producer):
        consumer, _ = member(broker)
        consumer.fetch(0, 0)
        producer.begin()

        error = refused(producer.send_offsets, {P0: Commit(1, "x" * 4096)}, consumer.group_metadata())

        assert error.code == "OFFSET_METADATA_TOO_LARGE"

    def test_calls_out_of_order_are_refused(self, broker, producer):
        assert refused(broker.transactional_producer("u").begin).code == "_STATE"
        for call in (producer.commit, producer.abort):
            assert refused(call).code == "_STATE"
        assert refused(producer.send, Record("jobs.a", b"v")).code == "_STATE"
        producer.begin()
        assert refused(producer.begin).code == "_STATE"

    def test_an_abort_fails_what_was_not_delivered(self, broker, producer):
        acks = Acks()
        producer.begin()
        broker.down("jobs.a")
        producer.send(Record("jobs.a", b"0", partition=0), acks)
        assert refused(producer.commit).code == "_TIMED_OUT"

        producer.abort()
        broker.up()

        assert (acks, broker.records("jobs.a")) == ([("_PURGE_QUEUE", -1001)], [])

    def test_faults_of_transactions_leave_them_open(self, broker, producer):
        producer.begin()
        producer.send(Record("jobs.a", b"0", partition=0))
        broker.fail("transaction", error="CONCURRENT_TRANSACTIONS")

        assert refused(producer.commit).retriable
        producer.commit()

        assert values(broker.records("jobs.a")) == [b"0"]

    def test_compaction_stops_before_an_open_transaction_and_removes_aborted_records(self, broker, producer):
        broker.create("table", cleanup_policy="compact")
        fill(broker, b"kept", key=b"k", topic="table")
        producer.begin()
        producer.send(Record("table", b"aborted", b"k"))
        producer.abort()
        producer.begin()
        producer.send(Record("table", b"open", b"k"))

        broker.compact("table")

        assert values(broker.records("table", "read_uncommitted")) == [b"kept", b"open"]


class TestThreads:
    """With the machine's clock, as users' tests may run it: clients wait for each other."""

    def test_a_fetch_wakes_up_when_a_record_comes(self):
        broker = MemoryBroker()
        broker.create("jobs.a")
        found = []
        thread = threading.Thread(target=lambda: found.extend(reader(broker, P0).fetch(10, 30)))
        thread.start()

        fill(broker, b"v")
        thread.join(10)

        assert (thread.is_alive(), values(found)) == (False, [b"v"])

    def test_a_fetch_returns_when_there_is_a_fault(self):
        broker = MemoryBroker()
        broker.create("jobs.a")
        consumer = reader(broker, P0, start=5)
        thread = threading.Thread(target=consumer.fetch, args=[10, 60], daemon=True)
        thread.start()

        thread.join(20)

        assert (thread.is_alive(), codes(consumer.faults())) == (False, [(P0, "_AUTO_OFFSET_RESET")])

    def test_nothing_that_happens_before_a_wait_is_missed(self, monkeypatch):
        """A record comes after a fetch has looked and before it waits: it must look again at once."""
        broker = MemoryBroker()
        broker.create("jobs.a")
        state, seen = broker._state, broker._state.version
        monkeypatch.setattr(state.lock, "wait", lambda timeout: pytest.fail("it waits"))

        fill(broker, b"v")

        assert state.wait(seen, until=float("inf"))

    def test_a_flush_waits_for_a_broker_that_is_down(self):
        broker = MemoryBroker()
        broker.create("jobs.a")
        producer = broker.producer()
        broker.down()
        producer.send(Record("jobs.a", b"v"))
        assert producer.flush(0.01) == 1
        thread = threading.Thread(target=broker.up)

        thread.start()

        assert producer.flush(10) == 0
        thread.join()

    def test_time_outs_come_by_themselves(self):
        broker = MemoryBroker(session_timeout=0.1)
        broker.create("jobs.a")
        dead, _ = member(broker)
        dead.fetch(0, 0)
        broker.kill(dead)
        fill(broker, b"v")

        alive, _ = member(broker)

        assert values(alive.fetch(10, 10)) == [b"v"]

    def test_members_on_threads_of_their_own_read_every_record_once_committed(self):
        broker = MemoryBroker()
        broker.create("jobs.a", partitions=4)
        done, seen, lock = threading.Event(), [], threading.Lock()

        def work():
            consumer, owner = member(broker)

            def commit(partitions):
                consumer.commit_now({tp: Commit(offset) for tp, offset in consumer.positions(partitions).items()})

            owner.on_revoke = commit
            while not done.is_set():
                messages = consumer.fetch(7, 0.05)
                with lock:
                    seen.extend(values(messages))
                    if len(seen) >= 1000:
                        done.set()
            commit(owner.owned)
            consumer.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        fill(broker, *[b"%d" % number for number in range(1000)], partition=-1)
        assert done.wait(30)
        for thread in threads:
            thread.join(10)

        assert sorted(seen, key=int) == [b"%d" % number for number in range(1000)]


class Life:
    """What a test knows of one member without asking the broker."""

    def __init__(self, broker, until, log):
        self.consumer, self.log = broker.consumer("g"), log
        self.owned, self.expires, self.killed = set(), until, False
        self.consumer.subscribe(["jobs.a", "jobs.b"], self)

    def assigned(self, partitions):
        self.owned |= set(partitions)
        commits = self.consumer.committed(partitions)
        found = {tp: commit.offset if commit else 0 for tp, commit in commits.items()}
        assert found == {tp: self.log.commits.get(tp, 0) for tp in partitions}
        return {tp: Start(offset) for tp, offset in found.items()}

    def revoked(self, partitions):
        self.commit(partitions)
        self.owned -= set(partitions)

    def lost(self, partitions):
        assert set(partitions) == self.owned
        self.owned = set()

    def commit(self, partitions):
        offsets = self.consumer.positions(sorted(partitions))
        failed = self.consumer.commit_now({tp: Commit(offset) for tp, offset in offsets.items()})
        self.log.commits.update({tp: offset for tp, offset in offsets.items() if tp not in failed})


class GroupLife(RuleBasedStateMachine):
    """Members join, fetch, stall, close and die, in any order: who owns what, and is anything lost?"""

    SESSION, POLL = 10.0, 60.0

    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.broker = MemoryBroker(self.clock, session_timeout=self.SESSION, max_poll_interval=self.POLL)
        self.commits, self.read, self.sent = {}, set(), 0
        self.lives = []
        self.producer = self.broker.producer()

    @initialize(a=st.integers(1, 5), b=st.integers(1, 3))
    def make_topics(self, a, b):
        self.sizes = {"jobs.a": a, "jobs.b": b}
        for topic, partitions in self.sizes.items():
            self.broker.create(topic, partitions)

    @property
    def alive(self):
        return [life for life in self.lives if not life.killed]

    @precondition(lambda self: len(self.alive) < 4)
    @rule()
    def join(self):
        self.lives.append(Life(self.broker, 0.0, self))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), limit=st.integers(0, 5))
    def fetch(self, data, limit):
        self.fetch_of(data.draw(st.sampled_from(self.alive)), limit)

    def fetch_of(self, life, limit):
        for message in life.consumer.fetch(limit, 0):
            partition = TopicPartition(message.topic(), message.partition())
            assert partition in life.owned
            self.read.add((partition, message.offset()))
        life.expires = self.clock.monotonic() + self.POLL

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def commit(self, data):
        life = data.draw(st.sampled_from(self.alive))
        life.commit(life.owned)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def close(self, data):
        life = data.draw(st.sampled_from(self.alive))
        life.consumer.close()
        self.lives.remove(life)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def kill(self, data):
        life, now = data.draw(st.sampled_from(self.alive)), self.clock.monotonic()
        self.broker.kill(life.consumer)
        life.killed = True
        life.expires = now + self.SESSION if now < life.expires else now

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 30.0, 60.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule(topic=st.sampled_from(["jobs.a", "jobs.b"]), count=st.integers(1, 5))
    def publish(self, topic, count):
        for _ in range(count):
            self.producer.send(Record(topic, b"v"))
        self.sent += count

    @precondition(lambda self: sum(self.sizes.values()) < 12)
    @rule(topic=st.sampled_from(["jobs.a", "jobs.b"]))
    def expand(self, topic):
        self.sizes[topic] += 1
        self.broker.admin().add_partitions(topic, self.sizes[topic])

    @rule()
    def come_to_rest(self):
        self.clock.advance(self.SESSION)
        self.lives = self.alive
        for _ in range(2 * len(self.lives) + 2):
            for life in self.lives:
                self.fetch_of(life, 1000)
        if self.lives:
            self.check_rest()

    def check_rest(self):
        owners = [tp for life in self.lives for tp in life.owned]
        everything = [TopicPartition(topic, p) for topic, size in self.sizes.items() for p in range(size)]
        assert sorted(owners) == sorted(everything)
        loads = [len(life.owned) for life in self.lives]
        assert max(loads) - min(loads) <= 1
        assert self.broker.admin().groups(["g"])["g"].state == "stable"
        assert len(self.read) == self.sent

    @invariant()
    def nothing_has_two_owners(self):
        now = self.clock.monotonic()
        owned = [tp for life in self.lives if now < life.expires for tp in life.owned]
        assert len(owned) == len(set(owned))

    def teardown(self):
        if hasattr(self, "sizes"):
            self.come_to_rest()


TestGroupLife = GroupLife.TestCase
TestGroupLife.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
