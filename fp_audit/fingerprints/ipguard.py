"""Points near the victim's decision boundary (IPGuard)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import Method, versus
from fp_audit.metrics import matching_rate
from fp_audit.model import WhiteBox, as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Pixels, Score

if TYPE_CHECKING:
    import torch


class IPGuard(Method):
    """Matching rate of top-1 labels on images pushed just over the victim's decision boundary; in [0, 1].

    From a seed x that the victim puts in class i, towards a class j != i, Adam minimises over x in [0, 1]
    ``relu(Z_i - Z_j + k) + relu(max_{t not in {i, j}} Z_t - Z_i)``: in the end the victim says j by a margin of k, i
    second. The suspect's labels are compared with the victim's.

    Source: Cao, Jia, Gong, "IPGuard", AsiaCCS 2021. Differences: k is relative to the victim's mean margin between its
    two largest logits on the data, so that it means the same for every network (the paper: 5 for CIFAR-sized networks);
    an image whose loss has reached zero leaves the batch; images are rounded to uint8 and kept only if the victim
    still says j and i comes second (the margin is not checked again).

    Args:
        queries: images to keep.
        k: margin.
        relative: whether k is a share of the victim's mean top-2 margin, or in units of its logits (the paper).
        target: ``least`` likely class of the seed, or a ``random`` one.
        steps: most Adam steps per image.
        learning_rate: Adam's, in units of the [0, 1] box.
        batch: images optimised at once.
    """

    name: ClassVar[str] = "ipguard"
    summary: ClassVar[str] = "agreement of labels on images just over the victim's decision boundary"
    paper: ClassVar[str] = "Cao et al., AsiaCCS 2021"
    withstands: ClassVar[str] = "quantisation, pruning, light fine-tuning"
    misses: ClassVar[str] = "extraction, adversarial training, strong fine-tuning"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    suspect_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    resolution: ClassVar[float] = 0.2
    """Adversarial images transfer between networks of one recipe and hardly to small references, whose scores are then
    all alike near zero: their spread says nothing, so that a rate of 15 % is not yet an anomaly."""

    def __init__(
        self,
        *,
        queries: int = 100,
        k: float = 0.5,
        relative: bool = True,
        target: str = "least",
        steps: int = 1000,
        learning_rate: float = 0.01,
        batch: int = 128,
    ) -> None:
        if target not in ("least", "random"):
            raise UsageError(f"ipguard: target is {target!r}; expected least or random")
        self.options = {
            "queries": queries,
            "k": k,
            "relative": relative,
            "target": target,
            "steps": steps,
            "learning_rate": learning_rate,
            "batch": batch,
        }

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"follows the victim's decision boundary on {score:.0%} of the images just beyond it" + versus(
            null, ".0%"
        )

    def _generate(self, victim: Subject, data: Labelled | None, rng: np.random.Generator) -> Fingerprint:
        data = self.required(data)
        model, budget = victim.white_box(), self.options["queries"]
        margin = self.options["k"]
        if self.options["relative"]:
            margin *= mean_margin(model, data.take(rng.permutation(len(data))[:500]))
        kept: list[Pixels] = []
        labels: list[np.ndarray] = []
        tried = 0
        for index in np.array_split(order := rng.permutation(len(data)), -(-len(order) // self.options["batch"])):
            pixels, label = self._push(model, data.pixels[index], margin, rng)
            kept, labels, tried = [*kept, pixels], [*labels, label], tried + len(index)
            if sum(map(len, kept)) >= budget or tried >= 4 * budget + self.options["batch"]:
                break
        queries, targets = np.concatenate(kept)[:budget], np.concatenate(labels)[:budget]
        if len(queries) < budget / 10:
            raise NotApplicable(
                f"only {len(queries)} of {tried} images could be pushed over the boundary; try a smaller k"
            )
        facts = {"queries": len(queries), "tried": tried, "margin": margin}
        return Fingerprint(self.name, {}, {"queries": queries, "labels": targets}, facts)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        queries = fingerprint.arrays["queries"]
        answers = suspect.black_box().predict(as_images(queries))
        return Score(matching_rate(answers, fingerprint.arrays["labels"]), queries=len(queries), trials=len(queries))

    def _push(
        self, model: WhiteBox, pixels: Pixels, margin: float, rng: np.random.Generator
    ) -> tuple[Pixels, np.ndarray]:
        """Push a batch over the boundary; return the uint8 images that made it, and their labels j."""
        import torch

        device = next(model.module.parameters()).device
        images = torch.from_numpy(as_images(pixels)).to(device)
        with torch.no_grad():
            logits = model.module(images)
        source = logits.argmax(dim=1)
        goal = choose_targets(logits, self.options["target"], rng)
        moved = boundary_points(
            model.module, images, source, goal, margin, self.options["steps"], self.options["learning_rate"]
        )
        rounded = (moved * 255).round().clamp(0, 255) / 255
        with torch.no_grad():
            best = model.module(rounded).topk(2, dim=1).indices
        survived = (best[:, 0] == goal) & (best[:, 1] == source)
        return (rounded[survived] * 255).round().to(torch.uint8).cpu().numpy(), goal[survived].cpu().numpy()


def mean_margin(model: WhiteBox, data: Labelled) -> float:
    """Mean difference between the two largest logits of the victim on the data."""
    top = np.sort(model.predict(as_images(data.pixels)), axis=1)
    return float((top[:, -1] - top[:, -2]).mean())


def choose_targets(logits: torch.Tensor, how: str, rng: np.random.Generator) -> torch.Tensor:
    """Choose a class j != i for each row of N x K logits, i its top-1: the least likely one, or a random one."""
    import torch

    if how == "least":
        return logits.argmin(dim=1)
    source, classes = logits.argmax(dim=1), logits.shape[1]
    shift = torch.from_numpy(rng.integers(1, classes, len(logits))).to(source.device)
    return (source + shift) % classes


def boundary_loss(logits: torch.Tensor, source: torch.Tensor, goal: torch.Tensor, margin: float) -> torch.Tensor:
    """Compute IPGuard's loss for each row of N x K logits (equation 4 of the paper with targets), N."""
    z_i = logits.gather(1, source[:, None])[:, 0]
    z_j = logits.gather(1, goal[:, None])[:, 0]
    others = logits.scatter(1, source[:, None], float("-inf")).scatter(1, goal[:, None], float("-inf"))
    return (z_i - z_j + margin).relu() + (others.amax(dim=1) - z_i).relu()


def boundary_points(
    module: torch.nn.Module,
    images: torch.Tensor,
    source: torch.Tensor,
    goal: torch.Tensor,
    margin: float,
    steps: int,
    learning_rate: float,
) -> torch.Tensor:
    """Minimise ``boundary_loss`` over N x C x H x W images in [0, 1], all at once, each until its own loss is zero.

    Adam is written out: its moments belong to an image and leave the batch with it.
    """
    import torch

    result = images.clone()
    active = torch.arange(len(images), device=images.device)
    x = images.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        x.requires_grad_(True)
        loss = boundary_loss(module(x), source[active], goal[active], margin)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        x = x.detach()
        result[active] = x
        going = loss > 0
        if not going.any():
            break
        x, active, gradient = x[going], active[going], gradient[going]
        first = 0.9 * first[going] + 0.1 * gradient
        second = 0.999 * second[going] + 0.001 * gradient.square()
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        x = (x - learning_rate * update).clamp(0.0, 1.0)
    result[active] = x
    return result
