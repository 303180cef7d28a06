"""Dead letters: look, decide, replay (DESIGN.md §6).

`App.dead_letters(queue)` gives a `DeadLetters`; the command line and the dashboard use the same. To read takes no lock and
disturbs nobody. What writes fences first and reads then, so that of two operators at once one is told that the other took over,
and no letter goes back twice.
"""

from __future__ import annotations

from streamjobs.core.filters import Filter
from streamjobs.core.letters import Kept, Letter
from streamjobs.dead_letters.orders import Plan
from streamjobs.dead_letters.run import Done
from streamjobs.dead_letters.select import DeadLetters, Shown, Stats

__all__ = ["DeadLetters", "Done", "Filter", "Kept", "Letter", "Plan", "Shown", "Stats"]
