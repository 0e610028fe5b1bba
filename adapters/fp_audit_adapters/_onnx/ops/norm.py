"""Normalisations. Statistics in the file are used as they are; none is ever updated."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit.errors import UnsupportedModel
from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator


@operator("BatchNormalization", until=8, fixed=(3, 4))
def batch_norm_v1(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, spatial: int = 1
) -> Tensor:
    """See `batch_norm`."""
    if not spatial:
        return (x - mean) / torch.sqrt(var + epsilon) * scale + bias
    return batch_norm(x, scale, bias, mean, var, epsilon=epsilon)


@operator("BatchNormalization", since=9, fixed=(3, 4))
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    training_mode: int = 0,
) -> Tensor:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` a channel.

    Mean and variance are the stored ones, also while the module is trained: a graph for inference does not say
    what its running averages would do.
    """
    if training_mode:
        raise UnsupportedModel("BatchNormalization in training mode; export the model after model.eval()")
    if x.dtype != scale.dtype or x.dtype != mean.dtype:
        mean, var, scale, bias = (part.to(x.dtype) for part in (mean, var, scale, bias))
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalised over the spatial dimensions of each image and channel, then scaled a channel."""
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


@operator("GroupNormalization", since=18, until=20)
def group_norm_v18(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Normalised over each group of channels; one scale and bias a group."""
    repeats = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), epsilon)


@operator("GroupNormalization", since=21)
def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Normalised over each group of channels; one scale and bias a channel."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
@operator("LayerNormalization", domain=MICROSOFT)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Normalised over the dimensions from ``axis`` on; then also the mean and the inverse deviation."""
    normalised = x.shape[axis:]
    if outputs == 1 and scale.shape == normalised and (bias is None or bias.shape == normalised):
        return F.layer_norm(x, normalised, scale, bias, epsilon)
    dims = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(dims, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias, mean, inverse)[:outputs]


@operator("RMSNormalization")
@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    """Divided by the root of the mean square over the dimensions from ``axis`` on."""
    dims = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon) * scale


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> Tensor | tuple[Tensor | None, ...]:
    """``layer_norm(x + skip + bias)``, and the sum as the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    return y if outputs == 1 else (y, None, None, total)[:outputs]


@operator("LRN")
def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Divided by ``(bias + alpha / size * sum of squares over size neighbouring channels) ** beta``."""
    channels = x.shape[1]
    before = (size - 1) // 2
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = sum((squares.narrow(1, start, channels) for start in range(1, size)), squares.narrow(1, 0, channels))
    return x / (bias + alpha / size * total) ** beta


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divided by the ``p``-norm along ``axis``; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """``(x - mean) / (deviation + 1e-9)`` over ``axes``, by default (0, 2, 3)."""
    dims = tuple(axes if axes is not None else (0, 2, 3))
    centred = x - x.mean(dims, keepdim=True)
    count = math.prod(x.shape[dim] for dim in dims)
    return centred / ((centred.square().sum(dims, keepdim=True) / count).sqrt() + 1e-9)
