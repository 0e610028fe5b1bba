"""Sketches: what leaves them alone, what changes them, and that independent weights are not alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fp_audit import sketches
from fp_audit.families import build
from fp_audit.sketches import SIMILAR, Sketch, similarities, sketch


def weights(seed=0, kind="plain"):
    """Untrained networks: three convolutions with BatchNorm, and a linear layer or two."""
    torch.manual_seed(seed)
    network = build(kind, 16, 10, (3, 16, 16))
    return [value.numpy().copy() for value in network.state_dict().values()]


def near(one, other):
    return float(similarities(sketch(one), sketch(other).views[None])[0])


def views(one, other):
    """The cosine of each view."""
    product = sketch(one).views.astype(float) * sketch(other).views.astype(float)
    return dict(zip(sketches.VIEWS, product.sum(axis=1), strict=True))


@pytest.fixture(scope="module")
def mine():
    return weights()


def test_independent_weights_are_not_alike():
    made = [sketch(weights(seed)) for seed in range(12)]
    stacked = np.stack([one.views for one in made])
    found = np.stack([similarities(one, stacked) for one in made])[np.triu_indices(12, 1)]
    assert found.max() < SIMILAR
    assert abs(found.mean()) < 0.15


@pytest.mark.parametrize("kind", ["residual", "lenet", "depthwise"])
def test_other_architectures_are_not_alike(mine, kind):
    assert near(mine, weights(3, kind)) < SIMILAR


def test_order_and_other_tensors_do_not_matter(mine):
    assert near(mine, [*reversed(mine), np.float32(3), np.arange(5), np.ones((2, 2), np.float32)]) > 0.999


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_casting(mine, kind):
    assert near(mine, [tensor.astype(kind) for tensor in mine]) > 0.999


def test_noise_and_pruning(mine):
    rng = np.random.default_rng(0)
    noisy = [tensor + 0.1 * tensor.std() * rng.normal(size=tensor.shape).astype(np.float32) for tensor in mine]
    pruned = [np.where(abs(tensor) > np.quantile(abs(tensor), 0.5), tensor, 0) for tensor in mine]
    assert near(mine, noisy) > 0.9
    assert near(mine, pruned) > 0.8


def test_scales_of_channels(mine):
    rng = np.random.default_rng(0)
    scaled = [
        tensor * rng.uniform(0.3, 3, (len(tensor), 1, 1, 1)).astype(np.float32) if tensor.ndim == 4 else tensor
        for tensor in mine
    ]
    assert near(mine, scaled) > 0.999


def test_permuted_channels_are_seen_by_the_sets(mine):
    rng = np.random.default_rng(0)
    permuted = [
        tensor[rng.permutation(len(tensor))][:, rng.permutation(tensor.shape[1])] if tensor.ndim == 4 else tensor
        for tensor in mine
    ]
    found = views(mine, permuted)
    assert found["place"] < 0.6
    assert found["taps"] > 0.99
    assert near(mine, permuted) > 0.99


def test_signs_of_rows_are_seen_by_the_sets():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 20)).astype(np.float32)
    flipped = matrix[rng.permutation(40)] * rng.choice([-1, 1], (40, 1)).astype(np.float32)
    found = views([matrix], [flipped])
    assert abs(found["place"]) < 0.3
    assert found["rows"] > 0.8  # the mean of a column is taken out, and changes with the signs


@pytest.mark.parametrize("shape", [(24, 24), (30, 20), (20, 30)])
def test_transposed_linear_layers(shape):
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert near([matrix], [matrix.T]) > 0.999


def test_a_shared_part_has_its_share(mine):
    other = weights(5)
    matrices = [tensor for tensor in mine if tensor.ndim > 1]
    half = len(matrices) // 2
    mixed = matrices[:half] + [tensor for tensor in other if tensor.ndim > 1][half:]
    assert abs(views(mine, mixed)["place"] - half / len(matrices)) < 0.25


def test_the_random_numbers_are_those_of_splitmix64():
    state, expected = 12345, []
    for _ in range(3):  # as published: one state, advanced by the constant
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(word ^ (word >> 31))
    states = (12345 + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert sketches._mixed(states).tolist() == expected


def test_a_golden_value():
    """Sketches are kept for years: what they are made of must not change unless ``VERSION`` does."""
    made = sketch([np.sin(np.arange(12 * 10 * 9, dtype=np.float32) ** 1.5).reshape(12, 10, 3, 3)])
    assert sketches.VERSION == 1
    assert made.shapes == {"12x10x9": 1}
    assert np.allclose(made.views[:, :4].astype(float), GOLDEN, atol=2e-3)


GOLDEN = (
    (-0.0156, 0.0558, 0.0665, -0.033),
    (0.0339, -0.0723, 0.0049, -0.0311),
    (0.0494, -0.0992, 0.087, 0.0399),
    (-0.0095, 0.0806, 0.0868, -0.0016),
)


def test_weights_that_are_nothing():
    with pytest.raises(ValueError, match="no weight matrix"):
        sketch([np.ones(100, np.float32), np.ones((4, 4), np.float32)])
    with pytest.raises(ValueError, match="no weight matrix"):
        sketch([np.where(np.eye(64) > 0, np.float32(0), np.float32(-100))])
    bad = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    assert np.isfinite(sketch([bad]).views).all()


def test_json_there_and_back(mine):
    made = sketch(mine)
    again = Sketch.from_json(json.loads(json.dumps(made.to_json())))
    assert np.allclose(again.views, made.views, atol=1e-3)
    assert again.shapes == made.shapes


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"views": [[1.0]], "shapes": {}},
        {"views": [["x"] * 256] * 4, "shapes": {}},
        {"views": [[float("nan")] * 256] * 4, "shapes": {}},
        {"views": [[0.0] * 256] * 4, "shapes": [1]},
        {"views": [[0.0] * 256] * 4, "shapes": {"a": "b"}},
    ],
)
def test_what_is_no_sketch(data):
    with pytest.raises(ValueError, match=r"not a sketch|could not convert|invalid literal"):
        Sketch.from_json(data)
