"""Adversarial examples as pure functions on batches: FGSM, PGD and CW.

All take N x C x H x W images in [0, 1] and a loss to ascend, and return images in [0, 1] that have the same shape.
Whether an image fools anything is for the caller to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from fp_audit.engine import Progress, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Loss: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Takes n images and the n positions that they have among all; returns n losses, of which none depends on another's
image."""

WHAT = "making adversarial examples"


def misclassification(module: torch.nn.Module, labels: Tensor) -> Loss:
    """Return the usual loss to ascend: cross-entropy of ``module`` (images to N x K logits) and the N true labels."""
    from torch.nn.functional import cross_entropy

    return lambda images, index: cross_entropy(module(images), labels[index], reduction="none")


def fgsm(
    images: Tensor, loss: Loss, epsilon: float, *, in_flight: int = 256, progress: Progress = silent, what: str = WHAT
) -> Tensor:
    """Move every pixel once, by ``epsilon`` towards the larger loss: ``x + epsilon * sign(grad L)``, clipped to [0, 1].

    Source: Goodfellow et al., "Explaining and harnessing adversarial examples", 2014.
    """
    return pgd(images, loss, epsilon, step=epsilon, steps=1, in_flight=in_flight, progress=progress, what=what)


def pgd(
    images: Tensor,
    loss: Loss,
    epsilon: float,
    *,
    step: float,
    steps: int,
    start: Tensor | None = None,
    in_flight: int = 256,
    progress: Progress = silent,
    what: str = WHAT,
) -> Tensor:
    """Ascend ``loss`` by ``x + step * sign(grad L)``, projected after each step.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2017.

    Args:
        images: N x C x H x W in [0, 1].
        loss: what to ascend.
        epsilon: L-infinity radius around ``images``, in units of the [0, 1] box. Every pixel of the result is within
            it and in [0, 1].
        step: size of one step.
        steps: number of steps; all are taken.
        start: where to start instead of at ``images``, for example a random point of the ball (a loss that is flat at
            ``images`` moves nothing).
        in_flight: images in one forward pass.
        progress: told the share that is done.
        what: first argument of ``progress``.
    """
    from fp_audit.descent import Sign, ball, search

    return search(
        images if start is None else start,
        _ascended(loss),
        Sign(step),
        steps=steps,
        project=ball(images, epsilon),
        in_flight=in_flight,
        progress=progress,
        what=what,
    ).images


def cw(
    images: Tensor,
    loss: Loss,
    constant: float,
    *,
    steps: int,
    learning_rate: float,
    in_flight: int = 256,
    progress: Progress = silent,
    what: str = WHAT,
) -> Tensor:
    """Minimise ``||x' - x||_2^2 - constant * L(x')`` over x' in [0, 1] with Adam.

    Source: Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, in the form of
    DeepJudge (S&P 2022, appendix D). Differences from the former: L is the loss that is given, not a margin of logits;
    the box is kept by clipping, not by tanh; ``constant`` is given, not searched for.

    Args:
        images: N x C x H x W in [0, 1].
        loss: L.
        constant: weight of L; larger moves further.
        steps: number of steps; all are taken.
        learning_rate: Adam's, in units of the [0, 1] box.
        in_flight: images in one forward pass.
        progress: told the share that is done.
        what: first argument of ``progress``.
    """
    from fp_audit.descent import Adam, search

    def near_and_wrong(moved: Tensor, index: Tensor) -> Tensor:
        distance = (moved - images[index]).square().flatten(1).sum(dim=1)
        return constant * loss(moved, index) - distance

    return search(
        images,
        _ascended(near_and_wrong),
        Adam(learning_rate),
        steps=steps,
        in_flight=in_flight,
        progress=progress,
        what=what,
    ).images


def _ascended(loss: Loss) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Turn a loss to ascend into an objective to descend that is never done."""

    def objective(moved: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        losses = loss(moved, index)
        return -losses, index < 0

    return objective
