"""``fp-audit register``."""

from __future__ import annotations

import pytest

from fp_audit import victims


def test_it_says_what_can_be_told(home, registered, invoke):
    options = ("--data", registered.data, "--methods", "identity, negatives,weights", "--queries", "20")
    result = invoke("register", registered.stranger, "--name", "new", *options)
    assert result.exit_code == 0, result.stderr
    assert f"registered new: {registered.stranger} (onnx, right on" in result.stdout
    assert "images are preprocessed as: 0..1" in result.stdout
    for method in ("identity", "negatives", "weights"):
        assert method in result.stdout
    assert "generating negatives" in result.stderr
    assert "generating" not in result.stdout
    assert set(victims.load(victims.folder("new")).fingerprints) == {"identity", "negatives", "weights"}
    assert len(victims.load(victims.folder("new")).fingerprints["negatives"].arrays["queries"]) <= 20


def test_without_data(home, registered, shell):
    done = shell("register", registered.stranger, "--name", "new")
    assert done.returncode == 0, done.stderr
    assert "weights" in done.stdout
    assert victims.folder("new").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "owner"], "'owner' exists"),
        (["--name", "../x"], "cannot name a victim"),
        (["--name", "new", "--methods", "no-such"], "no-such"),
        (["--name", "new", "--methods", "sac"], "data"),
        (["--name", "new", "--data", "/no/such.npz"], "/no/such.npz"),
        (["--name", "new", "--queries", "0"], "--queries"),
        (["--name", "new", "--train-references", "3"], "--data"),
        (["--name", "new", "--references", "/no/such/model"], "--references"),
        (["--name", "new", "--seed", "-1"], "--seed"),
        (["--name", "new", "--preprocess", "sepia"], "sepia"),
        (["--name", "new", "--device", "abacus"], "abacus"),
        ([], "--name"),
    ],
)
def test_wrong_options(home, registered, invoke, options, says):
    result = invoke("register", registered.stranger, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert victims.names() == ["asked", "owner"]


def test_a_model_that_is_not_there(home, invoke, tmp_path):
    result = invoke("register", tmp_path / "nothing", "--name", "new")
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
