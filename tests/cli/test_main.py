"""The command as a whole: help, unknown commands, speed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fp_audit.cli import COMMANDS


def test_help_lists_every_command(shell):
    done = shell("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(invoke, command):
    result = invoke(command, "-h")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


@pytest.mark.parametrize("arguments", [["--help"], ["victims", "list"], ["scan", "--help"]])
def test_quick_commands_import_nothing_heavy(home, arguments):
    script = (
        "import sys; sys.argv = ['fp-audit', *sys.argv[1:]]\n"
        "from fp_audit.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "timm", "onnxruntime", "datasets", "scipy"} & set(done.stderr.split())


def test_help_is_quick(shell):
    def timed():
        start = time.monotonic()
        shell("--help")
        return time.monotonic() - start

    assert min(timed() for _ in range(3)) < 1.0  # 0.3 s on a quiet machine


def test_an_unknown_command(invoke):
    result = invoke("scam")
    assert result.exit_code == 2
    assert "scam" in result.stderr


def test_no_command(invoke):
    result = invoke()
    assert result.exit_code == 2
    assert "Usage:" in result.stdout + result.stderr


def test_both_names_are_installed():
    for name in ("fp-audit", "hf-fp-audit"):
        assert Path(sys.executable).with_name(name).exists()


def test_a_reader_that_leaves_is_no_error(home):
    script = Path(sys.executable).with_name("fp-audit")
    process = subprocess.Popen([script, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    assert process.returncode == 0


def test_a_bug_is_not_taken_for_a_finding(invoke, monkeypatch):
    def broken(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr("fp_audit.plugins.load_all", broken)
    result = invoke("methods")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "boom" in result.stderr
    assert "nothing was decided" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_a_full_disk_is_one_line_whoever_meets_it(invoke, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("fp_audit.plugins.load_all", full)
    result = invoke("methods")
    assert result.exit_code == 2
    assert result.stderr == "fp-audit: the disk is full: make room and try again; what was finished is kept\n"
