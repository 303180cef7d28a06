"""A group's member, or a reader of explicit partitions, over confluent_kafka.

What bites without the care taken here (all measured): an exception inside a callback destroys the records that were popped
with it; a pause before the assignment is applied is ignored, and one from an earlier assignment sticks; a synchronous commit
raises although it stored all partitions but one; `close()` with no broker in reach takes 45 s.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import length_hint
from typing import Any

from confluent_kafka.cimpl import Consumer as Client
from confluent_kafka.cimpl import KafkaError, KafkaException
from confluent_kafka.cimpl import Message as ClientMessage
from confluent_kafka.cimpl import TopicPartition as ClientPartition

from streamjobs.broker import Commit, Committed, Listener, Message, Start, TopicPartition
from streamjobs.errors import BrokerError
from streamjobs.kafka.errors import as_broker_error, from_exception, persistently, translated
from streamjobs.kafka.forks import never_free, tell_of_forks
from streamjobs.kafka.log import QuietLog

#: Leaving the group is tried for so long; then its members wait for the session timeout instead.
CLOSE_TIMEOUT = 10.0
#: After an exception inside the client (Ctrl-C) it leaves the group and then waits for ever for a record that it leaked.
DAMAGED_CLOSE_TIMEOUT = 1.0
#: A loop that takes no records for so long has its partitions paused: pausing throws away what was fetched ahead.
QUIET_AFTER = 0.5
MAX_FAULTS = 1_000
MAX_BATCH = 10_000

Partitions = Sequence[TopicPartition]

#: In place of the headers of a record that has one whose name is no UTF-8.
UNREADABLE = ("unreadable-headers", b"the name of one of them is no UTF-8, so the client could give none")

_error, _headers = ClientMessage.error, ClientMessage.headers
_MAIN_THREAD = threading.main_thread().ident


class KafkaConsumer:
    """Implements `streamjobs.broker.Consumer`. Only its owner's thread may call it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._faults: deque[tuple[TopicPartition | None, BrokerError]] = deque(maxlen=MAX_FAULTS)
        self._listener: Listener | None = None
        self._topics: list[str] = []
        self._member_id = ""
        self._starts: dict[TopicPartition, int] = {}  # of what is assigned
        self._paused: set[TopicPartition] = set()
        self._commits: deque[tuple[frozenset[tuple[str, int, int]], Committed]] = deque()
        self._late: list[Callable[[], None]] = []  # results to be told inside the next fetch
        self._held: list[ClientMessage] = []  # records that came while none was wanted
        self._full_since: float | None = None
        self._quiet = False
        self._in_callback = False
        self._closing = False
        self._damaged = False
        self._busy: threading.Thread | None = None
        callbacks = {"error_cb": self._on_error, "on_commit": self._on_commit, "logger": QuietLog()}
        with as_broker_error("start a consumer"):
            self._client = Client({**config, **callbacks})
        tell_of_forks(self)

    def forked(self) -> None:
        never_free(self)

    # -- reading ----------------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> list[Message]:
        if limit < 1:
            self._serve(timeout)
            return []
        if self._full_since is not None or self._late or self._busy is not None:
            return self._fetch_after_pressure(limit, timeout)
        return self._pull(limit, timeout)  # type: ignore[return-value]  # a ClientMessage read from a log has a topic

    def _pull(self, limit: int, timeout: float) -> list[ClientMessage]:
        # Ctrl-C is raised inside the client, on the main thread only; the records popped with it are destroyed.
        before = self._client_positions(self._starts) if threading.get_ident() == _MAIN_THREAD else {}
        try:
            batch = self._client.consume(min(limit, MAX_BATCH), 0)
            if not batch and timeout > 0:
                batch = self._await_records(limit, timeout)
        except BaseException as error:
            self._damaged = True
            self._rewind(before)
            self._note(None, from_exception(error, "fetch"))
            if isinstance(error, KafkaException):
                return []
            raise
        return _legible(self._without_errors(batch) if any(map(_error, batch)) else batch)

    def _await_records(self, limit: int, timeout: float) -> list[ClientMessage]:
        """The first one, and what came with it. (`consume` with a timeout would wait for `limit` records.)"""
        first = self._client.poll(timeout)
        if first is None:
            return []
        more = self._client.consume(min(limit - 1, MAX_BATCH), 0) if limit > 1 else []
        return [first, *more]

    def _without_errors(self, batch: Iterable[ClientMessage]) -> list[ClientMessage]:
        records = []
        for message in batch:
            error = message.error()
            if error is None:
                records.append(message)
            else:
                self._take_error(message, error)
        return records

    def _take_error(self, message: ClientMessage, error: KafkaError) -> None:
        topic, partition = message.topic(), message.partition()
        where = None if topic is None or partition is None or partition < 0 else TopicPartition(topic, partition)
        self._note(where, translated(error, "fetch"))

    def faults(self) -> list[tuple[TopicPartition | None, BrokerError]]:
        faults = []
        while self._faults:
            faults.append(self._faults.popleft())
        return faults

    def _note(self, where: TopicPartition | None, error: BrokerError) -> None:
        self._faults.append((where, error))

    # -- when no record is wanted -----------------------------------------------------------------------------------

    def _serve(self, timeout: float) -> None:
        """Serves callbacks. The client's queue holds them *between* records, so a record that comes first is kept."""
        if not self._ready(timeout):
            return
        now = time.monotonic()
        self._full_since = self._full_since or now
        left = self._full_since + QUIET_AFTER - now
        if self._held and left > 0 and not self._quiet:
            time.sleep(min(timeout, left))
            return
        if left <= 0 and not self._quiet:
            self._hush()
        self._held += self._pull(1, timeout)

    def _hush(self) -> None:
        self._quiet = True
        self._client_pause(set(self._starts) - self._paused)

    def _fetch_after_pressure(self, limit: int, timeout: float) -> list[Message]:
        if not self._ready(timeout):
            return []
        self._full_since = None
        if self._quiet:
            self._quiet = False
            self._client_resume(set(self._starts) - self._paused)
        ready = [message for message in self._held if _where(message) not in self._paused][:limit]
        self._held = [message for message in self._held if message not in ready]
        if self._held:
            self._full_since = time.monotonic()
        more = self._pull(limit - len(ready), 0 if ready else timeout) if len(ready) < limit else []
        return ready + more  # type: ignore[return-value]

    def _ready(self, timeout: float) -> bool:
        """Tells late results; False while a commit that was given up is still under way (the client is one thread's)."""
        while self._late:
            self._guarded(self._late.pop(0))
        if self._busy is not None:
            self._busy.join(timeout)
            if self._busy.is_alive():
                return False
            self._busy = None
        return True

    # -- the group --------------------------------------------------------------------------------------------------

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        self._listener, self._topics = listener, list(topics)
        with as_broker_error(f"subscribe to {', '.join(topics)}"):
            self._client.subscribe(self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def member_id(self) -> str:
        if self._busy is None:  # else it would wait for the commit that was given up
            self._member_id = self._client.memberid() or ""
        return self._member_id

    def rejoin(self) -> None:
        if self._listener is not None:
            with as_broker_error("leave a group"):
                self._client.unsubscribe()
            self.subscribe(self._topics, self._listener)

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        self._forget(list(self._starts))
        self._starts = dict(starts)
        with as_broker_error("assign partitions"):
            self._client.assign([ClientPartition(t, p, offset) for (t, p), offset in starts.items()])

    def _on_assign(self, _client: Client, partitions: list[ClientPartition]) -> None:
        with _Callback(self):
            assigned = [TopicPartition(p.topic, p.partition) for p in partitions]
            starts = self._starts_of(assigned) if assigned else {}
            self._starts.update((where, start.offset) for where, start in starts.items())
            self._client.incremental_assign([ClientPartition(t, p, s.offset) for (t, p), s in starts.items()])
            # In this order: a pause before the assignment is ignored, and one from an earlier assignment still holds.
            self._client_resume(where for where, start in starts.items() if start.fetch)
            self._paused |= {where for where, start in starts.items() if not start.fetch}
            self._client_pause(starts if self._quiet else [where for where in starts if where in self._paused])

    def _starts_of(self, assigned: Partitions) -> dict[TopicPartition, Start]:
        """What the listener answers; what it does not know, or forgets, is held: nothing is read at a guess."""
        answer: Mapping[TopicPartition, Start] = {}
        if self._listener is not None and not self._closing:
            try:
                answer = self._listener.assigned(assigned)
            except Exception as error:  # noqa: BLE001 - raising here would destroy records
                self._note(None, from_exception(error, "listener.assigned"))
        return {where: answer.get(where, Start(0, fetch=False)) for where in assigned}

    def _on_revoke(self, _client: Client, partitions: list[ClientPartition]) -> None:
        if self._listener is not None:
            self._leave(partitions, self._listener.revoked)

    def _on_lost(self, _client: Client, partitions: list[ClientPartition]) -> None:
        if self._listener is not None:
            self._leave(partitions, self._listener.lost)

    def _leave(self, partitions: list[ClientPartition], tell: Callable[[Partitions], None]) -> None:
        with _Callback(self):
            leaving = [TopicPartition(p.topic, p.partition) for p in partitions]
            owned = [where for where in leaving if where in self._starts]  # it may list what we no longer hold
            if owned and not self._closing:
                self._guarded(lambda: tell(owned))
            self._forget(leaving)
            self._client.incremental_unassign(partitions)

    def _forget(self, partitions: Partitions) -> None:
        for where in partitions:
            self._starts.pop(where, None)
            self._paused.discard(where)
        self._drop_held(set(partitions))

    def _drop_held(self, partitions: set[TopicPartition]) -> None:
        if self._held:
            self._held = [message for message in self._held if _where(message) not in partitions]

    # -- positions --------------------------------------------------------------------------------------------------

    def pause(self, partitions: Partitions) -> None:
        self._paused.update(where for where in partitions if where in self._starts)
        self._client_pause(partitions)

    def resume(self, partitions: Partitions) -> None:
        self._paused.difference_update(partitions)
        if not self._quiet:
            self._client_resume(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require(partition)
        self._drop_held({partition})
        with as_broker_error(f"seek {partition.topic}/{partition.partition} to {offset}"):
            try:
                self._client.seek(ClientPartition(*partition, offset))
            except KafkaException:
                self._start_again(partition, offset)
        self._starts[partition] = offset

    def _start_again(self, partition: TopicPartition, offset: int) -> None:
        """After an error such as "out of range" a partition's fetcher has stopped, and a stopped one can't be sought."""
        self._client.incremental_unassign([ClientPartition(*partition)])
        self._client.incremental_assign([ClientPartition(*partition, offset)])
        if self._quiet or partition in self._paused:
            self._client.pause([ClientPartition(*partition)])

    def positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        for partition in partitions:
            self._require(partition)
        with as_broker_error("read positions"):
            found = self._client_positions(partitions)
        for message in reversed(self._held):  # the client is past it, whoever asks is not
            if (where := _where(message)) in found:
                found[where] = message.offset() or 0
        return found

    def _require(self, partition: TopicPartition) -> None:
        if partition not in self._starts:
            raise BrokerError("_STATE", f"{partition.topic}/{partition.partition} is not assigned")

    def log_bounds(self, partition: TopicPartition, timeout: float = 10.0) -> tuple[int, int]:
        return persistently(lambda: self._log_bounds(partition, timeout), timeout)

    def _log_bounds(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        doing = f"ask for the bounds of {partition.topic}/{partition.partition}"
        with as_broker_error(doing):
            bounds = self._client.get_watermark_offsets(ClientPartition(*partition), timeout)
        if bounds is None:
            raise from_exception(TimeoutError(), doing)
        return bounds

    def _client_positions(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        known = self._client.position([ClientPartition(*where) for where in partitions])
        return {(where := TopicPartition(p.topic, p.partition)): max(p.offset, self._starts[where]) for p in known}

    def _rewind(self, positions: Mapping[TopicPartition, int]) -> None:
        for where, offset in positions.items():
            if where in self._starts:
                self._guarded(lambda where=where, offset=offset: self.seek(where, offset))  # type: ignore[misc]

    def _client_pause(self, partitions: Iterable[TopicPartition]) -> None:
        with as_broker_error("pause partitions"):
            self._client.pause([ClientPartition(*where) for where in partitions])

    def _client_resume(self, partitions: Iterable[TopicPartition]) -> None:
        with as_broker_error("resume partitions"):
            self._client.resume([ClientPartition(*where) for where in partitions])

    # -- commits ----------------------------------------------------------------------------------------------------

    def committed(self, partitions: Partitions, timeout: float = 10.0) -> dict[TopicPartition, Commit | None]:
        with as_broker_error("read commits"):
            found = self._client.committed([ClientPartition(*where) for where in partitions], timeout)
        return {TopicPartition(p.topic, p.partition): _commit_of(p) for p in found}

    def commit_soon(self, offsets: Mapping[TopicPartition, Commit], done: Committed) -> None:
        if not offsets:
            self._late.append(lambda: done({}))
            return
        asked = frozenset((t, p, commit.offset) for (t, p), commit in offsets.items())
        try:
            self._client.commit(offsets=_to_client(offsets), asynchronous=True)
        except KafkaException as error:
            failed = from_exception(error, "commit offsets")
            self._late.append(lambda: done(dict.fromkeys(offsets, failed)))
        else:
            self._commits.append((asked, done))

    def _on_commit(self, error: KafkaError | None, partitions: list[ClientPartition]) -> None:
        with _Callback(self):
            result = {TopicPartition(p.topic, p.partition): _commit_error(p.error or error) for p in partitions}
            done = self._asker({(p.topic, p.partition, p.offset) for p in partitions})
            if done is not None:
                done(result)

    def _asker(self, partitions: set[tuple[str, int, int]]) -> Committed | None:
        """Whoever asked for this commit. By what was asked: a coordinator that moves may answer out of order."""
        for entry in self._commits:
            if entry[0] == partitions:
                self._commits.remove(entry)
                return entry[1]
        return None

    def commit_now(self, offsets: Mapping[TopicPartition, Commit], timeout: float = 10.0) -> dict[TopicPartition, BrokerError]:
        if not offsets:
            return {}
        if self._in_callback:  # no other thread can use the client until the callback returns
            return self._commit(offsets)
        results: list[dict[TopicPartition, BrokerError]] = []
        self._run_bounded(lambda: results.append(self._commit(offsets)), timeout)
        if results:
            return results[0]
        return dict.fromkeys(offsets, BrokerError("_TIMED_OUT", "commit offsets: no answer in time", retriable=True))

    def _commit(self, offsets: Mapping[TopicPartition, Commit]) -> dict[TopicPartition, BrokerError]:
        try:
            answer = self._client.commit(offsets=_to_client(offsets), asynchronous=False)
        except KafkaException as error:
            return self._after_failed_commit(offsets, from_exception(error, "commit offsets"))
        errors = {TopicPartition(p.topic, p.partition): _commit_error(p.error) for p in answer}
        return {where: error for where, error in errors.items() if error is not None}

    def _after_failed_commit(
        self, offsets: Mapping[TopicPartition, Commit], error: BrokerError
    ) -> dict[TopicPartition, BrokerError]:
        """The client raises when one of several fails, without saying which: the others are stored, so they are asked for."""
        if len(offsets) == 1:
            return dict.fromkeys(offsets, error)
        failed: dict[TopicPartition, BrokerError] = {}
        for where, commit in offsets.items():
            failed.update(self._commit({where: commit}))
        return failed

    def _run_bounded(self, call: Callable[[], None], timeout: float) -> None:
        self._busy = threading.Thread(target=call, name="streamjobs-kafka", daemon=True)
        self._busy.start()
        self._busy.join(timeout)
        if not self._busy.is_alive():
            self._busy = None

    def group_metadata(self) -> Any:
        """Without a member id in it the broker would not check whose offsets these are (KIP-447)."""
        with as_broker_error("read the group's metadata"):
            metadata = self._client.consumer_group_metadata()
        if not self._client.memberid():  # asked after it: a new id comes only while its owner fetches
            raise BrokerError("UNKNOWN_MEMBER_ID", "read the group's metadata: not, or no longer, a member", retriable=True)
        return metadata

    # -- callbacks and the end --------------------------------------------------------------------------------------

    def _on_error(self, error: KafkaError) -> None:
        self._note(None, translated(error))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raising out of a callback would destroy records
            self._note(None, from_exception(error, "callback"))

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._held.clear()
        if self._busy is None:
            self._run_bounded(self._client.close, DAMAGED_CLOSE_TIMEOUT if self._damaged else CLOSE_TIMEOUT)


class _Headless:
    """A record whose headers the client can't give."""

    def __init__(self, message: ClientMessage) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def __len__(self) -> int:
        return len(self._message)

    def headers(self) -> list[tuple[str, bytes]]:
        return [UNREADABLE]


def _legible(batch: list[ClientMessage]) -> list[ClientMessage]:
    """The batch, with a stand-in for each record that has a header whose name is no UTF-8.

    *Bites* (confluent-kafka 2.16): the first look at such headers fails, the second one gets a list with a hole in it, and the process
    dies of a segmentation fault; so does the next one that reads the record. `map` looks from C: a call in Python code may be given the
    list with the hole, and the error somewhere else.
    """
    records = iter(batch)
    looks = map(_headers, records)
    while True:
        try:
            deque(looks, maxlen=0)
        except SystemError:
            place = len(batch) - length_hint(records) - 1
            batch[place] = _Headless(batch[place])  # type: ignore[call-overload]
        else:
            return batch


class _Callback:
    """Around the body of a callback: marks it as such, and lets nothing out of it."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def __enter__(self) -> None:
        self._consumer._in_callback = True

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._consumer._in_callback = False
        if error is not None:
            self._consumer._note(None, from_exception(error, "callback"))
        return isinstance(error, Exception)


def _where(message: ClientMessage) -> TopicPartition:
    return TopicPartition(message.topic() or "", message.partition() or 0)


def _to_client(offsets: Mapping[TopicPartition, Commit]) -> list[ClientPartition]:
    return [ClientPartition(t, p, commit.offset, commit.metadata) for (t, p), commit in offsets.items()]


def _commit_of(found: ClientPartition) -> Commit | None:
    if found.error is not None:
        raise translated(found.error, f"read the commit of {found.topic}/{found.partition}")
    return Commit(found.offset, found.metadata or "") if found.offset >= 0 else None


def _commit_error(error: KafkaError | None) -> BrokerError | None:
    return None if error is None else translated(error, "commit offsets")
