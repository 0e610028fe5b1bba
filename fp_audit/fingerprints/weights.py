"""Comparison of weight tensors: in order, in another order, as adapters, and as differences from a base."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lgamma
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._adapted import compare_adapters, is_adapter
from fp_audit.fingerprints._base import Method
from fp_audit.fingerprints._closeness import UNLIKE, Closeness, closeness, direction, unbiased_cka
from fp_audit.fingerprints._differences import against_base, conclusion
from fp_audit.fingerprints._merging import merged
from fp_audit.fingerprints._places import places
from fp_audit.fingerprints._relabelled import Relabelled, relabelled
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop

Array: TypeAlias = NDArray[Any]
Candidates: TypeAlias = list[tuple[Array, NDArray[np.float32]]]
"""Tensors of one shape, each with a sample of its values."""

MIN_ROWS, MIN_COLUMNS = 6, 4
"""A matrix with fewer rows or columns cannot tell a copy from chance."""

MATCHED = 1e-3
"""p-value at which a tensor is counted as matched in the report."""

CERTAIN = 1e-12
"""p-value at which no better counterpart is looked for."""

WHOLE = 0.9
"""Share of the matrices found in order from which no other order is looked for, if their p-value is ``CERTAIN``."""

TRIED, SAMPLE = 2, 2**12
"""Counterparts of a tensor that are tested, and the values that they are chosen by."""

LISTED = 500
"""Layers that the detail of a score lists."""

DESCRIBED = 32
"""Pairs of tensors that CKA is computed for and signs of pruning and quantisation are looked for in."""


@dataclass(frozen=True)
class TensorMatch:
    """The best counterpart of one tensor of the victim, in order."""

    p_value: float
    theirs: Array | None = None
    """The counterpart, in the layout of the victim's tensor."""
    close: Closeness = UNLIKE


class Weights(Method):
    """Do the suspect's weight matrices have the victim's rows, in the victim's order or in another?

    *In order.* Each matrix of the victim (two or more axes, flattened to rows = output channels) is compared with every
    matrix of the suspect that has its shape, names ignored; plain matrices also transposed, as ONNX stores them. For
    each row the most correlated row of the other matrix is looked up (Pearson, which ignores the positive factor that
    folded BatchNorm or a quantiser applies), and k, the number of rows whose best match is the row of the same index,
    is counted. Networks trained independently have hidden units in arbitrary order: relabelling the units of one of
    them at random leaves its distribution as it was, so that ``P(k or more) <= 1/k!``, without a null. (The expected
    number of k-subsets of fixed points of a random relabelling is at most 1/k!; Markov.) Rows of some matrices are no
    hidden units but pixels, tokens or positions, which stand in one order everywhere; then the columns are hidden
    units. So plain matrices are compared by rows and by columns, and the larger p-value counts, which is valid if
    either is; where the rows are known to be classes, by columns. The best of m counterparts costs a factor m.

    *In another order.* Permuted, rescaled, BatchNorm-folded and structurally pruned copies: see ``_relabelled``; a sign
    test under a null hypothesis that is stated and generous, not exact.

    Tensors depend on each other; the p-values of each of the two tests are merged by two rules that are valid
    under any dependence (Rueger 1978: ``p = m/r p_(r)``, the r-th smallest of m): r = m/2, the median, and r = 3, so
    that a few copied blocks of a deep network are found and a single shared table of positions is not evidence. The
    smallest of the merged p-values is multiplied by their number (Bonferroni).

    *Adapters* (LoRA) are compared by the products of their factors, see ``_adapted``; against a full model they are not
    applicable. *With a base model* (``Subject.base``) that both resemble, the differences from it are compared, see
    ``_differences``: differences that are not taken over leave the mark ``related``, for the verdict
    ``common-ancestor``.

    Score: mean over the victim's matrices of the cosine with the best counterpart (0 where there is none), in [-1,
    1]; of a matrix found in another order, of the aligned and balanced tensors. ``identical`` if every tensor of
    either model equals one of the other. Bit distance, CKA (``_closeness``) and the direction of descent are shown,
    not tested.

    Source: the permutation test follows Zhu et al., "Independence Tests for Language Models", ICML 2025. Differences:
    fixed points of the best match and an exact bound, instead of a linear assignment and Spearman's correlation; at
    most ``rows`` rows of a matrix are looked at. Networks that were initialised alike (same seed) count as related.
    """

    name: ClassVar[str] = "weights"
    summary: ClassVar[str] = "equality and correlation of weight tensors, by value and shape, in any order of units"
    paper: ClassVar[str] = "after Zhu et al., ICML 2025"
    withstands: ClassVar[str] = (
        "renaming, re-sharding, conversion, fine-tuning, pruning, quantisation, folded BatchNorm, "
        "permuted and rescaled channels"
    )
    misses: ClassVar[str] = "extraction, long training after a permutation, other widths of every layer"
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
            aligned, matrices = detail.get("aligned"), detail["matrices"]
            limit = f"; {aligned} of them were looked for in any order" if aligned and 2 * aligned <= matrices else ""
            return f"shares none of the victim's {matrices} {detail['kind']}{limit}"
        how = f"cosine {detail['cosine']:.3f}" + (f", {detail['equal']} of them bit for bit" if detail["equal"] else "")
        if detail["relabelled"]:
            how += f"; {detail['agreeing']:.0%} of the hidden units agree"
        found = (
            f"has {detail['matched']} of the victim's {detail['matrices']} {detail['kind']}, {detail['manner']} ({how})"
        )
        return found + (f": {detail['places']}" if detail["places"] else "") + conclusion(detail)

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        del rng, workshop
        tensors = {name: np.asarray(value) for name, value in victim.tensors().items() if _is_weight(value)}
        arrays = {f"tensor{index}": value for index, value in enumerate(tensors.values())}
        classes = data.class_count if data else None
        facts = {"tensors": len(tensors), "classes": classes, "names": list(tensors)}
        return Fingerprint(self.name, {}, arrays, facts)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        ours = {name: fingerprint.arrays[f"tensor{place}"] for place, name in enumerate(fingerprint.facts["names"])}
        theirs = {name: np.asarray(value) for name, value in suspect.tensors().items() if _is_weight(value)}
        if is_adapter(ours) or is_adapter(theirs):
            return replace(compare_adapters(ours, theirs), identical=_same_tensors(ours.values(), theirs.values()))
        rng = np.random.default_rng(fingerprint.options["seed"])
        found = compare_tensors(ours, list(theirs.values()), self.options["rows"], fingerprint.facts["classes"], rng)
        base = suspect.base()
        return found if base is None else against_base(found, ours.values(), theirs.values(), base.values())


def compare_tensors(
    ours: Mapping[str, Array], theirs: Sequence[Array], rows: int, classes: int | None, rng: np.random.Generator
) -> Score:
    """Compare all weights of two models that are no adapters.

    Args:
        ours: the victim's, by name.
        theirs: the suspect's.
        rows: most rows of a matrix that are looked at.
        classes: of the victim, if known.
        rng: breaks ties of alignments.

    Raises:
        NotApplicable: no matrix is large enough, or no two can correspond.
    """
    matrices = {name: tensor for name, tensor in ours.items() if _eligible(tensor)}
    if not matrices:
        raise NotApplicable("the victim has no matrix large enough to compare")
    by_shape = _by_shape(theirs)
    matches = [_best(tensor, by_shape.get(tensor.shape, []), rows, classes) for tensor in matrices.values()]
    in_order, moved, linked = merged([match.p_value for match in matches]), dict[int, Relabelled](), False
    whole = sum(match.p_value <= MATCHED for match in matches) >= WHOLE * len(matches)
    if in_order > CERTAIN or not whole:
        moved = relabelled(list(matrices.values()), [tensor for tensor in theirs if tensor.ndim >= 2], rng)
        linked = any(item.units for item in moved.values())
        if not linked and not any(tensor.shape in by_shape for tensor in matrices.values()):
            raise NotApplicable("no weight matrix has a shape of the victim's")
    anew = merged([item.p_value for item in moved.values()]) if linked else 1.0
    p = min(1.0, 2 * min(in_order, anew)) if linked or in_order <= CERTAIN else in_order
    detail, value = _described(matrices, matches, moved if anew <= MATCHED else {})
    detail["aligned"] = len(moved)
    return Score(value, p_value=p, identical=_same_tensors(ours.values(), theirs), detail=detail)


def _described(
    matrices: Mapping[str, Array], matches: Sequence[TensorMatch], moved: Mapping[int, Relabelled]
) -> tuple[dict[str, Any], float]:
    """Return the detail and the value of a score; ``moved`` is empty unless another order is evidence."""
    layers = [_layer(name, match, moved.get(i)) for i, (name, match) in enumerate(zip(matrices, matches, strict=True))]
    matched = [layer for layer in layers if layer["matched"]]
    links = [moved[i] for i, layer in enumerate(layers) if layer["relabelled"]]
    units = sum(link.units for link in links)
    in_order = [
        (tensor, match.theirs, match.close)
        for tensor, match, layer in zip(matrices.values(), matches, layers, strict=True)
        if match.theirs is not None and layer["matched"] and not layer["relabelled"]
    ]
    pairs = [(ours, theirs) for ours, theirs, _ in in_order[:DESCRIBED]]
    detail = {
        "kind": "weight matrices",
        "manner": f"{len(links)} of them with hidden units in another order or scale" if links else "row by row",
        "matrices": len(layers),
        "matched": len(matched),
        "relabelled": len(links),
        "agreeing": sum(link.agreed for link in links) / units if units else None,
        "equal": sum(match.close.equal for match in matches),
        "cosine": _median(layer["cosine"] for layer in matched),
        "relative_l2": _median(close.relative_l2 for _, _, close in in_order),
        "bits": _median(close.bits for _, _, close in in_order),
        "cka": _median(cka for a, b in pairs if (cka := unbiased_cka(a, b)) is not None),
        "direction": direction(pairs) if pairs else None,
        "places": places({layer["name"]: layer["matched"] for layer in layers}),
        "layers": layers[:LISTED],
    }
    return detail, float(np.mean([layer["cosine"] for layer in layers]))


def _layer(name: str, match: TensorMatch, other: Relabelled | None) -> dict[str, Any]:
    if other is not None and other.p_value <= MATCHED and other.p_value < match.p_value:
        found = {"matched": True, "relabelled": True, "p_value": other.p_value, "cosine": other.cosine, "bits": None}
    else:
        found = {"matched": match.p_value <= MATCHED, "relabelled": False, "p_value": match.p_value}
        found |= {"cosine": match.close.cosine, "bits": match.close.bits}
    return {"name": name, **found}


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None


def _best(ours: Array, candidates: Candidates, rows: int, classes: int | None) -> TensorMatch:
    """Return the counterpart with the smallest p-value, multiplied by the number of candidates."""
    best = TensorMatch(1.0)
    for theirs in _likeliest(ours, candidates):
        p = min(1.0, len(candidates) * _either_way(ours, theirs, rows, classes))
        if p < best.p_value:
            best = TensorMatch(p, theirs)
        if best.p_value <= CERTAIN:
            break
    return best if best.theirs is None else replace(best, close=closeness(ours, best.theirs))


def _likeliest(ours: Array, candidates: Candidates) -> list[Array]:
    """Return the ``TRIED`` candidates of the largest cosine, by a sample of the values."""
    own = _sample(ours)
    cosines = np.array([own @ sample for _, sample in candidates])
    return [candidates[place][0] for place in np.argsort(-cosines)[:TRIED]]


def _sample(tensor: Array) -> NDArray[np.float32]:
    """Return about ``SAMPLE`` values, evenly spread, as a vector of length one; what is no number becomes zero."""
    step = max(1, tensor.size // SAMPLE) | 1  # odd: not always of the same columns
    values = np.nan_to_num(np.asarray(tensor.flat[::step], np.float64), posinf=0.0, neginf=0.0)
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-300), np.float32)


def _either_way(a: Array, b: Array, rows: int, classes: int | None) -> float:
    """Compare by rows; plain matrices also by columns, rows first brought to one length; the larger p-value counts."""
    p = fixed_points_p(a, b, rows=rows, classes=classes)
    if a.ndim > 2 or len(a) == classes or p > MATCHED:
        return p
    first, second = (value / np.maximum(np.linalg.norm(value, axis=1, keepdims=True), 1e-20) for value in (a, b))
    return max(p, fixed_points_p(first.T, second.T, rows=rows, classes=None))


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


def _by_shape(tensors: Iterable[Array]) -> dict[tuple[int, ...], Candidates]:
    """Group matrices by shape; a plain matrix stands also under its transposed shape."""
    groups: dict[tuple[int, ...], Candidates] = {}
    for tensor in tensors:
        if _eligible(tensor) or (tensor.ndim == 2 and _eligible(tensor.T)):
            for layout in (tensor, tensor.T) if tensor.ndim == 2 else (tensor,):
                groups.setdefault(layout.shape, []).append((layout, _sample(layout)))
    return groups


def _is_weight(tensor: NDArray[Any]) -> bool:
    return np.issubdtype(tensor.dtype, np.floating) and tensor.size > 1


def _eligible(tensor: NDArray[Any]) -> bool:
    return tensor.ndim >= 2 and len(tensor) >= MIN_ROWS and tensor[0].size >= MIN_COLUMNS


def _same_tensors(ours: Iterable[NDArray[Any]], theirs: Iterable[NDArray[Any]]) -> bool:
    """Whether both hold the same set of tensors, by value and shape; the small ones are looked at first."""
    first, second = _grouped(ours), _grouped(theirs)
    if first.keys() != second.keys():
        return False
    return all(
        set(map(_digest, first[shape])) == set(map(_digest, second[shape])) for shape in sorted(first, key=math.prod)
    )


def _grouped(tensors: Iterable[NDArray[Any]]) -> dict[tuple[int, ...], list[NDArray[Any]]]:
    groups: dict[tuple[int, ...], list[NDArray[Any]]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.shape, []).append(tensor)
    return groups


def _digest(tensor: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor, np.float32).data).digest()
