from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_victims import data, digits, task_for, tensors, victim

from fp_audit.attacking import attack
from fp_audit.attacks._base import NO_LABEL
from fp_audit.attacks._options import build
from fp_audit.attacks._theft import last_hidden
from fp_audit.attacks.cloudleak import adversarial, feature_gap, lead, margin_gap, partners
from fp_audit.errors import UsageError
from fp_audit.model import Counted, as_images

FAST = {"epochs": 0.2, "batch": 32, "rounds": 2, "steps": 3}
METHODS = ("feature", "pgd", "fgsm")


def options(**changes):
    return {**build("cloudleak", {"steps": 10}).options, **changes}


def test_golden():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]])
    assert lead(logits, torch.tensor([0, 2])).tolist() == [1.0, -6.0]


def test_partners_have_another_label_and_all_of_them_occur():
    labels = np.array([2, 0, 0, 1, 2, 2, 0])
    drawn = np.stack([partners(labels, np.random.default_rng(seed)) for seed in range(300)])
    for i, label in enumerate(labels):
        assert set(drawn[:, i]) == set(np.flatnonzero(labels != label))


def test_of_one_label_any_is_a_partner():
    assert set(partners(np.zeros(5, int), np.random.default_rng(0))) <= set(range(5))


def test_the_margins_gap_is_that_of_each_image_alone():
    task = task_for("onnx")
    model, pixels = task.copy_of_victim(), digits().pixels[:8]
    gap = margin_gap(model, pixels, task)
    other = torch.from_numpy(as_images(digits().pixels[8:16]))
    found = gap(other, torch.arange(8))
    for i in range(8):
        start, moved = (
            model.predict(images)[0].tolist() for images in (as_images(pixels[i : i + 1]), other[i : i + 1].numpy())
        )
        own = int(np.argmax(start))
        ahead = [z[own] - max(value for j, value in enumerate(z) if j != own) for z in (moved, start)]
        assert found[i].item() == pytest.approx(ahead[0] / ahead[1], rel=1e-3, abs=1e-4)
    assert gap(torch.from_numpy(as_images(pixels)), torch.arange(8)).tolist() == pytest.approx([1.0] * 8, rel=1e-5)


@pytest.mark.parametrize("kind", ["huggingface", "onnx"])
def test_the_features_gap_is_1_here_and_minus_1_at_the_partner(kind):
    task = task_for(kind)
    model, pixels = task.copy_of_victim(), digits().pixels[:30]
    gap, images = feature_gap(model, pixels, task), torch.from_numpy(as_images(pixels))
    assert gap(images, torch.arange(30)).detach().numpy() == pytest.approx(np.ones(30), abs=1e-3)
    features = model.activations(as_images(pixels), last_hidden(model, pixels)).reshape(30, -1)
    own = model.predict(as_images(pixels)).argmax(axis=1)
    chosen = partners(own, np.random.default_rng([task.seed, 30]))
    at_partner = gap(images[chosen], torch.arange(30)).detach().numpy()
    assert at_partner == pytest.approx(-np.ones(30), abs=1e-3)
    third = gap(images[[0] * 30], torch.arange(30)).detach().numpy()
    for i, j in enumerate(chosen):
        to_partner, to_own = (np.sum((features[0] - features[k]) ** 2.0) for k in (j, i))
        expected = (to_partner - to_own) / np.sum((features[i] - features[j]) ** 2.0)
        assert third[i] == pytest.approx(expected, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_queries_stay_in_the_ball_and_near_the_boundary(method):
    task = task_for("onnx")
    model, pixels = task.copy_of_victim(), digits().pixels[:60]
    made = adversarial(model, pixels, options(method=method, epsilon=0.2), task)
    assert made.dtype == np.uint8
    assert 0 < np.abs(made.astype(int) - pixels).max() <= 51
    index = torch.arange(60)
    gap = (feature_gap if method == "feature" else margin_gap)(model, pixels, task)
    after = gap(torch.from_numpy(as_images(made)), index).detach().numpy()
    assert np.median(after) < 0.5
    assert np.array_equal(made, adversarial(model, pixels, options(method=method, epsilon=0.2), task))


def test_fgsm_is_one_step_of_epsilon():
    task = task_for("huggingface")
    model, pixels = task.copy_of_victim(), digits().pixels[:6]
    made = adversarial(model, pixels, options(method="fgsm", epsilon=10 / 255), task)
    for image, ours in zip(pixels, made, strict=True):
        x = torch.from_numpy(as_images(image[None])).requires_grad_()
        logits = model.module(x)[0]
        own = logits.argmax()
        others = torch.cat([logits[:own], logits[own + 1 :]])
        slope = torch.autograd.grad(logits[own] - others.max(), x)[0][0].numpy()
        expected = (image - 10 * np.sign(slope)).clip(0, 255)
        assert (ours == expected)[np.abs(slope) > 1e-6].all()


@pytest.mark.parametrize(("queries", "parts"), [(100, [34, 33, 33]), (8, [3, 3, 2]), (0, [599, 599, 599])])
def test_the_budget_is_divided_over_the_rounds(queries, parts, tmp_path):
    task, shown = task_for("onnx"), []

    class Recorded(Counted):
        def predict(self, images):
            shown.append(np.rint(images * 255).astype(np.uint8))
            return super().predict(images)

    watched = replace(task, victim=task.victim.seen_as(Recorded(task.victim.black_box())))
    surrogate = build("cloudleak", {**FAST, "queries": queries, "method": "fgsm"}).run(watched, tmp_path / "out")
    assert [len(images) for images in shown] == parts
    assert surrogate.queries == sum(parts)
    natural = {image.tobytes() for image in task.data.pixels}
    assert all(image.tobytes() in natural for image in shown[0])


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_the_victims_labels(method, tmp_path):
    learns = {"epochs": 3, "batch": 32, "learning_rate": 0.01, "shift": 0.0, "rounds": 2, "steps": 4, "method": method}
    provenance = attack("cloudleak", str(victim("onnx")), data(), tmp_path / "out", options=learns)
    assert provenance.fidelity.agreement > 0.85
    assert provenance.cost.queries == 1438


def test_the_true_labels_are_never_used(tmp_path):
    task, made = task_for("onnx"), build("cloudleak", {**FAST, "queries": 200})
    made.run(task, tmp_path / "known")
    made.run(replace(task, data=replace(task.data, labels=np.full_like(task.data.labels, NO_LABEL))), tmp_path / "no")
    known, unknown = tensors(tmp_path / "known"), tensors(tmp_path / "no")
    assert all(np.array_equal(known[name], unknown[name]) for name in known)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"epsilon": 0}, "epsilon is 0"),
        ({"margin": -1}, "margin is -1"),
        ({"queries": 7}, "queries is 7: expected 8 images or more"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(given, message):
    with pytest.raises(UsageError, match=message):
        build("cloudleak", given)
