"""The server for webhooks: who may speak, and what is understood."""

from __future__ import annotations

import json
import socket

import httpx2
import pytest

from fp_audit import webhook
from fp_audit.errors import UsageError

MESSAGE = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "org/model", "headSha": "0" * 40},
    "webhook": {"id": "1", "version": 3},
}


@pytest.fixture
def heard():
    """Names that were heard, and a way to speak."""
    names = []

    def hear(name):
        names.append(name)
        return name != "org/full"

    with webhook.serving("127.0.0.1", 0, "secrét", hear) as port:

        def say(content=MESSAGE, secret="secrét", **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            given = {} if secret is None else {"X-Webhook-Secret": secret.encode()}
            return httpx2.post(f"http://127.0.0.1:{port}/", content=body, headers={**given, **headers}).status_code

        say.port, say.names = port, names
        yield say


def test_a_message_is_heard(heard):
    assert heard() == 202
    assert heard.names == ["org/model"]


@pytest.mark.parametrize("secret", [None, "", "secret", "secrét2", "sec"])
def test_without_the_secret_nothing_is_heard(heard, secret):
    assert heard(secret=secret) == 401
    assert heard(b"{", secret=secret) == 401
    assert heard.names == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"repo": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_message(heard, content):
    assert heard(content) == 400
    assert heard.names == []


@pytest.mark.parametrize("name", ["model", "../../x", "org/model\n", "org/m/x", "", 7, None, "o/" + "x" * 200])
def test_names_that_are_none(heard, name):
    assert heard({**MESSAGE, "repo": {"type": "model", "name": name}}) == 400
    assert heard.names == []


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"action": "update", "scope": "repo.content"}, "dataset"),
        ({"action": "update", "scope": "repo.config"}, "model"),
        ({"action": "delete", "scope": "repo"}, "model"),
        ({"action": "create", "scope": "discussion.comment"}, "model"),
    ],
)
def test_other_news_are_nothing(heard, event, kind):
    assert heard({"event": event, "repo": {"type": kind, "name": "org/model"}}) == 204
    assert heard.names == []


def test_a_full_queue_is_told(heard):
    assert heard({**MESSAGE, "repo": {"type": "model", "name": "org/full"}}) == 503


def test_long_messages_are_not_read(heard):
    with socket.create_connection(("127.0.0.1", heard.port), timeout=5) as line:
        line.sendall("POST / HTTP/1.1\r\nX-Webhook-Secret: secrét\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in line.recv(100)
    with socket.create_connection(("127.0.0.1", heard.port), timeout=5) as line:
        line.sendall("POST / HTTP/1.1\r\nX-Webhook-Secret: secrét\r\nContent-Length: -1\r\n\r\n".encode())
        assert b" 411 " in line.recv(100)
    assert heard() == 202


def test_silent_connections_are_limited_and_ended(heard, monkeypatch):
    monkeypatch.setattr(webhook._Handler, "timeout", 0.3)
    silent = [socket.create_connection(("127.0.0.1", heard.port), timeout=5) for _ in range(webhook.MAX_CONNECTIONS)]
    assert all(line.recv(1) == b"" for line in silent)
    assert heard() == 202


def test_a_place_that_is_taken(heard):
    with pytest.raises(UsageError, match="cannot listen there"), webhook.serving("127.0.0.1", heard.port, "x", bool):
        pass
