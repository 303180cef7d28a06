#!/usr/bin/env python3
"""Runs a local Apache Kafka from Maven's jars: one broker, or three on the loopback address.

::

    python deploy/kafka/local.py start --detach     # prints the bootstrap address
    python deploy/kafka/local.py status
    python deploy/kafka/local.py stop

Needs Java 17 and, the first time, Maven; nothing else (standard library only). It stops only what it started: a process is
ours when its command line names our properties file. Tests import `LocalKafka`, also to kill and restart single nodes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIBS = ROOT / ".kafka" / "libs"
DEFAULT_DIRECTORY = ROOT / ".kafka" / "local"

START_TIMEOUT = 90.0
STOP_TIMEOUT = 30.0
#: Somebody else may take a free port before Kafka binds it: then with other ones.
PORT_ATTEMPTS = 3


class LocalKafkaError(Exception):
    """Kafka could not be fetched, started or stopped; the message says what to do."""


@dataclass
class Node:
    """One Kafka process: `pid` 0 when it is not running."""

    id: int
    port: int
    controller_port: int
    pid: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class LocalKafka:
    """A cluster of one or three nodes in a directory; its data and ports outlive a restart of its nodes.

    Three nodes replicate threefold with `min.insync.replicas=2`, so that one may be killed and nothing is lost. `tied`: it is
    destroyed when this process ends, however it ends.
    """

    def __init__(self, directory: Path | str, brokers: int = 1, port: int = 0, heap: str = "1g", *, tied: bool = False) -> None:
        self.directory = Path(directory).resolve()
        self._heap = heap
        self._wished_port = port
        self.cluster_id = ""
        self.nodes: list[Node] = []
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._tied = tied
        self._guard: subprocess.Popen[bytes] | None = None
        self._load() or self._plan(brokers)

    @property
    def bootstrap(self) -> str:
        return ",".join(node.address for node in self.nodes)

    def start(self) -> str:
        """Starts what is not running and waits until all nodes answer; returns the bootstrap address."""
        ensure_jars()
        if self._tied and self._guard is None:
            self._guard = guard_of(self.directory)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                return self._start()
            except LocalKafkaError:
                self.stop(signal.SIGKILL)
                if attempt == PORT_ATTEMPTS or self._wished_port or not self._ports_taken():
                    raise
                self._plan(len(self.nodes))
        raise AssertionError("unreachable")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Ends all nodes; one that does not end in time is killed."""
        for node in self.nodes:
            self._signal(node, how)
        for node in self.nodes:
            self._await_end(node)
        self._save()

    def destroy(self) -> None:
        """Stops at once and deletes all data."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._guard is not None:
            self._guard.communicate()

    def kill(self, node_id: int, how: int = signal.SIGKILL) -> None:
        """Ends one node by a signal and waits until it is gone."""
        node = self.node(node_id)
        self._signal(node, how)
        self._await_end(node)
        self._save()

    def suspend(self, node_id: int) -> None:
        """Freezes a node (SIGSTOP): connections stay open and nothing answers."""
        self._signal(self.node(node_id), signal.SIGSTOP)

    def resume(self, node_id: int) -> None:
        self._signal(self.node(node_id), signal.SIGCONT)

    def restart(self, node_id: int) -> None:
        """Starts a node that was ended, on the same ports and data, and waits until it answers."""
        node = self.node(node_id)
        if not self.running(node):
            self._spawn(node)
        self._await_answer([node])

    def node(self, node_id: int) -> Node:
        return next(node for node in self.nodes if node.id == node_id)

    def running(self, node: Node) -> bool:
        child = self._children.get(node.id)
        if child is not None:
            return child.poll() is None
        return node.pid > 0 and str(self._properties(node)) in command_line(node.pid)

    def answering(self) -> bool:
        """Whether all nodes run, answer and are the ones that were started here."""
        return all(self.running(node) for node in self.nodes) and self._answer_together(self.nodes)

    # -- files ------------------------------------------------------------------------------------------------------

    def _load(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            state = json.loads((self.directory / "cluster.json").read_text())
            self.cluster_id = state["cluster_id"]
            self.nodes = [Node(**node) for node in state["nodes"]]
            return True
        return False

    def _save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {"cluster_id": self.cluster_id, "nodes": [asdict(node) for node in self.nodes]}
        temporary = self.directory / "cluster.json.new"
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self.directory / "cluster.json")

    def _plan(self, brokers: int) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.cluster_id = new_cluster_id()
        ports = free_ports(2 * brokers)
        self.nodes = [Node(i + 1, ports[2 * i], ports[2 * i + 1]) for i in range(brokers)]
        if self._wished_port:
            self.nodes[0].port = self._wished_port

    def _home(self, node: Node) -> Path:
        return self.directory / f"node-{node.id}"

    def _properties(self, node: Node) -> Path:
        return self._home(node) / "server.properties"

    def _write_properties(self, node: Node) -> None:
        voters = ",".join(f"{other.id}@127.0.0.1:{other.controller_port}" for other in self.nodes)
        listeners = f"PLAINTEXT://{node.address},CONTROLLER://127.0.0.1:{node.controller_port}"
        replication, in_sync = min(3, len(self.nodes)), 2 if len(self.nodes) >= 3 else 1
        own = {
            "node.id": node.id,
            "listeners": listeners,
            "advertised.listeners": f"PLAINTEXT://{node.address}",
            "controller.quorum.voters": voters,
            "log.dirs": self._home(node) / "data",
            "default.replication.factor": replication,
            "min.insync.replicas": in_sync,
        }
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            own[f"{topic}.replication.factor"] = replication
            if topic != "offsets.topic":
                own[f"{topic}.min.isr"] = in_sync
        self._home(node).mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}" for key, value in own.items()]
        self._properties(node).write_text((HERE / "server.properties").read_text() + "\n" + "\n".join(lines) + "\n")

    # -- processes --------------------------------------------------------------------------------------------------

    def _start(self) -> str:
        self._format([node for node in self.nodes if not (self._home(node) / "data" / "meta.properties").exists()])
        for node in self.nodes:
            if not self.running(node):
                self._spawn(node)
        self._await_answer(self.nodes)
        return self.bootstrap

    def _format(self, nodes: Sequence[Node]) -> None:
        tools = []
        for node in nodes:
            self._write_properties(node)
            command = java("kafka.tools.StorageTool", "128m", "format", "-t", self.cluster_id, "-c")
            tools.append(
                subprocess.Popen([*command, str(self._properties(node))], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        for tool in tools:
            output, _ = tool.communicate(timeout=START_TIMEOUT)
            if tool.returncode:
                raise LocalKafkaError(f"Kafka's storage could not be formatted:\n{output.decode(errors='replace')}")

    def _spawn(self, node: Node) -> None:
        command = java("kafka.Kafka", self._heap, str(self._properties(node)))
        with (self._home(node) / "broker.log").open("ab") as log:
            # A session of its own: Ctrl-C at a terminal ends the tests first, which then stop their broker in order.
            child = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._home(node),
                start_new_session=True,
            )
        self._children[node.id] = child
        node.pid = child.pid
        self._save()

    def _signal(self, node: Node, how: int) -> None:
        if self.running(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, how)

    def _await_end(self, node: Node) -> None:
        if not wait_for(lambda: not self.running(node), STOP_TIMEOUT):
            self._signal(node, signal.SIGKILL)
            wait_for(lambda: not self.running(node), STOP_TIMEOUT)
        self._children.pop(node.id, None)
        node.pid = 0

    def _await_answer(self, nodes: Sequence[Node]) -> None:
        def settled() -> bool:
            return self._answer_together(nodes) or not all(self.running(node) for node in nodes)

        wait_for(settled, START_TIMEOUT)
        if not self._answer_together(nodes):
            raise LocalKafkaError(f"Kafka did not start; its log ends:\n{self._log_tails(nodes)}")

    def _answer_together(self, nodes: Sequence[Node]) -> bool:
        """Each says our cluster id (so it is not somebody else's broker on that port) and knows of all of `nodes`."""
        expected = {node.port for node in nodes}
        answers = [ask_cluster(node.port) for node in nodes]
        return all(cluster == self.cluster_id and ports >= expected for cluster, ports in answers)

    def _log_tails(self, nodes: Sequence[Node]) -> str:
        logs = [self._home(node) / "broker.log" for node in nodes]
        return "\n".join("\n".join(log.read_text(errors="replace").splitlines()[-15:]) for log in logs if log.exists())

    def _ports_taken(self) -> bool:
        return any("already in use" in log.read_text(errors="replace") for log in self.directory.glob("node-*/broker.log"))


# -- the world ----------------------------------------------------------------------------------------------------------


def guard_of(directory: Path) -> subprocess.Popen[bytes]:
    """A process that reads from us until we end, and then destroys what runs in the directory."""
    command = [sys.executable, str(HERE / "local.py"), "guard", "--dir", str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


def ensure_jars() -> None:
    """Fetches Kafka's jars with Maven unless those of this pom.xml are there. One process does, others that start meanwhile wait."""
    LIBS.parent.mkdir(parents=True, exist_ok=True)
    with (LIBS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _fetch_jars()


def _fetch_jars() -> None:
    digest = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()
    stamp = LIBS / "pom.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return
    if shutil.which("mvn") is None:
        raise LocalKafkaError("Kafka's jars are missing and there is no Maven (mvn) to fetch them: install it, or use Docker")
    print("fetching Apache Kafka with Maven (about 45 MB, once)", file=sys.stderr)
    fetched = LIBS.with_name("libs.fetched")
    shutil.rmtree(fetched, ignore_errors=True)
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    if subprocess.run([*command, f"-DoutputDirectory={fetched}"], stdout=2, check=False).returncode:
        raise LocalKafkaError(f"Maven could not fetch Kafka; see why with:\n  {' '.join(command)}")
    (fetched / "pom.sha256").write_text(digest)
    shutil.rmtree(LIBS, ignore_errors=True)
    fetched.replace(LIBS)


def java(main: str, heap: str, *arguments: str) -> list[str]:
    executable = shutil.which("java")
    if executable is None:
        raise LocalKafkaError("there is no Java (java) to run Kafka: install Java 17 or later, or use Docker")
    logging = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
    return [executable, f"-Xmx{heap}", "-XX:+UseSerialGC", logging, "-cp", f"{LIBS}/*", main, *arguments]


def new_cluster_id() -> str:
    """A random id as Kafka has them: one that began with a dash would be taken for an option, once in 64 starts."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def command_line(pid: int) -> str:
    """The command line of a process; "" when it is gone or a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if Path("/proc/self").exists():
        return ""
    listed = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def ask_cluster(port: int) -> tuple[str, set[int]]:
    """(cluster id, ports of its brokers) by a Metadata request, version 2, for no topics; ("", {}) if nobody answers."""
    request = struct.pack(">hhih", 3, 2, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", _receive(connection, 4))
            return _read_metadata(_receive(connection, length))
    except (OSError, struct.error):
        return "", set()


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        chunk = connection.recv(length - len(received))
        if not chunk:
            raise OSError("connection closed")
        received += chunk
    return received


def _read_metadata(answer: bytes) -> tuple[str, set[int]]:
    (brokers,) = struct.unpack_from(">i", answer, 4)
    at, ports = 8, set()
    for _ in range(brokers):
        _host, at = _read_text(answer, at + 4)
        (port,) = struct.unpack_from(">i", answer, at)
        ports.add(port)
        _rack, at = _read_text(answer, at + 4)
    cluster, _ = _read_text(answer, at)
    return cluster, ports


def _read_text(answer: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", answer, at)
    end = at + 2 + max(0, length)
    return answer[at + 2 : end].decode(), end


# -- command line -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A local Apache Kafka from Maven's jars.")
    parser.add_argument("verb", choices=["start", "stop", "status", "destroy", "guard"])
    parser.add_argument("--dir", default=str(DEFAULT_DIRECTORY), help="data, logs and cluster.json (default: .kafka/local)")
    parser.add_argument("--port", type=int, default=0, help="port of the first broker (default: a free one)")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    parser.add_argument("--detach", action="store_true", help="return when it answers, instead of running until Ctrl-C")
    options = parser.parse_args(arguments)
    if options.verb == "guard":
        return _guard(Path(options.dir))
    cluster = LocalKafka(options.dir, options.brokers, options.port)
    try:
        return {"start": _start, "stop": _stop, "status": _status, "destroy": _destroy}[options.verb](cluster, options.detach)
    except LocalKafkaError as error:
        print(error, file=sys.stderr)
        return 1


def _start(cluster: LocalKafka, detach: bool) -> int:
    print(cluster.start(), flush=True)
    if detach:
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        while any(cluster.running(node) for node in cluster.nodes):
            time.sleep(0.5)
    finally:
        cluster.stop()
    return 0


def _stop(cluster: LocalKafka, _detach: bool) -> int:
    cluster.stop()
    return 0


def _destroy(cluster: LocalKafka, _detach: bool) -> int:
    cluster.destroy()
    return 0


def _guard(directory: Path) -> int:
    """For `LocalKafka(tied=True)`: standard input ends when the process that made the cluster does."""
    sys.stdin.read()
    if (directory / "cluster.json").exists():
        LocalKafka(directory).destroy()
    return 0


def _status(cluster: LocalKafka, _detach: bool) -> int:
    for node in cluster.nodes:
        state = "running" if cluster.running(node) else "stopped"
        print(f"node {node.id}  {node.address}  {state}  pid {node.pid or '-'}")
    return 0 if cluster.answering() else 1


if __name__ == "__main__":
    sys.exit(main())
