"""Dead letters as a worker writes them, without running one: a table of any size in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streamjobs import App, tables
from streamjobs.core.delay import Ladder
from streamjobs.core.dispatch import Partition
from streamjobs.core.lifecycle import Reason
from streamjobs.core.record import CONTENT_TYPE, Header, Headers, Meta, Record
from streamjobs.worker.settle import Cause, Routes, letter_record


class Was:
    """The record of a job that died: run 1, at an offset of its queue's topic."""

    def __init__(self, topic: str, partition: int, offset: int, value: bytes | None, key: bytes | None, headers: Any) -> None:
        self._where = topic, partition, offset
        self._value, self._key, self._headers = value, key, headers

    def topic(self) -> str:
        return self._where[0]

    def partition(self) -> int:
        return self._where[1]

    def offset(self) -> int:
        return self._where[2]

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> list[Header]:
        return list(self._headers)

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_750_000_000_000


class Letters:
    """Makes letters of one job type of an app; `error`: what killed them."""

    def __init__(self, app: App, job_type: str, error: BaseException | None = None) -> None:
        self.app = app
        self.job_type = app.job_types[job_type]
        self.error = error or ValueError("it failed")
        self.queue = self.job_type.queue
        names = app.names
        self.topics = app.broker.admin().topics([names.main(self.queue), names.dead(self.queue, app.group)])
        self.main = self.topics[names.main(self.queue)]
        self.routes = Routes(names, app.name, app.group, Ladder(), {})

    def record(
        self,
        arguments: Mapping[str, Any],
        offset: int,
        *,
        job_id: str = "",
        reason: Reason = Reason.EXHAUSTED,
        attempt: int = 15,
        headers: Headers = (),
        value: bytes | None = None,
    ) -> Record:
        """The letter of the job that lay at this offset of partition 0 of the queue's topic."""
        job_type = self.job_type
        checked = job_type.payload.bind((), arguments)
        key = job_type.key_of(checked)
        told = job_id or f"job-{offset}"
        own: list[Header] = [("ce_type", job_type.name.encode()), ("ce_id", told.encode()), ("content-type", CONTENT_TYPE), *headers]
        made = value if value is not None else job_type.payload.encode(checked)
        was = Was(self.main.name, 0, offset, made, None if key is None else key.encode(), own)
        home = Partition(self.main.name, 0, self.queue, retry=False, topic_id=self.main.id, epoch=0, tracker=None)
        return letter_record(self.routes, was, home, Meta.parse(own), Cause(reason, self.error, run=attempt, attempt=attempt))

    def write(self, records: Iterable[Record]) -> int:
        """Puts them on the table, a thousand at a time; how many they were."""
        producer = self.app.broker.producer()
        count = 0
        try:
            for batch in _batches(records, 10_000):
                tables.write(producer, batch, timeout=60.0)
                count += len(batch)
        finally:
            producer.close()
        return count

    def bury(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """A letter for each of these arguments."""
        return self.write(self.record(row, offset) for offset, row in enumerate(rows))


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
