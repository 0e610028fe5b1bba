"""What a process gives up before it opens a suspect, in terms of the kernel.

Two entry points, both for a process with a single thread:

- ``isolate``: once, by the warm server, before it imports anything: a network of its own without a way out;
- ``enter``: by every child, right after the fork: resource limits, a scratch folder, Landlock,
  no capabilities, death with its parent, and the system-call filter of ``_seccomp``.

Every measure is used where the kernel offers it and left out where it does not (``enter`` then falls
back to refusing sockets inside the interpreter, which stops library code but not machine code). A
measure that the kernel offers and then fails raises ``OSError``: no child is less confined by accident.
Outside Linux only the resource limits and the refused sockets remain.
"""

from __future__ import annotations

import ctypes
import glob
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from fp_audit.sandbox import _seccomp

_LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Policy:
    """What one child may use."""

    memory: int
    """Bytes beyond what the warm server already held."""
    cpu_seconds: int
    open_files: int
    file_bytes: int
    """Largest file; also the size of the whole scratch folder, where that is a file system of its own."""
    readable: tuple[str, ...]
    """Files and folders of this request; each must exist."""
    importable: tuple[str, ...]
    """Where Python's modules lie; those that do not exist are passed over."""
    scratch: str
    """An empty folder: the only place to write to."""
    gpu: bool


def isolate() -> None:
    """Move this process into a network and IPC namespace of its own, through a user namespace if need be."""
    if not _LINUX or _unshare(_CLONE_NEWNET | _CLONE_NEWIPC):
        return
    user, group = os.geteuid(), os.getegid()
    if _unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")


def enter(policy: Policy, parent: int) -> None:
    """Confine this process for good. ``parent`` is the process it must not outlive."""
    _limit_resources(policy)
    if not _LINUX:
        _refuse_sockets()
        return os.chdir(policy.scratch)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _mount_scratch(policy)
    os.chdir(policy.scratch)
    confined = _restrict_files(policy)
    _drop_capabilities(keep=_CAP_DAC_READ_SEARCH if confined and os.geteuid() == 0 else None)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    if not policy.gpu:  # /proc/self then belongs to root, where the CUDA driver looks around
        _prctl(_PR_SET_DUMPABLE, 0)
    filtered = _seccomp.install(_seccomp.rules(os.getpid(), gpu=policy.gpu))
    if not filtered:
        _refuse_sockets()
    return None


# Resources


def _limit_resources(policy: Policy) -> None:
    # RLIMIT_DATA and not RLIMIT_AS: torch and CUDA reserve far more address space than they use.
    # No RLIMIT_NPROC: it counts all processes of the user and spares root; new processes are refused instead.
    _limit(resource.RLIMIT_DATA, _private_memory() + policy.memory)
    _limit(resource.RLIMIT_CPU, policy.cpu_seconds, policy.cpu_seconds + 1)
    _limit(resource.RLIMIT_NOFILE, policy.open_files)
    _limit(resource.RLIMIT_FSIZE, policy.file_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    _, ceiling = resource.getrlimit(which)
    allowed = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        allowed = min(allowed, ceiling)
    resource.setrlimit(which, (min(soft, allowed), allowed))


def _private_memory() -> int:
    """Bytes that RLIMIT_DATA already counts for this process."""
    if not _LINUX:
        return 0
    with open("/proc/self/status", "rb") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"VmData:"))


def _refuse_sockets() -> None:
    """Refuse sockets inside the interpreter: the last resort, which holds against Python code only."""

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event.startswith("socket."):
            raise PermissionError("a model under audit may not use the network")

    sys.addaudithook(refuse)


# Namespaces, capabilities, prctl

_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    _checked("prctl", _libc.prctl(option, value, 0, 0, 0))


def _unshare(flags: int) -> bool:
    result: int = _libc.unshare(flags)
    return result == 0


def _mount_scratch(policy: Policy) -> None:
    """Give the scratch folder a file system of bounded size that vanishes with the process."""
    if not _unshare(_CLONE_NEWNS):
        return
    options = f"size={policy.file_bytes},nr_inodes=4096,mode=0700".encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0:
        _libc.mount(b"tmpfs", os.fsencode(policy.scratch), b"tmpfs", flags, options)


def _drop_capabilities(keep: int | None) -> None:
    """Drop every capability, but for ``keep`` if held.

    Root keeps CAP_DAC_READ_SEARCH under Landlock, so that it can open models that belong to others.
    """
    head = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    sets = ctypes.create_string_buffer(24)
    _checked("capget", _libc.capget(head, sets))
    held = struct.unpack("6I", sets.raw)[0] & (0 if keep is None else 1 << keep)
    _checked("capset", _libc.capset(head, struct.pack("6I", held, held, 0, 0, 0, 0)))


# Landlock

_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_WRITE = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_DEVICE = _READ | _WRITE_FILE | _IOCTL_DEV
_OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)
_SYSTEM_GPU = (
    "/proc/devices",
    "/proc/driver/nvidia",
    "/proc/modules",
    "/sys/bus/pci/devices",
    "/sys/devices",
    "/sys/module",
)


def landlock_version() -> int:
    """Return the kernel's Landlock version, 0 where there is none."""
    if not _LINUX:
        return 0
    version: int = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    return max(version, 0)


def _restrict_files(policy: Policy) -> bool:
    """Let this process read what the policy names and write to its scratch folder; nothing else.

    Newer kernels also refuse TCP, device control, and signals and abstract sockets to the outside.
    """
    version = landlock_version()
    if version == 0:
        return False
    files = (1 << (13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16)) - 1
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("QQQ", files, network, scoped)
    ruleset = _checked(
        "landlock_create_ruleset", _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    )
    _allow(ruleset, policy.readable, _READ & files)
    _allow(ruleset, (policy.scratch,), (_READ | _WRITE) & files)
    _allow(ruleset, ("/dev/null",), (_READ | _WRITE_FILE) & files)
    _allow(ruleset, _existing([*_SYSTEM, *policy.importable]), _READ & files)
    if policy.gpu:
        _allow(ruleset, _existing(_SYSTEM_GPU), _READ & files)
        _allow(ruleset, gpu_devices(), _DEVICE & files)
    _checked("landlock_restrict_self", _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)
    return True


def gpu_devices() -> list[str]:
    """List the devices of NVIDIA's driver (``/dev/dxg`` is its door under Windows)."""
    return [*glob.glob("/dev/nvidia*"), *glob.glob("/dev/dxg")]


def _existing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]


def _allow(ruleset: int, paths: Iterable[str], access: int) -> None:
    for path in paths:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        here = access if stat.S_ISDIR(os.fstat(handle).st_mode) else access & _OF_A_FILE
        rule = struct.pack("=Qi", here, handle)
        added = _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        _checked(f"landlock_add_rule for {path}", added)
        os.close(handle)


def _checked(call: str, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result


def _write(path: str, text: str) -> None:
    with suppress(PermissionError), open(path, "wb") as file:
        file.write(text.encode())
