"""A cluster with access rules: what may not be written keeps its place, and goes on once it may."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.story import Story, cpu_s, free_port, probe
from tests.support.workers import eventually

#: Of one core, while nothing can be done.
LITTLE = 0.4


@pytest.fixture(scope="module")
def guarded_kafka(local_kafka: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A broker with the standard authorizer. Everybody is ANONYMOUS and no super user, so that rules hold for tests, too."""

    class Guarded(local_kafka.LocalKafka):  # type: ignore[misc]
        def _write_properties(self, node: Any) -> None:
            super()._write_properties(node)
            with self._properties(node).open("a") as file:
                file.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
                file.write("allow.everyone.if.no.acl.found=true\n")

    cluster = Guarded(tmp_path_factory.mktemp("guarded") / "cluster")
    cluster.start()
    yield cluster
    cluster.destroy()


class Rules:
    """Who may do what with one topic: everybody everything, except what is denied."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        from confluent_kafka.admin import AclOperation, AclPermissionType, AdminClient

        self._client = AdminClient({"bootstrap.servers": bootstrap})
        self._topic = topic
        self._allow = self._rule(AclOperation.ALL, AclPermissionType.ALLOW)
        self._deny = self._rule(AclOperation.WRITE, AclPermissionType.DENY)

    def _rule(self, operation: Any, permission: Any) -> Any:
        from confluent_kafka.admin import AclBinding, ResourcePatternType, ResourceType

        return AclBinding(ResourceType.TOPIC, self._topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission)

    def deny(self) -> None:
        self._carry_out(self._client.create_acls([self._allow, self._deny]))

    def relent(self) -> None:
        from confluent_kafka.admin import AclBindingFilter

        gone = self._deny
        parts = gone.restype, gone.name, gone.resource_pattern_type, gone.principal, gone.host, gone.operation, gone.permission_type
        self._carry_out(self._client.delete_acls([AclBindingFilter(*parts)]))

    def _carry_out(self, answers: Any) -> None:
        for future in answers.values():
            future.result(10)


@pytest.fixture
def guarded_story(kafka: Any, guarded_kafka: Any, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Story]]:
    stories: list[Story] = []

    def build(partitions: int = 2, **env: str) -> Story:
        stories.append(Story(guarded_kafka.bootstrap, prefix, tmp_path, partitions, env))
        return stories[-1]

    yield build
    for each in stories:
        each.close()


@pytest.mark.parametrize("which", ["retry", pytest.param("dead", marks=pytest.mark.long)])
def test_a_topic_that_may_not_be_written_to(guarded_story: Callable[..., Story], which: str) -> None:  # edge 33
    """
    Somebody takes away the right to write to the retry (or the dead-letter) topic. Going on without the record loses the job, trying
    at full speed is a storm. The jobs that need it keep their places, `/readyz` names the topic, the others run.
    """
    world = guarded_story()
    topic = world.retry if which == "retry" else world.dead
    rules = Rules(world.env["STREAMJOBS_BOOTSTRAP"], topic)
    port = free_port()
    worker = world.worker("--listen", f"127.0.0.1:{port}")
    world.spread("step", [{"n": n} for n in range(100)])
    eventually(lambda: len(set(world.ends())) == 100, 60, "jobs flow")

    rules.deny()
    if which == "retry":
        world.spread("failing", [{"n": 1_000 + n, "fails": 1} for n in range(10)])
    else:
        world.spread("refused", [{"n": 1_000 + n} for n in range(10)])
    eventually(lambda: any(topic in name for name in probe(port, "/readyz")[1]), 60, "/readyz names the topic")
    reason = next(why for name, why in probe(port, "/readyz")[1].items() if topic in name)
    used, began = cpu_s(worker), time.monotonic()
    world.spread("step", [{"n": 100 + n} for n in range(100)])
    eventually(lambda: len(set(world.ends())) == 200, 60, "other jobs run")
    eventually(lambda: time.monotonic() - began > 4, 10, "a while to spin in")
    share = (cpu_s(worker) - used) / (time.monotonic() - began)

    rules.relent()
    if which == "retry":
        eventually(lambda: set(world.ends()) == {*range(200), *range(1_000, 1_010)}, 90, "the failed jobs' second runs")
    eventually(lambda: probe(port, "/readyz")[0] == 200, 60, "it is ready again")
    assert worker.stop() == 0
    letters = len(world.records(world.dead))
    print(f"\nwriting to the {which} topic denied: {reason}; 10 jobs kept their places, 100 others ran, {share:.0%} of a core")
    assert "AUTHORIZATION" in reason and share < LITTLE
    assert letters == (0 if which == "retry" else 10)
    assert max(Counter((e["n"], e["run"]) for e in world.ledger.entries() if e["what"] == "start").values()) == 1
