"""Gathering, scattering, selecting and sorting. Indices may be negative and count from the end then."""

import math

import torch
from torch import Tensor

from fp_audit_adapters._onnx.ops.registry import operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(index: Tensor, length: int) -> Tensor:
    """The index with negative entries counted from the end."""
    index = index.long()
    return torch.where(index < 0, index + length, index)


@operator("Gather", scalars=(1,))
def gather(x: Tensor, index: Tensor | int, *, axis: int = 0) -> Tensor:
    """``x`` taken at ``index`` along ``axis``; the dimensions of ``index`` replace that axis."""
    if isinstance(index, int):
        return x.select(axis, index)
    axis %= x.ndim
    if index.ndim == 0 and index.device.type == "cpu":
        return x.select(axis, int(index))
    taken = x.index_select(axis, _wrapped(index.reshape(-1), x.shape[axis]))
    return taken.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    """One element of ``x`` for each entry of ``index``, which replaces the coordinate along ``axis``."""
    return x.gather(axis, _wrapped(index, x.shape[axis]))


def _flat_index(index: Tensor, sizes: torch.Size) -> Tensor:
    """Coordinates [..., D] in an array of ``sizes`` (D of them) as positions [...] in that array, flattened."""
    flat = torch.zeros_like(index[..., 0], dtype=torch.int64)
    for dim, length in enumerate(sizes):
        flat = flat * length + _wrapped(index[..., dim], length)
    return flat


@operator("GatherND")
def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices of ``x`` [B..., D..., rest] at the coordinates ``index`` [B..., Q..., len(D)]: [B..., Q..., rest]."""
    batch = math.prod(x.shape[:batch_dims])
    depth = index.shape[-1]
    inner = x.shape[batch_dims : batch_dims + depth]
    rest = x.shape[batch_dims + depth :]
    places = _flat_index(index.reshape(batch, -1, depth), inner)
    places = places + torch.arange(batch, device=index.device).unsqueeze(1) * math.prod(inner)
    taken = x.reshape(batch * math.prod(inner), -1).index_select(0, places.reshape(-1))
    return taken.reshape(index.shape[:-1] + rest)


@operator("ScatterND")
def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of ``x`` [D..., rest] with ``updates`` [Q..., rest] at the coordinates ``index`` [Q..., len(D)]."""
    depth = index.shape[-1]
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    places = _flat_index(index, x.shape[:depth]).reshape(-1)
    values = updates.reshape(places.shape[0], flat.shape[1])
    if reduction == "none":
        changed = flat.index_copy(0, places, values)
    elif reduction == "add":
        changed = flat.index_add(0, places, values)
    else:
        changed = flat.index_reduce(0, places, values, _REDUCE[reduction])
    return changed.reshape(x.shape)


@operator("Scatter", "ScatterElements")
def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """A copy of ``x`` where each entry of ``index`` places one update along ``axis``."""
    places = _wrapped(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])


@operator("TensorScatter")
def tensor_scatter(
    cache: Tensor, update: Tensor, starts: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """``cache`` [B, ...] with ``update`` written along ``axis`` from ``starts`` [B] on; ``circular`` wraps."""
    length, count = cache.shape[axis], update.shape[axis]
    offset = torch.zeros(cache.shape[0], dtype=torch.int64) if starts is None else starts
    places = offset.unsqueeze(1).to(cache.device) + torch.arange(count, device=cache.device)
    if mode == "circular":
        places = places % length
    shape = [1] * cache.ndim
    shape[0], shape[axis] = places.shape
    return cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


@operator("NonZero")
def nonzero(x: Tensor) -> Tensor:
    """Coordinates of the elements that are not zero: [rank, count]."""
    return x.nonzero().T


@operator("OneHot", host=(1,))
def one_hot(indices: Tensor, depth: int | list[int], values: Tensor, *, axis: int = -1) -> Tensor:
    """``values[1]`` where the new ``axis`` equals the index and ``values[0]`` elsewhere."""
    length = int(depth[0] if isinstance(depth, list) else depth)
    axis %= indices.ndim + 1
    shape = [1] * (indices.ndim + 1)
    shape[axis] = length
    positions = torch.arange(length, device=indices.device).reshape(shape)
    hit = _wrapped(indices, length).unsqueeze(axis) == positions
    return torch.where(hit, values[1], values[0])


@operator("TopK", until=9)
def topk_v1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """See `topk`."""
    return topk(x, k, axis=axis)


@operator("TopK", since=10, host=(1,))
def topk(x: Tensor, k: int | list[int], *, axis: int = -1, largest: int = 1, sorted_: int = 1) -> tuple[Tensor, Tensor]:
    """The ``k`` greatest or least values along ``axis`` and their places; of equal ones the first."""
    del sorted_  # Sorted satisfies "in any order" too.
    count = k[0] if isinstance(k, list) else k
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along ``axis`` (the elements, by default) where ``condition`` [count] holds."""
    values, along = (x.reshape(-1), 0) if axis is None else (x, axis)
    return values.index_select(along, condition.nonzero().reshape(-1))


@operator("Unique")
def unique(x: Tensor, *, axis: int | None = None, sorted_: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct slices along ``axis`` (elements, by default), first place of each, inverse, and counts."""
    values, along = (x.reshape(-1), 0) if axis is None else (x, axis % x.ndim)
    distinct, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True, dim=along)
    size = values.shape[along]
    order = torch.arange(size - 1, -1, -1, device=x.device)
    first = torch.empty_like(counts).scatter_(0, inverse.flip(0), order)
    if not sorted_:
        rank = first.argsort()
        distinct, counts, first = distinct.index_select(along, rank), counts[rank], first[rank]
        inverse = rank.argsort()[inverse]
    return distinct, first, inverse, counts
