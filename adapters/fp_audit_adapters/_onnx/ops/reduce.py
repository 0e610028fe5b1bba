"""Reductions over axes. Axes are an attribute in old opsets and an input in new ones."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fp_audit_adapters._onnx.ops.registry import operator

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _extreme(x: Tensor, dims: tuple[int, ...], keepdim: bool, sign: int) -> Tensor:
    """Maximum (sign 1) or minimum (-1); over nothing it is the type's least or greatest value."""
    if x.dtype == torch.bool:
        return x.any(dims, keepdim) if sign > 0 else x.all(dims, keepdim)
    if x.numel():
        return x.amax(dims, keepdim) if sign > 0 else x.amin(dims, keepdim)
    neutral = -sign * math.inf
    if not x.is_floating_point():
        limits = torch.iinfo(x.dtype)
        neutral = limits.min if sign > 0 else limits.max
    return x.new_full(x.sum(dims, keepdim).shape, neutral)


def _product(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    for dim in sorted((dim % max(x.ndim, 1) for dim in dims), reverse=True):
        x = x.prod(dim, keepdim=keepdim, dtype=x.dtype)
    return x


def _logsumexp(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.float(), dims, keepdim).to(x.dtype)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceMax": lambda x, dims, keepdim: _extreme(x, dims, keepdim, 1),
    "ReduceMin": lambda x, dims, keepdim: _extreme(x, dims, keepdim, -1),
    "ReduceSum": lambda x, dims, keepdim: x.sum(dims, keepdim, dtype=x.dtype),
    "ReduceProd": _product,
    "ReduceMean": lambda x, dims, keepdim: (
        x.sum(dims, keepdim) // math.prod(x.shape[dim] for dim in dims)
        if not x.is_floating_point()
        else x.mean(dims, keepdim)
    ),
    "ReduceL1": lambda x, dims, keepdim: x.abs().sum(dims, keepdim, dtype=x.dtype),
    "ReduceL2": lambda x, dims, keepdim: x.square().sum(dims, keepdim).sqrt().to(x.dtype),
    "ReduceSumSquare": lambda x, dims, keepdim: x.square().sum(dims, keepdim, dtype=x.dtype),
    "ReduceLogSum": lambda x, dims, keepdim: x.sum(dims, keepdim).log().to(x.dtype),
    "ReduceLogSumExp": _logsumexp,
}


def _reduce(
    reduction: Reduction, x: Tensor, axes: list[int] | None, keepdims: int, noop_with_empty_axes: int
) -> Tensor:
    if axes:
        return reduction(x, tuple(axes), bool(keepdims))
    if noop_with_empty_axes or x.ndim == 0:  # Each element is reduced alone.
        return reduction(x.unsqueeze(-1), (-1,), False)
    return reduction(x, tuple(range(x.ndim)), bool(keepdims))


def _register(name: str, reduction: Reduction, axes_input_since: int) -> None:
    """Both forms of one reduction: axes as attribute, then (``axes_input_since``) as input."""

    @operator(name, until=axes_input_since - 1)
    def with_attribute(x: Tensor, *, axes: list[int] | None = None, keepdims: int = 1) -> Tensor:
        return _reduce(reduction, x, axes, keepdims, 0)

    @operator(name, since=axes_input_since, host=(1,))
    def with_input(
        x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        return _reduce(reduction, x, axes, keepdims, noop_with_empty_axes)


for _name, _reduction in _REDUCTIONS.items():
    _register(_name, _reduction, 13 if _name == "ReduceSum" else 18)


def _argument(choose: Callable[..., Tensor], x: Tensor, axis: int, keepdims: int, select_last_index: int) -> Tensor:
    """Index of the extreme value; the first of several, or the last."""
    if not select_last_index:
        return choose(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - choose(x.flip(axis), axis, keepdim=bool(keepdims))


@operator("ArgMax")
def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the maximum along ``axis``."""
    return _argument(torch.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the minimum along ``axis``."""
    return _argument(torch.argmin, x, axis, keepdims, select_last_index)
