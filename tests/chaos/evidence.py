"""What the topics hold when all is over, and every commit as the broker's own offsets topic has it: the end of a history."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from streamjobs.app import App
from streamjobs.broker import Broker, Message, TopicPartition
from streamjobs.core.offsets import METADATA_LIMIT, decode
from streamjobs.core.record import origin_of
from streamjobs.tables import bounds, changes
from tests.chaos.history import Committed, Place, Stored

OFFSETS = "__consumer_offsets"
#: A map of more characters may have been cut to the limit.
NEARLY_CUT = METADATA_LIMIT - 100
ROLES = {"main": "main", "retry": "retry", "delay": "delay", "dead": "dead"}


def job_topics(app: App) -> dict[str, str]:
    """The topics of this app that hold jobs, and the role of each."""
    found = {}
    for name in app.broker.admin().topics():
        role = app.names.role(name)
        if role is not None and role.kind in ROLES:
            found[name] = ROLES[role.kind]
    return found


def stored(app: App) -> Iterator[Stored]:
    """Every record of a job that any topic holds now."""
    for topic, role in job_topics(app).items():
        yield from stored_in(app.broker, topic, role)


def stored_in(broker: Broker, topic: str, role: str, start: dict[TopicPartition, int] | None = None) -> Iterator[Stored]:
    """The records of one topic, from its start or from `start` on, which is moved up to the end."""
    topic_id = broker.admin().topics([topic])[topic].id
    limits = bounds(broker, topic)
    if start is not None:
        limits = {tp: (start.get(tp, low), high) for tp, (low, high) in limits.items()}
        start |= {tp: high for tp, (_, high) in limits.items()}
    for message in changes(broker, limits):
        if message.value() is not None:
            yield _stored(message, topic_id, role)


def _stored(message: Message, topic_id: bytes, role: str) -> Stored:
    headers = dict(message.headers() or ())
    place = Place(message.topic(), message.partition(), message.offset())
    key = headers.get("sj_key") if role == "dead" else message.key()
    return Stored(
        role,
        place,
        message.timestamp()[1] / 1000,
        headers.get("ce_id", b"").decode(),
        headers.get("ce_type", b"").decode(),
        run=int(headers.get("sj_run", b"1")),
        attempt=int(headers.get("sj_attempt", b"1")),
        holds=int(headers.get("sj_holds", b"0")),
        due=int(headers.get("sj_due", b"0")) / 1000,
        origin=headers["sj_origin"].decode() if "sj_origin" in headers else origin_of(place.topic, topic_id, *place[1:]),
        key=None if key is None else key.decode(),
        reason=headers.get("sj_reason", b"").decode(),
        first="sj_origin" not in headers,
    )


def commits(broker: Broker, groups: Iterable[str]) -> Iterator[Committed]:
    """Every commit of these groups, in the order in which their coordinator stored them."""
    wanted = set(groups)
    for message in changes(broker, bounds(broker, OFFSETS)):
        commit = committed(message.key() or b"", message.value(), message.timestamp()[1] / 1000)
        if commit is not None and commit.group in wanted:
            yield commit


def committed(key: bytes, value: bytes | None, at: float) -> Committed | None:
    """A record of the offsets topic; None: it is about something else, or a commit was dropped.

    Format: OffsetCommitKey and OffsetCommitValue of Kafka's group coordinator.
    """
    reader = _Reader(key)
    if value is None or reader.number(">h") > 1:
        return None
    group, topic, partition = reader.text(), reader.text(), reader.number(">i")
    reader = _Reader(value)
    version, base = reader.number(">h"), reader.number(">q")
    if version >= 3:
        reader.number(">i")  # the leader's epoch
    # confluent-kafka's C text goes to the broker with the NUL at its end.
    metadata = (reader.compact_text() if version >= 4 else reader.text()).rstrip("\0")
    mark = decode(base, metadata)
    finished = mark.finished.ranges if mark else ()
    return Committed(group, topic, partition, base, at, finished, len(metadata) > NEARLY_CUT)


class _Reader:
    """Reads Kafka's primitive types one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, layout: str) -> int:
        (number,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return int(number)

    def text(self) -> str:
        return self._take(self.number(">h"))

    def compact_text(self) -> str:
        length = shift = 0
        while True:
            byte = self.number(">B")
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return self._take(length - 1)

    def _take(self, length: int) -> str:
        text = self._data[self._at : self._at + length].decode()
        self._at += length
        return text
