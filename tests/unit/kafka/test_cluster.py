"""Which group protocol is spoken, and what the embedded broker makes up for."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs.app import App
from streamjobs.broker import Cluster, Topic, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError
from streamjobs.kafka import EmbeddedBroker, KafkaBroker, config
from streamjobs.kafka.embedded import Members
from streamjobs.settings import load


class Says:
    """An admin that knows one thing."""

    def __init__(self, *protocols: str) -> None:
        self.asked = 0
        self._cluster = Cluster("id", ("h:1",), frozenset(protocols))

    def cluster(self) -> Cluster:
        self.asked += 1
        return self._cluster


def broker_that_says(monkeypatch: pytest.MonkeyPatch, admin: Says, **options: Any) -> KafkaBroker:
    broker = KafkaBroker("h:1", **options)
    monkeypatch.setattr(broker, "_new_admin", lambda: admin)
    return broker


def test_kip_848_is_used_where_the_cluster_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Says("classic", "consumer")
    broker = broker_that_says(monkeypatch, admin)

    assert [broker.protocol(), broker.protocol()] == ["consumer", "consumer"]
    assert admin.asked == 1


def test_else_the_classic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broker_that_says(monkeypatch, Says("classic")).protocol() == "classic"


def test_a_choice_needs_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Says()

    assert broker_that_says(monkeypatch, admin, protocol="classic").protocol() == "classic"
    assert admin.asked == 0


def test_a_child_uses_its_parents_embedded_broker(embedded_url: str, prefix: str) -> None:
    code = f"""
from streamjobs.core.record import Record
from streamjobs.kafka import EmbeddedBroker
producer = EmbeddedBroker({embedded_url!r}).producer()
producer.send(Record({prefix!r}, b"from the child", None, (), 0))
assert producer.flush(10) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)

    reader = EmbeddedBroker(embedded_url).consumer(None)
    reader.assign({TopicPartition(prefix, 0): 0})
    assert [message.value() for message in reader.fetch(10, 10.0)] == [b"from the child"]
    reader.close()


def test_who_starts_an_embedded_broker_says_how_others_find_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What bit: it told the bare address, at which every command waits for what this broker does not have until its time is up."""
    monkeypatch.setenv("STREAMJOBS_BOOTSTRAP", "embedded")
    broker = App("owner").broker
    try:
        told = dict([re.search(r"(STREAMJOBS_BOOTSTRAP)=(\S+)", caplog.text).groups()])  # type: ignore[union-attr]
        assert load({}, environ=told).bootstrap == broker.url  # type: ignore[attr-defined]
    finally:
        broker.close()


def test_a_member_of_another_process_is_seen_while_it_lives(embedded: Any, prefix: str, wait_until: Any) -> None:
    code = f"""
from streamjobs.kafka import EmbeddedBroker
class Nothing:
    def assigned(self, partitions): return {{}}
    def revoked(self, partitions): pass
    lost = revoked
member = EmbeddedBroker({embedded.url!r}).consumer({prefix!r})
member.subscribe([{prefix!r}], Nothing())
while True: member.fetch(0, 0.05)
"""
    admin = embedded.admin()
    admin.create_topics([Topic(prefix, 4)])
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: [len(m.assignment) for m in admin.groups([prefix])[prefix].members] == [4], 20)
    finally:
        child.kill()
        child.wait()

    assert admin.groups([prefix])[prefix].members == ()


def test_files_of_members_that_are_gone_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    members = Members("127.0.0.1:9")
    membership = members.member("g/h", "app", None)
    membership.tell([TopicPartition("t", 1)])
    assert [member["assignment"] for member in members.living("g/h")] == [[["t", 1]]]
    assert members.groups() == ["g/h"]

    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text().replace(str(os.getpid()), "99999999"))

    assert members.living("g/h") == []
    members.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", ["add_partitions", "alter_topic_config", "delete_topics"])
def test_what_the_embedded_broker_lacks_it_says(embedded: Any, order: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "add_partitions": ("t", 8),
        "alter_topic_config": ("t", {"retention.ms": "1"}),
        "delete_topics": (["t"],),
    }

    with pytest.raises(BrokerError, match="embedded broker can't"):
        getattr(embedded.admin(), order)(*arguments[order])


def test_the_embedded_broker_finds_an_instant_between_records(embedded: Any, prefix: str, wait_until: Any) -> None:
    where = TopicPartition(prefix, 2)
    producer = embedded.producer()
    producer.send(Record(prefix, b"a", None, (), 2))
    producer.flush(10)
    between = time.time() + 0.005
    wait_until(lambda: time.time() > between + 0.005)
    producer.send(Record(prefix, b"b", None, (), 2))
    producer.flush(10)
    producer.close()

    assert embedded.admin().offsets([where], between) == {where: 1}


# --- an address at which there is no broker ------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def complaint(bootstrap: str, ask: str = "topics", *arguments: Any) -> tuple[BrokerError, float]:
    """What the first question is answered with, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(BrokerError) as raised:
        getattr(KafkaBroker(bootstrap).admin(), ask)(*arguments)
    return raised.value, time.monotonic() - began


@pytest.mark.parametrize(("ask", "arguments"), [("topics", (["t"],)), ("cluster", ()), ("group_names", ())])
def test_an_address_at_which_nobody_listens_is_told_soon(ask: str, arguments: tuple[Any, ...]) -> None:
    """What was tried, where, why it failed, and what to do: not after 15 seconds that time is up."""
    bootstrap = nobody()

    error, took = complaint(bootstrap, ask, *arguments)

    assert took < 8
    assert error.retriable
    for part in (f" at {bootstrap}: ", "Connection refused: ", "is the broker running"):
        assert part in str(error)


def test_so_is_a_name_that_does_not_exist() -> None:
    error, took = complaint("nohost.invalid:9092")

    assert took < 10
    assert error.code == "_RESOLVE"
    assert " at nohost.invalid:9092: " in str(error)


def test_a_broker_that_is_slow_to_answer_has_all_its_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside one that refuses: one of them may answer yet."""
    monkeypatch.setattr("streamjobs.kafka.admin.REQUEST_TIMEOUT", 4.0)
    bootstrap = f"{silent},{nobody()}"

    error, took = complaint(bootstrap, "cluster")

    assert took > 4
    assert f" at {bootstrap}: " in str(error)


def test_a_record_is_given_up_when_its_time_is_up() -> None:
    """And not after the client's own nine seconds."""
    errors: list[BrokerError | None] = []
    producer = KafkaBroker(nobody()).producer(within=0.3)
    producer.send(Record("t", b"x", b"k"), lambda error, _: errors.append(error))
    producer.flush(5)
    producer.close(0)

    assert [error.code for error in errors if error] == ["_MSG_TIMED_OUT"]


def test_any_time_is_one_that_the_client_takes() -> None:
    """It takes 0 for no limit at all."""
    times = [config.within({}, seconds)["message.timeout.ms"] for seconds in (0.0001, 0.9, 54, 365 * 86_400)]

    assert times == [1, 900, 54_000, 2**31 - 1]
    KafkaBroker(nobody()).producer(within=365 * 86_400).close(0)


def test_a_record_that_found_no_broker_says_where_none_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config._WRITING, "message.timeout.ms", 1000)  # type: ignore[index]
    bootstrap = nobody()
    errors: list[BrokerError | None] = []
    producer = KafkaBroker(bootstrap).producer()
    producer.send(Record("t", b"x", b"k"), lambda error, _: errors.append(error))
    producer.flush(10)
    producer.close(0)

    assert [error.code for error in errors if error] == ["_MSG_TIMED_OUT"]
    for part in (f" at {bootstrap}: ", "Connection refused: ", "is the broker running"):
        assert part in str(errors[0])
