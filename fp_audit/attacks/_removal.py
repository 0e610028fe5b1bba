"""The arithmetic of RemovalNet: the targets of one step, and a network driven towards them.

Torch is imported inside the functions: whoever only lists attacks never pays for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fp_audit.engine import Progress, batches, silent
from fp_audit.errors import UsageError
from fp_audit.types import Pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fp_audit.attacks._cut import Cut

TOLD = 10
"""Steps between two reports of progress, each of which looks whether the loss is still finite."""

LAST = 50
"""Steps at the end over which what is reported is averaged."""

NO_GAMMA = -1.0
"""The cross-entropy's weight is alpha, the divergence's 1 - alpha."""


@dataclass(frozen=True)
class Plan:
    """Everything that a preset decides; the first ten fields are options of the attack."""

    alpha: float
    beta: float
    gamma: float
    learning_rate: float
    weight_decay: float
    schedule: str
    """``constant``, or ``cosine`` with its minimum half a run after the end."""
    temperature: float
    inner_steps: int
    inner_rate: float
    shuffle: float

    lambdas: tuple[float, ...]
    """Tried in this order for the interpolated logits."""
    own: bool
    """Whether the targets start from the surrogate's outputs instead of the victim's."""
    probabilities: bool
    """Whether probabilities are interpolated, and taken for logits."""
    noise: bool
    """Whether the ascent starts at z + tan(u), u uniform in [0, 1)."""
    signs: bool
    """Whether the ascent follows the sign of the gradient, of means over the batch and a tenth of the log distance."""
    squared: bool
    """Whether the layer's loss is the mean of all squared differences, instead of the mean length per image."""

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of cross-entropy, divergence and the layer's loss."""
        if self.gamma == NO_GAMMA:
            return self.alpha, 1 - self.alpha, self.beta
        return self.gamma, self.alpha, self.beta


PRESETS = {
    "paper": Plan(
        alpha=0.2,
        beta=2.0,
        gamma=NO_GAMMA,
        learning_rate=0.01,
        weight_decay=0.0,
        schedule="constant",
        temperature=1.0,
        inner_steps=10,
        inner_rate=0.01,
        shuffle=0.1,
        lambdas=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        own=False,
        probabilities=False,
        noise=False,
        signs=False,
        squared=False,
    ),
    "code": Plan(
        alpha=0.2,
        beta=2.0,
        gamma=0.6,
        learning_rate=0.008,
        weight_decay=1e-4,
        schedule="cosine",
        temperature=20.0,
        inner_steps=20,
        inner_rate=0.01,
        shuffle=0.02,
        lambdas=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        own=True,
        probabilities=True,
        noise=True,
        signs=True,
        squared=True,
    ),
}


class Targets(NamedTuple):
    """What one step drives the surrogate to, for n images."""

    labels: Tensor
    """n, the victim's."""
    logits: Tensor
    """n x K."""
    features: Tensor
    """n x channels x ..., outputs of the layer."""


class Losses(NamedTuple):
    """The losses of one step without their weights."""

    cross_entropy: Tensor
    divergence: Tensor
    layer: Tensor


def shuffled(features: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Exchange channels at random among ceil(``ratio`` x channels) of them, drawn for each image.

    Args:
        features: n x channels x ...
        ratio: share of the channels; where that is one channel, nothing moves.
        generator: on the CPU.
    """
    import torch

    count, channels = features.shape[:2]
    drawn = torch.rand(count, channels, generator=generator).argsort(dim=1)
    drawn = drawn[:, : math.ceil(ratio * channels - 1e-9)]
    source = torch.arange(channels).repeat(count, 1).scatter(1, drawn.sort(dim=1).values, drawn)
    return features[torch.arange(count, device=features.device)[:, None], source.to(features.device)]


def least_like(answers: Tensor, labels: Tensor, lambdas: tuple[float, ...]) -> Tensor:
    """Move each row of ``answers`` as far towards the row farthest from it as its label allows (Alg. 2).

    Row i becomes lambda a_i + (1 - lambda) a_j with the first of ``lambdas`` at which its largest value is at
    ``labels[i]``; where there is none it stays. j is the row at the largest L2 distance, the first of several.

    Args:
        answers: n x K.
        labels: n.
        lambdas: in [0, 1], ascending.
    """
    import torch

    exact = "donot_use_mm_for_euclid_dist"
    farthest = answers[torch.cdist(answers, answers, compute_mode=exact).argmax(dim=1)]
    grid = torch.tensor(lambdas, dtype=answers.dtype, device=answers.device)[:, None, None]
    mixed = grid * answers + (1 - grid) * farthest
    allowed = mixed.argmax(dim=2) == labels
    chosen: Tensor = mixed[allowed.int().argmax(dim=0), torch.arange(len(answers), device=answers.device)]
    return torch.where(allowed.any(dim=0)[:, None], chosen, answers)


def reversed_features(
    rest: Callable[[Tensor], Tensor], origin: Tensor, labels: Tensor, plan: Plan, generator: torch.Generator
) -> Tensor:
    """Find outputs of the layer that are far from ``origin`` and mean the same (Alg. 1), for all images at once.

    Args:
        rest: from the layer's output to logits.
        origin: n x channels x ..., outputs of the layer to get away from.
        labels: n, the classes to stay in.
        plan: steps, their size, the share of channels to shuffle.
        generator: on the CPU.
    """
    import torch

    features = origin
    if plan.noise:
        noise = torch.rand(origin.shape, generator=generator).tan().to(origin)
        features = shuffled(origin + noise, plan.shuffle, generator)
    for _ in range(plan.inner_steps):
        features = shuffled(features, plan.shuffle, generator).requires_grad_()
        loss = _apart(rest(features), labels, features - origin, plan)
        (gradient,) = torch.autograd.grad(loss, features)
        features = features.detach() - plan.inner_rate * (gradient.sign() if plan.signs else gradient)
    return features


def _apart(logits: Tensor, labels: Tensor, moved: Tensor, plan: Plan) -> Tensor:
    """Return the cross-entropy less the logarithm of the distance (Alg. 1, line 5)."""
    from torch.nn.functional import cross_entropy

    if plan.signs:
        distance: Tensor = moved.norm()
        return cross_entropy(logits, labels) - 0.1 * distance.clamp_min(1e-12).log()
    squares = moved.flatten(1).square().sum(dim=1)
    return cross_entropy(logits, labels, reduction="sum") - 0.5 * squares.log1p().sum()


@dataclass(frozen=True)
class Removal:
    """A surrogate that starts as the victim and is driven away from it."""

    surrogate: nn.Module
    victim: nn.Module
    cut: Cut
    plan: Plan

    def targets(self, images: Tensor, generator: torch.Generator) -> Targets:
        """Make the targets of one step for n images; both networks must be in evaluation mode."""
        import torch

        with torch.no_grad():
            origin, answers = self.cut.read(self.victim, images)
            labels = answers.argmax(dim=1)
            if self.plan.own:
                origin, answers = self.cut.read(self.surrogate, images)
            if self.plan.probabilities:
                answers = answers.softmax(dim=1)
            logits = least_like(answers, labels, self.plan.lambdas)

        def rest(features: Tensor) -> Tensor:
            return self.cut.rest(self.surrogate, features)

        return Targets(labels, logits, reversed_features(rest, origin, labels, self.plan, generator))

    def losses(self, images: Tensor, targets: Targets) -> Losses:
        """Compare layer and logits for n images with their targets (eq. 11 and 13), normalised by the batch."""
        from torch.nn.functional import cross_entropy, kl_div

        with _normalising_by_batch(self.surrogate):
            features, answers = self.cut.read(self.surrogate, images)
        warmth = self.plan.temperature
        wanted, given = ((values / warmth).log_softmax(dim=1) for values in (targets.logits, answers))
        divergence = warmth**2 * kl_div(given, wanted, reduction="batchmean", log_target=True)
        apart = (features - targets.features).flatten(1)
        layer = apart.square().mean() if self.plan.squared else apart.norm(dim=1).mean()
        return Losses(cross_entropy(answers, targets.labels), divergence, layer)

    def run(
        self, pixels: Pixels, *, iterations: int, batch: int, seed: int, device: str, progress: Progress = silent
    ) -> dict[str, float]:
        """Train the surrogate in place.

        Args:
            pixels: N x C x H x W, uint8.
            iterations: optimiser steps.
            batch: images in each of them.
            seed: order of the images, shuffling and noise follow from it.
            device: where both networks are.
            progress: told the share of steps done.

        Returns:
            The means of the three losses over the last steps.

        Raises:
            UsageError: the training diverged.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        shown = torch.from_numpy(pixels).to(device)
        optimizer, schedule = _optimizer(self.surrogate, self.plan, iterations)
        last: deque[Tensor] = deque(maxlen=LAST)
        for step, index in enumerate(batches(len(pixels), batch, iterations, generator)):
            images = shown[index.to(device)].float() / 255.0
            found = self.losses(images, self.targets(images, generator))
            total = torch.stack(found) @ torch.tensor(self.plan.weights, device=device)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            last.append(torch.stack(found).detach())
            if step % TOLD == 0:
                self._check(total)
                progress("removing the fingerprint", step / iterations)
        self._check(*self.surrogate.parameters())
        progress("removing the fingerprint", 1.0)
        return dict(zip(Losses._fields, torch.stack(tuple(last)).mean(dim=0).tolist(), strict=True))

    def _check(self, *values: Tensor) -> None:
        if not all(value.isfinite().all() for value in values):
            rate = self.plan.learning_rate
            raise UsageError(f"removing the fingerprint diverged at learning_rate={rate}: set a smaller one")


@contextmanager
def _normalising_by_batch(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm use and follow the statistics of the batch; everything else stays in evaluation mode."""
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.train()
    yield
    for norm in norms:
        norm.eval()


def _optimizer(
    network: nn.Module, plan: Plan, iterations: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    from torch.optim import SGD
    from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

    optimizer = SGD(network.parameters(), lr=plan.learning_rate, momentum=0.9, weight_decay=plan.weight_decay)
    if plan.schedule == "cosine":
        return optimizer, CosineAnnealingLR(optimizer, max(1, int(1.5 * iterations)))
    return optimizer, ConstantLR(optimizer, factor=1.0)
