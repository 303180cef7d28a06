import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamjobs.core.assignment import (
    LOOKUP_FAILED,
    Admission,
    Alarm,
    AlarmKind,
    Seek,
    Why,
    where_to_start,
)
from streamjobs.core.offsets import METADATA_LIMIT, NONE, Finished, Mark, Parked, Tracker, encode, parked_size

TOPIC = bytes(range(16))
OTHER_TOPIC = bytes(range(16, 32))


def commit(base, finished=NONE, topic=TOPIC, **fields):
    return base, encode(base, Mark(topic[:4], finished, **{"clean": True, **fields}))


def start(**given):
    everything = {
        "commit": None,
        "topic_id": TOPIC,
        "started": False,
        "seek": None,
        "registered": {0: 0},
        "partition": 0,
        "log_start": 0,
        "log_end": 1_000,
    }
    return where_to_start(**{**everything, **given})


class TestCommitted:
    def test_starts_at_the_commit_with_its_map(self):
        finished = Finished(((510, 520),))
        beginning = start(commit=commit(500, finished))

        assert (beginning.offset, beginning.finished, beginning.fetch, beginning.alarms) == (
            500,
            finished,
            True,
            (),
        )
        assert beginning.why is Why.COMMITTED

    def test_parked_heads_and_seek_number_are_carried_on(self):
        heads = (Parked(500, 6, 300.0), Parked(505, 1, 0.5))
        beginning = start(commit=commit(500, Finished.of([505, 507]), parked=heads, sought=12))

        assert beginning.parked == heads[:1]
        assert beginning.sought == 12

    @pytest.mark.parametrize("text", ["", "sj1", "n0AAAA", "consumer-1", "sj2" + "A" * 40, "\0", "é" * 4095])
    def test_foreign_metadata_is_ignored_the_offset_holds(self, text):  # edge 18
        beginning = start(commit=(500, text), started=True)

        assert (beginning.offset, beginning.finished, beginning.fetch, beginning.alarms) == (
            500,
            NONE,
            True,
            (),
        )
        assert beginning.takeovers == 0

    def test_a_base_below_the_log_is_an_alarm_with_the_number_of_jobs(self):  # edge 26
        """`latest` would skip what is left, `earliest` be silent about what is gone."""
        beginning = start(commit=commit(500, Finished(((510, 520), (650, 700), (800, 801)))), log_start=660)

        assert beginning.offset == 660
        assert beginning.alarms == (Alarm(AlarmKind.JOBS_DELETED, 160 - 10 - 10),)
        assert beginning.finished == Finished(((660, 700), (800, 801)))

    def test_what_was_finished_and_then_deleted_is_no_alarm(self):  # edge 26
        assert start(commit=commit(500, Finished(((500, 600),))), log_start=600).alarms == ()

    def test_a_base_beyond_the_log_starts_at_its_end(self):  # edge 35
        beginning = start(commit=commit(1_200), started=True)

        assert (beginning.offset, beginning.fetch) == (1_000, True)
        assert beginning.alarms == (Alarm(AlarmKind.LOG_TRUNCATED, 200),)

    @pytest.mark.parametrize(
        "entry", [{"finished": Finished.of([990, 1_000])}, {"parked": (Parked(1_000, 1, 1.0),)}]
    )
    def test_a_map_beyond_the_log_is_dropped_whole(self, entry):  # edge 35
        """A power cut shortens the log; new jobs are appended at offsets that the map calls finished."""
        beginning = start(commit=commit(980, takeovers=2, clean=False, **entry))

        assert (beginning.offset, beginning.finished, beginning.parked) == (980, NONE, ())
        assert beginning.alarms == (Alarm(AlarmKind.LOG_TRUNCATED, 1),)

    def test_a_map_that_ends_with_the_log_is_good(self):  # edge 35
        assert start(commit=commit(1_000)).alarms == ()
        assert start(commit=commit(980, Finished.of([999]))).finished == Finished.of([999])

    def test_truncated_and_deleted_at_once(self):
        beginning = start(commit=commit(10, Finished.of([2_000])), log_start=900)

        assert (beginning.offset, beginning.finished) == (900, NONE)
        assert {alarm.kind for alarm in beginning.alarms} == {AlarmKind.LOG_TRUNCATED, AlarmKind.JOBS_DELETED}

    def test_a_recreated_topic_starts_at_its_beginning(self):  # edge 31
        """Base 50,000 of the old log; when the new one passes 50,000, everything below it was skipped."""
        beginning = start(
            commit=commit(500, Finished.of([600]), topic=OTHER_TOPIC, takeovers=2, clean=False), log_start=7
        )

        assert (beginning.offset, beginning.finished, beginning.fetch) == (7, NONE, True)
        assert beginning.alarms == (Alarm(AlarmKind.TOPIC_RECREATED),)
        assert (beginning.why, beginning.takeovers) == (Why.RECREATED, 0)

    def test_recreated_is_told_from_truncated_without_our_metadata(self):  # edge 31
        """`kafka-consumer-groups --reset-offsets` writes none; the started mark says whether it was this very
        topic.
        """
        unknown = start(commit=(1_200, ""), started=False)
        known = start(commit=(1_200, ""), started=True)

        assert (unknown.offset, unknown.alarms) == (0, (Alarm(AlarmKind.TOPIC_RECREATED),))
        assert (known.offset, known.alarms) == (1_000, (Alarm(AlarmKind.LOG_TRUNCATED, 200),))

    def test_an_earlier_topic_s_offset_without_our_metadata(self):  # edge 31
        """The log has outgrown the old base: only the mark that an earlier topic left says whose offset it
        is.
        """
        earlier = start(commit=(500, ""), started_before=True)
        both = start(commit=(500, ""), started_before=True, started=True)

        assert (earlier.offset, earlier.alarms) == (0, (Alarm(AlarmKind.TOPIC_RECREATED),))
        assert (both.offset, both.alarms) == (500, ())


class TestNoCommit:
    def test_a_first_start_is_where_it_was_registered(self):
        beginning = start(registered={0: 300, 1: 400}, partition=1)

        assert (beginning.offset, beginning.fetch, beginning.alarms) == (400, True, ())
        assert beginning.why is Why.REGISTERED

    def test_a_partition_added_later_starts_at_its_first_job(self):  # edge 30
        """With "latest", the jobs published between its creation and its assignment are lost."""
        beginning = start(registered={0: 300, 1: 400}, partition=2)

        assert (beginning.offset, beginning.why) == (0, Why.REGISTERED)

    def test_a_lost_commit_is_held_not_guessed(self):  # edge 28
        """The broker forgets the offsets of a group that is idle for seven days."""
        beginning = start(started=True)

        assert not beginning.fetch
        assert beginning.alarms == (Alarm(AlarmKind.LOST_COMMIT),)

    def test_a_lookup_that_fails_is_neither(self):  # edge 27
        for started in (False, True):
            beginning = start(commit=LOOKUP_FAILED, started=started, seek=Seek(7, 1))
            assert (beginning.fetch, beginning.alarms, beginning.why) == (False, (), Why.LOOKUP_FAILED)

    def test_without_the_topics_id_nothing_is_decided(self):  # edge 31
        assert start(commit=commit(500), topic_id=b"").why is Why.LOOKUP_FAILED

    def test_an_unregistered_group_is_held(self):
        beginning = start(registered=None)

        assert not beginning.fetch
        assert beginning.alarms == (Alarm(AlarmKind.UNREGISTERED),)

    def test_jobs_deleted_before_the_first_start_are_an_alarm(self):  # edge 26
        beginning = start(registered={0: 300}, log_start=420)

        assert (beginning.offset, beginning.alarms) == (420, (Alarm(AlarmKind.JOBS_DELETED, 120),))

    @pytest.mark.parametrize(
        ("topic_id", "log_end"),
        [(OTHER_TOPIC, 1_000), (OTHER_TOPIC, 300), (b"", 300)],
        ids=["longer", "shorter", "id unknown"],
    )
    def test_a_topic_recreated_after_registration_starts_at_its_beginning(self, topic_id, log_end):  # edge 31
        """Registered at "now" = 500: the first 500 jobs of the new topic would be skipped."""
        beginning = start(registered={0: 500}, registered_topic_id=topic_id, log_start=3, log_end=log_end)

        assert (beginning.offset, beginning.alarms) == (3, (Alarm(AlarmKind.TOPIC_RECREATED),))

    def test_a_topic_recreated_after_the_group_had_worked_starts_at_its_beginning(self):  # edge 31
        """Its commits are deleted with the topic, its registration is not."""
        beginning = start(registered={0: 500}, started_before=True, log_start=3)

        assert (beginning.offset, beginning.alarms) == (3, (Alarm(AlarmKind.TOPIC_RECREATED),))

    def test_a_log_shorter_than_at_registration(self):  # edge 35
        beginning = start(registered={0: 1_100}, registered_topic_id=TOPIC)

        assert (beginning.offset, beginning.alarms) == (1_000, (Alarm(AlarmKind.LOG_TRUNCATED, 100),))


class TestSeek:
    @pytest.mark.parametrize(
        ("to", "offset"),
        [("earliest", 40), ("latest", 1_000), (500, 500), (3, 40), (5_000, 1_000), (40, 40), (1_000, 1_000)],
    )
    @pytest.mark.parametrize(
        "found", [None, commit(700, Finished.of([710]), takeovers=2, clean=False), (700, "junk")]
    )
    def test_wins_over_everything_that_is_known(self, to, offset, found):
        beginning = start(commit=found, seek=Seek(to, 9), log_start=40, started=True, registered=None)

        assert (beginning.offset, beginning.finished, beginning.fetch, beginning.alarms) == (
            offset,
            NONE,
            True,
            (),
        )
        assert (beginning.why, beginning.sought, beginning.takeovers) == (Why.SOUGHT, 9, 0)

    def test_is_carried_out_once(self):
        """The owner dies after its commit, before it removed the order: "latest" again would skip the jobs in
        between.
        """
        first = start(commit=commit(700), seek=Seek("latest", 0))
        assert (first.offset, first.sought) == (1_000, 0)

        after = commit(first.offset, sought=first.sought)
        again = start(commit=after, seek=Seek("latest", 0), log_end=1_500)
        assert (again.offset, again.why) == (1_000, Why.COMMITTED)
        assert start(commit=after, seek=Seek("latest", 1), log_end=1_500).offset == 1_500

    def test_stays_carried_out_when_the_topic_is_recreated(self):
        beginning = start(commit=commit(700, topic=OTHER_TOPIC, sought=9), seek=Seek("latest", 9))

        assert (beginning.offset, beginning.sought, beginning.why) == (0, 9, Why.RECREATED)


class TestTakeovers:
    def test_three_owners_that_died_at_one_base_make_suspects(self):
        found, counts = commit(500, takeovers=0, clean=False), []
        for _ in range(3):
            beginning = start(commit=found)
            counts.append((beginning.takeovers, beginning.suspects))
            found = commit(500, takeovers=beginning.takeovers_at(500), clean=False)

        assert counts == [(1, False), (2, False), (3, True)]

    def test_a_clean_hand_over_starts_the_count_again(self):
        assert start(commit=commit(500, takeovers=2, clean=True)).takeovers == 0

    def test_a_base_that_moves_starts_the_count_again(self):
        beginning = start(commit=commit(500, takeovers=2, clean=False))

        assert (beginning.takeovers_at(500), beginning.takeovers_at(501)) == (3, 0)
        assert start(commit=commit(500, takeovers=2, clean=False), log_start=501).takeovers == 0


class TestEveryCombination:
    @pytest.mark.parametrize(
        "found",
        [
            None,
            LOOKUP_FAILED,
            (0, ""),
            (500, "junk"),
            commit(500),
            commit(9, topic=OTHER_TOPIC),
            commit(2_000),
        ],
    )
    def test_has_an_answer_inside_the_log(self, found):  # edge 27
        """A start that is left to `auto.offset.reset` is a silent skip, or a partition that stops after one
        message.
        """
        seeks = (None, Seek("latest", 1), Seek(10**12, 1), Seek(-5, 1))
        registrations = (None, {}, {0: 500}, {0: 10**12})
        for started, seek, registered, (low, high) in itertools.product(
            (False, True), seeks, registrations, ((0, 0), (0, 1_000), (600, 600), (600, 1_000))
        ):
            beginning = start(
                commit=found, started=started, seek=seek, registered=registered, log_start=low, log_end=high
            )
            assert low <= beginning.offset <= high
            assert all(beginning.offset <= at for at, _ in beginning.finished.ranges)
            assert beginning.finished.end <= high
            assert beginning.fetch == (beginning.why not in (Why.LOOKUP_FAILED, Why.LOST, Why.NOT_REGISTERED))

    @given(
        st.integers(0, 2_000),
        st.text(max_size=50),
        st.booleans(),
        st.integers(0, 500),
        st.integers(500, 1_000),
    )
    def test_metadata_of_any_kind_never_skips_unless_alarmed(self, base, text, started, low, high):  # edge 18
        beginning = start(commit=(base, text), started=started, log_start=low, log_end=high)

        assert beginning.finished == NONE
        assert beginning.offset == base or beginning.alarms


EMPTY = {"unfinished": 0, "held_bytes": 0, "map_chars": 0, "span": 0}


class TestAdmission:
    def test_the_defaults_are_the_documented_limits(self):
        assert Admission() == Admission(10_000, 67_108_864, 3_071, 10_000_000)
        assert Admission().map_chars / METADATA_LIMIT == pytest.approx(0.75, abs=0.001)

    @pytest.mark.parametrize("limit", ["unfinished", "held_bytes", "map_chars", "span"])
    def test_each_limit_stops_alone_and_starts_again_just_below(self, limit):  # edge 17
        admission = Admission(window=100, window_bytes=100, map_chars=100, span=100)

        def admits(value, admitting):
            return admission.admits(admission.used(**{**EMPTY, limit: value}), admitting=admitting)

        assert [admits(value, True) for value in (0, 50, 99, 100, 101)] == [True, True, True, False, False]
        assert [admits(value, False) for value in (101, 99, 95, 94, 0)] == [False, False, False, True, True]

    def test_a_window_of_one_still_moves(self):
        admission = Admission(window=1)

        assert not admission.admits(admission.used(**{**EMPTY, "unfinished": 1}), admitting=True)
        assert admission.admits(admission.used(**EMPTY), admitting=False)

    def test_one_stuck_job_does_not_stop_its_partition(self):  # edge 77
        """With a window counted in offsets, one two-hour job at 1,000 jobs/s stops its partition after 10 s."""
        tracker, admission = Tracker(0), Admission()
        tracker.receive(0)
        for first in range(1, 100_001, 500):
            for offset in range(first, first + 500):
                tracker.receive(offset)
            tracker.finish_many(range(first, first + 500))

        used = admission.used(
            unfinished=tracker.unfinished, held_bytes=2_000, map_chars=tracker.map_size, span=tracker.span
        )
        assert admission.admits(used, admitting=True)
        assert used < 0.05

    def test_a_map_that_grows_too_long_stops_the_partition(self):  # edge 17
        """Stop before the limit: a map that has to be cut makes finished jobs run again after a crash."""
        tracker, admission, admitted = Tracker(0), Admission(), 0
        while True:
            used = admission.used(
                unfinished=tracker.unfinished, held_bytes=0, map_chars=tracker.map_size, span=0
            )
            if not admission.admits(used, admitting=True):
                break
            for offset in range(admitted, admitted + 250):
                tracker.receive(offset)
            tracker.finish_many(range(admitted + 1, admitted + 250, 3))
            tracker.finish_many(range(admitted + 2, admitted + 250, 3))
            admitted += 250

        text = encode(0, Mark(TOPIC[:4], tracker.snapshot()[1]))
        assert 0.75 * METADATA_LIMIT - 200 < len(text) < METADATA_LIMIT
        assert tracker.unfinished < 10_000

    def test_parked_heads_count(self):
        admission = Admission()

        assert not admission.admits(
            admission.used(**{**EMPTY, "map_chars": parked_size(256)}), admitting=True
        )
