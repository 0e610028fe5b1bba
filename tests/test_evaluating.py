"""Statistics of an evaluation, against slow versions and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from fp_audit import evaluating
from fp_audit.evaluating import COMBINED, EVERY, Model, Row, Setting
from fp_audit.metrics import auc, tpr_at_fpr

RNG = np.random.default_rng(5)
STOLEN, INNOCENT = RNG.normal(1.5, 1, 23), RNG.normal(0, 1, 41).round(1)


def model(name, kind="copy", **about):
    role = "independent" if kind == "independent" else "surrogate"
    return Model(name, role, kind, **about)


def row(name, score, p, method=COMBINED, output="logits"):
    return Row(name, Setting(method, 100, output), score, p, 100)


MODELS = [
    model("a"),
    model("b", "extraction-same"),
    model("broken", useful=False),
    model("elsewhere", "transfer"),
    model("i1", "independent", training="same"),
    model("i2", "independent", training="none"),
    model("i3", "independent", training="none"),
]
SCORES = {"a": 9.0, "b": 2.0, "broken": 0.0, "elsewhere": 0.1, "i1": 3.0, "i2": 0.5, "i3": 0.2}
ROWS = [row(name, value, 10**-value) for name, value in SCORES.items()]


def test_the_bootstrap_is_centred_on_the_value_and_agrees_with_a_loop():
    draws = 400
    rates = evaluating.bootstrap(STOLEN, INNOCENT, draws=draws, seed=3)
    rng = np.random.default_rng(3)
    chosen = rng.integers(len(STOLEN), size=(draws, len(STOLEN)))
    others = rng.integers(len(INNOCENT), size=(draws, len(INNOCENT)))
    measures = (auc, lambda p, n: tpr_at_fpr(p, n, 0.05), lambda p, n: tpr_at_fpr(p, n, 0.01))
    for rate, measure in zip(rates, measures, strict=True):
        drawn = [measure(STOLEN[i], INNOCENT[j]) for i, j in zip(chosen, others, strict=True)]
        assert rate.value == measure(STOLEN, INNOCENT)
        low, high = np.quantile(drawn, [0.025, 0.975])
        if measure is not auc:
            exact = binomtest(round(rate.value * len(STOLEN)), len(STOLEN)).proportion_ci(0.95, "exact")
            low, high = min(low, exact.low), max(high, exact.high)
        assert [rate.low, rate.high] == pytest.approx([low, high])
        assert rate.low < rate.value < rate.high
    truth = np.repeat([1, 0], [len(STOLEN), len(INNOCENT)])
    assert rates[0].value == pytest.approx(roc_auc_score(truth, np.concatenate([STOLEN, INNOCENT])))


def test_its_interval_holds_the_true_area_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        area, _, _ = evaluating.bootstrap(rng.normal(1, 1, 40), rng.normal(0, 1, 40), draws=200)
        inside += area.low <= 0.7602 <= area.high  # Phi(1 / sqrt(2))
    assert 0.88 <= inside / 200 <= 0.99


@pytest.mark.parametrize(("hits", "count"), [(0, 24), (1, 24), (7, 7), (30, 100), (0, 1)])
def test_shares_have_clopper_and_pearsons_interval(hits, count):
    expected = binomtest(hits, count).proportion_ci(method="exact")
    found = evaluating.share(hits, count)
    assert found.value == hits / count
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high])


def test_roc_curves_have_the_corners_of_scikit_learn():
    false, true = evaluating.roc(STOLEN, INNOCENT)
    truth = np.repeat([1, 0], [len(STOLEN), len(INNOCENT)])
    other_false, other_true, _ = roc_curve(truth, np.concatenate([STOLEN, INNOCENT]), drop_intermediate=False)
    assert false == pytest.approx(list(other_false))
    assert true == pytest.approx(list(other_true))


def test_broken_models_do_not_count_and_another_task_counts_apart():
    assert evaluating.counted(MODELS) == {
        EVERY: ["a", "b"],
        "copy": ["a"],
        "extraction-same": ["b"],
        "transfer": ["elsewhere"],
    }


def test_cells_measure_every_kind_against_all_independents():
    found = {cell.kind: cell for cell in evaluating.cells(MODELS, ROWS, alpha=0.01)}
    assert found[EVERY].surrogates == 2
    assert found[EVERY].independents == 3
    assert found["copy"].auc.value == 1
    assert found["extraction-same"].auc.value == pytest.approx(2 / 3)
    assert found["extraction-same"].tpr5.value == 0  # an independent scores higher
    assert found[EVERY].tpr5.value == 0.5
    assert found[EVERY].detected.value == 1
    assert found["transfer"].detected.value == 0


def test_a_model_without_a_score_is_the_least_alike_of_all():
    rows = [row("a", 0.9, None, "sac"), row("i1", 0.1, None, "sac"), row("i2", -5.0, None, "sac")]
    found = {cell.kind: cell for cell in evaluating.cells(MODELS, rows, alpha=0.01)}
    assert found["copy"].auc.value == 1
    assert found["extraction-same"].auc.value == pytest.approx(0.5 / 3)  # ties with i3, which has none either
    assert found["copy"].detected is None  # nothing has a p-value


def test_silence_is_not_detected():
    rows = [row("a", 9.0, 1e-9, "sac"), row("i1", 0.1, 0.6, "sac")]
    (cell,) = (cell for cell in evaluating.cells(MODELS, rows, alpha=0.01) if cell.kind == EVERY)
    assert cell.detected.value == 0.5


def test_independents_are_told_by_level_and_training_set():
    found = {(item.training, item.level): item for item in evaluating.innocents(MODELS, ROWS, (0.001, 0.01, 0.5))}
    assert found[EVERY, 0.01].observed.value == pytest.approx(1 / 3)
    assert found[EVERY, 0.5].observed.value == pytest.approx(2 / 3)
    assert found["same", 0.001].observed.value == 1
    assert found["none", 0.01].observed == evaluating.share(0, 2)
    assert found["none", 0.01].independents == 2


def test_the_strength_of_a_p_value():
    assert evaluating.strength(1e-5) == pytest.approx(5)
    assert evaluating.strength(1.0) == 0
    assert evaluating.strength(0.0) == 300
