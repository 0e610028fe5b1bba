"""Elementwise arithmetic, comparison, logic, casts and matrix products.

Inputs are tensors of any shape that broadcast; see https://onnx.ai/onnx/operators for each.
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import add, mul, sub
from typing import Any

import torch
from torch import Tensor

from fp_audit.errors import UnsupportedModel
from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
for _name, _function in _ELEMENTWISE.items():
    operator(_name)(_function)

_BROADCAST: dict[str, Callable[..., Any]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
for _name, _function in _BROADCAST.items():
    operator(_name, since=7)(_function)

_WITH_NUMBERS: dict[str, Callable[..., Any]] = {"Add": add, "Mul": mul, "Sub": sub}
for _name, _function in _WITH_NUMBERS.items():
    operator(_name, since=7, scalars=(0, 1))(_function)


def _aligned(y: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Broadcasting before opset 7: ``y``'s dimensions sit at ``axis`` of ``x``."""
    if axis is None or y.ndim == 0:
        return y
    return y.reshape(*y.shape, *[1] * (x.ndim - axis % x.ndim - y.ndim))


@operator("Add", until=6)
def add_v1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """``x + y``, broadcast from ``axis``."""
    return x + _aligned(y, x, axis if broadcast else None)


@operator("Sub", until=6)
def sub_v1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """``x - y``, broadcast from ``axis``."""
    return x - _aligned(y, x, axis if broadcast else None)


@operator("Mul", until=6)
def mul_v1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """``x * y``, broadcast from ``axis``."""
    return x * _aligned(y, x, axis if broadcast else None)


@operator("Div", until=6)
def div_v1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """``x / y``, broadcast from ``axis``."""
    return div(x, _aligned(y, x, axis if broadcast else None))


@operator("Pow", until=6)
def pow_v1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """``x ** y``, broadcast from ``axis``."""
    return pow_(x, _aligned(y, x, axis if broadcast else None))


@operator("Div", since=7, scalars=(1,))
def div(x: Tensor, y: Tensor | float) -> Tensor:
    """``x / y``; integers are truncated toward zero."""
    if not x.is_floating_point() and not x.is_complex():
        return torch.div(x, y, rounding_mode="trunc")
    return x / y


@operator("Pow", since=7, scalars=(1,))
def pow_(x: Tensor, y: Tensor | float) -> Tensor:
    """``x ** y`` in the type of ``x``."""
    return torch.pow(x, y).to(x.dtype)


@operator("Mod")
def mod(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of ``y`` (``fmod`` 0) or of ``x`` (1)."""
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


@operator("BitShift")
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """Shifts unsigned integers."""
    return x << y if direction == "LEFT" else x >> y


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where ``x`` is infinite with one of the wanted signs."""
    return torch.isinf(x) & ((x < 0) if not detect_positive else (x > 0) if not detect_negative else True)


@operator("Max")
def max_(*xs: Tensor) -> Tensor:
    """Elementwise maximum of one or more tensors."""
    return reduce(torch.maximum, xs)


@operator("Min")
def min_(*xs: Tensor) -> Tensor:
    """Elementwise minimum of one or more tensors."""
    return reduce(torch.minimum, xs)


@operator("Sum")
def sum_(*xs: Tensor) -> Tensor:
    """Elementwise sum of one or more tensors."""
    return reduce(torch.add, xs)


@operator("Mean")
def mean(*xs: Tensor) -> Tensor:
    """Elementwise mean of one or more tensors."""
    return reduce(torch.add, xs) / len(xs)


@operator("Clip", until=10)
def clip_v1(x: Tensor, *, min_: float = -math.inf, max_: float = math.inf) -> Tensor:
    """``x`` limited to ``[min, max]``."""
    return torch.clamp(x, min_, max_)


@operator("Clip", since=11, host=(1, 2))
def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """``x`` limited to ``[low, high]``; where ``low > high`` all values become ``high``."""
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("Cast")
def cast(x: Tensor, *, to: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """``x`` in another type; floats are truncated toward zero."""
    del saturate, round_mode  # They are about 8-bit floats, which `torch_type` refuses.
    return x.to(to)


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """``x`` in the type of ``like``."""
    return cast(x, to=like.dtype, saturate=saturate, round_mode=round_mode)


@operator("BitCast")
def bit_cast(x: Tensor, *, to: torch.dtype) -> Tensor:
    """The bytes of ``x`` read as another type of the same width."""
    return x.view(to)


@operator("Gemm", until=6)
def gemm_v1(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,  # noqa: N803 (ONNX's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """See `gemm`."""
    del broadcast
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a' @ b' + beta * c`` with ``a'`` [M, K], ``b'`` [K, N] and ``c`` broadcast to [M, N]."""
    left, right = a.mT if transA else a, b.mT if transB else b
    if c is None:
        return left @ right if alpha == 1 else alpha * (left @ right)
    if a.is_floating_point():
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)
    return (alpha * (left @ right) + beta * c).to(a.dtype)


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a' @ b'`` with the last two dimensions transposed on demand."""
    if transBatchA or transBatchB:
        raise UnsupportedModel("FusedMatMul with transBatchA or transBatchB: not supported")
    return alpha * ((a.mT if transA else a) @ (b.mT if transB else b))


@operator("Einsum")
def einsum(*xs: Tensor, equation: str) -> Tensor:
    """Einstein summation."""
    return torch.einsum(equation, *xs)


@operator("CumSum", host=(1,))
def cumsum(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along ``axis``; ``exclusive`` leaves each element's own value out."""
    y = x.flip(axis) if reverse else x
    total = torch.cumsum(y, axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat([torch.zeros_like(y.narrow(axis, 0, 1)), total.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


@operator("CumProd", host=(1,))
def cumprod(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product along ``axis``; ``exclusive`` leaves each element's own value out."""
    y = x.flip(axis) if reverse else x
    total = torch.cumprod(y, axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat([torch.ones_like(y.narrow(axis, 0, 1)), total.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total
