"""`deploy/kafka/local.py`: the broker that developers and these tests run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamjobs.broker import Topic, TopicPartition
from streamjobs.core.record import Record
from streamjobs.kafka import KafkaBroker


@pytest.fixture
def three(local_kafka: Any, tmp_path: Path) -> Iterator[Any]:
    """Three nodes, replication 3, min.insync.replicas 2."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    cluster = local_kafka.LocalKafka(tmp_path / "cluster", brokers=3, heap="384m", tied=True)
    cluster.start()
    yield cluster
    cluster.destroy()


def test_no_cluster_id_looks_like_an_option(local_kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([uuid.UUID(bytes=b"\xf8" * 16), uuid.UUID(bytes=b"\x00" * 16)])
    monkeypatch.setattr(local_kafka.uuid, "uuid4", lambda: next(drawn))
    assert local_kafka.new_cluster_id() == "A" * 22


def stored(broker: KafkaBroker, topic: str, value: bytes) -> bool:
    """Whether one attempt to send was acknowledged. (A dead leader is replaced after its session, which is 9 s.)"""
    errors: list[Any] = []
    producer = broker.producer()
    producer.send(Record(topic, value), lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    producer.close()
    return errors == [None]


@pytest.mark.long
@pytest.mark.broker
def test_a_node_may_be_killed_and_comes_back_where_it_was(three: Any, wait_until: Any) -> None:  # edge 34
    broker = KafkaBroker(three.bootstrap)
    admin = broker.admin()
    assert admin.create_topics([Topic("t", 1, 3)]) == {"t": None}
    wait_until(lambda: stored(broker, "t", b"three of three"), 60)
    address = three.node(2).address

    three.kill(2)
    assert not three.running(three.node(2))
    wait_until(lambda: stored(broker, "t", b"two of three"), 60)

    three.restart(2)
    assert three.node(2).address == address
    wait_until(three.answering, 60)
    wait_until(lambda: stored(broker, "t", b"three again"), 60)
    reader = broker.consumer(None)
    reader.assign({TopicPartition("t", 0): 0})
    found: list[bytes | None] = []
    wait_until(lambda: b"three again" in found, 60, lambda: found.extend(m.value() for m in reader.fetch(10, 0.1)))
    assert list(dict.fromkeys(found)) == [b"three of three", b"two of three", b"three again"]
    reader.close()
    broker.close()


@pytest.mark.long
@pytest.mark.broker
def test_the_command_line_starts_and_stops_one(local_kafka: Any, tmp_path: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("needs Java")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(local_kafka.HERE / "local.py"),
            *arguments,
            "--dir",
            str(tmp_path / "k"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    started = run("start", "--detach")
    try:
        assert started.returncode == 0, started.stderr
        assert run("start", "--detach").stdout == started.stdout
        assert "running" in run("status").stdout
        assert KafkaBroker(started.stdout.strip()).admin().cluster().id
    finally:
        run("stop")
    assert run("status").returncode == 1
    assert run("destroy").returncode == 0
    assert not (tmp_path / "k").exists()


@pytest.mark.long
@pytest.mark.broker
def test_a_tied_cluster_ends_with_its_process_however_that_ends(local_kafka: Any, tmp_path: Path, wait_until: Any) -> None:
    """A test run that is killed leaves no broker behind."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    code = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("local", {str(local_kafka.HERE / "local.py")!r})
sys.modules["local"] = local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
print(local.LocalKafka({str(tmp_path / "k")!r}, tied=True).start(), flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    port = int(owner.stdout.readline().rpartition(":")[2])
    assert local_kafka.ask_cluster(port)[0]

    owner.kill()
    owner.communicate()

    wait_until(lambda: not (tmp_path / "k").exists(), 60)
    assert local_kafka.ask_cluster(port) == ("", set())


def test_a_process_that_is_not_ours_is_left_alone(local_kafka: Any, tmp_path: Path) -> None:
    """A pid from an old file may belong to anybody by now."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    node = {"id": 1, "port": 1, "controller_port": 2, "pid": bystander.pid}
    (tmp_path / "cluster.json").write_text(json.dumps({"cluster_id": "x", "nodes": [node]}))

    local_kafka.LocalKafka(tmp_path).destroy()

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_somebody_elses_broker_on_our_port_is_not_taken_for_ours(local_kafka: Any, tmp_path: Path, embedded: Any) -> None:
    cluster = local_kafka.LocalKafka(tmp_path / "k")
    cluster.nodes[0].port = int(embedded.bootstrap.rpartition(":")[2])

    found, ports = local_kafka.ask_cluster(cluster.nodes[0].port)

    assert found
    assert ports == {cluster.nodes[0].port}
    assert not cluster._answer_together(cluster.nodes)


def test_nobody_there_is_no_answer(local_kafka: Any) -> None:
    (port,) = local_kafka.free_ports(1)

    assert local_kafka.ask_cluster(port) == ("", set())


def test_free_ports_are_different_ones(local_kafka: Any) -> None:
    assert len(set(local_kafka.free_ports(6))) == 6


def test_a_full_cluster_is_planned_once(local_kafka: Any, tmp_path: Path) -> None:
    """Ports and id are kept: a restart is a restart of the same cluster."""
    first = local_kafka.LocalKafka(tmp_path / "k", brokers=3)
    first._save()

    again = local_kafka.LocalKafka(tmp_path / "k")

    assert (again.cluster_id, again.bootstrap) == (first.cluster_id, first.bootstrap)
