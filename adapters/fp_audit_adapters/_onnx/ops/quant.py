"""Quantisation: QuantizeLinear, DequantizeLinear, dynamic quantisation and integer products.

Integers that a quantiser makes are *carried in float32*: 8- and 16-bit values fit exactly, and torch
differentiates floats only. Rounding passes the gradient through as if it were not there (the straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432), and saturation stops it; that is what makes an int8 graph
attackable. The forward values are those of the operators' definitions: ties round to even, the quotient is
``x / scale`` (a product with the reciprocal would round differently). Sums of products beyond 2**24, where
float32 is no longer exact, differ from int32 sums by one part in 10**7.
"""

from typing import Any

import torch
from torch import Tensor

from fp_audit_adapters._onnx.ops.conv import conv
from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator


class _RoundStraightThrough(torch.autograd.Function):
    """``torch.round`` with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ANN401
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        del ctx
        return gradient


def _round(x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.round(x)
    rounded: Tensor = _RoundStraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def _along_axis(part: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point shaped so that it broadcasts to ``x``: per tensor, per axis, or per block."""
    if part.numel() == 1:
        return part.reshape(())
    if part.ndim == 1 and not block_size:
        return part.reshape(-1, *[1] * (x.ndim - axis % x.ndim - 1))
    size = block_size or x.shape[axis] // part.shape[axis]
    return part.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, dtype: torch.dtype, block_size: int = 0
) -> Tensor:
    """``clamp(round(x / scale) + zero_point)`` to the range of ``dtype``, carried in float32."""
    limits = torch.iinfo(dtype)
    level = _round(x.float() / _along_axis(scale.float(), x, axis, block_size))
    if zero_point is not None:
        level = level + _along_axis(zero_point.float(), x, axis, block_size)
    return level.clamp(limits.min, limits.max)


def dequantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int = 1, block_size: int = 0) -> Tensor:
    """``(x - zero_point) * scale`` in float32."""
    level = x.float()
    if zero_point is not None:
        level = level - _along_axis(zero_point.float(), x, axis, block_size)
    return level * _along_axis(scale.float(), x, axis, block_size)


@operator("QuantizeLinear", fixed=(1, 2), result=(1, 2))
@operator("QuantizeLinear", domain=MICROSOFT, fixed=(1, 2), result=(1, 2))
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """See `quantize`; the type is that of the zero point, else ``output_dtype``, else uint8."""
    del precision, saturate  # Always float32; 8-bit floats are refused.
    dtype = output_dtype or torch.uint8
    if zero_point is not None and not zero_point.is_floating_point():
        dtype = zero_point.dtype
    return quantize(x, scale, zero_point, axis, dtype, block_size)


@operator("DequantizeLinear", fixed=(1, 2), weights=(0,), zeros=(2,))
@operator("DequantizeLinear", domain=MICROSOFT, fixed=(1, 2), weights=(0,), zeros=(2,))
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """See `dequantize`; the type is ``output_dtype``, else that of the scale."""
    return dequantize(x, scale, zero_point, axis, block_size).to(output_dtype or scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` as uint8 over its own range (which includes 0), with the scale [] and zero point [] it took.

    Scale and zero point count as constants for the gradient.
    """
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((-low / scale).clamp(0, 255))
    return quantize(x, scale, zero_point, 0, torch.uint8), scale, zero_point


def _centred(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """``x - zero_point`` in float32; a zero point of several values runs along ``axis``."""
    level = x.float()
    return level if zero_point is None else level - _along_axis(zero_point.float(), x, axis, 0)


@operator("MatMulInteger", weights=(0, 1), zeros=(2, 3))
def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """``(a - a_zero) @ (b - b_zero)``; zero points are single, one a row of ``a``, or one a column of ``b``."""
    return _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)


@operator("ConvInteger", weights=(0, 1), zeros=(2, 3))
@operator("ConvInteger", domain=MICROSOFT, weights=(0, 1), zeros=(2, 3))
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """`conv` of ``x - x_zero`` and ``weight - weight_zero`` (single, or one an output channel)."""
    return conv(
        _centred(x, x_zero, 1),
        _centred(weight, weight_zero, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )


@operator("MatMulIntegerToFloat", domain=MICROSOFT, fixed=(2, 3), weights=(0, 1), zeros=(4, 5))
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`matmul_integer` times both scales, plus ``bias``."""
    product = matmul_integer(a, b, a_zero, b_zero)
    product = product * (_along_axis(a_scale, product, -2, 0) * _along_axis(b_scale, product, -1, 0))
    return product if bias is None else product + bias


@operator("DynamicQuantizeMatMul", domain=MICROSOFT, fixed=(2,), weights=(1,), zeros=(3,))
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`dynamic_quantize_linear` of ``a``, then `matmul_integer_to_float`."""
    level, scale, zero_point = dynamic_quantize_linear(a)
    return matmul_integer_to_float(level, b, scale, b_scale, zero_point, b_zero, bias)
