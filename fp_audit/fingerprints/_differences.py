"""Two models that share a base: did one take over what the other changed?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._merging import merged
from fp_audit.fingerprints._relabelled import sign_test
from fp_audit.types import Score

MOVED = 1e-6
"""Change of a row, relative to its length, that is more than rounding."""

KIN = 0.5
"""Cosine from which a tensor of the base is the origin of one of the victim."""


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
        order, so that the differences cannot be formed; else with the merged p-value of ``taken_over`` and the mark
        ``related``.

    Raises:
        NotApplicable: the victim does not come from this base, or is the base.
    """
    if found.identical or found.p_value is None or found.p_value > SHARED:
        return found
    matrices = [tensor for tensor in ours if tensor.ndim >= 2]
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
    return replace(found, p_value=merged(p_values), detail={**detail, "related": True})


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

    Two fine-tunes that left the base independently are further from each other than from it; data that they share pulls
    them the same way, but not with less than 60 degrees between them on most rows. A row votes for derivation if
    victim and suspect are nearer to each other than either is to the base. The null hypothesis grants each vote a
    probability of one half: sign test (``_relabelled.sign_test``). Rows that either model left as they were have no
    vote.

    A suspect that moved from the victim further than the victim had moved from the base, or that was quantised more
    coarsely than that, cannot be told from a sibling by this and comes out as one.
    """
    v, s, b = (np.asarray(value, np.float64).reshape(len(value), -1) for value in (ours, theirs, base))
    to_victim, to_suspect, apart = (np.linalg.norm(x - y, axis=1) for x, y in ((v, b), (s, b), (v, s)))
    moved = _moved(ours, base) & _moved(theirs, base)
    votes = apart[moved] < np.minimum(to_victim, to_suspect)[moved]
    return sign_test(int(votes.sum()), int(moved.sum()))


def _moved(tensor: NDArray[Any], base: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows differ by more than rounding."""
    x, y = (np.asarray(value, np.float64).reshape(len(value), -1) for value in (tensor, base))
    return np.asarray(np.linalg.norm(x - y, axis=1) > MOVED * np.linalg.norm(y, axis=1))


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    found = float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-300))
    return found if np.isfinite(found) else 0.0
