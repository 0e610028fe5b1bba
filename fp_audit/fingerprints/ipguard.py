"""Points near the victim's decision boundary (IPGuard)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.engine import device_of
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.model import WhiteBox, as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Pixels, Scatter

if TYPE_CHECKING:
    import torch

    from fp_audit.workshop import Workshop


class IPGuard(Queried):
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
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "boundary"
    scatter: ClassVar[Scatter] = Scatter(0.2)
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

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        data = self.required(data)
        model, budget = victim.white_box(), self.options["queries"]
        margin = self.options["k"]
        if self.options["relative"]:
            margin *= mean_margin(model, data.take(rng.permutation(len(data))[:500]))
        kept: list[Pixels] = []
        tried = 0
        for index in np.array_split(order := rng.permutation(len(data)), -(-len(order) // self.options["batch"])):
            kept, tried = [*kept, self._push(model, data.pixels[index], margin, rng)], tried + len(index)
            found = sum(map(len, kept))
            workshop.progress("pushing images over the decision boundary", min(1.0, found / budget))
            if found >= budget or tried >= 4 * budget + self.options["batch"]:
                break
        queries = np.concatenate(kept)[:budget]
        if len(queries) < budget / 10:
            raise NotApplicable(
                f"only {len(queries)} of {tried} images could be pushed over the boundary; try a smaller k"
            )
        return Queries(queries, {"tried": tried, "margin": margin})

    def _push(self, model: WhiteBox, pixels: Pixels, margin: float, rng: np.random.Generator) -> Pixels:
        """Push a batch over the boundary; return the uint8 images that made it."""
        import torch

        from fp_audit.descent import as_pixels, from_pixels

        device = device_of(model.module)
        images = torch.from_numpy(as_images(pixels)).to(device)
        with torch.no_grad():
            logits = model.module(images)
        source = logits.argmax(dim=1)
        goal = choose_targets(logits, self.options["target"], rng)
        moved = boundary_points(
            model.module, images, source, goal, margin, self.options["steps"], self.options["learning_rate"]
        )
        rounded = as_pixels(moved)
        with torch.no_grad():
            best = model.module(from_pixels(rounded)).topk(2, dim=1).indices
        return rounded[(best[:, 0] == goal) & (best[:, 1] == source)].cpu().numpy()


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
    """Minimise ``boundary_loss`` over N x C x H x W images in [0, 1], all at once, each until its own loss is zero."""
    from fp_audit.descent import Adam, search

    def objective(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = boundary_loss(module(x), source[index], goal[index], margin)
        return loss, loss <= 0

    return search(images, objective, Adam(learning_rate), steps=steps, in_flight=len(images)).images
