"""The brokers under chaos: local ones that can be killed, frozen and restarted, also reachable from another network."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.wire import second_listener
from tests.support.workers import ROOT


def local_module() -> ModuleType:
    """`deploy/kafka/local.py`, which is no package."""
    name = "streamjobs_local_kafka"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "kafka" / "local.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Brokers:
    """One broker or three. `host`: an address at which they also listen; `outside` is their bootstrap there."""

    def __init__(self, directory: Path, count: int, host: str = "") -> None:
        local = local_module()
        self.count = count
        self._ports = dict(zip(range(1, count + 1), local.free_ports(count), strict=True)) if host else {}
        self.outside = ",".join(f"{host}:{port}" for port in self._ports.values())
        ports = self._ports

        class Cluster(local.LocalKafka):  # type: ignore[misc, name-defined]
            def _write_properties(self, node: Any) -> None:
                super()._write_properties(node)
                if host:
                    with self._properties(node).open("a") as file:
                        file.write(second_listener(node, f"{host}:{ports[node.id]}"))

        self._cluster = Cluster(directory, count, heap="512m")

    def start(self) -> str:
        bootstrap: str = self._cluster.start()
        return bootstrap

    def end_one(self, number: int, how: int = signal.SIGKILL) -> None:
        self._cluster.kill(number, how)

    def start_one(self, number: int) -> None:
        self._cluster.restart(number)

    def freeze(self, number: int) -> None:
        self._cluster.suspend(number)

    def thaw(self, number: int) -> None:
        self._cluster.resume(number)

    def lead_again(self) -> None:
        """Every partition's leader is the first of its replicas again, wherever leadership has gone since."""
        from confluent_kafka import ElectionType, KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": self._cluster.bootstrap})
        with contextlib.suppress(KafkaException):  # it was too soon for some: they stay where they are
            client.elect_leaders(ElectionType.PREFERRED).result(20)

    def logs(self) -> list[Path]:
        return sorted(self._cluster.directory.glob("node-*/broker.log"))

    def destroy(self) -> None:
        self._cluster.destroy()
