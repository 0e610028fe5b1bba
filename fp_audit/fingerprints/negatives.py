"""Agreement on the victim's mistakes (AKH), by label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import hard_queries
from fp_audit.subject import Subject
from fp_audit.types import Access

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


class Negatives(Queried):
    """Matching rate of top-1 labels on images that the victim misclassifies or hesitates on; in [0, 1].

    Source: the AKH baseline of QuRD (Godinot et al., "Queries, Representation & Detection", AAAI 2025).
    Differences: where the data hold fewer mistakes than the budget, blends of images fill it up (see ``hard_queries``).
    """

    name: ClassVar[str] = "negatives"
    summary: ClassVar[str] = "agreement of labels on images that the victim gets wrong or hesitates on"
    paper: ClassVar[str] = "Godinot et al., AAAI 2025 (QuRD: AKH)"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation, most extraction"
    misses: ClassVar[str] = "extraction with few queries"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "negatives"

    def __init__(self, *, queries: int = 100) -> None:
        self.options = {"queries": queries}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return (
            f"gives the victim's label on {score:.0%} of the images that the victim gets wrong or hesitates on"
            + versus(null, ".0%")
        )

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        del workshop
        hard = hard_queries(victim.black_box(), self.required(data), self.options["queries"], rng)
        return Queries(hard.pixels, hard.facts)
