"""Correlation of answers to pairs of queries (SAC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import hard_queries
from fp_audit.subject import Subject
from fp_audit.types import Access, Pixels, Scatter

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


class Sac(Queried):
    """One minus the mean absolute difference of the matrices of (1 - cos)/2 between answers to query pairs; in [0, 1].

    Pairs are compared inside one model, so classes need no alignment and may differ. Queries are the victim's
    mistakes (``SAC-w``, the default) or CutMix images (``SAC-m``), for which no labels are used.

    Source: Guan et al., "Are You Stealing My Model? Sample Correlation for Fingerprinting Deep Neural Networks",
    NeurIPS 2022. As in the official code, one box of CutMix serves the whole batch. Label-only answers are
    one-hot + .01, renormalised.
    """

    name: ClassVar[str] = "sac"
    summary: ClassVar[str] = "correlation of answers to pairs of queries; needs no common classes"
    paper: ClassVar[str] = "Guan et al., NeurIPS 2022"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation, transfer to other classes, much extraction"
    misses: ClassVar[str] = "label-only extraction to another architecture"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = False
    query_set: ClassVar[str | None] = "sac"
    representation: ClassVar[str] = "correlation"
    distance: ClassVar[str] = "l1"
    scatter: ClassVar[Scatter] = Scatter(0.005)

    def __init__(self, *, queries: int = 100, cutmix: bool = False, box: float = 0.2) -> None:
        self.options = {"queries": queries, "cutmix": cutmix, "box": box}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"finds the same pairs of images alike as the victim: {score:.3f}" + versus(null, ".3f")

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        del workshop
        data = self.required(data)
        if self.options["cutmix"]:
            return Queries(_cutmix(data.pixels, self.options["queries"], self.options["box"], rng))
        hard = hard_queries(victim.black_box(), data, self.options["queries"], rng)
        return Queries(hard.pixels, hard.facts)


def _cutmix(pixels: Pixels, budget: int, side: float, rng: np.random.Generator) -> Pixels:
    """Paste one box, ``side`` of the image's height and width, of another image into each of ``budget`` images."""
    chosen = rng.permutation(len(pixels))[:budget]
    mixed, partner = pixels[chosen].copy(), pixels[rng.permutation(chosen)]
    height, width = pixels.shape[2:]
    h, w = max(1, round(side * height)), max(1, round(side * width))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    mixed[:, :, top : top + h, left : left + w] = partner[:, :, top : top + h, left : left + w]
    return mixed
