"""Gradients of a network whose parameters are a little off: what holds there survives small changes of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def perturbed(module: torch.nn.Module, delta: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw theta + delta', delta' uniform in [-delta, delta] and independent for every value of every parameter.

    Buffers (statistics of BatchNorm, quantised weights) stay as they are.

    Args:
        module: its parameters are read and never written to.
        delta: in units of the weights; with 0 nothing is drawn.
        generator: on the device of the parameters.

    Returns:
        The floating-point parameters by name, for ``torch.func.functional_call``; empty if ``delta`` is 0.
    """
    import torch

    if not delta:
        return {}
    with torch.no_grad():
        return {
            name: torch.empty_like(value).uniform_(-delta, delta, generator=generator).add_(value)
            for name, value in module.named_parameters()
            if value.is_floating_point()
        }


def mean_loss(
    module: torch.nn.Module,
    images: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    delta: float,
    draws: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Average a loss over draws of the parameters: ``mean over delta' of loss(f(images; theta + delta'))``, N.

    The result has the mean's value and its gradient with respect to ``images``, and is linear in them: one draw is held
    at a time, and there are no second derivatives. The module itself is left as it is, whatever happens on the way.

    Args:
        module: from N x C x H x W images to N x K logits.
        images: may be computed from something that requires gradients.
        loss: from N x K logits to N losses.
        delta: see ``perturbed``.
        draws: each is used for all images.
        generator: see ``perturbed``.
    """
    import torch
    from torch.func import functional_call

    point = images.detach().requires_grad_(True)
    value, gradient = point.new_zeros(len(point)), torch.zeros_like(point)
    for _ in range(draws):
        losses = loss(functional_call(module, perturbed(module, delta, generator), (point,)))
        gradient += torch.autograd.grad(losses.sum(), point)[0] / draws
        value += losses.detach() / draws
    return value + ((images - images.detach()) * gradient).flatten(1).sum(dim=1)
