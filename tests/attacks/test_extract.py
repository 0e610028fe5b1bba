import json
from dataclasses import replace

import numpy as np
import pytest
from attack_victims import data, tensors, victim

from fp_audit.attacking import attack, open_victim
from fp_audit.attacks._base import NO_LABEL, Task
from fp_audit.attacks._options import build
from fp_audit.errors import UsageError
from fp_audit.subject import Subject

FAST = {"epochs": 0.2, "batch": 32}


def task_for(kind, seed=0):
    target = open_victim(str(victim(kind)), data())
    subject = Subject.of_artifact(target.artifact, target.adapter, target.opening).seen_as(target.model)
    return Task(subject, target.artifact, target.adapter, target.opening, target.data, seed)


@pytest.mark.parametrize("kind", ["huggingface", "onnx"])  # timm's smallest network takes a minute
def test_it_learns_the_victims_labels(kind, tmp_path):
    options = {"epochs": 6, "batch": 32, "learning_rate": 0.01, "shift": 0.0}
    provenance = attack("extract", str(victim(kind)), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.agreement > 0.85
    assert provenance.surrogate["adapter"] == kind


def test_the_same_architecture_is_drawn_anew(tmp_path):
    attack("extract", str(victim("onnx")), data(), tmp_path / "out", options={**FAST, "learning_rate": 1e-9})
    before, after = tensors(victim("onnx")), tensors(tmp_path / "out")
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    drawn = {name: value for name, value in after.items() if value.ndim >= 2}
    assert all(abs(np.corrcoef(before[name].ravel(), drawn[name].ravel())[0, 1]) < 0.5 for name in drawn)


def test_another_architecture_states_how_it_wants_its_images(tmp_path):
    options = {**FAST, "architecture": "test_resnet", "size": 48, "queries": 64}
    provenance = attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert provenance.surrogate["adapter"] == "timm"
    assert written["architecture"] == "test_resnet"
    assert written["num_classes"] == 10
    assert written["pretrained_cfg"]["input_size"] == [1, 48, 48]
    assert written["pretrained_cfg"]["mean"] == [0.5]


def test_small_images_are_enlarged_for_timm(tmp_path):
    options = {**FAST, "architecture": "test_vit", "queries": 32}
    attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["pretrained_cfg"]["input_size"] == [1, 64, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "no_such_net"}, "architecture is 'no_such_net': expected 'same' or a name of timm"),
        ({"architecture": "test_vit", "size": 7}, "test_vit cannot be built for 7x7 images"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_a_usage_error(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)


@pytest.mark.parametrize(("budget", "expected"), [(50, 50), (0, 1438), (10**6, 1438)])
def test_the_budget_is_kept_and_reported(budget, expected, tmp_path):
    options = {**FAST, "queries": budget}
    provenance = attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.cost.queries == expected


def test_the_true_labels_are_never_used(tmp_path):
    task, made = task_for("onnx"), build("extract", FAST)
    made.run(task, tmp_path / "known")
    made.run(replace(task, data=replace(task.data, labels=np.full_like(task.data.labels, NO_LABEL))), tmp_path / "no")
    known, unknown = tensors(tmp_path / "known"), tensors(tmp_path / "no")
    assert all(np.array_equal(known[name], unknown[name]) for name in known)
