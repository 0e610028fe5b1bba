"""What the parent uses: limits, the sandbox, and a child to call."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from fp_audit import errors
from fp_audit.errors import (
    FpAuditError,
    SandboxCrash,
    SandboxError,
    SandboxMemory,
    SandboxTimeout,
    UnavailableTarget,
    UsageError,
)
from fp_audit.sandbox._server import Server
from fp_audit.sandbox._wire import MalformedMessageError, printable, receive, send

_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one child may use."""

    memory: int = 8192 * _MIB
    """Bytes of private memory, beyond what the preloaded libraries hold."""
    cpu_seconds: int = 1800
    """CPU time of all its threads together, over its whole life."""
    wall_seconds: float = 600.0
    """From a request to its answer."""
    open_files: int = 512
    file_bytes: int = 64 * _MIB
    """Largest file it may write; all of them together where its scratch is a file system of its own."""
    answer_bytes: int = 32 * _MIB
    """Longest answer. Parsed, JSON can take about twenty times as much memory in the parent."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise ValueError(f"{limit.name} is {getattr(self, limit.name)}: must be above 0")


class Sandbox:
    """Opens suspects in confined children; see the module's text for what that means.

    ``path`` is appended to ``sys.path`` in the children: folders of trusted code that an interpreter
    started afresh would not find. At most ``children`` live at a time (None: any number); who asks for one more
    waits. ``prepare`` is called in every server before it forks, ``"package.module:function"`` with these texts: what
    it leaves in memory all children share. Methods may be called from several threads.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        path: Sequence[Path] = (),
        children: int | None = None,
        prepare: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        if os.name != "posix":
            raise UsageError("models can only be opened on Linux or macOS: this system cannot confine a process")
        self.limits = limits or Limits()
        self._path = [str(folder.resolve()) for folder in path]
        self._prepare = prepare
        self._servers: dict[tuple[str, ...], Server] = {}
        self._lock = threading.Lock()
        self._places = threading.Semaphore(children) if children else nullcontext()
        self._closed = False

    def warm(self, preload: Sequence[str]) -> None:
        """Start importing ``preload`` now, without waiting for it."""
        self._server(tuple(preload))

    def child(self, task: str, preload: Sequence[str], *, readable: Sequence[Path] = (), gpu: bool = False) -> Child:
        """Fork a child that handles requests with what ``task``, ``"package.module:factory"``, returns.

        ``readable`` are the files and folders of this suspect. A link in them is followed only to a target
        that is readable itself. What ``preload`` does not name, the task's own module included, is imported
        anew by every child. ``gpu`` opens the GPU's devices, and the few system calls that its driver needs,
        on a machine that has them.

        Raises:
            UnavailableTarget: a readable path does not exist.
            SandboxCrash: ``preload`` cannot be imported, or the server died.
        """
        job = {
            "task": task,
            "readable": [_existing(path) for path in readable],
            "gpu": gpu,
            "limits": {name: getattr(self.limits, name) for name in _POLICY_LIMITS},
        }
        with ExitStack() as held:
            held.enter_context(self._places)
            server = self._server(tuple(preload))
            connection, theirs = socket.socketpair()
            held.callback(connection.close)
            with theirs:
                pid = server.fork(job, theirs)
            return Child(server, pid, connection, self.limits, held.pop_all())

    def close(self) -> None:
        """End every child and every server."""
        with self._lock:
            self._closed = True
            servers = list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _server(self, preload: tuple[str, ...]) -> Server:
        with self._lock:
            if self._closed:
                raise SandboxCrash("the sandbox was closed")
            server = self._servers.get(preload)
            if server is None or server.lost:
                server = self._servers[preload] = Server(preload, self._path, self._prepare)
            return server


class Child:
    """One confined process and its state; it serves one request at a time.

    After an error of the sandbox (crash, timeout, memory) the process has been killed and every further
    call fails. After any other error of ``fp_audit.errors``, which the handler raised on purpose, it goes on.
    A suspect that takes over its process answers for every later suspect in it: where that matters more
    than start-up cost, use one child per suspect.
    """

    def __init__(self, server: Server, pid: int, connection: socket.socket, limits: Limits, held: ExitStack) -> None:
        self._server = server
        self._pid = pid
        self._connection = connection
        self._limits = limits
        self._held = held
        self._ended: str | None = None

    def call(self, request: Mapping[str, Any], *, wall_seconds: float | None = None) -> dict[str, Any]:
        """Send a request (JSON values) and return the answer (JSON values, sent by the suspect: check them).

        Raises:
            SandboxError: it died, hung, broke a limit or the protocol, or raised an unforeseen error.
            FpAuditError: the handler raised this class.
        """
        if self._ended is not None:
            raise SandboxCrash(f"the child has ended: {self._ended}")
        wall = self._limits.wall_seconds if wall_seconds is None else wall_seconds
        try:
            return self._answer(self._exchange(request, time.monotonic() + wall))
        except TimeoutError:
            self._end("it did not answer in time")
            raise SandboxTimeout(f"gave no answer within {wall:g} s (wall time)") from None
        except (EOFError, ConnectionError):
            raise self._death() from None
        except MalformedMessageError as error:
            self._end("it sent garbage")
            raise SandboxCrash(f"sent {error}") from None
        except FpAuditError:
            raise
        except BaseException:
            self._end("a call was interrupted")
            raise

    def close(self) -> None:
        """Kill the process and everything it started."""
        self._end("it was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it may have ended with an answer: its reason lies in our buffer
            send(self._connection, request, deadline)
        return receive(self._connection, self._limits.answer_bytes, deadline)

    def _answer(self, reply: dict[str, Any]) -> dict[str, Any]:
        match reply:
            case {"ok": dict(answer)}:
                return answer
            case {"error": str(name), "text": str(text)} if name in _RAISABLE:
                raise _RAISABLE[name](printable(text, 1000))
            case {"crash": str(text), "memory": bool(memory)}:
                self._end(printable(text))
                raise _crash(printable(text, 1000), memory)
        raise MalformedMessageError("an answer that is neither a result nor an error")

    def _death(self) -> SandboxError:
        ending = self._end("it died")
        if ending is None:
            return SandboxCrash("the server of the sandbox died, and the child with it")
        return _cause_of_death(ending, self._limits)

    def _end(self, reason: str) -> dict[str, Any] | None:
        if self._ended is not None:
            return None
        self._ended = reason
        with self._held:  # closes the connection and gives up the place, when the process is gone
            self._connection.close()
            return self._server.end(self._pid)


def _existing(path: Path) -> str:
    try:
        return str(path.resolve(strict=True))
    except (OSError, RuntimeError):
        raise UnavailableTarget(f"{path} does not exist") from None


_POLICY_LIMITS = ("memory", "cpu_seconds", "open_files", "file_bytes")
_RAISABLE: dict[str, type[FpAuditError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FpAuditError) and not issubclass(kind, SandboxError)
}
"""Errors that a handler may raise in the parent. Those of the sandbox are the parent's own to raise."""

_OUT_OF_MEMORY = re.compile("bad_alloc|(can't|cannot|failed to) allocate memory|out of memory", re.IGNORECASE)
"""How torch, onnxruntime, CUDA and C++ say it, which raise no ``MemoryError``."""


def _crash(text: str, memory: bool) -> SandboxError:
    if memory or _OUT_OF_MEMORY.search(text):
        return SandboxMemory(f"needed more memory than its limit: {text}")
    return SandboxCrash(text)


def _cause_of_death(ending: Mapping[str, Any], limits: Limits) -> SandboxError:
    code: int = ending["code"]
    if code == -signal.SIGXCPU or ending["cpu"] >= limits.cpu_seconds:
        return SandboxTimeout(f"used more than {limits.cpu_seconds} s of CPU time")
    if code == -signal.SIGKILL:
        return SandboxMemory("was killed (out of memory?)")
    how = f"ended by itself with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    last = printable(ending["said"].strip().rpartition("\n")[2])
    return _crash(f"{how}: {last}" if last else how, memory=False)
