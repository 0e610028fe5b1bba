"""One p-value of many that depend on each other in unknown ways."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

FEW = 3
"""Matrices that must match before a part of a network is evidence: one shared table is none."""


def merged(p_values: Sequence[float]) -> float:
    """Merge the p-values of m matrices by two rules that are valid under any dependence.

    Rueger (1978): ``p = m/r p_(r)``, with the r-th smallest of m. r = m/2 is the median; r = ``FEW`` finds a few copied
    blocks of a deep network. The smaller one is doubled where both apply (Bonferroni).
    """
    if ceil(len(p_values) / 2) <= FEW:
        return median(p_values)
    return min(1.0, 2 * min(median(p_values), _ranked(p_values, FEW)))


def median(p_values: Sequence[float]) -> float:
    """Merge by the median alone: at least half of the matrices must agree."""
    return _ranked(p_values, ceil(len(p_values) / 2))


def _ranked(p_values: Sequence[float], rank: int) -> float:
    return float(np.clip(np.sort(p_values)[rank - 1] * len(p_values) / rank, np.finfo(float).tiny, 1.0))
