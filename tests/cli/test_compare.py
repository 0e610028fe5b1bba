"""``fp-audit compare``."""

from __future__ import annotations

import json
import shutil

import numpy as np
from safetensors.numpy import save_file


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


def test_a_file_that_is_the_base_models_too_proves_nothing(home, invoke, tmp_path):
    """Two fine-tunes of one model, of which a shard was frozen."""
    rng = np.random.default_rng(0)
    body = {"body.weight": rng.standard_normal((32, 48)).astype(np.float32)}
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        head = {"head.weight": rng.standard_normal((10, 32)).astype(np.float32)}
        shards = {f"model-0000{i}-of-00002.safetensors": part for i, part in ((1, body), (2, head))}
        for shard, part in shards.items():
            save_file(part, tmp_path / name / shard)
        places = {tensor: shard for shard, part in shards.items() for tensor in part}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    models = (tmp_path / "a", tmp_path / "b")
    without = invoke("compare", *models)
    assert without.exit_code == 1, without.stderr
    assert without.stdout.splitlines()[1].startswith("derived")
    known = invoke("compare", *models, "--base", tmp_path / "base")
    assert known.exit_code == 0, known.stdout
    assert known.stdout.splitlines()[1].startswith(("inconclusive", "common-ancestor"))
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert invoke("compare", tmp_path / "a", copy, "--base", tmp_path / "base").exit_code == 1
