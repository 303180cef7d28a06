from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse

import pytest

from streamjobs.errors import SettingsError
from streamjobs.telemetry.http import Endpoint, parsed

Health = dict[str, str]


def check(reasons: Health) -> Callable[[], tuple[bool, Mapping[str, str]]]:
    return lambda: (not reasons, reasons)


@pytest.fixture
def reasons() -> Health:
    return {}


@pytest.fixture
def endpoint(reasons: Health) -> Iterator[Endpoint]:
    served = Endpoint(
        "127.0.0.1:0",
        lambda accept: (f"scraped for {accept}\n".encode(), "text/plain"),
        healthy=check({}),
        ready=check(reasons),
    )
    served.start()
    yield served
    served.close()


def get(endpoint: Endpoint, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(*endpoint.address, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_port_0_is_a_free_one_that_it_tells(endpoint: Endpoint) -> None:
    host, port = endpoint.address

    assert host == "127.0.0.1" and port > 0
    assert endpoint.url == f"http://127.0.0.1:{port}"


def test_a_scrape_is_answered_as_it_was_asked(endpoint: Endpoint) -> None:
    response, body = get(endpoint, "/metrics?name=x", Accept="application/openmetrics-text")

    assert (response.status, body) == (200, b"scraped for application/openmetrics-text\n")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_probe_says_why_not(endpoint: Endpoint, reasons: Health) -> None:
    assert get(endpoint, "/readyz")[0].status == 200
    reasons["main"] = "has not joined its group yet"
    response, body = get(endpoint, "/readyz")

    assert response.status == 503
    assert json.loads(body) == {"ok": False, "reasons": {"main": "has not joined its group yet"}}
    assert get(endpoint, "/healthz")[0].status == 200


def test_head_has_no_body(endpoint: Endpoint) -> None:
    response, body = get(endpoint, "/healthz", "HEAD")

    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/../etc", "GET", 404), ("/metrics", "POST", 501)]
)
def test_there_is_nothing_else(endpoint: Endpoint, path: str, method: str, status: int) -> None:
    assert get(endpoint, path, method)[0].status == status


def test_a_check_that_fails_is_an_answer_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> tuple[bool, Mapping[str, str]]:
        raise RuntimeError("password=hunter2")

    served = Endpoint("127.0.0.1:0", lambda _: (b"", ""), healthy=broken, ready=broken)
    served.start()
    response, body = get(served, "/healthz")
    served.close()

    assert response.status == 500 and b"hunter2" not in body
    assert "/healthz failed" in caplog.text


def test_a_taken_port_is_said_with_what_to_do(endpoint: Endpoint) -> None:
    host, port = endpoint.address
    second = Endpoint(f"{host}:{port}", lambda _: (b"", ""), check({}), check({}))

    with pytest.raises(
        SettingsError, match=rf"can't listen on {host}:{port}: Address already in use.*--listen"
    ):
        second.start()


def test_a_closed_endpoint_frees_its_port(endpoint: Endpoint) -> None:
    address = endpoint.address
    endpoint.close()
    endpoint.close()

    with socket.create_server(address):
        pass
    with pytest.raises(RuntimeError, match="not started"):
        _ = endpoint.address


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:80", ("::1", 80)),
        (":0", ("", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address_is_host_and_port(listen: str, address: tuple[str, int]) -> None:
    assert parsed(listen) == address


@pytest.mark.parametrize(
    "listen",
    ["", "9464", "localhost", "localhost:", "localhost:http", "localhost:65536", "::1:80", "a:-1", "a:²"],
)
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(SettingsError, match="listen is"):
        parsed(listen)


def test_ipv6_is_served() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    served = Endpoint("[::1]:0", lambda _: (b"", ""), check({}), check({}))
    try:
        served.start()
    except SettingsError:
        pytest.skip("no IPv6 loopback here")
    assert get(served, "/healthz")[0].status == 200
    assert served.url.startswith("http://[::1]:")
    served.close()
