"""Metrics against slow loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fp_audit.metrics import (
    accuracy,
    activated,
    auc,
    centred,
    jensen_shannon,
    layer_activation_distance,
    layer_output_distance,
    matching_rate,
    mean_cosine,
    neuron_activation_distance,
    neuron_output_distance,
    pair_correlation,
    robustness_distance,
    tpr_at_fpr,
)

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


# DeepJudge's distances
LABELS = np.array([0, 1, 2, 3, 0, 1, 2])
NEURONS = np.array([2, 0, 1, 1, 3, 2, 0])


def active(responses):
    """Which neurons are in the upper half of their range, one by one."""
    columns = [[float(row[j]) for row in responses] for j in range(len(responses[0]))]
    found = []
    for row in responses:
        scaled = [(float(v) - min(c)) / (max(c) - min(c)) for v, c in zip(row, columns, strict=True)]
        found.append([v > 0.5 for v in scaled])
    return found


def test_robustness_distance_is_absolute_and_not_rounded():
    right = np.eye(4)[LABELS]
    wrong = np.eye(4)[(LABELS + 1) % 4]
    some = np.concatenate([right[:2], wrong[2:]])
    assert robustness_distance(right, some, LABELS) == robustness_distance(some, right, LABELS) == 1 - 2 / 7
    assert robustness_distance(right, right, LABELS) == 0
    assert robustness_distance(right, wrong, LABELS) == 1
    assert robustness_distance(some, np.concatenate([wrong[:5], right[5:]]), LABELS) == 0


def test_neuron_distances_are_those_of_a_loop():
    outputs = [abs(float(A[i][j]) - float(B[i][j])) for i, j in enumerate(NEURONS)]
    assert neuron_output_distance(A, B, NEURONS) == pytest.approx(sum(outputs) / 7)
    differ = [active(A)[i][j] != active(B)[i][j] for i, j in enumerate(NEURONS)]
    assert neuron_activation_distance(A, B, NEURONS) == sum(differ) / 7


def test_layer_distances_are_those_of_a_loop():
    norms = [
        sum((float(x) - float(y)) ** 2 for x, y in zip(u, v, strict=True)) ** 0.5 for u, v in zip(A, B, strict=True)
    ]
    assert layer_output_distance(A, B) == pytest.approx(sum(norms) / 7 / 2)
    differ = [x != y for u, v in zip(active(A), active(B), strict=True) for x, y in zip(u, v, strict=True)]
    assert layer_activation_distance(A, B) == sum(differ) / 28


def test_activation_golden_value():
    got = activated(np.array([[0.0, 5, 7, -1], [10, 6, 7, -3], [5.1, 5.4, 7, -1.9]]))
    np.testing.assert_array_equal(
        got, [[False, False, False, True], [True, True, False, False], [True, False, False, True]]
    )


def test_activation_forgets_scale_and_offset_of_each_neuron():
    scale, offset = np.array([3.0, 0.1, 7, 50]), np.array([0.0, -4, 9, 1])
    np.testing.assert_array_equal(activated(A * scale + offset), activated(A))
    assert neuron_activation_distance(A, A * scale, NEURONS) == layer_activation_distance(A, A * scale) == 0
    assert layer_activation_distance(A, -A) > 0.5


def test_a_neuron_that_responds_to_all_alike_is_not_activated():
    noisy = np.full((4, 2), 0.3, np.float32)
    noisy[1] += np.float32(1e-7)
    assert not activated(noisy).any()
    assert not activated(np.zeros((3, 2))).any()
    assert not activated(np.array([[2.0, 1.0]])).any()


def test_distances_do_not_grow_with_width():
    wide_a, wide_b = np.tile(A, (1, 9)), np.tile(B, (1, 9))
    assert layer_output_distance(wide_a, wide_b) == pytest.approx(layer_output_distance(A, B))
    assert layer_activation_distance(wide_a, wide_b) == layer_activation_distance(A, B)
    assert neuron_output_distance(wide_a, wide_b, NEURONS + 8) == neuron_output_distance(A, B, NEURONS)
    assert neuron_activation_distance(wide_a, wide_b, NEURONS + 8) == neuron_activation_distance(A, B, NEURONS)


def test_distances_are_symmetric_and_zero_for_a_copy():
    for distance in (neuron_output_distance, neuron_activation_distance):
        assert distance(A, B, NEURONS) == distance(B, A, NEURONS) > 0
        assert distance(A, A, NEURONS) == 0
    for distance in (layer_output_distance, layer_activation_distance):
        assert distance(A, B) == distance(B, A) > 0
        assert distance(A, A) == 0


def test_jensen_shannon_is_that_of_a_loop():
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (A, B))
    middle = (p + q) / 2
    wanted = [(0.5 * a * np.log(a / m) + 0.5 * b * np.log(b / m)).sum() for a, b, m in zip(p, q, middle, strict=True)]
    assert jensen_shannon(p, q) == pytest.approx(np.mean(wanted), rel=1e-5)
    assert jensen_shannon(np.eye(3), np.eye(3)[[1, 2, 0]]) == pytest.approx(np.log(2))
