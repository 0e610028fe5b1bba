"""The warm server: imports the heavy libraries once, then forks a confined child for every suspect.

It runs as ``python -P -c`` with a clean environment, talks to the parent over one socket (one command at
a time: fork a child, end a child) and is the only process that signals or reaps children, so that a
process id is never used after it may have been given to somebody else. It never sees a model.

It ends, and its children with it, when the parent closes the socket or dies.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fp_audit.errors import FpAuditError
from fp_audit.sandbox import _confine
from fp_audit.sandbox._confine import Policy
from fp_audit.sandbox._scratch import erase
from fp_audit.sandbox._wire import END, FORK, printable, receive, send

_TAIL = 4096
_UNWOUND = 70
"""Exit status of a child that ended by anything but its last answer: ``SystemExit``, for example."""

_Handle = Callable[[dict[str, Any]], dict[str, Any]]


def serve(descriptor: int) -> None:
    """Be the server. ``descriptor`` is the socket to the parent, whose first message says what to import."""
    control = socket.socket(fileno=descriptor)
    hello = receive(control)
    server = _Server(control, Path(hello["home"]))
    server.watch(hello["parent"])
    _confine.isolate()
    _confine.adopt_orphans()
    sys.path += hello["path"]
    for module in hello["preload"]:
        importlib.import_module(module)
    if hello["prepare"]:
        task, texts = hello["prepare"]
        _named(task)(texts)
    gc.collect()
    gc.freeze()  # a child's collector then never touches, and so never copies, the libraries' pages
    send(control, {"ready": True})
    try:
        server.run(_importable(Path(hello["user_home"])))
    finally:
        server.close()
    os._exit(0)  # an orderly end of the interpreter would spend a third of a second on torch


def _importable(user_home: Path) -> tuple[str, ...]:
    """Return the folders that a child may need for an import; never one that holds the user's whole home."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    found = dict.fromkeys([sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *sys.path, *libraries])
    return tuple(path for path in found if path and not user_home.is_relative_to(Path(path).resolve()))


@dataclass(frozen=True)
class _Running:
    scratch: Path
    output: int
    """Descriptor of an unlinked file that holds what the child wrote to stderr."""


class _Server:
    def __init__(self, control: socket.socket, home: Path) -> None:
        self._control = control
        self._home = home
        self._children: dict[int, _Running] = {}
        self._count = 0

    def watch(self, parent: int) -> None:
        """Look every second whether the parent lives: during a long import, nobody reads the socket."""

        def look(*_: object) -> None:
            if os.getppid() != parent:
                with suppress(OSError):
                    self.close()
                os._exit(0)

        signal.signal(signal.SIGALRM, look)
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def run(self, importable: tuple[str, ...]) -> None:
        """Answer commands until the parent closes the socket."""
        while True:
            command, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
            if command == FORK:
                pid = self._fork(receive(self._control), descriptors[0], importable)
                send(self._control, {"pid": pid})
            elif command == END:
                send(self._control, self._end(receive(self._control)["pid"]))
            else:
                return

    def close(self) -> None:
        for pid in list(self._children):
            self._end(pid)
        erase(self._home)

    def _fork(self, job: dict[str, Any], connection: int, importable: tuple[str, ...]) -> int:
        self._count += 1
        scratch = self._home / f"child-{self._count}"
        scratch.mkdir(mode=0o700)
        with tempfile.TemporaryFile(dir=self._home) as unlinked:
            output = os.dup(unlinked.fileno())
        policy = Policy(
            **job["limits"],
            readable=tuple(job["readable"]),
            importable=importable,
            scratch=str(scratch),
            gpu=job["gpu"] and bool(_confine.gpu_devices()),
        )
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                _be_child(_only(connection, output, self._control), policy, job["task"], server)
            finally:
                os._exit(_UNWOUND)
        os.close(connection)
        self._children[pid] = _Running(scratch, output)
        return pid

    def _end(self, pid: int) -> dict[str, Any]:
        """Kill a child and everything it started, and say how it died.

        If it had died before, the status is its own: a signal does not change that of a dead process.
        """
        child = self._children.pop(pid)
        for kill in (os.kill, os.killpg):
            with suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self._end_orphans()
        said = os.pread(child.output, _TAIL, max(0, os.fstat(child.output).st_size - _TAIL))
        os.close(child.output)
        erase(child.scratch)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "said": said.decode(errors="replace")}

    def _end_orphans(self) -> None:
        """Kill what a child started outside its process group: it became ours when the child died."""
        family = Path(f"/proc/self/task/{os.getpid()}/children")
        while family.exists():
            orphans = {int(pid) for pid in family.read_text().split()} - self._children.keys()
            if not orphans:
                return
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _only(connection: int, output: int, control: socket.socket) -> socket.socket:
    """Leave this process its connection and three standard streams, and close every other descriptor."""
    control.detach()
    os.setsid()
    os.umask(0o077)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, output)):
        os.dup2(source, target)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    os.closerange(3, connection)
    os.closerange(connection + 1, highest + 1)
    return socket.socket(fileno=connection)


def _be_child(connection: socket.socket, policy: Policy, task: str, server: int) -> NoReturn:
    try:
        _settle(policy)
        _confine.enter(policy, server)
        handle: _Handle = _named(task)()
        while (request := _next(connection)) is not None:
            send(connection, _answer(handle, request))
    except Exception as error:
        # The border between a suspect and us: whatever a library raises over a hostile file must reach the
        # parent as a sentence, and this child is not used again.
        send(connection, _failure(error))
    os._exit(0)


def _named(task: str) -> Callable[..., Any]:
    """Return what ``package.module:name`` names."""
    module, _, name = task.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _next(connection: socket.socket) -> dict[str, Any] | None:
    try:
        return receive(connection)
    except EOFError:
        return None


def _answer(handle: _Handle, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": handle(request)}
    except FpAuditError as error:
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, FpAuditError):
        return {"error": _known_name(error), "text": str(error)}
    return {"crash": _describe(error), "memory": isinstance(error, MemoryError)}


def _settle(policy: Policy) -> None:
    for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"):
        os.environ[name] = policy.scratch
    tempfile.tempdir = None
    if not policy.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _known_name(error: FpAuditError) -> str:
    """Return the nearest class that the parent knows too."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == FpAuditError.__module__)


def _describe(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {printable(str(error))}{where}"
