from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_victims import data, task_for, tensors, victim
from torch import nn

from fp_audit.attacking import attack
from fp_audit.attacks._base import NO_LABEL
from fp_audit.attacks._options import build
from fp_audit.attacks.papernot import augmented
from fp_audit.errors import UsageError
from fp_audit.model import Counted

FAST = {"epochs": 0.2, "batch": 32, "rounds": 2, "seeds": 20}


def network(outputs=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, outputs)).eval()


def pixels(count):
    return np.random.default_rng(1).integers(0, 256, (count, 3, 8, 8), np.uint8)


def gradients(module, images, labels):
    """Of each image's probability of its label, one image after another, in double precision."""
    module, found = module.double(), []
    for image, label in zip(images, labels, strict=True):
        x = torch.tensor(image / 255.0, requires_grad=True)
        probability = module(x[None]).softmax(dim=1)[0, label]
        found.append(torch.autograd.grad(probability, x)[0].numpy())
    module.float()
    return np.stack(found)


@pytest.mark.parametrize("step", [0.1, -0.05])
def test_every_pixel_moves_along_the_gradient_of_the_labels_probability(step):
    module, images, labels = network(), pixels(12), np.arange(12) % 5
    moved = augmented(module, images, labels, step)
    slope = gradients(module, images, labels)
    expected = np.rint((images / 255.0 + step * np.sign(slope)).clip(0, 1) * 255)
    clear = np.abs(slope) > 1e-6 * np.abs(slope).max()
    assert clear.mean() > 0.99
    assert moved.dtype == np.uint8
    assert np.abs(moved - expected)[clear].max() <= 1  # where rounding is at a tie


def test_golden():
    """Of two classes, one that counts the light and one that does not, the first wants every pixel lighter."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    module[1].weight.data = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    images = np.array([[[[0, 100], [250, 255]]]] * 2, np.uint8)
    moved = augmented(module, images, np.array([0, 1]), 0.2)
    assert moved.tolist() == [[[[51, 151], [255, 255]]], [[[0, 49], [199, 204]]]]


def test_labels_tell_where_to():
    module, images = network(), pixels(6)
    first, second = (augmented(module, images, np.full(6, label), 0.1) for label in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("bias", [60.0, -60.0])
def test_a_network_that_is_sure_of_it_or_sure_of_the_contrary_still_says_where_to(bias):
    """Its probability is 1 or 0 in single precision, where its gradient vanishes; in double precision it does not."""
    module, images, labels = network(outputs=2), pixels(8), np.zeros(8, np.int64)
    with torch.no_grad():
        module[3].bias[0] += bias
    slope = gradients(module, images, labels) if bias < 0 else -gradients(module, images, labels + 1)
    moved = augmented(module, images, labels, 0.1).astype(int)
    clear = (np.abs(slope) > 1e-6 * np.abs(slope).max()) & (images > 30) & (images < 225)
    assert clear.mean() > 0.5
    assert (np.sign(moved - images) == np.sign(slope))[clear].all()


@pytest.mark.parametrize(("queries", "expected"), [(0, 80), (50, 50), (25, 25), (10, 10), (1000, 80)])
def test_each_round_doubles_the_images_within_the_budget(queries, expected, tmp_path):
    provenance = attack("papernot", str(victim("onnx")), data(), tmp_path / "out", options={**FAST, "queries": queries})
    assert provenance.cost.queries == expected


def test_only_seeds_and_moved_images_are_shown(tmp_path):
    task, shown = task_for("onnx"), []

    class Recorded(Counted):
        def predict(self, images):
            shown.append(np.rint(images * 255).astype(np.uint8))
            return super().predict(images)

    watched = replace(task, victim=task.victim.seen_as(Recorded(task.victim.black_box())))
    build("papernot", FAST).run(watched, tmp_path / "out")
    asked = np.concatenate(shown)
    assert [len(images) for images in shown] == [20, 20, 40]
    assert np.abs(asked[20:40].astype(int) - asked[:20]).max() == 26  # 25.5, rounded
    assert np.abs(asked[40:].astype(int) - asked[:40]).max() == 26


def test_it_learns_the_victims_labels(tmp_path):
    options = {"epochs": 6, "batch": 32, "rounds": 2, "seeds": 200, "learning_rate": 0.01}
    provenance = attack("papernot", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.agreement > 0.75


def test_the_true_labels_are_never_used(tmp_path):
    task, made = task_for("onnx"), build("papernot", FAST)
    made.run(task, tmp_path / "known")
    made.run(replace(task, data=replace(task.data, labels=np.full_like(task.data.labels, NO_LABEL))), tmp_path / "no")
    known, unknown = tensors(tmp_path / "known"), tensors(tmp_path / "no")
    assert all(np.array_equal(known[name], unknown[name]) for name in known)


@pytest.mark.parametrize(
    ("options", "message"), [({"seeds": 1}, "seeds is 1"), ({"rounds": -1}, "rounds is -1"), ({"step": 0}, "step is 0")]
)
def test_options_that_make_no_sense_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        build("papernot", options)
