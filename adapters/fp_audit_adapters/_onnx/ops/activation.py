"""Activations: one tensor in, one of the same shape out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fp_audit_adapters._onnx.ops.registry import MICROSOFT, operator

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Mish": F.mish,
    "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
}
for _name, _function in _PLAIN.items():
    operator(_name)(_function)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``x`` where positive, else ``alpha * x``."""
    return F.leaky_relu(x, alpha)


@operator("PRelu", until=6)
def prelu_v1(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, else ``slope * x`` with one slope a channel."""
    return torch.where(x < 0, slope.reshape(-1, *[1] * (x.ndim - 2)) * x, x)


@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, else ``slope * x``; ``slope`` broadcasts to ``x``."""
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``max(0, x) + min(0, alpha * (exp(x / alpha) - 1))``."""
    return F.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """``gamma * x`` where positive, else ``gamma * alpha * (exp(x) - 1)``."""
    return gamma * F.elu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where above ``alpha``, else 0."""
    return F.threshold(x, alpha, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha * x + beta`` limited to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, else 0."""
    shifted = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return shifted.to(x.dtype)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``x * Phi(x)``, exact or by tanh."""
    return F.gelu(x, approximate=approximate)


@operator("Gelu", domain=MICROSOFT)
def gelu_exact(x: Tensor) -> Tensor:
    """``x * Phi(x)``."""
    return F.gelu(x)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)``."""
    return F.gelu(x + bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``gelu(x + bias)`` by tanh."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return x * torch.sigmoid(alpha * x)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("SwiGLU")
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``swish(a) * b``."""
    return swish(a, alpha=alpha) * b


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    """``x`` flattened to two dimensions before ``axis``, the meaning of softmax before opset 13."""
    return x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)


@operator("Softmax", until=12)
def softmax_v1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all dimensions from ``axis`` on."""
    return torch.softmax(_as_matrix(x, axis), 1).reshape(x.shape)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along ``axis``."""
    return torch.softmax(x, axis)


@operator("LogSoftmax", until=12)
def log_softmax_v1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Log of the softmax over all dimensions from ``axis`` on."""
    return torch.log_softmax(_as_matrix(x, axis), 1).reshape(x.shape)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Log of the softmax along ``axis``."""
    return torch.log_softmax(x, axis)


@operator("Hardmax", until=12)
def hardmax_v1(x: Tensor, *, axis: int = 1) -> Tensor:
    """One at the first maximum over all dimensions from ``axis`` on, else 0."""
    return _hardmax(_as_matrix(x, axis), 1).reshape(x.shape)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """One at the first maximum along ``axis``, else 0."""
    return _hardmax(x, axis)
