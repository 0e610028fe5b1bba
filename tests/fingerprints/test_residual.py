"""Deviations from innocent models: oracle, invariances, behaviour on models whose history is known."""

from __future__ import annotations

import numpy as np
import pytest

from fp_audit.errors import UsageError
from fp_audit.fingerprints._queries import read
from fp_audit.fingerprints.residual import Residual, shared, similarity, unit

N, K, R = 40, 5, 8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def task(rng):
    """What the task teaches: logits that all models share."""
    return 3 * rng.standard_normal((N, K))


@pytest.fixture
def innocents(rng, task):
    return np.stack([task + rng.standard_normal((N, K)) for _ in range(R)]).astype(np.float32)


def model(rng, task, secret=0.0):
    return (task + secret + rng.standard_normal((N, K))).astype(np.float32)


def slow(theirs, own, innocents):
    """The formulas of the docstring, entry by entry."""

    def centred_unit(z):
        z = [[value - sum(row) / K for value in row] for row in np.asarray(z, float).tolist()]
        lengths = sorted(sum(value**2 for value in row) ** 0.5 for row in z)
        size = (lengths[N // 2 - 1] + lengths[N // 2]) / 2
        return [[value / size for value in row] for row in z]

    others = [centred_unit(each) for each in innocents]
    mean = [[sum(o[i][k] for o in others) / R for k in range(K)] for i in range(N)]
    variance = [sum((o[i][k] - mean[i][k]) ** 2 for o in others for k in range(K)) / K / (R - 1) for i in range(N)]
    overall = sum(variance) / N
    spread = [((R * v + 4 * overall) / (R + 4)) ** 0.5 for v in variance]

    def residual(z):
        z = centred_unit(z)
        top = sum(z[i][k] * mean[i][k] / spread[i] ** 2 for i in range(N) for k in range(K))
        slope = top / sum(mean[i][k] ** 2 / spread[i] ** 2 for i in range(N) for k in range(K))
        return [min(5, max(-5, (z[i][k] - slope * mean[i][k]) / spread[i])) for i in range(N) for k in range(K)]

    span = np.array([[(o[i][k] - mean[i][k]) / spread[i] for i in range(N) for k in range(K)] for o in others]).T
    complement = lambda r: np.array(r) - span @ np.linalg.lstsq(span, np.array(r), rcond=None)[0]  # noqa: E731
    a, b = complement(residual(theirs)), complement(residual(own))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def test_as_its_formulas_entry_by_entry(rng, task, innocents):
    own, theirs = model(rng, task), model(rng, task)
    assert similarity(theirs, "logits", (own, "logits"), innocents) == pytest.approx(slow(theirs, own, innocents))


def test_a_copy_is_one_and_innocents_are_near_nothing(rng, task, innocents):
    own = model(rng, task)
    assert similarity(own, "logits", (own, "logits"), innocents) == pytest.approx(1.0)
    assert similarity(own, "labels", (own, "logits"), innocents) == pytest.approx(1.0)
    others = [similarity(model(rng, task), "logits", (own, "logits"), innocents) for _ in range(50)]
    assert abs(np.mean(others)) < 2 / R  # the error of the innocents' mean is in both residuals
    assert max(others) < 0.5


def test_what_the_victim_passes_on_is_found_where_plain_cosines_are_alike(rng, task, innocents):
    secret = rng.standard_normal((N, K))
    own = model(rng, task, secret)
    stolen = [similarity(model(rng, task, 0.7 * secret), "logits", (own, "logits"), innocents) for _ in range(30)]
    innocent = [similarity(model(rng, task), "logits", (own, "logits"), innocents) for _ in range(30)]
    assert np.mean(np.array(stolen)[:, None] > np.array(innocent)) > 0.9


def test_what_innocents_of_one_architecture_share_is_no_evidence(rng, task):
    shape = 2 * rng.standard_normal((N, K))
    others = np.stack([model(rng, task, shape * (i % 2)) for i in range(R)])
    own = model(rng, task, shape)
    found = [similarity(model(rng, task, shape), "logits", (own, "logits"), others) for _ in range(20)]
    assert max(found) < 0.5


@pytest.mark.parametrize("change", [lambda z: 7 * z, lambda z: z + 3])
def test_temperature_and_offset_change_nothing(rng, task, innocents, change):
    own, theirs = model(rng, task), model(rng, task)
    plain = similarity(theirs, "logits", (own, "logits"), innocents)
    assert similarity(change(theirs), "logits", (own, "logits"), innocents) == pytest.approx(plain, abs=1e-5)


def test_what_a_suspect_hides_is_hidden_of_all(rng, task, innocents):
    from fp_audit.model import as_probabilities

    own = model(rng, task)
    probabilities = as_probabilities(own, "logits")
    top = np.where(probabilities >= np.sort(probabilities, axis=1)[:, [-3]], probabilities, 0).astype(np.float32)
    assert similarity(top, "topk", (own, "logits"), innocents) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(read(top, "topk", "topk"), read(own, "logits", "topk"), atol=1e-6)


def test_one_odd_answer_does_not_decide(rng, task, innocents):
    own, theirs = model(rng, task), model(rng, task)
    theirs[0] = own[0] = [100, -100, 0, 0, 0]
    assert abs(similarity(theirs, "logits", (own, "logits"), innocents)) < 0.5


def test_the_spread_of_few_is_drawn_towards_that_of_all():
    answers = [np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([[1.0, -1.0], [-2.0, 2.0]])]
    _, spread = shared(answers)
    assert 0 < spread[0, 0] < spread[1, 0]
    assert unit(np.zeros((2, 2))).sum() == 0


def test_too_few_innocents_are_refused():
    with pytest.raises(UsageError, match="residual: independents is 3; expected 4 or more"):
        Residual(independents=3)
