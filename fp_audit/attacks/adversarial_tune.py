"""Adversarial fine-tuning of the victim."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

from fp_audit.attacks._adversarial import against, chosen_ball
from fp_audit.attacks._base import Attack, Surrogate, Task, Training, train
from fp_audit.engine import Recipe
from fp_audit.types import Access


class AdversarialTune(Attack):
    """Trains the victim further on adversarial examples of the thief's labelled images: its boundaries move.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), eq. 2.1, used
    against fingerprints by DeepJudge (S&P 2022), section VI ("adversarial fine-tuning"). Every image of a batch
    is replaced by x + d, |d|_inf <= ``epsilon``, found by ``steps`` steps of ``step_size`` along the sign of the
    gradient of the cross-entropy, from a random start, within [0, 1]. Pixel values are in [0, 1]; the defaults are
    those of Madry et al. for CIFAR-10 (8/255, 7 steps of 2/255).

    Differences: a short fine-tune, 5 epochs at a learning rate of .001 as the attack ``fine-tune``; examples are
    made in evaluation mode, so that they leave BatchNorm statistics alone.
    """

    name: ClassVar[str] = "adversarial-tune"
    summary: ClassVar[str] = "train the victim further on adversarial examples"
    paper: ClassVar[str] = "Madry et al., ICLR 2018; DeepJudge, S&P 2022"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "some epochs of training, each step as dear as steps + 2"
    keeps: ClassVar[str] = "most of its weights and some points less of its accuracy; its boundaries move"
    recipe: ClassVar[Recipe] = Recipe(epochs=5.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        epsilon: float = 8 / 255,
        steps: int = 7,
        step_size: float = 2 / 255,
        **training: Unpack[Training],
    ) -> None:
        self.options = {**chosen_ball(epsilon, steps, step_size), **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        model = task.copy_of_victim()
        loss = against(model.module, self.options)
        steps = train(task, model, task.data, self.options, loss=loss, what="adversarial fine-tuning")
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps)
