"""Convolutions of [N, C, spatial...] with one to three spatial dimensions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit_adapters._onnx.ops import activation
from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator
from fp_audit_adapters._onnx.ops.windows import padded, windows

CONV: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Correlation of ``x`` [N, C, ...] with ``weight`` [M, C/group, ...] plus ``bias`` [M]."""
    del kernel_shape  # The weight has it.
    place = windows(x.shape[2:], list(weight.shape[2:]), strides, dilations, pads, auto_pad)
    begin = place.begin
    if begin != place.end:
        x, begin = padded(x, begin, place.end), [0] * len(begin)
    return CONV[x.ndim](x, weight, bias, place.strides, begin, place.dilations, group)


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    *,
    activation_: str = "",
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """`conv`, plus ``addend``, then one of the activations that onnxruntime fuses."""
    y = conv(
        x,
        weight,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    y = y if addend is None else y + addend
    first, second = [*(activation_params or []), 0.0, 0.0][:2]
    activations: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda z: z,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "LeakyRelu": lambda z: activation.leaky_relu(z, alpha=first),
        "Clip": lambda z: torch.clamp(z, first, second),
        "HardSigmoid": lambda z: activation.hard_sigmoid(z, alpha=first, beta=second),
    }
    return activations[activation_](y)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Gradient of a convolution: ``x`` [N, C, ...], ``weight`` [C, M/group, ...]; ``pads`` cut the result."""
    del kernel_shape
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    whole = [
        (length - 1) * stride + (kernel - 1) * dilation + 1 + more
        for length, stride, kernel, dilation, more in zip(
            x.shape[2:], strides, weight.shape[2:], dilations, extra, strict=True
        )
    ]
    if output_shape is None and auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        output_shape = [length * stride for length, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape is None:
        begin, end = (pads[:rank], pads[rank:]) if pads else ([0] * rank, [0] * rank)
    else:
        total = [size - wanted for size, wanted in zip(whole, output_shape[-rank:], strict=True)]
        less, more = [amount // 2 for amount in total], [amount - amount // 2 for amount in total]
        begin, end = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    y = _TRANSPOSED[x.ndim](x, weight, bias, strides, 0, 0, group, dilations)
    # The output padding is a part of the result that no input reaches, so only the bias is there.
    lacking = [size - got for size, got in zip(whole, y.shape[2:], strict=True)]
    if any(lacking):
        filler = torch.zeros_like(y) if bias is None else bias.reshape(-1, *[1] * rank).expand_as(y)
        y = padded(y - filler, [0] * rank, lacking) + (0 if bias is None else bias.reshape(-1, *[1] * rank))
    return padded(y, [-amount for amount in begin], [-amount for amount in end])


@operator("Col2Im", host=(1, 2))
def col2im(
    x: Tensor,
    image_shape: list[int],
    block_shape: list[int],
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Sums the columns [N, C * blocks, L] back into images [N, C, ...] of one or more dimensions."""
    place = windows(image_shape, block_shape, strides, dilations, pads, "NOTSET")
    whole = [length + first + after for length, first, after in zip(image_shape, place.begin, place.end, strict=True)]
    columns = x.reshape(x.shape[0], -1, *block_shape, *place.sizes)
    y = x.new_zeros(x.shape[0], columns.shape[1], *whole)
    for offset in torch.cartesian_prod(*[torch.arange(size) for size in block_shape]).reshape(-1, len(whole)).tolist():
        target = tuple(
            slice(at * dilation, at * dilation + stride * (count - 1) + 1, stride)
            for at, dilation, stride, count in zip(offset, place.dilations, place.strides, place.sizes, strict=True)
        )
        y[(slice(None), slice(None), *target)] += columns[(slice(None), slice(None), *offset)]
    return padded(y, [-amount for amount in place.begin], [-amount for amount in place.end])
