"""Messages between processes that do not trust each other: a length, then one JSON object.

Floats survive exactly, ``nan`` and ``inf`` included (Python's JSON writes them as ``NaN`` and
``Infinity`` and reads them back). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from socket import socket
from typing import Any

FORK, END = b"f", b"e"
"""What precedes a message to a warm server; a descriptor travels with ``FORK``."""

_LENGTH = struct.Struct(">Q")


class MalformedMessageError(Exception):
    """The other side sent something that is not a message, or more than was agreed."""


def send(connection: socket, message: Mapping[str, Any], deadline: float | None = None) -> None:
    """Send one message. ``deadline`` is a time of ``time.monotonic``; ``TimeoutError`` beyond it."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    _allow_until(connection, deadline)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket, cap: int | None = None, deadline: float | None = None) -> dict[str, Any]:
    """Receive one message of at most ``cap`` bytes.

    Raises:
        EOFError: the other side closed the connection.
        TimeoutError: the message was not complete at ``deadline``.
        MalformedMessageError: too long, not JSON, or not an object.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if cap is not None and length > cap:
        raise MalformedMessageError(f"a message of {length} bytes, at most {cap} are allowed")
    try:
        message = json.loads(_exactly(connection, length, deadline))
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise MalformedMessageError("a message that is not a JSON object")
    return message


def printable(text: str, limit: int = 300) -> str:
    """Return ``text`` as one line without control, format and bidirectional characters."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: 8 * limit])
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _exactly(connection: socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        _allow_until(connection, deadline)
        count = connection.recv_into(view[done:])
        if count == 0:
            raise EOFError
        done += count
    return data


def _allow_until(connection: socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
