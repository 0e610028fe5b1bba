from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from attack_victims import data, digits, task_for, tensors, victim

from fp_audit.attacking import attack
from fp_audit.attacks._base import NO_LABEL
from fp_audit.attacks._options import build
from fp_audit.attacks._theft import last_hidden
from fp_audit.attacks.distill import distillation, softened
from fp_audit.errors import UsageError
from fp_audit.fresh import Architecture
from fp_audit.model import as_images

FAST = {"epochs": 0.2, "batch": 32}
LEARNS = {"epochs": 4, "batch": 32, "learning_rate": 0.01, "shift": 0.0}


def softmax(row, temperature):
    raised = [exp(value / temperature) for value in row]
    return [value / sum(raised) for value in raised]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_that_of_a_loop(temperature):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(0, 2, (2, 7, 5)).astype(np.float32)
    rows = [(softmax(a, temperature), softmax(b, temperature)) for a, b in zip(teacher, student, strict=True)]
    expected = sum(p * log(p / q) for a, b in rows for p, q in zip(a, b, strict=True)) / 7 * temperature**2
    found = softened(torch.from_numpy(teacher), torch.from_numpy(student), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_golden():
    found = softened(torch.tensor([[2 * log(3.0), 0.0]]), torch.zeros(1, 2), 2.0)  # (3/4, 1/4) against a coin
    assert found.item() == pytest.approx(4 * (0.75 * log(1.5) + 0.25 * log(0.5)), rel=1e-5)


@pytest.mark.parametrize("kind", ["huggingface", "onnx"])
def test_features_add_their_mean_squared_difference(kind):
    task, images = task_for(kind), torch.from_numpy(as_images(digits().pixels[:20]))
    teacher, architecture = task.copy_of_victim(), Architecture(kind, task.artifact, task.opening)
    layer = last_hidden(teacher, digits().pixels)
    students = [architecture.fresh(seed=1, sample=digits().pixels[:2]) for _ in range(2)]
    ours, theirs = (model.activations(images.numpy(), layer) for model in (teacher, students[0]))
    expected = 2 * sum((a - b) ** 2 for a, b in zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    without, with_features = (
        distillation(teacher, student, 3.0, layer, weight)(images, torch.zeros(20)).item()
        for student, weight in zip(students, (0.0, 2.0), strict=True)
    )
    assert with_features - without == pytest.approx(expected / ours.size, rel=0.01)


def test_a_copy_of_the_teacher_loses_nothing():
    task, images = task_for("huggingface"), torch.from_numpy(as_images(digits().pixels[:20]))
    loss = distillation(task.copy_of_victim(), task.copy_of_victim(), 3.0, "", 1.0)
    assert loss(images, torch.zeros(20)).item() == pytest.approx(0.0, abs=1e-5)


def test_the_student_stays_in_training_mode_and_the_teacher_untouched():
    task, images = task_for("huggingface"), torch.from_numpy(as_images(digits().pixels[:20]))
    teacher = task.copy_of_victim()
    before = {name: value.copy() for name, value in teacher.tensors().items()}
    student = Architecture("huggingface", task.artifact, task.opening).fresh(seed=1, sample=digits().pixels[:2])
    network = student.module.train()
    loss = distillation(teacher, student, 3.0, last_hidden(teacher, digits().pixels), 1.0)
    network.train()
    loss(images, torch.zeros(20)).backward()
    assert network.training
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert all(np.array_equal(before[name], value) for name, value in teacher.tensors().items())


@pytest.mark.parametrize(("kind", "layer"), [("huggingface", "last"), ("onnx", ""), ("onnx", "last")])
def test_it_learns_the_victims_answers(kind, layer, tmp_path):
    provenance = attack("distill", str(victim(kind)), data(), tmp_path / "out", options={**LEARNS, "layer": layer})
    assert provenance.fidelity.agreement > 0.85
    assert provenance.cost.queries == 0
    assert bool(provenance.surrogate["facts"]) == bool(layer)


def test_another_architecture_learns_too(tmp_path):
    options = {**FAST, "architecture": "hf:resnet", "images": 64, "size": 32}
    provenance = attack("distill", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.surrogate["adapter"] == "huggingface"
    assert provenance.cost.steps == 1


def test_weights_may_be_reused(tmp_path):
    options = {**FAST, "learning_rate": 1e-9, "reuse": True, "weight_decay": 0.0}
    attack("distill", str(victim("onnx")), data(), tmp_path / "out", options=options)
    before, after = tensors(victim("onnx")), tensors(tmp_path / "out")
    assert all(np.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_the_true_labels_are_never_used(tmp_path):
    task, made = task_for("onnx"), build("distill", FAST)
    made.run(task, tmp_path / "known")
    made.run(replace(task, data=replace(task.data, labels=np.full_like(task.data.labels, NO_LABEL))), tmp_path / "no")
    known, unknown = tensors(tmp_path / "known"), tensors(tmp_path / "no")
    assert all(np.array_equal(known[name], unknown[name]) for name in known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet18", "layer": "last"}, "layer is last: expected none with architecture=resnet18"),
        ({"architecture": "resnet18", "reuse": True}, "reuse is True: expected false with architecture=resnet18"),
        ({"temperature": 0}, "temperature is 0"),
        ({"images": -1}, "images is -1"),
        ({"layer": "no_such"}, "no layer called|has no layer"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        attack("distill", str(victim("onnx")), data(), tmp_path / "out", options=options)
