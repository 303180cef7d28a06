"""What others write to our topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamjobs.backlog import Collector
from streamjobs.kafka.consumer import UNREADABLE
from tests.support import foreign
from tests.support.workers import eventually


def test_a_header_whose_name_is_no_text_makes_a_letter_and_holds_up_nobody(story: Callable[..., Any]) -> None:  # edge 61
    """*Bites*: the client dies of such a record, and so does every worker that reads it, one after the other."""
    world = story(partitions=1)
    bootstrap, topic = world.env["STREAMJOBS_BOOTSTRAP"], world.main
    world.publish_many("step", [{"n": n} for n in range(20)])
    for _ in range(2):
        foreign.send(bootstrap, topic, b"x", {b"ce_type": b"step", b"x-\xff\xfe": b"1"})
    world.publish_many("step", [{"n": n} for n in range(20, 40)])

    worker = world.worker()
    eventually(lambda: set(world.ends()) == set(range(40)), 60, "all jobs run", worker.tail)
    letters = world.app.dead_letters(world.queue)
    eventually(lambda: len(list(letters)) == 2, 30, "the other records are letters", worker.tail)

    assert {(letter.meta.reason, UNREADABLE in letter.headers) for letter in letters} == {("undecodable", True)}
    eventually(lambda: sum(lag.pending for lag in Collector(world.app).collect().queues) == 0, 30, "all is committed", worker.tail)
    assert worker.stop() == 0
