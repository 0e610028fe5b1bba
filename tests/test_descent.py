"""The batched search: each item against itself alone, torch's own optimisers as oracles, and its promises."""

import numpy as np
import pytest
import torch
from torch import nn

from fp_audit.descent import Adam, Plain, Sign, as_pixels, ball, box, from_pixels, search

SHAPE = (1, 4, 4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))


MODULE = network()
START = torch.rand(23, *SHAPE, generator=torch.Generator().manual_seed(1))
GOAL = torch.arange(23) % 5


def objective(margin=0.4, module=MODULE, goal=GOAL):
    """Push the goal's logit above all others by a margin."""

    def loss(x, index):
        logits = module(x)
        wanted = logits.gather(1, goal[index, None])[:, 0]
        others = logits.scatter(1, goal[index, None], float("-inf")).amax(dim=1)
        gap = others - wanted + margin
        return gap, gap <= 0

    return loss


@pytest.mark.parametrize("rule", [Adam(0.05), Sign(0.05), Plain(0.5), Plain(0.2, normalised=True)])
@pytest.mark.parametrize("in_flight", [1, 4, 7, 100])
def test_a_batch_is_one_item_at_a_time(rule, in_flight):
    together = search(START, objective(), rule, steps=40, in_flight=in_flight)
    for i in range(len(START)):
        alone = search(START[i : i + 1], objective(goal=GOAL[i : i + 1]), rule, steps=40)
        np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-5)
        assert together.steps[i] == alone.steps[0]
        assert together.done[i] == alone.done[0]
    assert together.done.any()
    assert len(set(together.steps.tolist())) > 3


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (Adam(0.02), lambda x: torch.optim.Adam([x], lr=0.02)),
        (Adam(0.05, 0.5, 0.9), lambda x: torch.optim.Adam([x], lr=0.05, betas=(0.5, 0.9))),
        (Plain(0.05), lambda x: torch.optim.SGD([x], lr=0.05)),
    ],
)
def test_rules_are_those_of_torch(rule, make):
    for i in range(4):
        x = START[i : i + 1].clone().requires_grad_(True)
        optimizer = make(x)
        for _ in range(15):
            optimizer.zero_grad()
            objective(goal=GOAL[i : i + 1])(x, torch.tensor([0]))[0].sum().backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        never = objective(goal=GOAL[i : i + 1])
        found = search(START[i : i + 1], lambda x, n, f=never: (f(x, n)[0], n < 0), rule, steps=15)
        np.testing.assert_allclose(found.images, x.detach(), atol=1e-5)


def test_the_sign_rule_on_a_linear_loss_is_arithmetic():
    weight = torch.linspace(-1, 1, 16).reshape(SHAPE)
    found = search(
        torch.full((1, *SHAPE), 0.5),
        lambda x, index: ((x * weight).sum(dim=(1, 2, 3)), index < 0),
        Sign(0.03),
        steps=7,
    )
    np.testing.assert_allclose(found.images[0], 0.5 - 0.21 * weight.sign(), atol=1e-6)
    assert found.steps.tolist() == [7]
    assert not found.done.any()


def test_normalised_steps_have_one_length():
    found = search(START, lambda x, index: (MODULE(x)[:, 0], index < 0), Plain(0.05, normalised=True), steps=1)
    inside = (found.images > 0).flatten(1).all(1) & (found.images < 1).flatten(1).all(1)
    lengths = (found.images - START).flatten(1).norm(dim=1)
    assert inside.any()
    np.testing.assert_allclose(lengths[inside], 0.05, rtol=1e-5)


def test_what_is_done_at_the_start_does_not_move():
    found = search(START, lambda x, index: (MODULE(x).sum(1), index >= 0), Adam(0.1), steps=9)
    assert torch.equal(found.images, START)
    assert found.done.all()
    assert not found.steps.any()


def test_no_steps_and_no_items():
    found = search(START, objective(), Adam(0.1), steps=0)
    assert torch.equal(found.images, START)
    empty = search(START[:0], objective(), Adam(0.1), steps=5)
    assert empty.images.shape == (0, *SHAPE)


def test_the_box_and_the_ball_hold():
    found = search(START, objective(100.0), Sign(0.3), steps=12)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    near = search(START, objective(100.0), Sign(0.03), steps=12, project=ball(START, 0.1), in_flight=5)
    assert near.images.min() >= 0
    assert near.images.max() <= 1
    distance = (near.images - START).abs().flatten(1).amax(dim=1)
    assert distance.max() <= 0.1 + 1e-6
    assert distance.median() > 0.09


def test_the_ball_is_around_the_items_own_origin():
    origin = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
    project = ball(origin, 0.25)
    moved = project(torch.full((2, *SHAPE), 0.5), torch.tensor([1, 0]))
    assert moved[0].unique().tolist() == [0.75]
    assert moved[1].unique().tolist() == [0.25]
    assert box(torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0])).tolist() == [0, 0.5, 1]


def test_no_more_than_the_allowed_are_in_flight_and_free_places_are_filled():
    sizes = []

    def watched(x, index):
        sizes.append(len(x))
        return objective()(x, index)

    search(START, watched, Adam(0.02), steps=40, in_flight=8)
    assert max(sizes) == 8
    assert min(sizes[: len(sizes) // 3]) > 6 - 2


def test_progress_goes_up_to_one():
    told = []
    search(START, objective(), Adam(0.02), steps=40, in_flight=8, progress=lambda what, done: told.append((what, done)))
    shares = [done for _, done in told]
    assert {what for what, _ in told} == {"searching for images"}
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == 1


def test_the_model_is_left_alone():
    module = network(3)
    before = [parameter.clone() for parameter in module.parameters()]
    search(START, objective(module=module), Adam(0.02), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not START.requires_grad


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(as_pixels(from_pixels(pixels)), pixels)
    assert as_pixels(torch.tensor([-0.1, 1.2])).tolist() == [0, 255]
