"""Poison: jobs that take their worker with them. Who is a suspect, and who is convicted.

A worker that dies had many jobs running, and one of them did it. So nobody is charged for a death that others may have
caused: those that ran are *suspects*, and a suspect runs alone, in a process of its own. A *strike* is charged before that
start and taken back after any end that was seen; so what is left of them counts deaths for which only this job can be blamed.
"""

from __future__ import annotations

from streamjobs.core.assignment import Beginning
from streamjobs.core.control import Suspect

#: So many open strikes convict: the job becomes a letter and is not started again.
STRIKES = 3
#: How long an order about a suspect holds, in seconds.
SUSPECT_S = 86_400.0
#: Clocks of brokers may differ by so much.
SKEW_S = 600.0
#: So many jobs of a partition are suspects for nothing but its takeovers: more than one worker has running.
CROWD = 1_000


def open_strikes(charged: int, order: Suspect | None, appended_at: float, *, crowd: bool) -> int | None:
    """The open strikes of a job that is about to run; None: it is no suspect.

    `charged`: those that its record carries, from earlier runs. `order`: what the control topic says of its place;
    `appended_at`: when the broker appended its record. `crowd`: see `in_crowd`.

    An order that is clearly older than the record is about another one. *Bites*: a topic is made anew within the day that orders hold, and a
    job that never ran is buried for what another did at its offset.
    """
    if order is not None and order.order.appended + SKEW_S >= appended_at:
        return max(charged, order.strikes)
    return charged if charged or crowd else None


def convicted(strikes: int) -> bool:
    return strikes >= STRIKES


def in_crowd(beginning: Beginning, base: int, counted: int) -> bool:
    """Is a job a suspect because owner after owner of its partition died at this base, and nobody was left to say what ran?

    `counted`: how many of the partition are suspects for this reason already.
    """
    return beginning.suspects and base <= beginning.offset and counted < CROWD
