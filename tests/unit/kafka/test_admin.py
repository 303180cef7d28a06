"""Answers of the cluster that the client gives one name."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streamjobs.broker import Commit, Topic, TopicPartition
from streamjobs.errors import BrokerError
from streamjobs.kafka.admin import RECORDS_AT_ONCE, KafkaAdmin, _spec

WHERE = TopicPartition("jobs.mails", 1)


class Answers(KafkaAdmin):
    """Of a cluster with one topic, of two partitions; `offsets`: one answer after the other about where its log ends."""

    def __init__(self, *offsets: int | None) -> None:
        super().__init__({})
        self.left = list(offsets)

    @property
    def _client(self) -> Any:
        return SimpleNamespace(list_offsets=self._answer)

    def _answer(self, asked: dict[Any, Any], **_: Any) -> dict[Any, Future[Any]]:
        answer: Future[Any] = Future()
        offset = self.left.pop(0)
        if offset is None:
            answer.set_exception(KafkaException(KafkaError(KafkaError._NOENT)))
        else:
            answer.set_result(SimpleNamespace(offset=offset))
        return dict.fromkeys(asked, answer)

    def topics(self, *_: Any, **__: Any) -> dict[str, Topic]:
        return {"jobs.mails": Topic("jobs.mails", 2)}


def test_a_partition_without_a_leader_is_asked_about_again() -> None:
    """What bit: a broker was lost; a worker that started meanwhile took that for its user's mistake, and ended with exit code 1."""
    assert Answers(None, None, 17).offsets([WHERE], "latest") == {WHERE: 17}


@pytest.mark.parametrize("where", [TopicPartition("nosuch", 0), TopicPartition("jobs.mails", 2)], ids=["topic", "partition"])
def test_what_does_not_exist_is_not_waited_for(where: TopicPartition) -> None:
    with pytest.raises(BrokerError, match=f"there is no {where.topic}/{where.partition}.*topic plan") as refused:
        Answers(None).offsets([where], "latest")
    assert (refused.value.code, refused.value.retriable) == ("UNKNOWN_TOPIC_OR_PART", False)


@pytest.mark.parametrize("at", [-1e9, -0.001, -1e-9, 0.0])
def test_an_instant_before_all_others_is_none_of_the_clients_own_numbers(at: float) -> None:
    """What bit: `group seek --to 1969-12-31T23:59:59.999Z` went to the end of the log, as -1 ms means "latest" to Kafka; one of 1752 was an
    invalid argument."""
    assert _spec(at)._value == 0


class Listed(KafkaAdmin):
    """Of a cluster of which each broker lists its groups: these, or an error."""

    def __init__(self, *answers: str | KafkaError | KafkaException) -> None:
        super().__init__({})
        self.answers = answers

    @property
    def _client(self) -> Any:
        return SimpleNamespace(list_consumer_groups=self._answer, poll=self._tell)

    def _tell(self, _: float) -> None:
        self._contact.heard(KafkaError(KafkaError._TIMED_OUT, "h3:9092/3: Timed out 1 in-flight"))

    def _answer(self, **_: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        valid = [SimpleNamespace(group_id=group) for group in self.answers if isinstance(group, str)]
        answer.set_result(SimpleNamespace(valid=valid, errors=[error for error in self.answers if not isinstance(error, str)]))
        return answer


def test_groups_are_listed_in_order() -> None:
    assert Listed("b", "a").group_names() == ["a", "b"]


SILENT = KafkaError(KafkaError._TIMED_OUT)


@pytest.mark.parametrize("silent", [SILENT, KafkaException(SILENT)], ids=["as it is", "as is promised"])
def test_a_list_without_the_groups_of_a_silent_broker_is_none(silent: KafkaError | KafkaException) -> None:
    """What bit: `topic trim` planned as if nobody read there whose coordinator stood still, and deleted what they had not read."""
    with pytest.raises(BrokerError, match=r"all brokers \(1 did not tell\).*h3:9092/3: Timed out") as refused:
        Listed("analytics", silent).group_names()
    assert (refused.value.code, refused.value.retriable) == ("_TIMED_OUT", True)


class Controller(KafkaAdmin):
    """Creates what it is asked for, one request after the other."""

    def __init__(self) -> None:
        super().__init__({})
        self.requests: list[list[Any]] = []

    @property
    def _client(self) -> Any:
        return SimpleNamespace(create_topics=self._create)

    def _create(self, new: list[Any], **_: Any) -> dict[str, Future[None]]:
        self.requests.append(new)
        done: Future[None] = Future()
        done.set_result(None)
        return {topic.topic: done for topic in new}

    def topics(self, *_: Any, **__: Any) -> dict[str, Topic]:
        return {topic.topic: Topic(topic.topic, topic.num_partitions) for new in self.requests for topic in new}


def test_no_request_creates_more_than_a_controller_takes() -> None:
    """What bit: `topic apply` of a thousand queues created nothing: "unable to perform excessively large batch operation"."""
    controller = Controller()
    wanted = [Topic(f"jobs.q{number}", 8, config={"retention.ms": "1", "cleanup.policy": "delete"}) for number in range(1_000)]

    created = controller.create_topics([*wanted, Topic("wide", 3 * RECORDS_AT_ONCE)])

    assert created == dict.fromkeys([*(topic.name for topic in wanted), "wide"])
    *usual, widest = [[1 + topic.num_partitions + len(topic.config) for topic in new] for new in controller.requests]
    assert all(sum(records) <= RECORDS_AT_ONCE for records in usual)
    assert len(usual) == 6 and len(widest) == 1


def test_nothing_to_create_is_not_asked_for() -> None:
    controller = Controller()
    assert controller.create_topics([]) == {}
    assert not controller.requests


class Moving(Answers):
    """Of a cluster whose brokers don't agree yet who coordinates a group: these errors, then no such group."""

    def __init__(self, *errors: int) -> None:
        super().__init__()
        self.errors = list(errors)
        self._contact.met = True
        self._coordinators = self  # type: ignore[assignment]

    def ask(self, *_: Any) -> dict[str, Any]:
        if self.errors:
            raise KafkaException(KafkaError(self.errors.pop(0)))
        return {}


def test_a_coordinator_that_moves_is_asked_for_again() -> None:
    """What bit: the first look at the groups of a new cluster."""
    moving = Moving(KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE)
    assert moving.groups(["mails"]) == {} and not moving.errors


class Coordinated(Answers):
    """Of a cluster whose coordinator of groups moves: asked for a description, or told of a commit, it answers with these errors first."""

    def __init__(self, *errors: int) -> None:
        super().__init__()
        self.errors = list(errors)
        self.asked: list[str] = []
        self._contact.met = True

    def _build(self) -> Any:
        return SimpleNamespace(
            describe_consumer_groups=lambda groups, **_: dict.fromkeys(groups, self._answered("described", self._refusal())),
            list_consumer_group_offsets=lambda *_, **__: {"mails": self._answered("read")},
            alter_consumer_group_offsets=lambda *_, **__: {"mails": self._answered("altered", of_partition=self._refusal())},
            poll=lambda _: None,
        )

    def _refusal(self) -> KafkaError | None:
        return KafkaError(self.errors.pop(0)) if self.errors else None

    def _answered(self, what: str, error: KafkaError | None = None, of_partition: KafkaError | None = None) -> Future[Any]:
        self.asked.append(what)
        answer: Future[Any] = Future()
        if error is None:
            answer.set_result(SimpleNamespace(topic_partitions=[SimpleNamespace(topic="t", partition=0, offset=7, metadata="", error=of_partition)]))
        else:
            answer.set_exception(KafkaException(error))
        return answer


def test_only_who_coordinates_a_group_is_asked_for_its_commits() -> None:
    """What bit: a broker restarted, the client asked it for commits of groups that were another one's by then, and the whole process ended
    with a segmentation fault."""
    moving = Coordinated(KafkaError.NOT_COORDINATOR)
    assert moving.committed("mails") == {TopicPartition("t", 0): Commit(7, "")}
    assert moving.asked == ["described", "described", "read"]


def test_commits_are_asked_for_of_a_group_that_nobody_can_describe() -> None:
    """One that has had commits, and never a member."""
    unknown = Coordinated(KafkaError.GROUP_ID_NOT_FOUND)
    assert unknown.committed("mails") and unknown.asked == ["described", "read"]


def test_a_coordinator_that_moves_is_asked_again_to_change_commits() -> None:
    """It says so of each partition, not of the group."""
    moving = Coordinated(KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    moving.alter_committed("mails", {TopicPartition("t", 0): Commit(7, "")})
    assert moving.asked == ["altered"] * 3


def test_what_a_coordinator_refuses_is_told_at_once() -> None:
    refused = Coordinated(KafkaError.UNKNOWN_MEMBER_ID)
    with pytest.raises(BrokerError, match="change the commits of group mails") as told:
        refused.alter_committed("mails", {TopicPartition("t", 0): Commit(7, "")})
    assert told.value.code == "UNKNOWN_MEMBER_ID" and refused.asked == ["altered"]


def test_other_errors_of_a_coordinator_are_told_at_once() -> None:
    with pytest.raises(BrokerError) as told:
        Moving(KafkaError._TRANSPORT, KafkaError._TRANSPORT).groups(["mails"])
    assert told.value.code == "_TRANSPORT"
