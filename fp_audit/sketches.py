"""Sketches: what can be kept of a model's weights in two kilobytes, so that millions of pairs can be looked through.

A sketch is a pre-filter and no evidence. It has four views of all weight matrices together, each a vector of 256
numbers; the cosine of two models' vectors is about 0 if they were trained independently, whatever their architecture,
and close to 1 if most of their matrices agree. The similarity of two models is the largest of the four cosines.

A weight of R x C x S (rows are outputs; S positions of a kernel, 1 for a linear layer) is first *balanced*: rows and
columns are scaled in turn until each has mean square 1 (Sinkhorn and Knopp, 1967), which takes out what ReLU rescaling
and folded BatchNorm put in. Then

- ``place``   the entries without their row and column means, summed with random signs into 256 buckets (count sketch:
              Charikar, Chen and Farach-Colton, 2002): survives tuning, pruning, quantisation
- ``rows``    the rows as a set: f_m = sum over rows x of cos(t w_m . x), w_m random signs, mean |x| = 1. This is the
              empirical characteristic function at frequencies so high that points which are not the same count as
              noise; it depends on neither the order of the rows nor their signs
- ``columns`` the columns as a set, likewise
- ``taps``    all kernels (vectors of S numbers) as a set, likewise: the order of rows *and* columns is free. They are
              whitened, scaled to length 1 and weighted by their energy, and t is larger, because the kernels of all
              trained networks resemble one another: without that, two public CIFAR-10 networks came out at .39

The views of a model are sums over its matrices, each of length 1, with random numbers that follow from the shape:
names, order and files do not matter, and a model that shares a part of another's matrices has a cosine of about that
part. Linear layers are looked at the long way up, square ones both ways, so that a transposed copy is the same.
Source of the features: none; random features for sets follow Rahimi and Recht, "Random Features for Large-Scale
Kernel Machines" (NeurIPS 2007). Blind spots: extraction and distillation (nothing is copied), matrices whose shape
was changed, linear layers with both sides permuted, small kernels (2 x 2) with both sides permuted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Of the features: sketches of different versions cannot be compared."""

VIEWS = ("place", "rows", "columns", "taps")
SIZE = 256
"""Numbers of one view."""

SIMILAR = 0.35
"""From here on a pair should be scanned. A cosine of 256 random numbers has a deviation of 1/16, and there are four: by
chance alone one pair in 20 million is as similar. Measured on 1,225 pairs of one architecture, trained alike
(``benchmarks/sketches``): .24 at most."""

FREQUENCY, TAPS_FREQUENCY = 3.0, 4.5
"""t above: exp(-t^2 / 2) = .01 is what a point has in common with another; noise of 10 % costs 4 % of the cosine."""

MIN_SIDE = 8
"""Matrices with fewer rows, or fewer entries in a row, are left out: they are too much alike."""
MIN_TAPS = 9
"""Of smaller kernels there are too few random sign vectors to look at."""
MIN_VALUES = 8
"""Matrices with fewer different values among a thousand are no weights but constants, such as the masks of windowed
attention, which all models of an architecture share."""
MAX_MATRICES = 256
"""The largest are looked at. Models with more share most of them all the same."""
MAX_ENTRIES = 2**26
"""Of one matrix; larger ones are left out."""
_BLOCK = 2**16
"""Points of a set that are looked at at a time."""

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Sketch:
    """The views of one model."""

    views: NDArray[np.float16]
    """4 x 256, each row of length 1, or 0 where the model has nothing for it."""
    shapes: Mapping[str, int]
    """``RxC`` or ``RxCxS`` -> number of matrices."""

    def to_json(self) -> dict[str, Any]:
        """Turn it into JSON values."""
        return {"views": self.views.astype(float).tolist(), "shapes": dict(self.shapes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Restore a sketch; the sender is not trusted to have sent one.

        Raises:
            ValueError: it is none.
        """
        try:
            views = np.array(data["views"], np.float32)
            shapes = {str(shape)[:40]: int(count) for shape, count in list(data["shapes"].items())[:MAX_MATRICES]}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a sketch: {error}") from None
        if views.shape != (len(VIEWS), SIZE) or not np.isfinite(views).all():
            raise ValueError(f"not a sketch: expected {len(VIEWS)} x {SIZE} finite numbers")
        return cls(_unit(views).astype(np.float16), shapes)


def sketch(tensors: Iterable[NDArray[Any]]) -> Sketch:
    """Sketch a model.

    Args:
        tensors: its parameters in any order; matrices and kernels are looked at, everything else is not.

    Raises:
        ValueError: no tensor is a matrix of at least 8 x 8.
    """
    weights = [weight for weight in map(_oriented, tensors) if weight is not None]
    if not weights:
        raise ValueError(f"it has no weight matrix of {MIN_SIDE} rows and columns or more")
    weights.sort(key=lambda weight: (-weight.size, weight.shape))
    chosen = weights[:MAX_MATRICES]
    views = np.sum([_views(weight) for weight in chosen], axis=0)
    shapes = Counter("x".join(map(str, weight.shape if weight.shape[2] > 1 else weight.shape[:2])) for weight in chosen)
    return Sketch(_unit(views).astype(np.float16), dict(shapes))


def similarities(query: Sketch, views: NDArray[np.float16]) -> Floats:
    """Return the similarity of one model with N others, N values in [-1, 1].

    Args:
        query: the one.
        views: N x 4 x 256, of the others.
    """
    wanted = query.views.astype(np.float32)
    found = np.empty(len(views), np.float32)
    for start in range(0, len(views), _BLOCK // 8):
        block = views[start : start + _BLOCK // 8].astype(np.float32)
        found[start : start + len(block)] = np.einsum("nvd,vd->nv", block, wanted, optimize=False).max(axis=1)
    return found.clip(-1.0, 1.0)


def _oriented(tensor: NDArray[Any]) -> NDArray[Any] | None:
    """Return a weight as R x C x S, the long way up if it is a linear layer's; None if it is not to be looked at."""
    tensor = np.asarray(tensor)
    if not np.issubdtype(tensor.dtype, np.floating) or tensor.ndim < 2 or not 0 < tensor.size <= MAX_ENTRIES:
        return None
    weight = tensor.reshape(tensor.shape[0], tensor.shape[1], -1)
    if weight.shape[2] == 1 and weight.shape[0] < weight.shape[1]:
        weight = weight.transpose(1, 0, 2)
    if len(weight) < MIN_SIDE or weight[0].size < MIN_SIDE:
        return None
    seen = tensor.reshape(-1)[:: max(1, tensor.size // 1000)]
    return weight if len(np.unique(seen)) >= MIN_VALUES else None


def _views(weight: NDArray[Any]) -> Floats:
    """Return the four views of one weight, R x C x S, each of length 1 or 0."""
    balanced = _balanced(weight)
    rows, columns, taps = weight.shape
    matrix = _centred(balanced.reshape(rows, -1))
    across = _centred(balanced.transpose(1, 0, 2).reshape(columns, -1))
    placed = matrix - matrix.mean(axis=1, keepdims=True)
    views = np.zeros((len(VIEWS), SIZE), np.float32)
    if taps == 1 and rows == columns:  # a square one may be transposed
        views[0] = _place(placed + placed.T, weight.shape)
        views[1] = views[2] = _unit(_set(matrix, 1, weight.shape) + _set(across, 1, weight.shape))
        return views
    views[0] = _place(placed, weight.shape)
    views[1] = _set(matrix, 1, weight.shape)
    if columns >= MIN_SIDE:
        views[2] = _set(across, 2, weight.shape)
    if taps >= MIN_TAPS:
        views[3] = _taps(balanced.reshape(-1, taps), weight.shape)
    return views


def _centred(points: Floats) -> Floats:
    """Take the mean of N points away: what all have in common says nothing about one."""
    return np.asarray(points - points.mean(axis=0))


def _balanced(weight: NDArray[Any]) -> Floats:
    """Scale rows and columns until each has mean square 1; what is zero stays zero."""
    weight = np.nan_to_num(np.asarray(weight, np.float32), posinf=0.0, neginf=0.0)
    energy = np.square(weight, dtype=np.float64).mean(axis=2)
    rows, columns = np.ones(energy.shape[0]), np.ones(energy.shape[1])
    for _ in range(10):
        rows = _inverse((energy * columns).mean(axis=1))
        columns = _inverse((energy * rows[:, None]).mean(axis=0))
    scale = np.sqrt(rows[:, None] * columns)
    return np.asarray(weight * scale[:, :, None], np.float32)


def _inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 1e-30)


def _place(matrix: Floats, shape: tuple[int, ...]) -> Floats:
    """Sum the entries with random signs into buckets."""
    words = _random(matrix.size, 0, shape)
    signs = np.where(words >> np.uint64(63), 1.0, -1.0)
    return _unit(np.bincount((words % np.uint64(SIZE)).astype(np.intp), matrix.ravel() * signs, SIZE))


def _set(points: Floats, view: int, shape: tuple[int, ...]) -> Floats:
    """Return f_m of a set of N points in D dimensions, which are scaled to a mean length of 1."""
    length = max(float(np.linalg.norm(points, axis=1).mean()), 1e-30)
    return _characteristic(points * np.float32(FREQUENCY / length), np.ones(len(points), np.float32), view, shape)


def _taps(points: Floats, shape: tuple[int, ...]) -> Floats:
    """Return f_m of the directions of N kernels of S numbers, weighted by their energy."""
    points = _white(points)
    energy = np.square(points).sum(axis=1)
    return _characteristic(_unit(points) * np.float32(TAPS_FREQUENCY), energy, 3, shape)


def _characteristic(points: Floats, weights: Floats, view: int, shape: tuple[int, ...]) -> Floats:
    """Return the weighted sum over N points x of cos(w_m . x), without its mean over m; w_m are random signs."""
    bits = np.unpackbits(_random(points.shape[1] * SIZE // 64, view, shape).view(np.uint8))
    signs = bits.reshape(points.shape[1], SIZE).astype(np.float32) * 2 - 1
    found = np.zeros(SIZE)
    for start in range(0, len(points), _BLOCK):
        found += weights[start : start + _BLOCK] @ np.cos(points[start : start + _BLOCK] @ signs)
    return _unit(found - found.mean())


def _white(points: Floats) -> Floats:
    """Turn the covariance of N points in S dimensions into the identity, as far as they span the space."""
    covariance = np.asarray(points, np.float64).T @ points / len(points)
    values, vectors = np.linalg.eigh(covariance)
    scale = np.where(values > 1e-9 * max(values[-1], 1e-30), 1 / np.sqrt(np.maximum(values, 1e-30)), 0.0)
    return np.asarray(points @ (vectors * scale @ vectors.T), np.float32)


def _random(count: int, view: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return random words that are the same on every machine: splitmix64 (Steele et al., OOPSLA 2014) of a counter."""
    seed = np.zeros(1, np.uint64)
    for part in (VERSION, view, *shape):
        seed = _mixed(seed ^ np.uint64(part))
    return _mixed(np.arange(count, dtype=np.uint64) ^ seed)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _unit(vectors: NDArray[Any]) -> Floats:
    """Scale the last axis to length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)
