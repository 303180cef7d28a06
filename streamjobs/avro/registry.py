"""A Confluent-compatible schema registry as a source of writers' schemas: optional, `pip install streamjobs[registry]`.

The client library is imported when a registry is made, never before. API: "Confluent Schema Registry API Reference",
`GET /schemas/ids/{id}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from streamjobs.errors import DecodeError, SettingsError, UnknownSchemaError

#: Seconds that one question may take: it is asked on the thread that decodes.
TIMEOUT = 2.0

_NOT_FOUND = 404


class ConfluentRegistry:
    """Asks a registry by schema id. `config`: the client's own keys (`basic.auth.user.info`, `ssl.ca.location`, …).

    Raises SettingsError where the client is not installed or refuses its configuration.
    """

    def __init__(self, url: str, config: Mapping[str, Any] | None = None, timeout: float = TIMEOUT) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
            from confluent_kafka.schema_registry.error import SchemaRegistryError
        except ImportError as problem:
            raise SettingsError(
                f"a schema registry is configured, but its client is not installed ({problem}): "
                "pip install 'streamjobs[registry]'"
            ) from problem
        self._host = urlsplit(url.split(",", maxsplit=1)[0]).hostname or "?"  # the address may hold a password
        self._refusal: type[Exception] = SchemaRegistryError
        settings = {"timeout": timeout, "max.retries": 0, **(config or {}), "url": url}
        try:
            self._client = SchemaRegistryClient(settings)
        except Exception as problem:
            raise SettingsError(f"the schema registry {self._host} can't be used: {problem}") from problem

    def schema(self, id: int) -> str:
        """The JSON of the Avro schema of that id.

        Raises UnknownSchemaError: the registry does not know it (a registry that lags may, later), or (`transient`) it could not
        be asked. Raises DecodeError for a schema that is not Avro, or refers to others.
        """
        try:
            found = self._client.get_schema(id)
        except Exception as problem:
            raise self._unknown(id, problem) from problem
        if (found.schema_type or "AVRO") != "AVRO":
            raise DecodeError(f"the registry's schema {id} is {found.schema_type}, not Avro: publish the job as Avro")
        if found.references:
            raise DecodeError(f"the registry's schema {id} refers to other schemas: register it with them included")
        return str(found.schema_str)

    def _unknown(self, id: int, problem: Exception) -> UnknownSchemaError:
        key = id.to_bytes(4, "big")
        if isinstance(problem, self._refusal) and getattr(problem, "http_status_code", 0) == _NOT_FOUND:
            return UnknownSchemaError(f"the schema registry {self._host} has no schema {id}", key)
        said = f"{type(problem).__name__}: {problem}"
        return UnknownSchemaError(f"the schema registry {self._host} could not be asked for schema {id}: {said}", key, transient=True)
