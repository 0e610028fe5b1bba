"""Extraction with images of another domain."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from fp_audit import data as labelled_images
from fp_audit.attacks._base import Attack, Surrogate, Task, Training, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import Answers, ask, check_budget, drawn
from fp_audit.data import Labelled
from fp_audit.engine import Recipe
from fp_audit.model import as_images
from fp_audit.preprocess import Preprocess, affine_map
from fp_audit.types import Access, Pixels

BLOCK = 4096
"""Images brought to size at once."""


class Knockoff(Attack):
    """Trains a network from scratch on the victim's probabilities for images that have nothing to do with its task.

    Source: Orekondy et al., "Knockoff Nets: Stealing Functionality of Black-Box Models" (CVPR 2019), with the random
    strategy, as in Lukas et al. (ICLR 2021), A.5.1. ``transfer`` is the other data set, in any form that DATA may
    have; its labels are not used, and its images are brought to the size and channels of the victim's (bilinear,
    grey by ITU-R 601). ``queries`` of them (0: all), drawn at random without replacement, are shown to the victim
    once each. Empty, the thief's own images are the transfer set. ``answers`` are ``probabilities``, or ``labels`` for
    the paper's ablation; a victim that shows less gives what it shows, see ``extract``. ``architecture`` and
    ``size``: see ``_fresh.chosen_network``.

    Differences: Adam with a one-cycle schedule (peak .003) and an architecture without pre-training.
    """

    name: ClassVar[str] = "knockoff"
    summary: ClassVar[str] = "train a new network on the victim's probabilities for images of another data set"
    paper: ClassVar[str] = "Orekondy et al., CVPR 2019"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "queries, and training from scratch; none of the victim's images"
    keeps: ClassVar[str] = "its answers, the more the nearer the other images are to its own"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        transfer: str = "",
        answers: Answers = "probabilities",
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        self.options = {
            "transfer": transfer,
            "answers": answers,
            **chosen_network(architecture, size),
            "queries": check_budget(queries),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, others = self.options, task.data
        if options["transfer"]:
            others = transferred(options["transfer"], task.data.pixels.shape[1:], task.seed)
        shown = drawn(others, options["queries"], task.seed)
        targets, classes = ask(task.victim.black_box(), shown.pixels, options["answers"], progress=task.progress)
        model, adapter = student(task, options, classes)
        steps = train(task, model, shown, options, targets=targets, what="training on the victim's answers")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps, facts={"transfer": others.digest} if options["transfer"] else {})


def transferred(text: str, shape: tuple[int, ...], seed: int) -> Labelled:
    """Load another data set and bring its images to a shape C, H, W.

    Raises:
        DataError: it cannot be read.
    """
    loaded = labelled_images.load(text, size=(shape[1], shape[2]), seed=seed)
    pixels = fitted(loaded.pixels, shape)
    return Labelled(pixels, loaded.labels, loaded.classes, loaded.name)


def fitted(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Bring N images of one or three channels to a shape C, H, W."""
    channels, height, width = shape
    change = affine_map(Preprocess(resize=(height, width)), pixels.shape[2:], pixels.shape[1], channels)
    blocks = (as_images(pixels[i : i + BLOCK]) for i in range(0, len(pixels), BLOCK))
    return np.concatenate([np.rint(change(block) * 255).clip(0, 255).astype(np.uint8) for block in blocks])
