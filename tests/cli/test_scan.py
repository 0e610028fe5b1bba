"""``fp-audit scan``: exit codes, streams, reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from fp_audit import victims
from fp_audit.cli import scan as module


def finished(home):
    """Key of each result that is kept -> when it was found out."""
    if not (home / "results.sqlite").exists():
        return {}
    with closing(sqlite3.connect(f"file:{home}/results.sqlite?mode=ro", uri=True)) as connection:
        try:
            return dict(connection.execute("SELECT key, examined FROM outcomes"))
        except sqlite3.OperationalError:  # no table yet
            return {}


class TestShell:
    """Every exit code once, through the installed script."""

    def test_nothing_found_is_0(self, home, registered, shell):
        done = shell("scan", registered.stranger, "--victim", "owner", "--depth", "weights")
        assert done.returncode == 0
        assert "independent" in done.stdout

    def test_found_is_1_with_json_on_stdout_and_progress_on_stderr(self, home, registered, shell, tmp_path):
        table = tmp_path / "report.txt"
        options = ("--format", "json", "--output", f"table={table}", "--output", f"json={tmp_path / 'r.json'}")
        done = shell("scan", registered.int8, "--victim", "owner", *options)
        assert done.returncode == 1
        report = json.loads(done.stdout)
        assert report["schema_version"] == 1
        assert report["victims"] == ["owner"]
        assert report["findings"][0]["verdict"] == "derived"
        assert report["summary"]["derived"] == report["summary"]["targets"] == 1
        assert json.loads((tmp_path / "r.json").read_text()) == report
        assert "derived" in table.read_text()
        assert "\x1b" not in table.read_text() + done.stdout + done.stderr
        assert "1 of 1 models: 1 derived?" in done.stderr

    def test_a_wrong_option_is_2(self, home, registered, shell):
        done = shell("scan", registered.int8, "--victim", "nobody")
        assert done.returncode == 2
        assert done.stdout == ""
        assert "nobody" in done.stderr

    def test_nothing_auditable_is_3(self, home, shell, tmp_path):
        done = shell("scan", tmp_path / "nothing", "--victim", "owner", "--format", "json")
        assert done.returncode == 3
        assert json.loads(done.stdout)["summary"]["skipped"] == 1

    def test_incomplete_is_4(self, home, registered, shell, tmp_path):
        (tmp_path / "text.onnx").write_text("text")
        targets = (registered.stranger, tmp_path / "text.onnx")
        done = shell("scan", *targets, "--victim", "owner", "--depth", "weights", "--strict")
        assert done.returncode == 4
        assert "skipped" in done.stdout

    @pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
    def test_interrupted_or_killed_loses_and_repeats_nothing(self, home, registered, tmp_path, invoke, how, code):
        for name in range(60):
            (tmp_path / "many" / str(name)).mkdir(parents=True)
            shutil.copy(registered.int8, tmp_path / "many" / str(name))
        arguments = ["scan", str(tmp_path / "many"), "--victim", "owner", "--depth", "weights", "--jobs", "1"]
        script = str(Path(sys.executable).with_name("fp-audit"))
        process = subprocess.Popen(
            [script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while not finished(home) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, how)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, (out, err)
        assert "Traceback" not in err
        assert ("--resume" in err) == (how == signal.SIGINT)
        assert out == ""
        before = finished(home)
        assert 1 <= len(before) < 60
        report = json.loads(invoke(*arguments, "--resume", "--format", "json").stdout)
        assert sorted(finding["target"] for finding in report["findings"]) == sorted(map(str, range(60)))
        assert sum(finding["cost"]["examined"] is not None for finding in report["findings"]) == len(before)
        assert before.items() <= finished(home).items()
        assert len(finished(home)) == 60

    def test_targets_from_standard_input(self, home, registered, shell):
        done = shell("scan", "-", "--victim", "owner", "--depth", "weights", input=f"{registered.int8}\n")
        assert done.returncode == 1


def test_a_reader_that_leaves_changes_neither_code_nor_files(home, registered, tmp_path):
    script = str(Path(sys.executable).with_name("fp-audit"))
    arguments = ["scan", str(registered.stranger), "--victim", "owner", "--depth", "weights"]
    arguments += ["--output", f"json={tmp_path / 'r.json'}"]
    process = subprocess.Popen([script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    assert (process.returncode, (tmp_path / "r.json").exists()) == (0, True)


WEIGHTS = ("--victim", "owner", "--depth", "weights")


class TestFailOn:
    @pytest.mark.parametrize(("level", "code"), [("identical", 0), ("derived", 1), ("suspected", 1), ("never", 0)])
    def test_derived(self, home, registered, invoke, level, code):
        assert invoke("scan", registered.int8, *WEIGHTS, "--fail-on", level).exit_code == code

    @pytest.mark.parametrize(("level", "code"), [("identical", 1), ("never", 0)])
    def test_identical(self, home, registered, invoke, level, code):
        copy = registered.models / "thief" / "renamed"
        arguments = ("--victim", "owner", "--depth", "identity", "--fail-on", level)
        assert invoke("scan", copy, *arguments).exit_code == code

    def test_found_outranks_incomplete(self, home, registered, invoke, tmp_path):
        assert invoke("scan", registered.int8, tmp_path / "nothing", *WEIGHTS, "--strict").exit_code == 1

    def test_skipped_is_no_failure_without_strict(self, home, registered, invoke, tmp_path):
        assert invoke("scan", registered.stranger, tmp_path / "nothing", *WEIGHTS).exit_code == 0

    def test_nothing_auditable_even_if_strict(self, home, invoke, tmp_path):
        assert invoke("scan", tmp_path / "nothing", *WEIGHTS, "--strict").exit_code == 3
        result = invoke("scan", tmp_path / "nothing", "--depth", "weights")
        assert result.exit_code == 3
        said = " ".join(result.stdout.split())
        assert f"1 target against {', '.join(victims.names())}: 1 skipped" in said


class TestUsage:
    @pytest.fixture(autouse=True)
    def nothing_is_computed(self, monkeypatch):
        def fail(*_):
            raise AssertionError("a scan began")

        monkeypatch.setattr(module, "_scan", fail)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--output", "json=/no/such/folder/report.json"], "does not exist"),
            (["--output", "json"], "FMT=PATH"),
            (["--output", "json="], "FMT=PATH"),
            (["--output", "xml=report.xml"], "xml"),
            (["--format", "xml"], "xml"),
            (["--alpha", "2"], "--alpha"),
            (["--alpha", "nan"], "--alpha"),
            (["--timeout", "-1"], "--timeout"),
            (["--timeout", "nan"], "--timeout"),
            (["--jobs", "0"], "--jobs"),
            (["--depth", "soul"], "--depth"),
            (["--fail-on", "always"], "--fail-on"),
            (["--preprocess", "sepia"], "sepia"),
            (["--no-such-option"], "--no-such-option"),
        ],
    )
    def test_wrong_options(self, home, registered, invoke, options, says):
        result = invoke("scan", registered.int8, *options)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr

    def test_an_output_that_is_a_folder(self, home, registered, invoke, tmp_path):
        result = invoke("scan", registered.int8, "--output", f"json={tmp_path}")
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr

    def test_no_target(self, home, invoke):
        assert invoke("scan").exit_code == 2


def test_an_unknown_device(home, registered, invoke):
    result = invoke("scan", registered.int8, *WEIGHTS, "--device", "abacus")
    assert result.exit_code == 2
    assert "abacus" in result.stderr


def test_no_victim_is_registered(tmp_path, monkeypatch, registered, invoke):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "empty"))
    result = invoke("scan", registered.int8)
    assert result.exit_code == 2
    assert "fp-audit register" in result.stderr


def test_a_dry_run_opens_nothing(home, registered, invoke, monkeypatch):
    monkeypatch.setattr(module, "_scan", None)
    result = invoke("scan", registered.models, "--dry-run")
    assert result.exit_code == 0
    assert "6 models" in result.stdout
    assert "thief/int8  onnx  0 bytes to download" in result.stdout


def test_a_dry_run_of_nothing(home, invoke, tmp_path):
    assert invoke("scan", tmp_path / "nothing", "--dry-run").exit_code == 3


def test_the_table_names_verdict_target_and_reason(home, registered, invoke, tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    result = invoke("scan", registered.int8, tmp_path / "text.onnx", *WEIGHTS)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("VERDICT")
    assert lines[1].startswith("derived")
    assert any(line.startswith("skipped") for line in lines)
    assert "2 targets against owner: 1 derived, 1 skipped" in result.stdout
    assert result.stderr.strip()
