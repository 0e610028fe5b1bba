"""Hears from a hub that a model has changed: a small HTTP server for webhooks.

What a message says is not relied on beyond the name of a model: its commit is asked of the hub. Source of the format:
Hugging Face, "Webhooks" (payload version 3, header ``X-Webhook-Secret``).
"""

from __future__ import annotations

import hmac
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

from fp_audit.errors import UsageError

MAX_BODY = 2**20
"""Bytes of a message; the hub's have some thousand."""
MAX_CONNECTIONS = 32
TIMEOUT = 10.0
"""Seconds that a connection may take to send something."""

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

Heard = Callable[[str], bool]
"""Told ``org/model``; says whether it is taken care of (False: the hub shall send it again)."""


class _Server(ThreadingHTTPServer):
    """Answers a limited number of connections at a time; the others are closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], secret: str, heard: Heard) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self.secret, self.heard = secret.encode(), heard
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing: a client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT
    server_version, sys_version = "fp-audit", ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Say nothing: what is heard shows in what is scanned."""

    def do_POST(self) -> None:
        """Check the secret, then the size, then the message."""
        # http.server reads headers as Latin-1, whatever they were written in
        given = self.headers.get("X-Webhook-Secret") or ""
        length = self.headers.get("Content-Length") or ""
        if not hmac.compare_digest(given.encode("latin-1", "replace"), self.server.secret):
            self._answer(401)
        elif not length.isascii() or not length.isdigit():
            self._answer(411)
        elif len(length) > 9 or int(length) > MAX_BODY:
            self._answer(413)
        else:
            self._answer(self._take(self.rfile.read(int(length))))

    def _take(self, body: bytes) -> int:
        try:
            repo = changed_model(json.loads(body))
        except (RecursionError, ValueError):
            return 400
        if repo is None:
            return 204
        return 202 if self.server.heard(repo) else 503

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True


def changed_model(message: Any) -> str | None:  # noqa: ANN401
    """Return the model whose content a message says has changed; None if it is about something else.

    Raises:
        ValueError: it is no message of a hub.
    """
    try:
        repo, event = message["repo"], message["event"]
        kind, name, scope, action = repo["type"], repo["name"], event["scope"], event["action"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message of a hub: {error}") from None
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        raise ValueError("not the name of a model")
    about_content = str(scope) == "repo" or str(scope).startswith("repo.content")
    return name if kind == "model" and about_content and action in ("create", "update", "move") else None


@contextmanager
def serving(host: str, port: int, secret: str, heard: Heard) -> Iterator[int]:
    """Listen until the block ends; gives the port (of the system's choice for port 0).

    Args:
        host: an address of this machine.
        port: 0 to 65535.
        secret: that messages must carry in ``X-Webhook-Secret``; compared in constant time.
        heard: called in another thread with the name of each model that has changed.

    Raises:
        UsageError: there is no listening there.
    """
    try:
        server = _Server((host, port), secret, heard)
    except OSError as error:
        raise UsageError(f"--serve {host}:{port}: cannot listen there ({error.strerror or error})") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
