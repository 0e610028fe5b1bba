"""``fp-audit scan --output bundle=PATH`` and ``fp-audit verify-bundle``: the whole way, with exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fp_audit import archive, victims

SCANNED = ("--victim", "asked", "--jobs", "1")


@pytest.fixture(scope="module")
def written(registered, tmp_path_factory):
    """The bundle and the report of a surrogate."""
    folder = tmp_path_factory.mktemp("written")
    command = [str(Path(sys.executable).with_name("fp-audit")), "scan", str(registered.int8), *SCANNED]
    command += ["--output", f"bundle={folder / 'b.zip'}", "--output", f"json={folder / 'r.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "keep it confidential" in done.stderr
    return folder


@pytest.fixture
def scanned(written, tmp_path):
    """A copy of the bundle, to be changed at will."""
    return Path(shutil.copy(written / "b.zip", tmp_path))


def members(path):
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


def test_written_and_confirmed(scanned, written, registered, invoke):
    found = members(scanned)
    assert found["report.json"] == (written / "r.json").read_bytes()
    command = json.loads(found["manifest.json"])["command"]
    assert command.startswith(f"fp-audit scan {registered.int8} --victim asked --jobs 1 --output bundle=")
    result = invoke("verify-bundle", scanned)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"same  {registered.int8} against asked: derived, p = ")
    assert lines[1] == "    computed anew: negatives, negatives-logits, sac, joint"
    assert lines[2].startswith(f"asked: commitment {victims.describe('asked')['commitment']} of ")
    assert lines[-1].startswith("confirmed")


def test_changed_and_found_out(scanned, invoke):
    found = members(scanned)
    manifest, report = (json.loads(found.pop(name)) for name in ("manifest.json", "report.json"))
    report["findings"][0] |= {"verdict": "independent", "target": "\x1b[31mred\nline"}
    del manifest["members"]
    archive.pack(scanned, {**found, "report.json": json.dumps(report).encode()}, manifest)
    result = invoke("verify-bundle", scanned)
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout
    assert 'verdict: the bundle says "independent", computed anew it is "derived"' in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("NOT CONFIRMED")


def test_commitments(scanned, invoke):
    committed = victims.describe("asked")["commitment"]
    result = invoke("verify-bundle", scanned, "--commitment", committed)
    assert result.exit_code == 0
    assert "as published" in result.stdout
    result = invoke("verify-bundle", scanned, "--commitment", "0" * 64)
    assert result.exit_code == 1
    assert f"no victim of the bundle has the commitment {'0' * 64}" in result.stdout
    assert "none of those given" in result.stdout


def test_texts_of_another_version_are_not_confirmed(scanned, invoke, tmp_path):
    found = members(scanned)
    manifest, report = (json.loads(found.pop(name)) for name in ("manifest.json", "report.json"))
    del manifest["members"]
    manifest["tool"]["version"] = report["tool"]["version"] = "0.0.1"
    found["summary.html"] = b"<h1>derived</h1>"
    archive.pack(tmp_path / "older.zip", {**found, "report.json": json.dumps(report).encode()}, manifest)
    result = invoke("verify-bundle", tmp_path / "older.zip")
    assert result.exit_code == 1
    assert "NOT COMPARED: summary.html and reasons, written by 0.0.1" in result.stdout


def test_a_victim_without_commitment(home, registered, invoke, tmp_path):
    path = victims.folder("asked") / "victim.json"
    about = json.loads(path.read_text())
    del about["commitment"]
    path.write_text(json.dumps(about))
    assert "registered by an older version" in invoke("victims", "show", "asked").stdout
    invoke("scan", registered.int8, *SCANNED, "--output", f"bundle={tmp_path / 'b.zip'}")
    result = invoke("verify-bundle", tmp_path / "b.zip")
    assert result.exit_code == 0
    assert "asked: no commitment; nothing shows that it was registered before the dispute" in result.stdout


def test_unusable_files(scanned, invoke, tmp_path):
    (tmp_path / "text.zip").write_text("text")
    (tmp_path / "short.zip").write_bytes(scanned.read_bytes()[:-100])
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as target:
        target.writestr("../x", "evil")
    torn = members(scanned)
    with zipfile.ZipFile(tmp_path / "torn.zip", "w") as target:
        for name, content in torn.items():
            target.writestr(name, content.replace(b"derived", b"DERIVED"))
    for name, says in {
        "text.zip": "not a readable zip archive",
        "short.zip": "not a readable zip archive",
        "evil.zip": "unexpected member '../x'",
        "torn.zip": "report.json does not match its sha256",
        "nothing.zip": "No such file",
        ".": "directory",
    }.items():
        result = invoke("verify-bundle", tmp_path / name)
        assert result.exit_code == 2
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


def test_a_path_that_cannot_be_written_is_told_before_the_scan(home, registered, invoke, tmp_path):
    result = invoke("scan", registered.int8, *SCANNED, "--output", f"bundle={tmp_path}/no/b.zip")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
    assert "scanning" not in result.stderr


def test_help_tells_of_it(invoke):
    assert "bundle=PATH.zip" in invoke("scan", "--help").stdout


def test_register_prints_the_commitment(home, registered, invoke):
    result = invoke("register", registered.stranger, "--name", "new")
    assert result.exit_code == 0
    committed = victims.describe("new")["commitment"]
    assert f"commitment {committed}" in result.stdout
    assert "before any dispute" in result.stdout
    assert f"commitment {committed}" in invoke("victims", "show", "new").stdout
