"""confluent_kafka's errors as ours: what failed, why, and whether the same call may succeed later."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from confluent_kafka.cimpl import KafkaError, KafkaException

from streamjobs.errors import OUT_OF_REACH, BrokerError

Answer = TypeVar("Answer")

#: Between two attempts of a call that is tried again.
PAUSE = 0.05
#: What a client heard of its brokers explains a failure for so long.
RECENT_S = 30.0

#: The cluster is busy, moving or out of reach: the same call may succeed later.
_RETRIABLE = """
BROKER_NOT_AVAILABLE CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE
ELECTION_NOT_NEEDED ELIGIBLE_LEADERS_NOT_AVAILABLE FENCED_LEADER_EPOCH FETCH_SESSION_ID_NOT_FOUND ILLEGAL_GENERATION
FENCED_MEMBER_EPOCH INCONSISTENT_TOPIC_ID INVALID_FETCH_SESSION_EPOCH INVALID_MSG INVALID_SHARE_SESSION_EPOCH
KAFKA_STORAGE_ERROR LEADER_NOT_AVAILABLE LISTENER_NOT_FOUND MEMBER_ID_REQUIRED NETWORK_EXCEPTION NOT_CONTROLLER
NOT_COORDINATOR NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND NOT_LEADER_FOR_PARTITION OFFSET_NOT_AVAILABLE
OPERATION_NOT_ATTEMPTED PREFERRED_LEADER_NOT_AVAILABLE REASSIGNMENT_IN_PROGRESS REBALANCE_IN_PROGRESS
REBOOTSTRAP_REQUIRED REPLICA_NOT_AVAILABLE REQUEST_TIMED_OUT SHARE_SESSION_LIMIT_REACHED SHARE_SESSION_NOT_FOUND
STALE_BROKER_EPOCH STALE_CTRL_EPOCH STALE_MEMBER_EPOCH THROTTLING_QUOTA_EXCEEDED TRANSACTION_ABORTABLE
UNKNOWN_CONTROLLER_ID UNKNOWN_LEADER_EPOCH UNRELEASED_INSTANCE_ID UNSTABLE_OFFSET_COMMIT
_ALL_BROKERS_DOWN _ASSIGNMENT_LOST _DESTROY_BROKER _INTR _IN_PROGRESS _ISR_INSUFF _MAX_POLL_EXCEEDED _MSG_TIMED_OUT
_NODE_UPDATE _OUTDATED _PREV_IN_PROGRESS _PURGE_INFLIGHT _PURGE_QUEUE _QUEUE_FULL _RESOLVE _RETRY _TIMED_OUT
_TIMED_OUT_QUEUE _TRANSPORT _WAIT_CACHE _WAIT_COORD
"""
RETRIABLE = frozenset(_RETRIABLE.split())

#: Something has to be changed first: the data, the configuration, a right, a topic, or the client object.
_PERMANENT = """
CLUSTER_AUTHORIZATION_FAILED DELEGATION_TOKEN_AUTHORIZATION_FAILED DELEGATION_TOKEN_AUTH_DISABLED
DELEGATION_TOKEN_EXPIRED DELEGATION_TOKEN_NOT_FOUND DELEGATION_TOKEN_OWNER_MISMATCH
DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DUPLICATE_RESOURCE DUPLICATE_SEQUENCE_NUMBER DUPLICATE_VOTER
FEATURE_UPDATE_FAILED FENCED_INSTANCE_ID FENCED_STATE_EPOCH GROUP_AUTHORIZATION_FAILED GROUP_ID_NOT_FOUND
GROUP_MAX_SIZE_REACHED GROUP_SUBSCRIBED_TO_TOPIC ILLEGAL_SASL_STATE INCONSISTENT_GROUP_PROTOCOL
INCONSISTENT_VOTER_SET INVALID_COMMIT_OFFSET_SIZE INVALID_CONFIG INVALID_GROUP_ID INVALID_MSG_SIZE INVALID_PARTITIONS
INVALID_PRINCIPAL_TYPE INVALID_PRODUCER_EPOCH INVALID_PRODUCER_ID_MAPPING INVALID_RECORD INVALID_RECORD_STATE
INVALID_REGISTRATION INVALID_REGULAR_EXPRESSION INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT
INVALID_REQUEST INVALID_REQUIRED_ACKS INVALID_SESSION_TIMEOUT INVALID_TIMESTAMP INVALID_TRANSACTION_TIMEOUT
INVALID_TXN_STATE INVALID_UPDATE_VERSION INVALID_VOTER_KEY LOG_DIR_NOT_FOUND MISMATCHED_ENDPOINT_TYPE
MSG_SIZE_TOO_LARGE NON_EMPTY_GROUP NO_ERROR NO_REASSIGNMENT_IN_PROGRESS OFFSET_METADATA_TOO_LARGE
OFFSET_OUT_OF_RANGE OUT_OF_ORDER_SEQUENCE_NUMBER POLICY_VIOLATION PRINCIPAL_DESERIALIZATION_FAILURE PRODUCER_FENCED
RECORD_LIST_TOO_LARGE RESOURCE_NOT_FOUND SASL_AUTHENTICATION_FAILED SECURITY_DISABLED STREAMS_INVALID_TOPOLOGY
STREAMS_INVALID_TOPOLOGY_EPOCH STREAMS_TOPOLOGY_FENCED TELEMETRY_TOO_LARGE TOPIC_ALREADY_EXISTS
TOPIC_AUTHORIZATION_FAILED TOPIC_DELETION_DISABLED TOPIC_EXCEPTION TRANSACTIONAL_ID_AUTHORIZATION_FAILED
TRANSACTION_COORDINATOR_FENCED UNACCEPTABLE_CREDENTIAL UNKNOWN UNKNOWN_MEMBER_ID UNKNOWN_PRODUCER_ID
UNKNOWN_SUBSCRIPTION_ID UNKNOWN_TOPIC_ID UNKNOWN_TOPIC_OR_PART UNSUPPORTED_ASSIGNOR UNSUPPORTED_COMPRESSION_TYPE
UNSUPPORTED_ENDPOINT_TYPE UNSUPPORTED_FOR_MESSAGE_FORMAT UNSUPPORTED_SASL_MECHANISM UNSUPPORTED_VERSION
VOTER_NOT_FOUND
_APPLICATION _ASSIGN_PARTITIONS _AUTHENTICATION _AUTO_OFFSET_RESET _BAD_COMPRESSION _BAD_MSG _CONFLICT
_CRIT_SYS_RESOURCE _DESTROY _EXISTING_SUBSCRIPTION _FAIL _FATAL _FENCED _FS _GAPLESS_GUARANTEE _INCONSISTENT
_INVALID_ARG _INVALID_DIFFERENT_RECORD _INVALID_TYPE _KEY_DESERIALIZATION _KEY_SERIALIZATION _LOG_TRUNCATION _NOENT
_NOOP _NOT_CONFIGURED _NOT_IMPLEMENTED _NO_OFFSET _PARTIAL _PARTITION_EOF _READ_ONLY _REVOKE_PARTITIONS _SSL _STATE
_UNDERFLOW _UNKNOWN_BROKER _UNKNOWN_GROUP _UNKNOWN_PARTITION _UNKNOWN_PROTOCOL _UNKNOWN_TOPIC _UNSUPPORTED_FEATURE
_VALUE_DESERIALIZATION _VALUE_SERIALIZATION
"""
PERMANENT = frozenset(_PERMANENT.split())

#: Several names of one thing: another client with the same transactional id took over.
SAME_AS = {"PRODUCER_FENCED": "_FENCED", "INVALID_PRODUCER_EPOCH": "_FENCED"}

_IS_IT_THERE = "is the broker running, and is `bootstrap` its address?"

#: What a person can do about the ones that people meet.
ADVICE = {
    "_ALL_BROKERS_DOWN": _IS_IT_THERE,
    "_MSG_TIMED_OUT": _IS_IT_THERE,
    "_TIMED_OUT": _IS_IT_THERE,
    "_TRANSPORT": _IS_IT_THERE,
    "_RESOLVE": "does the host name in `bootstrap` exist?",
    "_AUTHENTICATION": "check the sasl.* keys under [kafka]",
    "SASL_AUTHENTICATION_FAILED": "check the sasl.* keys under [kafka]",
    "_SSL": "check the ssl.* keys under [kafka]",
    "UNKNOWN_TOPIC_OR_PART": "`streamjobs topic plan` shows which topics are missing",
    "_UNKNOWN_TOPIC": "`streamjobs topic plan` shows which topics are missing",
    "_UNKNOWN_PARTITION": "`streamjobs topic plan` shows which topics are too small",
    "TOPIC_AUTHORIZATION_FAILED": "this principal needs READ, WRITE and DESCRIBE on the topic",
    "GROUP_AUTHORIZATION_FAILED": "this principal needs READ on the group",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "this principal needs WRITE on the transactional id",
    "CLUSTER_AUTHORIZATION_FAILED": "this principal lacks a right on the cluster",
    "UNKNOWN_MEMBER_ID": "the group has live members, or this one was expelled from it",
    "UNRELEASED_INSTANCE_ID": "the previous holder of this instance id has not timed out yet",
    "MSG_SIZE_TOO_LARGE": "raise `max_message_bytes` and run `streamjobs topic apply`, or send less",
    "_AUTO_OFFSET_RESET": "the offset is no longer (or not yet) in the log",
}


def translated(error: KafkaError, doing: str = "", why: str = "") -> BrokerError:
    """A KafkaError as a BrokerError; `doing` says what was tried, in words such as "commit offsets", and `why` what else is known."""
    code = SAME_AS.get(error.name(), error.name())
    text = ": ".join(part for part in (doing, error.str(), why, ADVICE.get(code, "")) if part)
    fatal = error.fatal() or code in ("_FATAL", "_FENCED")
    return BrokerError(
        code,
        text,
        retriable=not fatal and (error.retriable() or code in RETRIABLE),
        fatal=fatal,
        abortable=not fatal and error.txn_requires_abort(),
    )


def from_exception(error: BaseException, doing: str = "") -> BrokerError:
    """A KafkaException (or whatever else came out of the client) as a BrokerError."""
    first = error.args[0] if error.args else None
    if isinstance(first, KafkaError):
        return translated(first, doing)
    if isinstance(error, TimeoutError):
        return BrokerError("_TIMED_OUT", f"{doing}: no answer in time", retriable=True)
    return BrokerError("_APPLICATION", f"{doing}: {type(error).__name__}: {error}")


class Contact:
    """What a client hears of its brokers (it is its `error_cb`): its errors say only that time was up, not where and why."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.met = False
        self._refused: set[str] = set()
        self._code, self._why, self._at = "", "", -RECENT_S

    def heard(self, error: KafkaError) -> None:
        """`nohost:9092/bootstrap: Failed to resolve 'nohost:9092': Name or service not known (after 3ms in state CONNECT)`."""
        if error.name() in ("_ALL_BROKERS_DOWN", "_MAX_POLL_EXCEEDED", "_FATAL"):
            return
        whose, _, why = error.str().partition("/bootstrap: ")
        if why:
            self._refused.add(whose)
        self._code, self._why, self._at = error.name(), _AFTER.sub("", why or whose), time.monotonic()

    def listen_again(self) -> None:
        """Forgets who refused so far."""
        self._refused.clear()

    @property
    def refused(self) -> bool:
        """Whether each server of `bootstrap` has refused since: one that is only slow has not."""
        servers = [server for server in self.bootstrap.split(",") if server.strip()]
        return bool(self._refused) and len(self._refused) >= len(servers)

    def refusal(self, doing: str) -> BrokerError:
        text = ": ".join(part for part in (self._at_its_address(doing), self._why, ADVICE.get(self._code, "")) if part)
        return BrokerError(self._code, text, retriable=True)

    def told(self, error: KafkaError, doing: str) -> BrokerError:
        """As `translated`; of a broker that is out of reach also its address and the reason."""
        if error.name() not in OUT_OF_REACH:
            return translated(error, doing)
        return translated(error, self._at_its_address(doing), self._why if time.monotonic() - self._at < RECENT_S else "")

    def _at_its_address(self, doing: str) -> str:
        return f"{doing} at {self.bootstrap}"

    @contextmanager
    def as_broker_error(self, doing: str) -> Iterator[None]:
        """As the function of that name, in the words of `told`."""
        try:
            yield
        except (KafkaException, TimeoutError) as error:
            raise self.from_exception(error, doing) from error

    def from_exception(self, error: KafkaException | TimeoutError, doing: str) -> BrokerError:
        first = error.args[0] if error.args else None
        return self.told(first if isinstance(first, KafkaError) else KafkaError(KafkaError._TIMED_OUT), doing)


_AFTER = re.compile(r" \(after \d+ms in state .*")


@contextmanager
def as_broker_error(doing: str) -> Iterator[None]:
    """Turns what the client or one of its futures raises into a BrokerError."""
    try:
        yield
    except (KafkaException, TimeoutError) as error:
        raise from_exception(error, doing) from error


def persistently(call: Callable[[], Answer], timeout: float, codes: Collection[str] | None = None) -> Answer:
    """Calls again for up to `timeout` while the error is retriable: a new partition's leader needs a moment to know it is one. `codes`: only
    while it is one of these."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return call()
        except BrokerError as error:
            again = error.retriable if codes is None else error.code in codes
            if not again or time.monotonic() + PAUSE > deadline:
                raise
        time.sleep(PAUSE)
