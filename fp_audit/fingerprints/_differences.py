"""Two models that share a base: did one take over what the other changed?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._merging import median
from fp_audit.fingerprints._relabelled import sign_test
from fp_audit.types import Score

MOVED = 1e-6
"""Change of a row, relative to its length, that is more than rounding."""

KIN = 0.5
"""Cosine from which a tensor of the base is the origin of one of the victim."""


LEADING = 0.9
"""Share of a difference's energy in the directions that the task may have asked for."""

ROWS, COLUMNS = 256, 1024
"""Most rows and columns of a tensor that are looked at, evenly spread."""

SHARED = 1e-3
"""p-value at which two models share weights."""


def against_base(
    found: Score,
    ours: Collection[NDArray[Any]],
    theirs: Collection[NDArray[Any]],
    base: Collection[NDArray[Any]],
) -> Score:
    """Replace the p-value of a suspect that shares the victim's weights by one about the victim's changes to the base.

    Args:
        found: score without the base.
        ours: the victim's tensors.
        theirs: the suspect's.
        base: the base's.

    Returns:
        ``found`` where nothing is shared; without a p-value where most of the suspect's tensors stand in another
        order, so that the differences cannot be formed; else with the median p-value of ``taken_over`` and the mark
        ``related``.

    Raises:
        NotApplicable: the victim does not come from this base, or is the base.
    """
    if found.identical or found.p_value is None or found.p_value > SHARED:
        return found
    matrices = _distinct(tensor for tensor in ours if tensor.ndim >= 2)
    known = [(tensor, origin) for tensor in matrices if (origin := nearest(tensor, base)) is not None]
    if 2 * len(known) < len(matrices):
        raise NotApplicable(
            f"the base model has {len(known)} of the victim's {len(matrices)} matrices: is it the base?"
        )
    changed = [(tensor, origin) for tensor, origin in known if _moved(tensor, origin).any()]
    if not changed:
        raise NotApplicable("the victim does not differ from the base model: there is nothing that could be taken over")
    triples = [(tensor, nearest(tensor, theirs), origin) for tensor, origin in changed]
    p_values = [1.0 if other is None else taken_over(tensor, other, origin) for tensor, other, origin in triples]
    formed = sum(other is not None for _, other, _ in triples)
    about = {"changed": len(changed), "formed": formed, "taken_over": sum(p <= SHARED for p in p_values)}
    detail = {**found.detail, "base": {**about, "shared_p": found.p_value}}
    if 2 * formed < len(changed):
        return replace(found, p_value=None, detail=detail)
    return replace(found, p_value=median(p_values), detail={**detail, "related": True})


def _distinct(tensors: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
    """Leave out tensors that are there twice, as tied embeddings are."""
    found = {(tensor.shape, np.ascontiguousarray(tensor).tobytes()): tensor for tensor in tensors}
    return list(found.values())


def conclusion(detail: Mapping[str, Any]) -> str:
    """End the explanation of a score with what the base says; nothing where none was given or needed."""
    if "base" not in detail:
        return ""
    base = detail["base"]
    counted = f"in {base['taken_over']} of {base['changed']} changed matrices"
    if 2 * base["formed"] < base["changed"]:
        return "; whether it has them from the victim or from the base model cannot be told in another order"
    return f"; it took over what the victim had changed in the base model {counted}"


def nearest(tensor: NDArray[Any], candidates: Collection[NDArray[Any]]) -> NDArray[Any] | None:
    """Return the candidate of the tensor's shape with the largest cosine, if that is ``KIN`` or more.

    Plain matrices are also found transposed, and are returned in the layout of ``tensor``.
    """
    fitting = [other for other in candidates if other.shape == tensor.shape]
    fitting += [other.T for other in candidates if other.ndim == 2 and other.T.shape == tensor.shape]
    scored = [(_cosine(tensor, other), place, other) for place, other in enumerate(fitting)]
    best = max(scored, key=lambda item: item[:2], default=None)
    return best[2] if best is not None and best[0] >= KIN else None


def taken_over(ours: NDArray[Any], theirs: NDArray[Any], base: NDArray[Any]) -> float:
    """Return the p-value of "the suspect did not start from the victim" for one tensor of which all three are known.

    Fine-tunes of one base on like data change it alike: their differences from it may have a cosine of .8. But what a
    task asks for lies in a few directions (gradients are of low rank); the rest of a difference is the noise of
    batches, which a sibling draws anew and a child inherits. So the leading singular directions that hold ``LEADING``
    of a difference's energy are taken out. A row votes for derivation if the suspect has at least half of what
    remains of the victim's difference (projection), and the victim half of what remains of the suspect's. The null
    hypothesis grants each vote a probability of one half: sign test (``_relabelled.sign_test``).
    ``benchmarks/lineage.py`` measures both kinds. Rows that either model left as they were have no vote. At most
    ``ROWS`` x ``COLUMNS`` are looked at.

    A suspect that moved from the victim further than the victim had moved from the base, or that was quantised more
    coarsely than that, cannot be told from a sibling by this and comes out as one.
    """
    rows, columns = _spread(len(base), ROWS), _spread(base[0].size, COLUMNS)
    v, s, b = (np.asarray(x, np.float64).reshape(len(base), -1)[rows][:, columns] for x in (ours, theirs, base))
    moved = _moved(v, b) & _moved(s, b)
    if not moved.any():
        return 1.0
    votes = _holds(s - b, _remainder(v - b)) & _holds(v - b, _remainder(s - b))
    return sign_test(int(votes[moved].sum()), int(moved.sum()))


def _spread(size: int, most: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.intp))


def _remainder(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the leading singular directions out."""
    left, values, right = np.linalg.svd(difference, full_matrices=False)
    energy = np.cumsum(np.square(values))
    leading = int(np.searchsorted(energy, LEADING * energy[-1])) + 1
    return np.asarray((left[:, leading:] * values[leading:]) @ right[leading:])


def _holds(difference: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell of which rows ``difference`` has at least half of ``part``."""
    size = np.square(part).sum(axis=1)
    return np.asarray((size > 0) & ((difference * part).sum(axis=1) >= size / 2))


def _moved(tensor: NDArray[Any], base: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows differ by more than rounding."""
    x, y = (np.asarray(value, np.float64).reshape(len(value), -1) for value in (tensor, base))
    return np.asarray(np.linalg.norm(x - y, axis=1) > MOVED * np.linalg.norm(y, axis=1))


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    found = float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-300))
    return found if np.isfinite(found) else 0.0
