"""A partition's life against a naive model: every job has a name, and the model only keeps sets of names.

The machine owns a log, one group's commit and at most one owner of the partition. It lets the owner read,
finish in any order, commit at once or with an older snapshot still under way, hand over, die; and it damages
the world around it: records are deleted, the log loses its tail, the topic is made again, the commit's
metadata turns to junk or the commit is forgotten.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamjobs.core.assignment import AlarmKind, Seek, Why, where_to_start
from streamjobs.core.offsets import METADATA_LIMIT, Finished, Mark, Tracker, decode, encode

JUNK = st.sampled_from(
    ["", "sj1", "sj1AAAA", "junk", "é", "n0AAAAAAAABPAAAAAA==", "sj1" + "/" * 4092]
) | st.text(max_size=40)
SHARE = st.floats(0, 1)


class Partition(RuleBasedStateMachine):
    @initialize(first=st.integers(0, 12))
    def create(self, first: int) -> None:
        self.jobs = 0
        self.topics = 0
        self.finished: set[int] = set()
        self.commit: tuple[int, str] | None = None
        self.seek: Seek | None = None
        self.seeks = 0
        self.registered = {0: 0}
        self.tracker: Tracker | None = None
        self._new_log()
        self.append([False] * first)
        self.take_over()

    def _new_log(self) -> None:
        self.topics += 1
        self.started_before = self.topics > 1 and (self.started_before or self.started)
        self.topic_id = bytes([self.topics]) * 16
        self.log: dict[int, int] = {}  # offset → job, where it holds one
        self.log_start = self.log_end = 0
        self.started = False

    # -- the world ---------------------------------------------------

    @rule(gaps=st.lists(st.booleans(), min_size=1, max_size=20))
    def append(self, gaps: list[bool]) -> None:
        """Records, and offsets that hold none: markers, aborted transactions."""
        for gap in gaps:
            if not gap:
                self.log[self.log_end] = self.jobs
                self.jobs += 1
            self.log_end += 1

    @rule(share=SHARE)
    def compact(self, share: float) -> None:
        """A record, read already or not, that can't be fetched any more."""
        self.log.pop(self._inside(share), None)

    @rule(
        kind=st.sampled_from(["delete", "power cut", "recreate", "damage", "forget", "rewind"]),
        share=SHARE,
        text=JUNK,
    )
    def disaster(self, kind: str, share: float, text: str) -> None:
        if kind == "delete":
            self._delete_records(share)
        elif kind == "power cut":
            self._power_cut(share)
        elif kind == "recreate":
            self._recreate_topic(share)
        elif self.commit and not self.tracker:
            self._spoil_commit(kind, *self.commit, text)

    def _spoil_commit(self, kind: str, base: int, metadata: str, junk: str) -> None:
        """Rewind: a tool that moves an offset back, or translates it, and carries the metadata along."""
        spoiled = {"damage": (base, junk), "rewind": (max(0, base - 1 - len(junk)), metadata), "forget": None}
        self.commit = spoiled[kind]

    def _inside(self, share: float) -> int:
        return self.log_start + int((self.log_end - self.log_start) * share)

    def _delete_records(self, share: float) -> None:
        self.log_start = self._inside(share)
        self.log = {offset: job for offset, job in self.log.items() if offset >= self.log_start}

    def _power_cut(self, share: float) -> None:
        """The log loses its tail, and its owner; the next one commits before anything is appended, or nobody
        can tell.
        """
        self.tracker = None
        self.log_end = self._inside(share)
        self.log = {offset: job for offset, job in self.log.items() if offset < self.log_end}
        self.take_over()
        self.commit_at_once()

    def _recreate_topic(self, share: float) -> None:
        """The new log may be shorter or longer than the offset that is committed."""
        self.tracker = None
        old_end = self.log_end
        self._new_log()
        self.append([False] * int(old_end * share * 2))

    # -- the owner ---------------------------------------------------

    @precondition(lambda self: not self.tracker)
    @rule()
    def take_over(self) -> None:
        beginning = self._beginning()
        if not beginning.fetch:
            assert beginning.why is Why.LOST
            assert [alarm.kind for alarm in beginning.alarms] == [AlarmKind.LOST_COMMIT]
            assert self.started and self.commit is None
            self.seeks += 1
            self.seek = Seek("earliest", self.seeks)
            beginning = self._beginning()
        self._check_beginning(beginning)
        self.beginning = beginning
        self.tracker = Tracker(beginning.offset, beginning.finished)
        self.next_fetch = beginning.offset
        self.seen: dict[int, int] = {}  # what `receive` handed out in this epoch: offset → job
        self.open: set[int] = set()
        self.low = self.tracker.base
        self.under_way: tuple[int, str, int] | None = None
        self.acked_version = -1

    @precondition(lambda self: self.tracker and self.under_way is None)
    @rule()
    def commit_at_once(self) -> None:
        self.send_commit()
        self.commit_answered(accepted=True)

    def _beginning(self):
        return where_to_start(
            commit=self.commit,
            topic_id=self.topic_id,
            started=self.started,
            started_before=self.started_before,
            seek=self.seek,
            registered=self.registered,
            partition=0,
            log_start=self.log_start,
            log_end=self.log_end,
        )

    def _check_beginning(self, beginning) -> None:
        """Nothing unfinished that the log still has is below the start, or in the map."""
        assert self.log_start <= beginning.offset <= self.log_end
        for offset, job in self.log.items():
            if offset < beginning.offset or offset in beginning.finished:
                assert job in self.finished, (offset, beginning)

    @precondition(lambda self: self.tracker)
    @rule(count=st.integers(1, 20))
    def fetch(self, count: int) -> None:
        """As a list where that is possible; else one by one."""
        fetched = sorted(offset for offset in self.log if offset >= self.next_fetch)[:count]
        as_list = bool(fetched) and self.tracker.receive_run(fetched[0], fetched[-1], len(fetched))
        for offset in fetched:
            self.next_fetch = offset + 1
            if as_list:
                self._note_received(offset, new=True)
            else:
                self._receive(offset)

    def _receive(self, offset: int) -> None:
        self._note_received(offset, new=self.tracker.receive(offset))

    def _note_received(self, offset: int, *, new: bool) -> None:
        job = self.log[offset]
        if new:
            assert offset not in self.seen
            assert offset not in self.beginning.finished, f"{offset} runs again, though the map knew its end"
            self.seen[offset] = job
            self.open.add(offset)
        else:
            assert offset in self.seen or job in self.finished, f"{offset} is skipped and not finished"

    @precondition(lambda self: self.tracker and self.seen)
    @rule(data=st.data())
    def fetch_again(self, data: st.DataObject) -> None:
        """After an error the loop seeks back: what it has must not be handed out twice."""
        for offset in data.draw(st.lists(st.sampled_from(sorted(self.seen)), max_size=3)):
            assert not self.tracker.receive(offset)

    @precondition(lambda self: self.tracker)
    @rule()
    def seek_over_what_is_known(self) -> None:
        """The stored map may know what follows: the loop needn't fetch it."""
        if self.next_fetch < self.tracker.position:
            for offset in range(self.next_fetch, min(self.tracker.position, self.log_end)):
                assert offset not in self.log or self.log[offset] in self.finished
            self.next_fetch = self.tracker.position

    @precondition(lambda self: self.tracker and self.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.open)))
        assert self.tracker.finish(offset)
        assert not self.tracker.finish(offset)
        self._done([offset])

    @precondition(lambda self: self.tracker and self.open)
    @rule(data=st.data())
    def finish_some(self, data: st.DataObject) -> None:
        offsets = data.draw(st.lists(st.sampled_from(sorted(self.open)), unique=True, min_size=1))
        assert self.tracker.finish_many(offsets) == len(offsets)
        self._done(offsets)

    def _done(self, offsets: list[int]) -> None:
        self.open.difference_update(offsets)
        self.finished.update(self.seen[offset] for offset in offsets)

    @precondition(lambda self: self.tracker)
    @rule(offset=st.integers(-1, 400))
    def finish_stale(self, offset: int) -> None:
        if offset not in self.open:
            assert not self.tracker.finish(offset)

    @precondition(lambda self: self.tracker and all(offset < self.next_fetch for offset in self.log))
    @rule()
    def read_to_the_end(self) -> None:
        """Nothing left to read: when nothing runs either, the base follows the position over trailing
        markers.
        """
        if self.open:
            assert not self.tracker.position_to(self.log_end)
        else:
            self.tracker.position_to(self.log_end)
            self.next_fetch = max(self.next_fetch, self.log_end)
            assert self.tracker.base >= self.log_end

    @precondition(lambda self: self.tracker and self.under_way is None)
    @rule()
    def send_commit(self) -> None:
        self.under_way = (*self._snapshot(clean=False), self.tracker.version)

    @precondition(lambda self: self.tracker and self.under_way)
    @rule(accepted=st.booleans())
    def commit_answered(self, accepted: bool) -> None:
        base, text, version = self.under_way
        self.under_way = None
        if accepted:
            self._store(base, text)
            self.acked_version = version

    @precondition(lambda self: self.tracker)
    @rule(at_once=st.booleans())
    def hand_over(self, at_once: bool) -> None:
        self._store(*self._snapshot(clean=True))
        self._leave(at_once)

    @precondition(lambda self: self.tracker)
    @rule(arrives=st.booleans(), at_once=st.booleans())
    def die(self, arrives: bool, at_once: bool) -> None:
        """SIGKILL; a commit that is under way may still arrive."""
        if arrives and self.under_way:
            self._store(*self.under_way[:2])
        self._leave(at_once)

    def _leave(self, at_once: bool) -> None:
        self.tracker = None
        if at_once:
            self.take_over()

    def _snapshot(self, *, clean: bool) -> tuple[int, str]:
        base, finished = self.tracker.snapshot()
        mark = Mark(
            self.topic_id[:4],
            finished,
            takeovers=self.beginning.takeovers_at(base),
            clean=clean,
            parked=self.beginning.parked,
            sought=self.beginning.sought,
        )
        text = encode(base, mark)
        assert len(text) <= METADATA_LIMIT and text.isascii()
        assert len(text) <= self.tracker.map_size
        return base, text

    def _store(self, base: int, text: str) -> None:
        self.commit = (base, text)
        self.started = True

    # -- what always holds -------------------------------------------

    @invariant()
    def the_commit_speaks_only_of_what_is_finished(self) -> None:
        if self.commit is None:
            return
        base, text = self.commit
        mark = decode(base, text)
        if mark is None or mark.topic_id4 != self.topic_id[:4]:
            return
        for offset, job in self.log.items():
            if offset < base or offset in mark.finished:
                assert job in self.finished, f"{offset} is committed and not finished"

    @invariant()
    def the_tracker_agrees_with_the_sets(self) -> None:
        if self.tracker is None:
            return
        base, finished = self.tracker.snapshot()
        assert base == self.tracker.base >= self.low
        self.low = base
        assert self.tracker.unfinished == len(self.open)
        if self.open:
            assert base == min(self.open)
        assert base not in finished
        assert not any(offset in finished for offset in self.open)
        assert all(offset < base or offset in finished or offset in self.open for offset in self.seen)
        known = self.beginning.finished.union(
            Finished.of(offset for offset in self.seen if offset not in self.open)
        )
        assert Finished.spanning(finished.ranges) == finished
        assert known.beyond(base).union(finished) == finished, "the next owner would run again what is known"
        assert base not in known

    @invariant()
    def what_is_not_committed_is_dirty(self) -> None:
        """If the committer believes that it has nothing to tell, the commit says all that the tracker knows."""
        if self.tracker and self.acked_version == self.tracker.version:
            base, finished = self.tracker.snapshot()
            mark = decode(*self.commit)
            assert self.commit[0] == base
            assert mark is not None and mark.finished == finished


TestPartition = Partition.TestCase
TestPartition.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPartition = pytest.mark.timeout(120)(TestPartition)
