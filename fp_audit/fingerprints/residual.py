"""What a suspect shares with the victim beyond what all models of the task share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import UsageError
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import candidates, half_alike, predict_pixels, read
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, OutputKind, Outputs, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.networks import Network
    from fp_audit.workshop import Workshop

PRIOR = 4.0
"""Innocents that the spread over all queries is worth when the spread at one query is estimated."""

LABEL_PRIOR = 0.5
"""Added to the innocents' count of each label at each query (Krichevsky and Trofimov, 1981)."""

FARTHEST = 5.0
"""Residuals are cut to this many standard deviations, so that no single answer decides."""


class Residual(Queried):
    """Correlation of the suspect's and the victim's deviations from innocent models; in [-1, 1].

    Most of what two models of one task agree on they owe to the task. Innocent networks are trained here to learn that
    part: their mean answer m (N x K) and spread s (N) at every query. What remains of a model's answers z is ::

        r(z) = P ((z - b m) / s),   b = <z, m> / <m, m>  (both weighted with 1 / s^2)

    where P takes away what lies in the span of the innocents' own deviations: half of them have the victim's
    architecture, and what a network owes to that is no evidence. The score is the cosine between ``r`` of the suspect
    and ``r`` of the victim: the matched filter for what is the victim's own, in noise of the innocents' spread.
    Innocents come out near 0 however hard a query is, because the mistakes that they all make are in m. It is the
    likelihood-ratio test, up to a monotone map, for a surrogate that lies some way from innocents towards the victim
    where answers are normal with the innocents' variance: LiRA (Carlini et al., S&P 2022) with the victim's answer in
    place of a member's. z are centred logits, scaled so that their median length at a query is 1. Of a suspect that
    shows labels only, z are one-hot rows, m the innocents' smoothed label frequencies f, s = sqrt(f (1 - f)) for each
    label, and b = 1.

    Queries are those candidates (mistakes of the victim and blends of two images, none of which an innocent here was
    trained on) at which the victim's residual is largest, which is where one answer tells most (expected information of
    the normal model). The innocents here are not those of the null: that a query was chosen because they disagree with
    the victim does not make the test reject too often.

    Source: this project; see above for what it is put together from.

    Args:
        queries: images to keep.
        independents: innocent networks to train, 4 or more: half of several architectures, half of the victim's (or,
            where that cannot be trained here, of one small one).
    """

    name: ClassVar[str] = "residual"
    summary: ClassVar[str] = "what answers share with the victim's beyond what all models of the task share"
    paper: ClassVar[str] = "this project, after LiRA (Carlini et al., S&P 2022)"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation, extraction of logits or probabilities"
    misses: ClassVar[str] = "extraction by labels that are nearly all the true ones"
    victim_access: ClassVar[Access] = Access.QUERIES
    default: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "residual"
    scatter: ClassVar[Scatter] = Scatter(0.02)

    def __init__(self, *, queries: int = 100, independents: int = 8) -> None:
        if independents < 4:
            raise UsageError(f"residual: independents is {independents}; expected 4 or more")
        self.options = {"queries": queries, "independents": independents}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"deviates from innocent models the way the victim does: correlation {score:.2f}" + versus(null, ".2f")

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        return self._chosen(victim, data, rng, workshop)[0]

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        queries, own, innocents = self._chosen(victim, data, rng, workshop)
        arrays: dict[str, NDArray[Any]] = {"queries": queries.pixels, "answers": own, "innocents": innocents}
        facts = {"queries": len(queries.pixels), **queries.facts, "victim_output": victim.black_box().output}
        return Fingerprint(self.name, {}, arrays, facts)

    def _chosen(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> tuple[Queries, Outputs, Outputs]:
        """Choose the queries; return also the victim's answers, N x K, and the innocents', R x N x K."""
        model = victim.black_box()
        pixels, mistakes, rest = candidates(model, self.required(data), self.options["queries"], rng)
        own = predict_pixels(model, pixels)
        networks = self._innocents(rest.of_classes(own.shape[1]), rng, workshop)
        answers = np.stack([predict_pixels(network, pixels) for network in networks])
        others = [unit(read(each, "logits", "logits")) for each in answers]
        (deviation,) = deviations([unit(read(own, model.output, "logits"))], others)
        found = np.square(deviation).sum(axis=1)
        chosen = np.sort(np.argsort(-found, kind="stable")[: self.options["queries"]])
        facts = {"mistakes": int((chosen < mistakes).sum()), "candidates": len(pixels)}
        return Queries(pixels[chosen], facts), own[chosen], answers[:, chosen]

    def _innocents(self, data: Labelled, rng: np.random.Generator, workshop: Workshop) -> Sequence[Network]:
        """Train networks on true labels, all with as many classes as the victim."""
        seeds = rng.integers(2**31, size=2).tolist()
        return half_alike(workshop.independents, data, self.options["independents"], seeds)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        arrays, model = fingerprint.arrays, suspect.black_box()
        theirs = model.predict(as_images(arrays["queries"]))
        kind: OutputKind = fingerprint.facts["victim_output"]
        value = similarity(theirs, model.output, (arrays["answers"], kind), arrays["innocents"])
        return Score(value, queries=len(theirs))


def similarity(theirs: Outputs, shown: OutputKind, victim: tuple[Outputs, OutputKind], innocents: Outputs) -> float:
    """Compare deviations from innocent models.

    Args:
        theirs: the suspect's answers, N x K.
        shown: what they are; what they hide is hidden of all others too.
        victim: its answers, N x K, and what they are.
        innocents: logits of R innocent models, R x N x K.

    Returns:
        A correlation in [-1, 1]; 0 if either does not deviate.
    """
    suspect, own = read(theirs, shown, shown), read(victim[0], victim[1], shown)
    others = [read(each, "logits", shown) for each in innocents]
    if shown == "labels":
        left, right = label_deviations([suspect, own], others)
    else:
        left, right = deviations([unit(suspect), unit(own)], [unit(each) for each in others])
    norm = np.linalg.norm(left) * np.linalg.norm(right)
    return float((left * right).sum() / norm) if norm else 0.0


def unit(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to a median length of 1 at a query: how sure of itself a model is says nothing of where it comes from."""
    size = np.median(np.linalg.norm(answers, axis=1))
    return answers / size if size else answers


def shared(answers: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what R innocents' answers (N x K each) have in common: mean, N x K, and spread, N x 1.

    The variance at a query is shrunk towards that over all queries, which counts as ``PRIOR`` innocents.
    """
    stacked = np.stack(answers)
    mean = stacked.mean(axis=0)
    variance = np.square(stacked - mean).sum(axis=0).mean(axis=1, keepdims=True) / max(1, len(stacked) - 1)
    weight = len(stacked) / (len(stacked) + PRIOR)
    return mean, np.sqrt(np.maximum(weight * variance + (1 - weight) * variance.mean(), 1e-12))


def deviations(answers: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Take what innocents share, and what they differ in, out of models' answers.

    Args:
        answers: of M models, N x K each.
        others: of R innocents, N x K each.

    Returns:
        M x N x K, in units of the innocents' spread.
    """
    mean, spread = shared(others)
    return apart([remaining(each, mean, spread) for each in answers], [(each - mean) / spread for each in others])


def label_deviations(
    answers: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Do the same with labels, one-hot rows; see ``deviations``."""
    frequency, spread = label_frequency(others)
    return apart([(each - frequency) / spread for each in answers], [(each - frequency) / spread for each in others])


def apart(vectors: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Project M arrays, N x K each, onto the complement of the span of R others; M x N x K."""
    stacked, flat = np.stack(vectors), np.stack(others).reshape(len(others), -1)
    _, sizes, basis = np.linalg.svd(flat, full_matrices=False)
    basis = basis[sizes > 1e-9 * max(float(sizes.max()), 1e-12)]
    rows = stacked.reshape(len(stacked), -1)
    return np.asarray((rows - rows @ basis.T @ basis).reshape(stacked.shape))


def remaining(
    answers: NDArray[np.float64], mean: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take what innocents share out of N x K answers, in units of their spread, N x K."""
    scaled, common = answers / spread, mean / spread
    size = float((common * common).sum())
    slope = float((scaled * common).sum()) / size if size else 0.0
    return np.clip(scaled - slope * common, -FARTHEST, FARTHEST)


def label_frequency(labels: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often R innocents (one-hot rows, N x K each) say each label, smoothed, and its deviation, N x K."""
    counts = np.sum(labels, axis=0) + LABEL_PRIOR
    frequency = counts / counts.sum(axis=1, keepdims=True)
    return frequency, np.sqrt(frequency * (1 - frequency))
