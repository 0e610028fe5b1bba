"""Agreement on the victim's mistakes, by logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.fingerprints._base import Method, versus
from fp_audit.fingerprints._queries import centred_logits, hard_queries
from fp_audit.metrics import mean_cosine
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Score


class NegativesLogits(Method):
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
    suspect_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    resolution: ClassVar[float] = 0.01

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

    def _generate(self, victim: Subject, data: Labelled | None, rng: np.random.Generator) -> Fingerprint:
        data = self.required(data)
        model = victim.black_box()
        hard = hard_queries(model, data, self.options["queries"], rng)
        logits = centred_logits(hard.answers, model.output).astype(np.float32)
        return Fingerprint(self.name, {}, {"queries": hard.pixels, "logits": logits}, hard.facts)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        queries, model = fingerprint.arrays["queries"], suspect.black_box()
        answers = centred_logits(model.predict(as_images(queries)), model.output)
        return Score(mean_cosine(answers, fingerprint.arrays["logits"]), queries=len(queries))
