"""Metrics against slow loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fp_audit.metrics import accuracy, auc, centred, matching_rate, mean_cosine, pair_correlation, tpr_at_fpr

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(7, 4)).astype(np.float32), RNG.normal(size=(7, 4)).astype(np.float32)


def cosine(u, v):
    u, v = [float(x) for x in u], [float(x) for x in v]
    size = sum(x * x for x in u) ** 0.5 * sum(x * x for x in v) ** 0.5
    return sum(x * y for x, y in zip(u, v, strict=True)) / size if size else 0.0


def test_accuracy_counts_rows_whose_largest_entry_is_the_label():
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    hits = sum(max(range(4), key=lambda j: row[j]) == label for row, label in zip(A, labels, strict=True))
    assert accuracy(A, labels) == matching_rate(A, labels) == hits / 7


def test_a_tie_goes_to_the_first_class():
    assert accuracy(np.ones((2, 3)), np.array([0, 1])) == 0.5


def test_centred_rows_have_mean_zero_and_forget_a_constant():
    np.testing.assert_allclose(centred(A).mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(centred(A + np.float32(4)), centred(A), atol=1e-6)
    assert centred(A).dtype == np.float64


def test_mean_cosine_is_that_of_a_loop():
    assert mean_cosine(A, B) == pytest.approx(sum(map(cosine, A, B)) / 7)
    assert mean_cosine(A, A) == pytest.approx(1)
    assert mean_cosine(A, -A) == pytest.approx(-1)


def test_a_zero_row_counts_as_zero():
    assert mean_cosine(np.array([[0.0, 0], [1, 0]]), np.array([[1.0, 1], [2, 0]])) == 0.5


def test_pair_correlation_is_that_of_a_loop():
    wanted = [[(1 - cosine(u, v)) / 2 for v in A] for u in A]
    np.testing.assert_allclose(pair_correlation(A), wanted, atol=1e-12)


def test_pair_correlation_golden_value():
    got = pair_correlation(np.array([[1.0, 0], [0, 2], [-3, 0]]))
    np.testing.assert_allclose(got, [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]], atol=1e-12)


@pytest.mark.parametrize("digits", [1, 8])
def test_auc_is_that_of_scikit_learn(digits):
    pos, neg = RNG.normal(0.7, 1, 40).round(digits), RNG.normal(0, 1, 25).round(digits)
    assert auc(pos, neg) == pytest.approx(roc_auc_score([1] * 40 + [0] * 25, [*pos, *neg]))


def test_auc_at_its_ends():
    assert auc([2, 3], [0, 1]) == 1
    assert auc([0], [1]) == 0
    assert auc([1, 1], [1]) == 0.5


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.1, 0.5, 0.99, 1.0])
def test_tpr_at_fpr_is_the_best_threshold_of_a_loop(fpr):
    pos, neg = RNG.normal(0.7, 1, 40).round(1), RNG.normal(0, 1, 20).round(1)
    best = 0.0
    for threshold in [-np.inf, *pos, *neg, *(neg + 1e-6)]:
        if (neg >= threshold).mean() <= fpr + 1e-12:
            best = max(best, (pos >= threshold).mean())
    assert tpr_at_fpr(pos, neg, fpr) == pytest.approx(best)


def test_tpr_at_fpr_at_its_edges():
    assert tpr_at_fpr([1, 2, 3], [2], 0.05) == pytest.approx(1 / 3)
    assert tpr_at_fpr([1, 2, 3], [2], 1.0) == 1
    assert tpr_at_fpr([2, 2], [2, 2], 0.5) == 0
    assert tpr_at_fpr([5], np.arange(20), 0.05) == 0
    assert tpr_at_fpr([18.5], np.arange(20), 0.05) == 1
    assert tpr_at_fpr([18.5], np.arange(20), 0.0499) == 0
    assert tpr_at_fpr([0.5], [0.7, 0.1, 0.2, 0.3, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1], 0.1) == 1
