"""The clients that ask the coordinators of groups. One that gets no answer ends at once.

*Bites* (measured, librdkafka 2.16): a broker restarts; the metadata of that moment are without it, so the client forgets it, all but
the place where it remembers coordinators. From then on each question to that coordinator times out, however well the broker is. And
when it next goes away and returns, the client takes up a question that timed out, whose memory is freed: the process aborts. So a
question is given up before the client gives it up itself, and the client with it; the next question has another one.

*Bites* (measured, librdkafka 2.16): a broker restarts, another one coordinates its groups now; the client asks the old one for their
commits, is told that it is no coordinator, and the process ends with a segmentation fault. Who asks for descriptions is told an error
instead. So the same client asks for one first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import KafkaException

from streamjobs.kafka.forks import never_free

#: How long an answer is waited for (s): from a client that has asked before, then from one that knows nothing yet.
KEPT_PATIENCE_S, PATIENCE_S = 3.0, 15.0
#: When the client would say itself that time is up: later than anybody waits.
CLIENT_TIMEOUT_S = 60.0

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Coordinators:
    """Any thread may ask. `build` makes a client."""

    def __init__(self, build: Callable[[], AdminClient]) -> None:
        self._build = build
        self._idle: deque[AdminClient] = deque()

    def ask(
        self, question: Callable[[AdminClient], Asked], answer: Callable[[Asked, float], Answer], describe: str | None = None
    ) -> Answer:
        """What `answer` makes of what `question` gave, within so many seconds; it must not hold the client. Raises what they raise,
        TimeoutError for one. May ask twice. `describe`: a group that the same client describes first."""
        try:
            kept = [self._idle.pop()]
        except IndexError:
            pass
        else:
            try:
                return self._ask(kept, question, answer, KEPT_PATIENCE_S, describe)
            except TimeoutError:
                pass  # it may remember a place where nobody is
        return self._ask([self._build()], question, answer, PATIENCE_S, describe)

    def _ask(
        self,
        clients: list[AdminClient],
        question: Callable[[AdminClient], Asked],
        answer: Callable[[Asked, float], Answer],
        patience_s: float,
        describe: str | None,
    ) -> Answer:
        """`clients`: a list of one, which is emptied: else the traceback of an error would keep it alive."""
        try:
            if describe is not None:
                unless_no_group(clients[0].describe_consumer_groups([describe], request_timeout=CLIENT_TIMEOUT_S)[describe], patience_s)
            answered = answer(question(clients[0]), patience_s)
        except BaseException:
            clients[0].poll(0)  # tells what it heard of its brokers
            clients.clear()
            raise
        self._idle.append(clients.pop())
        return answered

    def forked(self) -> None:
        """In a forked child: the clients are the parent's."""
        never_free(self._idle)
        self._idle = deque()


def unless_no_group(future: Future[Answer], patience_s: float) -> Answer | None:
    """None: there is no such group."""
    try:
        return future.result(patience_s)
    except KafkaException as error:
        if error.args[0].name() == "GROUP_ID_NOT_FOUND":
            return None
        raise
