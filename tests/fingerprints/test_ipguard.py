"""IPGuard: the loss against a loop, the batch against one image at a time with torch's own Adam, and its promises."""

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network, subject
from torch import nn

from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints.ipguard import IPGuard, boundary_loss, boundary_points, choose_targets, mean_margin
from fp_audit.model import as_images

VICTIM = Tiny(network(0))
DATA = data(VICTIM)
FAST = {"queries": 12, "steps": 150, "batch": 16, "learning_rate": 0.02}


def generate(seed=0, victim=VICTIM, **options):
    return IPGuard(**{**FAST, **options}).generate(subject(victim), DATA, seed=seed)


@pytest.mark.parametrize("how", ["least", "random"])
def test_the_target_is_never_the_source(how):
    logits = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    goal = choose_targets(logits, how, np.random.default_rng(0))
    assert (goal != logits.argmax(dim=1)).all()
    assert set(goal.tolist()) == set(range(5))
    if how == "least":
        np.testing.assert_array_equal(goal, logits.argmin(dim=1))


def test_random_targets_of_two_classes():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert choose_targets(logits, "random", np.random.default_rng(0)).tolist() == [0, 1]


def test_the_loss_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(60, 5, generator=generator)
    source, goal = logits.argmax(dim=1), logits.argmin(dim=1)
    logits = logits.flip(0)
    wanted = []
    for z, i, j in zip(logits.tolist(), source.tolist(), goal.tolist(), strict=True):
        third = max(z[t] for t in range(5) if t not in (i, j))
        wanted.append(max(z[i] - z[j] + 0.7, 0) + max(third - z[i], 0))
    np.testing.assert_allclose(boundary_loss(logits, source, goal, 0.7), wanted, rtol=1e-5)


def test_loss_golden_values():
    logits, i, j = torch.tensor([[1.0, 3.0, 0.5]]), torch.tensor([0]), torch.tensor([1])
    assert boundary_loss(logits, i, j, 2.0).tolist() == [0.0]
    assert boundary_loss(logits, i, j, 2.5).tolist() == [0.5]
    assert boundary_loss(logits, j, i, 1.0).tolist() == [3.0]
    assert boundary_loss(logits[:, :2], i, j, 2.5).tolist() == [0.5]


def test_the_batch_is_one_image_at_a_time():
    images = torch.from_numpy(as_images(DATA.pixels[:10]))
    with torch.no_grad():
        logits = VICTIM.module(images)
    source, goal = logits.argmax(dim=1), logits.argmin(dim=1)
    got = boundary_points(VICTIM.module, images, source, goal, 1.0, 60, 0.02)
    finished = 0
    for n in range(10):
        x = images[n : n + 1].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            loss = boundary_loss(VICTIM.module(x), source[n : n + 1], goal[n : n + 1], 1.0)
            if loss.item() == 0:
                finished += 1
                break
            loss.sum().backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        np.testing.assert_allclose(got[n : n + 1], x.detach(), atol=2e-4)
    assert finished > 0


def test_finished_images_are_left_alone():
    images = torch.full((1, *SHAPE), 0.5)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        linear[1].weight.zero_()
        linear[1].bias.copy_(torch.tensor([1.0, 3.0, 0.0]))
    got = boundary_points(linear, images, torch.tensor([0]), torch.tensor([1]), 1.0, 20, 0.1)
    assert torch.equal(got, images)


def test_a_linear_model_is_crossed_where_algebra_says():
    """Adam moves each pixel by the step against the sign of the gradient: the crossing lies at a known step."""
    weight = torch.linspace(-1, 1, 16)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([weight, -weight, 0 * weight]))
        module[1].bias.copy_(torch.tensor([1.0, 0.0, -50.0]))
    images = torch.full((1, *SHAPE), 0.5)
    got = boundary_points(module, images, torch.tensor([0]), torch.tensor([1]), 0.5, 200, 0.01)
    slope = 2 * weight.abs().sum().item()
    steps = int(np.ceil(1.5 / (0.01 * slope)))
    wanted = 0.5 - 0.01 * steps * weight.sign().reshape(SHAPE)
    np.testing.assert_allclose(got[0], wanted, atol=1e-4)
    z = module(got)[0]
    assert 0.5 <= (z[1] - z[0]).item() <= 0.5 + 0.01 * slope


@pytest.mark.parametrize("target", ["least", "random"])
def test_kept_images_are_over_the_boundary_after_rounding(target):
    kept = generate(target=target)
    queries, labels = kept.arrays["queries"], kept.arrays["labels"]
    assert queries.dtype == np.uint8
    answers = VICTIM.predict(as_images(queries))
    np.testing.assert_array_equal(answers.argmax(axis=1), labels)
    seconds = np.argsort(answers, axis=1)[:, -2]
    assert (seconds != labels).all()
    assert 0 < len(queries) == kept.facts["queries"] <= 12
    assert IPGuard().compare(kept, subject(VICTIM)).value == 1


def test_the_box_is_respected():
    images = torch.from_numpy(as_images(DATA.pixels[:20]))
    logits = VICTIM.module(images).detach()
    got = boundary_points(VICTIM.module, images, logits.argmax(dim=1), logits.argmin(dim=1), 50.0, 60, 0.1)
    assert got.min() >= 0
    assert got.max() <= 1
    assert ((got == 0) | (got == 1)).any()


def test_the_margin_is_relative_to_the_victims():
    top = [sorted(row)[-2:] for row in VICTIM.predict(as_images(DATA.pixels)).tolist()]
    margin = float(np.mean([b - a for a, b in top]))
    assert mean_margin(VICTIM, DATA) == pytest.approx(margin, rel=1e-5)
    assert generate(k=0.25).facts["margin"] == pytest.approx(0.25 * margin, rel=1e-5)
    assert generate(k=0.25, relative=False).facts["margin"] == 0.25


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_the_budget_is_respected(queries):
    kept = generate(queries=queries)
    assert len(kept.arrays["queries"]) == len(kept.arrays["labels"]) <= queries
    assert kept.facts["tried"] <= min(120, 4 * queries + 2 * 16)


def test_seeds():
    first, again, other = generate(3), generate(3), generate(4)
    np.testing.assert_array_equal(first.arrays["queries"], again.arrays["queries"])
    assert not np.array_equal(first.arrays["queries"], other.arrays["queries"])


def test_an_unreachable_boundary_is_said():
    with pytest.raises(NotApplicable, match="try a smaller k"):
        generate(steps=1, learning_rate=1e-6)


def test_constant_answers_are_said():
    module = network(0)
    with torch.no_grad():
        module[3].weight.zero_()
        module[3].bias.zero_()
    with pytest.raises(NotApplicable):
        generate(victim=Tiny(module))


def test_unknown_targets_are_refused():
    with pytest.raises(UsageError, match="expected least or random"):
        IPGuard(target="most")


def test_a_quantised_network_holds_no_parameters():
    class Frozen(nn.Module):
        def __init__(self, module):
            super().__init__()
            for name, value in module.named_parameters():
                self.register_buffer(name.replace(".", "_"), value.detach())

        def forward(self, images):
            hidden = nn.functional.linear(images.flatten(1), self.get_buffer("1_weight"), self.get_buffer("1_bias"))
            return nn.functional.linear(hidden.relu(), self.get_buffer("3_weight"), self.get_buffer("3_bias"))

    frozen = Tiny(Frozen(network(0)))
    np.testing.assert_array_equal(generate(victim=frozen).arrays["queries"], generate().arrays["queries"])
