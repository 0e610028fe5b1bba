"""Sequences, as Python lists of tensors. Old exporters write them for ``chunk``, ``split`` and ``unbind``."""

import torch
from torch import Tensor

from fp_audit_adapters._onnx.ops.registry import operator


@operator("SequenceConstruct")
def sequence_construct(*xs: Tensor) -> list[Tensor]:
    """A sequence of the given tensors."""
    return list(xs)


@operator("SequenceEmpty")
def sequence_empty(*, dtype: torch.dtype | None = None) -> list[Tensor]:
    """A sequence of nothing."""
    del dtype
    return []


@operator("SequenceAt", host=(1,))
def sequence_at(sequence: list[Tensor], position: int) -> Tensor:
    """The tensor at ``position``."""
    return sequence[position]


@operator("SequenceLength")
def sequence_length(sequence: list[Tensor]) -> Tensor:
    """How many tensors there are."""
    return torch.tensor(len(sequence))


@operator("SequenceInsert", host=(2,))
def sequence_insert(sequence: list[Tensor], x: Tensor, position: int | list[int] | None = None) -> list[Tensor]:
    """With ``x`` before ``position``, at the end by default."""
    place = position[0] if isinstance(position, list) else position
    at = len(sequence) if place is None else place
    return [*sequence[:at], x, *sequence[at:]]


@operator("SequenceErase", host=(1,))
def sequence_erase(sequence: list[Tensor], position: int = -1) -> list[Tensor]:
    """Without the tensor at ``position``, the last by default."""
    kept = list(sequence)
    del kept[-1 if position is None else position]
    return kept


@operator("SplitToSequence", host=(1,))
def split_to_sequence(
    x: Tensor, split: int | list[int] | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """Pieces along ``axis`` of one or of several sizes; by default single slices, without it unless ``keepdims``."""
    if split is None:
        return list(torch.split(x, 1, axis)) if keepdims else list(x.unbind(axis))
    return list(torch.split(x, split, axis))


@operator("ConcatFromSequence")
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """Joined along ``axis``, or stacked along a new one."""
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)
