"""What is read off a model's answers to a query set, and how two readings are compared (the frame of QuRD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit import metrics
from fp_audit.fingerprints._queries import centred_logits, shown_probabilities
from fp_audit.types import OutputKind, Outputs

Reading: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Representation:
    """One way to read N answers."""

    read: Callable[[Outputs, OutputKind], Reading]
    aligned: bool
    """Whether the classes of two models must correspond."""
    shape: str
    """In words, for a message."""


@dataclass(frozen=True)
class Distance:
    """One way to compare two readings; larger is more alike."""

    similarity: Callable[[Reading, Reading], float]
    fits: tuple[str, ...]
    """Representations that it can compare."""
    rate: bool = False
    """Whether the similarity is a rate over the N answers."""


def labels(answers: Outputs, kind: OutputKind) -> Reading:
    """Top-1 labels, N."""
    del kind
    return np.asarray(answers.argmax(axis=1))


def logits(answers: Outputs, kind: OutputKind) -> Reading:
    """Centred logits, N x K; logarithms of probabilities give the same (``centred_logits``)."""
    return centred_logits(answers, kind).astype(np.float32)


def probabilities(answers: Outputs, kind: OutputKind) -> Reading:
    """Probabilities, N x K."""
    return shown_probabilities(answers, kind).astype(np.float32)


def correlation(answers: Outputs, kind: OutputKind) -> Reading:
    """(1 - cos) / 2 between the probabilities of each pair of queries, N x N (SAC)."""
    return metrics.pair_correlation(shown_probabilities(answers, kind)).astype(np.float32)


def ddv(answers: Outputs, kind: OutputKind) -> Reading:
    """Decision distance vector, N / 2: 1 - cos between the probabilities of query i and of its partner i + N / 2.

    Source: Li et al., "ModelDiff", ISSTA 2021.
    """
    return metrics.decision_distances(shown_probabilities(answers, kind)).astype(np.float32)


def _one_minus_mean_absolute(a: Reading, b: Reading) -> float:
    return 1.0 - float(np.abs(np.asarray(a, np.float64) - b).mean())


def _one_minus_root_mean_square(a: Reading, b: Reading) -> float:
    return 1.0 - float(np.sqrt(np.square(np.asarray(a, np.float64) - b).mean()))


def _cosine(a: Reading, b: Reading) -> float:
    return metrics.mean_cosine(np.atleast_2d(a), np.atleast_2d(b))


def _jensen_shannon(a: Reading, b: Reading) -> float:
    return 1.0 - metrics.jensen_shannon(a, b) / float(np.log(2.0))


def _same(a: Reading, b: Reading) -> float:
    return float((a == b).mean())


REPRESENTATIONS: Mapping[str, Representation] = {
    "labels": Representation(labels, aligned=True, shape="N labels"),
    "logits": Representation(logits, aligned=True, shape="N x K"),
    "probabilities": Representation(probabilities, aligned=True, shape="N x K"),
    "correlation": Representation(correlation, aligned=False, shape="N x N"),
    "ddv": Representation(ddv, aligned=False, shape="N / 2"),
}

_NUMBERS = ("logits", "probabilities", "correlation", "ddv")

DISTANCES: Mapping[str, Distance] = {
    "hamming": Distance(_same, fits=("labels",), rate=True),
    "cosine": Distance(_cosine, fits=_NUMBERS),
    "l1": Distance(_one_minus_mean_absolute, fits=_NUMBERS),
    "l2": Distance(_one_minus_root_mean_square, fits=_NUMBERS),
    "jsd": Distance(_jensen_shannon, fits=("probabilities",)),
}
