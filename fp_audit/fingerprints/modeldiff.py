"""Distances between a model's answers to images and to their adversarial partners (ModelDiff)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit import metrics
from fp_audit.data import Labelled
from fp_audit.engine import Progress, device_of
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._adversarial import Loss, pgd
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import predict_pixels, shown_probabilities
from fp_audit.model import WhiteBox, as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Pixels, Scatter

if TYPE_CHECKING:
    import torch

    from fp_audit.workshop import Workshop

_MOVED = 1e-6
"""A largest distance below this is rounding."""


class ModelDiff(Queried):
    """Cosine of the decision distance vectors (DDV) of victim and suspect; in [0, 1].

    Half of the queries are seeds, images of the owner's data drawn at random; the other half are their adversarial
    partners for the victim, in the same order. Entry i of a model's DDV is one minus the cosine between its
    probabilities for seed i and for partner i: how far the model lets itself be moved. Distances are taken inside
    one model, so classes need no alignment and may differ.

    With p the victim's probabilities, a partner x' of seed x_i descends ``<p(x'), p(x_i)> + mean_j <p(x'), p(x_j)>``,
    j over all seeds: away from the answer to its seed, and from the mean answer. It starts at a random point of the
    L-infinity ball of radius ``epsilon`` around its seed and takes ``steps`` steps along the sign of the gradient,
    each projected onto the ball and [0, 1].

    Source: Li et al., "ModelDiff: Testing-Based DNN Similarity Comparison for Model Reuse Detection", ISSTA 2021.
    Differences: the DDV reads probabilities (the authors' code: logits). Seeds are the owner's alone (the code: also
    the suspect's), so that the queries are made once for all suspects. Partners are meant to be answered unlike their
    seeds and unlike one another. Here the seeds' answers, which do not move, stand for the other partners', so that
    no partner depends on another and the batch does not matter; the code, too, uses the seeds' mean. But its loss,
    squared differences of logits, weighs class 0 more than all others together: here all classes count alike. Partners
    are rounded to uint8, by which they leave the ball by at most half a grey level.

    On networks that are easily moved (CIFAR-10 at the default radius) every distance of the victim is nearly 1, and the
    score then only tells whether the partners move the suspect too.

    Args:
        queries: seeds and partners together; of an odd number one is not used.
        epsilon: radius of the ball, in units of the [0, 1] box.
        step: size of one step, in the same units.
        steps: steps of each partner.
        batch: images in one forward pass.
    """

    name: ClassVar[str] = "modeldiff"
    summary: ClassVar[str] = "how far adversarial partners move the answers to images; needs no common classes"
    paper: ClassVar[str] = "Li et al., ISSTA 2021"
    withstands: ClassVar[str] = "quantisation, pruning; by its paper also fine-tuning and transfer to other classes"
    misses: ClassVar[str] = "extraction, adversarial training, RemovalNet; in trials on MNIST also fine-tuning"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = False
    default: ClassVar[bool] = False
    query_set: ClassVar[str | None] = "pairs"
    representation: ClassVar[str] = "ddv"
    distance: ClassVar[str] = "cosine"
    scatter: ClassVar[Scatter] = Scatter(0.02)

    def __init__(
        self,
        *,
        queries: int = 200,
        epsilon: float = 0.06,
        step: float = 0.01,
        steps: int = 50,
        batch: int = 128,
    ) -> None:
        for option, (given, least) in {"queries": (queries, 2), "steps": (steps, 1), "batch": (batch, 1)}.items():
            if given < least:
                raise UsageError(f"modeldiff: {option} is {given}; expected {least} or more")
        if not 1 / 255 <= epsilon <= 1:
            raise UsageError(f"modeldiff: epsilon is {epsilon}; expected 1/255 (one grey level) to 1")
        if not 0 < step <= 1:
            raise UsageError(f"modeldiff: step is {step}; expected more than 0 and at most 1")
        self.options = {"queries": queries, "epsilon": epsilon, "step": step, "steps": steps, "batch": batch}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"is moved by the same adversarial images as the victim: {score:.3f}" + versus(null, ".3f")

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        data, model, epsilon = self.required(data), victim.white_box(), self.options["epsilon"]
        seeds = data.pixels[rng.permutation(len(data))[: self.options["queries"] // 2]]
        noise = rng.uniform(-epsilon, epsilon, seeds.shape).astype(np.float32)
        queries = np.concatenate([seeds, self._partners(model, seeds, noise, workshop.progress)])
        ddv = metrics.decision_distances(shown_probabilities(predict_pixels(model, queries), model.output))
        if ddv.max() < _MOVED:
            raise NotApplicable("no image near the seeds moves the victim's answers; try a larger epsilon")
        return Queries(queries, {"mean_distance": float(ddv.mean())})

    def _partners(self, model: WhiteBox, seeds: Pixels, noise: np.ndarray, progress: Progress) -> Pixels:
        """Return the adversarial partners of the seeds, started ``noise`` away from them."""
        import torch

        from fp_audit.descent import as_pixels

        device = device_of(model.module)
        images = torch.from_numpy(as_images(seeds)).to(device)
        answers = torch.from_numpy(shown_probabilities(predict_pixels(model, seeds), model.output)).float().to(device)
        moved = pgd(
            images,
            departure(model.module, answers),
            self.options["epsilon"],
            step=self.options["step"],
            steps=self.options["steps"],
            start=(images + torch.from_numpy(noise).to(device)).clamp(0.0, 1.0),
            in_flight=self.options["batch"],
            progress=progress,
            what="making adversarial partners",
        )
        return as_pixels(moved).cpu().numpy()


def departure(module: torch.nn.Module, answers: torch.Tensor) -> Loss:
    """Return what partners ascend: minus their inner products with their seed's answer and with the mean answer.

    Args:
        module: from images to N x K logits.
        answers: probabilities for all seeds, N x K.
    """
    away_from = answers + answers.mean(dim=0)
    return lambda images, index: -(module(images).softmax(dim=1) * away_from[index]).sum(dim=1)
