"""A system-call filter (seccomp-BPF) for a process that has a suspect open.

What is refused, and why:

- sockets: a second lock behind the network namespace, and the only one on Unix sockets in the file
  system (container engines, agents), which a network namespace does not cover;
- new processes and new programs; threads stay allowed;
- signals to other processes, ``ptrace`` and everything else that reaches into them;
- what would undo the other measures: namespaces, mounts, leaving the process group, clearing the
  parent-death signal, becoming dumpable, and ``io_uring``, which can open sockets unseen by a filter;
- memory that no resource limit counts (shared anonymous mappings, System V segments, memfd);
- kernel interfaces with a long record of exploits (bpf, perf, userfaultfd, keyrings).

Linux on x86-64 and aarch64 only; elsewhere ``install`` returns False.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass

_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "fsopen": (430, 430),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_create_ruleset": (444, 444),
    "listen": (50, 201),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mmap": (9, 222),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "shmget": (29, 194),
    "socket": (41, 198),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
"""What is refused, with its numbers on x86-64 and aarch64 (from the kernel's ``unistd`` headers)."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column in the table and the kernel's name for it (``AUDIT_ARCH_*``)."""

_CONDITIONAL = {"clone", "clone3", "kill", "mmap", "prctl", "prlimit64", "socket", "tgkill"}
_SERVING = {"accept", "accept4", "bind", "listen", "memfd_create"}
"""What the CUDA driver does for itself; refused without a GPU."""

_AF_UNIX = 1
_CLONE_THREAD = 0x10000
_MAP_SHARED_ANONYMOUS = 0x21
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_WORD = 0xFFFFFFFF

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32_BIT = 0x40000000


@dataclass(frozen=True)
class Rule:
    """Refuse one system call: always, or when ``(argument & mask) == value`` (``!=`` with ``unless``)."""

    name: str
    error: int = errno.EPERM
    argument: int | None = None
    mask: int = _WORD
    value: int = 0
    unless: bool = False


def rules(pid: int, *, gpu: bool) -> list[Rule]:
    """What the process ``pid`` may not do.

    With ``gpu`` it may create Unix sockets, listen on them (never connect) and share memory, because
    the CUDA driver does.
    """
    refused = [Rule(name) for name in sorted(_NUMBERS.keys() - _CONDITIONAL - _SERVING)]
    refused += [
        Rule("clone", argument=0, mask=_CLONE_THREAD, value=0),
        Rule("clone3", errno.ENOSYS),  # its flags lie in memory, out of a filter's sight; glibc falls back to clone
        Rule("kill", argument=0, value=pid, unless=True),
        Rule("tgkill", argument=0, value=pid, unless=True),
        Rule("prlimit64", argument=0, value=0, unless=True),
        Rule("prctl", argument=0, value=_PR_SET_PDEATHSIG),
        Rule("prctl", argument=0, value=_PR_SET_DUMPABLE),
    ]
    if gpu:
        return [*refused, Rule("socket", errno.EACCES, argument=0, value=_AF_UNIX, unless=True)]
    refused += [Rule(name) for name in sorted(_SERVING)]
    shared = Rule("mmap", errno.ENOMEM, argument=3, mask=_MAP_SHARED_ANONYMOUS, value=_MAP_SHARED_ANONYMOUS)
    return [*refused, Rule("socket", errno.EACCES), shared]


def install(refused: list[Rule]) -> bool:
    """Put the filter on this thread and on every thread it starts. ``no_new_privs`` must be set."""
    code = program(refused, os.uname().machine)
    if code is None:
        return False
    instructions = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(head), 0, 0)
    return result == 0


def program(refused: list[Rule], machine: str) -> bytes | None:
    """Return the filter's BPF code, or None for a machine that has no table here."""
    if sys.platform != "linux" or sys.maxsize < 2**32 or machine not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[machine]
    code = [
        _instruction(_LOAD, 4),
        _instruction(_EQUAL, architecture, jump=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
        _instruction(_AT_LEAST, _X32_BIT, otherwise=1),
        _instruction(_RETURN, _KILL),
    ]
    for rule in refused:
        number = _NUMBERS[rule.name][column]
        if number is not None:
            code += _refuse(rule, number)
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _refuse(rule: Rule, number: int) -> list[bytes]:
    answer = _instruction(_RETURN, _ERRNO | rule.error)
    if rule.argument is None:
        return [_instruction(_LOAD, 0), _instruction(_EQUAL, number, otherwise=1), answer]
    hit, miss = (1, 0) if rule.unless else (0, 1)
    return [
        _instruction(_LOAD, 0),
        _instruction(_EQUAL, number, otherwise=4),
        _instruction(_LOAD, 16 + 8 * rule.argument),  # the low half of the argument: both machines are little-endian
        _instruction(_AND, rule.mask),
        _instruction(_EQUAL, rule.value, jump=hit, otherwise=miss),
        answer,
    ]


def _instruction(code: int, operand: int, *, jump: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, jump, otherwise, operand)
