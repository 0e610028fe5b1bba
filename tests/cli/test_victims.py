"""``fp-audit victims``."""

from __future__ import annotations

import json

import pytest

from fp_audit import victims


def test_list(home, registered, invoke):
    result = invoke("victims", "list")
    assert result.exit_code == 0
    asked, owner = result.stdout.splitlines()
    assert asked.startswith("asked  ")
    assert owner.startswith(f"owner  {registered.victim}  huggingface  ")
    assert "negatives-logits" in owner


def test_an_empty_list(tmp_path, monkeypatch, invoke):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "empty"))
    result = invoke("victims", "list")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert str(tmp_path / "empty") in result.stderr


def test_show(home, invoke):
    result = invoke("victims", "show", "owner")
    assert result.exit_code == 0
    assert result.stdout.startswith("owner: ")
    assert "sac" in result.stdout


def test_show_as_json(home, invoke):
    result = invoke("victims", "show", "owner", "--json")
    about = json.loads(result.stdout)
    assert about["name"] == "owner"
    assert len(about["nulls"]["sac"]["scores"]) == 8


def test_remove(home, invoke):
    assert invoke("victims", "remove", "asked").exit_code == 0
    assert victims.names() == ["owner"]
    assert invoke("victims", "remove", "asked").exit_code == 2


@pytest.mark.parametrize("command", ["show", "remove"])
@pytest.mark.parametrize("name", ["nobody", "../victims/owner", ""])
def test_an_unknown_name(home, invoke, command, name):
    result = invoke("victims", command, name)
    assert result.exit_code == 2
    assert result.stderr.startswith("fp-audit: ")
    assert victims.names() == ["asked", "owner"]


def test_a_damaged_register_does_not_hide_the_others(home, invoke):
    (victims.folder("asked") / "victim.json").write_text("{")
    assert invoke("victims", "show", "asked").exit_code == 2
    result = invoke("victims", "list")
    assert "Traceback" not in result.stderr
    assert "owner" in result.stdout


def test_export_and_import(home, registered, invoke, tmp_path, monkeypatch):
    archive = tmp_path / "asked.zip"
    result = invoke("victims", "export", "asked", "--out", archive)
    assert result.exit_code == 0
    assert "keep it confidential" in result.stderr
    committed = victims.describe("asked")["commitment"]
    assert committed in result.stdout
    expected = invoke("scan", registered.int8, "--victim", "asked", "--jobs", "1", "--format", "json")
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "pipeline"))
    result = invoke("victims", "import", archive)
    assert result.exit_code == 0
    assert f"commitment {committed}" in result.stdout
    found = invoke("scan", registered.int8, "--jobs", "1", "--format", "json")
    (ours,), (theirs,) = (json.loads(text)["findings"] for text in (found.stdout, expected.stdout))
    assert {**ours, "cost": None} == {**theirs, "cost": None}
    again = invoke("victims", "import", archive)
    assert again.exit_code == 2
    assert len(again.stderr.splitlines()) == 1
    assert invoke("victims", "import", archive, "--replace").exit_code == 0
