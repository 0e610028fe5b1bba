"""Which hidden unit of one weight tensor is which of another, when both may stand in any order and scale.

A tensor is seen as R x C x K: rows (output channels), columns (input channels), kernel positions (1 for a plain
matrix). Everything here is equivariant: relabelling rows or columns of either tensor relabels the result and changes
nothing else, so that no index of a file can make two tensors look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]

BALANCING = 10
"""Rounds in which rows and columns are scaled to equal length."""

REFINING = 3
"""Most rounds in which rows are matched given the columns and columns given the rows."""

SURE = 0.8
"""Cosine of aligned tensors with which no better alignment is looked for."""

QUANTILES = 64
"""Values that a profile keeps of each kernel position."""

UNITS = 128
"""Most rows and columns of the first tensor that counterparts are looked for."""


class Tensor:
    """A weight tensor, balanced, with the profiles of its rows and columns."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        """Take a tensor of two or more axes, R x C x ..."""
        self.blocks = balanced(np.asarray(values, np.float32).reshape(*values.shape[:2], -1))

    @cached_property
    def turned(self) -> NDArray[np.float32]:
        """C x R x K."""
        return np.asarray(self.blocks.transpose(1, 0, 2))

    @cached_property
    def profiles(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the rows, and of the columns (see ``profiles``)."""
        return profiles(self.blocks), profiles(self.turned)

    @cached_property
    def signature(self) -> NDArray[np.float32]:
        """Quantiles of all values, ``QUANTILES``: the same for the same tensor in another order."""
        return np.asarray(profiles(self.blocks.reshape(1, -1, 1))[0])


@dataclass(frozen=True)
class Alignment:
    """Counterparts of rows and columns of one tensor in another; -1 where there is none or none was looked for."""

    rows: Indices
    columns: Indices
    cosine: float
    """Of the balanced tensors, over what has counterparts."""


def balanced(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows and columns of R x C x K until each has a mean square of one; those that are all zeros stay zero.

    The result does not change when rows or columns were multiplied by positive factors (ReLU rescaling, folded
    BatchNorm, quantisers with a scale a channel): Sinkhorn and Knopp (1967), applied to the squares.
    """
    squares = np.einsum("rck,rck->rc", a, a, dtype=np.float64)
    row, column = np.ones(squares.shape[0]), np.ones(squares.shape[1])
    for _ in range(BALANCING):
        row = _inverse(squares @ column / squares.shape[1])
        column = _inverse(row @ squares / squares.shape[0])
    first, second = np.sqrt(row).astype(np.float32), np.sqrt(column).astype(np.float32)
    return np.asarray(a * first[:, None, None] * second[None, :, None])


def _inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 1e-30)


def profiles(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return R x (Q K): for each row and kernel position the values in ascending order, at Q = ``QUANTILES`` places.

    No order of the columns changes them.
    """
    ordered, last = np.sort(a, axis=1), a.shape[1] - 1
    places = np.clip((np.arange(QUANTILES) + 0.5) / QUANTILES * a.shape[1] - 0.5, 0, last)
    low = places.astype(int)
    share = (places - low).astype(np.float32)[None, :, None]
    found = ordered[:, low] * (1 - share) + ordered[:, np.minimum(low + 1, last)] * share
    return np.asarray(found.reshape(len(a), -1))


def spread(size: int, units: int) -> Indices:
    """Return the indices of an axis that ``align`` looks at: all, or ``units`` of them, among them those of fewer."""
    return np.sort(np.random.default_rng(size).permutation(size)[:units])


def align(a: Tensor, b: Tensor, rng: np.random.Generator, units: int = UNITS) -> Alignment:
    """Find the counterparts of rows and columns of ``a`` in ``b``, which may have fewer of either.

    Rows are first matched by their profiles; then columns by their inner products under the rows' match and rows under
    the columns', in turn, until nothing moves. Below a cosine of ``SURE`` it is done again, beginning with columns, and
    the better end is taken. Each match is an assignment of greatest total product (scipy ``linear_sum_assignment``).

    Args:
        a: R x C x K.
        b: R' x C' x K.
        rng: brings rows and columns of ``b`` into a random order, so that ties are not broken by position.
        units: rows and columns of ``a`` that counterparts are looked for, if there are more.
    """
    rows, columns = (spread(size, units) for size in a.blocks.shape[:2])
    x, y = a.blocks[rows][:, columns], b.blocks
    orders = rng.permutation(y.shape[0]), rng.permutation(y.shape[1])
    by_rows = _nearest(a.profiles[0][rows], b.profiles[0], orders[0])
    best = _refined(x, y, _columns(x, y, by_rows, orders[1]), orders)
    if best.cosine < SURE:
        by_columns = _nearest(a.profiles[1][columns], b.profiles[1], orders[1])
        best = max(best, _refined(x, y, by_columns, orders), key=lambda item: item.cosine)
    first, second = (np.full(size, -1, np.intp) for size in a.blocks.shape[:2])
    first[rows], second[columns] = best.rows, best.columns
    return Alignment(first, second, best.cosine)


def _refined(
    x: NDArray[np.float32], y: NDArray[np.float32], columns: Indices, orders: tuple[Indices, Indices]
) -> Alignment:
    """Match rows and columns in turn, from a match of the columns."""
    rows = _rows(x, y, columns, orders[0])
    for _ in range(REFINING):
        before, columns = columns, _columns(x, y, rows, orders[1])
        if np.array_equal(before, columns):
            break
        rows = _rows(x, y, columns, orders[0])
    return Alignment(rows, columns, _cosine(x, y, rows, columns))


def _rows(x: NDArray[np.float32], y: NDArray[np.float32], columns: Indices, order: Indices) -> Indices:
    kept = columns >= 0
    return _assigned(x[:, kept].reshape(len(x), -1) @ y[:, columns[kept]].reshape(len(y), -1).T, order)


def _columns(x: NDArray[np.float32], y: NDArray[np.float32], rows: Indices, order: Indices) -> Indices:
    return _rows(x.transpose(1, 0, 2), y.transpose(1, 0, 2), rows, order)


def _nearest(x: NDArray[np.float32], y: NDArray[np.float32], order: Indices) -> Indices:
    """Assign to each row of ``x`` a row of ``y``: least sum of squared distances."""
    return _assigned(2 * x @ y.T - (x * x).sum(axis=1)[:, None] - (y * y).sum(axis=1), order)


def _assigned(gain: NDArray[np.float32], order: Indices) -> Indices:
    """Return for each row its column in an assignment of greatest gain; -1 where there are fewer columns than rows.

    The columns are looked at in ``order``.
    """
    from scipy.optimize import linear_sum_assignment

    found = np.full(len(gain), -1, np.intp)
    rows, columns = linear_sum_assignment(gain[:, order], maximize=True)
    found[rows] = order[columns]
    return found


def _cosine(x: NDArray[np.float32], y: NDArray[np.float32], rows: Indices, columns: Indices) -> float:
    first = x[rows >= 0][:, columns >= 0].ravel()
    second = y[np.ix_(rows[rows >= 0], columns[columns >= 0])].ravel()
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-20))
