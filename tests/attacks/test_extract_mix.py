from dataclasses import replace

import numpy as np
import pytest
from attack_victims import data, task_for, tensors, victim

from fp_audit.attacking import attack
from fp_audit.attacks._options import build
from fp_audit.attacks.extract_mix import affordable, to_ask
from fp_audit.errors import UsageError

FAST = {"epochs": 0.2, "batch": 32}


@pytest.mark.parametrize(
    ("images", "queries", "share", "expected"),
    [(100, 0, 0.5, 100), (100, 20, 0.5, 40), (100, 100, 0.9, 100), (100, 1, 0.0, 1), (100, 5, 0.8, 27)],
)
def test_golden(images, queries, share, expected):
    assert affordable(images, queries, share) == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("queries", [1, 7, 50, 1000])
def test_the_budget_is_used_and_never_exceeded(share, queries):
    used = affordable(200, queries, share)
    assert to_ask(used, share) <= queries
    assert used == 200 or to_ask(used + 1, share) > queries


@pytest.mark.parametrize(("share", "budget", "queries", "known"), [(0.25, 0, 1078, 360), (0.5, 100, 100, 100)])
def test_images_with_true_labels_cost_no_query(share, budget, queries, known, tmp_path):
    options = {**FAST, "true_share": share, "queries": budget}
    provenance = attack("extract-mix", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.cost.queries == queries
    assert provenance.surrogate["facts"]["true_labels"] == known


def test_without_true_labels_it_is_extraction(tmp_path):
    task = task_for("onnx")
    build("extract", FAST).run(task, tmp_path / "extract")
    build("extract-mix", {**FAST, "true_share": 0.0}).run(task, tmp_path / "mix")
    first, second = tensors(tmp_path / "extract"), tensors(tmp_path / "mix")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_true_labels_are_learned(tmp_path):
    """Of a thief whose true labels say something else, the surrogate learns that."""
    task = task_for("onnx")
    wrong = replace(task, data=replace(task.data, labels=(task.data.labels + 1) % 10))
    options = {"epochs": 4, "batch": 32, "learning_rate": 0.01, "shift": 0.0}
    agreements = []
    for share in (0.1, 0.9):
        surrogate = build("extract-mix", {**options, "true_share": share}).run(wrong, tmp_path / str(share))
        assert surrogate.adapter == "onnx"
        located = replace(wrong.artifact, root=tmp_path / str(share))
        model = wrong.adapter.load(located, wrong.opening)
        answers = model.predict(task.data.pixels[:300].astype(np.float32) / 255).argmax(axis=1)
        agreements.append((answers == wrong.data.labels[:300]).mean())
    assert agreements[0] < 0.2
    assert agreements[1] > 0.8


def test_a_share_of_all_is_refused():
    with pytest.raises(UsageError, match="expected a share in"):
        build("extract-mix", {"true_share": 1.0})
