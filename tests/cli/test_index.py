"""``fp-audit index``."""

from __future__ import annotations

import shutil

import pytest
from builders import hf_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("indexed")
    hf_folder(root / "mine", seed=1)
    shutil.copytree(root / "mine", root / "many" / "copy")
    hf_folder(root / "many" / "stranger", seed=2)
    (root / "many" / "pickled").mkdir()
    (root / "many" / "pickled" / "model.pt").write_bytes(b"x")
    return root


def test_build_and_search(models, tmp_path, monkeypatch, invoke):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path))
    result = invoke("index", "build", models / "many", "--jobs", "1")
    assert result.exit_code == 0
    assert result.stdout == f"2 models added, 0 known, 1 skipped; 2 models in {tmp_path}/index.sqlite3\n"
    assert "pickle" in result.stderr
    assert "0 models added, 2 known" in invoke("index", "build", models / "many").stdout

    result = invoke("index", "search", models / "mine")
    assert result.exit_code == 0
    _, first, second, said = result.stdout.splitlines()
    assert first.split()[0] == "1.00"
    assert first.endswith(f"similar: scan it  {models}/many/copy")
    assert second.endswith(f"like any other    {models}/many/stranger")
    assert "not evidence" in said
    assert "fp-audit scan" in said
    assert invoke("index", "search", models / "mine", "--hits").stdout == f"{models}/many/copy\n"


def test_nothing_to_look_for(models, tmp_path, monkeypatch, invoke):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path))
    for arguments, says in {
        ("search", models / "mine"): "no such index",
        ("search",): "expected either MODEL",
        ("search", "x", "--victims"): "expected either MODEL",
    }.items():
        result = invoke("index", *arguments)
        assert result.exit_code == 2
        assert says in result.stderr
    result = invoke("index", "build", tmp_path / "nothing", "--out", tmp_path / "i")
    assert result.exit_code == 3
    result = invoke("index", "search", "--victims", "--index", tmp_path / "i")
    assert result.exit_code == 2
    assert "no victim is registered" in result.stderr
    result = invoke("index", "search", tmp_path / "nothing", "--index", tmp_path / "i")
    assert result.exit_code == 3
    assert "skipped" in result.stderr
