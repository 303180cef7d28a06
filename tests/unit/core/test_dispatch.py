"""The dispatcher by hand: what is ready, for whom, and what is not any more."""

from __future__ import annotations

from streamjobs.core.dispatch import Dispatcher, Entry, Partition
from streamjobs.core.offsets import Tracker


def a_home(number: int = 0) -> Partition:
    return Partition("jobs.mails", number, "mails", retry=False, topic_id=b"0" * 16, epoch=1, tracker=Tracker(0))


def an_entry(home: Partition, offset: int = 0, lane: bytes | None = None, kind: str = "threads") -> Entry:
    entry = Entry()
    entry.home, entry.epoch, entry.offset, entry.lane, entry.kind, entry.next = home, home.epoch, offset, lane, kind, None
    return entry


def test_entries_of_one_list_go_to_the_executors_that_run_them() -> None:
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads", "aio"])
    home = a_home()
    entries = [an_entry(home, offset, kind=kind) for offset, kind in enumerate(("threads", "threads", "aio", "threads", "aio"))]
    dispatcher.add_all(entries)
    assert [entry.offset for entry in dispatcher.take("threads", 9)] == [0, 1, 3]
    assert [entry.offset for entry in dispatcher.take("aio", 9)] == [2, 4]


def test_no_more_are_taken_than_asked_for_and_those_of_leaving_partitions_are_dropped() -> None:
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    leaving, staying = a_home(0), a_home(1)
    for offset in range(10):
        dispatcher.add(an_entry((leaving, staying)[offset % 2], offset))
    leaving.serving = -1
    assert [entry.offset for entry in dispatcher.take("threads", 3)] == [1, 3, 5]
    assert [entry.offset for entry in dispatcher.take("threads", 9)] == [7, 9]
    assert dispatcher.count() == 0
    dispatcher.add(an_entry(leaving, 10))
    dispatcher.add_all([an_entry(staying, 10) for _ in range(8)])
    assert len(dispatcher.take("threads", 3)) == 3


def test_each_is_asked_about_once_and_those_that_may_not_run_keep_aside() -> None:
    """The question may have a consequence: of a held type one job is let through, to see."""
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    home = a_home()
    dispatcher.add_all([an_entry(home, offset) for offset in range(8)])
    asked: list[int] = []

    def why_held(entry: Entry) -> str | None:
        asked.append(entry.offset)
        return "paused" if entry.offset % 2 else None

    assert [entry.offset for entry in dispatcher.take("threads", 3, why_held)] == [0, 2, 4]
    assert asked == sorted(set(asked))
    assert [entry.offset for entry in dispatcher.held["paused"]] == [offset for offset in asked if offset % 2]


def test_a_lane_of_an_epoch_that_is_over_readies_nothing() -> None:
    """Its next entry is the next owner's. What is behind a head that ended is ready, once; of an empty lane nothing is left."""
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    gone, here = a_home(0), a_home(1)
    entries = [an_entry(home, offset, b"key") for home in (gone, here) for offset in (0, 1)]
    dispatcher.add_all(entries[:2])
    dispatcher.add_all(entries[2:])
    assert dispatcher.take("threads", 9) == [entries[0], entries[2]]
    gone.epoch = gone.serving = -1
    dispatcher.stopped_all([entries[0], entries[2]])
    assert list(dispatcher.ready["threads"]) == [entries[3]]
    dispatcher.stopped_all(dispatcher.take("threads", 9))
    assert here.lanes == {}


def test_an_entry_that_never_was_in_its_lane_takes_nobody_out_of_it() -> None:
    """A copy is skipped where it arrives. *Bites*: the lane of the job that runs is forgotten, and the next one of its key starts beside it."""
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    home = a_home()
    running, behind = an_entry(home, 0, b"key"), an_entry(home, 2, b"key")
    dispatcher.add(running)
    assert dispatcher.take("threads", 9) == [running]
    dispatcher.stopped(an_entry(home, 1, b"key"))
    dispatcher.add(behind)
    assert dispatcher.take("threads", 9) == [] and running.next is behind


def test_lanes_are_empty_where_nothing_is_unfinished_and_nothing_is_out() -> None:
    """They are dropped together then, and only there."""
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    over, under_way = a_home(0), a_home(1)
    for home in (over, under_way):
        home.tracker.receive(0)
        dispatcher.add(an_entry(home, 0, b"key"))
    dispatcher.take("threads", 9)
    over.tracker.finish(0)
    assert not dispatcher.all_stopped() and over.lanes == {} and list(under_way.lanes) == [b"key"]
    under_way.tracker.finish(0)
    assert dispatcher.all_stopped() and under_way.lanes == {}


def test_a_partition_that_has_left_is_no_longer_asked_whether_its_lanes_are_empty() -> None:
    """What it had under way there is finished by its next owner. It may be assigned again without having been revoked (edge 11)."""
    dispatcher: Dispatcher[Entry] = Dispatcher(["threads"])
    gone = a_home()
    gone.tracker.receive(0)
    dispatcher.add(an_entry(gone, 0, b"key"))
    gone.epoch = gone.serving = -1
    assert dispatcher.all_stopped()
