"""Keys of the Kafka client that streamjobs sets itself, each with the reason or with the setting to use instead.

`[kafka]` passes every other key of librdkafka through. One list, for the settings (which refuse a key where it stands) and for
the adapter (which refuses it from whoever made the mapping).
"""

from __future__ import annotations

import fnmatch

_GROUP = "it follows from `worker.group`, `worker.protocol`, `worker.instance` and `worker.session_timeout`"
_COMMITS = "a job is committed when it is finished, not when it was read"
_ACKS = "a job that was acknowledged must never be lost"
_EMPTY_HANDED = "it must be below `publish_timeout`: a publish that raised must not be delivered afterwards"
_CALLBACKS = "callbacks are the layer's own; its log, metrics and hooks are there to be used"

#: Patterns, as of `fnmatch`.
OWNED = {
    "bootstrap.servers": "it is the setting `bootstrap`",
    "metadata.broker.list": "it is the setting `bootstrap`",
    "client.id": "it is made from the name of the app and of the worker",
    "group.id": _GROUP,
    "group.instance.id": _GROUP,
    "group.protocol": _GROUP,
    "group.protocol.type": _GROUP,
    "group.remote.assignor": _GROUP,
    "session.timeout.ms": _GROUP,
    "heartbeat.interval.ms": _GROUP,
    "partition.assignment.strategy": _GROUP,
    "max.poll.interval.ms": "it is the setting `worker.max_poll_interval`",
    "enable.auto.commit": _COMMITS,
    "auto.commit.enable": _COMMITS,
    "auto.commit.interval.ms": _COMMITS,
    "enable.auto.offset.store": _COMMITS,
    "enable.partition.eof": "the end of a partition is asked from the broker; an event for it would only wake a loop",
    "auto.offset.reset": "a partition starts where the group's registration and commits say, never at a guess",
    "isolation.level": "jobs of aborted transactions must not run",
    "partitioner": "keys must go where the Java client puts them (murmur2), or jobs of one key lose their order",
    "acks": _ACKS,
    "request.required.acks": _ACKS,
    "enable.idempotence": _ACKS,
    "message.timeout.ms": _EMPTY_HANDED,
    "delivery.timeout.ms": _EMPTY_HANDED,
    "message.max.bytes": "it follows from `max_message_bytes`",
    "transactional.id": "it is made from what the transaction is for",
    "transaction.timeout.ms": "a client that was killed in a transaction hides the records behind it for so long",
    "allow.auto.create.topics": "topics are made by `streamjobs topic apply`, which gives them the right retention",
    "test.mock.*": 'set `bootstrap = "embedded"` instead',
    "on_commit": _CALLBACKS,
    "*_cb": _CALLBACKS,
    "opaque": _CALLBACKS,
    "logger": _CALLBACKS,
}


def refused(key: str) -> str | None:
    """Why a key of the client can't be passed through; None: it can."""
    return next((reason for pattern, reason in OWNED.items() if fnmatch.fnmatchcase(key, pattern)), None)
