"""Query sets, the networks that choose them, and how answers are read, for more than one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.engine import answered
from fp_audit.errors import DataError
from fp_audit.metrics import centred
from fp_audit.model import TOP_K, BlackBox, as_probabilities, one_hot
from fp_audit.types import OutputKind, Outputs, Pixels

if TYPE_CHECKING:
    from fp_audit.networks import Network

BLEND = (0.35, 0.65)
"""Range of the weight of the first of two blended images."""

CANDIDATES = 20
"""Blends drawn for each one that is needed."""

MARGINS = (0.25, 0.5)
"""Quantiles of the victim's top-2 margin for blends: it hesitates, and int8 noise does not tip it."""

NATURAL_SHARE, MOST_NATURAL = 0.2, 4000
"""Share of the data, at most so many images, that ``candidates`` sets aside."""

ENOUGH = 4
"""Blends that ``candidates`` draws for a query, at least."""


@dataclass(frozen=True)
class Hard:
    """Images that the victim finds hard."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    answers: Outputs
    """The victim's, N x K."""
    facts: dict[str, Any]


def hard_queries(victim: BlackBox, data: Labelled, budget: int, rng: np.random.Generator) -> Hard:
    """Draw ``budget`` images that the victim misclassifies; where there are fewer, add blends that it hesitates on.

    Mistakes are drawn at random (QuRD's negative sampling). A blend is a weighted mean of two images to which the
    victim gives different labels (mixup, Zhang et al., ICLR 2018).

    Difference from the usual filling with correct images of small margin: whoever trained on the same images gets
    those right too, and so agrees with the victim. On a victim without mistakes in its training data that made
    three of four independents ``derived``. Nobody has trained on a blend.
    """
    answers = predict_pixels(victim, data.pixels)
    wrong = np.flatnonzero(answers.argmax(axis=1) != data.labels)
    chosen = np.sort(rng.permutation(wrong)[:budget])
    pixels, shown = data.pixels[chosen], answers[chosen]
    if len(chosen) < budget:
        blends, more = _hesitant_blends(victim, data.pixels, answers.argmax(axis=1), budget - len(chosen), rng)
        pixels, shown = np.concatenate([pixels, blends]), np.concatenate([shown, more])
    facts = {
        "queries": len(pixels),
        "mistakes": len(chosen),
        "blends": len(pixels) - len(chosen),
        "mistakes_in_data": len(wrong),
    }
    return Hard(pixels, shown, facts)


def _hesitant_blends(
    victim: BlackBox, pixels: Pixels, labels: NDArray[np.intp], count: int, rng: np.random.Generator
) -> tuple[Pixels, Outputs]:
    """Return ``count`` blends of the middle-low margins, and the victim's answers to them."""
    drawn = blends(pixels, labels, CANDIDATES * count, rng)
    if len(drawn) < 2 * count:
        raise DataError("the victim gives nearly all images one label: pass images of all its classes")
    answers = predict_pixels(victim, drawn)
    top = np.sort(answers, axis=1)
    margin = top[:, -1] - top[:, -2]
    low, high = np.quantile(margin, MARGINS)
    chosen = np.flatnonzero((margin >= low) & (margin <= high))[:count]
    return drawn[chosen], answers[chosen]


def candidates(victim: BlackBox, data: Labelled, budget: int, rng: np.random.Generator) -> tuple[Pixels, int, Labelled]:
    """Set images aside for queries, on which no network may be trained, and blend pairs of them.

    Of the images themselves only the victim's mistakes are candidates. Where it is right, an innocent model that was
    trained on the same images is right too, more often than one that was not: it would look like a surrogate beside
    references that never see queries. Of its mistakes such a model shares fewer, and nobody has trained on a blend.

    Returns:
        The candidates, how many of them (the first ones) are mistakes, and the images left for training.

    Raises:
        DataError: the images are too few for the budget.
    """
    order = rng.permutation(len(data))
    size = min(round(NATURAL_SHARE * len(data)), MOST_NATURAL)
    if size < budget / 2:
        raise DataError(
            f"{data.name}: {len(data)} images are too few to set {NATURAL_SHARE:.0%} aside for {budget} queries: "
            "pass more images, or ask for fewer queries"
        )
    aside = data.take(np.sort(order[:size]))
    labels = predict_pixels(victim, aside.pixels).argmax(axis=1)
    mistakes = aside.pixels[labels != aside.labels]
    blended = blends(aside.pixels, labels, max(size, ENOUGH * budget), rng)
    return np.concatenate([mistakes, blended]), len(mistakes), data.take(np.sort(order[size:]))


class Training(Protocol):
    """``Workshop.independents``, or ``surrogates`` of one victim."""

    def __call__(self, data: Labelled, count: int, /, *, seed: int, alike: bool) -> Sequence[Network]:
        """Train ``count`` networks."""


def half_alike(train: Training, data: Labelled, count: int, seeds: Sequence[int]) -> list[Network]:
    """Train one half of several architectures with the first seed, the other of the victim's with the second."""
    varied = train(data, count - count // 2, seed=seeds[0], alike=False)
    return [*varied, *train(data, count // 2, seed=seeds[1], alike=True)]


def blends(pixels: Pixels, labels: NDArray[np.intp], count: int, rng: np.random.Generator) -> Pixels:
    """Blend ``count`` pairs of N images; those that have one label are left out, so that fewer may come back."""
    first, second = rng.integers(len(pixels), size=(2, count))
    differ = labels[first] != labels[second]
    first, second = first[differ], second[differ]
    weight = rng.uniform(*BLEND, (len(first), 1, 1, 1))
    return np.asarray(np.rint(weight * pixels[first] + (1 - weight) * pixels[second]), np.uint8)


def predict_pixels(model: BlackBox, pixels: Pixels) -> Outputs:
    """Answer uint8 images of any number without holding all of them as floats."""
    return np.concatenate(list(answered(model, pixels)))


def centred_logits(answers: Outputs, kind: OutputKind) -> NDArray[np.float64]:
    """Read logits up to their constant, N x K, also off a model that answers with less.

    Probabilities give the same values through their logarithm. Where an answer hides entries (top-k, labels), .01
    is added to each before renormalising, as SAC does for labels.
    """
    if kind == "logits":
        return centred(answers)
    return centred(np.log(np.maximum(shown_probabilities(answers, kind), 1e-7)))


def shown_probabilities(answers: Outputs, kind: OutputKind) -> NDArray[np.float64]:
    """Read probabilities, N x K; hidden entries of top-k and label answers are smoothed with .01."""
    probabilities = np.asarray(as_probabilities(answers, kind), np.float64)
    if kind in ("topk", "labels"):
        probabilities = probabilities + 0.01
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def read(answers: Outputs, kind: OutputKind, shown: OutputKind) -> NDArray[np.float64]:
    """Read N x K answers of ``kind`` as if no more than ``shown`` were seen: one-hot rows or centred logits."""
    if shown == "labels":
        return one_hot(answers.argmax(axis=1), answers.shape[1]).astype(np.float64)
    if shown == "topk" and kind != "topk":
        probabilities = as_probabilities(answers, kind)
        least = np.sort(probabilities, axis=1)[:, [-min(TOP_K, answers.shape[1])]]
        return centred_logits(np.where(probabilities >= least, probabilities, np.float32(0)), "topk")
    return centred_logits(answers, kind)
