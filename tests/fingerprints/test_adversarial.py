"""FGSM, PGD and CW: closed forms on linear models, one image at a time, and the promises about ball and box."""

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network
from torch import nn

from fp_audit.fingerprints._adversarial import cw, fgsm, misclassification, pgd
from fp_audit.model import as_images

VICTIM = Tiny(network(0))
DATA = data(VICTIM)
IMAGES = torch.from_numpy(as_images(DATA.pixels[:20]))
LABELS = torch.from_numpy(DATA.labels[:20])
LOSS = misclassification(VICTIM.module, LABELS)
WEIGHT = torch.linspace(-1, 1, 16).reshape(SHAPE)


def linear(images, index):
    return (WEIGHT * images).flatten(1).sum(dim=1)


def losses(images):
    with torch.no_grad():
        return LOSS(images, torch.arange(len(images)))


ATTACKS = {
    "fgsm": lambda loss, **more: fgsm(IMAGES, loss, 0.1, **more),
    "pgd": lambda loss, **more: pgd(IMAGES, loss, 0.1, step=0.03, steps=8, **more),
    "cw": lambda loss, **more: cw(IMAGES, loss, 5.0, steps=30, learning_rate=0.02, **more),
}
each = pytest.mark.parametrize("name", ATTACKS)


def test_the_loss_is_that_of_a_loop():
    with torch.no_grad():
        logits = VICTIM.module(IMAGES[[4, 2]]).double().tolist()
    labels = [LABELS[4].item(), LABELS[2].item()]
    wanted = [np.log(np.exp(z).sum()) - z[y] for z, y in zip(logits, labels, strict=True)]
    with torch.no_grad():
        np.testing.assert_allclose(LOSS(IMAGES[[4, 2]], torch.tensor([4, 2])), wanted, rtol=1e-4)


def test_fgsm_moves_each_pixel_once():
    wanted = (IMAGES + 0.1 * WEIGHT.sign()).clamp(0, 1)
    np.testing.assert_allclose(fgsm(IMAGES, linear, 0.1), wanted, atol=1e-6)


def test_fgsm_golden_value():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]))
    image = torch.tensor([0.5, 0.95, 0.3]).reshape(1, 1, 1, 3)
    moved = fgsm(image, misclassification(module, torch.tensor([0])), 0.1)
    np.testing.assert_allclose(moved.flatten(), [0.4, 1.0, 0.3], atol=1e-6)


def test_pgd_ends_at_the_corner_of_the_ball_that_a_linear_loss_wants():
    wanted = torch.where(WEIGHT > 0, IMAGES + 0.25, IMAGES - 0.25).clamp(0, 1)
    np.testing.assert_allclose(pgd(IMAGES, linear, 0.25, step=0.1, steps=5), wanted, atol=1e-6)


def test_pgd_is_one_image_at_a_time():
    got = pgd(IMAGES, LOSS, 0.1, step=0.03, steps=8, in_flight=7)
    for n in range(len(IMAGES)):
        x = IMAGES[n : n + 1].clone()
        for _ in range(8):
            x.requires_grad_(True)
            loss = nn.functional.cross_entropy(VICTIM.module(x), LABELS[n : n + 1])
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x.detach() + 0.03 * gradient.sign()).clamp(0, 1)
            x = IMAGES[n : n + 1] + (x - IMAGES[n : n + 1]).clamp(-0.1, 0.1)
        np.testing.assert_allclose(got[n : n + 1], x, atol=1e-5)


@pytest.mark.parametrize(("step", "steps"), [(0.5, 3), (0.04, 20), (1e-3, 5)])
def test_pgd_stays_in_its_ball_and_in_the_box(step, steps):
    moved = pgd(IMAGES, LOSS, 0.05, step=step, steps=steps)
    assert (moved - IMAGES).abs().max() <= 0.05 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved != IMAGES).any()


def test_pgd_can_start_elsewhere_and_is_still_projected_around_the_images():
    start = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0))
    moved = pgd(IMAGES, LOSS, 0.05, step=0.01, steps=1, start=start)
    assert (moved - IMAGES).abs().max() <= 0.05 + 1e-6
    assert (moved - pgd(IMAGES, LOSS, 0.05, step=0.01, steps=1)).abs().max() > 0.04


def test_cw_finds_the_minimum_that_algebra_gives():
    """||d||^2 - c w.d is least at d = c w / 2, pixel by pixel, clipped to the box."""
    wanted = (IMAGES + 0.3 * WEIGHT / 2).clamp(0, 1)
    np.testing.assert_allclose(cw(IMAGES, linear, 0.3, steps=600, learning_rate=0.005), wanted, atol=2e-3)


def test_a_larger_constant_moves_further():
    near, far = (cw(IMAGES, LOSS, constant, steps=60, learning_rate=0.01) for constant in (0.01, 5.0))
    assert (near - IMAGES).square().sum() < (far - IMAGES).square().sum()


@each
def test_the_loss_grows(name):
    moved = ATTACKS[name](LOSS)
    assert losses(moved).mean() > 1.5 * losses(IMAGES).mean()


@each
def test_nothing_depends_on_the_batch(name):
    np.testing.assert_allclose(ATTACKS[name](LOSS, in_flight=3), ATTACKS[name](LOSS), atol=1e-4)


@each
def test_the_images_are_left_alone_and_the_box_is_kept(name):
    before = IMAGES.clone()
    moved = ATTACKS[name](LOSS)
    assert torch.equal(IMAGES, before)
    assert not moved.requires_grad
    assert moved.shape == IMAGES.shape
    assert moved.min() >= 0
    assert moved.max() <= 1


@each
def test_progress_is_told(name):
    told = []
    ATTACKS[name](LOSS, progress=lambda what, share: told.append((what, share)), what="attacking")
    assert told[-1] == ("attacking", 1.0)
