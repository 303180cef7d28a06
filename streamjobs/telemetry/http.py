"""A worker's small HTTP server: `/metrics`, `/healthz`, `/readyz`, and nothing else.

It answers from what the process knows already, so that neither a scrape nor a probe waits for a broker.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from streamjobs.errors import SettingsError

Scrape = Callable[[str], tuple[bytes, str]]
"""`Accept` header → body and content type; see `metrics.exposition`."""

Check = Callable[[], tuple[bool, Mapping[str, str]]]
"""→ whether all is well, and what is not (or is worth saying), by subject. No secrets: anyone who reaches the
port reads it."""

_JSON = "application/json; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"
logger = logging.getLogger(__name__)


class Endpoint:
    """Serves from `start` to `close`, in threads of its own. Port 0: a free one, which `address` then tells.

    `healthy`: False means that the process should be killed and started again; `ready`: False, that it does
    no work now.
    """

    def __init__(self, listen: str, scrape: Scrape, healthy: Check, ready: Check) -> None:
        self._listen = listen
        self._pages = {"/metrics": _scraped(scrape), "/healthz": _probe(healthy), "/readyz": _probe(ready)}
        self._server: _Server | None = None

    def start(self) -> None:
        """Raises SettingsError if `listen` is no host:port, or can't be bound."""
        host, port = parsed(self._listen)
        try:
            self._server = _Server((host, port), self._pages)
        except OSError as error:
            raise SettingsError(
                f"can't listen on {self._listen}: {error.strerror or error}. Perhaps another worker has"
                " the port: choose another one with --listen HOST:PORT (port 0: any free one)"
            ) from error
        # The interval is how long `close` may take.
        threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="streamjobs-http", daemon=True
        ).start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it is bound to. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError("the endpoint was not started")
        host, port = self._server.server_address[:2]
        return str(host), port

    @property
    def url(self) -> str:
        """`http://127.0.0.1:9464`."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Stops listening; what is being answered is cut off when the process ends."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


def parsed(listen: str) -> tuple[str, int]:
    """`127.0.0.1:9464`, `[::1]:9464` or `:9464` (all addresses) as host and port. Raises SettingsError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(
            f"listen is {listen!r}: it must be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:9464"
        )
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and bare == host:
        raise SettingsError(f"listen is {listen!r}: an IPv6 address stands in brackets, such as [::1]:9464")
    return bare, int(port)


Page = Callable[[str], tuple[HTTPStatus, bytes, str]]
"""`Accept` header → status, body, content type."""


def _scraped(scrape: Scrape) -> Page:
    return lambda accept: (HTTPStatus.OK, *scrape(accept))


def _probe(check: Check) -> Page:
    def page(_: str) -> tuple[HTTPStatus, bytes, str]:
        well, reasons = check()
        body = json.dumps({"ok": well, "reasons": dict(reasons)}, ensure_ascii=False) + "\n"
        return (
            HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE,
            body.encode("utf-8", "replace"),
            _JSON,
        )

    return page


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that reads slowly must not keep a worker from ending

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's full name: a name server that is away would delay
        every start."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, mostly; never a traceback on stderr."""
        logger.debug("request from %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "streamjobs"
    sys_version = ""
    timeout = 10  # seconds without a byte: the thread is freed

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            known = ", ".join(self.server.pages)
            self._answer(HTTPStatus.NOT_FOUND, f"here are only {known}\n".encode(), _TEXT)
            return
        try:
            answer = page(self.headers.get("Accept", ""))
        except Exception:  # whatever a check raises: a probe is answered
            logger.exception("%s failed", self.path.partition("?")[0])
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"this page failed: see the log\n", _TEXT)
            return
        self._answer(*answer)

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
