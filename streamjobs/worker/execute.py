"""Executing: chunks of jobs to the executors, and what they finished back to the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue

from streamjobs.core.dispatch import QUARANTINE, Dispatcher, Inline, Parallelism, chunk_size
from streamjobs.job import Job
from streamjobs.worker.executors import Chunk, Executor

#: How long one wait for results may take while work waits: the pulse of alternating loop and threads.
RESULT_WAIT_S = 0.002
#: With more chunks out than this, and than there are slots, results are gathered for so long before they are looked at: others wait for
#: their slots, so none is empty meanwhile. *Bites*, without it: 100 jobs that wait for 20 ms each end one by one, and a turn of the loop for
#: each of them takes more of the interpreter than the jobs *(measured: 190 µs of processor a job instead of 130; on a busy machine 0.84 of
#: what 100 slots could do instead of 0.97)*.
MANY_OUT, GATHER_S = 16, 0.001
#: A chunk that is out for longer gives back what it has not begun.
STUCK_S = 0.02
#: Jobs of a type that failed lately in one chunk.
CAUTIOUS = 8
#: A chunk of so many jobs is one of jobs that take 50 µs or less.
BRIEF = 40


class Execution:
    """The chunks of one loop that are out. One owner: the loop's thread.

    `finished` gets the jobs that ran to an end, `returned` those that were handed out and not started, `overdue` each that still
    runs in a chunk that is out for long; `wavers` says of which types runs failed lately. `run_inline` takes a brief chunk of one of the
    `inline_kinds`, and returns when it has run, if that can be; None: nothing runs so.
    """

    def __init__(
        self,
        executors: Mapping[str, Executor],
        dispatcher: Dispatcher[Job],
        mono: Callable[[], float],
        *,
        finished: Callable[[Sequence[Job]], None],
        returned: Callable[[Sequence[Job]], None],
        overdue: Callable[[Chunk, Job], None],
        wavers: Callable[[str], bool],
        run_inline: Callable[[Chunk], None] | None = None,
        inline_kinds: Collection[str] = ("threads",),
    ) -> None:
        self.out: dict[Chunk, float] = {}
        self._executors = executors
        self._dispatcher = dispatcher
        self._mono = mono
        self._finished = finished
        self._returned = returned
        self._overdue = overdue
        self._wavers = wavers
        self._run_inline = run_inline
        self._inline_kinds = inline_kinds
        self._inline = Inline()
        self._results: SimpleQueue[Chunk] = SimpleQueue()
        self._out_by_kind = dict.fromkeys(executors, 0)
        self._parallel = {kind: Parallelism(executor.slots) for kind, executor in executors.items()}

    def hand_out(self, why_held: Callable[[Job], str | None] | None = None, *, inline: bool = False) -> None:
        """Gives every executor as many chunks as are worth having out. `why_held`: see `Dispatcher.take`.

        `inline`: brief jobs may run right here, as the last thing that this call does.
        """
        chunks = [chunk for kind in self._executors for chunk in self._new_chunks(kind, why_held)]
        if inline and self._run_inline is not None and chunks and self._may_run_inline(chunks[0]):
            self._run_inline(chunks[0])
            return
        for chunk in chunks:
            self._executors[chunk.kind].submit(chunk)

    def _new_chunks(self, kind: str, why_held: Callable[[Job], str | None] | None) -> Iterator[Chunk]:
        ready = self._dispatcher.ready[kind]
        room = self._parallel[kind].value - self._out_by_kind[kind]
        while room > 0 and ready:
            size = self._size(ready[0])
            jobs = self._dispatcher.take(kind, size, why_held)
            if jobs:
                yield self._new_chunk(kind, jobs, brief=size >= BRIEF)
                room -= 1

    def _may_run_inline(self, chunk: Chunk) -> bool:
        """Whether it is all that is out: else other results would wait for it, and who is held up by a handler has one out already."""
        return chunk.brief and chunk.kind in self._inline_kinds and len(self.out) == 1 and self._inline.allowed(self._mono())

    @property
    def elsewhere(self) -> bool:
        """Whether a chunk is out that another thread than this runs."""
        return any(not chunk.inline for chunk in self.out)

    def saturated(self) -> bool:
        """Whether as many chunks as are worth having out are out or ready."""
        return len(self.out) + self._dispatcher.count() >= max(parallel.value for parallel in self._parallel.values())

    def _size(self, head: Job) -> int:
        """Jobs in a chunk; few where runs failed lately, so that an open breaker is not seen too late."""
        if head.kind == QUARANTINE:
            return 1
        size = chunk_size(head.job_type.mean_s)
        return min(size, CAUTIOUS) if self._wavers(head.type) else size

    def _new_chunk(self, kind: str, jobs: list[Job], *, brief: bool) -> Chunk:
        chunk = Chunk(kind, jobs, self._results)
        chunk.brief = brief
        self.out[chunk] = self._mono()
        self._out_by_kind[kind] += 1
        return chunk

    def take_results(self, *, wait: bool = False) -> int:
        """Takes chunks that are over; with work waiting (or `wait`) it waits up to 2 ms for one. Returns how many there were.

        Where chunks wait for slots, those count that are over a millisecond after the first.
        """
        if not self.out:
            return 0
        try:
            patient = wait or self._dispatcher.count()
            over = [self._results.get(timeout=RESULT_WAIT_S) if patient else self._results.get_nowait()]
        except Empty:
            self._missed()
            return 0
        kind = over[0].kind
        if self._out_by_kind[kind] > max(MANY_OUT, self._executors[kind].slots):
            time.sleep(GATHER_S)
        over += [self._results.get_nowait() for _ in range(self._results.qsize())]  # nobody else takes any
        self._over(over)
        return len(over)

    def _missed(self) -> None:
        """Nothing came back in 2 ms with work waiting: have more chunks out.

        *Bites*: on a busy machine a thread is not given its turn for some milliseconds; with more of them out for that, all of
        jobs that wait for nothing, they take the interpreter from each other and from the loop, and everything takes twice as long.
        """
        now = self._mono()
        if all(chunk.brief and now - since < STUCK_S for chunk, since in self.out.items()):
            return
        for kind, parallel in self._parallel.items():
            if self._dispatcher.count(kind):
                parallel.missed()

    def _over(self, chunks: Sequence[Chunk]) -> None:
        now, burned_s = self._mono(), time.process_time()
        for chunk in chunks:
            del self.out[chunk]
            self._out_by_kind[chunk.kind] -= 1
            calm = chunk.brief and all(other.brief for other in self.out)
            waiting = bool(self._dispatcher.ready[chunk.kind])
            self._parallel[chunk.kind].returned(burned_s, now, calm=calm, waiting=waiting)
            if chunk.inline:
                self._inline.ran(chunk.took_s, chunk.waited_s, now)
        self.harvest(chunks)
        for chunk in chunks:
            if chunk.returned:
                self._returned(chunk.returned)
            chunk.forget()

    def harvest(self, chunks: Iterable[Chunk]) -> None:
        """Takes what these chunks finished since the last look, also while they go on, and the lanes in which they stopped: else a
        key would wait for a stuck job of another one. All of them as one list: of jobs that come one by one, settling a list is what
        costs."""
        all_done: list[Job] = []
        all_stops: list[Job] = []
        for chunk in chunks:
            stops = chunk.stops[chunk.stopped :]  # looked at first: the last job of each is in `done` by now
            done = chunk.done[chunk.harvested :]
            if done:
                chunk.harvested += len(done)
                _observe_mean(done)
                all_done += done
            chunk.stopped += len(stops)
            all_stops += stops
        if all_done:
            self._finished(all_done)
        if all_stops and (self.out or not self._dispatcher.all_stopped()):
            self._dispatcher.stopped_all(all_stops)

    def recall(self) -> None:
        """Takes back all that chunks have not begun, so that nothing of partitions that leave begins any more."""
        for chunk in list(self.out):
            rest = chunk.take_back()
            if rest:
                self._returned(rest)

    def harvest_all(self) -> None:
        self.harvest(list(self.out))

    def running(self) -> list[Job]:
        """The jobs that executors run for this loop at this moment. Any thread may ask."""
        return [job for chunk in list(self.out) if (job := chunk.current) is not None]

    def heads(self) -> list[Job]:
        """What chunks that are out began with."""
        return [head for chunk in self.out for head in chunk.heads]

    def watch(self) -> None:
        """Looks after chunks that are out for long: takes what they finished, and back what they have not begun."""
        now = self._mono()
        for chunk, since in list(self.out.items()):
            if now - since < STUCK_S:
                continue
            self.harvest([chunk])
            rest = chunk.take_back()
            if rest:
                self._returned(rest)
            job = chunk.current
            if job is not None:
                self._look_at(chunk, job)

    def _look_at(self, chunk: Chunk, job: Job) -> None:
        if job.cancelled:
            self._executors[chunk.kind].cancel(job)
        if job.started_at:
            self._overdue(chunk, job)


def _observe_mean(done: Sequence[Job]) -> None:
    """Of jobs that one thread ran one after the other, by their first start and their last end: a pause of the thread counts as little
    as it should.

    That a type is brief is believed at once, of a list of its own; that it is not, slowly. *Bites*, if both are: a thread has to wait
    10 ms for its turn in the middle of a chunk, and the next ten are too small.
    """
    first, last = done[0], done[-1]
    job_type = last.job_type
    if first.job_type is not job_type:
        job_type.observe_mean(last.duration_s)
        return
    mean_s = (last.started_at + last.duration_s - first.started_at) / len(done)
    news = job_type.mean_s is not None and mean_s < job_type.mean_s / 2
    sure = news and all(job.job_type is job_type for job in done)  # looked through only where it makes a difference
    job_type.observe_mean(mean_s, len(done) if sure else 1)
