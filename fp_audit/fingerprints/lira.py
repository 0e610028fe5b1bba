"""Does the suspect agree with the victim where surrogates do and innocent models do not? A likelihood ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import candidates, half_alike, predict_pixels
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.networks import Network
    from fp_audit.workshop import Workshop

PRIOR = 0.5
"""Added to the counts of networks that agree and that do not (Krichevsky and Trofimov, 1981)."""


class Lira(Queried):
    """Matching rate of top-1 labels, each query weighted by what an agreement tells; in [0, 1].

    R shadow surrogates are trained here on the victim's labels, and R innocent networks of the same architectures on
    the true ones, on the same images of the owner. Of R networks of a kind, c(n) give query n the victim's label:
    a(n) = (c(n) + 1/2) / (R + 1), a_0 of the innocents, a_1 of the surrogates. The score is the likelihood ratio of
    the suspect's agreements on a scale on which the victim itself has 1, a model that never agrees 0::

        sum_n w(n) [y_n = victim's label] / sum_n w(n),   w = log(a_1 (1 - a_0) / (a_0 (1 - a_1)))

    Queries are mistakes of the victim with w > 0, those first on which (a_1 - a_0) w is largest: the expected
    information of one answer. Where they are too few, blends of two images follow in the same order: of thousands of
    blends the largest estimates are mostly luck. No network here was trained on any of them. The networks here are not
    those of the null, so that choosing queries by them does not make the test reject too often. Both kinds have the
    same architectures, so that the victim's is no evidence.

    Source: LiRA (Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022) with surrogates and
    innocent models in place of members and non-members, and labels in place of confidences.

    Args:
        queries: images to keep.
        networks: R, 4 or more: half of several architectures, half of the victim's (or, where that cannot be trained
            here, of one small one).
    """

    name: ClassVar[str] = "lira"
    summary: ClassVar[str] = "agreement of labels where surrogates trained here agree and innocent models do not"
    paper: ClassVar[str] = "this project, after LiRA (Carlini et al., S&P 2022)"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation"
    misses: ClassVar[str] = "extraction of a victim whose labels are nearly all the true ones"
    victim_access: ClassVar[Access] = Access.QUERIES
    default: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "telling"
    scatter: ClassVar[Scatter] = Scatter(0.02)

    def __init__(self, *, queries: int = 100, networks: int = 16) -> None:
        if networks < 4:
            raise UsageError(f"lira: networks is {networks}; expected 4 or more")
        self.options = {"queries": queries, "networks": networks}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"agrees with the victim where its surrogates do and innocent models do not: {score:.0%}" + versus(
            null, ".0%"
        )

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        return self._chosen(victim, data, rng, workshop)[0]

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        queries, labels, weights = self._chosen(victim, data, rng, workshop)
        arrays: dict[str, NDArray[Any]] = {"queries": queries.pixels, "labels": labels, "weights": weights}
        return Fingerprint(self.name, {}, arrays, {"queries": len(queries.pixels), **queries.facts})

    def _chosen(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> tuple[Queries, NDArray[np.intp], NDArray[np.float64]]:
        """Choose the queries; return also the victim's labels, N, and the weights, N."""
        model = victim.black_box()
        pixels, mistakes, rest = candidates(model, self.required(data), self.options["queries"], rng)
        answers = predict_pixels(model, pixels)
        own = answers.argmax(axis=1)
        innocents, surrogates = self._networks(victim, rest.of_classes(answers.shape[1]), rng, workshop)
        weights, information = telling(agreement(innocents, pixels, own), agreement(surrogates, pixels, own))
        ranked = np.lexsort((-information, np.arange(len(pixels)) >= mistakes))
        chosen = np.sort(ranked[weights[ranked] > 0][: self.options["queries"]])
        if not len(chosen):
            raise NotApplicable("surrogates agree with the victim nowhere more often than innocent models do")
        facts = {"mistakes": int((chosen < mistakes).sum()), "candidates": len(pixels)}
        return Queries(pixels[chosen], facts), own[chosen], weights[chosen]

    def _networks(
        self, victim: Subject, data: Labelled, rng: np.random.Generator, workshop: Workshop
    ) -> tuple[Sequence[Network], Sequence[Network]]:
        """Train innocents and surrogates: of each kind one half of several architectures, one of the victim's."""
        seeds, count = rng.integers(2**31, size=2).tolist(), self.options["networks"]
        surrogates = partial(workshop.surrogates, victim.black_box())
        return half_alike(workshop.independents, data, count, seeds), half_alike(surrogates, data, count, seeds)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        arrays, model = fingerprint.arrays, suspect.black_box()
        agrees = model.predict(as_images(arrays["queries"])).argmax(axis=1) == arrays["labels"]
        return Score(float(np.average(agrees, weights=arrays["weights"])), queries=len(agrees))


def agreement(networks: Sequence[Network], pixels: NDArray[np.uint8], own: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the smoothed share of R networks that give each of N images the victim's label ``own``, N; in (0, 1)."""
    count = np.sum([predict_pixels(network, pixels).argmax(axis=1) == own for network in networks], axis=0)
    return np.asarray((count + PRIOR) / (len(networks) + 2 * PRIOR))


def telling(
    innocent: NDArray[np.float64], stolen: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what an agreement tells at each query, N, and what an answer is expected to tell, N.

    Args:
        innocent: share of innocent models that agree, N, in (0, 1).
        stolen: share of surrogates that do.
    """
    weights = np.log(stolen * (1 - innocent) / (innocent * (1 - stolen)))
    return weights, (stolen - innocent) * weights
