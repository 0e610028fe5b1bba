"""Adversarial training, from scratch and as fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fp_audit.attacks._base import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from fp_audit.engine import Loss


def chosen_ball(epsilon: float, steps: int, step_size: float) -> dict[str, Any]:
    """Return the options of the adversary of ``against``.

    Args:
        epsilon: radius of the L-infinity ball, in [0, 1] pixel values.
        steps: of gradient ascent.
        step_size: of one step; 0: 2.5 ``epsilon`` / ``steps``.

    Raises:
        UsageError: a value is out of range.
    """
    require(0 < epsilon <= 1, "epsilon", epsilon, "a distance in (0, 1]")
    require(steps >= 1, "steps", steps, "1 or more")
    require(0 <= step_size <= 1, "step_size", step_size, "a distance in [0, 1], or 0 to let it follow from epsilon")
    return {"epsilon": epsilon, "steps": steps, "step_size": step_size}


def against(network: nn.Module, options: Mapping[str, Any]) -> Loss:
    """Return the loss of adversarial training: the cross-entropy of a batch's adversarial examples.

    Madry et al., eq. 2.1: min_w E max_{|d|_inf <= epsilon} L(w, x + d, y). The maximum is sought by
    ``worst_case``, with the network in evaluation mode.
    """
    from torch.nn.functional import cross_entropy

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        training = network.training
        network.eval()
        changed = worst_case(network, batch, labels, options)
        return cross_entropy(network.train(training)(changed), labels)

    return loss


def worst_case(network: nn.Module, images: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Ascend the cross-entropy from a random point of each image's ball (PGD), within the ball and [0, 1].

    Args:
        network: from images in [0, 1] to logits.
        images: N x C x H x W.
        labels: N labels or N x K soft labels.
        options: those of ``chosen_ball``. The random start is drawn from torch's global generator, as dropout is.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from fp_audit.descent import Sign, ball, search

    epsilon, steps = options["epsilon"], options["steps"]
    inside = ball(images, epsilon)
    everything = torch.arange(len(images), device=images.device)

    def objective(moved: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        losses = cross_entropy(network(moved), labels[index], reduction="none")
        return -losses, torch.zeros_like(index, dtype=torch.bool)

    start = inside(images + epsilon * (2 * torch.rand_like(images) - 1), everything)
    rule = Sign(options["step_size"] or 2.5 * epsilon / steps)
    return search(start, objective, rule, steps=steps, project=inside, in_flight=len(images)).images
