"""Operators on quantised values with a scale and zero point for each input and for the result.

Each is its float counterpart between `dequantize` and `quantize`; see there for how values are carried and
differentiated. onnxruntime computes several of them in integers, which agrees up to one step of the result.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit.errors import UnsupportedModel
from fp_audit_adapters._onnx.ops import pool
from fp_audit_adapters._onnx.ops.conv import conv
from fp_audit_adapters._onnx.ops.quant import dequantize, quantize
from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator


def _requantize(y: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """``y`` per tensor in the type of the zero point, uint8 without one."""
    dtype = torch.uint8 if zero_point is None or zero_point.is_floating_point() else zero_point.dtype
    return quantize(y, scale, zero_point, 0, dtype)


@operator("QLinearConv", fixed=(1, 2, 4, 5, 6, 7), weights=(3, 8), zeros=(2, 5), result=(6, 7))
@operator("QLinearConv", domain=MICROSOFT, fixed=(1, 2, 4, 5, 6, 7), weights=(3, 8), zeros=(2, 5), result=(6, 7))
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    channels_last: int = 0,
) -> Tensor:
    """`conv`; weight scale and zero point are single or one an output channel, bias has the product scale."""
    if channels_last:
        raise UnsupportedModel("QLinearConv with channels_last: not supported")
    y = conv(
        dequantize(x, x_scale, x_zero),
        dequantize(weight, weight_scale, weight_zero, 0),
        None if bias is None else bias.float() * (x_scale * weight_scale),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return _requantize(y, y_scale, y_zero)


@operator("QLinearMatMul", fixed=(1, 2, 4, 5, 6, 7), weights=(3,), zeros=(2, 5), result=(6, 7))
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
) -> Tensor:
    """Matrix product; scales are single, one a row of ``a``, or one a column of ``b``."""
    y = dequantize(a, a_scale, a_zero, -2) @ dequantize(b, b_scale, b_zero, -1)
    return _requantize(y, y_scale, y_zero)


@operator("QGemm", domain=MICROSOFT, fixed=(1, 2, 4, 5, 7, 8), weights=(3, 6), zeros=(2, 5), result=(7, 8))
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a' @ b' + c``; ``c`` has the scale ``alpha * a_scale * b_scale``. A float without ``y_scale``."""
    left = dequantize(a, a_scale, a_zero)
    right = dequantize(b, b_scale, b_zero, 0 if transB else 1)
    y = alpha * ((left.mT if transA else left) @ (right.mT if transB else right))
    if c is not None:
        y = y + c.float() * (alpha * a_scale * b_scale)
    return y if y_scale is None else _requantize(y, y_scale, y_zero)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name, domain=MICROSOFT, fixed=(1, 2, 4, 5, 6, 7), weights=(0, 3), zeros=(2, 5), result=(6, 7))
    def binary(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor | None,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor | None,
        y_scale: Tensor,
        y_zero: Tensor | None = None,
    ) -> Tensor:
        y = function(dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero))
        return _requantize(y, y_scale, y_zero)


_register_binary("QLinearAdd", torch.add)
_register_binary("QLinearMul", torch.mul)

_unary = partial(operator, domain=MICROSOFT, fixed=(1, 2, 3, 4), zeros=(2,), result=(3, 4))


@_unary("QLinearSigmoid")
def qlinear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Sigmoid."""
    return _requantize(torch.sigmoid(dequantize(x, x_scale, x_zero)), y_scale, y_zero)


@_unary("QLinearLeakyRelu")
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """Leaky ReLU."""
    return _requantize(F.leaky_relu(dequantize(x, x_scale, x_zero), alpha), y_scale, y_zero)


@_unary("QLinearSoftmax")
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Tensor:
    """Softmax along ``axis``, or over all dimensions from there on (``opset`` below 13)."""
    level = dequantize(x, x_scale, x_zero)
    y = torch.softmax(level, axis) if opset >= 13 else torch.softmax(level.flatten(axis), axis).reshape(x.shape)
    return _requantize(y, y_scale, y_zero)


@_unary("QLinearGlobalAveragePool")
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    channels_last: int = 0,
) -> Tensor:
    """Mean over the spatial dimensions."""
    dims = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    return _requantize(dequantize(x, x_scale, x_zero).mean(dims, keepdim=True), y_scale, y_zero)


@_unary("QLinearAveragePool")
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Mean of each window."""
    if channels_last:
        raise UnsupportedModel("QLinearAveragePool with channels_last: not supported")
    y = pool.average_pool(
        dequantize(x, x_scale, x_zero),
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        pads=pads,
        strides=strides,
    )
    return _requantize(y, y_scale, y_zero)


@operator("QLinearConcat", domain=MICROSOFT, fixed=tuple(range(256)), result=(0, 1))
def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    """Joined along ``axis``; ``parts`` are value, scale, zero point of each input in turn."""
    values = [dequantize(x, scale, zero) for x, scale, zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return _requantize(torch.cat(values, axis), y_scale, y_zero)


@operator("QLinearWhere", domain=MICROSOFT, fixed=(2, 3, 5, 6, 7, 8), result=(7, 8))
def qlinear_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor | None,
    z_scale: Tensor,
    z_zero: Tensor | None,
) -> Tensor:
    """``x`` where ``condition`` holds, else ``y``."""
    chosen = torch.where(condition, dequantize(x, x_scale, x_zero), dequantize(y, y_scale, y_zero))
    return _requantize(chosen, z_scale, z_zero)
