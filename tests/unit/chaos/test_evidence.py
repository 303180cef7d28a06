"""Reading commits from the broker's own offsets topic."""

from __future__ import annotations

from streamjobs.core.offsets import Finished, Mark, encode
from tests.chaos.evidence import committed
from tests.chaos.history import Committed

#: As Apache Kafka 4.4 stored the commit of offset 3 with the map {5, 6, 9} for group g, topic t, partition 0.
KEY = b"\x00\x01\x00\x01g\x00\x01t\x00\x00\x00\x00"
VALUE = (
    b"\x00\x04\x00\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff\x19sj1WwPxDmFiY2QAAAAAADI=\x00"
    b"\x00\x00\x01\xa2\r=\x12\xa2\x01\x00\x10\xe5;\xf7N\xee\x9cI\x19\xa8b+\x86\xf0Y\x1a4"
)


def test_a_commit_and_its_map_are_read() -> None:
    assert committed(KEY, VALUE, 1.0) == Committed("g", "t", 0, 3, 1.0, ((5, 7), (9, 10)))


def test_a_commit_in_the_older_format_is_read() -> None:
    metadata = encode(3, Mark(b"abcd", Finished.of([5]))).encode()
    value = b"\x00\x03" + VALUE[2:14] + len(metadata).to_bytes(2, "big") + metadata + bytes(8)

    assert committed(KEY, value, 1.0) == Committed("g", "t", 0, 3, 1.0, ((5, 6),))


def test_what_is_no_commit_is_left_out() -> None:
    """A tombstone, and a member's record of the same group."""
    assert committed(KEY, None, 1.0) is None
    assert committed(b"\x00\x05\x00\x01g\x00\x01m", b"\x00\x00", 1.0) is None
