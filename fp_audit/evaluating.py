"""How good verdicts are: statistics over the scores of models whose history is known. Pure functions, no files.

Surrogates are the positives, independents the negatives. A model that a method has nothing to say about counts as the
least alike of all: silence detects nothing.

Intervals are at 95 %. Those of AUC and TPR are percentiles of a bootstrap that draws surrogates and independents anew,
each among themselves; those of shares are Clopper and Pearson's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fp_audit.metrics import auc, tpr_at_fpr

COMBINED = "combined"
"""The method of all methods: its score is -log10 of the p-value that a scan gives the model alone."""

EVERY = "all"
"""The kind of all surrogates but those of ``APART``."""

APART = ("transfer",)
"""Kinds that do another task than the victim."""

DRAWS = 1000
CONFIDENCE = 0.95
LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Claimed levels whose observed rates are told."""


@dataclass(frozen=True)
class Model:
    """A model of the zoo."""

    name: str
    role: Literal["surrogate", "independent"]
    kind: str
    """Of attack; ``independent`` for independents, or what their owner calls them."""
    training: str = ""
    """How much of the victim's training images an independent saw: ``same``, ``half``, ``none``; empty if not known."""
    accuracy: float | None = None
    """Share of test images that it gets right (of probes, for models made elsewhere); None if unknown."""
    agreement: float | None = None
    """Share of test images to which it gives the victim's label."""
    useful: bool = True
    """Whether it is worth stealing: one that has lost too much is broken, and is not counted."""
    queries: int | None = None
    """Images that the thief showed to the victim."""
    seconds: float | None = None
    """What the attack took."""


class Setting(NamedTuple):
    """What a score depends on besides the model."""

    method: str
    budget: int
    """Queries that the victim was registered with."""
    output: str
    """What the suspect shows: ``logits``, ``probabilities``, ``top-3`` or ``top-1``."""


@dataclass(frozen=True)
class Row:
    """One score."""

    model: str
    setting: Setting
    score: float
    p_value: float | None
    queries: int
    """Images that the model was asked for it; for ``combined`` those for all methods and for alignment."""


@dataclass(frozen=True)
class Rate:
    """A number in [0, 1] with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """How well one method tells one kind of surrogates from the independents."""

    kind: str
    setting: Setting
    surrogates: int
    independents: int
    auc: Rate
    tpr5: Rate
    """TPR where at most 5 % of the independents score higher."""
    tpr1: Rate
    detected: Rate | None
    """Share with p <= alpha; None for a method that gives no p-values."""


@dataclass(frozen=True)
class Innocent:
    """How often independents are taken for surrogates."""

    training: str
    """Those of this training set; ``all`` for all."""
    setting: Setting
    independents: int
    level: float
    """Claimed."""
    observed: Rate
    """Share with p <= ``level``."""


@dataclass(frozen=True)
class Gain:
    """What a number of references buys, all methods together."""

    references: int
    output: str
    detected: Rate | None
    """Share of the surrogates of all kinds with p <= alpha; None if there are none."""
    accused: Rate | None
    """Share of the independents with p <= alpha; None if there are none."""


def strength(p_value: float) -> float:
    """Return -log10 of a p-value: the larger, the more alike."""
    return -math.log10(max(p_value, 1e-300))


def cells(models: Sequence[Model], rows: Iterable[Row], alpha: float) -> Iterator[Cell]:
    """Measure every method on every kind of surrogate, and on all kinds together."""
    innocent = [model.name for model in models if model.role == "independent"]
    kinds = counted(models)
    for setting, found in by_setting(rows).items():
        negatives = scores(innocent, found)
        for kind, names in kinds.items():
            positives = scores(names, found)
            area, five, one = bootstrap(positives, negatives)
            caught = detected(names, found, alpha)
            yield Cell(kind, setting, len(names), len(innocent), area, five, one, caught)


def counted(models: Sequence[Model]) -> dict[str, list[str]]:
    """Name the surrogates that count, by kind, all kinds together first."""
    useful = [model for model in models if model.role == "surrogate" and model.useful]
    kinds = {EVERY: [model.name for model in useful if model.kind not in APART]}
    for model in useful:
        kinds.setdefault(model.kind, []).append(model.name)
    return {kind: names for kind, names in kinds.items() if names}


def by_setting(rows: Iterable[Row]) -> dict[Setting, dict[str, Row]]:
    """Group scores: setting -> model -> row."""
    found: dict[Setting, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.setting, {})[row.model] = row
    return found


def scores(names: Sequence[str], rows: Mapping[str, Row]) -> NDArray[np.float64]:
    """Return the models' scores, the least possible for those that have none."""
    return np.array([rows[name].score if name in rows else -np.inf for name in names])


def detected(names: Sequence[str], rows: Mapping[str, Row], level: float) -> Rate | None:
    """Return the share of models with p <= ``level``; None if there is no p-value at all."""
    p_values = {name: row.p_value for name, row in rows.items() if row.p_value is not None}
    return share(sum(p_values.get(name, 1.0) <= level for name in names), len(names)) if p_values and names else None


def innocents(models: Sequence[Model], rows: Iterable[Row], levels: Sequence[float] = LEVELS) -> Iterator[Innocent]:
    """Compare claimed levels with what happens to independents, all together and by training set."""
    groups: dict[str, list[str]] = {EVERY: []}
    for model in models:
        if model.role == "independent":
            groups[EVERY].append(model.name)
            if model.training:
                groups.setdefault(model.training, []).append(model.name)
    for setting, found in by_setting(rows).items():
        for training, names in groups.items():
            for level in levels:
                if (observed := detected(names, found, level)) is not None:
                    yield Innocent(training, setting, len(names), level, observed)


def share(hits: int, count: int) -> Rate:
    """Return a share with Clopper and Pearson's interval (Biometrika, 1934)."""
    from scipy.special import betaincinv

    outside = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, count - hits + 1, outside)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - outside)) if hits < count else 1.0
    return Rate(hits / count, low, high)


def bootstrap(
    positives: NDArray[np.float64], negatives: NDArray[np.float64], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Rate, Rate, Rate]:
    """Return AUC, TPR at 5 % and TPR at 1 % FPR with their intervals.

    Of fewer than 1 / FPR negatives a rate is the share of positives above all of them, and its interval is too narrow:
    nothing that is drawn from them tells how far the next one would reach. Rates have Clopper and Pearson's interval at
    least.

    Args:
        positives: P scores, P >= 1.
        negatives: N scores, N >= 1.
        draws: how often P of the positives and N of the negatives are drawn anew, with replacement.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(positives), size=(draws, len(positives)))
    others = rng.integers(len(negatives), size=(draws, len(negatives)))
    above = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    weights = _times(chosen, len(positives)) @ above
    areas = (weights * _times(others, len(negatives))).sum(axis=1) / above.size
    drawn, ordered = positives[chosen], -np.sort(-negatives[others], axis=1)
    five, one = (_drawn_rates(drawn, ordered, fpr) for fpr in (0.05, 0.01))
    return (
        _interval(auc(positives, negatives), areas),
        _wider(_interval(tpr_at_fpr(positives, negatives, 0.05), five), len(positives)),
        _wider(_interval(tpr_at_fpr(positives, negatives, 0.01), one), len(positives)),
    )


def _wider(rate: Rate, count: int) -> Rate:
    """Widen an interval of a share of ``count`` to Clopper and Pearson's: drawing anew says nothing of 0 and 1."""
    known = share(round(rate.value * count), count)
    return Rate(rate.value, min(rate.low, known.low), max(rate.high, known.high))


def _times(chosen: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Count how often each of ``count`` was drawn: draws x count."""
    draws = len(chosen)
    flat = chosen + count * np.arange(draws)[:, None]
    return np.bincount(flat.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def _drawn_rates(positives: NDArray[np.float64], negatives: NDArray[np.float64], fpr: float) -> NDArray[np.float64]:
    """Return ``metrics.tpr_at_fpr`` of each draw: positives draws x P, negatives draws x N in descending order."""
    allowed = math.floor(fpr * negatives.shape[1] + 1e-9)
    return np.asarray((positives > negatives[:, allowed, None]).mean(axis=1))


def _interval(value: float, draws: NDArray[np.float64]) -> Rate:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [outside, 1 - outside])
    return Rate(value, float(low), float(high))


def roc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Return the corners of the ROC curve: false-positive rates and true-positive rates, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    false = [float((negatives >= threshold).mean()) for threshold in thresholds]
    true = [float((positives >= threshold).mean()) for threshold in thresholds]
    return [0.0, *false], [0.0, *true]
