"""Searching for images by gradient descent: many at once, each until it is done.

Every method that makes queries (boundary points, adversarial examples, neurons to be ascended) is the same loop over
independent items; here the items share forward and backward passes. An item leaves as soon as it is done or
has used its steps, its place is taken by the next one, and the state of the optimiser belongs to the item: the result
is that of one item at a time up to rounding, whatever the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fp_audit.engine import Progress, silent

_TOLD = 10
"""Steps between two reports of progress."""

Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes n x C x H x W images that require gradients and the n positions of these items among all; returns the n losses
to descend and n booleans: whether each item is done as it is."""

Projection: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Brings n moved images back to where they may be; takes the images and the n positions of the items."""

State: TypeAlias = tuple[Tensor, ...]
"""What an optimiser keeps, each tensor with one row an item."""


class Rule(ABC):
    """How an image moves along its gradient."""

    def start(self, images: Tensor) -> State:
        """Return the state of items that have not moved yet."""
        del images
        return ()

    @abstractmethod
    def step(self, images: Tensor, gradient: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """Move n images; ``count`` (n) is the number of this step of each item, from 1."""


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma and Ba, ICLR 2015) with its moments kept for each image."""

    learning_rate: float
    first_decay: float = 0.9
    second_decay: float = 0.999

    def start(self, images: Tensor) -> State:
        """See ``Rule.start``: first and second moment."""
        return torch.zeros_like(images), torch.zeros_like(images)

    def step(self, images: Tensor, gradient: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """See ``Rule.step``."""
        b1, b2 = self.first_decay, self.second_decay
        first = state[0].lerp(gradient, 1 - b1)
        second = state[1].lerp(gradient.square(), 1 - b2)
        steps = count.to(images.dtype).reshape(-1, *[1] * (images.ndim - 1))
        update = (first / (1 - b1**steps)) / ((second / (1 - b2**steps)).sqrt() + 1e-8)
        return images - self.learning_rate * update, (first, second)


@dataclass(frozen=True)
class Sign(Rule):
    """Steps of one size in every pixel, as FGSM and L-infinity PGD take them."""

    size: float

    def step(self, images: Tensor, gradient: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """See ``Rule.step``."""
        del count
        return images - self.size * gradient.sign(), state


@dataclass(frozen=True)
class Plain(Rule):
    """Gradient descent; with ``normalised`` every step has L2 length ``size``."""

    size: float
    normalised: bool = False

    def step(self, images: Tensor, gradient: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """See ``Rule.step``."""
        del count
        if self.normalised:
            norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-12)
            gradient = gradient / norms.reshape(-1, *[1] * (images.ndim - 1))
        return images - self.size * gradient, state


def box(images: Tensor, index: Tensor) -> Tensor:
    """Clip images to [0, 1]."""
    del index
    return images.clamp(0.0, 1.0)


def ball(origin: Tensor, radius: float) -> Projection:
    """Keep item i within L-infinity distance ``radius`` of ``origin[i]``, and in [0, 1]."""
    low, high = (origin - radius).clamp_min(0.0), (origin + radius).clamp_max(1.0)
    return lambda images, index: torch.minimum(torch.maximum(images, low[index]), high[index])


@dataclass(frozen=True)
class Found:
    """Where a search ended."""

    images: Tensor
    """N x C x H x W, as they were when they were done, or after their last step."""
    done: Tensor
    """N booleans."""
    steps: Tensor
    """N, steps taken."""


def search(
    start: Tensor,
    objective: Objective,
    rule: Rule,
    *,
    steps: int,
    project: Projection = box,
    in_flight: int = 256,
    progress: Progress = silent,
    what: str = "searching for images",
) -> Found:
    """Descend ``objective`` from every image of ``start`` until it is done, at most ``steps`` steps each.

    Args:
        start: N x C x H x W images on the device of the model.
        objective: losses and who is done. Losses of different items must not depend on one another.
        rule: how images move.
        steps: most steps of one item.
        project: applied after every step.
        in_flight: items in one forward pass; places that become free are filled when a quarter is.
        progress: told the share of the work that is surely done.
        what: first argument of ``progress``.
    """
    images = start.detach().clone()
    total, waiting = len(start), 0
    done = torch.zeros(total, dtype=torch.bool, device=start.device)
    taken = torch.zeros(total, dtype=torch.long, device=start.device)
    index = torch.empty(0, dtype=torch.long, device=start.device)
    x, state, turn = images[:0], rule.start(images[:0]), 0
    while waiting < total or len(index):
        if waiting < total and len(index) <= in_flight - max(1, in_flight // 4):
            new = torch.arange(waiting, min(total, waiting + in_flight - len(index)), device=start.device)
            waiting += len(new)
            index, x = torch.cat([index, new]), torch.cat([x, images[new]])
            state = tuple(map(torch.cat, zip(state, rule.start(images[new]), strict=True)))
        x.requires_grad_(True)
        loss, reached = objective(x, index)
        going = ~reached & (taken[index] < steps)
        gradient = torch.autograd.grad(loss.sum(), x)[0] if going.any() else x
        x = x.detach()
        if not going.all():
            images[index], done[index] = x, reached
            index, x, gradient = index[going], x[going], gradient[going]
            state = tuple(part[going] for part in state)
        if len(index):
            taken[index] += 1
            x, state = rule.step(x, gradient, state, taken[index])
            x = project(x, index)
        if (turn := turn + 1) % _TOLD == 0:
            progress(what, (waiting - len(index) + float(taken[index].sum()) / steps) / total)
    progress(what, 1.0)
    return Found(images, done, taken)


def as_pixels(images: Tensor) -> Tensor:
    """Round images in [0, 1] to what a file can hold, uint8."""
    return (images * 255.0).round().clamp(0, 255).to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into images in [0, 1]."""
    return pixels.float() / 255.0
