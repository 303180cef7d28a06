"""Jobs without a broker: to give executors chunks by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from streamjobs.core.dispatch import Partition
from streamjobs.job import Job, JobType
from streamjobs.worker.executors import Chunk


class Message:
    def __init__(self, offset: int, key: bytes | None = None, headers: list[tuple[str, bytes]] | None = None) -> None:
        self._offset = offset
        self._key = key
        self._headers = headers

    def topic(self) -> str:
        return "jobs.by-hand"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return b"\x00"

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_700_000_000_000)


class ByHand:
    """Makes jobs and chunks of one partition, and collects what comes back."""

    def __init__(self) -> None:
        self.home = Partition("jobs.by-hand", 0, "by-hand", retry=False, topic_id=b"\x01\x02\x03\x04", epoch=1, tracker=None)
        self.results: SimpleQueue[Chunk] = SimpleQueue()
        self._offsets = itertools.count()

    def job(self, job_type: JobType[Any, Any], arguments: Mapping[str, Any], **more: Any) -> Job:
        offset = next(self._offsets)
        return Job.of(job_type, self.home, Message(offset, **more), None, tuple(arguments.values()), b"job-%d" % offset)

    def jobs(self, job_type: JobType[Any, Any], rows: Iterator[Mapping[str, Any]] | list[Mapping[str, Any]]) -> list[Job]:
        return [self.job(job_type, row) for row in rows]

    def lane(self, jobs: list[Job]) -> Job:
        """Links jobs as a lane does; its head."""
        for ahead, behind in itertools.pairwise(jobs):
            ahead.next = behind
        for job in jobs:
            job.lane = b"k"
        return jobs[0]

    def chunk(self, jobs: list[Job]) -> Chunk:
        return Chunk(jobs[0].kind, jobs, self.results)

    def result(self, timeout: float = 30.0) -> Chunk:
        try:
            return self.results.get(timeout=timeout)
        except Empty:
            raise AssertionError(f"no chunk came back within {timeout:g} s") from None


def wait_for(fact: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not fact():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.005)
