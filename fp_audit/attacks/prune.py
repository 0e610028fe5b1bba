"""Pruning of the smallest weights, at once or step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.engine import Recipe, steps_of
from fp_audit.types import Access

if TYPE_CHECKING:
    from torch import nn

_RISE = 0.75
"""Share of the steps in which the iterative schedule reaches its rate; the rest are for what is left."""
_PRUNINGS = 20
"""How often the iterative schedule prunes."""


class Prune(Attack):
    """Sets the share ``rate`` of all weights to zero, those of smallest magnitude in the whole network.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015), in the
    global form; with ``epochs`` the zeros stay zero while the rest is trained further (RemovalNet's WP baseline).
    The weights are the parameters with two axes or more; exactly floor(``rate`` x number of weights) of them are
    pruned, among equals the ones that numpy's partition puts first.

    ``schedule=once`` prunes before training. ``iterative`` prunes while training, as Zhu and Gupta, "To prune, or not
    to prune" (2017), eq. 1: after step t of T the share ``rate`` x (1 - (1 - t / T')^3) is zero, T' = .75 T, in 20
    prunings at equal distances; a pruned weight does not come back. It needs ``epochs`` above 0.

    Differences: one threshold for all layers rather than one a layer, in both schedules. Biases and normalisation are
    left alone; embeddings are weights like any other.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set the smallest weights to zero, at once or while training the rest further"
    paper: ClassVar[str] = "Han et al., NeurIPS 2015; Zhu and Gupta, 2017"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "minutes; more with fine-tuning"
    keeps: ClassVar[str] = "accuracy up to about half of the weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=0.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        rate: float = 0.5,
        schedule: Literal["once", "iterative"] = "once",
        **training: Unpack[Training],
    ) -> None:
        require(0 <= rate < 1, "rate", rate, "a share in [0, 1)")
        self.options = {"rate": rate, "schedule": schedule, **self.trained_as(training)}
        if schedule == "iterative":
            require(self.options["epochs"] > 0, "epochs", self.options["epochs"], "more than 0 for schedule=iterative")

    def _run(self, task: Task, folder: Path) -> Surrogate:
        model = task.copy_of_victim()
        weights = [parameter for parameter in model.module.parameters() if parameter.ndim >= 2]
        count = sum(weight.numel() for weight in weights)
        pruner, zeros, steps = Pruner(weights), int(self.options["rate"] * count), 0
        keep: Callable[[], None] = pruner.keep
        if self.options["schedule"] == "once":
            pruner.choose(zeros)
        else:
            total = steps_of(Recipe(epochs=self.options["epochs"], batch=self.options["batch"]), len(task.data))
            keep = gradually(pruner, zeros, total)
        if self.options["epochs"]:
            steps = train(task, model, task.data, self.options, after_step=keep, what="fine-tuning what is left")
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps, facts={"weights": count, "pruned": zeros})


class Pruner:
    """Sets the smallest of some weights to zero and keeps them there."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        import torch

        self._weights, self._kept = weights, [torch.ones_like(weight, dtype=torch.bool) for weight in weights]

    def choose(self, zeros: int) -> None:
        """Prune until ``zeros`` weights are zero, the smallest by magnitude; those pruned before are among them."""
        import torch

        kept = np.concatenate([kept.flatten().cpu().numpy() for kept in self._kept])
        magnitudes = np.concatenate([weight.detach().abs().flatten().cpu().numpy() for weight in self._weights])
        magnitudes[~kept] = -1.0
        if zeros:
            kept[np.argpartition(magnitudes, zeros - 1)[:zeros]] = False
        parts = np.split(kept, np.cumsum([weight.numel() for weight in self._weights])[:-1])
        pairs = zip(parts, self._weights, strict=True)
        self._kept = [torch.from_numpy(part).view(weight.shape).to(weight.device) for part, weight in pairs]
        self.keep()

    def keep(self) -> None:
        """Set what is pruned to zero, after a step of an optimiser that moved it."""
        import torch

        with torch.no_grad():
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.mul_(kept)


def planned(step: int, steps: int, zeros: int) -> int:
    """Return how many weights are to be zero after ``step`` of ``steps``, by the cubic schedule."""
    left = max(0.0, 1 - step / max(1, math.floor(_RISE * steps)))
    return round(zeros * (1 - left**3))


def gradually(pruner: Pruner, zeros: int, steps: int) -> Callable[[], None]:
    """Return what to call after each of ``steps`` steps: it prunes more and more, ``zeros`` weights at the end."""
    every = max(1, math.floor(_RISE * steps / _PRUNINGS))
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        if done % every == 0 or done == steps:
            pruner.choose(planned(done, steps, zeros))
        pruner.keep()

    return after_step
