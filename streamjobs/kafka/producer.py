"""Producers over confluent_kafka: an idempotent one for any thread, and a transactional one for one owner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any
from weakref import WeakMethod

from confluent_kafka.cimpl import KafkaError, KafkaException
from confluent_kafka.cimpl import Message as ClientMessage
from confluent_kafka.cimpl import Producer as Client
from confluent_kafka.cimpl import TopicPartition as ClientPartition

from streamjobs.broker import Ack, Commit, TopicPartition
from streamjobs.core.record import Record
from streamjobs.errors import BrokerError, of_ctrl_c
from streamjobs.kafka.errors import Contact, as_broker_error, from_exception, translated
from streamjobs.kafka.forks import never_free, tell_of_forks
from streamjobs.kafka.log import QuietLog

log = logging.getLogger(__name__)

#: Between two looks at the one client while the other one is waited for.
SLICE_S = 0.01
#: How long after its timeout a call of the client may take before it is taken for one that never returns; and how long its answer is
#: looked for after that: a process that was frozen in between finds time up before another thread could say what came of it.
CLIENT_LATE_S, THAWED_S = 1.0, 0.2

Delivered = Callable[[KafkaError | None, ClientMessage], None]


class KafkaProducer:
    """Implements `streamjobs.broker.Producer`. Belongs to the process that built it: after a fork, build another one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._fatal: BrokerError | None = None
        self._contact = Contact(str(config.get("bootstrap.servers", "")))
        self._lock = threading.Lock()
        self._client = self._connect(config)
        self._single: Client | None = None  # whose batches hold one record; made when it is needed
        tell_of_forks(self)

    def _connect(self, config: Mapping[str, Any]) -> Client:
        """The client does not keep its producer alive. *Bites*: both wait for the garbage collector, with three threads and five sockets,
        after every order that a program writes."""
        hear = WeakMethod(self._on_error)

        def on_error(error: KafkaError) -> None:
            if (heard := hear()) is not None:
                heard(error)

        with as_broker_error("start a producer"):
            return Client({**config, "error_cb": on_error, "logger": QuietLog()})

    def forked(self) -> None:
        never_free(self)

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        client = self._single_client() if alone else self._client
        topic, value, key, headers, partition = record
        wanted: Any = headers if type(headers) is list else list(headers)
        try:
            client.produce(topic, value, key, partition, None if ack is None else _Delivery(ack, self._contact, about), headers=wanted)
        except BufferError:
            raise BrokerError("_QUEUE_FULL", "send a record: the producer's buffer is full", retriable=True) from None
        except KafkaException as error:
            raise self._noted(from_exception(error, f"send a record to {record.topic}")) from error

    def _single_client(self) -> Client:
        with self._lock:
            if self._single is None:
                self._single = self._connect({**self._config, "batch.num.messages": 1})
            return self._single

    def poll(self, timeout: float = 0.0) -> int:
        single = self._single
        if not single:  # as a client, it is as long as it has records open
            return self._serve(self._client.poll, timeout)
        return self._serve(single.poll, min(timeout, SLICE_S)) + self._serve(self._client.poll, 0)

    def flush(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        for client in self._clients:
            self._serve(client.flush, max(0.0, deadline - time.monotonic()))
        return sum(map(len, self._clients))

    @property
    def _clients(self) -> Sequence[Client]:
        return (self._client,) if self._single is None else (self._client, self._single)

    def _serve(self, call: Callable[[float], int], timeout: float) -> int:
        """Of a fatal error the client (2.16) tells nobody but whoever serves its callbacks, who is interrupted by it: with the error, or
        with a SystemError that names none, if one of the callbacks has stumbled over it (see `_Delivery`)."""
        try:
            return call(timeout)
        except KafkaException as error:
            self._noted(from_exception(error))
        except SystemError as error:
            if of_ctrl_c(error):
                raise
        return 0

    def fatal(self) -> BrokerError | None:
        return self._fatal

    def close(self, timeout: float = 10.0) -> None:
        left = self.flush(timeout)
        if left:
            log.warning("closing a producer with %d records that were not acknowledged", left)
        # Without this, destroying the client would wait for what is on its way.
        for client in self._clients:
            client.purge()
            self._serve(client.poll, 0)

    def _on_error(self, error: KafkaError) -> None:
        self._contact.heard(error)
        self._noted(translated(error))

    def _noted(self, error: BrokerError) -> BrokerError:
        if error.fatal and (self._fatal is None or self._fatal.code == "_FATAL"):
            self._fatal = error
        return error


class KafkaTransactionalProducer(KafkaProducer):
    """Implements `streamjobs.broker.TransactionalProducer`."""

    _last_alone = False

    def send(self, record: Record, ack: Ack | None = None, about: Any = None, *, alone: bool = False) -> None:
        if (alone or self._last_alone) and len(self._client):
            raise BrokerError("_QUEUE_FULL", "send a record alone: others are on their way", retriable=True)
        self._last_alone = alone
        try:
            super().send(record, ack, about)
        except BrokerError as error:
            if error.code == "_FATAL":  # that is all that `produce` says; what is about transactions tells which
                self._call(f"send a record to {record.topic}", self._client.begin_transaction)
            raise

    def init(self, timeout: float = 30.0) -> None:
        self._call("start transactions", self._client.init_transactions, timeout)

    def begin(self) -> None:
        self._call("begin a transaction", self._client.begin_transaction)

    def send_offsets(self, offsets: Mapping[TopicPartition, Commit], group_metadata: Any, timeout: float = 10.0) -> None:
        """*Bites* (measured, librdkafka 2.16): a broker restarts, the client forgets it, all but the place where it remembers the group's
        coordinator, and this call waits there for ever, whatever its timeout (`kafka/coordinators.py` tells more). Then the client is of
        no use any more, and is left to the thread that waits in it."""
        positions = [ClientPartition(t, p, commit.offset, commit.metadata) for (t, p), commit in offsets.items()]
        asked: Future[None] = Future()
        call = self._client.send_offsets_to_transaction
        arguments = (asked, call, positions, group_metadata, timeout)
        threading.Thread(target=_answer, args=arguments, name="streamjobs-kafka", daemon=True).start()
        wait([asked], timeout + CLIENT_LATE_S)
        if not wait([asked], THAWED_S).done:
            text = "send offsets: the client waits for a coordinator that is not there any more"
            raise self._noted(BrokerError("_TIMED_OUT", text, fatal=True))
        self._call("send offsets", asked.result)

    def commit(self, timeout: float = 10.0) -> None:
        self._call("commit a transaction", self._client.commit_transaction, timeout)

    def abort(self, timeout: float = 10.0) -> None:
        self._call("abort a transaction", self._client.abort_transaction, timeout)

    def _call(self, doing: str, call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except KafkaException as error:
            raise self._noted(self._contact.from_exception(error, doing)) from error


def _answer(asked: Future[None], call: Callable[..., object], *arguments: Any) -> None:
    try:
        call(*arguments)
    except BaseException as error:  # noqa: BLE001 (whoever asked raises it)
        asked.set_exception(error)
    else:
        asked.set_result(None)


class _Delivery:
    """An exception out of a delivery callback would surface in whoever polls: it is logged instead.

    One object a record: with a closure, which is three, the garbage collector took twice as long.
    """

    __slots__ = ("about", "ack", "contact")

    def __init__(self, ack: Ack, contact: Contact, about: Any) -> None:
        self.ack: Callable[..., object] = ack
        self.contact = contact
        self.about = about

    def __call__(self, error: KafkaError | None, message: ClientMessage) -> None:
        try:
            told = None if error is None else self._told(error)
            if self.about is None:
                self.ack(told, message)
            else:
                self.ack(self.about, told, message)
        except Exception:
            log.exception("an acknowledgement callback failed")

    def _told(self, error: KafkaError) -> BrokerError:
        """*Bites* (measured, 2.16): the client raises a fatal error and calls back all the same, so that the first look at `error` fails
        with it, as itself or as a SystemError; and that record's acknowledgement would never come."""
        try:
            return self.contact.told(error, "deliver a record")
        except (KafkaException, SystemError):
            return self.contact.told(error, "deliver a record")
