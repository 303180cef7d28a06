"""Records as only a publisher in another language can write them: by librdkafka itself, which takes any bytes for a header's name."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Mapping
from pathlib import Path

import confluent_kafka

#: Tags of `rd_kafka_producev`'s arguments (librdkafka's `rd_kafka_vtype_t`).
_END, _TOPIC, _VALUE, _FLAGS, _HEADERS = 0, 1, 4, 7, 10
_COPY = 2
_ERROR_SIZE = 512


def send(bootstrap: str, topic: str, value: bytes, headers: Mapping[bytes, bytes]) -> None:
    """Sends one record and waits until it is acknowledged."""
    lib = _library()
    client = ctypes.c_void_p(lib.rd_kafka_new(0, _configuration(lib, bootstrap), None, 0))
    found = ctypes.c_void_p(lib.rd_kafka_headers_new(len(headers)))
    for name, content in headers.items():
        lib.rd_kafka_header_add(found, name, ctypes.c_ssize_t(len(name)), content, ctypes.c_ssize_t(len(content)))
    size = ctypes.c_size_t(len(value))
    refused = lib.rd_kafka_producev(
        client, _TOPIC, topic.encode(), _VALUE, value, size, _FLAGS, _COPY, _HEADERS, found, _END
    )
    assert refused == 0, refused
    assert lib.rd_kafka_flush(client, 20_000) == 0
    lib.rd_kafka_destroy(client)


def _configuration(lib: ctypes.CDLL, bootstrap: str) -> ctypes.c_void_p:
    made = ctypes.c_void_p(lib.rd_kafka_conf_new())
    why = ctypes.create_string_buffer(_ERROR_SIZE)
    assert lib.rd_kafka_conf_set(made, b"bootstrap.servers", bootstrap.encode(), why, _ERROR_SIZE) == 0, why.value
    return made


def _library() -> ctypes.CDLL:
    """The one that the Python client brings along, else the system's."""
    beside = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = next(map(str, beside.glob("librdkafka*")), None) or ctypes.util.find_library("rdkafka")
    assert found, "there is no librdkafka to send with"
    lib = ctypes.CDLL(found)
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib
