"""CSRP: certain scale with random padding."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require
from fp_audit.attacks._random import Mode, surrogate_behind
from fp_audit.augmentation import MAX_PADDING, MAX_SIGMA, Csrp, enlarged
from fp_audit.engine import Recipe
from fp_audit.types import Access

SIDES = (32, 64)
"""Pixels a side of the paper's images: CIFAR-10, TinyImageNet."""
SIGMAS = (1.16, 1.25)
PADDINGS = (3 / 32, 14 / 64)
"""As shares of the side."""


class CertainScaleRandomPadding(Attack):
    """Puts a random enlarging, padding and shrinking in front of the victim, drawn anew for every image asked.

    Source: Wang et al., "Mitigating Query-based Neural Network Fingerprinting via Data Augmentation" (ACM TOSN 2023),
    Alg. 1 (see ``augmentation.Csrp``). ``data-free``: the surrogate is victim o CSRP, its weights untouched (section
    4.1). ``data-limited``: all layers are fine-tuned first, on the thief's images behind CSRP (section 4.2; 6 to 8
    epochs with 10 or 20 % of the training data).

    ``sigma`` and ``padding`` (pixels) are the paper's where 0, by the shorter side of the thief's images: 1.16 and 3 at
    32 pixels (tables 2 and 3 use 1.16/3 for CIFAR-10 and the stronger 1.23/5 for CIFAR-100), 1.25 and 14 at 64.
    Between these sizes sigma and padding / side are interpolated linearly, and beyond them they stay: a choice of
    ours, since the paper has no other sizes.

    Differences: the transform sees images as they come, before a model's own resizing; optimiser and learning rate of
    the fine-tuning are not stated and are those of the attack ``fine-tune``.
    """

    name: ClassVar[str] = "csrp"
    summary: ClassVar[str] = "enlarge, pad and shrink every image at random before the victim sees it"
    paper: ClassVar[str] = "Wang et al., ACM TOSN 2023"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing; some epochs of training when data-limited"
    keeps: ClassVar[str] = "its weights; 8 to 21 points of accuracy go, about 6 when data-limited"
    recipe: ClassVar[Recipe] = Recipe(epochs=7.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        mode: Mode = "data-free",
        sigma: float = 0.0,
        padding: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(sigma == 0 or 1 <= sigma <= MAX_SIGMA, "sigma", sigma, f"1 to {MAX_SIGMA:g}, or 0: by image size")
        require(0 <= padding <= MAX_PADDING, "padding", padding, f"1 to {MAX_PADDING} pixels, or 0: by image size")
        self.options = {"mode": mode, "sigma": sigma, "padding": padding, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        side = min(task.data.pixels.shape[2:])
        usual = usual_strength(side)
        chosen = Csrp(self.options["sigma"] or usual.sigma, self.options["padding"] or usual.padding)
        most = enlarged(side, chosen.sigma) - 1
        require(chosen.padding <= most, "padding", chosen.padding, f"at most {most} for images of {side} pixels")
        return surrogate_behind(chosen, task, folder, self.options)


def usual_strength(side: int) -> Csrp:
    """Return the paper's parameters for images whose shorter side has ``side`` pixels."""
    padding = round(side * float(np.interp(side, SIDES, PADDINGS)))
    return Csrp(float(np.interp(side, SIDES, SIGMAS)), max(1, padding))
