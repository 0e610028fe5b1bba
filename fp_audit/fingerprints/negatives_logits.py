"""Agreement on the victim's mistakes, by logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import hard_queries
from fp_audit.subject import Subject
from fp_audit.types import Access, Scatter

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


class NegativesLogits(Queried):
    """Mean cosine between centred logits on the queries of ``negatives``; in [-1, 1].

    The queries are those of ``negatives`` for the same seed and budget: mistakes of the victim, and blends. A suspect
    that answers with probabilities gives the same score (logarithms differ from logits by a constant); one that answers
    with less a coarser one.

    Source: QuRD (Godinot et al., AAAI 2025), negative queries with logits and cosine.
    """

    name: ClassVar[str] = "negatives-logits"
    summary: ClassVar[str] = "agreement of logits on images that the victim gets wrong or hesitates on"
    paper: ClassVar[str] = "Godinot et al., AAAI 2025 (QuRD)"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation, extraction"
    misses: ClassVar[str] = "attacks built to move logits (RemovalNet)"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    representation: ClassVar[str] = "logits"
    distance: ClassVar[str] = "cosine"
    scatter: ClassVar[Scatter] = Scatter(0.01)

    def __init__(self, *, queries: int = 100) -> None:
        self.options = {"queries": queries}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return (
            f"weighs all classes like the victim where the victim errs or hesitates: mean cosine {score:.2f}"
            + versus(null, ".2f")
        )

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        del workshop
        hard = hard_queries(victim.black_box(), self.required(data), self.options["queries"], rng)
        return Queries(hard.pixels, hard.facts)
