"""A Kafka cluster as `streamjobs.broker.Broker`. Loads confluent_kafka when the first client is built, not before."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from streamjobs.broker import Admin, Consumer, Isolation, Producer, TransactionalProducer
from streamjobs.kafka import config

if TYPE_CHECKING:
    from streamjobs.kafka.admin import KafkaAdmin

ProtocolChoice = Literal["auto", "consumer", "classic"]


class KafkaBroker:
    """Makes clients of the cluster at `bootstrap`.

    `kafka_config`: librdkafka's keys, passed through (SettingsError for one that we own: `core/client_keys.py`). `protocol`: "auto" is
    KIP-848 (`consumer`) where the cluster has it, else `classic`. `session_timeout_s` is for `classic`; under `consumer` it is the
    group's and set on the broker (`Admin.set_group_config`). `max_message_bytes`: of a job; retry and dead-letter headers come on top.
    """

    lacks: frozenset[str] = frozenset()

    def __init__(
        self,
        bootstrap: str,
        kafka_config: Mapping[str, Any] | None = None,
        *,
        protocol: ProtocolChoice = "auto",
        session_timeout_s: float = 10.0,
        max_poll_interval_s: float = 300.0,
        client_id: str = "streamjobs",
        max_message_bytes: int = 1_048_576,
    ) -> None:
        self.bootstrap = bootstrap
        self._kafka = dict(kafka_config or {})
        config.passed_through(self._kafka)
        self._protocol_choice = protocol
        self._session_timeout_s = session_timeout_s
        self._max_poll_interval_s = max_poll_interval_s
        self._client_id = client_id
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._protocol_found: config.Protocol | None = None
        self._admin: KafkaAdmin | None = None

    def protocol(self) -> config.Protocol:
        """The group protocol of this broker's consumers. Raises BrokerError when the cluster has to be asked and is silent."""
        if self._protocol_found is None:
            if self._protocol_choice == "auto":
                self._protocol_found = "consumer" if "consumer" in self.admin().cluster().protocols else "classic"
            else:
                self._protocol_found = self._protocol_choice
        return self._protocol_found

    def consumer(
        self, group: str | None, *, instance: str | None = None, isolation: Isolation = "read_committed", patient: bool = False
    ) -> Consumer:
        from streamjobs.kafka.consumer import KafkaConsumer

        return KafkaConsumer(self._consumer_config(group, instance, isolation, patient=patient))

    def _consumer_config(self, group: str | None, instance: str | None, isolation: Isolation, *, patient: bool) -> config.Config:
        settings = self._adapted(self._reader_or_member(group, instance, isolation))
        return config.patient(settings, self._kafka, member=group is not None) if patient else settings

    def _reader_or_member(self, group: str | None, instance: str | None, isolation: Isolation) -> config.Config:
        if group is None:
            return config.reader(self.bootstrap, self._client_id, self._kafka, isolation)
        return config.member(
            self.bootstrap,
            self._client_id,
            self._kafka,
            isolation,
            group=group,
            protocol=self.protocol(),
            instance=instance,
            session_timeout_s=self._session_timeout_s,
            max_poll_interval_s=self._max_poll_interval_s,
        )

    def producer(self, *, within: float | None = None) -> Producer:
        from streamjobs.kafka.producer import KafkaProducer

        settings = self._producer_config()
        return KafkaProducer(settings if within is None else config.within(settings, within))

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        from streamjobs.kafka.producer import KafkaTransactionalProducer

        return KafkaTransactionalProducer(config.transactional(self._producer_config(), transactional_id))

    def _producer_config(self) -> config.Config:
        settings = config.producer(self.bootstrap, self._client_id, self._kafka, self._max_message_bytes)
        return self._adapted(settings)

    def _adapted(self, settings: config.Config) -> config.Config:
        """What a kind of broker changes in every client's configuration."""
        return settings

    def admin(self) -> Admin:
        with self._lock:
            if self._admin is None:
                self._admin = self._new_admin()
            return self._admin

    def _new_admin(self) -> KafkaAdmin:
        from streamjobs.kafka.admin import KafkaAdmin

        return KafkaAdmin(config.admin(self.bootstrap, self._client_id, self._kafka))

    def close(self) -> None:
        """Frees what this object made for itself; clients that were handed out are their owners' to close."""
        with self._lock:
            self._admin = None
