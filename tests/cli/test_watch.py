"""``fp-audit watch`` against a small real hub and a server that is told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from builders import hf_folder
from receiver import receiving

from fp_audit import Plan, register


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("watched")
    for seed, name in enumerate(["mine", "stranger", "another"]):
        hf_folder(root / name, seed=seed)
    return root


@pytest.fixture
def account(models, hub):
    """A registered victim, and an account with a copy of it and a stranger."""
    register(Plan(str(models / "mine"), "mine", methods=("identity", "weights")))
    for name in ("mine", "stranger"):
        shutil.copytree(models / name, hub.folder / "org" / name)
    return hub


WEIGHTS = ("--depth", "weights", "--jobs", "1")


def test_once_and_once_more(account, models, invoke, tmp_path):
    log = tmp_path / "found.jsonl"
    with receiving() as server:
        command = ["watch", "org", "--once", *WEIGHTS, "--report", log, "--post", server.url]
        result = invoke(*command)
        assert result.exit_code == 1, result.stderr
        copy, stranger = result.stdout.splitlines()
        assert copy.startswith("identical        org/mine@")
        assert stranger.startswith("independent      org/stranger@")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(line["type"], line["target"], line["verdict"]) for line in lines] == [
            ("finding", "org/mine", "identical"),
            ("finding", "org/stranger", "independent"),
        ]
        ((headers, body),) = server.taken
        assert headers["Content-Type"] == "application/json"
        assert json.loads(body)["schema_version"] == 1
        assert [item["target"] for item in json.loads(body)["findings"]] == ["org/mine", "org/stranger"]

        account.forget()
        result = invoke(*command)  # nothing is new: one request, no finding
        assert (result.exit_code, result.stdout) == (0, "")
        assert account.requests == ["GET /api/models"]

        (account.folder / "org" / "stranger" / "README.md").write_text("a new commit")
        shutil.copytree(models / "another", account.folder / "org" / "another")
        result = invoke(*command)
        assert result.exit_code == 0
        assert [line.split("@")[0].split()[1] for line in result.stdout.splitlines()] == ["org/another", "org/stranger"]
        assert len(server.taken) == 2

        register(Plan(str(models / "stranger"), "other", methods=("identity", "weights")))
        result = invoke(*command)  # another victim: everything is compared again
        assert result.exit_code == 1
        assert len(result.stdout.splitlines()) == 6


def test_a_server_that_is_down_is_told_in_the_next_run(account, invoke):
    with receiving() as server:
        url, port = server.url, server.server_port
    result = invoke("watch", "org", "--once", *WEIGHTS, "--post", url)
    assert result.exit_code == 1
    assert "1 report(s) not delivered" in result.stderr
    assert "token" not in result.stderr
    with receiving(port) as server:
        result = invoke("watch", "org", "--once", *WEIGHTS)
        assert (result.exit_code, result.stdout) == (0, "")
        ((_, body),) = server.taken
        assert json.loads(body)["summary"]["identical"] == 1


def test_what_cannot_be_opened_is_told_once_and_tried_again(account, models, invoke, tmp_path):
    shutil.rmtree(account.folder / "org" / "mine")
    account.fail("stranger/resolve", 403)
    log = tmp_path / "found.jsonl"
    command = ["watch", "org", "--once", *WEIGHTS, "--report", log]
    result = invoke(*command)
    assert result.exit_code == 4
    skipped = len(result.stdout.splitlines())
    assert result.stdout.startswith("skipped")
    assert invoke(*command).stdout == ""
    account.failures.clear()
    result = invoke(*command)
    assert result.stdout.startswith("independent")
    assert [json.loads(line)["type"] for line in log.read_text().splitlines()] == ["skipped"] * skipped + ["finding"]


def test_accounts_that_cannot_be_listed(account, invoke):
    account.fail("GET /api/models", 403)
    result = invoke("watch", "org", "--once", *WEIGHTS)
    assert result.exit_code == 4
    assert "org/: org/: the hub refuses access (403)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["org", "--once", "--every", "5"], "--once"),
        (["org/model", "--once"], "name of an account"),
        (["org", "--post", "ftp://x"], "--post"),
        (["org", "--serve", "8100"], "HOST:PORT"),
        (["org", "--serve", "127.0.0.1:0"], "FP_AUDIT_WEBHOOK_SECRET is not set"),
        (["org", "--once", "--victim", "nobody"], "nobody"),
        (["org", "--once", "--report", "/nowhere/x"], "/nowhere/x"),
    ],
)
def test_wrong_calls(account, invoke, arguments, says):
    result = invoke("watch", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def until(found, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := found():
            return got
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_a_webhook_starts_a_scan_and_an_interruption_ends_it_all(account, models, monkeypatch, tmp_path):
    monkeypatch.setenv("FP_AUDIT_WEBHOOK_SECRET", "s3")
    log, said = tmp_path / "found.jsonl", tmp_path / "stderr"
    script = "import sys; from fp_audit.cli import main; sys.argv[0] = 'fp-audit'; main()"
    command = [sys.executable, "-c", script, "watch", "org", "--serve", "127.0.0.1:0", *WEIGHTS, "--report", str(log)]
    with said.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, text=True)
    try:
        port = until(lambda: said.read_text().rpartition("webhooks on 127.0.0.1:")[2].strip())  # noqa: PLW0108
        until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        shutil.copytree(models / "another", account.folder / "org" / "new")
        for name, secret in (("org/new", "wrong"), ("elsewhere/x", "s3"), ("org/new", "s3")):
            message = {"event": {"action": "create", "scope": "repo"}, "repo": {"type": "model", "name": name}}
            httpx2.post(f"http://127.0.0.1:{port}/", json=message, headers={"X-Webhook-Secret": secret})
        lines = until(lambda: (found := log.read_text().splitlines()) and len(found) == 3 and found)
        assert json.loads(lines[-1])["target"] == "org/new"
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
    assert code == 130
    assert said.read_text().splitlines()[-1] == "fp-audit: interrupted"
    assert Path(log).exists()
