"""The parent's handle on a warm server: start it, have it fork and end children, stop it."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fp_audit.errors import SandboxCrash
from fp_audit.sandbox._scratch import erase
from fp_audit.sandbox._wire import END, FORK, printable, receive, send

_START = "import sys; sys.path.append(sys.argv[1]); from fp_audit.sandbox._warm import serve; serve(int(sys.argv[2]))"
_START_SECONDS = 300.0
_COMMAND_SECONDS = 30.0


class Server:
    """The parent's handle on one warm server."""

    def __init__(
        self, preload: tuple[str, ...], path: Sequence[str], prepare: tuple[str, Sequence[str]] | None = None
    ) -> None:
        self._preload = preload
        self._lock = threading.Lock()
        self._ready = False
        self._failure: str | None = None
        self._home = Path(tempfile.mkdtemp(prefix="fp-audit-")).resolve()
        self._control, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by ``_stop``
        root = str(Path(__file__).resolve().parents[2])
        with theirs:
            # -P: the current folder, which may be the one under audit, must not be on the import path.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, root, str(theirs.fileno())],
                env=_environment(self._home),
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        hello = {"home": str(self._home), "parent": os.getpid(), "path": path, "preload": preload, "prepare": prepare}
        with suppress(ConnectionError):  # it died already: the first command will say why
            send(self._control, {**hello, "user_home": str(Path(os.path.expanduser("~")).resolve())})

    @property
    def lost(self) -> bool:
        """Whether it was running and is no more: a new one may do better."""
        return self._ready and self._failure is not None

    def fork(self, job: Mapping[str, Any], connection: socket.socket) -> int:
        """Fork a child at the other end of ``connection`` and return its process id."""
        pid: int = self._command(FORK, job, [connection.fileno()])["pid"]
        return pid

    def end(self, pid: int) -> dict[str, Any] | None:
        """Kill a child and return how it ended, or None where the server is gone (and so its children)."""
        try:
            return self._command(END, {"pid": pid})
        except SandboxCrash:
            return None

    def close(self) -> None:
        """End the server and all its children; a later ``fork`` fails."""
        with self._lock:
            self._stop("the sandbox was closed")

    def _command(self, command: bytes, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        with self._lock:
            if self._failure is not None:
                raise SandboxCrash(self._failure)
            try:
                self._await_ready()
                socket.send_fds(self._control, [command], descriptors)
                deadline = time.monotonic() + _COMMAND_SECONDS
                send(self._control, message, deadline)
                return receive(self._control, deadline=deadline)
            except (EOFError, OSError) as error:
                self._stop(self._why(error))
                raise SandboxCrash(self._failure) from None
            except BaseException:  # a half-finished exchange: what comes next on the socket is anybody's guess
                self._stop("the sandbox was interrupted")
                raise

    def _await_ready(self) -> None:
        if not self._ready:
            receive(self._control, deadline=time.monotonic() + _START_SECONDS)
            self._ready = True

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"the sandbox for {', '.join(self._preload) or 'Python'} did not respond"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        last = printable(said.rpartition("\n")[2]) or f"its server ended with status {self._process.returncode}"
        return f"the sandbox cannot open models with {', '.join(self._preload) or 'Python'}: {last}"

    def _stop(self, reason: str) -> None:
        """Let the server end its children and itself; killed if it does not, they die with it."""
        if self._failure is None:
            self._failure = reason
            self._control.close()
            try:
                self._process.wait(5.0 if self._ready else 0.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._stderr.close()
            with suppress(OSError):  # as a rule the server has done it
                erase(self._home)


_PASSED_ON = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "LANG",
        "MKL_NUM_THREADS",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHOME",
        "PYTHONPYCACHEPREFIX",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TZ",
    }
)
_SEARCH_PATHS = ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH")
_FIXED = {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def _environment(home: Path) -> dict[str, str]:
    """Build the environment from an allow-list: no tokens, keys, proxies or relative search paths."""
    passed = {name: text for name, text in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}
    for name in _SEARCH_PATHS:
        folders = [folder for folder in os.environ.get(name, "").split(os.pathsep) if os.path.isabs(folder)]
        if folders:
            passed[name] = os.pathsep.join(folders)
    user = {"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {"PYTHONNOUSERSITE": "1"}
    homes = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), str(home))
    return {**passed, **user, **homes, **_FIXED}
