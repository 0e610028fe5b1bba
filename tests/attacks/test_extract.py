import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from attack_victims import KINDS, data, tensors, victim
from onnx import TensorProto, helper, numpy_helper

from fp_audit.attacking import attack, open_victim
from fp_audit.attacks._base import NO_LABEL, Task
from fp_audit.attacks._fresh import same_architecture
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


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_victims_weights_is_left(kind):
    task = task_for(kind)
    fresh, _ = same_architecture(task)
    before, after = task.copy_of_victim().tensors(), fresh.tensors()
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    for name, value in after.items():
        if value.ndim >= 2:
            assert np.std(value) > 0, name
            assert abs(np.corrcoef(before[name].ravel(), value.ravel())[0, 1]) < 0.5, name
        else:
            assert value.size == 1 or not np.array_equal(before[name], value) or not value.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_draw_follows_from_the_seed(kind):
    first, again, other = (same_architecture(task_for(kind, seed))[0].tensors() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_statistics_in_an_onnx_file_are_forgotten(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "filters": rng.normal(size=(4, 1, 3, 3)),
        "scale": rng.normal(size=4),
        "shift": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "variance": rng.uniform(1, 2, size=4),
        "weight": rng.normal(size=(4, 10)),
        "bias": rng.normal(size=10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "weight", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "model.onnx")
    task = task_for("onnx")
    task = replace(task, artifact=replace(task.artifact, root=tmp_path, entry="model.onnx"))
    fresh = same_architecture(task)[0].tensors()
    assert np.array_equal(fresh["mean"], np.zeros(4))
    assert np.array_equal(fresh["variance"], np.ones(4))
    assert np.array_equal(fresh["scale"], np.ones(4))
    assert np.array_equal(fresh["shift"], np.zeros(4))
    assert np.array_equal(fresh["bias"], np.zeros(10))
    assert not np.isclose(fresh["weight"], values["weight"]).any()


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
