"""Agreement on the victim's mistakes (AKH), by label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import Method, versus
from fp_audit.fingerprints._queries import hard_queries
from fp_audit.metrics import matching_rate
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Score


class Negatives(Method):
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
    suspect_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True

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

    def _generate(self, victim: Subject, data: Labelled | None, rng: np.random.Generator) -> Fingerprint:
        data = self.required(data)
        hard = hard_queries(victim.black_box(), data, self.options["queries"], rng)
        arrays = {"queries": hard.pixels, "labels": hard.answers.argmax(axis=1)}
        return Fingerprint(self.name, {}, arrays, hard.facts)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        queries, labels = fingerprint.arrays["queries"], fingerprint.arrays["labels"]
        answers = suspect.black_box().predict(as_images(queries))
        return Score(matching_rate(answers, labels), queries=len(queries), trials=len(queries))
