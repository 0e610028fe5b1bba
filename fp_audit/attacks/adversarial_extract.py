"""Extraction with adversarial training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

from fp_audit.attacks._adversarial import against, chosen_ball
from fp_audit.attacks._base import Attack, Surrogate, Task, Training, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import check_budget, drawn
from fp_audit.engine import Recipe, top1
from fp_audit.types import Access


class AdversarialExtract(Attack):
    """Trains a network from scratch on adversarial examples of images that the victim labelled.

    Source: "adversarial training" of Lukas et al. (ICLR 2021), section 5, the attack that their fingerprint does not
    survive: the extraction attack ``extract`` with the training of Madry et al. (ICLR 2018), eq. 2.1. Each of
    ``queries`` images (0: all) is shown to the victim once, as it is. Every image of a training batch is then
    replaced by x + d, |d|_inf <= ``epsilon``, found by ``steps`` steps of ``step_size`` along the sign of the gradient
    of the new network's cross-entropy with the victim's label, from a random start, within [0, 1]. Pixel values
    are in [0, 1]; the defaults are those of Madry et al. for CIFAR-10 (8/255, 7 steps of 2/255).

    ``architecture`` and ``size``: see ``_fresh.chosen_network``.

    Differences: Adam with a one-cycle schedule (peak .003); Lukas et al. state neither radius nor steps;
    examples are made in evaluation mode, so that they leave BatchNorm statistics alone.
    """

    name: ClassVar[str] = "adversarial-extract"
    summary: ClassVar[str] = "train a new network on adversarial examples of images that the victim labelled"
    paper: ClassVar[str] = "Lukas et al., ICLR 2021; Madry et al., ICLR 2018"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "queries, and training from scratch, each step as dear as steps + 2"
    keeps: ClassVar[str] = "its answers on natural images, not its boundaries"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        epsilon: float = 8 / 255,
        steps: int = 7,
        step_size: float = 2 / 255,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        self.options = {
            **chosen_ball(epsilon, steps, step_size),
            **chosen_network(architecture, size),
            "queries": check_budget(queries),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        shown = drawn(task.data, self.options["queries"], task.seed)
        labels, classes = top1(task.victim.black_box(), shown.pixels, task.progress)
        model, adapter = student(task, self.options, classes)
        loss = against(model.module, self.options)
        what = "adversarial training on the victim's labels"
        steps = train(task, model, shown, self.options, targets=labels, loss=loss, what=what)
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps)
