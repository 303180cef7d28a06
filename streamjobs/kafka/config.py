"""Our settings as librdkafka's, and what `[kafka]` passes through (all but the keys of `core/client_keys.py`).

Names and meaning of the keys: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md. This module imports no
client, so that settings can be checked without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from streamjobs.core import client_keys
from streamjobs.errors import SettingsError

Protocol = Literal["consumer", "classic"]
Config = dict[str, Any]

#: Below the default of `publish_timeout`, as `within` has it for any other. Below `transaction.timeout.ms`.
MESSAGE_TIMEOUT_MS = 9_000
#: A client that was killed in a transaction hides the records behind it for so long.
TRANSACTION_TIMEOUT_MS = 10_000
#: What retry and dead-letter headers may add to a job of the largest size.
HEADROOM = 65_536
#: librdkafka's own limit of a batch; never more than one record of the largest size, or the topic refuses all of it.
BATCH_BYTES = 1_000_000

#: A member learns of a rebalance by its heartbeat: with librdkafka's 3 s a second member waits 6 s, with 1 s it waits 2.
HEARTBEAT_MS = 1_000

_CONNECTION: Mapping[str, Any] = {
    "socket.keepalive.enable": True,
    # After an outage all is well again within a second, not within ten: a producer's records live for only nine.
    "reconnect.backoff.max.ms": 1_000,
    # Nor within fifteen: in a network that swallows packets, the kernel asks for a connection again after 1, 3, 7 and 15 seconds. A
    # worker that was cut off for 14 s met its group 13 s after that, and ran what others had run meanwhile (measured).
    "socket.connection.setup.timeout.ms": 5_000,
    # New partitions are seen after so long (the classic protocol would need five minutes).
    "topic.metadata.refresh.interval.ms": 10_000,
    "allow.auto.create.topics": False,
    # A topic that is missing, or was deleted, is said to be: a producer's record would end as timed out, a reader wait.
    "topic.metadata.propagation.max.ms": 5_000,
}

_READING: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": False,
    # A partition that has room again is not asked for before the fetch of the others has come back: after so long where they are empty.
    # Until then it lives of the 9,500 jobs that it holds. With 50 an idle worker took a tenth of a percent of a CPU more.
    "fetch.wait.max.ms": 100,
    # A backlog of a million costs 57 MiB instead of 127. With so small a buffer the back-off decides (measured, us a record):
    # 1000 ms (the default) 196, 20 ms 4.4, 5 ms 1.5, 2 ms 0.9 (and 0.6 % of a CPU while nobody takes records), 1 ms 0.9.
    "queued.min.messages": 2_000,
    "fetch.message.max.bytes": 262_144,
    "fetch.queue.backoff.ms": 2,
}

_WRITING: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    # Whoever publishes one job waits for its acknowledgement, and with the client's 5 ms for nothing else. Many at once are
    # gathered anyway while five requests are under way: no fewer a second (measured).
    "linger.ms": 0,
    "message.timeout.ms": MESSAGE_TIMEOUT_MS,
}


def passed_through(kafka: Mapping[str, Any]) -> Config:
    """`[kafka]` as librdkafka takes it. Raises SettingsError for a key that we own."""
    for key in kafka:
        reason = client_keys.refused(key)
        if reason:
            raise SettingsError(f"kafka.{key} can't be set: {reason}")
    return {key: _text(value) for key, value in kafka.items()}


def admin(bootstrap: str, client_id: str, kafka: Mapping[str, Any]) -> Config:
    return {**_CONNECTION, **passed_through(kafka), "bootstrap.servers": bootstrap, "client.id": client_id}


def reader(bootstrap: str, client_id: str, kafka: Mapping[str, Any], isolation: str) -> Config:
    """Explicit partitions, no group: the group id is only there because the client insists on one; it never joins."""
    config = {**_READING, **admin(bootstrap, client_id, kafka)}
    return {**config, "group.id": client_id, "isolation.level": isolation}


def patient(config: Config, kafka: Mapping[str, Any], *, member: bool) -> Config:
    """Of a consumer that mostly waits at the end of the same partitions: the broker is asked twice a second instead of ten times;
    five times for a member of a group, whose full partitions are read on that much later."""
    return {**config, "fetch.wait.max.ms": 200 if member else 500, **passed_through(kafka)}


def member(
    bootstrap: str,
    client_id: str,
    kafka: Mapping[str, Any],
    isolation: str,
    *,
    group: str,
    protocol: Protocol,
    instance: str | None,
    session_timeout_s: float,
    max_poll_interval_s: float,
) -> Config:
    """A group's member. Under `consumer` (KIP-848) the session timeout is the group's, on the broker, and can't be set here."""
    config = {**reader(bootstrap, client_id, kafka, isolation), "group.id": group, "group.protocol": protocol}
    config["max.poll.interval.ms"] = round(max_poll_interval_s * 1000)
    if instance:
        config["group.instance.id"] = instance
    if protocol == "classic":
        session_ms = round(min(session_timeout_s, max_poll_interval_s) * 1000)
        config["partition.assignment.strategy"] = "cooperative-sticky"
        config["session.timeout.ms"] = session_ms
        config["heartbeat.interval.ms"] = min(HEARTBEAT_MS, max(1, session_ms // 3))
    return config


def producer(bootstrap: str, client_id: str, kafka: Mapping[str, Any], max_message_bytes: int) -> Config:
    config = {
        "batch.size": min(BATCH_BYTES, max_message_bytes),
        **_WRITING,
        **admin(bootstrap, client_id, kafka),
    }
    return {**config, "message.max.bytes": max_message_bytes + HEADROOM}


def within(config: Config, seconds: float) -> Config:
    """A producer's configuration that gives a record up after so long. The client takes 0 for no limit, and no more than 31 bits."""
    return {**config, "message.timeout.ms": min(max(1, int(seconds * 1000)), 2**31 - 1)}


def transactional(config: Config, transactional_id: str) -> Config:
    """A producer's configuration with a transactional id. With the default back-off a small transaction takes 77 ms, so 5."""
    own = {"transactional.id": transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}
    return {"retry.backoff.ms": 1, "retry.backoff.max.ms": 50, **config, **own}


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
