"""A transactional producer that dies, and its process with it: at a chosen step of a transaction that has records in it."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any

from streamjobs.kafka.producer import KafkaTransactionalProducer
from tests.support.ledger import Ledger

#: After the call of that name has returned; `within`: at a random moment of the commit.
STEPS = ("begin", "send", "flush", "send_offsets", "within", "commit")


def die_in_transactions(ledger: Ledger, share: float, at_most: int) -> None:
    """From now on this process is killed in one of its transactions, chosen with this probability; no more often than `at_most` times
    by all processes that write to the ledger."""
    chance = random.SystemRandom()
    doom: list[str] = []  # the step at which this process dies in the transaction that is open

    def deaths() -> int:
        return sum(entry["what"] == "death" for entry in ledger.entries())

    def die(step: str) -> None:
        ledger.note(what="death", n=-1, step=step)
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(name: str) -> Any:
        plain = getattr(KafkaTransactionalProducer, name)

        def call(producer: Any, *args: Any, **options: Any) -> Any:
            if name == "begin":
                doom[:] = [chance.choice(STEPS)] if chance.random() < share and deaths() < at_most else []
            if name == "commit" and doom == ["within"]:
                threading.Timer(chance.uniform(0, 0.004), die, ["within"]).start()
            result = plain(producer, *args, **options)
            if doom == [name]:
                die(name)
            return result

        return call

    for name in ("begin", "send", "flush", "send_offsets", "commit"):
        setattr(KafkaTransactionalProducer, name, dying(name))
