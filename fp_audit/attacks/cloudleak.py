"""Extraction with adversarial examples of the thief's own substitute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Unpack

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._theft import check_budget, last_hidden
from fp_audit.engine import Recipe, predict_network, top1
from fp_audit.model import WhiteBox, as_images
from fp_audit.types import Access, Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Gap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
    """Takes n images that require gradients and the n positions of these items among all; returns n gaps."""


class Cloudleak(Attack):
    """Trains a substitute on natural images and on its own adversarial examples, labelled by the victim.

    Source: Yu et al., "CloudLeak: Large-Scale Deep Learning Models Stealing Through Adversarial Examples" (NDSS 2020),
    the extraction of the UAP fingerprints' paper (CVPR 2022). The budget of ``queries`` images (0: all) is divided into
    ``rounds`` + 1 equal parts. The images of the first are shown to the victim as they are, and a substitute is
    trained on its labels; in each round those of the next part are changed first, so that they come to lie near a
    boundary of the substitute, and the substitute is trained further on all that the victim has labelled so far.

    A natural image x is changed within L-infinity distance ``epsilon`` by steps of 2.5 ``epsilon`` / ``steps`` along
    the sign of a gradient until its gap has fallen from 1 to -``margin``, at most ``steps`` times:

    - ``feature`` (FeatureFool): gap = (d(x', x_t) - d(x', x)) / d(x, x_t), where d is the squared Euclidean distance
      of the substitute's last hidden activations and x_t an image that it gives another label.
    - ``pgd``: gap = (z_y - max_{j != y} z_j)(x') over the same at x, where z are the substitute's logits and y its
      own label for x.
    - ``fgsm``: the same in one step of ``epsilon``.

    ``architecture`` and ``size``: see ``_fresh.chosen_network``.

    Differences: the distance to x is bounded instead of being a term of the loss, which the paper minimises with
    L-BFGS; the distance between activations is squared and relative, so that ``margin`` has no unit; the substitute
    starts untrained; queries are rounded to uint8. The values of ``epsilon``, ``steps``, ``rounds`` and ``margin`` are
    ours.
    """

    name: ClassVar[str] = "cloudleak"
    summary: ClassVar[str] = "train a substitute on its own adversarial examples, labelled by the victim"
    paper: ClassVar[str] = "Yu et al., NDSS 2020"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "queries, adversarial examples, training in rounds"
    keeps: ClassVar[str] = "its answers and its boundaries, not its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=10.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        method: Literal["feature", "pgd", "fgsm"] = "feature",
        rounds: int = 3,
        epsilon: float = 0.05,
        steps: int = 20,
        margin: float = 0.2,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        **training: Unpack[Training],
    ) -> None:
        require(rounds >= 1, "rounds", rounds, "1 or more")
        require(0 < epsilon <= 1, "epsilon", epsilon, "a distance in (0, 1]")
        require(steps >= 1, "steps", steps, "1 or more")
        require(margin >= 0, "margin", margin, "0 or more")
        self.options = {
            "method": method,
            "rounds": rounds,
            "epsilon": epsilon,
            "steps": steps,
            "margin": margin,
            **chosen_network(architecture, size),
            "queries": check_budget(queries, least=2 * (rounds + 1)),
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, victim = self.options, task.victim.black_box()
        order = np.random.default_rng(task.seed).permutation(len(task.data))[: options["queries"] or len(task.data)]
        first, *others = (part for part in np.array_split(order, options["rounds"] + 1) if len(part))
        pixels = task.data.pixels[first]
        labels, classes = top1(victim, pixels, task.progress)
        model, adapter = student(task, options, classes)
        data = replace(task.data, pixels=pixels, labels=labels)
        steps = train(task, model, data, options, what="training the substitute, round 0")
        for i, part in enumerate(others, 1):
            made = adversarial(model, task.data.pixels[part], options, task)
            pixels = np.concatenate([pixels, made])
            labels = np.concatenate([labels, top1(victim, made, task.progress)[0]])
            data = replace(task.data, pixels=pixels, labels=labels)
            steps += train(task, model, data, options, what=f"training the substitute, round {i}")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps)


def adversarial(model: WhiteBox, pixels: Pixels, options: Mapping[str, Any], task: Task) -> Pixels:
    """Change N x C x H x W uint8 images so that they come to lie near a boundary of ``model``; see ``Cloudleak``."""
    import torch

    from fp_audit.descent import Sign, as_pixels, ball, from_pixels, search

    gap = feature_gap(model, pixels, task) if options["method"] == "feature" else margin_gap(model, pixels, task)
    steps = 1 if options["method"] == "fgsm" else options["steps"]
    epsilon, margin = options["epsilon"], options["margin"]

    def objective(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        gaps = gap(images, index)
        return gaps, gaps <= -margin

    start = from_pixels(torch.from_numpy(pixels).to(task.opening.device))
    found = search(
        start,
        objective,
        Sign(min(epsilon, 2.5 * epsilon / steps)),
        steps=steps,
        project=ball(start, epsilon),
        progress=task.progress,
        what="making queries",
    )
    return as_pixels(found.images).cpu().numpy()


def margin_gap(model: WhiteBox, pixels: Pixels, task: Task) -> Gap:
    """Return the gap of ``pgd``: how far the substitute's own label leads, over how far it does at the start."""
    import torch

    module, device = model.module, task.opening.device
    logits = torch.from_numpy(predict_network(module, as_images(pixels), device=device)).to(device)
    own = logits.argmax(dim=1)
    start = lead(logits, own).clamp_min(1e-6)
    return lambda images, index: lead(module(images), own[index]) / start[index]


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the N x K logits of N labels exceed the largest of the others."""
    import torch

    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return logits.gather(1, labels[:, None]).squeeze(1) - others


def feature_gap(model: WhiteBox, pixels: Pixels, task: Task) -> Gap:
    """Return the gap of ``feature``: from 1 at each image, through 0 half way to one of another label, to -1 there."""
    import torch

    device, images = task.opening.device, as_images(pixels)
    layer = last_hidden(model, pixels)
    features = torch.from_numpy(model.activations(images, layer)).to(device).flatten(1)
    own = predict_network(model.module, images, device=device).argmax(axis=1)
    targets = features[torch.from_numpy(partners(own, np.random.default_rng([task.seed, len(pixels)]))).to(device)]
    apart = (features - targets).square().sum(dim=1).clamp_min(1e-12)

    def gap(images: Tensor, index: Tensor) -> Tensor:
        reached = model.activate(images, layer).flatten(1)
        nearer = (reached - targets[index]).square() - (reached - features[index]).square()
        return nearer.sum(dim=1) / apart[index]

    return gap


def partners(labels: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw for each of N items one of another label, uniformly; any item where all have one label."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    first, behind = np.searchsorted(ranked, labels, "left"), np.searchsorted(ranked, labels, "right")
    others = np.maximum(len(labels) - (behind - first), 1)
    return np.asarray(order[(behind + rng.integers(0, others)) % len(labels)], np.intp)
