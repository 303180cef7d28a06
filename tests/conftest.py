"""Brokers for tests: `kafka` (a real one), `embedded` (librdkafka's), `memory`; and names that no other test has.

A real broker is, in this order: `STREAMJOBS_TEST_BOOTSTRAP`, a Docker engine through testcontainers, Java and Maven. With none
of them the tests that need one are skipped, loudly; with `CI=true` they fail.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from streamjobs.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
#: The version that Maven fetches and Docker runs stands in one place.
KAFKA_VERSION = re.search(r"kafka_2\.13</artifactId>\s*<version>([\d.]+)", (ROOT / "deploy/kafka/pom.xml").read_text())[1]  # type: ignore[index]
#: Waiting is compressed: sessions and polls end as soon as a broker allows it.
CLIENT_OPTIONS: dict[str, Any] = {
    "session_timeout_s": 6.0,
    "max_poll_interval_s": 6.0,
    "client_id": "streamjobs-tests",
}

# A slow, shared machine is not a defect: no example of a property has a deadline of its own.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

#: A property of a test's report; reports reach the process that counts, wherever a test ran.
ON_A_REAL_BROKER = ("broker", "real")
_numbers = itertools.count(1)


# -- the real broker ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real broker."""
    given = os.environ.get("STREAMJOBS_TEST_BOOTSTRAP")
    if given:
        yield given
    elif docker_answers():
        with kafka_in_docker() as bootstrap:
            yield bootstrap
    elif shutil.which("java") and (shutil.which("mvn") or local_kafka_module().LIBS.exists()):
        with kafka_from_maven(tmp_path_factory.mktemp("kafka")) as bootstrap:
            yield bootstrap
    else:
        no_real_broker()


@pytest.fixture
def kafka_with(kafka_bootstrap: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Broker]]:
    """`kafka_with(protocol="classic", …)`: a real broker with options of `KafkaBroker`.

    Counted, so that a run in which it was missing can't be mistaken for one in which all was well.
    """
    from streamjobs.kafka import KafkaBroker

    request.node.user_properties.append(ON_A_REAL_BROKER)
    with contextlib.ExitStack() as stack:

        def build(**options: Any) -> Broker:
            broker = KafkaBroker(kafka_bootstrap, **{**CLIENT_OPTIONS, **options})
            stack.callback(broker.close)
            return broker

        yield build


@pytest.fixture
def kafka(kafka_with: Callable[..., Broker]) -> Broker:
    """A real broker."""
    return kafka_with()


def no_real_broker() -> None:
    reason = (
        "NO REAL KAFKA: set STREAMJOBS_TEST_BOOTSTRAP, or start Docker, or install Java 17 and Maven. "
        "What holds on a broker is not tested in this run."
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    sys.stderr.write(f"\n*** {reason}\n")
    pytest.skip(reason)


def docker_answers() -> bool:
    if shutil.which("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        asked = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=10,
            check=False,
        )
        return asked.returncode == 0
    return False


@contextlib.contextmanager
def kafka_in_docker() -> Iterator[str]:
    from testcontainers.core.container import DockerContainer

    local = local_kafka_module()
    (port,) = local.free_ports(1)
    container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(9092, port)
    for name, value in container_settings(port).items():
        container = container.with_env(name, value)
    with container:
        if not local.wait_for(lambda: local.ask_cluster(port)[0] != "", local.START_TIMEOUT):
            pytest.fail(
                f"Kafka in Docker did not start; its log ends:\n{container.get_logs()[0][-3000:].decode(errors='replace')}"
            )
        yield f"127.0.0.1:{port}"


def container_settings(port: int) -> dict[str, str]:
    """`deploy/kafka/server.properties` as the image's environment, and what belongs to this one node."""
    properties = (ROOT / "deploy" / "kafka" / "server.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in properties if line and not line.startswith("#"))
    settings |= {
        "node.id": "1",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": "1@localhost:9093",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
    }
    for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
        settings[f"{topic}.replication.factor"] = "1"
        if topic != "offsets.topic":
            settings[f"{topic}.min.isr"] = "1"
    return {"KAFKA_" + name.replace(".", "_").upper(): value for name, value in settings.items()}


@contextlib.contextmanager
def kafka_from_maven(directory: Path) -> Iterator[str]:
    cluster = local_kafka_module().LocalKafka(directory / "cluster", tied=True)
    try:
        yield cluster.start()
    finally:
        cluster.destroy()


def local_kafka_module() -> ModuleType:
    """`deploy/kafka/local.py`, which is no package."""
    name = "streamjobs_local_kafka"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "kafka" / "local.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def local_kafka() -> Any:
    """The module that starts local clusters: `local_kafka.LocalKafka(directory, brokers=3)`."""
    return local_kafka_module()


# -- brokers that need nothing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def embedded_url() -> Iterator[str]:
    from streamjobs.kafka import EmbeddedBroker

    owner = EmbeddedBroker()
    yield owner.url
    owner.close()


@pytest.fixture
def embedded(embedded_url: str) -> Iterator[Broker]:
    """librdkafka's mock cluster: one for the whole run."""
    from streamjobs.kafka import EmbeddedBroker

    broker = EmbeddedBroker(embedded_url, **CLIENT_OPTIONS)
    yield broker
    broker.close()


@pytest.fixture
def memory() -> Iterator[Broker]:
    from streamjobs.testing import MemoryBroker

    broker = MemoryBroker(
        session_timeout=CLIENT_OPTIONS["session_timeout_s"],
        max_poll_interval=CLIENT_OPTIONS["max_poll_interval_s"],
    )
    yield broker
    broker.close()


# -- an app ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def app_on() -> Callable[..., Any]:
    """`app_on(broker, "invoices", partitions=8)`: an app with a job type in each of these queues and these settings."""
    from streamjobs.app import App

    def make(broker: Broker, *queues: str, name: str = "billing", **settings: Any) -> App:
        app = App(name, **{"partitions": 2, "delay.tiers": ["5s", "1m"], **settings})
        for queue in queues:
            app.job(name=f"job_in_{queue}", queue=queue)(_nothing)
        app._broker = broker
        return app

    return make


def _nothing() -> None:
    """A job that does nothing."""


# -- names and waiting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Part of a topic's or group's name that no other test, and no other run on the same broker, uses."""
    test = re.sub(r"[^A-Za-z0-9_-]+", "-", request.node.name)[:40].strip("-")
    return f"{test}-{os.getpid():x}{int(time.time()):x}{next(_numbers)}"


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(fact, timeout=…, turn=…)`: calls `turn` until `fact()` holds; fails when it does not in time."""
    return _wait_until


def _wait_until(
    fact: Callable[[], object],
    timeout: float = 30.0,
    turn: Callable[[], object] | None = None,
    pause: float = 0.01,
) -> None:
    deadline = time.monotonic() + timeout
    while not fact():
        assert time.monotonic() < deadline, f"not within {timeout} s: {fact}"
        if turn is None:
            time.sleep(pause)
        else:
            turn()


# -- which tests run ------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*lacks): not asked of a broker that lacks one of these (DESIGN.md, Brokers)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kafka_bootstrap" in getattr(item, "fixturenames", ()):
            item.add_marker("broker")


# -- a process of the suite that dies ------------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Says how it ended: by which signal, or with which code. The run ends then (`--max-worker-restart 0`): a replacement would get the
    rest of its tests, and now and then wait for ever for one more."""
    if error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended = node.gateway._io.popen.wait(10)
            sys.stderr.write(f"\n*** {node.gateway.id} ended with {ended} (negative: a signal)\n")


# -- the end of a run -----------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    count = sum(ON_A_REAL_BROKER in map(tuple, report.user_properties) for report in passed)
    skipped = sum("NO REAL KAFKA" in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(
        f"{count} tests passed on a real Kafka broker" + (f", {skipped} SKIPPED FOR WANT OF ONE" if skipped else "")
    )
