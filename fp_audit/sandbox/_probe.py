"""Measures what the sandbox can do on this machine, by trying to break out of it."""

from __future__ import annotations

import ctypes
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp_audit.sandbox._session import Limits, Sandbox

_MEMORY = 256 << 20
_LANDLOCK_WITH_TCP = 4


@dataclass(frozen=True)
class Confinement:
    """What holds on this machine, for ``fp-audit doctor``."""

    network: tuple[str, ...]
    """What keeps a child from the network, strongest first: ``namespace``, ``seccomp``, ``landlock`` (TCP
    only), or ``refusal`` (inside the interpreter, which machine code gets around). Empty: it got through."""
    filesystem: str
    """``landlock``, or ``none``: a child could read and write what the user can."""
    memory: str
    """``rlimit``, or ``none``."""
    processes: str
    """``seccomp``: a child starts no process; ``cleanup``: what it starts is killed at its end."""
    signals: bool
    """Whether a child is kept from sending signals to us."""
    scratch: str
    """``tmpfs`` of bounded size, or ``folder``."""
    user_namespace: bool
    """Whether the namespaces came through a user namespace (always, unless run by root)."""

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What does not hold, a sentence each; empty on a machine that offers everything."""
        found = {
            "a suspect can reach the network": not self.network,
            "a suspect that runs machine code can reach the network": self.network in {("refusal",), ("landlock",)},
            "a suspect can read and write the user's files": self.filesystem == "none",
            "a suspect can use all memory": self.memory == "none",
            "a suspect can start processes; they are killed when it ends": self.processes != "seccomp",
            "a suspect can send signals to the user's processes": not self.signals,
            "a suspect can fill the disk of the temporary folder": self.scratch == "folder",
        }
        return tuple(sentence for sentence, holds in found.items() if holds)


def confinement() -> Confinement:
    """Try to break out of a real child and report what stopped it. Takes about half a second.

    Raises:
        SandboxError: no child could be started at all.
    """
    from fp_audit.sandbox._confine import landlock_version  # a module that only POSIX systems can import

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.NamedTemporaryFile() as secret,
        Sandbox(Limits(memory=_MEMORY)) as sandbox,
        sandbox.child("fp_audit.sandbox._probe:attempts", ()) as child,
    ):
        port = listener.getsockname()[1]
        seen = child.call({"port": port, "secret": secret.name, "process": os.getpid()})
    layers = {
        "namespace": seen["network namespace"] != _namespace("net"),
        "seccomp": seen["seccomp"],
        "landlock": landlock_version() >= _LANDLOCK_WITH_TCP,
    }
    holding = tuple(layer for layer, holds in layers.items() if holds) or ("refusal",)
    return Confinement(
        network=() if seen["connected"] else holding,
        filesystem="none" if seen["read"] else "landlock",
        memory="none" if seen["allocated"] else "rlimit",
        processes="cleanup" if seen["forked"] else "seccomp",
        signals=not seen["signalled"],
        scratch="tmpfs" if seen["mounted"] else "folder",
        user_namespace=seen["user namespace"] != _namespace("user"),
    )


def attempts() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """In the child: make the handler that tries."""
    return _attempt


def _attempt(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "network namespace": _namespace("net"),
        "user namespace": _namespace("user"),
        "seccomp": _filtered(),
        "mounted": os.path.ismount("."),
        "connected": _works(lambda: socket.create_connection(("127.0.0.1", request["port"]), timeout=2).close()),
        "read": _works(lambda: Path(request["secret"]).read_bytes()),
        "allocated": _works(lambda: bytearray(2 * _MEMORY)),
        "signalled": _works(lambda: os.kill(request["process"], 0)),
        "forked": _works(_fork),
    }


def _works(attempt: Callable[[], object]) -> bool:
    with suppress(OSError, MemoryError):
        attempt()
        return True
    return False


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _namespace(kind: str) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/ns/{kind}")
    return "the only one"


def _filtered() -> bool:
    """Whether machine code is refused a socket, which a network namespace alone would give it."""
    refused: bool = ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0) < 0
    return refused
