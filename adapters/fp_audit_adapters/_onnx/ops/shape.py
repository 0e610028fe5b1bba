"""Operators that move values without changing them, and those that compute with shapes."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit_adapters._onnx.ops.registry import operator


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    """``x`` itself."""
    return x


@operator("Dropout", until=11)
def dropout_v1(x: Tensor, *, ratio: float = 0.5, outputs: int = 1) -> Tensor | tuple[Tensor, Tensor]:
    """``x`` itself: nothing is dropped at inference."""
    del ratio
    return (x, torch.ones_like(x, dtype=torch.bool)) if outputs > 1 else x


@operator("Dropout", since=12)
def dropout(
    x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None, *, outputs: int = 1
) -> Tensor | tuple[Tensor, Tensor]:
    """``x`` itself: nothing is dropped at inference."""
    del ratio, training_mode
    return (x, torch.ones_like(x, dtype=torch.bool)) if outputs > 1 else x


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of dimensions ``start:end``, int64 on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor) -> Tensor:
    """The number of elements, int64 on the CPU."""
    return torch.tensor(x.numel())


@operator("Reshape", until=4)
def reshape_v1(x: Tensor, *, shape: list[int]) -> Tensor:
    """See `reshape`."""
    return reshape(x, shape)


@operator("Reshape", since=5, host=(1,))
def reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    """``x`` in another shape; one size may be -1, and 0 copies the size of ``x`` (unless ``allowzero``)."""
    if 0 in shape and not allowzero:
        shape = [size or x.shape[index] for index, size in enumerate(shape)]
    return x.reshape(shape)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two dimensions: those before ``axis``, and the others."""
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, x.numel() // rows if rows else -1)


@operator("Transpose")
def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """Dimensions reordered, reversed by default."""
    return x.permute(perm if perm is not None else tuple(range(x.ndim - 1, -1, -1)))


@operator("Squeeze", until=12)
def squeeze_v1(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """See `squeeze`."""
    return squeeze(x, axes)


@operator("Squeeze", since=13, host=(1,))
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Without the dimensions ``axes`` of size 1; without all of that size by default."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Unsqueeze", until=12)
def unsqueeze_v1(x: Tensor, *, axes: list[int]) -> Tensor:
    """See `unsqueeze`."""
    return unsqueeze(x, axes)


@operator("Unsqueeze", since=13, host=(1,))
def unsqueeze(x: Tensor, axes: list[int] | int) -> Tensor:
    """With dimensions of size 1 at ``axes`` of the result."""
    places = [axes] if isinstance(axes, int) else axes
    for axis in sorted(axis % (x.ndim + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(*xs: Tensor, axis: int = 1) -> Tensor:
    """Joined along ``axis``."""
    return torch.cat(xs, axis)


def _split(x: Tensor, sizes: list[int] | None, axis: int, parts: int) -> tuple[Tensor, ...]:
    if sizes is None:
        whole = math.ceil(x.shape[axis] / parts)
        sizes = [min(whole, x.shape[axis] - start * whole) for start in range(parts)]
    return torch.split(x, sizes, axis)


@operator("Split", until=12)
def split_v1(x: Tensor, *, axis: int = 0, split: list[int] | None = None, outputs: int) -> tuple[Tensor, ...]:
    """Pieces along ``axis`` of the sizes ``split``, equal by default."""
    return _split(x, split, axis, outputs)


@operator("Split", since=13, host=(1,))
def split(
    x: Tensor, sizes: list[int] | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """Pieces along ``axis`` of the given sizes, equal (the last one smaller) by default."""
    return _split(x, sizes, axis, num_outputs or outputs)


@operator("Slice", until=9)
def slice_v1(x: Tensor, *, starts: list[int], ends: list[int], axes: list[int] | None = None) -> Tensor:
    """See `slice_`."""
    return slice_(x, starts, ends, axes)


@operator("Slice", since=10, host=(1, 2, 3, 4))
def slice_(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Tensor:
    """``x[starts:ends:steps]`` along ``axes``, the first ones by default; limits as in Python."""
    axes = axes if axes is not None else list(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        taken = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, taken.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


@operator("Expand", host=(1,))
def expand(x: Tensor, shape: list[int]) -> Tensor:
    """``x`` broadcast against ``shape``."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))  # type: ignore[no-untyped-call]


@operator("Tile", since=6, host=(1,))
def tile(x: Tensor, repeats: list[int]) -> Tensor:
    """``x`` repeated along each dimension."""
    return x.tile(repeats)


@operator("Pad", until=1)
def pad_v1(x: Tensor, *, paddings: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """See `pad`."""
    return pad(x, paddings, value, mode=mode)


@operator("Pad", since=2, until=10)
def pad_v2(x: Tensor, *, pads: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """See `pad`."""
    return pad(x, pads, value, mode=mode)


@operator("Pad", since=11, host=(1, 2, 3))
def pad(
    x: Tensor,
    pads: list[int],
    value: float | list[float] | None = None,
    axes: list[int] | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """``x`` with ``pads`` (all begins, then all ends; negative ones cut) along ``axes``, all by default."""
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    amounts = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.ndim)) for amount in amounts.get(axis, (0, 0))]
        single = value[0] if isinstance(value, list) else value
        return F.pad(x, flat, value=single or 0)
    for axis, (begin, end) in amounts.items():
        if begin or end:
            x = x.index_select(axis, _border_index(x.shape[axis], begin, end, mode).to(x.device))
    return x


def _border_index(length: int, begin: int, end: int, mode: str) -> Tensor:
    inner = np.arange(length)[max(-begin, 0) : length - max(-end, 0)]
    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    return torch.from_numpy(np.pad(inner, (max(begin, 0), max(end, 0)), mode=numpy_mode))  # type: ignore[call-overload]


@operator("CenterCropPad", host=(1,))
def center_crop_pad(x: Tensor, shape: list[int], *, axes: list[int] | None = None) -> Tensor:
    """``x`` cut or padded with zeros around its centre to ``shape``."""
    for axis, wanted in zip(axes if axes is not None else range(x.ndim), shape, strict=True):
        missing = wanted - x.shape[axis]
        begin = missing // 2 if missing > 0 else -(-missing // 2)
        x = pad(x, [begin, missing - begin], None, [axis])
    return x


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(shape: list[int], *, value: Tensor | None = None) -> Tensor:
    """A tensor filled with ``value`` (one element), float32 zero by default."""
    if value is None:
        return torch.zeros(shape)
    return value.reshape([1] * len(shape)).expand(shape).clone()


@operator("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """``start, start + delta, ...`` below ``limit``, in their type."""
    first, step = start.item(), delta.item()
    count = max(math.ceil((limit.item() - first) / step), 0)
    return (torch.arange(count, device=start.device) * step + first).to(start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: torch.dtype | None = None, k: int = 0) -> Tensor:
    """Ones on the ``k``-th diagonal of a matrix of ``x``'s shape."""
    rows = torch.arange(x.shape[0], device=x.device)
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns - rows.unsqueeze(1) == k).to(dtype or x.dtype)


@operator("Trilu", host=(1,))
def trilu(x: Tensor, k: int = 0, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle from the ``k``-th diagonal on, the rest zero."""
    return torch.triu(x, k or 0) if upper else torch.tril(x, k or 0)


@operator("ReverseSequence", host=(1,))
def reverse_sequence(x: Tensor, lengths: list[int], *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` steps of sequence ``i`` in reverse order."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    rows = [torch.cat([row[:length].flip(0), row[length:]]) for row, length in zip(moved, lengths, strict=True)]
    return torch.stack(rows).movedim((0, 1), (batch_axis, time_axis))


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[N, C*b*b, H, W] to [N, C, H*b, W*b]."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[N, C, H*b, W*b] to [N, C*b*b, H, W]."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // blocksize, w // blocksize)
