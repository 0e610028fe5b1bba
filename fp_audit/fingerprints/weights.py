"""Comparison of weight tensors, by value and shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, lgamma
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._base import Method
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop

MIN_ROWS, MIN_COLUMNS = 6, 4
"""A matrix with fewer rows or columns cannot tell a copy from chance."""

MATCHED = 1e-3
"""p-value at which a tensor is counted as matched in the report."""

CERTAIN = 1e-12
"""p-value at which no better counterpart is looked for."""


@dataclass(frozen=True)
class TensorMatch:
    """The best counterpart of one tensor of the victim."""

    p_value: float
    cosine: float
    relative_l2: float
    """||a - b|| / ||a||."""
    equal: bool


class Weights(Method):
    """Do the suspect's weight matrices have the victim's rows, in the victim's order?

    Each matrix of the victim (two or more axes, flattened to rows = output channels) is compared with every matrix
    of the suspect that has its shape, names ignored; plain matrices also transposed, as ONNX stores them. For each row
    the most correlated row of the other matrix is looked up (Pearson, which ignores the positive factor that folded
    BatchNorm or a quantiser applies), and k, the number of rows whose best match is the row of the same index, is
    counted. Networks trained independently have hidden units in arbitrary order: relabelling the units of one of
    them at random leaves its distribution as it was, so that ``P(k or more) <= 1/k!``, without a null. (The
    expected number of k-subsets of fixed points of a random relabelling is at most 1/k!; Markov.) The best of m
    counterparts costs a factor m. Tensors depend on each other; their p-values are merged by the median, ``p = 2
    median``, valid under any dependence (Rueschendorf 1982), so that at least half of the victim's matrices must
    match: one shared table of positions is not evidence. A matrix whose rows are classes has its columns compared
    instead: classes come in the same order in independent models.

    Score: mean over the victim's matrices of the cosine with the best counterpart (0 where there is none), in [-1, 1].
    ``identical`` if every tensor of either model equals one of the other.

    Source: the permutation test follows Zhu et al., "Independence Tests for Language Models", ICML 2025. Differences:
    fixed points of the best match and an exact bound, instead of a linear assignment and Spearman's correlation; at
    most ``rows`` rows of a matrix are looked at. Not covered here: permuted channels, structural pruning.
    """

    name: ClassVar[str] = "weights"
    summary: ClassVar[str] = "equality and correlation of weight tensors, by value and shape"
    paper: ClassVar[str] = "after Zhu et al., ICML 2025"
    withstands: ClassVar[str] = (
        "renaming, re-sharding, conversion, fine-tuning, pruning, quantisation, folded BatchNorm"
    )
    misses: ClassVar[str] = "extraction, permuted channels, other shapes"
    victim_access: ClassVar[Access] = Access.WEIGHTS
    suspect_access: ClassVar[Access] = Access.WEIGHTS
    needs_data: ClassVar[bool] = False
    aligned: ClassVar[bool] = False

    def __init__(self, *, rows: int = 256) -> None:
        self.options = {"rows": rows}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del score, null
        if not detail["matched"]:
            return f"shares none of the victim's {detail['matrices']} weight matrices"
        how = f"cosine {detail['cosine']:.3f}" + (f", {detail['equal']} of them bit for bit" if detail["equal"] else "")
        return f"has {detail['matched']} of the victim's {detail['matrices']} weight matrices, row by row ({how})"

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        del rng, workshop
        tensors = [np.asarray(value) for value in victim.tensors().values() if _is_weight(value)]
        arrays = {f"tensor{index}": value for index, value in enumerate(tensors)}
        classes = len(data.classes) if data and data.classes else int(data.labels.max()) + 1 if data else None
        return Fingerprint(self.name, {}, arrays, {"tensors": len(tensors), "classes": classes})

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        ours = list(fingerprint.arrays.values())
        theirs = [np.asarray(value) for value in suspect.tensors().values() if _is_weight(value)]
        matrices = [tensor for tensor in ours if _eligible(tensor)]
        if not matrices:
            raise NotApplicable("the victim has no matrix large enough to compare")
        by_shape = _by_shape(theirs)
        shared = [tensor for tensor in matrices if by_shape.get(tensor.shape)]
        if not shared:
            raise NotApplicable("no weight matrix has a shape of the victim's")
        matches = [
            _best(tensor, by_shape[tensor.shape], self.options["rows"], fingerprint.facts["classes"])
            for tensor in shared
        ]
        missing = [TensorMatch(1.0, 0.0, 1.0, equal=False)] * (len(matrices) - len(shared))
        return _score(matches + missing, identical=_same_tensors(ours, theirs))


def _score(matches: list[TensorMatch], *, identical: bool) -> Score:
    """Merge the tensors: the median cosine and L2 in the detail are over the matched ones."""
    p = np.sort([match.p_value for match in matches])
    middle = ceil(len(p) / 2)
    matched = [match for match in matches if match.p_value <= MATCHED]
    return Score(
        float(np.mean([match.cosine for match in matches])),
        p_value=float(np.clip(p[middle - 1] * len(p) / middle, np.finfo(float).tiny, 1.0)),
        identical=identical,
        detail={
            "matrices": len(matches),
            "matched": len(matched),
            "equal": sum(match.equal for match in matches),
            "cosine": float(np.median([match.cosine for match in matched])) if matched else None,
            "relative_l2": float(np.median([match.relative_l2 for match in matched])) if matched else None,
        },
    )


def _best(ours: NDArray[Any], candidates: list[NDArray[Any]], rows: int, classes: int | None) -> TensorMatch:
    """Return the counterpart with the smallest p-value, multiplied by their number."""
    best = TensorMatch(1.0, 0.0, 1.0, equal=False)
    for theirs in candidates:
        p = min(1.0, len(candidates) * fixed_points_p(ours, theirs, rows=rows, classes=classes))
        if p < best.p_value:
            best = TensorMatch(p, *_closeness(ours, theirs))
        if best.p_value <= CERTAIN:
            break
    return best


def fixed_points_p(a: NDArray[Any], b: NDArray[Any], *, rows: int, classes: int | None) -> float:
    """Return 1/k!, k = number of rows of ``a`` whose most correlated row of ``b`` has the same index.

    Args:
        a: weight of shape R x ..., the victim's.
        b: weight of the same shape.
        rows: look at no more than this many rows, evenly spaced.
        classes: if R equals it, columns are compared instead of rows.
    """
    first, second = _matrix(a, classes), _matrix(b, classes)
    pick = np.unique(np.linspace(0, len(first) - 1, min(rows, len(first))).astype(int))
    correlation = _unit_rows(first[pick]) @ _unit_rows(second[pick]).T
    same = (correlation.argmax(axis=1) == np.arange(len(pick))) & (correlation.max(axis=1) > 0)
    return float(np.exp(-lgamma(int(same.sum()) + 1)))


def _matrix(tensor: NDArray[Any], classes: int | None) -> NDArray[np.float32]:
    matrix = np.asarray(tensor, np.float32).reshape(len(tensor), -1)
    return matrix.T if len(matrix) == classes else matrix


def _unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre each row and scale it to length one; a constant row becomes zero and matches nothing."""
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-20))


def _closeness(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float, bool]:
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    size = float(np.linalg.norm(x))
    cosine = float(x @ y / max(size * float(np.linalg.norm(y)), 1e-300))
    return cosine, float(np.linalg.norm(x - y)) / max(size, 1e-300), bool((x == y).all())


def _by_shape(tensors: Iterable[NDArray[Any]]) -> dict[tuple[int, ...], list[NDArray[Any]]]:
    """Group matrices by shape; a plain matrix stands also under its transposed shape."""
    groups: dict[tuple[int, ...], list[NDArray[Any]]] = {}
    for tensor in tensors:
        if _eligible(tensor) or (tensor.ndim == 2 and _eligible(tensor.T)):
            groups.setdefault(tensor.shape, []).append(tensor)
            if tensor.ndim == 2:
                groups.setdefault(tensor.shape[::-1], []).append(tensor.T)
    return groups


def _is_weight(tensor: NDArray[Any]) -> bool:
    return np.issubdtype(tensor.dtype, np.floating) and tensor.size > 1


def _eligible(tensor: NDArray[Any]) -> bool:
    return tensor.ndim >= 2 and len(tensor) >= MIN_ROWS and tensor[0].size >= MIN_COLUMNS


def _same_tensors(ours: Iterable[NDArray[Any]], theirs: Iterable[NDArray[Any]]) -> bool:
    """Whether both hold the same set of tensors, by value and shape."""
    return {_key(tensor) for tensor in ours} == {_key(tensor) for tensor in theirs}


def _key(tensor: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    return tensor.shape, hashlib.sha256(np.ascontiguousarray(tensor, np.float32).data).digest()
