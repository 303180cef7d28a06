import binascii
import tracemalloc
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamjobs.core.offsets import (
    MAX_OFFSET,
    METADATA_LIMIT,
    NONE,
    Finished,
    Mark,
    Parked,
    Tracker,
    decode,
    encode,
    parked_size,
)

TOPIC = b"\x1f\x2e\x3d\x4c"

offset_sets = st.sets(st.integers(0, 400))
bases = st.integers(0, MAX_OFFSET // 2)


def tracker_with(received, finished=(), base=0):
    tracker = Tracker(base)
    for offset in received:
        tracker.receive(offset)
    tracker.finish_many(list(finished))
    return tracker


class TestTracker:
    def test_nothing_received_leaves_the_base_where_it_began(self):
        tracker = Tracker(7)

        assert (tracker.base, tracker.position, tracker.unfinished, tracker.span) == (7, 7, 0, 0)
        assert tracker.snapshot() == (7, NONE)

    def test_base_is_the_lowest_unfinished_offset_not_the_highest_seen(self):  # edge 12
        """Committing one past the highest that was read loses, at a revoke, every job below it that still
        runs.
        """
        tracker = tracker_with(range(10), finished=[0, 1, 2, 4, 9])

        assert tracker.base == 3
        assert tracker.snapshot() == (3, Finished(((4, 5), (9, 10))))

    def test_all_finished_puts_the_base_one_past_the_last_received(self):  # edge 12
        assert tracker_with(range(10), finished=range(10)).base == 10

    @pytest.mark.parametrize("order", [range(100), range(99, -1, -1), [*range(50, 100), *range(50)]])
    def test_order_of_finishing_does_not_matter(self, order):
        tracker = tracker_with(range(100))

        assert [tracker.finish(offset) for offset in order] == [True] * 100
        assert (tracker.base, tracker.unfinished) == (100, 0)

    def test_a_snapshot_is_of_one_instant(self):  # edge 13
        """A base from now with a map from before (or the reverse) adds up to an offset beyond the log's end."""
        tracker = tracker_with(range(10), finished=[5])
        base, finished = tracker.snapshot()
        tracker.finish_many(range(5))

        assert (base, finished) == (0, Finished(((5, 6),)))
        assert tracker.snapshot() == (6, NONE)

    def test_a_job_that_finishes_during_a_commit_keeps_the_tracker_dirty(self):  # edge 14
        tracker = tracker_with(range(3), finished=[0])
        sent = tracker.version
        tracker.finish(1)
        acked = sent

        assert tracker.version != acked

    def test_nothing_new_to_commit_leaves_the_version_alone(self):
        tracker = tracker_with(range(3), finished=[0])
        version = tracker.version
        tracker.receive(3)
        tracker.finish(0)
        tracker.finish(99)
        tracker.snapshot()

        assert tracker.version == version

    def test_gaps_in_the_log_are_never_waited_for(self):  # edge 15
        """Transaction markers, aborted transactions and compaction leave offsets that no consumer ever gets."""
        tracker = tracker_with([0, 2, 5, 100], finished=[0, 2])
        assert tracker.base == 5

        tracker.finish(5)
        assert tracker.base == 100
        tracker.finish(100)
        assert (tracker.base, tracker.unfinished) == (101, 0)

    def test_a_gap_right_at_the_start_moves_the_base(self):  # edge 15
        tracker = tracker_with([12], base=10)

        assert (tracker.base, tracker.unfinished) == (12, 1)

    def test_a_gap_of_any_size_costs_nothing(self):  # edge 15
        tracker = tracker_with([3, 10**15], base=0)

        assert (tracker.base, tracker.unfinished, tracker.span) == (3, 2, 10**15 - 2)
        assert tracker.snapshot() == (3, Finished(((4, 10**15),)))
        assert tracker.finish(3)
        assert tracker.base == 10**15

    def test_idle_base_follows_the_position_over_trailing_markers(self):  # edge 16
        """Behind the last record of a transactional topic stands a marker: its lag would be 1 for ever."""
        tracker = tracker_with([0, 1], finished=[0, 1])
        version = tracker.version

        assert tracker.position_to(3)
        assert (tracker.base, tracker.unfinished) == (3, 0)
        assert tracker.version != version
        assert tracker.receive(3)
        assert tracker.base == 3

    def test_busy_base_does_not_follow_the_position(self):  # edge 16
        tracker = tracker_with([0, 1], finished=[1])

        assert not tracker.position_to(3)
        assert tracker.base == 0

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_a_position_at_or_behind_the_base_never_moves_it_back(self, position):
        tracker = tracker_with([0, 1], finished=[0, 1])

        assert not tracker.position_to(position)
        assert tracker.base == 2

    @pytest.mark.parametrize("offset", [-1, 0, 4, 5, 9, 10, 10**18])
    def test_finishing_what_is_not_unfinished_changes_nothing(self, offset):
        """Base 4: below it (0), finished twice (5), a gap (9), never received (10, 10**18)."""
        tracker = tracker_with([3, 4, 5, 6, 7, 8, 11], finished=[3, 5], base=2)
        before = (tracker.snapshot(), tracker.unfinished, tracker.version)
        if offset == 4:
            assert tracker.finish(4)
            return

        assert not tracker.finish(offset)
        assert tracker.finish_many([offset, offset]) == 0
        assert (tracker.snapshot(), tracker.unfinished, tracker.version) == before

    def test_finish_many_counts_each_offset_once(self):
        tracker = tracker_with(range(5))

        assert tracker.finish_many([4, 4, 2, 99]) == 2
        assert tracker.unfinished == 3

    @given(
        received=st.lists(st.integers(3, 20), unique=True).map(sorted),
        lists=st.lists(st.builds(lambda first, count, put: [*range(first, first + count), *put], st.integers(0, 22), st.integers(0, 6),
                                 st.sampled_from([[], [], [], [7], [9, 8]])), max_size=6),
    )  # fmt: skip
    @example(received=[4, 5, 6], lists=[[4, 4, 6]])
    @example(received=[4, 5, 6], lists=[[5], [4, 5, 6]])
    def test_finish_many_does_what_finish_does_for_each(self, received, lists):
        """Most lists are offsets that follow each other: those are finished as one, unless any of them is not unfinished."""
        many, one_by_one = tracker_with(received, base=3), tracker_with(received, base=3)

        for offsets in lists:
            assert many.finish_many(offsets) == sum(one_by_one.finish(offset) for offset in offsets)
            assert (many.snapshot(), many.unfinished, many.version) == (one_by_one.snapshot(), one_by_one.unfinished, one_by_one.version)

    def test_an_offset_is_handed_out_once_in_an_epoch(self):  # edge 5
        """After an error out of a fetch the loop seeks back, and records that it has already come again."""
        tracker = tracker_with(range(5), finished=[2])

        assert [tracker.receive(offset) for offset in range(6)] == [False] * 5 + [True]
        assert tracker.unfinished == 5

    def test_a_new_epoch_hands_out_again_what_an_old_one_left_running(self):  # edge 11
        """Dedupe against the old epoch's entry would drop the new record, and a job of a dropped record never
        runs.
        """
        old = tracker_with(range(3), finished=[1])
        new = Tracker(*old.snapshot())

        assert [new.receive(offset) for offset in range(3)] == [True, False, True]


class TestStoredMap:
    def test_what_the_last_owner_finished_is_skipped_and_counts_as_finished(self):
        tracker = Tracker(10, Finished(((12, 14), (16, 17))))

        assert [tracker.receive(offset) for offset in range(10, 18)] == [
            True, True, False, False, True, True, False, True,
        ]  # fmt: skip
        assert tracker.unfinished == 5
        tracker.finish_many([10, 11])
        assert tracker.snapshot() == (14, Finished(((16, 17),)))

    def test_a_commit_keeps_what_was_not_read_again_yet(self):
        """A first commit without it overwrites the last owner's: after the next crash all of that runs again."""
        tracker = Tracker(10, Finished(((12, 14), (16, 17), (900, 901))))
        assert tracker.snapshot() == (10, Finished(((12, 14), (16, 17), (900, 901))))

        tracker.receive(10)
        tracker.receive(11)
        tracker.finish(11)
        base, finished = tracker.snapshot()
        assert (base, finished) == (10, Finished(((11, 14), (16, 17), (900, 901))))
        assert tracker.map_size >= len(encode(base, Mark(TOPIC, finished)))

    def test_entries_are_dropped_when_the_base_passes_them(self):
        tracker = Tracker(10, Finished(((11, 12),)))
        tracker.receive(10)
        tracker.finish(10)

        assert tracker.snapshot() == (12, NONE)
        assert tracker.receive(12)

    def test_a_map_that_begins_at_the_base_moves_it(self):
        tracker = Tracker(10, Finished(((8, 12), (13, 14))))

        assert (tracker.base, tracker.unfinished) == (12, 0)

    def test_position_jumps_over_what_needs_no_reading(self):
        """Behind a two-hour head 7.2 M records are finished: reading them again takes 20 s, a seek none."""
        tracker = Tracker(10, Finished(((11, 7_200_000),)))
        assert tracker.position == 10

        tracker.receive(10)
        assert tracker.position == 7_200_000
        assert not tracker.receive(11)
        assert tracker.receive(7_200_000)

    def test_a_gap_that_swallows_stored_ranges(self):
        tracker = Tracker(10, Finished(((12, 14), (16, 20), (40, 41))))

        assert not tracker.receive(17)
        assert (tracker.base, tracker.position) == (20, 20)
        assert tracker.receive(30)
        assert tracker.snapshot() == (30, Finished(((40, 41),)))

    def test_a_position_inside_a_stored_range(self):
        tracker = Tracker(10, Finished(((12, 14),)))

        assert tracker.position_to(13)
        assert tracker.base == 14
        assert tracker.receive(14)


class TestFolding:
    def test_one_old_head_with_very_many_finished_behind_it_costs_little(self):  # edge 77
        """A byte an offset would be 300 kB here, and 7 MB behind a two-hour head at 1,000 jobs/s."""
        tracemalloc.start()
        tracker = Tracker(0)
        tracker.receive(0)
        for first in range(1, 300_001, 250):
            for offset in range(first, first + 250):
                tracker.receive(offset)
            tracker.finish_many(range(first, first + 250))
            assert tracker.base == 0
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert tracker.snapshot() == (0, Finished(((1, 300_001),)))
        assert len(encode(0, Mark(TOPIC, tracker.snapshot()[1]))) < 40
        assert peak < 100_000

    def test_folded_heads_finish_like_others(self):
        heads = [0, 1, 2, 500, 501, 9_000, 40_000]
        tracker = tracker_with(range(100_000), finished=[o for o in range(100_000) if o not in heads])
        assert tracker.snapshot() == (
            0,
            Finished(((3, 500), (502, 9_000), (9_001, 40_000), (40_001, 100_000))),
        )

        assert tracker.finish(1)
        assert not tracker.finish(1)
        assert tracker.finish_many([0, 501, 501, 3]) == 2
        assert tracker.snapshot() == (
            2,
            Finished(((3, 500), (501, 9_000), (9_001, 40_000), (40_001, 100_000))),
        )
        assert (tracker.unfinished, tracker.span) == (4, 99_998)
        assert tracker.finish_many(heads) == 4
        assert tracker.snapshot() == (100_000, NONE)

    def test_never_asked_for_its_base_it_still_counts_right(self):
        tracker = tracker_with(range(100_000))
        for offset in range(99_999, -1, -1):
            assert tracker.finish(offset)

        assert tracker.snapshot() == (100_000, NONE)

    @settings(max_examples=30)
    @given(unfinished=st.sets(st.integers(0, 120_000), max_size=30), stop=st.integers(1, 120_000))
    def test_folding_at_any_moment_is_invisible(self, unfinished, stop):
        tracker = Tracker(0)
        for first in range(0, 120_001, 5_000):
            for offset in range(first, first + 5_000):
                tracker.receive(offset)
            tracker.finish_many([o for o in range(first, first + 5_000) if o not in unfinished])
            if first < stop:
                assert tracker.map_size
        later = sorted(unfinished)[::2]
        assert tracker.finish_many(later) == len(later)

        base, finished = tracker.snapshot()
        left = unfinished - set(later)
        assert base == min(left, default=125_000)
        assert finished == Finished.of(set(range(base, 125_000)) - left)
        assert tracker.map_size >= len(encode(base, Mark(TOPIC, finished)))


class TestMapSize:
    @given(received=st.sets(st.integers(0, 3_000), max_size=60), data=st.data())
    def test_never_less_than_what_is_committed(self, received, data):
        order = sorted(received)
        done = data.draw(st.sets(st.sampled_from(order)) if order else st.just(set()))
        tracker = tracker_with(order, finished=done)

        assert tracker.map_size >= len(
            encode(tracker.base, Mark(TOPIC, tracker.snapshot()[1], takeovers=2, sought=70_000))
        )

    def test_stays_near_the_truth(self):  # edge 17
        """An estimate that is far too high stops a partition for nothing."""
        alternating = tracker_with(range(10_000), finished=range(1, 10_000, 2))
        one_head = tracker_with(range(10_000), finished=range(1, 10_000))
        in_order = tracker_with(range(10_000), finished=range(5_000))

        assert 1_668 <= alternating.map_size <= 1_720
        assert one_head.map_size <= 60
        assert in_order.map_size <= 60

    def test_a_block_of_old_unfinished_jobs_counts_as_one_run(self):
        """5,000 jobs of a paused type at the head of a partition: their map is short."""
        tracker = tracker_with(range(100_000), finished=range(5_000, 100_000))
        tracker.base  # noqa: B018  folds

        assert tracker.map_size <= 60
        tracker.finish(17)
        assert tracker.map_size <= 60
        tracker.finish_many(range(17, 5_000, 8))
        assert tracker.map_size >= len(encode(tracker.base, Mark(TOPIC, tracker.snapshot()[1])))
        tracker.finish_many(range(4_000))
        assert tracker.map_size >= len(encode(tracker.base, Mark(TOPIC, tracker.snapshot()[1])))

    def test_an_old_head_does_not_inflate_what_lies_far_behind_it(self):  # edge 77
        """A bound over the whole span counts four bytes for every run: 1,000 jobs in flight would stop the
        partition.
        """
        tracker = tracker_with([0, 7_200_000])
        for offset in range(7_200_001, 7_210_000):
            tracker.receive(offset)
        tracker.finish_many([o for o in range(7_200_000, 7_210_000) if o % 20 > 1 and o % 7])
        text = encode(0, Mark(TOPIC, tracker.snapshot()[1]))

        assert len(text) <= tracker.map_size < 1.05 * len(text) < 1_800


class TestFinished:
    def test_ranges_are_merged_and_empty_ones_dropped(self):
        assert Finished.spanning([(8, 9), (1, 3), (3, 5), (4, 6), (7, 7)]).ranges == ((1, 6), (8, 9))

    @given(offset_sets, offset_sets)
    def test_is_a_set(self, some, others):
        finished = Finished.of(some)

        assert list(finished) == sorted(some)
        assert len(finished) == len(some)
        assert bool(finished) == bool(some)
        assert finished.end == max(some, default=-1) + 1
        assert all((offset in finished) == (offset in some) for offset in range(-1, 402))
        assert set(finished.union(Finished.of(others))) == some | others

    @given(offset_sets, st.integers(-1, 402))
    def test_beyond_drops_what_is_lower(self, some, base):
        assert set(Finished.of(some).beyond(base)) == {offset for offset in some if offset >= base}

    def test_only_numbers_are_offsets(self):
        assert "3" not in Finished.of([3])


marks = st.builds(
    Mark,
    st.binary(min_size=4, max_size=4),
    st.just(NONE),
    st.integers(0, 1_000_000),
    st.booleans(),
    st.just(()),
    st.integers(-1, 2**40),
)


def framed(base, rest):
    """Metadata whose CRC is right, whatever is in it."""
    crc = zlib.crc32(base.to_bytes(8, "big") + rest).to_bytes(4, "big")
    return "sj1" + binascii.b2a_base64(crc + rest, newline=False).decode()


class TestMetadata:
    @given(marks, bases, offset_sets, st.dictionaries(st.integers(0, 400), st.integers(0, 100), max_size=20))
    def test_what_fits_comes_back(self, mark, base, offsets, parked):
        finished = Finished.of(base + offset for offset in offsets)
        heads = tuple(Parked(base + at, starts, starts * 0.5) for at, starts in sorted(parked.items()))
        full = Mark(mark.topic_id4, finished, mark.takeovers, mark.clean, heads, mark.sought)

        assert decode(base, encode(base, full)) == full

    def test_the_layout_is_a_contract(self):
        """Other programs read it: a text that was committed once must be readable for ever."""
        runs = Mark(TOPIC, Finished(((1001, 1002), (1200, 9_000_000))), 2, True, (Parked(1100, 3, 1.5),), 6)
        assert encode(1000, runs) == framed(
            1000,
            TOPIC
            + bytes([1, 2, 7])  # clean, 2 takeovers, seek order 6
            + bytes([1, 100, 3, 0xDC, 0x0B])  # one parked head: 1000 + 100, 3 starts, 1,500 ms
            + bytes([2, 1, 1, 0xC6, 0x01, 0x90, 0x9F, 0xA5, 0x04]),  # two runs: 1 on, 1 long; 198 on, …
        )

        bitmap = Mark(TOPIC, Finished(((1001, 1002), (1003, 1005), (1006, 1008))))
        assert encode(1000, bitmap) == framed(1000, TOPIC + bytes([0, 0, 0, 0, 0, 0b0101_1011]))

        both = Mark(TOPIC, Finished(((1001, 2000), (2001, 2002), (2003, 2005), (2006, 2008))))
        assert encode(1000, both) == framed(1000, TOPIC + bytes([0, 0, 0, 0, 1, 1, 0xE7, 0x07, 0b0101_1011]))

    def test_the_smallest_one(self):
        assert encode(0, Mark(TOPIC)) == framed(0, TOPIC + bytes(5)) == "sj150QC/B8uPUwAAAAAAA=="

    def test_known_sizes(self):  # edge 17
        """At 10,000 offsets: runs at worst 13,336 characters, a bitmap 1,668, one head with 7.2 M behind it
        8.
        """
        overhead = len(encode(0, Mark(TOPIC)))

        assert len(encode(0, Mark(TOPIC, Finished.of(range(1, 10_000, 2))))) - overhead <= 1_668
        assert len(encode(0, Mark(TOPIC, Finished(((1, 7_200_001),))))) - overhead <= 8

    @given(
        st.integers(0, 2**62),
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), max_size=300),
        st.integers(1, 40),
        st.integers(0, 600),
    )
    def test_never_longer_than_kafka_takes(self, base, steps, dense, parked):  # edge 17
        """One character too many and the broker refuses the commit, for ever: the group's offsets stop
        moving.
        """
        ranges, at = [], base
        for gap, length in steps:
            ranges.append((at + gap, at + gap + length))
            at += gap + length
        ranges += [(base + n * dense, base + n * dense + 1) for n in range(30_000 // dense)]
        heads = tuple(Parked(base + n * dense, n, n * 1e3) for n in range(parked))
        finished = Finished.spanning(ranges)
        text = encode(base, Mark(TOPIC, finished, 10**9, True, heads, 2**70))

        assert len(text) <= METADATA_LIMIT
        assert text.isascii()
        mark = decode(base, text)
        assert mark is not None
        assert len(mark.finished.union(finished)) == len(finished)
        assert mark.parked == heads[: len(mark.parked)]

    def test_a_map_that_is_too_long_keeps_the_lowest_ranges(self):  # edge 17
        dense = Finished.of(range(1, 60_000, 2))
        sparse = Finished.of(range(1, 20_000_000, 2_000))

        for finished, at_least in ((dense, 12_000), (sparse, 1_000)):
            text = encode(0, Mark(TOPIC, finished))
            kept = decode(0, text).finished
            assert list(kept) == list(finished)[: len(kept)]
            assert len(kept) > at_least
            assert len(text) >= METADATA_LIMIT - 4

    def test_a_cut_map_takes_the_coding_that_reaches_further(self):
        """A dense stretch, then one long range: as a bitmap the dense stretch fits, as runs only a part of
        it.
        """
        finished = Finished.spanning([*((n, n + 1) for n in range(1, 8_000, 2)), (8_001, 5_000_000)])

        assert decode(0, encode(0, Mark(TOPIC, finished))).finished.end > 24_000

    def test_a_window_far_behind_an_old_head_fits(self):  # edge 77
        """As runs it takes 6,700 characters, as a bitmap of everything 1.2 M: one run and a bitmap take
        1,680.
        """
        finished = Finished.of(range(7_200_001, 7_210_000, 2)).union(Finished(((1, 7_200_000),)))
        text = encode(0, Mark(TOPIC, finished))

        assert decode(0, text).finished == finished
        assert len(text) < 1_720

    def test_parked_heads_come_before_the_map(self):  # edge 17
        heads = tuple(Parked(n * 50, 3, 90.0) for n in range(100))
        mark = decode(0, encode(0, Mark(TOPIC, Finished.of(range(1, 60_000, 2)), parked=heads)))

        assert mark.parked == heads
        assert len(mark.finished) > 5_000

    def test_the_lowest_parked_heads_are_kept(self):
        heads = tuple(Parked(n * 500_000, 10, 599.0) for n in range(2_000))
        mark = decode(0, encode(0, Mark(TOPIC, Finished.of([7]), parked=heads)))

        assert 300 < len(mark.parked) < 2_000
        assert mark.parked == heads[: len(mark.parked)]

    def test_parked_size_is_not_too_low(self):
        heads = tuple(Parked(n * 200_000, 99, 1_800.0) for n in range(100))

        assert len(encode(0, Mark(TOPIC, parked=heads))) - len(encode(0, Mark(TOPIC))) <= parked_size(100)

    def test_a_parked_head_below_the_base_or_twice_is_left_out(self):
        heads = (Parked(9, 1, 1.0), Parked(12, 2, 2.0), Parked(12, 3, 3.0), Parked(10, 1, 0.0))

        assert decode(10, encode(10, Mark(TOPIC, parked=heads))).parked == (
            Parked(10, 1, 0.0),
            Parked(12, 2, 2.0),
        )

    @given(st.text())
    @example("")
    @example("sj1")
    @example("sj1====")
    @example("sj1AAAA")
    @example("sj1AAAAAAAAAAAA")
    @example("sj1" + "é" * 8)
    @example("sj150QC/B8uPUwAAAAAAA==\n")
    @example("owner=connect-1")
    @example("n0AAAAAAAABPAAAAAA==")
    def test_foreign_text_is_no_map(self, text):  # edge 18
        assert decode(0, text) is None
        assert decode(0, "sj1" + text) is None

    @given(st.binary(max_size=200))
    def test_bytes_with_a_right_crc_never_raise(self, rest):  # edge 18
        mark = decode(5, framed(5, rest))

        assert mark is None or (all(stop <= MAX_OFFSET for _, stop in mark.finished.ranges))

    @pytest.mark.parametrize(
        "tail",
        [
            bytes([0, 0, 0, 0, 1]) + b"\xff" * 8 + b"\x7f" + b"\xff" * 8 + b"\x7f",  # a run to 2**64
            bytes([0, 0, 0, 0, 1]) + b"\xff" * 12,  # a number that doesn't end
            bytes([0, 0, 0, 0]) + b"\xff" * 8 + b"\x7f",  # 2**63 runs
            bytes([0, 0, 0]) + b"\xff" * 8 + b"\x7f",  # 2**63 parked heads
            bytes([0, 0, 0, 0, 1, 5]),  # a gap without its run
            bytes([0, 0, 0, 0]),  # no map
            bytes([0, 0, 0, 1, 1, 1]) + b"\xff" * 180 + b"\x01\x00",  # blocked longer than a float can say
            bytes([2, 0, 0, 0, 0]),  # an unknown flag
            bytes([0, 0]),
            b"",
        ],
    )
    def test_absurd_counts_are_no_map(self, tail):  # edge 18
        """A run of Integer.MAX, believed, skips every job of the partition."""
        assert decode(0, framed(0, TOPIC + tail)) is None

    def test_a_bitmap_beyond_the_last_offset_is_no_map(self):  # edge 18
        assert decode(MAX_OFFSET - 3, framed(MAX_OFFSET - 3, TOPIC + bytes(5) + b"\xff")) is None

    def test_another_version_is_no_map(self):  # edge 18
        text = encode(5, Mark(TOPIC, Finished.of([7])))

        assert decode(5, text) is not None
        assert decode(5, text.replace("sj1", "sj2", 1)) is None

    def test_a_map_is_not_read_at_another_base(self):  # edge 18
        """Tools that translate offsets between clusters copy the metadata: relative to another base it skips
        jobs.
        """
        text = encode(5, Mark(TOPIC, Finished.of([7])))

        assert decode(6, text) is None
        assert decode(-1, text) is None
        assert decode(2**63, text) is None

    @given(st.data())
    def test_any_damage_is_seen(self, data):  # edge 18
        text = encode(5, Mark(TOPIC, Finished.of([7, 9, 1000]), 1, True, (Parked(6, 2, 3.0),)))
        at = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.characters().filter(lambda character: character != text[at]))

        assert decode(5, text[:at] + other + text[at + 1 :]) is None
        assert decode(5, text[:at]) is None
        assert decode(5, text + other) is None

    def test_a_text_longer_than_any_is_not_looked_at(self):  # edge 18
        assert decode(0, "sj1" + "A" * 10_000_000) is None
