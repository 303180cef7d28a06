"""Turns: which thread turns a loop: one of its own two, or the one of the event loop.

Brief jobs run in the loop's own thread: no other one has to be woken for them, or wants the interpreter meanwhile. But a handler may
hold its thread up, for ever if it likes. So another thread watches, and goes on with the loop when the first has been away for long::

    A: lends the loop, runs handlers … | one of them blocks …                     | it returns: the loan is gone, so A watches
    B: watches                         | takes the loan, turns the loop from here on …

A loan is a list of one thing: whoever pops it has the loop. Each has its own. *Bites*, with one list for all: A comes back while B lends,
takes B's loan for its own, and both turn the loop. What A would have done in the rest of its turn is left out, so it lends the loop where
nothing is half done, and leaves nothing to do for after it.

Async handlers run in the event loop's thread. Were it woken for each list of brief ones, and A for what came of it, both would spend a third
of their time on that, and on fetching from each other's core what the other has written. So A lends the loop to the event loop's thread, which
runs the list, turns the loop, runs the next one, and gives the loop back to A when there is none. B watches, as ever::

    A:          lends the loop, waits …                                                      | turns it
    event loop:                         | runs a list … | turns | runs the next … | no more: |

*Bites*: such a turn is in a rebalance and takes its time, and what else runs on the event loop waits. So it turns only while no other handler
has begun there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamjobs.worker.executors import Chunk

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
        self._borrower: Borrower | None = None  # who turns it, if it is none of its own threads

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Around what may block. Raises TakenOver at its end if the loop went on without this thread."""
        loan = self._lend()
        try:
            yield
        finally:
            if not _popped(loan):
                raise TakenOver from None

    def lend_with(self, chunk: Chunk, submit: Callable[[Chunk], None], turn: Callable[[], object]) -> None:
        """Submits the chunk to a thread that calls `turn` when it has run it, and goes on so; returns when that gives the loop back.

        Called in such a turn, the chunk is the next one that is run there, and it returns at once.
        Raises TakenOver if the loop went on without this thread, and what was raised by a turn there.
        """
        if self._borrower is not None:
            self._borrower.takes(chunk)
        else:
            borrower = Borrower(self, turn)
            borrower.takes(chunk)
            borrower.lend()
            submit(chunk)
            borrower.wait()

    @property
    def borrowed(self) -> bool:
        """Whether a thread turns it that is not its own."""
        return self._borrower is not None

    def _lend(self) -> list[None]:
        self._lent_at = time.monotonic()
        loan = self._loan = [None]
        if not self._lending.is_set():
            self._lending.set()
        return loan

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


class Borrower:
    """The right of a thread to turn a loop between the chunks that it runs of it."""

    def __init__(self, turns: Turns, turn: Callable[[], object]) -> None:
        self._turns = turns
        self._turn = turn
        self._context = copy_context()  # what handlers leave set in theirs is not the loop's
        self._loan: list[None] = []
        self._next: Chunk | None = None
        self._back: SimpleQueue[BaseException | None] = SimpleQueue()

    def takes(self, chunk: Chunk) -> None:
        chunk.borrower, self._next = self, chunk

    def lend(self) -> None:
        self._loan = self._turns._lend()

    def wait(self) -> None:
        error = self._back.get()
        if error is not None:
            raise error

    def go_on(self) -> Chunk | None:
        """Turns the loop. What is to be run next; None: the loop is back."""
        if not _popped(self._loan):
            self._back.put(TakenOver())
            return None
        self._turns._borrower, self._next = self, None
        error = None
        try:
            self._context.run(self._turn)
        except BaseException as raised:  # noqa: BLE001 (whose loop it is raises it)
            error = raised
        self._turns._borrower = None
        if error is not None or self._next is None:
            self._back.put(error)
            return None
        self.lend()
        return self._next

    def give_back(self) -> None:
        self._back.put(None if _popped(self._loan) else TakenOver())


def _popped(loan: list[None]) -> bool:
    """Whether this thread is the one that ends the loan."""
    try:
        loan.pop()
    except IndexError:
        return False
    return True
