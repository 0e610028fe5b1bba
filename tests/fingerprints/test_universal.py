"""Universal perturbations: where algebra says they are, the loss and equation 5 against loops, and their promises."""

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network
from torch import nn

from fp_audit.fingerprints._universal import (
    GROWTH,
    GROWTHS,
    ascend,
    find_universal,
    fooling_rate,
    inconsistency,
    mean_norm,
    perturbed,
    project,
    universal_loss,
)
from fp_audit.model import as_images

VICTIM = Tiny(network(0))
PIXELS = data(VICTIM).pixels
GREY = np.full((20, *SHAPE), 128, np.uint8)


def linear(weight, bias=0.0):
    """Two classes: the first while ``weight . x < bias``."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([-weight, weight]))
        module[1].bias.copy_(torch.tensor([bias, -bias]))
    return module.eval()


def find(module=VICTIM.module, pixels=PIXELS, count=1, seed=0, **options):
    settings = {"radius": 0.3, "fooling": 0.6, "steps": 30, **options}
    return find_universal(module, pixels, count, rng=np.random.default_rng(seed), **settings)


def norms(perturbations):
    return np.linalg.norm(perturbations.reshape(len(perturbations), -1), axis=1)


def test_the_loss_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    images, patterns = torch.rand(3, 5, *SHAPE, generator=generator), torch.rand(3, *SHAPE, generator=generator) - 0.5
    labels = torch.randint(5, (3, 5), generator=generator)
    wanted = []
    for i in range(3):
        losses = []
        for j in range(5):
            logits = VICTIM.module((images[i, j] + patterns[i]).clamp(0, 1)[None])[0].tolist()
            share = np.exp(logits[labels[i, j]]) / np.exp(logits).sum()
            losses.append(min(-np.log(share), np.log(5)))
        wanted.append(np.mean(losses))
    got = universal_loss(VICTIM.module, images, labels, patterns).detach()
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert got.max() < np.log(5)


def test_an_image_that_is_surely_fooled_is_left_alone():
    module, pattern = linear(torch.ones(16), bias=2.0), torch.zeros(1, *SHAPE, requires_grad=True)
    images = torch.full((1, 1, *SHAPE), 0.5)
    fooled = universal_loss(module, images, torch.tensor([[0]]), pattern)
    assert fooled.item() == pytest.approx(np.log(2))
    assert not torch.autograd.grad(fooled.sum(), pattern)[0].any()
    held = universal_loss(module, images, torch.tensor([[1]]), pattern)
    assert held.item() < np.log(2)
    assert torch.autograd.grad(held.sum(), pattern)[0].any()


def test_projection():
    made = torch.stack([torch.full(SHAPE, 1.0), torch.full(SHAPE, 0.1), torch.zeros(SHAPE)])
    got = project(made, 2.0)
    assert torch.equal(got[1:], made[1:])
    np.testing.assert_allclose(got[0], 0.5)


def test_of_a_linear_model_it_is_the_normal_of_the_boundary():
    weight = torch.linspace(-1, 1, 16)
    module = linear(weight, bias=1.0)
    normal = (weight / weight.norm()).reshape(SHAPE).numpy()
    for found in (find(module, GREY, count=3, radius=0.8, fooling=1.0)).perturbations:
        assert (found * normal).sum() / np.linalg.norm(found) > 0.99


@pytest.mark.parametrize("bias", [1.5, 1.0, -2.0])
def test_the_radius_grows_until_the_boundary_is_crossed(bias):
    """Grey images lie ``bias / |weight|`` before the boundary: the radius is the first of its series beyond."""
    weight = torch.linspace(-1, 1, 16)
    distance = abs(bias) / float(weight.norm())
    found = find(linear(weight, bias), GREY, radius=0.1, fooling=1.0)
    series = [0.1 * GROWTH**i for i in range(GROWTHS + 1)]
    wanted = next(radius for radius in series if radius > distance)
    assert found.radius == pytest.approx(wanted)
    assert found.rate == 1
    assert norms(found.perturbations)[0] <= found.radius * (1 + 1e-5)


def test_what_cannot_be_fooled_is_given_up():
    found = find(linear(torch.ones(16), bias=1000.0), GREY)
    assert found.rate == 0
    assert found.radius == pytest.approx(0.3 * GROWTH**GROWTHS)


def test_many_at_once_are_one_at_a_time():
    """All images are one, so that it does not matter which are drawn."""
    one = np.repeat(PIXELS[:1], 30, axis=0)
    pixels, labels = torch.from_numpy(one), torch.full((30,), int(VICTIM.predict(as_images(one)).argmax(axis=1)[0]))
    start = 0.01 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    settings = {"radius": 0.5, "steps": 15}
    together = ascend(VICTIM.module, pixels, labels, start, rng=np.random.default_rng(0), **settings)
    for i in range(4):
        alone = ascend(VICTIM.module, pixels, labels, start[i : i + 1], rng=np.random.default_rng(1), **settings)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


def test_ascent_is_that_of_a_loop():
    one = PIXELS[:1]
    image, label = torch.from_numpy(as_images(one)), torch.tensor([int(VICTIM.predict(as_images(one)).argmax())])
    v = 0.01 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    got = ascend(VICTIM.module, torch.from_numpy(one), label, v, radius=0.4, steps=8, rng=np.random.default_rng(0))
    for _ in range(8):
        v = v.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(VICTIM.module((image + v).clamp(0, 1)), label)
        if loss.item() < np.log(5):
            loss.backward()
            v = v.detach() + 0.04 * v.grad / v.grad.norm()
        if v.norm() > 0.4:
            v = v * 0.4 / v.norm()
    np.testing.assert_allclose(got, v.detach(), atol=1e-5)


def test_promises():
    found = find(count=3)
    assert found.perturbations.shape == (3, *SHAPE)
    assert found.perturbations.dtype == np.float32
    assert (norms(found.perturbations) <= found.radius * (1 + 1e-5)).all()
    assert found.rate >= 0.6
    rates = [fooling_rate(VICTIM.module, PIXELS, one) for one in found.perturbations]
    assert found.rate == pytest.approx(np.mean(rates))
    assert not np.array_equal(found.perturbations[0], found.perturbations[1])


def test_the_fooling_rate_is_that_of_a_loop():
    pattern = np.random.default_rng(0).normal(scale=0.4, size=SHAPE).astype(np.float32)
    changed = 0
    for image in PIXELS:
        before = VICTIM.predict(as_images(image[None])).argmax()
        moved = np.clip(image / 255 + pattern, 0, 1)
        after = VICTIM.predict((np.rint(moved * 255) / 255)[None].astype(np.float32)).argmax()
        changed += before != after
    assert 0 < changed < len(PIXELS)
    assert fooling_rate(VICTIM.module, PIXELS, pattern) == pytest.approx(changed / len(PIXELS))


def test_perturbed_images_are_files():
    pattern = np.array([-1.0, -0.25, 0.0, 1.0] * 4, np.float32).reshape(SHAPE)
    got = perturbed(np.stack([np.zeros(SHAPE, np.uint8), GREY[0], np.full(SHAPE, 255, np.uint8)]), pattern)
    assert got.dtype == np.uint8
    assert got[:, 0, 0].tolist() == [[0, 0, 0, 255], [0, 64, 128, 255], [0, 191, 255, 255]]


def test_seeds():
    first, again, other = (find(seed=seed).perturbations for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_mean_norm():
    assert mean_norm(np.stack([np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)])) == pytest.approx(2.0)


def slow_inconsistency(victim, suspect):
    """Equation 5, sum by sum, the basis from the eigenvectors of V^T V."""
    values, vectors = np.linalg.eigh(victim.T @ victim)
    total = 0.0
    for m in range(len(values)):
        if values[m] > 1e-9 * values.max():
            theirs = sum(float(row @ vectors[:, m]) ** 2 for row in suspect)
            ours = sum(float(row @ vectors[:, m]) ** 2 for row in victim)
            total += (theirs - ours) ** 2
    return total


@pytest.mark.parametrize(("count", "width"), [(5, 16), (16, 16), (20, 16), (1, 16)])
def test_inconsistency_is_that_of_a_loop(count, width):
    victim, suspect = np.random.default_rng(0).normal(size=(2, count, width))
    assert inconsistency(victim, suspect) == pytest.approx(slow_inconsistency(victim, suspect), rel=1e-9)


def test_inconsistency_ignores_directions_that_the_victim_lacks():
    rng = np.random.default_rng(0)
    victim = rng.normal(size=(6, 3)) @ rng.normal(size=(3, 16))
    suspect = rng.normal(size=(6, 16))
    assert inconsistency(victim, suspect) == pytest.approx(slow_inconsistency(victim, suspect), rel=1e-9)


def test_inconsistency_is_zero_for_the_same_energies():
    victim = np.random.default_rng(0).normal(size=(6, *SHAPE))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    mixed = np.tensordot(rotation, victim, axes=1)
    for same in (victim, -victim, victim[::-1], mixed):
        assert inconsistency(victim, same) == pytest.approx(0, abs=1e-18)


def test_inconsistency_closed_forms():
    axes = np.eye(16)
    victim, suspect = np.diag([3.0, 2.0, 1.0]) @ axes[:3], np.diag([1.0, 2.0, 2.0]) @ axes[:3]
    assert inconsistency(victim, suspect) == pytest.approx((1 - 9) ** 2 + 0 + (4 - 1) ** 2)
    assert inconsistency(victim, axes[5:8]) == pytest.approx(81 + 16 + 1)
    assert inconsistency(2 * victim, 2 * suspect) == pytest.approx(16 * inconsistency(victim, suspect))
