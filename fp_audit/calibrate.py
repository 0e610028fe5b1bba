"""From scores to verdicts: null distributions, p-values, combination, multiple testing.

A behavioural score means nothing by itself; its p-value is the chance that a model trained independently
scores as high. Two are computed and the evidence shows both: the conformal one, which assumes nothing but
cannot go below 1 / (n + 1), and a parametric tail, which can. The verdict follows the parametric one.

Difference from the design: rates are not given a beta-binomial tail. Fitted to a dozen independents it
ignores that its two parameters are estimates and rejects two to nine times too often; a t prediction interval on
the arcsine scale with the binomial noise as a floor stays within 1.5 times its level (``tests/test_calibrate.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp_audit.types import Null, Scatter, Score, Verdict

MIN_NULL = 4
"""With fewer independents than this no p-value is given."""

LEAST_VARIATION = 0.01
"""Standard deviation of the independents' accuracies below which nothing can be learned from them."""

SUSPECTED = 0.05
"""p-value at or below which a finding is at least ``suspected``."""


def conformal_p(value: float, null: NDArray[np.float64]) -> float:
    """Return (1 + #{null >= value}) / (1 + n): valid for any distribution if suspect and null are exchangeable."""
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def parametric_p(
    value: float,
    null: NDArray[np.float64],
    *,
    trials: int | None,
    scatter: Scatter,
    accuracy: float | None = None,
    accuracies: Sequence[float | None] = (),
) -> float:
    """Upper tail of the t prediction interval for one more independent, at ``value``.

    ``t = (g(value) - mean) / (sd * sqrt(1 + 1/n))`` with n - 1 degrees of freedom, over ``g(null)``; for rates
    ``g`` is the arcsine of the square root, which makes binomial noise the same size everywhere.

    Good models agree more with one another than poor ones do, stolen or not. Where the accuracies are known, the same
    interval is also computed around the regression of the scores on accuracy, at the suspect's accuracy (n - 2 degrees
    of freedom; wider the further the suspect is from the independents), and the larger p-value is returned.

    Where the method states an expected deviation, the variance is the mean of its square and of the independents',
    weighted by degrees of freedom, and has the degrees of both: the moderated t statistic of Smyth ("Linear models and
    empirical Bayes methods for assessing differential expression", Stat. Appl. Genet. Mol. Biol. 2004).

    Args:
        value: the suspect's score.
        null: scores of n independents, n >= 2.
        trials: number of answers behind a rate; None for a score that is not a rate.
        scatter: what the method states of the standard deviation, on the scale of ``g``; rates have at least the
            binomial noise ``1 / (2 sqrt(trials))``.
        accuracy: the suspect's on the victim's probes.
        accuracies: those of the independents.

    Raises:
        ValueError: the independents all score the same and no deviation is stated: no interval can be given.
    """
    x, sample = stabilised(np.array([value]), trials)[0], stabilised(null, trials)
    n = len(sample)
    if not scatters(null, trials, scatter):
        raise ValueError(f"{n} equal scores, and no deviation is stated")
    believed = replace(scatter, least=_least_spread(trials, scatter))
    above, residuals = x - sample.mean(), sample - sample.mean()
    p = _tail(above, residuals, n - 1, 1 / n, believed)
    known = np.array([np.nan if item is None else item for item in accuracies])
    if accuracy is not None and len(known) == n > MIN_NULL and known.std() >= LEAST_VARIATION:
        offset, its = known - known.mean(), accuracy - known.mean()
        slope = float(offset @ sample / (offset @ offset))
        leverage = 1 / n + its**2 / float(offset @ offset)
        p = max(p, _tail(above - slope * its, residuals - slope * offset, n - 2, leverage, believed))
    return float(max(p, np.finfo(float).tiny))


def _tail(above: float, residuals: NDArray[np.float64], degrees: int, leverage: float, scatter: Scatter) -> float:
    """Upper tail of the t prediction interval at ``above`` what is predicted, from the independents' residuals."""
    from scipy.special import stdtr

    together = degrees + scatter.degrees
    variance = (residuals @ residuals + scatter.degrees * scatter.expected**2) / together
    return float(stdtr(together, -above / (max(np.sqrt(variance), scatter.least) * np.sqrt(1.0 + leverage))))


def scatters(null: NDArray[np.float64], trials: int | None, scatter: Scatter) -> bool:
    """Whether an interval can be given: scores differ, or a deviation is stated, as all rates have one."""
    stated = scatter.least > 0 or scatter.degrees > 0 or trials is not None
    return stated or bool(np.ptp(null) > 0)


def _least_spread(trials: int | None, scatter: Scatter) -> float:
    return scatter.least if trials is None else max(scatter.least, 1.0 / (2.0 * np.sqrt(trials)))


def stabilised(scores: NDArray[np.float64], trials: int | None) -> NDArray[np.float64]:
    """Map rates to the arcsine scale; leave other scores alone."""
    if trials is None:
        return scores
    return np.asarray(np.arcsin(np.sqrt(np.clip(scores, 0.0, 1.0))))


def p_value(
    score: Score, null: Null | None, *, scatter: Scatter, accuracy: float | None = None
) -> tuple[float | None, dict[str, Any] | None]:
    """Judge one score; ``accuracy`` is the suspect's on the victim's probes, where it is known.

    Returns:
        The p-value that votes (None when neither an exact test nor enough independents exist) and a
        description of the null for the report. An exact test is set aside when references fail it themselves: then
        sharing weights with the victim is what independents of this family do. A score in parts is judged part by part,
        and the harmonic mean of the p-values votes. Independents that all score the same say nothing of a method that
        states no spread: those have an exact test, such as equality of files, and no vote where it fails.
    """
    if score.p_value is not None and not (null and null.related):
        return score.p_value, None
    if null is None or (len(null.scores) < MIN_NULL and not null.related):
        return None, None
    about = _describe(score.value, null)
    if null.related and score.p_value is not None:
        about["exact_p"] = score.p_value
    if len(null.scores) < MIN_NULL:
        return None, about
    if not score.parts:
        sample = np.asarray(null.scores, float)
        if not scatters(sample, score.trials, scatter):
            return None, about
        return parametric_p(
            score.value,
            sample,
            trials=score.trials,
            scatter=scatter,
            accuracy=accuracy,
            accuracies=null.accuracies,
        ), about
    p_values = part_p_values(score, null, scatter=scatter, accuracy=accuracy)
    about["part_p"] = p_values
    return combine(list(p_values.values())) if p_values else None, about


def part_p_values(score: Score, null: Null, *, scatter: Scatter, accuracy: float | None) -> dict[str, float]:
    """Judge each part of a score against the same part of the independents that have it, if enough have."""
    found = {}
    for name, value in score.parts.items():
        having = [i for i, parts in enumerate(null.parts) if name in parts]
        sample = np.array([null.parts[i][name] for i in having])
        if len(having) >= MIN_NULL and scatters(sample, None, scatter):
            found[name] = parametric_p(
                value,
                sample,
                trials=None,
                scatter=scatter,
                accuracy=accuracy,
                accuracies=[null.accuracies[i] for i in having],
            )
    return found


@dataclass(frozen=True)
class Judged:
    """A score, and what it is judged against."""

    score: Score
    null: Null
    scatter: Scatter
    """See ``Method.scatter``."""

    @property
    def by_null(self) -> bool:
        """Whether the score itself is judged against independents, not its parts or by an exact test, and can be."""
        plain = self.score.p_value is None and not self.score.parts
        enough = len(self.null.scores) >= MIN_NULL
        return plain and enough and scatters(np.asarray(self.null.scores, float), self.score.trials, self.scatter)


def joint(judged: Sequence[Judged], *, accuracy: float | None = None) -> tuple[float, float, dict[str, Any]] | None:
    """Judge several scores of one suspect at once: many small likenesses add up to a large one.

    The standardised sum test (Läuter, "Exact t and F tests for analyzing studies with multiple endpoints", Biometrics
    1996). With x_m and y_im the scores of suspect and independent i by method m, on the scale of ``parametric_p``, and
    s_m the standard deviation of both together, ``sum_m x_m / s_m`` is judged against ``sum_m y_im / s_m`` by the t
    interval of ``parametric_p``. Because the weights 1 / s_m treat suspect and independents alike, the p-value is exact
    for normal scores, whatever the number of independents and however the methods depend on each other; with s_m of
    the independents alone, eight of them would reject .018 at level .01 (``tests/test_calibrate.py``).

    Differences: s_m has the floor of ``parametric_p``, and the sum has that of independent floors. Only
    independents that all methods have a score of are used.

    Args:
        judged: of M methods; ``Judged.by_null`` holds for each.
        accuracy: as for ``parametric_p``.

    Returns:
        The suspect's sum above the mean of the independents, divided by M; its p-value; a description of the null. None
        if there are fewer than two methods, or too few independents.
    """
    if len(judged) < 2:
        return None
    first = judged[0].null
    shared = reduce(set.intersection, (set(item.null.names) for item in judged))
    accuracies = dict(zip(first.names, first.accuracies, strict=False))
    names = [name for name in first.names if name in shared]
    if len(names) < MIN_NULL:
        return None
    rows, floors = zip(*(_standardised(item, names) for item in judged), strict=True)
    value, *sums = (float(mean) for mean in np.mean(rows, axis=0))
    scatter = Scatter(least=float(np.linalg.norm(floors)) / len(judged))
    if not scatters(np.asarray(sums), None, scatter):
        return None
    p = parametric_p(
        value,
        np.asarray(sums),
        trials=None,
        scatter=scatter,
        accuracy=accuracy,
        accuracies=[accuracies.get(name) for name in names],
    )
    return value, p, _describe(value, Null(tuple(sums), tuple(names)))


def _standardised(item: Judged, names: Sequence[str]) -> tuple[NDArray[np.float64], float]:
    """Return the scores of the suspect and of the independents ``names`` above the mean of these, and their floor.

    All are divided by the standard deviation of suspect and independents together; equal scores add nothing.
    """
    null = dict(zip(item.null.names, item.null.scores, strict=True))
    trials = item.score.trials
    scores = stabilised(np.array([item.score.value, *(null[name] for name in names)], float), trials)
    floor = _least_spread(trials, item.scatter)
    scale = max(float(scores.std(ddof=1)) if np.ptp(scores) > 0 else 0.0, floor)
    if scale == 0:
        return np.zeros(len(scores)), 0.0
    return (scores - scores[1:].mean()) / scale, floor / scale


def _describe(value: float, null: Null) -> dict[str, Any]:
    sample = np.asarray(null.scores, float)
    about = {
        "n": len(sample),
        "mean": float(sample.mean()),
        "max": float(sample.max()),
        "conformal_p": conformal_p(value, sample),
    }
    return about if null.fit is None else {**about, "fit_p": null.fit}


def goodness_of_fit(null: Sequence[float], trials: int | None) -> float | None:
    """Shapiro-Wilk p-value of the scores on the scale of ``parametric_p``; None if they are too few or all equal."""
    from scipy.stats import shapiro

    sample = stabilised(np.asarray(null, float), trials)
    if len(sample) < MIN_NULL or np.ptp(sample) == 0:
        return None
    return float(shapiro(sample).pvalue)


def combine(p_values: Sequence[float]) -> float:
    """Harmonic mean p-value of K methods that looked at the same model (Wilson, PNAS 2019).

    Dependence between the methods does not break it: under perfect dependence it is exact; under independence of up to
    eight methods it rejects .0106 at level .01 and .063 at .05 (``tests/test_calibrate.py``). A method that sees
    nothing (p near 1) costs at most a factor K.
    """
    values = np.asarray(p_values, float)
    least = values.min()
    return float(min(1.0, least * len(values) / (least / values).sum()))


def q_values(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg: smallest false-discovery rate at which each finding would be reported."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)[::-1]
    ranked = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(ranked).clip(max=1.0)
    return [float(v) for v in q]


def verdict(p: float | None, q: float | None, alpha: float) -> Verdict:
    """Turn a combined p-value and its q-value into a verdict; without a p-value it is ``inconclusive``."""
    if p is None or q is None:
        return Verdict.INCONCLUSIVE
    if q <= alpha:
        return Verdict.DERIVED
    return Verdict.SUSPECTED if p <= SUSPECTED else Verdict.INDEPENDENT
