"""Kafka behind the port of `streamjobs.broker`: a cluster, or librdkafka's embedded one."""

from streamjobs.kafka.cluster import KafkaBroker
from streamjobs.kafka.embedded import EmbeddedBroker

__all__ = ["EmbeddedBroker", "KafkaBroker"]
