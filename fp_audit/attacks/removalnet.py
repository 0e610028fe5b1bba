"""RemovalNet: the victim is driven away from its own activations and logits, but keeps its labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, require
from fp_audit.attacks._removal import PRESETS, Plan, Removal
from fp_audit.types import Access, Pixels

_UNSET = -1
"""Stands for the preset's value."""


class RemovalNet(Attack):
    """Distils a copy of the victim towards activations and logits that differ from the victim's and mean the same.

    Source: Yao et al., "RemovalNet: DNN Fingerprint Removal Attacks" (TDSC 2024, arXiv 2308.12319), Alg. 1 and 2,
    eq. 9-15. With F = F+ o F- cut behind ``layer``, each of ``iterations`` steps takes a batch x of the thief's
    images and y = argmax F_V(x); true labels are never used.

    - Layer target z1 (Alg. 1): ``inner_steps`` times, shuffle a share ``shuffle`` of the channels (axis 1) of each
      image, then descend CE(F_S+(z1), y) - log ||z1 - F_V-(x)||_2 by ``inner_rate``.
    - Logit target z2 (Alg. 2): lambda F_V(x_i) + (1 - lambda) F_V(x_j), x_j the image of the batch with the farthest
      logits, the smallest lambda in {.1, .2, ..., 1} that keeps the label.
    - SGD (momentum .9) on alpha CE(F_S(x), y) + (1 - alpha) KL(z2 || F_S(x)) + beta ||F_S-(x) - z1||_2 (eq. 15).

    ``preset`` sets what is left at -1 (``schedule``: at ``preset``), to the paper's values or to those of the authors'
    code for CIFAR-10. ``images`` is the size of the thief's set (0: all), drawn at random: the paper's limited training
    data; its limited surrogate data are images of another source.

    Where paper and code (last version; preset ``code``) disagree:

    - alpha .2, beta 2 in both; but code weighs .2 T^2 KL + 2 layer loss + .6 CE: alpha is the KL's there, and ``gamma``
      the CE's, which the paper does not have. T (``temperature``) is 20; paper: no temperature, so 1.
    - Learning rate .01 constant; code .008, cosine over 1.5 times the run, weight decay 1e-4.
    - 10 inner steps, shuffle .1; code 20 and .02.
    - z1 starts at F_V-(x); code at z + tan(u), u uniform in [0, 1), shuffled.
    - Targets from the victim's activations and logits; code: from the surrogate's as it is. y is the victim's in both.
    - Descent by the gradient; code by its sign, and with .1 log of one distance over the whole batch.
    - Distance of the logits; code: of probabilities, which are interpolated (lambda .3 to .9, else left as they are)
      and then taken for logits. At T = 20 this pulls logits into [0, 1].
    - Length of the difference; code: mean square over all values.

    Decided here, as the paper leaves it open or cannot mean it: eq. 13 writes F_V for the network that is trained. The
    loop of Alg. 2 has no break and would always end at lambda = 1, the unchanged logits; its text asks for the
    largest deviation, so the smallest lambda counts (in the code too). Alg. 1 does not say where z1 starts. Its log
    distance is that of sqrt(1 + d^2), or after a shuffle that moves nothing the next step would explode. The losses of
    Alg. 1 are summed over the batch (each image ascends on its own), those of eq. 15 averaged. ``inner_rate`` is .01:
    the learning rate of the paper, the step of the code.

    BatchNorm: targets are made in evaluation mode; the step itself normalises by the batch and lets the moving
    statistics follow, as the code does, because they would no longer fit the activations that are moved. Dropout and
    stochastic depth stay off, so that what is trained is what the targets were made for. Graphs out of ONNX files have
    no moving statistics in any mode. In networks without normalisation (most ONNX files) the activations of preset
    ``code`` grow without bound, as each of its targets lies above the surrogate's own: take ``paper`` there.

    Neither says which layer is meant (the code's default is the fourth of five blocks). ``layer`` is a name of
    ``WhiteBox.layers()`` whose output alone decides the logits, such as the end of a block, or ``auto``: the last such
    layer with a feature map or tokens, without one the last before the logits.
    """

    name: ClassVar[str] = "removalnet"
    summary: ClassVar[str] = "drive a copy away from the victim's activations and logits while it keeps its labels"
    paper: ClassVar[str] = "Yao et al., TDSC 2024"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "1,000 steps, each with 10 or 20 inner ones: training for some epochs"
    keeps: ClassVar[str] = "its labels, mistakes included; not its logits and late activations"

    def __init__(
        self,
        *,
        preset: Literal["paper", "code"] = "paper",
        layer: str = "auto",
        iterations: int = 1000,
        batch: int = 128,
        images: int = 0,
        alpha: float = _UNSET,
        beta: float = _UNSET,
        gamma: float = _UNSET,
        learning_rate: float = _UNSET,
        weight_decay: float = _UNSET,
        schedule: Literal["preset", "constant", "cosine"] = "preset",
        temperature: float = _UNSET,
        inner_steps: int = _UNSET,
        inner_rate: float = _UNSET,
        shuffle: float = _UNSET,
    ) -> None:
        require(iterations >= 1, "iterations", iterations, "1 or more")
        require(batch >= 2, "batch", batch, "2 images or more")
        require(images == 0 or images >= 2, "images", images, "2 or more, or 0 for all")
        given = {
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "schedule": schedule,
            "temperature": temperature,
            "inner_steps": inner_steps,
            "inner_rate": inner_rate,
            "shuffle": shuffle,
        }
        self._plan = _planned(preset, given)
        whole = {"preset": preset, "layer": layer, "iterations": iterations, "batch": batch, "images": images}
        self.options = whole | {name: getattr(self._plan, name) for name in given}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        from fp_audit.attacks._cut import cut_at

        student, device = task.copy_of_victim(), task.opening.device
        cut = cut_at(student, self.options["layer"], task.sample().to(device))
        pixels = self._held(task)
        removal = Removal(student.module, task.victim.white_box().module, cut, self._plan)
        losses = removal.run(
            pixels,
            iterations=self.options["iterations"],
            batch=self.options["batch"],
            seed=task.seed,
            device=device,
            progress=task.progress,
        )
        task.adapter.save(student, folder)
        facts = {"layer": cut.layer, "layer_shape": list(cut.shape), "images": len(pixels), "losses": losses}
        return Surrogate(task.artifact.adapter, self.options["iterations"], facts=facts)

    def _held(self, task: Task) -> Pixels:
        """Draw the images that the thief has."""
        order = np.random.default_rng(task.seed).permutation(len(task.data))
        return task.data.pixels[np.sort(order[: self.options["images"] or len(order)])]


def _planned(preset: Literal["paper", "code"], given: dict[str, Any]) -> Plan:
    """Return a preset with what was given in place of its own.

    Raises:
        UsageError: a value is out of range.
    """
    plan = replace(PRESETS[preset], **{key: value for key, value in given.items() if value not in (_UNSET, "preset")})
    most = 1.0 if preset == "paper" else np.inf
    require(0 <= plan.alpha <= most, "alpha", plan.alpha, "a weight in [0, 1]" if preset == "paper" else "0 or more")
    if preset == "paper":
        require(given["gamma"] == _UNSET, "gamma", plan.gamma, "no value: only preset=code has it")
    else:
        require(plan.gamma >= 0, "gamma", plan.gamma, "0 or more")
    for name in ("beta", "weight_decay", "inner_steps", "inner_rate"):
        require(getattr(plan, name) >= 0, name, getattr(plan, name), "0 or more")
    for name in ("learning_rate", "temperature"):
        require(getattr(plan, name) > 0, name, getattr(plan, name), "more than 0")
    require(0 <= plan.shuffle <= 1, "shuffle", plan.shuffle, "a share of the channels in [0, 1]")
    return plan
