"""Poolings of [N, C, spatial...] with one to three spatial dimensions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit_adapters._onnx.ops.conv import CONV
from fp_audit_adapters._onnx.ops.registry import operator
from fp_audit_adapters._onnx.ops.windows import Windows, padded, windows

_MAX: dict[int, Callable[..., Any]] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the spatial dimensions, kept as size 1."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the spatial dimensions, kept as size 1."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    """``p``-norm over the spatial dimensions, kept as size 1."""
    return x.abs().pow(p).sum(tuple(range(2, x.ndim)), keepdim=True).pow(1 / p)


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum of each window, and (``outputs`` 2) its place in the flattened ``x``."""
    place = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    pool = _MAX[x.ndim]
    if outputs == 1 and place.plain and not ceil_mode and x.is_floating_point():
        plain: Tensor = pool(x, kernel_shape, place.strides, place.begin, place.dilations)
        return plain
    values = x if x.is_floating_point() else x.double()
    wide = padded(values, place.begin, place.last, -math.inf)
    y, index = pool(wide, kernel_shape, place.strides, 0, place.dilations, return_indices=True)
    y = y.to(x.dtype)
    return y if outputs == 1 else (y, _places(index, x, wide, place, storage_order))


def _places(index: Tensor, x: Tensor, wide: Tensor, place: Windows, storage_order: int) -> Tensor:
    """Indices into the planes of the padded input as indices into the whole flattened input."""
    coordinates = []
    for length, first in zip(reversed(wide.shape[2:]), reversed(place.begin), strict=True):
        coordinates.append(index % length - first)
        index = index // length
    spatial = list(x.shape[2:])
    if storage_order:
        spatial.reverse()
    else:
        coordinates.reverse()
    flat = torch.zeros_like(index)
    for coordinate, length in zip(coordinates, spatial, strict=True):
        flat = flat * length + coordinate
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(spatial))
    return flat + planes * math.prod(spatial)


@operator("MaxUnpool", host=(2,))
def max_unpool(
    x: Tensor,
    index: Tensor,
    output_shape: list[int] | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Zeros with the elements of ``x`` at the places that `max_pool` reported for the smallest possible input."""
    rank = x.ndim - 2
    amounts, steps = pads or [0] * 2 * rank, strides or [1] * rank
    spatial = [
        (size - 1) * step + kernel - amounts[dim] - amounts[dim + rank]
        for dim, (size, step, kernel) in enumerate(zip(x.shape[2:], steps, kernel_shape, strict=True))
    ]
    shape = [*x.shape[:2], *spatial]
    flat = x.new_zeros(math.prod(shape)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return flat
    return padded(flat, [0] * rank, [want - have for want, have in zip(output_shape[2:], spatial, strict=True)])


def _window_sums(x: Tensor, place: Windows) -> Tensor:
    """Sum of each window of ``x``, which is padded already."""
    kernel = x.new_ones(1, 1, *place.kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = CONV[x.ndim](planes, kernel, None, place.strides, 0, place.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Mean of each window over the input, or over the input and its padding (``count_include_pad``)."""
    place = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if place.plain and not ceil_mode and set(place.dilations) == {1}:
        pool = _AVERAGE[x.ndim]
        return pool(x, kernel_shape, place.strides, place.begin, False, bool(count_include_pad))
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = padded(counted, place.begin, place.end, 1.0)
        rest = [last - end for last, end in zip(place.last, place.end, strict=True)]
        counted = padded(counted, [0] * len(rest), rest)
    else:
        counted = padded(counted, place.begin, place.last)
    return _window_sums(padded(x, place.begin, place.last), place) / _window_sums(counted, place)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: float = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """``p``-norm of each window."""
    place = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return _window_sums(padded(x.abs().pow(p), place.begin, place.last), place).pow(1 / p)
