"""The encoder: the loss against a double loop, numpy against torch, and what training must achieve."""

import numpy as np
import pytest
import torch
from torch import nn

from fp_audit.fingerprints._encoder import LAYERS, contrastive_loss, cosines, encode, train_encoder

TRAINING = {"temperature": 0.2, "epochs": 10, "batch": 32, "learning_rate": 5e-3}


def two_kinds(count=40, width=30, seed=0):
    """Noise, with a pattern on the second half."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(2 * count, width)).astype(np.float32)
    made[count:, :8] += 1.5
    return made, np.repeat([0, 1], count)


def slow_loss(embeddings, labels, temperature):
    """Equation 7, term by term."""

    def similar(i, j):
        a, b = embeddings[i], embeddings[j]
        return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) / temperature

    total, everyone = 0.0, range(len(labels))
    for i in everyone:
        positives = [p for p in everyone if p != i and labels[p] == labels[i]]
        below = sum(np.exp(similar(i, a)) for a in everyone if a != i)
        for p in positives:
            total -= np.log(np.exp(similar(i, p)) / below) / len(positives)
    return total


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0], [2, 0, 1, 1, 0, 1, 1]])
def test_the_loss_is_that_of_a_double_loop(labels, temperature):
    embeddings = np.random.default_rng(0).normal(size=(7, 4))
    got = contrastive_loss(torch.from_numpy(embeddings), torch.tensor(labels), temperature)
    assert float(got) == pytest.approx(slow_loss(embeddings, labels, temperature), rel=1e-9)


def test_loss_golden_values():
    alone = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(contrastive_loss(alone, torch.tensor([0, 1]), 0.2)) == 0
    assert float(contrastive_loss(alone, torch.tensor([0, 0]), 0.2)) == 0
    three = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    wanted = 2 * np.log(1 + np.exp(-1 / 0.5))
    assert float(contrastive_loss(three, torch.tensor([0, 0, 1]), 0.5)) == pytest.approx(wanted, rel=1e-6)


def test_the_loss_looks_at_directions_only():
    embeddings, labels = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    scaled = embeddings * torch.linspace(0.1, 10, 9)[:, None]
    assert float(contrastive_loss(embeddings, labels, 0.2)) == pytest.approx(
        float(contrastive_loss(scaled, labels, 0.2)), rel=1e-5
    )


def test_a_small_temperature_does_not_overflow():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]], requires_grad=True)
    loss = contrastive_loss(embeddings, torch.tensor([0, 0, 1]), 1e-4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_numpy_encodes_as_torch_does():
    inputs, labels = two_kinds()
    weights = train_encoder(inputs, labels, seed=0, **TRAINING)
    widths = (inputs.shape[1], *LAYERS)
    assert [weights[f"weight{i}"].shape for i in range(3)] == [(widths[i + 1], widths[i]) for i in range(3)]
    layers = [nn.Linear(widths[i], widths[i + 1]) for i in range(3)]
    for i, layer in enumerate(layers):
        layer.load_state_dict({kind: torch.from_numpy(weights[f"{kind}{i}"]) for kind in ("weight", "bias")})
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    with torch.no_grad():
        np.testing.assert_allclose(encode(weights, inputs), module(torch.from_numpy(inputs)), rtol=1e-4, atol=1e-5)


def test_encode_golden_value():
    weights = {
        "weight0": np.array([[1.0, -1.0], [0.0, 2.0]], np.float32),
        "bias0": np.array([0.0, 1.0], np.float32),
        "weight1": np.array([[1.0, 1.0]], np.float32),
        "bias1": np.array([-10.0], np.float32),
    }
    assert encode(weights, np.array([[3.0, 1.0], [1.0, 3.0]])).tolist() == [[-5.0], [-3.0]]


def test_kinds_that_were_not_seen_come_apart():
    weights = train_encoder(*two_kinds(), seed=0, **TRAINING)
    unseen, labels = two_kinds(seed=1)
    first, second = (encode(weights, unseen)[labels == kind] for kind in (0, 1))
    assert cosines(first[:20], first[20:]).mean() > 0.5
    assert cosines(second[:20], second[20:]).mean() > 0.5
    assert cosines(first, second).mean() < 0


def test_training_lowers_the_loss():
    inputs, labels = two_kinds()
    losses = []
    for epochs in (1, 20):
        weights = train_encoder(inputs, labels, seed=0, **{**TRAINING, "epochs": epochs})
        losses.append(float(contrastive_loss(torch.from_numpy(encode(weights, inputs)), torch.from_numpy(labels), 0.2)))
    assert losses[1] < losses[0]


def test_one_step_is_adams():
    """With one batch and one epoch every weight with a gradient moves by the learning rate."""
    inputs, labels = two_kinds()
    still = train_encoder(inputs, labels, seed=0, **{**TRAINING, "epochs": 1, "batch": 80, "learning_rate": 1e-12})
    moved = train_encoder(inputs, labels, seed=0, **{**TRAINING, "epochs": 1, "batch": 80, "learning_rate": 1e-3})
    step = np.abs(moved["weight2"] - still["weight2"])
    assert np.median(step) == pytest.approx(1e-3, rel=1e-2)
    assert step.max() <= 1.01e-3


def test_seeds():
    inputs, labels = two_kinds()
    before = torch.random.get_rng_state()
    first, again, other = (train_encoder(inputs, labels, seed=seed, **TRAINING) for seed in (3, 3, 4))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["weight0"], other["weight0"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_is_told():
    told = []
    train_encoder(*two_kinds(), seed=0, **TRAINING, progress=lambda what, share: told.append(share))
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1


def test_cosines_are_those_of_a_loop():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 4))
    a[2] = 0
    wanted = [0 if not x.any() else x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosines(a, b), wanted, atol=1e-12)
