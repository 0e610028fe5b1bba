"""ModelDiff: distances against a loop, partners against one image at a time and where algebra says, its promises."""

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network, subject
from torch import nn

from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints.modeldiff import ModelDiff, departure
from fp_audit.metrics import decision_distances
from fp_audit.model import Counted, LabelOnly, Reordered, as_images, as_probabilities

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)
FAST = {"queries": 24, "steps": 15}


def generate(seed=0, victim=VICTIM, **options):
    return ModelDiff(**{**FAST, **options}).generate(subject(victim), DATA, seed=seed)


KEPT = generate()


def score(model, kept=KEPT):
    return ModelDiff().compare(kept, subject(VICTIM).seen_as(model)).value


def halves(kept):
    queries = kept.arrays["queries"]
    return queries[: len(queries) // 2], queries[len(queries) // 2 :]


def probabilities(model, pixels):
    return as_probabilities(model.predict(as_images(pixels)), "logits").astype(float)


def distances(model, kept):
    """The DDV, pair by pair."""
    found = []
    for a, b in zip(*(probabilities(model, half).tolist() for half in halves(kept)), strict=True):
        size_a, size_b = (sum(x * x for x in answer) ** 0.5 for answer in (a, b))
        found.append(1 - sum(x * y for x, y in zip(a, b, strict=True)) / size_a / size_b)
    return found


def test_golden_distances():
    answers = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [1.0, 0.0], [3.0, 0.0], [6.0, 8.0]])
    np.testing.assert_allclose(decision_distances(answers), [0.0, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(decision_distances(answers[[0, 2]]), [0.4], atol=1e-12)


def test_the_score_is_that_of_a_loop():
    ours, theirs = distances(VICTIM, KEPT), distances(OTHER, KEPT)
    np.testing.assert_allclose(KEPT.arrays["ddv"], ours, atol=1e-6)
    assert KEPT.facts["mean_distance"] == pytest.approx(np.mean(ours), abs=1e-6)
    dot = sum(a * b for a, b in zip(ours, theirs, strict=True))
    wanted = dot / sum(a * a for a in ours) ** 0.5 / sum(b * b for b in theirs) ** 0.5
    assert score(OTHER) == pytest.approx(wanted, abs=1e-6)
    assert score(VICTIM) == pytest.approx(1)


def test_the_loss_is_that_of_a_loop():
    images = torch.from_numpy(as_images(DATA.pixels[:9]))
    answers = torch.from_numpy(probabilities(VICTIM, DATA.pixels[20:29])).float()
    index = torch.tensor([3, 1, 4, 1, 5, 0, 2, 6, 8])
    moved = probabilities(VICTIM, DATA.pixels[:9])
    wanted = [
        -(p @ answers[i].double().numpy()) - np.mean([p @ q for q in answers.double().numpy()])
        for p, i in zip(moved, index.tolist(), strict=True)
    ]
    got = departure(VICTIM.module, answers)(images, index)
    np.testing.assert_allclose(got.detach(), wanted, rtol=1e-5)


def test_partners_are_those_of_one_image_at_a_time():
    kept = generate(steps=7, batch=5)
    seeds, partners = halves(kept)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(DATA))[:12]
    np.testing.assert_array_equal(seeds, DATA.pixels[chosen])
    noise = rng.uniform(-0.06, 0.06, seeds.shape).astype(np.float32)
    answers = torch.from_numpy(probabilities(VICTIM, seeds)).float()
    for n, seed in enumerate(torch.from_numpy(as_images(seeds))):
        x = (seed + torch.from_numpy(noise[n])).clamp(0, 1)
        for _ in range(7):
            x.requires_grad_(True)
            p = VICTIM.module(x[None]).softmax(dim=1)[0]
            (p @ answers[n] + sum(p @ answer for answer in answers) / len(answers)).backward()
            x = x.detach() - 0.01 * x.grad.sign()
            x = (seed + (x - seed).clamp(-0.06, 0.06)).clamp(0, 1)
        assert np.abs(np.rint(255 * x.numpy()) - partners[n].astype(int)).max() <= 1


def test_a_linear_model_is_left_in_the_corner_that_algebra_says():
    """With two classes the inner product falls along one direction: a corner of the ball, then of the box."""
    weight = torch.linspace(-1, 1, 16)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([weight, -weight]))
        module[1].bias.copy_(torch.tensor([2.0, 0.0]))
    kept = generate(victim=Tiny(module), epsilon=20 / 255, step=0.01, steps=50)
    seeds, partners = halves(kept)
    answers = probabilities(Tiny(module), seeds)
    towards_first = ((answers + answers.mean(axis=0)) @ [1, -1] < 0)[:, None, None, None]
    up = np.where(towards_first, 1, -1) * np.sign(weight.numpy()).reshape(SHAPE)
    np.testing.assert_array_equal(partners, np.clip(seeds.astype(int) + 20 * up, 0, 255))


@pytest.mark.parametrize("epsilon", [0.02, 0.06, 0.3])
def test_partners_stay_in_the_ball_and_in_the_box(epsilon):
    kept = generate(epsilon=epsilon, step=0.1)
    seeds, partners = halves(kept)
    assert kept.arrays["queries"].dtype == np.uint8
    apart = np.abs(seeds.astype(int) - partners).max()
    assert apart <= 255 * epsilon + 0.5
    assert apart >= 255 * epsilon - 1


def test_partners_move_the_victim_further_than_noise_of_the_same_size():
    kept = generate(queries=60, steps=50)
    seeds, partners = halves(kept)
    rng = np.random.default_rng(5)
    for corner in (False, True):
        noise = rng.uniform(-0.06, 0.06, seeds.shape)
        noisy = as_images(seeds) + (0.06 * np.sign(noise) if corner else noise)
        noisy = np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)
        moved = [decision_distances(probabilities(VICTIM, np.concatenate([seeds, to]))) for to in (partners, noisy)]
        assert moved[0].mean() > 3 * moved[1].mean()
        assert (moved[0] > moved[1]).mean() > 0.9


def test_partners_leave_the_mean_answer_and_one_another():
    """The second term of the loss: mean inner product with the answers to all seeds."""
    seeds, partners = halves(generate(queries=60, steps=50))
    before, after = probabilities(VICTIM, seeds), probabilities(VICTIM, partners)
    assert (after @ before.mean(axis=0)).mean() < (before @ before.mean(axis=0)).mean()


def test_all_classes_count_alike():
    """In the authors' code class 0 outweighs all others."""
    module = network(0)
    with torch.no_grad():
        for tensor in (module[3].weight, module[3].bias):
            tensor.copy_(tensor[[3, 1, 0, 4, 2]].clone())
    _, partners = halves(generate(victim=Tiny(module)))
    assert (np.abs(partners.astype(int) - halves(KEPT)[1]) <= 1).mean() > 0.99


def test_batches_do_not_matter():
    np.testing.assert_allclose(
        generate(batch=1).arrays["queries"].astype(int), generate(batch=100).arrays["queries"], atol=1
    )


@pytest.mark.parametrize(("queries", "pairs"), [(2, 1), (7, 3), (24, 12), (1000, 120)])
def test_the_budget_is_respected(queries, pairs):
    kept = generate(queries=queries, steps=2)
    assert len(kept.arrays["queries"]) == 2 * len(kept.arrays["ddv"]) == 2 * pairs == kept.facts["queries"]
    counted = Counted(OTHER)
    assert ModelDiff().compare(kept, subject(VICTIM).seen_as(counted)).queries == counted.queries == 2 * pairs


@pytest.mark.parametrize("order", [[3, 1, 0, 4, 2], [4, 3, 2, 1, 0]])
def test_the_order_of_classes_does_not_matter(order):
    assert score(Reordered(VICTIM, order, None)) == pytest.approx(1)
    assert score(Reordered(OTHER, order, None)) == pytest.approx(score(OTHER))


@pytest.mark.parametrize("classes", [2, 9])
def test_other_numbers_of_classes_can_be_compared(classes):
    assert 0 < score(Tiny(network(3, classes=classes))) < 1


def test_labels_alone_can_be_compared():
    assert 0 <= score(LabelOnly(VICTIM)) <= 1


def test_seeds():
    first, again, other = generate(3), generate(3), generate(4)
    np.testing.assert_array_equal(first.arrays["queries"], again.arrays["queries"])
    assert not np.array_equal(first.arrays["queries"], other.arrays["queries"])


def test_constant_answers_are_said():
    module = network(0)
    with torch.no_grad():
        module[3].weight.zero_()
    with pytest.raises(NotApplicable, match="try a larger epsilon"):
        generate(victim=Tiny(module))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 1}, "modeldiff: queries is 1; expected 2 or more"),
        ({"steps": 0}, "modeldiff: steps is 0; expected 1 or more"),
        ({"batch": 0}, "modeldiff: batch is 0; expected 1 or more"),
        ({"epsilon": 0.001}, "modeldiff: epsilon is 0.001; expected 1/255"),
        ({"step": 0.0}, "modeldiff: step is 0.0; expected more than 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ModelDiff(**options)
