"""A suspect that answers at random is noticed, asked several times and judged by its mean answer."""

from __future__ import annotations

import numpy as np
import pytest

from fp_audit import victims
from fp_audit.comparison import compare
from fp_audit.model import Averaged, LabelOnly, LoadOptions, TopK
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.types import Access

METHODS = ("negatives", "sac")


class Noisy:
    """A model behind noise that is drawn anew for each query."""

    def __init__(self, model, size):
        self._model, self._size, self._rng = model, size, np.random.default_rng(0)
        self.spec, self.classes, self.output = model.spec, model.classes, model.output

    def predict(self, images):
        answers = self._model.predict(images)
        return answers + self._size * self._rng.standard_normal(answers.shape).astype(np.float32)


@pytest.fixture(scope="module")
def model(registered):
    located = locate_one(str(registered.models / "thief" / "fine-tuned"), SourceOptions())
    return adapter(located.artifact.adapter).load(located.source.fetch(located.artifact), LoadOptions())


@pytest.fixture(scope="module")
def victim(registered):
    return victims.load(victims.folder("owner"), METHODS)


def found(model, victim, **options):
    return compare(Subject.of_model(model), victim, METHODS, Access.QUERIES, **options)


def test_a_model_that_does_not_answer_at_random_is_asked_once(model, victim):
    compared = found(model, victim)
    assert "random" not in compared.detail
    asked = len(victim.probes.pixels) + 8 + len(victim.fingerprints["negatives"].arrays["queries"])
    assert compared.queries == asked


@pytest.mark.parametrize("shown", [lambda m: m, LabelOnly, lambda m: TopK(m, 3)])
def test_a_model_that_does_is_asked_several_times(model, victim, shown):
    compared = found(shown(Noisy(model, 3.0)), victim, repeats=5)
    assert 0 < compared.detail["random"]["changed"] <= 1
    assert compared.detail["random"]["repeats"] == 5
    assert compared.queries > 5 * len(victim.fingerprints["negatives"].arrays["queries"])


def test_the_mean_answer_is_nearer_to_the_model_underneath(model, victim):
    plain = found(model, victim).scores
    once, often = (found(Noisy(model, 3.0), victim, repeats=times).scores for times in (1, 30))
    for name in METHODS:
        assert abs(often[name].value - plain[name].value) < abs(once[name].value - plain[name].value)


def test_rounding_is_not_randomness(model, victim):
    assert "random" not in found(Noisy(model, 1e-5), victim).detail


def test_the_commonest_label_is_taken(model):
    images = np.random.default_rng(1).random((20, 1, 8, 8), dtype=np.float32)
    answers = Averaged(LabelOnly(Noisy(model, 0.5)), 25).predict(images)
    assert set(np.unique(answers)) == {0.0, 1.0}
    assert (answers.sum(axis=1) == 1).all()
    assert (answers.argmax(axis=1) == model.predict(images).argmax(axis=1)).mean() > 0.8
