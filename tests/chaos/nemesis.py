"""The nemesis: does to workers, brokers and network what the schedule says, and notes what it did to whom."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

from tests.chaos.cluster import Brokers
from tests.chaos.history import Fault, Journal
from tests.chaos.network import Network
from tests.chaos.schedule import Act
from tests.chaos.workers import FEWEST, MOST, Crew, Member

End = Callable[[], None]


class Nemesis:
    """Each method does one kind of fault and gives back what ends it; None: it is over, or there was nobody to hit."""

    def __init__(
        self, crew: Crew, brokers: Brokers | None, network: Network | None, journal: Journal, say: Callable[[str], None]
    ) -> None:
        self._crew = crew
        self._brokers = brokers
        self._network = network
        self._journal = journal
        self._say = say
        self._broker_busy = self._cut = False
        self._aside_threads: list[threading.Thread] = []

    def strike(self, act: Act) -> End | None:
        do: Callable[[Act], End | None] = getattr(self, act.name.replace("-", "_"))
        return do(act)

    def _note(self, name: str, began: float, pids: Iterable[int] = (), *, dies: bool = False, abrupt: bool = True) -> None:
        pids, now = tuple(pids), time.time()
        self._journal.write(Fault(name, began, now, pids, dies, abrupt))
        self._say(f"{name} ({', '.join(map(str, pids)) or 'all'}), {now - began:.1f} s")

    def _victim(self, act: Act) -> Member | None:
        free = self._crew.free()
        return free[int(act.pick * len(free))] if free else None

    # Workers ----------------------------------------------------------------------------------------------------------

    def kill_worker(self, act: Act) -> End | None:
        member = self._victim(act)
        if member is None:
            return None
        began, pids = time.time(), member.pids()
        member.worker.kill()
        self._crew.drop(member)
        self._note(act.name, began, pids, dies=True)
        return lambda: self._replace(member)

    def kill_process(self, act: Act) -> None:
        member = self._victim(act)
        pid = member.process() if member else None
        if pid is not None:
            began = time.time()
            os.kill(pid, signal.SIGKILL)
            self._note(act.name, began, (pid,), dies=True)

    def kill_supervisor(self, act: Act) -> End | None:
        member = self._victim(act)
        if member is None:
            return None
        began = time.time()
        member.worker.signal(signal.SIGKILL)
        self._crew.orphan(member)
        self._note(act.name, began, (member.worker.pid,), abrupt=False)
        return lambda: self._replace(member)

    def freeze_worker(self, act: Act) -> End | None:
        member = self._victim(act)
        if member is None:
            return None
        began, pids, member.busy = time.time(), member.pids(), True
        member.worker.signal_all(signal.SIGSTOP)

        def thaw() -> None:
            member.worker.signal_all(signal.SIGCONT)
            member.busy = False
            self._note(act.name, began, pids)

        return thaw

    blink_worker = freeze_worker

    def term_worker(self, act: Act) -> End | None:
        member = self._victim(act)
        if member is None:
            return None
        self._tell_to_stop(act.name, member)
        return lambda: self._replace(member)

    def add_worker(self, act: Act) -> None:
        if len(self._crew.members) < MOST:
            began = time.time()
            member = self._crew.start()
            self._note(act.name, began, (member.worker.pid,), abrupt=False)

    def remove_worker(self, act: Act) -> None:
        member = self._victim(act)
        if member is not None and len(self._crew.members) > FEWEST:
            self._tell_to_stop(act.name, member)

    def _tell_to_stop(self, name: str, member: Member) -> None:
        began, pids = time.time(), member.pids()
        self._crew.tell_to_stop(member)
        self._note(name, began, pids, abrupt=False)

    def _replace(self, member: Member) -> None:
        if len(self._crew.members) < MOST:
            self._crew.start(networked=member.networked)

    # Network ----------------------------------------------------------------------------------------------------------

    def cut_network(self, act: Act) -> End | None:
        network = self._network
        if network is None or self._cut:
            return None
        began, self._cut = time.time(), True
        inside = self._inside()
        network.cut()

        def mend() -> None:
            network.mend()
            self._cut = False
            self._note(act.name, began, sorted(inside | self._inside()) or [0])

        return mend

    def _inside(self) -> set[int]:
        """Who is in the network that is cut: asked at both ends, for one may be killed and another one join meanwhile."""
        return {pid for member in self._crew.members if member.networked for pid in member.pids()}

    # Brokers ----------------------------------------------------------------------------------------------------------

    def restart_broker(self, act: Act) -> End | None:
        return self._down(act, signal.SIGTERM)

    def kill_broker(self, act: Act) -> End | None:
        return self._down(act, signal.SIGKILL)

    lose_broker = kill_broker

    def _down(self, act: Act, how: int) -> End | None:
        brokers = self._brokers
        if brokers is None or self._broker_busy:
            return None
        number = 1 + int(act.pick * brokers.count)
        began, self._broker_busy = time.time(), True
        brokers.end_one(number, how)

        def up() -> None:
            brokers.start_one(number)
            if brokers.count > 1:
                brokers.lead_again()
            self._broker_busy = False
            self._note(act.name, began)

        return lambda: self._aside(up)

    def _aside(self, do: Callable[[], None]) -> None:
        """A broker that was killed is let in again after its own session timeout; other faults don't wait for that."""
        thread = threading.Thread(target=do, name="nemesis-broker", daemon=True)
        self._aside_threads.append(thread)
        thread.start()

    def rest(self) -> None:
        """Waits until every broker that was to come back is there."""
        for thread in self._aside_threads:
            thread.join(90)

    def freeze_broker(self, act: Act) -> End | None:
        brokers = self._brokers
        if brokers is None or self._broker_busy:
            return None
        number = 1 + int(act.pick * brokers.count)
        began, self._broker_busy = time.time(), True
        brokers.freeze(number)

        def thaw() -> None:
            brokers.thaw(number)
            self._broker_busy = False
            self._note(act.name, began)

        return thaw

    freeze_leader = freeze_broker

    def move_leaders(self, act: Act) -> End | None:
        """A broker that is stopped in order hands its leaderships over; when it is back it gets them back."""
        return self._down(act, signal.SIGTERM)


class Timeline:
    """Does the acts of a schedule when their time has come, and ends what they began; late ones follow at once."""

    def __init__(self, nemesis: Nemesis, acts: Iterable[Act]) -> None:
        self._nemesis = nemesis
        self._number = itertools.count()
        self._open: list[tuple[float, int, Callable[[], object]]] = []
        self._began = time.monotonic()
        for act in acts:
            self._at(act.at_s, lambda act=act: self._begin(act))  # type: ignore[misc]

    def _at(self, at_s: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._open, (at_s, next(self._number), do))

    def _begin(self, act: Act) -> None:
        end = self._nemesis.strike(act)
        if end is not None:
            self._at(max(act.at_s, self.passed_s) + act.lasts_s, end)

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began

    def turn(self) -> bool:
        """Does what is due; False: nothing is left."""
        while self._open and self._open[0][0] <= self.passed_s:
            heapq.heappop(self._open)[2]()
        return bool(self._open)
