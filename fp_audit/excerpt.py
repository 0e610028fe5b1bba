"""The weights of a model judged from a small part of them, read where they lie: it can convict, it never acquits.

Headers come first. If no matrix of the model has the shape of one of the victim's, and most cannot be what is left of
the victim's when channels are pruned, there is nothing to compare, and the whole file would say no more. Else the first
rows of a few matrices are read and compared with the victim's. A model that shows no match there may still hold the
victim's weights elsewhere, or permuted: it is for the whole method to judge. What is read belongs to a file that may be
hostile; nothing but its numbers is used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._adapted import is_adapter
from fp_audit.fingerprints._closeness import cosine
from fp_audit.fingerprints._relabelled import LEAST_KEPT
from fp_audit.fingerprints.weights import MATCHED, MIN_COLUMNS, MIN_ROWS, fixed_points_p
from fp_audit.headers import Layout, Place, Readable, safetensors
from fp_audit.onnx_headers import onnx
from fp_audit.types import Access, Evidence, Fingerprint, Score

METHOD = "weights"
"""The method whose fingerprints are used."""
LEAST_ROWS, MOST_ROWS, ROW_BYTES = 16, 32, 2**15
"""Rows read of a matrix: as many as lie in ``ROW_BYTES``, within these limits."""
COMPARED = 256
"""Most rows or columns compared at once, evenly spaced."""
LEAST, MOST = 3, 8
"""Matrices to read before the first look, and at most. So many must match: one or two shared tables are no evidence."""
WINDOW = 2**17
"""Bytes of one request: neighbouring matrices are read together."""
MAX_BYTES = 2**19
"""Most bytes that are read of matrices."""
SHARE = 0.01
"""Share of the error rate that looks into an excerpt may use up; the rest is left to the whole method."""


_Span: TypeAlias = tuple[Place, int, int]
"""A matrix, and where its first rows begin and end in its file."""


@dataclass(frozen=True)
class _Match:
    """One matrix that was read, and the victim's that it fits best."""

    p_value: float
    cosine: float


@dataclass(frozen=True)
class _Window:
    """Matrices that one request brings."""

    places: tuple[Place, ...]
    begin: int
    end: int

    def fetch(self) -> None:
        """Fetch the first rows of all of them at once; what is there already is not fetched again."""
        if self.places[0].file is not None:
            self.places[0].file.read(self.begin, self.end)


class Excerpt:
    """A model whose files are read in parts, held against victims one after the other: no part is read twice."""

    def __init__(self, files: Mapping[str, Readable]) -> None:
        self._files = files
        self._unread = [path for path in files if path.endswith((".safetensors", ".onnx"))]
        self._layouts: list[Layout] = []

    def compare(self, fingerprint: Fingerprint, bound: float) -> Score | None:
        """Compare with a victim as far as that takes little; None if the whole model must be read to tell.

        For each matrix T that is read, ``fixed_points_p`` compares its first rows with the same rows of each of the N
        matrices of the victim that have its shape (plain ones also transposed, as ONNX stores them: then with the
        same columns of all rows), ``p_T = N min p``. Rows of plain matrices may be pixels, tokens or positions, which
        stand in one order everywhere; so these are compared by columns too, and the larger p-value counts. The
        matrices are chosen by shape and place alone, so each ``p_T`` is valid if the models are independent (see
        ``fingerprints.weights.Weights``), and so is ``p = 2 median`` over them under any dependence. It is multiplied
        by the number of looks, as reading stops at the first that convicts, and by ``1 / SHARE``. Matrices whose rows
        are classes are left out. The headers must show counterparts of at least half of the victim's matrices.

        Differences from the whole method: cosines are over what was read; ``identical`` cannot be told.

        Args:
            fingerprint: the victim's, of ``METHOD``.
            bound: p-value that decides; a score is returned only at or below it.

        Raises:
            NotApplicable: the shapes rule out that the model holds the victim's matrices.
            TargetError: the headers are damaged, or a part cannot be had.
        """
        if is_adapter(dict(zip(fingerprint.facts["names"], fingerprint.arrays.values(), strict=True))):
            return None  # factors may differ in shape and value where their products are equal
        ours = _Ours(fingerprint)
        while self._unread and not self._suffices(ours):
            path = self._unread.pop(0)
            self._layouts.append(onnx(path, self._files) if path.endswith(".onnx") else safetensors(self._files[path]))
        if not self._unread and all(layout.complete for layout in self._layouts) and ours.foreign(self._places):
            raise NotApplicable("no weight matrix has a shape of the victim's")
        return self._convicted(ours, bound) if self._suffices(ours, LEAST) else None

    @property
    def _places(self) -> list[Place]:
        """List the tensors of all files whose headers were read."""
        return [place for layout in self._layouts for place in layout.places]

    def _suffices(self, ours: _Ours, count: int = MOST) -> bool:
        """Whether the headers so far show half of the victim's shapes, and ``count`` matrices to read."""
        return 2 * ours.shared(self._places) >= ours.count and sum(map(ours.testable, self._places)) >= count

    def _convicted(self, ours: _Ours, bound: float) -> Score | None:
        """Read on until the bound is reached, nothing matches, or enough was read."""
        looks = list(_looks([place for place in self._places if ours.testable(place)]))
        read: list[_Match] = []
        for window in looks:
            window.fetch()
            with np.errstate(all="ignore"):  # hostile numbers end as no match
                read += [ours.judge(place) for place in window.places]
            if len(read) < LEAST:
                continue
            p = _merged([match.p_value for match in read]) * len(looks) / SHARE
            matched = [match for match in read if match.p_value <= MATCHED]
            if p <= bound and len(matched) >= LEAST:
                return self._score(read, matched, p)
            if not matched:
                return None
        return None

    def _score(self, read: Sequence[_Match], matched: Sequence[_Match], p: float) -> Score:
        detail = {
            "excerpt": True,
            "matrices": sum(_is_matrix(place.shape) for place in self._places),
            "read": len(read),
            "matched": len(matched),
            "cosine": float(np.median([match.cosine for match in matched])),
            "bytes": sum(file.fetched for file in self._files.values()),
            "files_not_read": len(self._unread),
        }
        value = float(np.mean([match.cosine for match in read]))
        return Score(value, p_value=float(np.clip(p, np.finfo(float).tiny, 1.0)), detail=detail)


def evidence(score: Score) -> Evidence:
    """State what an excerpt showed, and what was not read."""
    found = score.detail
    unread = f"; {found['files_not_read']} of its files were not opened" if found["files_not_read"] else ""
    statement = (
        f"has {found['matched']} of the victim's weight matrices, row by row (cosine {found['cosine']:.3f}): "
        f"read {found['read']} of {found['matrices']} matrices, {found['bytes'] / 1000:,.0f} kB, without downloading"
        f"{unread}"
    )
    return Evidence(METHOD, Access.WEIGHTS, score.value, score.p_value, None, 0, statement, found)


class _Ours:
    """The victim's matrices by shape."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        matrices = [array for array in fingerprint.arrays.values() if _is_matrix(array.shape)]
        if not matrices:
            raise NotApplicable("the victim has no matrix large enough to compare")
        self.count = len(matrices)
        self._classes = fingerprint.facts.get("classes")
        self.by_shape: dict[tuple[int, ...], list[NDArray[Any]]] = {}
        for matrix in matrices:
            self.by_shape.setdefault(matrix.shape, []).append(matrix)

    def _in(self, shape: tuple[int, ...]) -> list[NDArray[Any]]:
        """Return the matrices of a shape; none if their rows are classes, which come in one order in all models."""
        return [] if shape and shape[0] == self._classes else self.by_shape.get(shape, [])

    def shared(self, places: Sequence[Place]) -> int:
        """Return how many of them have a counterpart of their shape among these tensors."""
        theirs = Counter(shape for place in places for shape in _readings(place.shape))
        return sum(min(len(matrices), theirs[shape]) for shape, matrices in self.by_shape.items())

    def foreign(self, places: Sequence[Place]) -> bool:
        """Whether none has such a counterpart, and fewer than half could have one if channels had been pruned."""
        sizes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for shape in {shape for place in places for shape in _readings(place.shape)}:
            sizes.setdefault(shape[2:], []).append(shape[:2])
        by_kernel = {kernel: np.array(listed, float) for kernel, listed in sizes.items()}
        fitting = sum(
            len(matrices) * _has_pruned(by_kernel.get(shape[2:]), shape[:2])
            for shape, matrices in self.by_shape.items()
        )
        return not self.shared(places) and 2 * fitting < self.count

    def testable(self, place: Place) -> bool:
        """Whether the values of a tensor can be read and compared with one of them."""
        return place.row_bytes > 0 and any(self._in(shape) for shape in _readings(place.shape))

    def judge(self, place: Place) -> _Match:
        """Read the first rows of a tensor and find the matrix of the victim that they fit best."""
        count = _rows(place)
        theirs = place.rows(count)
        pairs = [(matrix.reshape(len(matrix), -1)[:count], theirs) for matrix in self._in(place.shape)]
        if len(place.shape) == 2:
            pairs += [(matrix[:, :count], theirs.T) for matrix in self._in(place.shape[::-1])]
        if not np.isfinite(theirs).all():
            return _Match(1.0, 0.0)
        tried = [(_p(a, b, plain=len(place.shape) == 2), a, b) for a, b in pairs]
        p, a, b = min(tried, key=lambda item: item[0])
        return _Match(min(1.0, len(pairs) * p), cosine(a, b))


def _p(a: NDArray[Any], b: NDArray[Any], *, plain: bool) -> float:
    """Compare by rows, and a plain matrix by columns too."""
    p = fixed_points_p(a, b, rows=COMPARED, classes=None)
    return max(p, fixed_points_p(a.T, b.T, rows=COMPARED, classes=None)) if plain else p


def _merged(p_values: Sequence[float]) -> float:
    """Merge p-values by the median (Rueschendorf 1982); no rule for a few of many: few are read."""
    middle = ceil(len(p_values) / 2)
    return float(np.sort(p_values)[middle - 1] * len(p_values) / middle)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and shape[0] >= MIN_ROWS and prod(shape[1:]) >= MIN_COLUMNS


def _readings(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that a tensor can be compared as: a plain matrix may be stored transposed."""
    turned = [shape[::-1]] if len(shape) == 2 and shape[0] != shape[1] else []
    return [each for each in (shape, *turned) if _is_matrix(each)]


def _has_pruned(sizes: NDArray[np.float64] | None, whole: tuple[int, ...]) -> bool:
    """Whether rows and columns of one of these sizes (N x 2) may be what pruning left of ``whole``."""
    if sizes is None:
        return False
    share = sizes / np.array(whole, float)
    return bool(((share >= LEAST_KEPT) & (share <= 1.0)).all(axis=1).any())


def _rows(place: Place) -> int:
    return min(place.shape[0], max(LEAST_ROWS, min(MOST_ROWS, ROW_BYTES // place.row_bytes)))


def _looks(places: Sequence[Place]) -> Iterator[_Window]:
    """Choose what to read, one request after the other: first what came with the headers, then where most lie together.

    Yields:
        Windows of at most ``MOST`` matrices and ``MAX_BYTES`` in all.
    """
    spans = [(place, place.begin, place.begin + _rows(place) * place.row_bytes) for place in places]
    held = [place.file is not None and place.file.holds(begin, end) for place, begin, end in spans]
    left, size = MOST, MAX_BYTES
    known = [place for place, there in zip(places, held, strict=True) if there][:MOST]
    if known:
        left -= len(known)
        yield _Window(tuple(known), 0, 0)
    for window in _windows([span for span, there in zip(spans, held, strict=True) if not there]):
        part = window[:left]
        cost = part[-1][2] - part[0][1] if part else size + 1
        if cost <= size:
            left, size = left - len(part), size - cost
            yield _Window(tuple(place for place, _, _ in part), part[0][1], part[-1][2])


def _windows(spans: Sequence[_Span]) -> list[Sequence[_Span]]:
    """Group neighbours in one file that lie within ``WINDOW``, the largest groups first, of these the smallest."""
    files: dict[int, list[_Span]] = {}
    for span in spans:
        files.setdefault(id(span[0].file), []).append(span)
    found: list[Sequence[_Span]] = []
    for group in files.values():
        ordered = sorted(group, key=lambda span: span[1])
        first = 0
        while first < len(ordered):
            after = bisect_right(ordered, ordered[first][1] + WINDOW, lo=first + 1, key=lambda span: span[2])
            found.append(ordered[first:after])
            first = after
    return sorted(found, key=lambda window: (-min(len(window), MOST), window[-1][2] - window[0][1]))
