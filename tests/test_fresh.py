"""The victim's architecture once more: every kind of model, nothing of its weights."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import onnx
import pytest
from builders import hf_folder, pixels, timm_folder
from onnx import TensorProto, helper, numpy_helper

from fp_audit.fresh import Architecture
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

KINDS = ("resnet", "vit", "timm", "onnx")
SAMPLE = pixels(2, 32)


def write(kind, folder):
    if kind == "timm":
        return timm_folder(folder, classes=7, config={"input_size": (3, 32, 32)})
    if kind == "onnx":
        return graph(folder)
    return hf_folder(folder, kind=kind)


def graph(folder):
    """A convolution with BatchNormalization and a matrix product, for 3 x 32 x 32 images."""
    rng = np.random.default_rng(0)
    values = {
        "filters": rng.normal(size=(8, 3, 3, 3)),
        "scale": rng.normal(size=8),
        "shift": rng.normal(size=8),
        "mean": rng.normal(size=8),
        "variance": rng.uniform(1, 2, size=8),
        "weight": rng.normal(size=(8, 7)),
        "bias": rng.normal(size=7),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "weight", "bias"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    folder.mkdir()
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def architecture_of(path):
    located = locate_one(str(path), SourceOptions(offline=True))
    preprocess = NAMED["imagenet"] if located.artifact.adapter == "onnx" else None
    return Architecture(located.artifact.adapter, located.artifact, LoadOptions("nowhere", preprocess=preprocess))


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: architecture_of(write(kind, folder / kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_weights_is_left(kind, architectures):
    made = architectures[kind]
    before = adapter(made.adapter).tensors(made.artifact)
    fresh = made.fresh(seed=1, sample=SAMPLE)
    after = fresh.tensors()
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    for name, value in after.items():
        if value.ndim >= 2 and value.size > 32:
            assert np.std(value) > 0, name
            assert abs(np.corrcoef(before[name].ravel(), value.ravel())[0, 1]) < 0.5, name
    assert fresh.predict(as_images(SAMPLE)).shape == (2, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_draw_follows_from_the_seed(kind, architectures):
    first, again, other = (architectures[kind].fresh(seed=seed, sample=SAMPLE).tensors() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["resnet", "onnx"])
def test_it_travels_to_another_process(kind, architectures):
    made = architectures[kind]
    sent = pickle.loads(pickle.dumps(made))
    assert sent == made
    assert sent.digest == made.digest
    drawn = [each.fresh(seed=1, sample=SAMPLE).predict(as_images(SAMPLE)) for each in (made, sent)]
    np.testing.assert_array_equal(*drawn)


def test_the_digest_follows_weights_and_preprocessing(tmp_path, architectures):
    made = architectures["resnet"]
    same, other = (architecture_of(hf_folder(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    chosen = replace(made, opening=LoadOptions(preprocess=NAMED["-1..1"]))
    assert same.digest == made.digest
    assert len({made.digest, other.digest, chosen.digest}) == 3


def test_statistics_in_an_onnx_file_are_forgotten(architectures):
    made = architectures["onnx"]
    fresh, before = made.fresh(seed=1, sample=SAMPLE).tensors(), adapter("onnx").tensors(made.artifact)
    assert np.array_equal(fresh["mean"], np.zeros(8))
    assert np.array_equal(fresh["variance"], np.ones(8))
    assert np.array_equal(fresh["scale"], np.ones(8))
    assert np.array_equal(fresh["shift"], np.zeros(8))
    assert np.array_equal(fresh["bias"], np.zeros(7))
    assert not np.isclose(fresh["weight"], before["weight"]).any()
