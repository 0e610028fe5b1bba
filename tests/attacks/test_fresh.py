from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fp_audit.attacks._fresh import student
from fp_audit.attacks._hf_shapes import MODEL_TYPES
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions
from fp_audit.preprocess import Preprocess
from fp_audit_adapters._hf_families import ARCHITECTURES


def task(*, channels=3, side=16, draw=0, victims="onnx", preprocess=None):
    """As much of a task as a student is built from."""
    return SimpleNamespace(
        draw=draw,
        data=SimpleNamespace(pixels=np.zeros((2, channels, side, side), np.uint8)),
        opening=LoadOptions(preprocess=preprocess),
        adapter=SimpleNamespace(name=victims),
    )


def built(architecture, size=0, classes=10, **about):
    return student(task(**about), {"architecture": architecture, "size": size}, classes)


def test_every_supported_architecture_of_transformers_has_a_shape():
    assert set(MODEL_TYPES) == {family.model_type for family in ARCHITECTURES.values()}


@pytest.mark.parametrize(
    ("model_type", "channels"),
    [
        *((model_type, 3) for model_type in MODEL_TYPES),
        *((model_type, 1) for model_type in ("clip", "hgnet_v2", "vit")),
    ],
)
def test_networks_of_transformers_are_small_and_answer_images(model_type, channels):
    model, adapter = built(f"hf:{model_type}", channels=channels)
    assert adapter.name == "huggingface"
    answers = model.module(torch.rand(2, channels, 16, 16))
    assert answers.shape == (2, 10)
    assert answers.isfinite().all()
    assert sum(parameter.numel() for parameter in model.module.parameters()) < 2_000_000


@pytest.mark.parametrize(("size", "expected"), [(0, 64), (32, 32), (96, 96)])
@pytest.mark.parametrize("architecture", ["hf:vit", "test_vit"])
def test_images_are_resized(architecture, size, expected):
    model, _ = built(architecture, size)
    assert (model.spec.height, model.spec.width) == (expected, expected)


def test_large_images_keep_their_size():
    model, _ = built("hf:resnet", side=80)
    assert model.spec.height == 80


@pytest.mark.parametrize("architecture", ["hf:resnet", "test_resnet"])
def test_weights_follow_from_the_seed(architecture):
    torch.manual_seed(7)
    first, again, other = (built(architecture, draw=draw)[0].tensors() for draw in (1, 1, 2))
    assert torch.initial_seed() == 7
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("architecture", ["hf:resnet", "test_resnet"])
def test_a_victim_of_the_same_kind_lends_its_preprocessing(architecture):
    kind = "huggingface" if architecture.startswith("hf:") else "timm"
    lent = Preprocess(mean=(0.25,), std=(0.125,))
    model, _ = built(architecture, victims=kind, preprocess=lent)
    other, _ = built(architecture, victims="onnx", preprocess=lent)
    black = torch.zeros(1, 3, 16, 16)
    assert model.prepare(black).unique().tolist() == [-2.0]
    assert other.prepare(black).unique().tolist() == [-1.0]
    assert model.prepare(black).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("no_such_net", 0, "architecture is 'no_such_net': expected 'same', a name of timm"),
        ("hf:no_such_type", 0, "architecture is 'hf:no_such_type': expected hf: and one of beit, bit"),
        ("test_vit", 7, "test_vit cannot be built for 7x7 images"),
        ("hf:vit", 7, "hf:vit cannot be built for 7x7 images"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_a_usage_error(architecture, size, message):
    with pytest.raises(UsageError, match=message) as error:
        built(architecture, size)
    assert "\n" not in str(error.value)
