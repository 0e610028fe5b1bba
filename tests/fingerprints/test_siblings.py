"""Nearer to the victim than to its siblings: oracle, level, power, and victims that are not one of them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtr
from training import train_here

from fixtures import digits
from fp_audit import Plan, networks, registration, victims
from fp_audit.calibrate import parametric_p
from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints import siblings
from fp_audit.fingerprints.siblings import (
    MANY,
    RIDGE,
    Deviations,
    Siblings,
    as_of_many,
    coefficients,
    information,
    nearer,
    passed_on,
    standing,
    strange,
)
from fp_audit.methods import chosen, kind
from fp_audit.model import as_probabilities
from fp_audit.types import InputSpec
from fp_audit.workshop import Workshop

N, K, R, J = 100, 6, 12, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class World:
    """A task, and models of it: siblings share a style, others have their own."""

    def __init__(self, rng):
        self.rng = rng
        self.task, self.style = 2 * rng.standard_normal((N, K)), rng.standard_normal((N, K))
        self.family = self.draw(R + 1, self.style)
        self.varied = np.stack([self.draw(1, rng.standard_normal((N, K)))[0] for _ in range(J)])

    def draw(self, count, style, passed_on=0.0):
        return self.task + style + passed_on + self.rng.standard_normal((count, N, K))

    @property
    def own(self):
        return self.family[0] - self.task - self.style

    def score(self, theirs, shown="logits"):
        return nearer(theirs.astype(np.float32), shown, self.family, self.varied)


def labels(answers):
    return np.eye(K)[answers.argmax(axis=1)]


def test_coefficients_are_those_of_a_ridge_regression_with_errors_by_query(rng):
    n, k, m = 7, 3, 4
    suspect, models, common = (rng.standard_normal(shape) for shape in ((n, k), (m, n, k), (2, n, k)))
    constant = rng.uniform(0.5, 2, n)
    classes = [np.outer(constant, np.eye(k)[c]).ravel() for c in range(k)]
    known = np.array([*classes, *(each.ravel() for each in common)]).T
    left = [each.ravel() - known @ np.linalg.lstsq(known, each.ravel(), rcond=None)[0] for each in (suspect, *models)]
    y, x = left[0], np.array(left[1:]).T
    strength = RIDGE * (x**2).sum() / m
    inverse = np.linalg.inv(x.T @ x + strength * np.eye(m))
    meat = np.zeros((m, m))
    for query in range(n):
        rows = slice(query * k, (query + 1) * k)
        score = x[rows].T @ y[rows]
        meat += np.outer(score, score)
    expected = inverse @ x.T @ y / np.sqrt(np.diag(inverse @ meat @ inverse))
    np.testing.assert_allclose(coefficients(Deviations(suspect, models, common, constant)), expected)


def test_standing_is_the_t_statistic_of_one_more():
    assert standing(np.array([5.0, 1.0, 2.0, 3.0])) == pytest.approx(3 / np.sqrt(1 + 1 / 3))
    assert standing(np.array([5.0, 1.0, 1.0, 1.0])) == 0.0


@pytest.mark.parametrize("count", [4, 5, 8, 16, 40])
def test_the_score_means_the_same_however_many_siblings_there_are(count):
    """Oracle: quantiles of scipy's t distributions."""
    for value in (-3.0, 0.0, 0.5, 12.0):
        wanted = stats.t.isf(stats.t.sf(value, count - 1), 15)
        assert as_of_many(value, count) == pytest.approx(wanted, abs=1e-9)
    assert as_of_many(7.25, 16) == pytest.approx(7.25)
    assert np.isfinite(as_of_many(1e6, 400))


@pytest.mark.parametrize("count", [4, 5, 8, 16])
def test_verdicts_keep_their_level_however_few_siblings_there_are(count):
    """Innocent models among which the siblings deviate by chance, and twelve references that do too."""
    drawn = np.random.default_rng(count).standard_t(count - 1, size=(4000, 13))
    scores = np.array([[as_of_many(value, count) for value in row] for row in drawn])
    p_values = [parametric_p(x[0], x[1:], trials=None, scatter=Siblings.scatter) for x in scores]
    assert np.mean(np.array(p_values) <= 0.01) <= 0.012
    assert np.mean(np.array(p_values) <= 0.0005) <= 0.0015


@pytest.mark.parametrize("shown", ["logits", "labels"])
@pytest.mark.parametrize("kin", ["a sibling", "another architecture", "better at the task"])
def test_innocents_are_as_near_to_the_victim_as_to_its_siblings(rng, shown, kin):
    found = []
    for _ in range(400):
        world = World(rng)
        style = {"a sibling": world.style, "better at the task": 0}.get(kin, rng.standard_normal((N, K)))
        (theirs,) = world.draw(1, style)
        found.append(world.score(labels(theirs) if shown == "labels" else theirs, shown))
    p_values = stdtr(MANY - 1, -np.array(found))
    assert abs(np.mean(found)) < 0.2
    assert 0.02 < (p_values < 0.05).mean() < 0.08
    assert (p_values < 0.01).mean() < 0.025


@pytest.mark.parametrize(("shown", "share"), [("logits", 0.3), ("labels", 0.6)])
def test_what_the_victim_passed_on_is_found_in_any_architecture(rng, shown, share):
    found = []
    for _ in range(20):
        world = World(rng)
        (theirs,) = world.draw(1, rng.standard_normal((N, K)), share * world.own)
        found.append(world.score(labels(theirs) if shown == "labels" else theirs, shown))
    assert np.median(found) > 3
    assert min(found) > 0


def test_a_copy_is_farther_from_innocents_than_any_other(rng):
    world = World(rng)
    copy = world.score(world.family[0])
    assert copy > 20 > world.score(world.draw(1, world.style, 0.5 * world.own)[0]) > 3
    assert world.score(world.family[3]) < 0  # a sibling is nearest to itself


def test_temperature_and_offset_change_nothing(rng):
    world = World(rng)
    (theirs,) = world.draw(1, world.style, 0.3 * world.own)
    assert world.score(7 * theirs + 3) == pytest.approx(world.score(theirs), rel=1e-3)


def test_probabilities_say_what_logits_say_and_the_three_largest_less(rng):
    world = World(rng)
    (theirs,) = world.draw(1, world.style, 0.5 * world.own)
    probabilities = as_probabilities(theirs.astype(np.float32), "logits")
    assert world.score(probabilities, "probabilities") == pytest.approx(world.score(theirs), rel=1e-2)
    third = np.sort(probabilities, axis=1)[:, [-3]]
    assert world.score(np.where(probabilities >= third, probabilities, 0), "topk") > 3


def test_a_suspect_that_always_says_the_same_is_no_surrogate(rng):
    world = World(rng)
    for shown, answer in (("labels", np.eye(K)[0]), ("logits", np.zeros(K)), ("probabilities", np.full(K, 1 / K))):
        assert abs(world.score(np.tile(answer, (N, 1)), shown)) < 3


def test_queries_are_where_the_victim_alone_leans_to_a_likely_label():
    even, sure = np.zeros(3), np.array([9.0, 0.0, 0.0])
    siblings = np.tile(np.stack([even, sure, even]), (4, 1, 1))
    victim = np.stack([[2.0, 0.0, 0.0], [11.0, 0.0, 0.0], even])
    models = np.concatenate([victim[None], siblings])
    told = information(models, siblings)
    assert told[0] > 0.1 > 10 * told[1]
    assert told[2] == pytest.approx(0, abs=1e-12)
    surer = information(models, siblings + np.array([0.0, 9.0, 0.0]))
    assert surer[0] < told[0]  # other innocent models do not hesitate there


class TestPassedOn:
    """Deviations, and what others would learn of them."""

    @pytest.fixture
    def features(self, rng):
        return rng.standard_normal((600, 8))

    def test_what_follows_from_features_gains_on_what_does_not(self, rng, features):
        learnable = np.einsum("nd,mdk->mnk", features, rng.standard_normal((5, 8, K))) / np.sqrt(8)
        own = rng.standard_normal((5, 600, K))
        chosen = np.sort(rng.permutation(600)[:50])
        mean = rng.standard_normal((600, K))
        found = passed_on(mean + learnable + own, features, chosen)
        np.testing.assert_allclose(found.mean(axis=0), (mean + (learnable + own).mean(axis=0))[chosen])

        def share(part, whole):
            part, whole = (each - each.mean(axis=0) for each in (part, whole))
            return (part * whole).sum() / np.linalg.norm(part) / np.linalg.norm(whole)

        assert share(learnable[:, chosen], found) > share(learnable[:, chosen], (learnable + own)[:, chosen]) + 0.05
        away = found - found.mean(axis=0)
        before = (learnable + own)[:, chosen] - (learnable + own)[:, chosen].mean(axis=0)
        assert np.linalg.norm(away) == pytest.approx(np.linalg.norm(before), rel=0.15)

    def test_it_is_a_ridge_regression_on_the_other_candidates(self, rng, features, monkeypatch):
        monkeypatch.setattr(siblings, "LEARNT", 1.0)
        models, chosen = rng.standard_normal((4, 600, K)), np.arange(0, 600, 7)
        rest = np.setdiff1d(np.arange(600), chosen)
        known = np.hstack([(features - features.mean(0)) / (features.std(0) + 1e-6) / np.sqrt(8), np.ones((600, 1))])
        away = models - models.mean(axis=0)
        expected = []
        for each in away:
            padded = np.vstack([known[rest], np.eye(9)]), np.vstack([each[rest], np.zeros((9, K))])
            expected.append(known[chosen] @ np.linalg.lstsq(*padded, rcond=None)[0])
        found = passed_on(models, features, chosen) - models.mean(axis=0)[chosen]
        ratio = np.linalg.norm(away[:, chosen]) / np.linalg.norm(expected)
        np.testing.assert_allclose(found, ratio * np.stack(expected), atol=1e-9)


class TestStrange:
    """Whether the victim passes for one of its siblings."""

    @pytest.fixture
    def right(self, rng):
        return rng.integers(K, size=400)

    def models(self, rng, right, count, *, strength=1.0, noise=2.0, style=0.0):
        images = strength * 3 * np.eye(K)[right] + noise * rng.standard_normal((count, 400, K))
        blends = strength * 2 * np.eye(K)[right] + noise * rng.standard_normal((count, 400, K))
        return np.concatenate([images, blends], axis=1) + style

    def test_one_of_them_passes(self, rng, right):
        refused = [strange(self.models(rng, right, R + 1), right) for _ in range(100)]
        assert sum(bool(why) for why in refused) <= 5

    @pytest.mark.parametrize(
        ("victim", "says"),
        [
            ({"strength": 1.3}, "images they get right|confidence"),
            ({"strength": 1.5, "noise": 3.0}, "confidence"),
            ({"style": "own"}, "distance|agreement|confidence|right"),
        ],
    )
    def test_another_recipe_is_noticed(self, rng, right, victim, says):
        if victim.get("style"):
            victim = {"style": 1.5 * rng.standard_normal((800, K))}
        models = np.concatenate([self.models(rng, right, 1, **victim), self.models(rng, right, R)])
        assert any(word in strange(models, right) for word in says.split("|"))


class Black:
    """A model whose answers are known."""

    spec, classes = InputSpec(1, 8, 8), None

    def __init__(self, accuracy=1.0, output="logits"):
        pixels, right = digits.digits()
        wrong = np.random.default_rng(0).permutation(len(right))[: round((1 - accuracy) * len(right))]
        right = right.copy()
        right[wrong] = (right[wrong] + 1) % 10
        self.output, self._known = output, {image.tobytes(): label for image, label in zip(pixels, right, strict=True)}

    def predict(self, images):
        stored = np.rint(images * 255).astype(np.uint8)
        return np.eye(10, dtype=np.float32)[[self._known.get(image.tobytes(), 0) for image in stored]]


@pytest.fixture(scope="module")
def data():
    pixels, right = digits.digits()
    return Labelled(pixels[:500], right[:500], None, "digits")


def test_how_long_siblings_are_trained_follows_from_what_the_victim_gets_right(data, monkeypatch, tmp_path):
    reached = {0.5: 0.6, 1.0: 0.8, 2.0: 0.9, 4.0: 0.88}
    asked = []

    def trained(self, purpose, *, count, effort, **others):
        asked.append((purpose, count, effort))
        return [Black(reached.get(effort, 0.85))] * count

    monkeypatch.setattr(Workshop, "_trained", trained)
    workshop = Workshop(cache=tmp_path, architecture=object())
    workshop.siblings(Black(0.85), data, 16, seed=0)
    *trials, (purpose, count, effort) = asked
    assert trials == [("trial", 1, each) for each in reached]
    assert (purpose, count) == ("sibling", 16)
    assert 1.2 < effort < 1.8


def test_siblings_that_were_given_are_used_and_without_an_architecture_there_are_none(data):
    given = (Black(), Black())
    assert Workshop(given=given).siblings(Black(), data, 16, seed=0) == given
    with pytest.raises(NotApplicable, match=r"cannot be trained here.*pass --siblings"):
        Workshop().siblings(Black(), data, 16, seed=0)


def test_too_few_siblings_are_refused():
    with pytest.raises(UsageError, match="siblings: siblings is 3; expected 4 or more"):
        Siblings(siblings=3)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A victim and four siblings by its recipe."""
    folder = tmp_path_factory.mktemp("family")
    for i in range(5):
        digits.write_onnx(folder / f"{i}.onnx", seed=40 + i, epochs=6)
    return folder


@pytest.fixture
def plan(family, digit_models, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 2_000)
    monkeypatch.setattr(networks, "_train_in_processes", train_here)
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))

    def make(siblings, **options):
        chosen = {"methods": ("siblings",), "queries": 30, "train_references": 4, **options}
        return Plan(str(family / "0.onnx"), "mine", str(digit_models.data), siblings=tuple(siblings), **chosen)

    return make


def test_registered_with_siblings_in_a_folder(plan, family, tmp_path):
    folder = shutil.copytree(family, tmp_path / "siblings", ignore=shutil.ignore_patterns("0.onnx"))
    victim = registration.build(plan([str(folder)]))
    fingerprint = victim.fingerprints["siblings"]
    assert fingerprint.arrays["models"].shape == (5, 30, 10)
    assert fingerprint.facts["siblings"] == 4
    null = victim.nulls["siblings"].scores
    assert victim.facts["own_scores"]["siblings"]["value"] > max(null) + 3
    victims.save(victim, victims.folder("mine"))
    assert victims.load(victims.folder("mine")).nulls["siblings"].scores == null


def test_a_sibling_is_no_reference(plan, family, tmp_path):
    folder = shutil.copytree(family, tmp_path / "siblings", ignore=shutil.ignore_patterns("0.onnx"))
    with pytest.raises(UsageError, match=r"is also in --siblings; each model counts once"):
        registration.build(replace(plan([str(folder)]), references=(str(folder / "2.onnx"),)))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (["0.onnx", "1.onnx", "2.onnx", "3.onnx"], "are the same model"),
        (["1.onnx", "2.onnx"], "2 siblings are too few"),
    ],
)
def test_siblings_that_are_none_leave_the_method_out_and_say_why(plan, family, named, says):
    told = []
    with pytest.raises(UsageError, match="no method could be registered"):
        registration.build(plan(str(family / name) for name in named), progress=lambda what, done: told.append(what))
    assert any("siblings is left out" in what and says in what for what in told)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "holds no model"),
        ({"a.onnx": b"not a model"}, "is no ONNX file"),
        ({"pytorch_model.bin": b"pickle"}, "pickle|bin"),
    ],
)
def test_siblings_that_cannot_be_opened(plan, tmp_path, content, says):
    (tmp_path / "none").mkdir()
    for name, data in content.items():
        (tmp_path / "none" / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"--siblings .*({says})"):
        registration.build(plan([str(tmp_path / "none")]))


def test_siblings_that_no_method_uses_are_refused(plan, family):
    with pytest.raises(UsageError, match="name it in --methods too"):
        registration.build(plan([str(family / "1.onnx")], methods=("negatives",)))


def test_siblings_make_their_method_a_default():
    assert "siblings" in [method.name for method in chosen((), queries=None, data=True, siblings=True)]
    assert "siblings" not in [method.name for method in chosen((), queries=None, data=True)]


def test_another_reading_of_its_queries_has_one_vote():
    assert kind("siblings").votes == 5
    assert kind("siblings+labels+hamming").votes == 1


def test_siblings_make_no_other_fingerprint_anew(plan, family, tmp_path):
    def cached():
        return {path.name for path in (tmp_path / "home" / "cache" / "fingerprints").iterdir()}

    named = [str(family / f"{i}.onnx") for i in range(1, 5)]
    registration.generate(plan([], methods=("negatives",)))
    before = cached()
    made = registration.generate(plan(named, methods=("negatives", "siblings")))
    assert set(made) == {"negatives", "siblings"}
    assert len(cached() - before) == len(before)
