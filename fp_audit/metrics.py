"""Pure functions on arrays: similarities of answers, quality of a detector. Nothing is rounded, printed or loaded."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.floating]


def accuracy(answers: Floats, labels: NDArray[np.integer]) -> float:
    """Share of rows of ``answers`` (N x K) whose largest entry is at ``labels`` (N)."""
    return float((answers.argmax(axis=1) == labels).mean())


def matching_rate(answers: Floats, labels: NDArray[np.integer]) -> float:
    """Share of queries on which the suspect's top-1 label equals the victim's: 1 - Hamming distance, in [0, 1].

    Args:
        answers: the suspect's, N x K.
        labels: the victim's top-1 labels, N.
    """
    return accuracy(answers, labels)


def centred(answers: Floats) -> NDArray[np.float64]:
    """Subtract each row's mean: removes the constant that softmax cannot see. ... x K."""
    wide = np.asarray(answers, np.float64)
    return np.asarray(wide - wide.mean(axis=-1, keepdims=True))


def mean_cosine(a: Floats, b: Floats) -> float:
    """Mean over rows of the cosine between ``a`` and ``b`` (both N x K), in [-1, 1]. A zero row counts as 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    return float(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0).mean())


def pair_correlation(answers: Floats) -> NDArray[np.float64]:
    """Matrix of (1 - cos)/2 between the answers to each pair of queries (SAC), N x N, in [0, 1]."""
    wide = np.asarray(answers, np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return np.asarray((1.0 - unit @ unit.T) / 2.0)


def decision_distances(answers: Floats) -> NDArray[np.float64]:
    """1 - cos between row i and row i + N / 2 of ``answers`` (N x K), N / 2, in [0, 2] (ModelDiff's DDV).

    Of an odd number of rows the last is left out.
    """
    wide, half = np.asarray(answers, np.float64), len(answers) // 2
    first, second = wide[:half], wide[half : 2 * half]
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray(1.0 - (first * second).sum(axis=1) / np.maximum(norms, 1e-12))


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Mean over rows of the Jensen-Shannon divergence of probabilities ``p`` and ``q`` (N x K), in nats, [0, ln 2]."""
    from scipy.special import rel_entr

    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    middle = (p + q) / 2
    return float((0.5 * rel_entr(p, middle) + 0.5 * rel_entr(q, middle)).sum(axis=1).mean())


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative, ties count half."""
    pos, neg = np.asarray(positives, float)[:, None], np.asarray(negatives, float)[None, :]
    return float((pos > neg).mean() + 0.5 * (pos == neg).mean())


def tpr_at_fpr(positives: ArrayLike, negatives: ArrayLike, fpr: float) -> float:
    """Largest true-positive rate over thresholds that let at most ``fpr`` of the negatives through.

    With n negatives and ``fpr`` < 1/n no negative may pass.
    """
    pos, neg = np.asarray(positives, float), np.sort(np.asarray(negatives, float))[::-1]
    allowed = int(np.floor(fpr * len(neg) + 1e-9))
    if allowed >= len(neg):
        return 1.0
    return float((pos > neg[allowed]).mean())


# DeepJudge (Chen et al., S&P 2022): distances between two models on the same test cases, 0 for a copy.
# Responses are N x W: of each of the W neurons of one layer to each of N test cases.


def robustness_distance(a: Floats, b: Floats, labels: NDArray[np.integer]) -> float:
    """RobD, in [0, 1]: |Rob(a) - Rob(b)|, Rob being the share of adversarial examples that still get their true label.

    Args:
        a: answers of one model, N x K.
        b: answers of the other, N x K.
        labels: true labels, N.
    """
    return abs(accuracy(a, labels) - accuracy(b, labels))


def activated(responses: Floats) -> NDArray[np.bool_]:
    """Whether each neuron is in the upper half of its own range, N x W.

    Every neuron is scaled by its least and largest response over the N test cases, in this model, and thresholded at
    .5: scaling a channel, as folding a normalisation does, changes nothing. A neuron that responds to all alike (up to
    rounding) is not activated.
    """
    wide = np.asarray(responses, np.float64)
    low, spread = wide.min(axis=0), np.ptp(wide, axis=0)
    varies = spread > 1e-5 * np.abs(wide).max(axis=0)
    return np.asarray(varies & (wide - low > 0.5 * spread))


def neuron_output_distance(a: Floats, b: Floats, neurons: NDArray[np.integer]) -> float:
    """NOD: mean over test cases of |a - b| at the neuron that each was made for; in units of the responses, any width.

    Args:
        a: responses in one model, N x W.
        b: responses in the other, N x W.
        neurons: which neuron each test case was made for, N.
    """
    cases = np.arange(len(neurons))
    return float(np.abs(np.asarray(a, np.float64) - b)[cases, neurons].mean())


def neuron_activation_distance(a: Floats, b: Floats, neurons: NDArray[np.integer]) -> float:
    """NAD: share of test cases whose neuron is ``activated`` in one model and not in the other; in [0, 1], any width.

    Arguments as for ``neuron_output_distance``.
    """
    cases = np.arange(len(neurons))
    return float((activated(a) != activated(b))[cases, neurons].mean())


def layer_output_distance(a: Floats, b: Floats) -> float:
    """LOD: mean over test cases of ||a - b||_2 / sqrt(W); in units of the responses.

    Difference from the paper: its norm grows with the square root of the layer's width W; this is divided out.

    Args:
        a: responses in one model, N x W.
        b: responses in the other, N x W.
    """
    difference = np.asarray(a, np.float64) - b
    return float(np.sqrt(np.square(difference).mean(axis=1)).mean())


def layer_activation_distance(a: Floats, b: Floats) -> float:
    """LAD: share of (test case, neuron) pairs ``activated`` in one model and not in the other; in [0, 1], any width.

    Arguments as for ``layer_output_distance``.
    """
    return float((activated(a) != activated(b)).mean())
