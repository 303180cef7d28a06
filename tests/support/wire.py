"""A wire between clients and a broker that loses what it is told to lose."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

#: ConsumerGroupHeartbeat, of KIP-848.
HEARTBEAT = 68


class Wire:
    """Listens at `port`, which the broker must advertise, and passes on to a broker that listens at `to`.

    `loses`: asked for each answer to a heartbeat, without its length; what it says is lost never arrives. `lost`: how many were.
    """

    def __init__(self, port: int, to: int) -> None:
        self.loses: Callable[[bytes], bool] = lambda _: False
        self.lost = 0
        self._to = to
        self._server = socket.create_server(("127.0.0.1", port))
        self._ends: list[socket.socket] = [self._server]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            _cut(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                broker = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._ends += [client, broker]
            heartbeats: set[int] = set()
            threading.Thread(target=self._pass_on, args=(client, broker, lambda f, of=heartbeats: _note(f, of)), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(broker, client, lambda f, of=heartbeats: self._arrives(f, of)), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, arrives: Callable[[bytes], bool]) -> None:
        try:
            while True:
                length = _read(source, 4)
                frame = _read(source, *struct.unpack(">i", length))
                if arrives(frame):
                    target.sendall(length + frame)
        except OSError:
            _cut(source)
            _cut(target)

    def _arrives(self, answer: bytes, heartbeats: set[int]) -> bool:
        (number,) = struct.unpack(">i", answer[:4])
        if number not in heartbeats or not self.loses(answer):
            return True
        self.lost += 1
        return False


def second_listener(node: Any, address: str, advertised: str = "") -> str:
    """Lines for a local node's properties, where later ones replace earlier ones: it also listens at `address`, and tells clients that
    come there that it is `advertised`, which is the same unless something stands in between."""
    own = f"127.0.0.1:{node.port}"
    return (
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,OUTSIDE:PLAINTEXT\n"
        f"listeners=PLAINTEXT://{own},CONTROLLER://127.0.0.1:{node.controller_port},OUTSIDE://{address}\n"
        f"advertised.listeners=PLAINTEXT://{own},OUTSIDE://{advertised or address}\n"
    )


def gives_partitions(answer: bytes) -> bool:
    """Whether an answer to a heartbeat says that its member should hold any partition; most say only that all is well."""
    after_error = 4 + 1 + 4 + 2 + 1  # number, tags, throttling, error, no message
    after_member = after_error + max(1, answer[after_error])
    told, topics = answer[after_member + 8 : after_member + 10]  # after epoch and interval
    return bool(told == 1 and topics > 1)


def _note(request: bytes, heartbeats: set[int]) -> bool:
    kind, _, number = struct.unpack(">hhi", request[:8])
    if kind == HEARTBEAT:
        heartbeats.add(number)
    return True


def _read(source: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = source.recv(length - len(parts))
        if not part:
            raise ConnectionError
        parts += part
    return bytes(parts)


def _cut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()
