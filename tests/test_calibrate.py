"""P-values: known values, scipy as an oracle, and the measured share of independents that are called derived."""

import numpy as np
import pytest
from scipy import stats

from fp_audit import calibrate
from fp_audit.calibrate import (
    Judged,
    combine,
    conformal_p,
    goodness_of_fit,
    joint,
    p_value,
    parametric_p,
    q_values,
    verdict,
)
from fp_audit.types import Null, Scatter, Score, Verdict

N, TRIALS = 12, 100
NOTHING = Scatter()
"""States nothing of how innocent scores scatter."""
SHAPES = [(8, 12), (2, 3), (20, 5), (1, 8), (60, 60), (30, 3)]
"""Beta distributions of the independents' rates: from hardly to very scattered, from low to high."""


def t_interval_p(values, nulls, trials, floor):
    """Vectorised over rows: the definition in the docstring, by scipy.stats.t."""
    if trials is not None:
        values, nulls = np.arcsin(np.sqrt(values)), np.arcsin(np.sqrt(nulls))
        floor = 0.5 / np.sqrt(trials)
    sd = np.maximum(np.std(nulls, axis=1, ddof=1), floor)
    n = nulls.shape[1]
    return stats.t.sf((values - nulls.mean(axis=1)) / (sd * np.sqrt(1 + 1 / n)), df=n - 1)


def independents(shape, count, seed=0):
    """Rates of ``count`` suspects and of N references for each, all from one population."""
    rng = np.random.default_rng(seed)
    rates = rng.binomial(TRIALS, rng.beta(*shape, (count, N + 1))) / TRIALS
    return rates[:, 0], rates[:, 1:]


def test_conformal_p_is_the_rank_among_the_null():
    null = np.array([0.1, 0.2, 0.3, 0.3])
    assert conformal_p(0.4, null) == 1 / 5
    assert conformal_p(0.3, null) == 3 / 5
    assert conformal_p(0.0, null) == 1.0


def test_parametric_p_golden_value():
    null = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert parametric_p(0.9, null, trials=None, scatter=NOTHING) == pytest.approx(0.0128607103713, rel=1e-9)
    assert parametric_p(0.3, null, trials=None, scatter=NOTHING) == 0.5


@pytest.mark.parametrize("trials", [None, TRIALS])
def test_parametric_p_is_the_t_prediction_interval(trials):
    values, nulls = independents((4, 6), 50)
    wanted = t_interval_p(values, nulls, trials, 0.03)
    got = [parametric_p(v, null, trials=trials, scatter=Scatter(0.03)) for v, null in zip(values, nulls, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_rates_are_never_believed_to_scatter_less_than_binomial_noise():
    null = np.full(N, 0.4)
    x = np.arcsin(np.sqrt(0.6)) - np.arcsin(np.sqrt(0.4))
    wanted = stats.t.sf(x / (0.05 * np.sqrt(1 + 1 / N)), N - 1)
    assert parametric_p(0.6, null, trials=100, scatter=Scatter(0.01)) == pytest.approx(wanted, rel=1e-9)
    wider = stats.t.sf(x / (0.2 * np.sqrt(1 + 1 / N)), N - 1)
    assert parametric_p(0.6, null, trials=100, scatter=Scatter(0.2)) == pytest.approx(wider, rel=1e-9)


def test_scores_are_never_believed_to_scatter_less_than_is_stated():
    null = np.full(N, 0.4)
    wanted = stats.t.sf(0.2 / (0.1 * np.sqrt(1 + 1 / N)), N - 1)
    assert parametric_p(0.6, null, trials=None, scatter=Scatter(0.1)) == pytest.approx(wanted, rel=1e-9)


class TestShrinkage:
    """What a method states of the deviation counts as so many more independents."""

    STATED = Scatter(expected=1.25, degrees=5)

    def p_values(self, true, n, above=0.0, count=40_000):
        """The definition, vectorised: the p-values with the stated deviation and without, of normal scores."""
        scores = np.random.default_rng(n).normal(scale=true, size=(count, n + 1))
        value, nulls = scores[:, 0] + above, scores[:, 1:]
        distance = (value - nulls.mean(axis=1)) / np.sqrt(1 + 1 / n)
        variance = nulls.var(axis=1, ddof=1)
        together = (5 * 1.25**2 + (n - 1) * variance) / (n + 4)
        got = [
            parametric_p(x, y, trials=None, scatter=self.STATED) for x, y in zip(value[:20], nulls[:20], strict=True)
        ]
        shrunk = stats.t.sf(distance / np.sqrt(together), df=n + 4)
        np.testing.assert_allclose(got, shrunk[:20], rtol=1e-9)
        return shrunk, stats.t.sf(distance / np.sqrt(variance), df=n - 1)

    @pytest.mark.parametrize("n", [4, 8, 12])
    def test_keeps_its_level_where_scores_scatter_as_stated_or_less(self, n):
        for true in (0.7, 1.0, 1.25):
            shrunk, _ = self.p_values(true, n)
            assert (shrunk <= 0.01).mean() <= 0.012
        more, _ = self.p_values(1.5, n)
        assert (more <= 0.01).mean() <= 0.03

    @pytest.mark.parametrize(("n", "gain"), [(4, 2.5), (8, 1.2), (12, 1.05)])
    def test_finds_more_the_fewer_independents_there_are(self, n, gain):
        shrunk, plain = self.p_values(1.1, n, above=5.0)
        assert (shrunk <= 0.001).mean() >= gain * (plain <= 0.001).mean()

    def test_is_the_plain_interval_where_nothing_is_stated(self):
        null = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
        plain = parametric_p(0.9, null, trials=None, scatter=NOTHING)
        assert parametric_p(0.9, null, trials=None, scatter=Scatter(expected=0.5)) == plain

    def test_equal_scores_can_then_be_judged(self):
        p = parametric_p(3.0, np.zeros(5), trials=None, scatter=self.STATED)
        deviation = np.sqrt(5 * 1.25**2 / 9) * np.sqrt(1 + 1 / 5)
        assert p == pytest.approx(stats.t.sf(3.0 / deviation, df=9), rel=1e-9)

    def test_holds_around_the_regression_on_accuracy_too(self):
        known, scores = np.linspace(0.5, 0.9, 8), np.array([0.3, -0.2, 1.1, 0.4, -0.9, 1.3, 0.2, 0.8])
        arguments = {"trials": None, "accuracy": 0.95, "accuracies": tuple(known)}
        slope, intercept, *_ = stats.linregress(known, scores)
        rss = ((scores - intercept - slope * known) ** 2).sum()
        leverage = 1 / 8 + (0.95 - known.mean()) ** 2 / ((known - known.mean()) ** 2).sum()
        deviation = np.sqrt((5 * 1.25**2 + rss) / 11 * (1 + leverage))
        wanted = stats.t.sf((4.0 - intercept - slope * 0.95) / deviation, df=11)
        assert parametric_p(4.0, scores, scatter=self.STATED, **arguments) == pytest.approx(wanted, rel=1e-9)


def test_parametric_p_is_never_zero():
    assert 0 < parametric_p(1e9, np.linspace(0, 1, 100), trials=None, scatter=Scatter(0.01)) < 1e-100


@pytest.mark.parametrize("shape", SHAPES)
def test_at_most_about_one_in_a_hundred_independents_gets_a_p_of_one_in_a_hundred(shape):
    p = t_interval_p(*independents(shape, 40_000), TRIALS, 0.0)
    assert (p <= 0.01).mean() <= 0.015
    assert (p <= 0.05).mean() <= 0.065


def plug_in_p(values, nulls):
    """The tail that is not used: a beta-binomial with moments estimated from the null as if they were known."""
    mean = np.clip(nulls.mean(axis=1), 0.005, 0.995)
    excess = (TRIALS * nulls.var(axis=1, ddof=1) / (mean * (1 - mean)) - 1) / (TRIALS - 1)
    rho = np.clip(excess, 1e-4, 0.99)
    a, b = mean * (1 - rho) / rho, (1 - mean) * (1 - rho) / rho
    counts = np.arange(TRIALS + 1)
    mass = stats.betabinom.pmf(counts, TRIALS, a[:, None], b[:, None])
    return np.where(counts >= np.rint(values * TRIALS)[:, None], mass, 0).sum(axis=1)


@pytest.mark.parametrize("shape", [(8, 12), (2, 3), (1, 8), (60, 60)])
def test_a_beta_binomial_fitted_to_the_null_rejects_too_often(shape):
    values, nulls = independents(shape, 10_000)
    p, ours = plug_in_p(values, nulls), t_interval_p(values, nulls, TRIALS, 0.0)
    assert (p <= 0.001).mean() >= 0.003
    assert (p <= 0.001).mean() >= 2 * (ours <= 0.001).mean()


def test_a_combined_p_of_one_method_is_its_own():
    assert combine([0.03]) == pytest.approx(0.03)


def test_combine_golden_value():
    assert combine([0.01, 0.05, 1.0]) == pytest.approx(3 / 121)
    assert combine([1.0, 1.0]) == 1.0


@pytest.mark.parametrize("k", [2, 3, 5])
def test_combine_keeps_its_level(k):
    p = np.random.default_rng(k).uniform(size=(200_000, k))
    harmonic = k / (1 / p).sum(axis=1)
    assert combine(list(p[0])) == pytest.approx(harmonic[0])
    assert (harmonic <= 0.01).mean() <= 0.0115
    assert combine([0.0123] * k) == pytest.approx(0.0123)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_combine_keeps_its_level_where_one_method_has_five_votes(k):
    p = np.random.default_rng(k).uniform(size=(200_000, k + 1))
    p = p[:, [0] * 5 + list(range(1, k + 1))]
    harmonic = (k + 5) / (1 / p).sum(axis=1)
    assert combine(list(p[0])) == pytest.approx(harmonic[0])
    assert (harmonic <= 0.01).mean() <= 0.0115


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("p", [1e-300, 1e-6, 0.01, 0.2])
def test_a_method_that_sees_nothing_costs_at_most_a_factor(p, k):
    assert combine([p] + [1.0] * (k - 1)) <= k * p


@pytest.mark.filterwarnings("error")
def test_combine_of_many_certain_methods_stays_positive():
    assert combine([float(np.finfo(float).tiny)] * 6) > 0


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_q_values_are_those_of_scipy(count):
    p = np.random.default_rng(count).uniform(size=count) ** 3
    np.testing.assert_allclose(q_values(p), stats.false_discovery_control(p))


def test_q_values_with_ties_and_without_findings():
    np.testing.assert_allclose(q_values([0.5, 0.01, 0.01]), stats.false_discovery_control([0.5, 0.01, 0.01]))
    assert q_values([]) == []


@pytest.mark.parametrize(
    ("p", "q", "wanted"),
    [
        (0.001, 0.01, Verdict.DERIVED),
        (0.001, 0.0100001, Verdict.SUSPECTED),
        (0.05, 0.05, Verdict.SUSPECTED),
        (0.0500001, 0.2, Verdict.INDEPENDENT),
        (1.0, 1.0, Verdict.INDEPENDENT),
        (None, None, Verdict.INCONCLUSIVE),
        (None, 0.001, Verdict.INCONCLUSIVE),
        (0.001, None, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_at_their_boundaries(p, q, wanted):
    assert verdict(p, q, 0.01) == wanted


def null(*scores, **more):
    return Null(scores, tuple(f"r{i}" for i in range(len(scores))), **more)


def test_too_few_independents_give_no_p():
    scores = (0.1, 0.2, 0.15, 0.12)
    assert calibrate.MIN_NULL == 4
    assert p_value(Score(0.9), None, scatter=NOTHING) == (None, None)
    assert p_value(Score(0.9), null(*scores[:3]), scatter=NOTHING) == (None, None)
    p, about = p_value(Score(0.9), null(*scores), scatter=NOTHING)
    assert p == parametric_p(0.9, np.array(scores), trials=None, scatter=NOTHING)
    assert about == {"n": 4, "mean": pytest.approx(0.1425), "max": 0.2, "conformal_p": 0.2}


def test_rates_are_judged_as_rates():
    scores = (0.1, 0.2, 0.15, 0.12)
    p, _ = p_value(Score(0.9, trials=50), null(*scores, fit=0.5), scatter=NOTHING)
    assert p == parametric_p(0.9, np.array(scores), trials=50, scatter=NOTHING)


def test_an_exact_test_goes_before_the_null():
    assert p_value(Score(0.9, p_value=1e-9), null(0.1, 0.2, 0.15, 0.12), scatter=NOTHING) == (1e-9, None)
    assert p_value(Score(0.9, p_value=1e-9), None, scatter=NOTHING) == (1e-9, None)


def test_an_exact_test_that_references_fail_is_set_aside():
    p, about = p_value(Score(0.2, p_value=1e-9), null(0.1, 0.2, 0.15, 0.12, related=True), scatter=NOTHING)
    assert p > 0.05
    assert about["exact_p"] == 1e-9
    p, about = p_value(Score(0.9, p_value=1e-9), null(0.1, related=True), scatter=NOTHING)
    assert p is None
    assert about["exact_p"] == 1e-9


def test_equal_scores_say_nothing_without_a_least_spread():
    """Equality of files, say: no reference has the victim's, and that a suspect has not either is no evidence."""
    same = null(0.0, 0.0, 0.0, 0.0, 0.0, accuracies=(0.7, 0.8, 0.75, 0.72, 0.81))
    p, about = p_value(Score(0.0), same, scatter=NOTHING, accuracy=0.8)
    assert p is None
    assert about["n"] == 5
    assert p_value(Score(0.3), null(*[0.3] * 5), scatter=NOTHING)[0] is None
    in_parts = null(*[0.3] * 5, parts=({"a": 0.3},) * 5, accuracies=(None,) * 5)
    assert p_value(Score(0.3, parts={"a": 0.9}), in_parts, scatter=NOTHING)[0] is None
    assert 0 < p_value(Score(0.0), same, scatter=Scatter(0.01), accuracy=0.8)[0] <= 1
    assert 0 < p_value(Score(0.0, trials=10), same, scatter=NOTHING, accuracy=0.8)[0] <= 1
    with pytest.raises(ValueError, match="5 equal scores"):
        parametric_p(0.0, np.zeros(5), trials=None, scatter=NOTHING)


def test_fit_is_told_apart_from_no_fit():
    rng = np.random.default_rng(0)
    assert goodness_of_fit([0.3] * 8, None) is None
    assert goodness_of_fit([0.3, 0.4, 0.5], None) is None
    normal = rng.normal(size=12)
    assert goodness_of_fit(normal, None) == pytest.approx(stats.shapiro(normal).pvalue)
    assert goodness_of_fit([*[0.1] * 11, 9.0], None) < 0.01
    rates = rng.uniform(size=12)
    wanted = stats.shapiro(np.arcsin(np.sqrt(rates))).pvalue
    assert goodness_of_fit(rates, 100) == pytest.approx(wanted)


class TestAccuracy:
    """Good models agree more with one another: the null is also taken at the suspect's accuracy."""

    KNOWN = np.array([0.60, 0.65, 0.70, 0.75, 0.80, 0.85])
    SCORES = np.array([0.51, 0.56, 0.59, 0.66, 0.69, 0.75])

    def at(self, value, accuracy, **more):
        arguments = {"trials": None, "scatter": Scatter(0.001), "accuracies": tuple(self.KNOWN), **more}
        return parametric_p(value, self.SCORES, accuracy=accuracy, **arguments)

    @pytest.mark.parametrize("value", [0.7, 0.8, 0.95])
    def test_is_the_prediction_interval_of_a_regression(self, value):
        """Oracle: ordinary least squares by the normal equations, scipy's t."""
        design = np.stack([np.ones(6), self.KNOWN], axis=1)
        beta, (rss,), *_ = np.linalg.lstsq(design, self.SCORES, rcond=None)
        new = np.array([1.0, 0.9])
        spread = np.sqrt(rss / 4 * (1 + new @ np.linalg.inv(design.T @ design) @ new))
        regressed = stats.t.sf((value - new @ beta) / spread, df=4)
        plain = self.at(value, None)
        assert self.at(value, 0.9) == pytest.approx(max(plain, regressed), rel=1e-9)

    def test_never_makes_a_score_more_suspicious(self):
        for accuracy in np.linspace(0.1, 1.0, 10):
            assert self.at(0.8, accuracy) >= self.at(0.8, None)

    def test_excuses_a_good_independent_and_not_a_copy(self):
        assert self.at(0.80, 0.90) > 0.3 > self.at(0.80, 0.70)
        assert self.at(1.0, 0.90) < 0.01

    def test_says_nothing_where_accuracies_are_missing_or_alike(self):
        plain = self.at(0.8, None)
        assert self.at(0.8, 0.9, accuracies=(0.7,) * 6) == plain
        assert self.at(0.8, 0.9, accuracies=(None, *self.KNOWN[1:])) == plain
        assert self.at(0.8, 0.9, accuracies=()) == plain


def null_in_parts(count=8, lacking=()):
    """Independents with two parts; those in ``lacking`` have only the first."""
    rng = np.random.default_rng(5)
    parts = [{"near": float(a), "far": float(b)} for a, b in rng.normal([0.5, 0.1], [0.05, 0.02], (count, 2))]
    parts = [{"near": row["near"]} if i in lacking else row for i, row in enumerate(parts)]
    scores = tuple(float(np.mean(list(row.values()))) for row in parts)
    return Null(scores, tuple("abcdefgh"[:count]), accuracies=(None,) * count, parts=tuple(parts))


def test_parts_are_judged_one_by_one():
    null = null_in_parts()
    score = Score(0.8, parts={"near": 0.9, "far": 0.1})
    p, about = p_value(score, null, scatter=Scatter(0.01))
    alone = {
        name: parametric_p(value, np.array([row[name] for row in null.parts]), trials=None, scatter=Scatter(0.01))
        for name, value in score.parts.items()
    }
    assert about["part_p"] == pytest.approx(alone)
    assert p == pytest.approx(combine(list(alone.values())))
    assert alone["near"] < 0.001 < 0.2 < alone["far"]


def test_a_part_that_too_few_independents_have_does_not_vote():
    score = Score(0.8, parts={"near": 0.9, "far": 5.0})
    _, about = p_value(score, null_in_parts(lacking=range(5)), scatter=Scatter(0.01))
    assert set(about["part_p"]) == {"near"}
    p, about = p_value(Score(0.8, parts={"other": 1.0}), null_in_parts(), scatter=Scatter(0.01))
    assert p is None
    assert about["n"] == 8


def drawn(n, methods, correlation, count, seed=0):
    """Scores of a suspect and n independents by methods that depend on each other: count x (1 + n) x methods."""
    mixing = np.linalg.cholesky(np.eye(methods) * (1 - correlation) + correlation)
    return np.random.default_rng(seed).normal(size=(count, 1 + n, methods)) @ mixing.T


def standardised_sum_p(scores, scale_of=lambda scores: scores):
    """The definition in ``joint``, vectorised; ``scale_of`` takes the models whose scatter makes the weights."""
    sums = (scores / scale_of(scores).std(axis=1, ddof=1, keepdims=True)).sum(axis=2)
    value, null = sums[:, 0], sums[:, 1:]
    n = null.shape[1]
    return stats.t.sf((value - null.mean(axis=1)) / (null.std(axis=1, ddof=1) * np.sqrt(1 + 1 / n)), df=n - 1)


def judged(table, scatter=NOTHING, trials=None, accuracies=()):
    """One table of scores, the suspect in row 0, a method a column."""
    names = tuple(f"r{i}" for i in range(len(table) - 1))
    return [
        Judged(Score(x, trials=trials), Null(tuple(null), names, accuracies=accuracies), scatter)
        for x, *null in table.T
    ]


class TestJoint:
    """Many small likenesses add up."""

    @pytest.mark.parametrize("correlation", [0.0, 0.6])
    def test_is_the_standardised_sum_test(self, correlation):
        tables = drawn(9, 4, correlation, 20) * [1.0, 7.0, 0.01, 2.0] + [0.0, 3.0, -1.0, 100.0]
        found = [joint(judged(table)) for table in tables]
        np.testing.assert_allclose([p for _, p, _ in found], standardised_sum_p(tables), rtol=1e-8)

    @pytest.mark.parametrize("n", [4, 8, 12])
    @pytest.mark.parametrize("methods", [2, 7])
    @pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7])
    def test_keeps_its_level_however_methods_depend(self, n, methods, correlation):
        p = standardised_sum_p(drawn(n, methods, correlation, 40_000))
        assert (p <= 0.01).mean() == pytest.approx(0.01, abs=0.002)
        assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.004)

    def test_weights_that_leave_the_suspect_out_reject_too_often(self):
        p = standardised_sum_p(drawn(8, 7, 0.0, 40_000), lambda scores: scores[:, 1:])
        assert (p <= 0.01).mean() >= 0.016

    @pytest.mark.parametrize("correlation", [0.0, 0.3])
    def test_finds_what_no_method_finds_alone(self, correlation):
        tables = drawn(12, 5, correlation, 300)
        tables[:, 0] += 1.75
        together = standardised_sum_p(tables)
        alone = [
            combine([parametric_p(x[0], x[1:], trials=None, scatter=NOTHING) for x in table.T]) for table in tables
        ]
        assert (together <= 0.01).mean() >= 1.3 * (np.array(alone) <= 0.01).mean()

    @pytest.mark.parametrize("correlation", [0.0, 0.5])
    def test_a_vote_among_those_of_its_methods_keeps_the_level(self, correlation):
        tables = drawn(12, 5, correlation, 40_000)
        alone = [t_interval_p(tables[:, 0, m], tables[:, 1:, m], None, 0.0) for m in range(5)]
        votes = np.stack([*alone, standardised_sum_p(tables)], axis=1)
        harmonic = 6 / (1 / votes).sum(axis=1)
        assert (harmonic <= 0.01).mean() <= 0.013

    def test_the_same_method_twice_adds_nothing(self):
        (table,) = drawn(10, 1, 0.0, 1)
        _, p, _ = joint(judged(np.repeat(table, 3, axis=1)))
        assert p == pytest.approx(parametric_p(table[0, 0], table[1:, 0], trials=None, scatter=NOTHING))

    def test_says_what_it_was_judged_against(self):
        (table,) = drawn(10, 3, 0.0, 1)
        table[0] += 9
        value, p, about = joint(judged(table))
        scaled = (table - table[1:].mean(axis=0)) / table.std(axis=0, ddof=1)
        assert value == pytest.approx(scaled[0].mean())
        assert about == pytest.approx({"n": 10, "mean": 0, "max": scaled[1:].mean(axis=1).max(), "conformal_p": 1 / 11})
        assert p < 1e-4

    def test_scatters_no_less_than_its_methods_may(self):
        """Independents that happen to be alike in all methods do not make a small difference certain."""
        (table,) = drawn(10, 4, 0.0, 1) * 1e-6
        table[0] += 0.1
        _, p, _ = joint(judged(table, scatter=Scatter(0.1)))
        assert p == pytest.approx(stats.t.sf(2 / np.sqrt(1.1), 9), rel=1e-3)

    def test_rates_are_compared_on_their_scale(self):
        rng = np.random.default_rng(3)
        table = rng.binomial(50, 0.3, (13, 3)) / 50
        table[0] = 0.6
        value, _, _ = joint(judged(table, trials=50))
        mapped = np.arcsin(np.sqrt(table))
        scale = np.maximum(mapped.std(axis=0, ddof=1), 0.5 / np.sqrt(50))
        assert value == pytest.approx(((mapped[0] - mapped[1:].mean(axis=0)) / scale).mean())

    def test_a_good_model_is_compared_with_good_ones(self):
        known = np.linspace(0.6, 0.9, 12)
        (table,) = drawn(12, 3, 0.0, 1) * 0.01
        table += np.append(0.9, known)[:, None]
        items = judged(table, accuracies=tuple(known))
        assert joint(items, accuracy=0.9)[1] > 0.1 > joint(items)[1]

    def test_uses_independents_that_all_methods_know(self):
        (table,) = drawn(8, 2, 0.0, 1)
        first, second = judged(table)
        kept = (0, 2, 3, 5, 7)
        fewer = Null(tuple(second.null.scores[i] for i in kept), tuple(second.null.names[i] for i in kept))
        _, p, about = joint([first, Judged(second.score, fewer, NOTHING)])
        assert about["n"] == 5
        assert p == pytest.approx(standardised_sum_p(table[[[0, *(i + 1 for i in kept)]]])[0])
        few = Null(second.null.scores[:3], second.null.names[:3])
        assert joint([first, Judged(second.score, few, NOTHING)]) is None

    def test_equal_scores_of_the_independents_that_are_left_add_nothing(self):
        (table,) = drawn(8, 3, 0.0, 1)
        first, second, _ = judged(table)
        flat = Judged(Score(0.3), Null((0.3,) * 8 + (0.9,), (*first.null.names, "elsewhere")), NOTHING)
        assert flat.by_null
        assert joint([first, second, flat])[1] == pytest.approx(joint([first, second])[1])
        assert joint([flat, flat, Judged(Score(0.3), Null((0.3,) * 8, first.null.names), NOTHING)]) is None

    def test_a_stated_deviation_makes_no_equal_scores_differ(self):
        (table,) = drawn(8, 3, 0.0, 1)
        first, second, _ = judged(table)
        flat = Judged(Score(0.3), Null((0.3,) * 8, first.null.names), Scatter(expected=1.25, degrees=5))
        assert flat.by_null
        assert joint([first, second, flat])[1] == pytest.approx(joint([first, second])[1])

    def test_needs_two_methods(self):
        (table,) = drawn(8, 1, 0.0, 1)
        assert joint([]) is None
        assert joint(judged(table)) is None

    def test_only_what_independents_judge_takes_part(self):
        same, scattered = null(*[0.2] * 5), null(0.1, 0.2, 0.3, 0.2, 0.1)
        assert Judged(Score(0.5), scattered, NOTHING).by_null
        assert not Judged(Score(0.5), same, NOTHING).by_null
        assert Judged(Score(0.5), same, Scatter(0.1)).by_null
        assert not Judged(Score(0.5, p_value=0.1), scattered, Scatter(0.1)).by_null
        assert not Judged(Score(0.5, parts={"near": 0.5}), scattered, Scatter(0.1)).by_null
        assert not Judged(Score(0.5), null(0.1, 0.2, 0.3), Scatter(0.1)).by_null
