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
    p, half = np.sort(p_values), ceil(len(p_values) / 2)
    ranks = [half] if half <= FEW else [half, FEW]
    least = min(float(p[rank - 1]) * len(p) / rank for rank in ranks)
    return float(np.clip(len(ranks) * least, np.finfo(float).tiny, 1.0))
