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
    """Subtract each row's mean: removes the constant that softmax cannot see. N x K."""
    wide = np.asarray(answers, np.float64)
    return np.asarray(wide - wide.mean(axis=1, keepdims=True))


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
