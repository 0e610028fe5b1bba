"""Interpolation: Resize and Upsample axis by axis, GridSample and AffineGrid by torch."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit_adapters._onnx.ops.registry import operator


def _coordinates(  # noqa: PLR0911 (one for each mode)
    transformation: str, length: int, scale: float, size: int, roi: tuple[float, float]
) -> Tensor:
    """Where each of ``size`` outputs lies in an input of ``length`` (float64)."""
    place = torch.arange(size, dtype=torch.float64)
    exact = scale * length
    match transformation:
        case "half_pixel":
            return (place + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (place + 0.5) / scale - 0.5 if exact > 1 else place * 0 - 0.5
        case "half_pixel_symmetric":
            return length / 2 * (1 - size / exact) + (place + 0.5) / scale - 0.5
        case "align_corners":
            return place * (length - 1) / (exact - 1) if exact != 1 else place * 0
        case "asymmetric":
            return place / scale
        case "tf_half_pixel_for_nn":
            return (place + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = roi
            if size == 1:
                return place * 0 + (start + end) * (length - 1) / 2
            return start * (length - 1) + place * (end - start) * (length - 1) / (size - 1)
    raise ValueError(f"Resize with coordinate_transformation_mode {transformation!r}")


_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)
def _matrix(
    mode: str,
    transformation: str,
    length: int,
    scale: float,
    size: int,
    roi: tuple[float, float],
    shrink: float,
    cubic_a: float,
    exclude_outside: bool,
) -> Tensor:
    """Weights [size, length] (float64) of linear or cubic interpolation.

    ``shrink`` below 1 widens the filter by its inverse (``antialias``).
    """
    places = _coordinates(transformation, length, scale, size, roi)
    radius = (1 if mode == "linear" else 2) / shrink
    taps = torch.arange(-math.ceil(radius), math.ceil(radius) + 2) + places.floor().unsqueeze(1)
    distance = (taps - places.unsqueeze(1)) * shrink
    weights = _triangle(distance) if mode == "linear" else _cubic(distance, cubic_a)
    if exclude_outside:
        weights = torch.where((taps < 0) | (taps >= length), 0.0, weights)
    weights = weights / weights.sum(1, keepdim=True)
    inside = taps.clamp(0, length - 1).long()
    return torch.zeros(size, length, dtype=torch.float64).scatter_add_(1, inside, weights)


def _scaled_sizes(
    lengths: list[int], scales: list[float] | None, sizes: list[int] | None, policy: str
) -> tuple[list[float], list[int]]:
    """Scale and size of each resized axis from whichever of the two is given."""
    if scales:
        return scales, [math.floor(length * scale) for length, scale in zip(lengths, scales, strict=True)]
    if not sizes:
        raise ValueError("Resize needs either scales or sizes")
    ratios = [size / length for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return ratios, sizes
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [ratio] * len(ratios), [math.floor(ratio * length + 0.5) for length in lengths]


@operator("Resize", since=11, host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """``x`` interpolated along ``axes`` (all by default) by ``scales`` or to ``sizes``."""
    dims = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    lengths = [x.shape[dim] for dim in dims]
    factors, targets = _scaled_sizes(lengths, scales, sizes, keep_aspect_ratio_policy)
    crops = list(zip(roi[: len(dims)], roi[len(dims) :], strict=True)) if roi else [(0.0, 1.0)] * len(dims)
    cropping = coordinate_transformation_mode == "tf_crop_and_resize"
    for dim, length, factor, target, crop in zip(dims, lengths, factors, targets, crops, strict=True):
        if target == length and factor == 1 and not cropping:
            continue
        geometry = (coordinate_transformation_mode, length, factor, target, crop)
        if mode == "nearest":
            index = _NEAREST[nearest_mode](_coordinates(*geometry)).clamp(0, length - 1).long()
            y = x.index_select(dim, index.to(x.device))
        else:
            shrink = min(factor, 1.0) if antialias else 1.0
            weights = _matrix(mode, *geometry, shrink, cubic_coeff_a, bool(exclude_outside))
            y = _along(x, weights.to(x.device, x.dtype if x.is_floating_point() else torch.float32), dim)
        if cropping:
            places = _coordinates(*geometry)
            outside = ((places < 0) | (places > length - 1)).to(x.device)
            y = torch.where(outside.reshape(-1, *[1] * (x.ndim - dim - 1)), extrapolation_value, y)
        x = y.to(x.dtype)
    return x


def _along(x: Tensor, weights: Tensor, dim: int) -> Tensor:
    return torch.movedim(torch.movedim(x.to(weights.dtype), dim, -1) @ weights.T, -1, dim)


@operator("Resize", since=10, until=10, host=(1,))
@operator("Upsample", since=9, host=(1,))
def resize_v10(x: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    """`resize` by ``scales`` with coordinates ``place / scale``, rounded down."""
    return resize(
        x,
        scales=scales,
        mode="linear" if mode in {"linear", "bilinear"} else mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@operator("Upsample", since=7, until=8)
def upsample_v7(x: Tensor, *, scales: list[float], mode: str = "nearest") -> Tensor:
    """See `resize_v10`."""
    return resize_v10(x, scales, mode=mode)


_SAMPLING = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """``x`` [N, C, ...] sampled at ``grid`` [N, ..., rank] with coordinates in [-1, 1]."""
    sampling = _SAMPLING.get(mode, mode)
    return F.grid_sample(x, grid, sampling, padding_mode, bool(align_corners))


@operator("AffineGrid", host=(1,))
def affine_grid(theta: Tensor, size: list[int], *, align_corners: int = 0) -> Tensor:
    """Grid for `grid_sample` from the matrices ``theta`` [N, 2, 3] or [N, 3, 4]."""
    return F.affine_grid(theta, size, bool(align_corners))
