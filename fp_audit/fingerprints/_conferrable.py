"""The equations of conferrable examples, on the answers of two ensembles of networks (Lukas et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    import torch

    from fp_audit.networks import Network


LEAST = 1e-7
"""Probabilities are raised to this before their logarithm is taken, as Keras does, which the authors used."""


class Ensemble(Protocol):
    """The probabilities of m networks."""

    def __call__(self, images: torch.Tensor, chosen: Sequence[int] | None = None) -> torch.Tensor:
        """Answer n x C x H x W images in [0, 1] with m x n x K probabilities, of the ``chosen`` networks only."""


@dataclass(frozen=True)
class Sides:
    """The networks of equation 6, on one device."""

    victim: torch.nn.Module
    """From images in [0, 1] to logits."""
    surrogates: Ensemble
    independents: Ensemble

    @classmethod
    def of(cls, victim: torch.nn.Module, surrogates: Sequence[Network], independents: Sequence[Network]) -> Self:
        """Bring trained networks to the victim's device."""
        from fp_audit.engine import device_of

        device = device_of(victim)
        groups = [[network.module.to(device) for network in group] for group in (surrogates, independents)]
        return cls(victim, *(ensemble(group, together=device.type == "cuda") for group in groups))


def ensemble(modules: Sequence[torch.nn.Module], *, together: bool) -> Ensemble:
    """Return the function from n x C x H x W images to the softmax of m networks' logits, m x n x K.

    Args:
        modules: m networks in evaluation mode that differ in weights and statistics only. Their parameters are frozen.
        together: stack them and do each operation for all at once. That is for a GPU, which one small network leaves
            idle; on the CPU one after another is as quick or quicker.
    """
    import torch
    from torch.func import functional_call, stack_module_state

    for module in modules:
        module.requires_grad_(False)
    if not together:
        return lambda images, chosen=None: torch.stack(
            [modules[i](images).softmax(dim=1) for i in (range(len(modules)) if chosen is None else chosen)]
        )
    weights, buffers = stack_module_state(list(modules))
    own = {name: stacked for name, stacked in {**weights, **buffers}.items() if (stacked != stacked[:1]).any()}

    def answer(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(modules[0], state, (images,))
        return logits.softmax(dim=1)

    def answers(images: torch.Tensor, chosen: Sequence[int] | None = None) -> torch.Tensor:
        state = own if chosen is None else {name: stacked[list(chosen)] for name, stacked in own.items()}
        together: torch.Tensor = torch.vmap(answer, in_dims=(0, None))(state, images)
        return together

    return answers


def drawn(count: int, sampled: int, rng: np.random.Generator) -> Sequence[int] | None:
    """Draw the networks of one step out of ``count``; None for all of them."""
    return rng.choice(count, sampled, replace=False).tolist() if 0 < sampled < count else None


def mean_prediction(probabilities: torch.Tensor, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """Average m x n x K probabilities over the networks with dropout of single entries, n x K (equations 3 and 4)."""
    import torch

    drawn = torch.rand(probabilities.shape, generator=generator, device=probabilities.device)
    return (probabilities * (drawn >= dropout)).mean(dim=0) / (1 - dropout)


def ensemble_output(surr: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Compute the conferrability of each class, n x K (equation 5), from mean predictions, n x K each."""
    return (surr * (1 - ref)).softmax(dim=1)


def cross_entropy(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Compute H(wanted, given) of rows of probabilities, n; ``given`` is raised to ``LEAST`` first."""
    return -(wanted * given.clamp_min(LEAST).log()).sum(dim=1)


def conferrable_loss(
    first: torch.Tensor,
    now: torch.Tensor,
    surr: torch.Tensor,
    ref: torch.Tensor,
    weights: tuple[float, float, float],
) -> torch.Tensor:
    """Compute equation 6 for n images.

    Args:
        first: n x K, the victim's probabilities on the seeds, M(x0).
        now: n x K, on the images, M(x).
        surr: n x K, the surrogates' mean prediction on the images.
        ref: n x K, the independents'.
        weights: alpha, beta, gamma.
    """
    alpha, beta, gamma = weights
    confer = -ensemble_output(surr, ref).amax(dim=1).log()
    return alpha * confer - beta * cross_entropy(first, now) + gamma * cross_entropy(now, surr)


def conferrability(surrogates: torch.Tensor, independents: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute equation 2 for n images, n, from labels m x n of surrogates and of independents, and target labels, n."""
    transferred = (surrogates == target).float().mean(dim=0)
    return transferred * (1 - (independents == target).float().mean(dim=0))


def assessed(
    sides: Sides, pixels: torch.Tensor, source: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Assess n uint8 images whose seeds the victim put in class ``source``, n.

    Returns:
        ``targets``, ``conferrability`` and ``confidence`` of ``Candidates``.
    """
    from fp_audit.descent import from_pixels

    images = from_pixels(pixels)
    target = sides.victim(images).argmax(dim=1)
    surrogates, independents = sides.surrogates(images), sides.independents(images)
    hard = conferrability(surrogates.argmax(dim=2), independents.argmax(dim=2), target) * (target != source)
    surr, ref = (answers.mean(dim=0).gather(1, target[:, None])[:, 0] for answers in (surrogates, independents))
    return target, hard, surr * (1 - ref)
