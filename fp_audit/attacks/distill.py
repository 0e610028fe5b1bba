"""Knowledge distillation by a thief who holds the victim's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import drawn, last_hidden
from fp_audit.engine import Loss, Recipe
from fp_audit.model import WhiteBox
from fp_audit.types import Access

if TYPE_CHECKING:
    import torch

LAST = "last"


class Distill(Attack):
    """Trains a student to answer, and if asked to activate, as the victim does.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015): the loss is T^2 KL(p || q), in nats,
    where p and q are the softmax of the victim's and the student's logits over T = ``temperature``, averaged over the
    batch; the true labels are not seen. With ``layer`` (a name of the victim's layers, or ``last`` for the last hidden
    one) ``feature_weight`` times the mean squared difference of the two networks' outputs of that layer is added:
    feature distillation, RemovalNet's baseline. That baseline starts from the victim's own weights: ``reuse``.
    The victim answers every shifted or flipped copy of an image anew, which costs no query: the thief runs it.
    ``images`` are drawn from the thief's (0: all). ``architecture`` and ``size``: see ``_fresh.chosen_network``.

    Differences: features are compared in evaluation mode (BatchNorm with its moving statistics), and only where the
    student has the victim's architecture. T is 4 and ``feature_weight`` 1: the papers name no values.
    """

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "train a student on the victim's softened answers, and on its activations if asked"
    paper: ClassVar[str] = "Hinton et al., 2015; RemovalNet's baseline"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "training from scratch, the victim run beside it"
    keeps: ClassVar[str] = "its answers, not its weights; with layer its features"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        layer: str = "",
        feature_weight: float = 1.0,
        reuse: bool = False,
        images: int = 0,
        architecture: str = SAME,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(temperature > 0, "temperature", temperature, "more than 0")
        require(feature_weight >= 0, "feature_weight", feature_weight, "0 or more")
        require(images >= 0, "images", images, "a number of images, or 0 for all")
        alike = architecture == SAME
        require(alike or not layer, "layer", layer, f"none with architecture={architecture}: its layers are others")
        require(alike or not reuse, "reuse", reuse, f"false with architecture={architecture}: its weights are others")
        self.options = {
            "temperature": temperature,
            "layer": layer,
            "feature_weight": feature_weight,
            "reuse": reuse,
            "images": images,
            **chosen_network(architecture, size),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, victim = self.options, task.victim.white_box()
        data = drawn(task.data, options["images"], task.seed)
        if options["reuse"]:
            model, adapter = task.copy_of_victim(), task.adapter
        else:
            model, adapter = student(task, options, victim.predict(task.sample().numpy()).shape[1])
        layer = last_hidden(victim, data.pixels) if options["layer"] == LAST else options["layer"]
        loss = distillation(victim, model, options["temperature"], layer, options["feature_weight"])
        steps = train(task, model, data, options, loss=loss, what="distilling")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps, facts={"layer": layer} if layer else {})


def distillation(victim: WhiteBox, model: WhiteBox, temperature: float, layer: str, weight: float) -> Loss:
    """Return the loss of a batch of images, see ``Distill``; whatever their targets are. ``layer`` may be empty."""
    import torch
    from torch.nn.functional import mse_loss

    teacher, network = victim.module, model.module

    def loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        del targets
        with torch.no_grad():
            wanted = teacher(images)
        features = torch.zeros((), device=images.device)
        if layer:
            with torch.no_grad():
                activations = victim.activate(images, layer)
            features = weight * mse_loss(model.activate(images, layer), activations)
            network.train()  # which reading activations has ended
        return features + softened(wanted, network(images), temperature)

    return loss


def softened(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(p || q), averaged over N rows, of the softmax of N x K logits over T = ``temperature``."""
    from torch.nn.functional import kl_div

    p, q = (teacher / temperature).log_softmax(dim=1), (student / temperature).log_softmax(dim=1)
    return temperature**2 * kl_div(q, p, reduction="batchmean", log_target=True)
