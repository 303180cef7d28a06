"""Turns: which of a loop's two threads turns it.

Brief jobs run in the loop's own thread: no other one has to be woken for them, or wants the interpreter meanwhile. But a handler may
hold its thread up, for ever if it likes. So another thread watches, and goes on with the loop when the first has been away for long::

    A: lends the loop, runs handlers … | one of them blocks …                     | it returns: the loan is gone, so A watches
    B: watches                         | takes the loan, turns the loop from here on …

A loan is a list of one thing: whoever pops it has the loop. Each has its own. *Bites*, with one list for all: A comes back while B lends,
takes B's loan for its own, and both turn the loop. What A would have done in the rest of its turn is left out, so it lends the loop where
nothing is half done, and leaves nothing to do for after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: A loop stands still for this long at least, and twice as long at most, before it goes on without a thread that a handler holds up.
HELD_UP_S = 0.02
#: Nobody watches a loop that has not lent itself for so long; to call the watch costs as much as to wake a thread for the job.
UNWATCHED_S = 1.0


class TakenOver(BaseException):
    """Raised in a thread whose loop another one turns by now."""


class Turns:
    """The threads of one loop: `start`, then `join`."""

    def __init__(self) -> None:
        self._loan: list[None] = []  # empty: it is over
        self._lent_at = 0.0  # monotonic
        self._lending = threading.Event()  # set while there may be one to watch
        self._ended = threading.Event()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Around what may block. Raises TakenOver at its end if the loop went on without this thread."""
        self._lent_at = time.monotonic()
        loan = self._loan = [None]
        if not self._lending.is_set():
            self._lending.set()
        try:
            yield
        finally:
            if not _popped(loan):
                raise TakenOver from None

    def start(self, name: str, body: Callable[[], None]) -> None:
        """`body` turns the loop until it ends; it is called anew in the thread that takes over."""
        for suffix, first in (("", True), ("-2", False)):
            threading.Thread(target=self._live, args=(body, first), name=name + suffix, daemon=True).start()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Waits until the loop has ended. A thread that a handler holds up is not waited for."""
        self._ended.wait(timeout)

    def _live(self, body: Callable[[], None], mine: bool) -> None:
        while not self._ended.is_set():
            if mine:
                mine = self._turn(body)
            else:
                self._lending.wait()
                time.sleep(HELD_UP_S)
                mine = self._takes_over()

    def _turn(self, body: Callable[[], None]) -> bool:
        """Turns the loop while it is this thread's."""
        ended = True
        try:
            body()
        except TakenOver:
            ended = False
        finally:
            if ended:
                self._ended.set()
                self._lending.set()
        return ended

    def _takes_over(self) -> bool:
        loan, lent_s = self._loan, time.monotonic() - self._lent_at
        if loan and lent_s >= HELD_UP_S:
            return _popped(loan)
        if not loan and lent_s >= UNWATCHED_S:
            self._lending.clear()
            if self._loan or self._ended.is_set():  # lent, or ended, just before that
                self._lending.set()
        return False


def _popped(loan: list[None]) -> bool:
    """Whether this thread is the one that ends the loan."""
    try:
        loan.pop()
    except IndexError:
        return False
    return True
