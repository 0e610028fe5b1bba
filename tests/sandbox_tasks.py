"""What the children of ``test_sandbox`` run: well-behaved, broken and hostile handlers.

Each public function is a factory: it returns the handler. Only the standard library is imported here.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from fp_audit.errors import SandboxTimeout, UnsafeModel, UnsupportedModel


def echo():
    return lambda request: request


def counter():
    seen = []
    return lambda request: {"requests": len(seen), "total": seen.append(request["add"]) or sum(seen)}


def expression():
    """Evaluate what the test wants to know, for example ``os.getcwd()``."""
    return lambda request: {"value": eval(request["code"])}


def attempt():
    """Say whether an expression works, or which error it raises."""

    def handle(request):
        try:
            return {"value": eval(request["code"])}
        except (OSError, MemoryError, RuntimeError) as error:
            return {"failed": type(error).__name__, "errno": getattr(error, "errno", None)}

    return handle


def statement():
    def handle(request):
        exec(request["code"], globals())
        return {"done": True}

    return handle


def sleep():
    def handle(request):
        time.sleep(request["seconds"])
        return {"slept": request["seconds"]}

    return handle


def never_reads():
    time.sleep(60)


def burn():
    def handle(_):
        while True:
            pass

    return handle


def stubborn_burn():
    """Ignore the signal that announces the end of the CPU time."""

    def handle(_):
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True:
            pass

    return handle


def numpy_memory():
    import numpy as np

    return lambda request: {"sum": float(np.ones(request["bytes"] // 8).sum())}


def torch_memory():
    import torch

    return lambda request: {"sum": float(torch.ones(request["bytes"] // 4).sum())}


def shared_memory():
    def handle(request):
        region = mmap.mmap(-1, request["bytes"])
        region.write(b"x" * request["bytes"])
        return {"done": True}

    return handle


def unsupported():
    class Special(UnsupportedModel):
        """A subclass that the parent does not know."""

    def handle(request):
        if request.get("healthy"):
            return {"healthy": True}
        raise Special("no adapter\x1b[31m for\n\u202ethis " + "x" * 5000)

    return handle


def unsafe_at_once():
    raise UnsafeModel("will not even be opened")


def pretended_timeout():
    def handle(_):
        raise SandboxTimeout("I pretend to be the sandbox")

    return handle


def value_error():
    def handle(_):
        raise ValueError("first line\nsecond\tline \x07")

    return handle


def system_exit():
    def handle(_):
        sys.exit("enough")

    return handle


def end_of_file():
    def handle(_):
        raise EOFError("a truncated file")

    return handle


def not_json():
    return lambda _: {"value": object()}


def not_a_dict():
    return lambda _: [1, 2]


def segfault():
    return lambda _: ctypes.string_at(0)


def abort():
    def handle(_):
        os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\n  what():  bad tensor\n")
        os.abort()

    return handle


def bad_alloc():
    def handle(_):
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
        os.abort()

    return handle


def leave():
    return lambda _: os._exit(3)


def suicide():
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)


def chatter():
    def handle(_):
        print("\x1b[2Jprinted " * 1000, flush=True)
        print("\x1b[2Jwarned " * 1000, file=sys.stderr, flush=True)
        os.write(1, b"written")
        os.write(2, b"written")
        return {"input": sys.stdin.read()}

    return handle


def giant():
    return lambda request: {"text": "x" * request["bytes"]}


def raw():
    """Write bytes of its own choice to the connection, behind the protocol's back."""

    def handle(request):
        body = request["text"].encode()
        length = request.get("length", len(body))
        connection = max(int(name) for name in os.listdir("/proc/self/fd") if _is_socket(int(name)))
        os.write(connection, struct.pack(">Q", length) + body)
        time.sleep(60)

    return handle


def nested():
    def handle(request):
        return raw()({"text": '{"ok":' + "[" * request["depth"]})

    return handle


def _is_socket(descriptor):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    except OSError:
        return False


def leaky():
    def handle(request):
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(request["count"])]
        return {"open": len(kept)}

    return handle


def breed():
    """Start a grandchild that leaves the process group and outlives this process."""

    def handle(request):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork() == 0:
                Path(request["note"]).write_text(str(os.getpid()))
                time.sleep(60)
            os._exit(0)
        os.waitpid(pid, 0)
        note = Path(request["note"])
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        return {"pid": int(note.read_text())}

    return handle


def litter():
    """Leave a scratch folder that is hard to remove: deep, without permissions, with links."""

    def handle(request):
        os.symlink(request["elsewhere"], "link")
        os.mkdir("closed")
        Path("closed/file").write_text("x")
        os.chmod("closed", 0)
        for _ in range(request["depth"]):
            os.mkdir("d")
            os.chdir("d")
        return {"done": True}

    return handle


def memory_of():
    """Say how much private memory the process may still take."""
    return lambda _: {"limit": resource.getrlimit(resource.RLIMIT_DATA)[0]}


def udp():
    def handle(request):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(json.dumps(request).encode(), ("127.0.0.1", request["port"]))
        return {"sent": True}

    return handle
