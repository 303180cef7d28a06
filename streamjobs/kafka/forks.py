"""Clients in a forked child: they have their threads in the parent, and answer nothing here.

Nor may they be freed. *Bites*: a child publishes with a producer of its own and exits; the interpreter frees the inherited one,
which waits for a thread that does not exist, or crashes *(measured: signal 11)*.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Whoever holds a client."""

    def forked(self) -> None:
        """Called in a forked child, where the client is of no use."""


_living: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_of_forks(holder: Forked) -> None:
    """While it lives, `holder.forked()` is called in every child that this process forks."""
    _living.add(holder)


def never_free(thing: object) -> None:
    """One reference more than anybody will give back."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    for holder in list(_living):
        holder.forked()


os.register_at_fork(after_in_child=_after_fork)
