"""The partitioner that Java's clients use, for the records whose partition we choose ourselves."""

from __future__ import annotations

import pytest

from streamjobs.core.partitioner import murmur2, partition_of


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
