"""What a watch remembers: commits, and reports until a server has taken them."""

from __future__ import annotations

import json

import pytest
from receiver import receiving

from fp_audit import outbox as outboxes
from fp_audit.errors import UsageError
from fp_audit.outbox import TRIES, Outbox, check_url

ONE = ("org/model", "a" * 40)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "watch.sqlite3"


def test_a_commit_is_new_once_for_each_scope(path):
    with Outbox(path) as outbox:
        assert outbox.is_new(ONE[0], "s", ONE[1])
        outbox.note("s", {ONE: True}, None, None)
    with Outbox(path) as outbox:  # a restart
        assert not outbox.is_new(ONE[0], "s", ONE[1])
        assert outbox.is_new(ONE[0], "other victims", ONE[1])
        assert outbox.is_new(ONE[0], "s", "b" * 40)


def test_what_could_not_be_judged_is_tried_again_and_given_up(path):
    with Outbox(path) as outbox:
        for tried in range(TRIES):
            assert outbox.tries(ONE[0], "s", ONE[1]) == tried
            assert outbox.is_new(ONE[0], "s", ONE[1])
            outbox.note("s", {ONE: False}, None, None)
        assert not outbox.is_new(ONE[0], "s", ONE[1])
        assert outbox.tries(ONE[0], "s", "b" * 40) == 0


def test_a_server_that_is_down_loses_nothing(path):
    with receiving() as server:
        url, port = server.url, server.server_port
    with Outbox(path) as outbox:
        outbox.note("s", {ONE: True}, url, '{"n": 1}')
        outbox.note("s", {ONE: True}, url, '{"n": 2}')
        first, second = outbox.deliver()
        assert (first.host, first.failure) == ("127.0.0.1", "ConnectError")
        assert second.failure == "not reached"
        assert outbox.waiting() == 2
        assert outbox.deliver() == []  # not due yet
        assert 0 < outbox.pause() <= 1
    with receiving(port) as server, Outbox(path) as outbox:
        server.status = 500
        assert outbox.deliver(all_=True)[0].failure == "answered with 500"
        assert 1 < outbox.pause() <= 2  # pauses double
        server.status = 200
        assert [attempt.failure for attempt in outbox.deliver(all_=True)] == [None, None]
        assert [json.loads(body)["n"] for _, body in server.taken] == [1, 2]
        assert len({headers["Idempotency-Key"] for headers, _ in server.taken}) == 2
        assert (outbox.waiting(), outbox.pause()) == (0, None)


def test_pauses_end_somewhere(path, monkeypatch):
    monkeypatch.setattr(outboxes, "_post", lambda *_: "no")
    with Outbox(path) as outbox:
        outbox.note("s", {}, "http://127.0.0.1/", "{}")
        for _ in range(30):
            outbox.deliver(all_=True)
        assert 3500 < outbox.pause() <= 3600


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("text" * 1000)
    with pytest.raises(UsageError, match="not the state of a watch"):
        Outbox(tmp_path / "text")


@pytest.mark.parametrize("url", ["", "host", "ftp://host/", "http://", "file:///etc/passwd", "http://[", "http://h:x/"])
def test_urls_that_nothing_can_be_posted_to(url):
    with pytest.raises(UsageError, match="--post"):
        check_url(url)


def test_a_url():
    assert check_url("https://host:8080/path?token=x") == "https://host:8080/path?token=x"
