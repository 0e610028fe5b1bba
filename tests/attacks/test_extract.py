import json
from dataclasses import replace

import numpy as np
import pytest
from attack_victims import data, task_for, tensors, victim
from builders import hf_folder, timm_folder

from fp_audit.attacking import attack
from fp_audit.attacks._base import NO_LABEL
from fp_audit.attacks._options import build
from fp_audit.errors import UsageError
from fp_audit.model import LabelOnly, TopK

FAST = {"epochs": 0.2, "batch": 32}
LEARNS = {"epochs": 4, "batch": 32, "learning_rate": 0.01, "shift": 0.0}


@pytest.mark.parametrize(  # timm's smallest network takes a minute
    ("kind", "answers"), [("huggingface", "labels"), ("onnx", "labels"), ("onnx", "probabilities")]
)
def test_it_learns_the_victims_answers(kind, answers, tmp_path):
    provenance = attack("extract", str(victim(kind)), data(), tmp_path / "out", options={**LEARNS, "answers": answers})
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


@pytest.mark.parametrize(("budget", "expected"), [(50, 50), (0, 1438), (10**6, 1438)])
def test_the_budget_is_kept_and_reported(budget, expected, tmp_path):
    options = {**FAST, "queries": budget}
    provenance = attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.cost.queries == expected


def test_the_true_labels_are_never_used(tmp_path):
    task, made = task_for("onnx"), build("extract", FAST)
    made.run(task, tmp_path / "known")
    made.run(replace(task, data=replace(task.data, labels=np.full_like(task.data.labels, NO_LABEL))), tmp_path / "no")
    assert_same(tmp_path / "known", tmp_path / "no")


@pytest.mark.parametrize("hide", [LabelOnly, lambda model: TopK(model, 1)])
def test_soft_labels_of_a_victim_that_shows_labels_are_its_labels(hide, tmp_path):
    task = task_for("onnx")
    hidden = replace(task, victim=task.victim.seen_as(hide(task.victim.black_box())))
    options = {**FAST, "queries": 200, "learning_rate": 0.001}
    build("extract", options).run(task, tmp_path / "labels")
    build("extract", {**options, "answers": "probabilities", "temperature": 3.0}).run(hidden, tmp_path / "soft")
    assert_same(tmp_path / "labels", tmp_path / "soft", atol=1e-5)


def test_probabilities_teach_something_else_than_labels(tmp_path):
    task, found = task_for("onnx"), []
    for options in ({}, {"answers": "probabilities"}, {"answers": "probabilities", "temperature": 4.0}):
        made = build("extract", {**FAST, "queries": 200, **options})
        made.run(task, tmp_path / str(len(found)))
        found.append(tensors(tmp_path / str(len(found))))
    for first, second in ((0, 1), (1, 2)):
        assert any(not np.array_equal(found[first][name], found[second][name]) for name in found[0])


@pytest.mark.parametrize("classes", [7, 10])
@pytest.mark.parametrize(
    ("write", "about"), [(hf_folder, {}), (timm_folder, {"architecture": "test_vit", "config": {"crop_pct": 1.0}})]
)
def test_it_starts_from_a_model_trained_elsewhere(write, about, classes, tmp_path):
    start = write(tmp_path / "elsewhere", classes=classes, **about)
    options = {"start": str(start), "queries": 32, "batch": 32, "epochs": 1, "learning_rate": 1e-9}
    provenance = attack("extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    before, after = tensors(start), tensors(tmp_path / "out")
    changed = [
        name
        for name, value in before.items()
        if value.ndim >= 2 and not (value.shape == after[name].shape and np.allclose(value, after[name], atol=1e-4))
    ]
    assert len(changed) == (classes != 10)
    assert all(after[name].shape[0] == 10 for name in changed)
    assert "model.safetensors" in provenance.surrogate["facts"]["start"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "org/model"}, "start=org/model cannot be opened: expected a model folder on this machine"),
        ({"start": "."}, "start=. cannot be opened: no model found"),
        ({"start": "here", "architecture": "resnet18"}, "architecture is resnet18: expected none beside start=here"),
        ({"temperature": 0}, "temperature is 0"),
        ({"queries": -1}, "queries is -1"),
        ({"queries": 1}, "queries is 1: expected 2 images or more, or 0 for all"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options, message, tmp_path, monkeypatch):
    target = str(victim("onnx"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        attack("extract", target, data(), tmp_path / "out", options=options)


def test_a_start_that_does_not_state_its_preprocessing_is_refused(tmp_path):
    start = hf_folder(tmp_path / "elsewhere", processor={})
    with pytest.raises(UsageError, match=r"cannot be opened: .* has no preprocessor_config\.json"):
        attack("extract", str(victim("onnx")), data(), tmp_path / "out", options={"start": str(start), "queries": 8})


def assert_same(first, second, atol=0.0):
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert all(np.allclose(a[name], b[name], rtol=0, atol=atol) for name in a)
