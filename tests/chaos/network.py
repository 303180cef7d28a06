"""A network of its own for some workers, so that it can be cut: a namespace and a pair of virtual interfaces (Linux, root)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


class NoNamespace(Exception):
    """No namespace can be made here; the message says why."""


class Network:
    """A namespace whose only way out leads to this host. Raises NoNamespace when it is made."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.name = f"streamjobs-{os.getpid()}"
        self.host = f"10.213.{number}.1"
        self._near, self._far = f"sj{os.getpid()}a", f"sj{os.getpid()}b"
        if shutil.which("ip") is None:
            raise NoNamespace("there is no `ip` command here")
        try:
            self._make(f"10.213.{number}.2")
        except NoNamespace:
            self.close()
            raise

    def _make(self, guest: str) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far)
        _ip("link", "set", self._far, "netns", self.name)
        _ip("addr", "add", f"{self.host}/24", "dev", self._near)
        _ip("link", "set", self._near, "up")
        for arguments in (("addr", "add", f"{guest}/24", "dev", self._far), ("link", "set", self._far, "up"), ("link", "set", "lo", "up")):
            _ip("-n", self.name, *arguments)

    @property
    def inside(self) -> Sequence[str]:
        """Before a command: run it in there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Packets vanish from now on; nobody is told, as when a cable is pulled at the far end."""
        _ip("link", "set", self._near, "down")

    def mend(self) -> None:
        _ip("link", "set", self._near, "up")

    def close(self) -> None:
        for arguments in (("link", "del", self._near), ("netns", "del", self.name)):
            subprocess.run(["ip", *arguments], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespace(f"`ip {' '.join(arguments)}` says: {done.stderr.strip()}")
