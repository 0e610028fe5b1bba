"""How close two weight tensors are: what a report shows beside the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CKA_ROWS = 256
"""Rows that are compared, evenly spaced, if there are more."""

SAMPLED = 2**16
"""Values of a tensor that are looked at for signs of pruning and quantisation."""

PRUNED = 0.05
"""Additional share of zeros that shows pruning."""

GRID = 0.5
"""Share of the other's distinct values below which a tensor lies on a grid."""


@dataclass(frozen=True)
class Closeness:
    """Of two tensors of one shape."""

    cosine: float
    relative_l2: float
    """||a - b|| / ||a||."""
    bits: float
    """Share of the bits of their float32 values that differ; .5 is chance in the mantissa."""
    equal: bool


UNLIKE = Closeness(0.0, 1.0, 0.5, equal=False)
"""What is reported of a tensor that has no counterpart."""


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the cosine of two tensors of one shape; 0 if one is all zeros."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(x @ y / max(float(np.linalg.norm(x)) * float(np.linalg.norm(y)), 1e-300))


def closeness(a: NDArray[Any], b: NDArray[Any]) -> Closeness:
    """Compare two tensors of one shape, value by value."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    size = float(np.linalg.norm(x))
    single = [np.ascontiguousarray(value, np.float32).ravel().view(np.uint32) for value in (a, b)]
    bits = float(np.bitwise_count(single[0] ^ single[1]).mean()) / 32
    return Closeness(cosine(x, y), float(np.linalg.norm(x - y)) / max(size, 1e-300), bits, bool((x == y).all()))


def unbiased_cka(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Unbiased linear CKA of two tensors whose rows correspond: HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)).

    K and L are the Gram matrices of the rows (at most ``CKA_ROWS``), so that the columns may be in any order, or
    rotated. Zero on average for independent tensors, whatever their shape, unlike the biased form. Shown, not tested.

    Source: HSIC_1 is equation 5 of Song et al., "Feature Selection via Dependence Maximization", JMLR 2012; its use on
    weights is AWM's (ICLR 2026).

    Returns:
        At most 1; None with fewer than four rows, or where one of them is constant.
    """
    pick = np.unique(np.linspace(0, len(a) - 1, min(CKA_ROWS, len(a))).astype(int))
    if len(pick) < 4:
        return None
    k, m = (_gram(np.asarray(value[pick], np.float64).reshape(len(pick), -1)) for value in (a, b))
    own = _hsic(k, k) * _hsic(m, m)
    return float(_hsic(k, m) / np.sqrt(own)) if own > 0 else None


def _gram(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    gram = rows @ rows.T
    np.fill_diagonal(gram, 0.0)
    return np.asarray(gram / max(float(np.abs(gram).max()), 1e-300))


def _hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    n = len(k)
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return float(((k * m).sum() + sums) / (n * (n - 3)))


def direction(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, Any]:
    """Look for signs which of two related models was made from the other: the child has fewer degrees of freedom.

    Pruning leaves zeros, quantisation a grid of few values; neither can be undone without training. Kurtosis is shown
    for those who want to judge by it (Horwitz et al., "Unsupervised Model Tree Heritage Recovery", ICLR 2025).

    Args:
        pairs: tensors of the victim and of the suspect that correspond.

    Returns:
        ``child`` (``suspect``, ``victim``, or None where nothing tells) and, of each model, the share of zeros, the
        share of values that are distinct, and the excess kurtosis.
    """
    signs = np.mean([[_signs(a), _signs(b)] for a, b in pairs], axis=0)
    zeros, distinct, kurtosis = signs.T
    child = None
    if abs(zeros[0] - zeros[1]) > PRUNED:
        child = "suspect" if zeros[1] > zeros[0] else "victim"
    elif distinct.min() < GRID * distinct.max():
        child = "suspect" if distinct[1] < distinct[0] else "victim"
    named = {"zeros": zeros, "distinct": distinct, "kurtosis": kurtosis}
    return {"child": child, **{name: [round(float(value), 4) for value in both] for name, both in named.items()}}


def _signs(tensor: NDArray[Any]) -> tuple[float, float, float]:
    values = np.asarray(tensor, np.float64).ravel()[:SAMPLED]
    kept = values[values != 0]
    spread = float(values.std()) or 1.0
    kurtosis = float((((values - values.mean()) / spread) ** 4).mean()) - 3
    return 1 - len(kept) / len(values), len(np.unique(kept)) / max(len(kept), 1), kurtosis
