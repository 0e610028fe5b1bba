"""Extraction through labels: a new network learns the victim's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.data import Labelled
from fp_audit.engine import Recipe, top1
from fp_audit.fresh import Architecture
from fp_audit.types import Access

SAME = "same"

MIN_SIZE = 64
"""Pixels a side to which smaller images are enlarged for timm's networks, which shrink them 32 times."""


class Extract(Attack):
    """Trains a network from scratch on the thief's images and the labels that the victim gives them.

    Source: "retraining" of Lukas et al. (ICLR 2021), eq. 10, S <- Train(M, D), with top-1 labels; the true labels are
    never seen. ``architecture`` is ``same`` (the victim's, every weight drawn anew, see ``fresh.Architecture``)
    or any name that timm knows. Each of ``queries`` images (0: all) is shown to the victim once; a shifted or
    flipped copy keeps its label and costs no query.

    Differences: Adam with a one-cycle schedule (peak .003) instead of a schedule for each architecture.
    ``size`` (timm only) is the side to which images are resized; 0 keeps theirs, but enlarges those below
    ``MIN_SIZE``. The saved folder states it.
    """

    name: ClassVar[str] = "extract"
    summary: ClassVar[str] = "train a new network, of the same or another architecture, on the victim's labels"
    paper: ClassVar[str] = "Lukas et al., ICLR 2021"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "queries, and training from scratch"
    keeps: ClassVar[str] = "its answers, not its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(queries >= 0, "queries", queries, "a number of images, or 0 for all")
        require(size >= 0, "size", size, "pixels, or 0 for the size of the images")
        self.options = {"architecture": architecture, "queries": queries, "size": size, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        from fp_audit.attacks._fresh import timm_architecture

        shown = self._chosen(task)
        labels, classes = top1(task.victim.black_box(), shown.pixels, task.progress)
        if self.options["architecture"] == SAME:
            own = Architecture(task.adapter.name, task.artifact, task.opening)
            model, adapter = own.fresh(seed=task.draw, sample=shown.pixels[:2]), task.adapter
        else:
            size = self.options["size"] or max(MIN_SIZE, *shown.pixels.shape[2:])
            model, adapter = timm_architecture(self.options["architecture"], task, classes=classes, size=size)
        labelled = replace(shown, labels=labels)
        steps = train(task, model, labelled, self.options, what="training on the victim's labels")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps)

    def _chosen(self, task: Task) -> Labelled:
        """Draw the images that the budget allows."""
        budget = self.options["queries"] or len(task.data)
        order = np.random.default_rng(task.seed).permutation(len(task.data))
        return task.data.take(np.sort(order[:budget]))
