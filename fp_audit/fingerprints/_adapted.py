"""Low-rank adapters (LoRA): pairs of factors B (out x r) and A (r x in) whose product is added to a weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._merging import merged
from fp_audit.types import Score

Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""A (r x in) and B (out x r)."""

_FACTOR = re.compile(r"^(?P<place>.+)\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_]+)?(?:\.weight)?$")

GRANTED = 0.5
"""Share of an adapter's directions that independent adapters of one base may have in common."""

MATCHED = 1e-3
"""p-value at which an update is counted as matched in the report."""

ALIKE = 0.5
"""Cosine of the products below which adapters are not alike, whatever directions they share."""

LEAST_SMALLER = 4
"""The input must be this many times the rank: else any two adapters overlap."""


@dataclass(frozen=True)
class Overlap:
    """What two adapters of one weight have in common."""

    p_value: float
    cosine: float
    """Of the two products B A."""
    shared: float
    """Mean squared cosine of the principal angles between the row spaces of both A."""


def is_adapter(tensors: Mapping[str, NDArray[Any]]) -> bool:
    """Whether most of a model's matrices are factors of an adapter."""
    return 4 * len(factors(tensors)) > sum(value.ndim >= 2 for value in tensors.values())


def compare_adapters(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> Score:
    """Compare two adapters, wherever the suspect says that its pairs belong.

    Score: mean cosine of the products, in [-1, 1]. The best of m counterparts of a pair costs a factor m.

    Raises:
        NotApplicable: one of the models is no adapter, or no two pairs can be compared.
    """
    if not is_adapter(theirs):
        raise NotApplicable(
            "the victim is a low-rank adapter and the suspect is none: register the model merged with it"
        )
    if not is_adapter(ours):
        raise NotApplicable(
            "it is a low-rank adapter: it holds changes to another model, and of the victim no changes are known"
        )
    found = [
        [one for pair in factors(theirs).values() if (one := overlap(mine, pair))] for mine in factors(ours).values()
    ]
    if not any(found):
        raise NotApplicable("the adapters have no weight in common whose shape allows a comparison")
    best = [min(some, key=lambda one: (one.p_value, -one.cosine)) if some else Overlap(1.0, 0.0, 0.0) for some in found]
    p_values = [min(1.0, len(some) * one.p_value) for some, one in zip(found, best, strict=True)]
    matched = [one for one, p in zip(best, p_values, strict=True) if p <= MATCHED]
    detail = {
        "kind": "low-rank updates",
        "manner": "up to a change of basis",
        "matrices": len(best),
        "matched": len(matched),
        "relabelled": 0,
        "equal": 0,
        "cosine": float(np.median([one.cosine for one in matched])) if matched else None,
        "shared": float(np.mean([one.shared for one in best])),
        "places": "",
    }
    return Score(float(np.mean([one.cosine for one in best])), p_value=merged(p_values), detail=detail)


def factors(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Pair]:
    """Find the pairs (A, B) of an adapter, by the place they belong to, as peft names them."""
    halves: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in tensors.items():
        if (match := _FACTOR.match(name)) and value.ndim == 2:
            halves.setdefault(match["place"], {})[match["side"]] = value
    return {
        place: (pair["A"], pair["B"])
        for place, pair in halves.items()
        if len(pair) == 2 and len(pair["A"]) == pair["B"].shape[1]
    }


def overlap(ours: Pair, theirs: Pair) -> Overlap | None:
    """Compare two adapters of one weight by their products: they stay when B becomes B R and A becomes R^-1 A.

    The rows of a product span the row space of A. Under the null hypothesis A was initialised at random, apart from
    the other one, so that its directions are uniformly distributed, and training turns at most half of them
    (``GRANTED``) to common ones, which the data ask for. The squared projection of a random unit vector of R^d on r
    given dimensions is Beta(r/2, (d - r)/2). If the mean over r directions is m, less the granted half at least one
    of them has 2 m - 1 or more, and the union over r gives ``p = r P(Beta >= 2 m - 1)``. Many people train with one
    seed, and A stays near its start: where the cosine of the products is below ``ALIKE``, p is 1.

    Returns:
        None where shapes differ, a product is zero, or the rank is too large to tell (``LEAST_SMALLER``).
    """
    from scipy.special import betaincc

    first, second = (_svd(*pair) for pair in (ours, theirs))
    size = ours[0].shape[1]
    if first is None or second is None or theirs[0].shape[1] != size or theirs[1].shape[0] != ours[1].shape[0]:
        return None
    (mine, left), (its, right) = first, second
    rank, fewer = max(len(left), len(right)), min(len(left), len(right))
    if size < LEAST_SMALLER * rank:
        return None
    shared = float(np.square(left @ right.T).sum()) / fewer
    excess = min(max(0.0, (shared - GRANTED) / (1 - GRANTED)), 1.0)
    cosine = float(((mine.T @ its) * (left @ right.T)).sum())
    cosine /= float(np.linalg.norm(mine) * np.linalg.norm(its))
    p = 1.0 if cosine < ALIKE else fewer * float(betaincc(rank / 2, (size - rank) / 2, excess))
    return Overlap(min(1.0, max(p, float(np.finfo(float).tiny))), cosine, shared)


def _svd(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Write B A as M V with orthonormal rows V (rank x in); None if it is zero or holds no numbers."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and a.any() and b.any()):
        return None
    _, values, directions = np.linalg.svd(a, full_matrices=False)
    kept = directions[values > values[0] * 1e-6]
    product = b @ (a @ kept.T)
    return (product, kept) if product.any() else None
