"""A replay of all letters of the ledger's queue in a process of its own, which kills itself with SIGKILL at a named step.

`python -m tests.support.replay STEP [RATE]`; steps are in `STEPS`, and `never`. It prints how many letters it moved.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from streamjobs.kafka.producer import KafkaTransactionalProducer as Producer

#: (method of the producer, how many calls of it pass, whether it is carried out before the end comes).
STEPS: dict[str, tuple[str, int, bool]] = {
    "before the fence": ("init", 0, False),
    "between fence and reading": ("init", 0, True),
    "in an empty transaction": ("begin", 1, True),
    "with half a batch sent": ("send", 150, True),
    "with all sent, before the commit": ("commit", 1, False),
    "after the commit": ("commit", 1, True),
}


def die_at(step: str) -> None:
    """Lets this process end there as if its machine had lost power."""
    name, passing, carried_out = STEPS[step]
    original: Callable[..., Any] = getattr(Producer, name)
    calls = 0

    def deadly(self: Producer, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= passing:
            return original(self, *args, **kwargs)
        if carried_out:
            original(self, *args, **kwargs)
            if name == "send":
                self.flush(5.0)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Producer, name, deadly)


def main() -> None:
    from tests.support import ledger_app

    step, rate = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else None
    if step != "never":
        die_at(step)
    print(ledger_app.app.dead_letters(ledger_app.QUEUE).replay(rate=rate).moved)


if __name__ == "__main__":
    main()
