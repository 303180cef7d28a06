"""How many chunks are worth having out: found by trying, and given up when more only stand in each other's way."""

from __future__ import annotations

from streamjobs.core.dispatch import Inline, Parallelism

SLOTS = 100


def wide() -> Parallelism:
    parallel = Parallelism(SLOTS)
    for _ in range(8):
        parallel.missed()
    return parallel


def test_it_begins_with_one_and_ends_at_half_more_than_the_slots() -> None:
    assert Parallelism(SLOTS).value == 1
    assert wide().value == 150
    assert Parallelism(1).limit == 1


def test_a_process_that_burns_a_core_is_halved() -> None:
    parallel = wide()
    parallel.returned(0.0, 10.0)
    before = parallel.value

    parallel.returned(0.9, 11.0, waiting=True)

    assert parallel.value == before // 2


def test_threads_and_loop_that_fight_for_the_interpreter_come_to_rest() -> None:
    """Every wait misses while they fight; were it for that, as many as there can be would go on fighting."""
    parallel = wide()

    for window in range(1, 10):
        parallel.returned(float(window), float(window), waiting=True)
        for _ in range(20):
            parallel.missed()

    assert parallel.value == 1


def test_results_that_trickle_in_do_not_keep_slots_empty() -> None:
    """A result every millisecond makes no wait of two miss, and still most slots may stand idle while work waits."""
    parallel = Parallelism(SLOTS)

    for window in range(1, 10):
        parallel.returned(0.01 * window, float(window), waiting=True)

    assert parallel.value == 150


def test_without_work_that_waits_nothing_grows() -> None:
    parallel = Parallelism(SLOTS)

    for window in range(1, 10):
        parallel.returned(0.01 * window, float(window), waiting=False)

    assert parallel.value == 1


def test_jobs_that_wait_for_nothing_run_one_chunk_at_a_time_again() -> None:
    parallel = wide()

    for window in range(1, 10):
        parallel.returned(0.1 * window, float(window), calm=True, waiting=True)

    assert parallel.value == 1


def test_one_chunk_of_others_among_them_is_enough_to_keep_the_slots() -> None:
    """Else the brief jobs would wait for a slot while a long one has the only one that is left."""
    parallel = wide()
    parallel.returned(0.0, 1.0)
    before = parallel.value

    parallel.returned(0.0, 1.01, calm=False)
    parallel.returned(0.0, 2.0, calm=True)

    assert parallel.value == before


def test_what_waits_in_the_loops_thread_is_banned_from_it_for_longer_each_time() -> None:
    inline, now, banned_s = Inline(), 0.0, []

    for _ in range(7):
        for _ in range(3):
            assert inline.allowed(now)
            inline.ran(0.02, 0.006, now)
        assert not inline.allowed(now)
        until = next(until for until in (1, 2, 4, 8, 16, 30) if inline.allowed(now + until))
        assert not inline.allowed(now + until - 0.01)
        banned_s.append(until)
        now += until

    assert banned_s == [1, 2, 4, 8, 16, 30, 30]
    for _ in range(6):
        inline.ran(0.01, 0.0, now)
    for _ in range(3):
        inline.ran(0.02, 0.02, now)
    assert inline.allowed(now + 1), "what ran well in between is not held against it"


def test_a_little_waiting_is_none() -> None:
    """A thread is now and then not given its turn for some milliseconds: judged is what 50 ms of running were spent on."""
    inline = Inline()

    inline.ran(0.01, 0.01, 0.0)
    for _ in range(6):
        assert inline.allowed(0.0)
        inline.ran(0.01, 0.0, 0.0)
    for _ in range(10):
        inline.ran(0.01, 0.004, 0.0)
    assert not inline.allowed(0.0)


def test_one_wait_is_none_however_long() -> None:
    """What bit: 13 ms for the interpreter, whose holder had lost its processor, and for a second all jobs ran in other threads."""
    inline = Inline()
    for _ in range(30):
        inline.ran(0.015, 0.013, 0.0)
        for _ in range(60):
            assert inline.allowed(0.0)
            inline.ran(0.001, 0.0, 0.0)
    for _ in range(2):
        inline.ran(0.1, 0.1, 0.0)
        assert inline.allowed(0.0)
    inline.ran(0.1, 0.1, 0.0)
    assert not inline.allowed(0.0)


def test_what_holds_the_loop_up_by_computing_is_banned_too() -> None:
    """Slow jobs among brief ones: everybody else waits for them, whatever they do."""
    inline = Inline()
    for _ in range(3):
        inline.ran(0.02, 0.0, 0.0)
    assert not inline.allowed(0.0)
    brief = Inline()
    for _ in range(20):
        brief.ran(0.01, 0.0, 0.0)
    assert brief.allowed(0.0)
