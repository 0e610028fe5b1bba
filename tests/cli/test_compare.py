"""``fp-audit compare``."""

from __future__ import annotations

import shutil


def test_a_copy_is_1(home, registered, invoke, tmp_path):
    copy = shutil.copy(registered.stranger, tmp_path / "copy.onnx")
    result = invoke("compare", registered.stranger, copy)
    assert result.exit_code == 1
    assert "identical" in result.stdout


def test_a_derived_model_is_1(home, registered, invoke):
    result = invoke("compare", registered.victim, registered.int8)
    assert result.exit_code == 1
    assert "derived" in result.stdout
    assert str(registered.victim) in result.stdout


def test_independents_are_0(home, registered, shell):
    done = shell("compare", registered.stranger, registered.int8)
    assert done.returncode == 0, done.stderr
    assert "opening the model" in done.stderr


def test_b_that_is_no_model_is_3(home, registered, invoke, tmp_path):
    (tmp_path / "b.onnx").write_text("text")
    result = invoke("compare", registered.stranger, tmp_path / "b.onnx")
    assert result.exit_code == 3
    assert "skipped" in result.stdout


def test_a_that_is_no_model_is_2(home, registered, invoke, tmp_path):
    result = invoke("compare", tmp_path / "a", registered.stranger)
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_data_that_is_not_there_is_2(home, registered, invoke):
    result = invoke("compare", registered.stranger, registered.int8, "--data", "/no/such.npz")
    assert result.exit_code == 2
    assert "/no/such.npz" in result.stderr
