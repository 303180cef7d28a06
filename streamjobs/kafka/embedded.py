"""The embedded broker: librdkafka's own mock cluster, for a first try and for tests. It ends with the process that started it.

Topics appear on first use, with four partitions; a topic's id is the hash of its name. What it can't do is in `lacks`; what
its protocol lacks besides (groups' members, offsets by time, the limit of a commit's metadata) is made up for here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamjobs.broker import Consumer, Isolation, TopicPartition
from streamjobs.errors import BrokerError
from streamjobs.kafka import config
from streamjobs.kafka.cluster import KafkaBroker

if TYPE_CHECKING:
    from streamjobs.kafka.admin import KafkaAdmin

SCHEME = "embedded"
PARTITIONS = 4
LACKS = frozenset({"topic_admin", "topic_config", "topic_ids", "delete_records", "compaction", "transactions"})
START_TIMEOUT = 10.0


class EmbeddedBroker(KafkaBroker):
    """`EmbeddedBroker()` starts one and owns it; `EmbeddedBroker(owner.url)`, also in another process, uses it.

    Takes the keyword arguments of `KafkaBroker`. `bootstrap` is its address for any Kafka client.
    """

    lacks = LACKS

    def __init__(self, url: str = SCHEME, kafka_config: Mapping[str, Any] | None = None, **options: Any) -> None:
        address = url.removeprefix(SCHEME).removeprefix(":")
        self._cluster = None if address else _Cluster()
        super().__init__(self._cluster.address if self._cluster else address, kafka_config, **options)
        self.members = Members(self.bootstrap)

    @property
    def url(self) -> str:
        """What a child process sets as its bootstrap."""
        return f"{SCHEME}:{self.bootstrap}"

    def protocol(self) -> config.Protocol:
        """`consumer` unless chosen otherwise: a member joins in 0.05 s instead of 3 s, and two share in 3 s instead of 18.

        A member that was killed is missed after 30 s, whatever its group's session timeout is.
        """
        return "classic" if self._protocol_choice == "classic" else "consumer"

    def consumer(
        self, group: str | None, *, instance: str | None = None, isolation: Isolation = "read_committed", patient: bool = False
    ) -> Consumer:
        from streamjobs.kafka.embedded_clients import EmbeddedConsumer

        settings = self._consumer_config(group, instance, isolation, patient=patient)
        return EmbeddedConsumer(settings, self.members.member(group or "", self._client_id, instance))

    def _new_admin(self) -> KafkaAdmin:
        from streamjobs.kafka.embedded_clients import EmbeddedAdmin

        return EmbeddedAdmin(self._adapted(config.admin(self.bootstrap, self._client_id, self._kafka)), self)

    def _adapted(self, settings: config.Config) -> config.Config:
        return {**settings, "allow.auto.create.topics": True}

    def close(self) -> None:
        super().close()
        if self._cluster is not None:
            self._cluster.close()
            self.members.clear()


class _Cluster:
    """A client that owns a mock cluster, which lives as long as the client does."""

    def __init__(self) -> None:
        from confluent_kafka.cimpl import Producer

        from streamjobs.kafka.errors import as_broker_error
        from streamjobs.kafka.log import QuietLog

        with as_broker_error("start the embedded broker"):
            self._owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "", "logger": QuietLog()})
            brokers = self._owner.list_topics(timeout=START_TIMEOUT).brokers
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers.values())

    def close(self) -> None:
        self._owner.close()


class Members:
    """Who is in which group. The mock cluster does not tell, so members say it themselves, in files next to each other."""

    def __init__(self, bootstrap: str) -> None:
        name = f"streamjobs-embedded-{os.getuid()}-{bootstrap.rpartition(':')[2]}"
        self._directory = Path(tempfile.gettempdir()) / name

    def member(self, group: str, client_id: str, instance: str | None) -> Membership:
        return Membership(self._of(group), {"client_id": client_id, "instance": instance, "pid": os.getpid()})

    def groups(self) -> list[str]:
        return sorted(urllib.parse.unquote(path.name) for path in self._directory.glob("*") if path.is_dir())

    def living(self, group: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self._of(group).glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                member = json.loads(path.read_text())
                if _alive(member["pid"]):
                    found.append({"id": path.stem, **member})
        return found

    def clear(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def _of(self, group: str) -> Path:
        return self._directory / urllib.parse.quote(group, safe="")


class Membership:
    """One member's file: written when it joins and whenever its assignment changes, removed when it leaves."""

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        self._file = directory / f"{about['client_id']}-{os.getpid()}-{time.time_ns():x}.json"
        self._about = dict(about)

    @property
    def id(self) -> str:
        return self._file.stem

    def tell(self, assignment: list[TopicPartition]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({**self._about, "assignment": assignment}))
        new.replace(self._file)

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


def topic_id(name: str) -> bytes:
    """16 bytes that stand in for a topic's id."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def refused(what: str) -> BrokerError:
    return BrokerError("_NOT_IMPLEMENTED", f"the embedded broker can't {what}; use a real one (`make kafka`)")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
