"""Sample correlation: a loop as an oracle, CutMix, and indifference to the order of classes."""

import numpy as np
import pytest
from contract.test_methods import Tiny, data, network, subject

from fp_audit.errors import CorruptModel
from fp_audit.fingerprints.sac import Sac, _cutmix
from fp_audit.model import LabelOnly, Reordered, as_images, as_probabilities

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)
KEPT = Sac(queries=15).generate(subject(VICTIM), DATA, seed=0)


def score(model, kept=KEPT):
    return Sac().compare(kept, subject(VICTIM).seen_as(model)).value


def correlation_by_loop(model, queries):
    answers = [as_probabilities(model.predict(as_images(q[None])), "logits")[0].astype(float) for q in queries]
    size = [sum(x * x for x in a) ** 0.5 for a in answers]
    pairs = range(len(answers))
    return [[(1 - (answers[i] @ answers[j]) / size[i] / size[j]) / 2 for j in pairs] for i in pairs]


def test_the_score_is_that_of_a_loop():
    queries = KEPT.arrays["queries"]
    ours, theirs = correlation_by_loop(VICTIM, queries), correlation_by_loop(OTHER, queries)
    np.testing.assert_allclose(KEPT.arrays["correlation"], ours, atol=1e-6)
    wanted = 1 - np.mean([abs(a - b) for r, s in zip(ours, theirs, strict=True) for a, b in zip(r, s, strict=True)])
    assert score(OTHER) == pytest.approx(wanted, abs=1e-6)


def test_golden_value():
    assert score(VICTIM) == pytest.approx(1)
    kept = Sac(queries=2, cutmix=True).generate(subject(VICTIM).seen_as(LabelOnly(VICTIM)), DATA, seed=1)
    a, b = np.array([1.01, 0.01, 0.01, 0.01, 0.01]), np.array([0.01, 1.01, 0.01, 0.01, 0.01])
    apart = (1 - a @ b / (a @ a)) / 2
    labels = VICTIM.predict(as_images(kept.arrays["queries"])).argmax(axis=1)
    assert kept.arrays["correlation"][0, 1] == pytest.approx(apart if labels[0] != labels[1] else 0, abs=1e-6)


def test_the_order_of_classes_does_not_matter():
    assert score(Reordered(VICTIM, [3, 1, 0, 4, 2], None)) == pytest.approx(1)


def test_other_numbers_of_classes_can_be_compared():
    assert 0 < score(Tiny(network(3, classes=9))) < 1


def test_cutmix_pastes_one_box_for_the_whole_batch():
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 10, 10), np.uint8)
    mixed = _cutmix(pixels, 8, 0.3, np.random.default_rng(0))
    assert mixed.shape == (8, 3, 10, 10)
    own = [np.bincount(image.ravel()).argmax() for image in mixed]
    boxes = {tuple(np.argwhere((image != i).any(axis=0)).ravel()) for image, i in zip(mixed, own, strict=True)} - {()}
    assert len(boxes) == 1
    assert len(boxes.pop()) == 2 * 9
    assert all(len(np.unique(image)) <= 2 for image in mixed)
    assert pixels.std(axis=(1, 2, 3)).max() == 0


def test_cutmix_uses_no_labels_and_follows_its_seed():
    method = Sac(queries=9, cutmix=True)
    kept = method.generate(subject(VICTIM), DATA, seed=0)
    shuffled = method.generate(subject(VICTIM), data(VICTIM, wrong=1.0), seed=0)
    np.testing.assert_array_equal(kept.arrays["queries"], shuffled.arrays["queries"])
    other = method.generate(subject(VICTIM), DATA, seed=1)
    assert not np.array_equal(kept.arrays["queries"], other.arrays["queries"])
    assert kept.facts == {"queries": 9}
    assert score(VICTIM, kept) == pytest.approx(1)


def test_answers_that_are_no_numbers_are_a_corrupt_model():
    broken = Tiny(network(0))
    broken.predict = lambda images: np.full((len(images), 5), np.nan, np.float32)
    with pytest.raises(CorruptModel):
        score(broken)
