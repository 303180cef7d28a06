"""A schema registry that answers, lags, fails and hangs: a small server stands in for it."""

from __future__ import annotations

import json
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamjobs import App
from streamjobs.avro.codec import Payload
from streamjobs.avro.registry import ConfluentRegistry
from streamjobs.avro.store import SchemaStore
from streamjobs.core.record import Record
from streamjobs.errors import DecodeError, SettingsError, UnknownSchemaError
from streamjobs.testing.app import Testing
from tests.unit.avro.test_codec import handler

PAYLOAD = Payload(handler(a=int), "job")
ANSWERS: dict[int, tuple[int, Any]] = {
    1: (200, {"schema": PAYLOAD.canonical}),
    2: (200, {"schema": PAYLOAD.canonical, "schemaType": "AVRO"}),
    3: (200, {"schema": "syntax = 'proto3';", "schemaType": "PROTOBUF"}),
    4: (200, {"schema": PAYLOAD.canonical, "references": [{"name": "x", "subject": "x", "version": 1}]}),
    5: (200, {"schema": "{"}),
    404: (404, {"error_code": 40403, "message": "Schema not found"}),
    500: (500, {"error_code": 50001, "message": "Error in the backend"}),
    401: (401, {"error_code": 40101, "message": "Unauthorized"}),
    503: (503, None),
}


class Stub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.users: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://user:hunter2@127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.users.append(self.headers.get("Authorization", ""))
        number = int(self.path.partition("?")[0].rpartition("/")[2])
        if number == 9:
            self.server.released.wait(30)
            return
        status, body = ANSWERS[number]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"no json" if body is None else json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    pytest.importorskip("confluent_kafka.schema_registry", exc_type=ImportError, reason="the extra `registry` is not installed")
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("id", [1, 2])
def test_a_value_with_a_registrys_id_is_read(stub: Stub, id: int) -> None:
    store = SchemaStore(ConfluentRegistry(stub.url))
    value = b"\0" + id.to_bytes(4, "big") + b"\x0a"

    assert PAYLOAD.decode(value, store) == (5,)
    assert PAYLOAD.decode(value, store) == (5,)
    assert len(stub.asked) == 1


@pytest.mark.parametrize(("id", "said"), [(3, "PROTOBUF, not Avro"), (4, "refers to other schemas"), (5, "can't be used")])
def test_a_schema_that_can_not_be_used_is_a_decode_error(stub: Stub, id: int, said: str) -> None:
    with pytest.raises(DecodeError, match=said) as raised:
        SchemaStore(ConfluentRegistry(stub.url)).by_id(id)

    assert not isinstance(raised.value, UnknownSchemaError)


@pytest.mark.parametrize(("id", "transient"), [(404, False), (500, True), (503, True), (401, True), (9, True)])
def test_not_knowing_is_told_from_not_answering(stub: Stub, id: int, transient: bool) -> None:  # edge 62
    store = SchemaStore(ConfluentRegistry(stub.url, timeout=0.2))

    with pytest.raises(UnknownSchemaError) as raised:
        store.by_id(id)

    assert raised.value.transient is transient
    assert len(stub.asked) == 1
    assert raised.value.fingerprint == id.to_bytes(4, "big")
    assert "hunter2" not in str(raised.value)


def test_a_registry_that_knows_later_is_asked_again(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:  # edge 62
    store = SchemaStore(ConfluentRegistry(stub.url))
    with pytest.raises(UnknownSchemaError):
        store.by_id(404)

    monkeypatch.setitem(ANSWERS, 404, ANSWERS[1])

    assert store.by_id(404).canonical == PAYLOAD.avro.canonical


def test_a_registry_that_is_not_there_is_transient(stub: Stub) -> None:
    stub.shutdown()
    stub.server_close()

    with pytest.raises(UnknownSchemaError) as raised:
        SchemaStore(ConfluentRegistry(stub.url, timeout=1.0)).by_id(1)

    assert raised.value.transient


def test_a_wrong_configuration_is_a_settings_error(stub: Stub) -> None:
    with pytest.raises(SettingsError, match="can't be used"):
        ConfluentRegistry(stub.url, {"no.such.key": 1})


def test_a_missing_client_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)

    with pytest.raises(SettingsError, match=r"streamjobs\[registry\]"):
        ConfluentRegistry("http://localhost:1")


def test_a_worker_reads_jobs_by_the_registry_that_is_set(stub: Stub, streamjobs_testing: Callable[[App], Testing]) -> None:
    """A producer of another language writes values as its registry's serializer does."""
    registry = {"schemas.registry": f"http://127.0.0.1:{stub.server_port}", "registry": {"basic.auth.user.info": "me:hush"}}
    app = App("shop", partitions=1, **registry)
    ran: list[int] = []

    @app.job(name="job")
    def job(a: int) -> None:
        ran.append(a)

    t = streamjobs_testing(app)
    t.produce(Record(app.names.main("default"), b"\0\0\0\0\x01\x0a", headers=[("ce_type", b"job")]))
    t.run()

    assert ran == [5]
    assert stub.users == ["Basic " + b64encode(b"me:hush").decode()]


def test_a_worker_whose_registry_has_no_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    app = App("shop", **{"schemas.registry": "http://localhost:1"})

    @app.job
    def job(a: int) -> None: ...

    with pytest.raises(SettingsError, match=r"streamjobs\[registry\]"), app.testing():
        pass
