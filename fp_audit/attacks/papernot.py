"""Extraction with Jacobian-based data augmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import check_budget, drawn
from fp_audit.engine import Progress, Recipe, device_of, silent, top1
from fp_audit.types import Access, Pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn


class Papernot(Attack):
    """Trains a substitute on a few images and on points that it moves itself, round after round.

    Source: Papernot et al., "Practical Black-Box Attacks against Machine Learning" (AsiaCCS 2017), as in Lukas et al.
    (ICLR 2021), eq. 13 to 15: D_0 are ``seeds`` of the thief's images; in each of ``rounds`` every image x of D_i gives
    x + ``step`` * sign(J_S[M(x)]), where J_S[M(x)] is the gradient of the substitute S's output for the label that the
    victim M gave x; the victim labels the new images, and S is trained on D_{i+1}, which is twice as large as D_i.
    ``step`` is in units of the [0, 1] box; a negative one moves away from the label, as FGSM does. ``queries`` is
    the most images that the victim is shown (0: as many as seeds and rounds make): where it does not suffice for a
    round, the images to be moved are drawn at random. ``architecture`` and ``size``: see ``_fresh.chosen_network``.

    Differences: the sign is that of the gradient of the label's log-odds log(p / (1 - p)), which is the probability's
    but does not vanish where the substitute is sure; new images are clipped to the box and rounded to uint8, for a
    real victim takes image files; S keeps its weights from one round to the next; 10 epochs a round with Adam and a
    one-cycle schedule.
    """

    name: ClassVar[str] = "papernot"
    summary: ClassVar[str] = "train a substitute on a few labelled images and on their neighbours along its Jacobian"
    paper: ClassVar[str] = "Papernot et al., AsiaCCS 2017"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "few images, queries that double each round, training in rounds"
    keeps: ClassVar[str] = "its answers roughly, not its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=10.0, learning_rate=0.003, optimizer="adam")

    def __init__(
        self,
        *,
        seeds: int = 150,
        rounds: int = 6,
        step: float = 0.1,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(seeds >= 2, "seeds", seeds, "2 images or more")
        require(rounds >= 0, "rounds", rounds, "0 or more")
        require(0 < abs(step) <= 1, "step", step, "a distance in [-1, 1], not 0")
        self.options = {
            "seeds": seeds,
            "rounds": rounds,
            "step": step,
            **chosen_network(architecture, size),
            "queries": check_budget(queries),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, victim = self.options, task.victim.black_box()
        seeds = min(options["seeds"], options["queries"] or options["seeds"])
        pixels = drawn(task.data, seeds, task.seed).pixels
        labels, classes = top1(victim, pixels, task.progress)
        model, adapter = student(task, options, classes)
        rng, steps = np.random.default_rng([task.seed, 1]), 0
        for i in range(options["rounds"] + 1):
            if i:
                left = options["queries"] - len(pixels) if options["queries"] else len(pixels)
                moved = np.sort(rng.permutation(len(pixels))[: max(left, 0)])
                new = augmented(model.module, pixels[moved], labels[moved], options["step"], task.progress)
                pixels = np.concatenate([pixels, new])
                labels = np.concatenate([labels, top1(victim, new, task.progress)[0]])
            data = replace(task.data, pixels=pixels, labels=labels)
            steps += train(task, model, data, options, what=f"training the substitute, round {i}")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps)


def augmented(
    module: nn.Module, pixels: Pixels, labels: NDArray[np.int64], step: float, progress: Progress = silent
) -> Pixels:
    """Move images along the sign of the gradient of a network's probability for their label.

    Args:
        module: from [0, 1] images to logits, in evaluation mode.
        pixels: N x C x H x W, uint8.
        labels: N.
        step: how far every pixel moves, in units of the [0, 1] box.
        progress: told the share that is done.

    Returns:
        N x C x H x W, uint8.
    """
    import torch

    from fp_audit.descent import Sign, as_pixels, from_pixels, search

    device = device_of(module)
    wanted = torch.from_numpy(labels).to(device)

    def against(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        logits, label = module(images), wanted[index, None]
        others = logits.scatter(1, label, -torch.inf).logsumexp(dim=1)
        return others - logits.gather(1, label).squeeze(1), index < 0

    start = from_pixels(torch.from_numpy(pixels).to(device))
    moved = search(start, against, Sign(step), steps=1, progress=progress, what="moving images")
    return as_pixels(moved.images).cpu().numpy()
