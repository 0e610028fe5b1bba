"""Transfer learning away from the victim's task."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np

from fp_audit import data as labelled_images
from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._heads import with_classes
from fp_audit.attacks._rewrite import Graph, with_outputs
from fp_audit.data import Labelled
from fp_audit.engine import Recipe, top1
from fp_audit.errors import UsageError
from fp_audit.model import WhiteBox
from fp_audit.types import Access

_HELD_OUT = 0.2
"""Share of the other task's images on which its accuracy is measured."""


class Transfer(Attack):
    """Gives the victim a new last layer and trains all layers on another task.

    Source: "vanilla transfer learning" of Chen et al., "Copy, Right? A Testing Framework for Copyright Protection of
    Deep Learning Models" (DeepJudge, S&P 2022), table VII, there from CIFAR-10 to 5 classes of SVHN. ``task`` is the
    other task's labelled images, as DATA of the command line. Without one the thief's own images are relabelled:
    the K classes are merged in pairs drawn at random, which makes ceil(K / 2) classes (K >= 3).

    The surrogate has as many outputs as the other task has classes. How well it does that task, on a fifth of its
    images that it was not trained on, is ``task_accuracy`` of the surrogate's facts; accuracy and agreement
    with the victim compare class numbers of different tasks, and say only how little is left of the victim's.

    Differences: Adam at .001 for 10 epochs, as the paper names no optimiser; the new layer is drawn as
    ``torch.nn.Linear`` draws it. A graph out of an ONNX file must end in a linear layer.
    """

    name: ClassVar[str] = "transfer"
    summary: ClassVar[str] = "replace the last layer and train all layers on another task"
    paper: ClassVar[str] = "DeepJudge, S&P 2022"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "some epochs of training, data of another task"
    keeps: ClassVar[str] = "its features, not its classes"
    recipe: ClassVar[Recipe] = Recipe(epochs=10.0, learning_rate=0.001, optimizer="adam", one_cycle=False)

    def __init__(self, *, task: str = "", **training: Unpack[Training]) -> None:
        self.options = {"task": task, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        other = self._other_task(task)
        classes = int(other.labels.max()) + 1
        order = np.random.default_rng(task.seed).permutation(len(other))
        held_out = int(_HELD_OUT * len(other))
        require(held_out >= 1, "task", other.name, f"at least {1 / _HELD_OUT:.0f} images")
        model = with_new_head(task, classes)
        steps = train(task, model, other.take(np.sort(order[held_out:])), self.options, what="training on another task")
        rest = other.take(np.sort(order[:held_out]))
        answers, _ = top1(model, rest.pixels)
        facts = {"classes": classes, "task_accuracy": float((answers == rest.labels).mean()), "task_images": held_out}
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps, facts=facts)

    def _other_task(self, task: Task) -> Labelled:
        if not self.options["task"]:
            classes = int(task.copy_of_victim().module(task.sample().to(task.opening.device)).shape[1])
            return replace(task.data, labels=paired(classes, task.draw)[task.data.labels])
        return labelled_images.load(self.options["task"], size=task.data.pixels.shape[2:], seed=task.seed)


def paired(classes: int, seed: int) -> np.ndarray:
    """Merge classes in pairs drawn at random: the new class of each, in [0, ceil(classes / 2)).

    Raises:
        UsageError: fewer than three classes, of which one would be left.
    """
    if classes < 3:
        raise UsageError(f"the victim has {classes} classes, too few to merge: name another task with --set task=DATA")
    merged = np.empty(classes, np.int64)
    merged[np.random.default_rng(seed).permutation(classes)] = np.arange(classes) // 2
    return merged


def with_new_head(task: Task, classes: int) -> WhiteBox:
    """Open the victim with ``classes`` outputs, its last layer drawn anew.

    Raises:
        UnsupportedModel: its last layer cannot be replaced.
    """
    if task.artifact.path.suffix != ".onnx":
        sample, seed = task.sample(), task.draw
        return with_classes(task.adapter, task.artifact, task.opening, sample, classes=classes, seed=seed)
    import onnx

    graph = Graph(onnx.load(task.artifact.path))
    with_outputs(graph, classes, np.random.default_rng(task.draw))
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(graph.written(), Path(scratch) / "model.onnx")
        changed = replace(task.artifact, entry="model.onnx", root=Path(scratch), files=())
        return task.adapter.load_white(changed, task.opening)
