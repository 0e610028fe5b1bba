"""Extraction with some true labels."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import check_budget, drawn
from fp_audit.engine import Recipe, top1
from fp_audit.types import Access


class ExtractMix(Attack):
    """Trains a network from scratch on images of which a share has its true label and the rest the victim's.

    Source: the "ground-truth" attack of Lukas et al. (ICLR 2021), section 6 and figure 4d: the surrogate's labels are
    the true ones for a share p of the images. Those images are never shown to the victim: of n images,
    round(``true_share`` n), drawn at random, cost no query (but one image is always asked). n is the number of
    images, or the most of them for which the others stay within ``queries`` (0: no limit). ``architecture`` and
    ``size``: see ``_fresh.chosen_network``.

    Differences: as for ``extract``.
    """

    name: ClassVar[str] = "extract-mix"
    summary: ClassVar[str] = "train a new network on true labels for a share of the images, the victim's for the rest"
    paper: ClassVar[str] = "Lukas et al., ICLR 2021"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "labelled images, queries, and training from scratch"
    keeps: ClassVar[str] = "some of its answers, not its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        true_share: float = 0.5,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(0 <= true_share < 1, "true_share", true_share, "a share in [0, 1)")
        self.options = {
            "true_share": true_share,
            **chosen_network(architecture, size),
            "queries": check_budget(queries),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, images = self.options, len(task.data)
        used = drawn(task.data, affordable(images, options["queries"], options["true_share"]), task.seed)
        order = np.random.default_rng([task.seed, 1]).permutation(len(used))
        asked = np.sort(order[: to_ask(len(used), options["true_share"])])
        labels = used.labels.copy()
        labels[asked], classes = top1(task.victim.black_box(), used.pixels[asked], task.progress)
        model, adapter = student(task, options, classes)
        steps = train(task, model, used, options, targets=labels, what="training on mixed labels")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps, facts={"true_labels": len(used) - len(asked)})


def to_ask(images: int, share: float) -> int:
    """Return how many of ``images`` get the victim's label where ``share`` of them have the true one; at least one."""
    return max(1, images - round(share * images))


def affordable(images: int, queries: int, share: float) -> int:
    """Return the most of ``images`` of which ``queries`` suffice, see ``to_ask``; all of them for 0."""
    return max(count for count in range(1, images + 1) if not queries or to_ask(count, share) <= queries)
