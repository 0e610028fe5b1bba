"""Arithmetic of sliding windows that convolutions and poolings share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Windows(NamedTuple):
    """Where windows lie along each spatial dimension of one input; all lists have one entry a dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    """Padding before the first element."""
    end: list[int]
    """Padding after the last element, as written or as ``auto_pad`` asks for; it may be more or less than used."""
    sizes: list[int]
    """Number of windows."""
    last: list[int]
    """Padding after the last element that makes the windows fit exactly (negative: elements are left over)."""

    @property
    def plain(self) -> bool:
        """Whether torch's own padding says the same: equal on both sides, at most half a window."""
        return self.begin == self.end and all(
            2 * begin <= kernel for begin, kernel in zip(self.begin, self.kernel, strict=True)
        )


def windows(
    spatial: Sequence[int],
    kernel: list[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Windows:
    """Resolves defaults, ``auto_pad`` and ``ceil_mode`` for an input of ``spatial`` sizes."""
    rank = len(spatial)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begin, end = _padding(spatial, reach, strides, pads, auto_pad)
    sizes = []
    for length, first, after, window, stride in zip(spatial, begin, end, reach, strides, strict=True):
        steps = (length + first + after - window) / stride
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        # A window must not start in the padding after the input.
        sizes.append(count - 1 if ceil_mode and (count - 1) * stride >= length + first else count)
    last = [
        (count - 1) * stride + window - length - first
        for count, stride, window, length, first in zip(sizes, strides, reach, spatial, begin, strict=True)
    ]
    return Windows(kernel, strides, dilations, begin, end, sizes, last)


def _padding(
    spatial: Sequence[int], reach: list[int], strides: list[int], pads: list[int] | None, auto_pad: str
) -> tuple[list[int], list[int]]:
    rank = len(spatial)
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        total = [
            max((math.ceil(length / stride) - 1) * stride + window - length, 0)
            for length, window, stride in zip(spatial, reach, strides, strict=True)
        ]
        less, more = [amount // 2 for amount in total], [amount - amount // 2 for amount in total]
        return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    if auto_pad == "VALID" or pads is None:
        return [0] * rank, [0] * rank
    return pads[:rank], pads[rank:]


def padded(x: Tensor, begin: list[int], end: list[int], value: float = 0.0) -> Tensor:
    """``x`` with its last ``len(begin)`` dimensions padded; negative amounts cut."""
    amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value) if any(amounts) else x
