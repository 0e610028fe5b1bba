"""Agreement on ordinary images: the baseline that every other query set must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.subject import Subject
from fp_audit.types import Access

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


class Natural(Queried):
    """Matching rate of top-1 labels on images drawn at random from the owner's data; in [0, 1].

    Good models agree on ordinary images whether or not one was stolen. Compositions read more off the same images,
    for example ``natural+correlation+l1``.

    Source: the random-sampling baseline of QuRD (Godinot et al., "Queries, Representation & Detection", AAAI 2025).
    """

    name: ClassVar[str] = "natural"
    summary: ClassVar[str] = "agreement of labels on images drawn at random: the baseline"
    paper: ClassVar[str] = "Godinot et al., AAAI 2025 (QuRD: random queries)"
    withstands: ClassVar[str] = "copies, quantisation"
    misses: ClassVar[str] = "most thefts of an accurate model: independents agree with it too"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    default: ClassVar[bool] = False
    query_set: ClassVar[str | None] = "natural"

    def __init__(self, *, queries: int = 100) -> None:
        self.options = {"queries": queries}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"gives the victim's label on {score:.0%} of ordinary images" + versus(null, ".0%")

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        del victim, workshop
        data = self.required(data)
        return Queries(data.pixels[np.sort(rng.permutation(len(data))[: self.options["queries"]])])
