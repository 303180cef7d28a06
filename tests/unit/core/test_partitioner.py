"""Where records go: with a key as with Java's clients, without one by their job id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from streamjobs.core.partitioner import murmur2, partition_of, partition_of_job
from streamjobs.publish import new_id, new_ids


@pytest.mark.parametrize(
    ("data", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_it_hashes_as_java_does(data: bytes, signed: int) -> None:
    """The vectors of Apache Kafka's own `UtilsTest.testMurmur2`."""
    assert murmur2(data) == signed & 0xFFFFFFFF


def test_a_hash_above_2_to_the_31_is_made_positive_as_java_does() -> None:
    """By its mask, not by its absolute value."""
    assert partition_of(b"21", 100) == (-973932308 & 0x7FFFFFFF) % 100


@pytest.mark.parametrize("partitions", [1, 2, 3, 8, 10, 64])
@pytest.mark.parametrize(
    "ids",
    [lambda: new_ids(10_000), lambda: [new_id() for _ in range(10_000)], lambda: [f"inv-{number}" for number in range(10_000)]],
    ids=["of one call", "one by one", "of a user"],
)
def test_keyless_jobs_reach_all_partitions_alike(ids: Callable[[], list[str]], partitions: int) -> None:
    """Half as many again, or half as few, would be 6 standard deviations away in 64 partitions."""
    counts = Counter(partition_of_job(job_id.encode(), partitions) for job_id in ids())

    assert set(counts) == set(range(partitions))
    assert max(counts.values()) < 1.5 * 10_000 / partitions
    assert min(counts.values()) > 0.5 * 10_000 / partitions
