"""Cutting images into segments, for methods that hide parts of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.engine import Progress, silent
from fp_audit.types import Pixels

Labels: TypeAlias = NDArray[np.int32]
"""N x H x W: the segment of each pixel, 0, 1, ... in each image without gaps."""

_BLOCK = 2**16
"""Values of the images that are worked on at once: few enough for the processor's cache."""

_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
"""Linear sRGB to CIE XYZ (ITU-R BT.709 primaries, white point D65)."""

_WHITE = np.array([0.95047, 1.0, 1.08883])
"""XYZ of D65 for the 2 degree observer."""


def patches(pixels: Pixels, side: int) -> Labels:
    """Cut N x C x H x W images into ``side`` x ``side`` patches, row by row; a smaller image into its pixels."""
    height, width = pixels.shape[2:]
    rows, columns = (np.arange(size) * min(side, size) // size for size in (height, width))
    labels = rows[:, None] * min(side, width) + columns
    return np.broadcast_to(labels, (len(pixels), height, width)).astype(np.int32)


def quickshift(
    pixels: Pixels,
    *,
    kernel: float = 4.0,
    ratio: float = 0.2,
    max_distance: float = 200.0,
    progress: Progress = silent,
) -> Labels:
    """Cut N x C x H x W images by mode seeking over colour and position.

    A pixel is the point (``ratio`` * L, ``ratio`` * a, ``ratio`` * b, row, column) in CIELAB. Its density is the sum of
    ``exp(-d^2 / (2 kernel^2))`` over the pixels at most ``ceil(3 kernel)`` rows and columns away, d the distance of
    the points. It is linked to the nearest denser pixel in this window, if that is within ``max_distance``; the pixels
    that lead to one root are a segment. In reading order, the later of equally dense pixels counts as denser and the
    first of equally near ones is taken.

    Source: Vedaldi and Soatto, "Quick shift and kernel methods for mode seeking", ECCV 2008; window and colours as in
    scikit-image, defaults as in LIME. Difference: no noise is added to break ties. Grey images are cut by their
    lightness: that is what becomes of them when they are made RGB first, as LIME does.
    """
    reach, size = int(np.ceil(3 * kernel)), max(1, _BLOCK // pixels[0].size)
    cut = []
    for start in range(0, len(pixels), size):
        block = ratio * lab(pixels[start : start + size])
        parent = _parents(block, _ranks(block, kernel, reach), reach, max_distance)
        cut.append(_trees(parent).reshape(len(block), *pixels.shape[2:]))
        progress("cutting images into segments", min(1.0, (start + size) / len(pixels)))
    return np.concatenate(cut)


def lab(pixels: Pixels) -> NDArray[np.float64]:
    """Turn N x C x H x W sRGB or grey images into CIELAB, N x 3 x H x W (L in [0, 100], white point D65)."""
    rgb = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])) / 255.0
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = np.einsum("ij,njhw->nihw", _TO_XYZ / _WHITE[:, None], linear)
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), 1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


class _Offset(NamedTuple):
    """All pairs of pixels of which the second lies a fixed way from the first."""

    first: tuple[slice, slice]
    """Rows and columns of the first pixels."""
    second: tuple[slice, slice]
    step: int
    """From the first to the second in reading order."""
    apart: NDArray[np.float64]
    """Squared distances, N x rows x columns."""


def _window(points: NDArray[np.float64], reach: int) -> Iterator[_Offset]:
    """Pair the pixels of N x C x H x W images with all that are at most ``reach`` rows and columns away."""
    height, width = points.shape[2:]
    for down in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        for right in range(-min(reach, width - 1), min(reach, width - 1) + 1):
            first = _inside(down, height), _inside(right, width)
            second = _inside(-down, height), _inside(-right, width)
            between = points[:, :, *first] - points[:, :, *second]
            apart = np.einsum("nchw,nchw->nhw", between, between) + (down**2 + right**2)
            yield _Offset(first, second, down * width + right, apart)


def _inside(step: int, size: int) -> slice:
    """Return the positions from which ``step`` leads to another one of 0 to ``size`` - 1."""
    return slice(max(0, -step), size - max(0, step))


def _ranks(points: NDArray[np.float64], kernel: float, reach: int) -> NDArray[np.intp]:
    """Rank the pixels of N x C x H x W images by density, N x H x W, 0 for the least dense."""
    density = np.zeros((len(points), *points.shape[2:]))
    for offset in _window(points, reach):
        density[:, *offset.first] += np.exp(offset.apart / (-2.0 * kernel**2))
    order = density.reshape(len(points), -1).argsort(axis=1, kind="stable")
    return np.asarray(order.argsort(axis=1).reshape(density.shape))


def _parents(points: NDArray[np.float64], rank: NDArray[np.intp], reach: int, max_distance: float) -> NDArray[np.intp]:
    """Link each pixel to the nearest one of higher rank, N x (H W) positions in reading order; a root to itself."""
    parent = np.broadcast_to(np.arange(rank[0].size).reshape(rank.shape[1:]), rank.shape).copy()
    own, nearest = parent.copy(), np.full(rank.shape, np.inf)
    for first, second, step, apart in _window(points, reach):
        better = (rank[:, *second] > rank[:, *first]) & (apart < nearest[:, *first])
        nearest[:, *first] = np.where(better, apart, nearest[:, *first])
        parent[:, *first] = np.where(better, own[:, *first] + step, parent[:, *first])
    parent = np.where(nearest <= max_distance**2, parent, own)
    return np.asarray(parent.reshape(len(rank), -1))


def _trees(parent: NDArray[np.intp]) -> NDArray[np.int32]:
    """Number the trees of N forests, in reading order of their roots; N x (H W)."""
    while not np.array_equal(above := np.take_along_axis(parent, parent, axis=1), parent):
        parent = above
    is_root = parent == np.arange(parent.shape[1])
    number = is_root.cumsum(axis=1) - 1
    return np.take_along_axis(number, parent, axis=1).astype(np.int32)
