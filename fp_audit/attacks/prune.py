"""Pruning of the smallest weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.engine import Recipe
from fp_audit.types import Access

if TYPE_CHECKING:
    from torch import nn


class Prune(Attack):
    """Sets the share ``rate`` of all weights to zero, those of smallest magnitude in the whole network.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NeurIPS 2015), in the
    global form; with ``epochs`` the zeros stay zero while the rest is trained further (RemovalNet's WP baseline).
    The weights are the parameters with two axes or more; exactly floor(``rate`` x number of weights) of them are
    pruned, among equals the ones that numpy's partition puts first.

    Differences: one threshold for all layers rather than one a layer; pruned at once, without a schedule. Biases and
    normalisation are left alone; embeddings are weights like any other.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set the smallest weights to zero, then train the rest further if asked"
    paper: ClassVar[str] = "Han et al., NeurIPS 2015"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "minutes; more with fine-tuning"
    keeps: ClassVar[str] = "accuracy up to about half of the weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=0.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        rate: float = 0.5,
        **training: Unpack[Training],
    ) -> None:
        require(0 <= rate < 1, "rate", rate, "a share in [0, 1)")
        self.options = {"rate": rate, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        model = task.copy_of_victim()
        weights = [parameter for parameter in model.module.parameters() if parameter.ndim >= 2]
        count = sum(weight.numel() for weight in weights)
        zeros = int(self.options["rate"] * count)
        prune = pruner(weights, zeros)
        prune()
        steps = 0
        if self.options["epochs"]:
            steps = train(task, model, task.data, self.options, after_step=prune, what="fine-tuning what is left")
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps, facts={"weights": count, "pruned": zeros})


def pruner(weights: list[nn.Parameter], zeros: int) -> Callable[[], None]:
    """Choose the ``zeros`` smallest weights by magnitude and return a function that sets them to zero."""
    import torch

    magnitudes = np.concatenate([weight.detach().abs().flatten().cpu().numpy() for weight in weights])
    keep = np.ones(len(magnitudes), bool)
    if zeros:
        keep[np.argpartition(magnitudes, zeros - 1)[:zeros]] = False
    parts = np.split(keep, np.cumsum([weight.numel() for weight in weights])[:-1])
    masks = [torch.from_numpy(part).view(weight.shape).to(weight) for part, weight in zip(parts, weights, strict=True)]

    def prune() -> None:
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)

    return prune
