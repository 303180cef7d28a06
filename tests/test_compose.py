"""docker-compose.yml, deploy/Dockerfile and deploy/prometheus: every command, option, path, setting, port and metric in them exists.

What Docker itself would say of the file is asked of a compose tool where there is one; no engine is needed for that.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamjobs.core.duration import seconds
from streamjobs.settings import env_name, load
from streamjobs.telemetry.catalogue import METRICS, series_of
from streamjobs.worker.process import STUCK_LOOP_S
from streamjobs.worker.supervise import SICK_S, SILENT_S
from tests.command_lines import fault

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "streamjobs-demo"}
WORKERS = {name: service for name, service in OURS.items() if service["command"][0] == "worker"}
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())

#: The keys of the compose specification that we use: a misspelt one is found without a compose tool.
KEYS = {
    "image", "build", "command", "environment", "depends_on", "restart", "stop_grace_period", "ports", "volumes", "healthcheck",
}  # fmt: skip
TOOLS = (["docker", "compose"], ["docker-compose"], ["podman-compose"])


def settings_of(service: dict[str, Any]) -> Any:
    """What the service's program reads: the image's environment, then the service's."""
    image = dict(re.findall(r"\b(STREAMJOBS_\w+)=(\S+)", DOCKERFILE))
    return load({}, environ={**image, **service["environment"]})


# --- the file -------------------------------------------------------------------------------------------------------------


def test_kafka_writes_into_its_volume() -> None:
    """Else the volume stays empty, and jobs are gone with the container, at `down` or a new image; only `down -v` should forget them."""
    kafka = COMPOSE["services"]["kafka"]
    name, _, mounted = kafka["volumes"][0].partition(":")
    assert name in COMPOSE["volumes"]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] == mounted


def test_there_is_what_a_newcomer_needs() -> None:
    assert set(SERVICES) == {"kafka", "topics", "worker-1", "worker-2", "prometheus"}
    assert set(WORKERS) == {"worker-1", "worker-2"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_known_keys_and_dependencies(name: str) -> None:
    service = SERVICES[name]

    assert service.keys() <= KEYS
    assert service.get("depends_on", {}).keys() <= SERVICES.keys()
    for other, how in service.get("depends_on", {}).items():
        needed = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}[how["condition"]]
        assert needed in SERVICES[other]
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or (source.startswith("./") and (ROOT / source).exists())


def test_a_compose_tool_takes_the_file() -> None:
    tool = next((tool for tool in TOOLS if _answers(tool)), None)
    if tool is None:
        pytest.skip("no compose tool here (docker compose, docker-compose, podman-compose): only the checks above ran")
    run = subprocess.run([*tool, "-f", str(ROOT / "docker-compose.yml"), "config"], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 0, run.stderr
    assert {*yaml.safe_load(run.stdout)["services"]} == {*SERVICES}


def _answers(tool: list[str]) -> bool:
    if shutil.which(tool[0]) is None:
        return False
    return subprocess.run([*tool, "version"], capture_output=True, timeout=30, check=False).returncode == 0


# --- Kafka ----------------------------------------------------------------------------------------------------------------


def test_kafka_is_the_version_that_the_tests_run_on() -> None:
    pom = (ROOT / "deploy/kafka/pom.xml").read_text()
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>([\d.]+)", pom)

    assert version
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_kafka_is_set_up_as_the_local_one() -> None:
    """What both say, both say alike; what makes takeovers fast and typing errors harmless stands in both."""
    lines = (ROOT / "deploy/kafka/server.properties").read_text().splitlines()
    local = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    here = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): str(value) for name, value in SERVICES["kafka"]["environment"].items()
    }
    own = {"listener.security.protocol.map", "inter.broker.listener.name"}

    assert {key: here[key] for key in here.keys() & local.keys() - own} == {key: local[key] for key in here.keys() & local.keys() - own}
    assert {"auto.create.topics.enable", "process.roles", *(key for key in local if key.startswith("group."))} <= here.keys()


def test_kafka_is_reached_where_its_clients_look_for_it() -> None:
    environment = SERVICES["kafka"]["environment"]
    advertised = dict(address.split("://") for address in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = {address.rpartition(":")[2] for address in environment["KAFKA_LISTENERS"].split(",")}

    assert advertised["OUTSIDE"] == load({}, environ={}).bootstrap
    for service in OURS.values():
        assert settings_of(service).bootstrap == advertised["INSIDE"]
    assert {address.rpartition(":")[2] for address in advertised.values()} <= listening
    assert SERVICES["kafka"]["ports"] == ["127.0.0.1:9092:9092"]


# --- our own services -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_commands_exist_with_these_options(name: str) -> None:
    assert fault(OURS[name]["command"]) is None


def test_commands_in_the_comments_exist() -> None:
    lines = re.findall(r"^#.*\bstreamjobs (.+)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)

    assert [fault(shlex.split(line)) for line in lines] == [None, None]


@pytest.mark.parametrize("name", OURS)
def test_environment_names_are_settings_and_values_fit(name: str) -> None:
    environment = OURS[name]["environment"]
    settings = settings_of(OURS[name])

    for variable in environment:
        assert variable in {env_name(value.path) for value in settings.values()}
    module, _, attribute = settings.app.partition(":")
    assert hasattr(__import__(module, fromlist=[attribute]), attribute)


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_may_drain_before_it_is_killed(name: str) -> None:
    drain_s = settings_of(WORKERS[name]).worker.drain

    assert seconds(WORKERS[name]["stop_grace_period"]) > drain_s


def test_workers_start_after_their_topics() -> None:
    for worker in WORKERS.values():
        assert worker["depends_on"] == {"topics": {"condition": "service_completed_successfully"}}
    assert SERVICES["topics"]["command"][:2] == ["topic", "apply"]
    assert SERVICES["topics"]["restart"] == "no"


# --- the image ------------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_what_is_there() -> None:
    for service in OURS.values():
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored


def test_the_image_runs_the_worker_as_nobody_special() -> None:
    instructions = re.findall(r"^(USER|ENTRYPOINT|CMD|EXPOSE) (.+)$", DOCKERFILE, re.MULTILINE)

    assert ("USER", "streamjobs") in instructions
    assert ("ENTRYPOINT", '["streamjobs"]') in instructions
    assert ("CMD", '["worker"]') in instructions


def test_ports_agree() -> None:
    """Where workers listen, what the image exposes and asks for its health, and what Prometheus scrapes."""
    port = load({}, environ={}).worker.address()[1]  # type: ignore[index]
    (scrape,) = PROMETHEUS["scrape_configs"]

    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{port}/healthz" in DOCKERFILE
    assert {target for static in scrape["static_configs"] for target in static["targets"]} == {f"{name}:{port}" for name in WORKERS}
    for worker in WORKERS.values():
        listen = worker["command"][worker["command"].index("--listen") + 1]
        assert listen == settings_of(worker).worker.listen == f"0.0.0.0:{port}"


# --- alerts ---------------------------------------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    (name,) = PROMETHEUS["rule_files"]
    found = yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_a_stuck_worker_is_told_of_before_its_supervisor_ends_it() -> None:
    """What bit: more than 60 s, for a minute, of a series that is gone after 90 s: nobody was ever woken."""
    (rule,) = (rule for rule in rules() if rule["alert"] == "StreamjobsWorkerStuck")
    (after_s,) = re.findall(r"> (\d+)$", rule["expr"])
    told_after_s = int(after_s) + seconds(rule.get("for", "0s"))
    gone_after_s = STUCK_LOOP_S + SICK_S + SILENT_S

    assert STUCK_LOOP_S < told_after_s < gone_after_s - 30, "with whatever scrape interval"
    assert f"After {gone_after_s:g} s its supervisor kills" in (ROOT / "docs/operations.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_ask_for_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = {series: metric for metric in METRICS.values() for series in series_of(metric)}
    asked = re.findall(r"\bstreamjobs_\w+", rule["expr"])
    labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = re.search(r"by \(([^)]*)\)", rule["expr"])

    for series in asked:
        assert known[series].process == "worker", "only workers are scraped"
        assert labels <= {*known[series].labels, "instance"}
        assert {*re.findall(r"(\w+)\s*=", rule["expr"])} - {"job"} <= {*known[series].labels}
    if grouped:
        assert labels <= {name.strip() for name in grouped[1].split(",")}
    assert f"### {rule['alert']}\n" in (ROOT / "docs/operations.md").read_text(), "say what to do about it"
