"""``fp-audit attack``."""

from __future__ import annotations

import json

import pytest


def test_a_surrogate_is_saved(home, registered, invoke, tmp_path):
    out = tmp_path / "out"
    options = ("--data", registered.data, "--out", out, "--set", "mode=dynamic")
    result = invoke("attack", "quantise", registered.stranger, *options)
    assert result.exit_code == 0, result.stderr
    assert f"{out}: onnx model made by quantise" in result.stdout
    assert "accuracy" in result.stdout
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["attack"] == "quantise"
    assert provenance["options"]["mode"] == "dynamic"
    assert (out / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such"], "no-such"),
        (["quantise", "--set", "mode"], "mode"),
        (["quantise", "--set", "mode=half"], "half"),
        (["quantise", "--set", "colour=red"], "colour"),
        (["fine-tune", "--set", "epochs=many"], "epochs"),
    ],
)
def test_wrong_options(home, registered, invoke, tmp_path, arguments, says):
    name, *options = arguments
    out = tmp_path / "out"
    result = invoke("attack", name, registered.stranger, "--data", registered.data, "--out", out, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_a_folder_that_holds_something(home, registered, invoke, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    result = invoke("attack", "quantise", registered.stranger, "--data", registered.data, "--out", tmp_path)
    assert result.exit_code == 2
    assert "exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["precious.txt"]


def test_missing_arguments(invoke):
    assert invoke("attack", "quantise", "model").exit_code == 2
    assert invoke("attack").exit_code == 2
