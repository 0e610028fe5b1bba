"""Negatives: which images are chosen, and agreement against a loop."""

import numpy as np
import pytest
from contract.test_methods import SHAPE, Tiny, data, network, subject

from fp_audit.errors import DataError
from fp_audit.fingerprints._queries import BLEND, MARGINS, hard_queries, predict_pixels
from fp_audit.fingerprints.negatives import Negatives
from fp_audit.model import as_images

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)


class Fixed:
    output, classes, spec = "logits", None, None

    def __init__(self, labels):
        self.labels = labels

    def predict(self, images):
        return np.eye(5, dtype=np.float32)[self.labels[: len(images)]]


def generate(queries, images=DATA, seed=0):
    return Negatives(queries=queries).generate(subject(VICTIM), images, seed=seed)


def test_golden_value():
    kept = generate(10)
    labels = kept.arrays["labels"].copy()
    labels[:3] = (labels[:3] + 1) % 5
    score = Negatives().compare(kept, subject(VICTIM).seen_as(Fixed(labels)))
    assert (score.value, score.queries, score.trials) == (0.7, 10, 10)


def test_the_score_is_the_agreement_of_a_loop():
    kept = generate(20)
    ours = [int(VICTIM.predict(as_images(q[None])).argmax()) for q in kept.arrays["queries"]]
    theirs = [int(OTHER.predict(as_images(q[None])).argmax()) for q in kept.arrays["queries"]]
    assert kept.arrays["labels"].tolist() == ours
    wanted = sum(a == b for a, b in zip(ours, theirs, strict=True)) / 20
    assert Negatives().compare(kept, subject(OTHER)).value == pytest.approx(wanted)


def test_queries_are_mistakes_of_the_victim():
    kept = generate(20)
    for query, label in zip(kept.arrays["queries"], kept.arrays["labels"], strict=True):
        where = np.flatnonzero((DATA.pixels == query).all(axis=(1, 2, 3)))
        assert DATA.labels[where[0]] != label
    assert kept.facts == {"queries": 20, "mistakes": 20, "blends": 0, "mistakes_in_data": 24}


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_blends_fill_up_what_mistakes_do_not(wrong):
    images = data(VICTIM, wrong=wrong)
    kept = generate(30, images)
    mistakes = round(wrong * len(images))
    assert kept.facts == {"queries": 30, "mistakes": mistakes, "blends": 30 - mistakes, "mistakes_in_data": mistakes}
    assert kept.arrays["queries"].shape == (30, *SHAPE)
    assert kept.arrays["queries"].dtype == np.uint8


def test_blends_are_blends_of_two_labels_on_which_the_victim_hesitates():
    images = data(VICTIM, count=30, wrong=0.0)
    hard = hard_queries(VICTIM, images, 10, np.random.default_rng(0))
    labels = VICTIM.predict(as_images(images.pixels)).argmax(axis=1)
    pixels = images.pixels.reshape(30, -1).astype(float)
    for blend in hard.pixels.reshape(10, -1).astype(float):
        best = np.inf
        for i in range(30):
            for j in range(30):
                if labels[i] != labels[j]:
                    step = pixels[i] - pixels[j]
                    weight = float(np.clip((blend - pixels[j]) @ step / (step @ step), *BLEND))
                    best = min(best, np.abs(pixels[j] + weight * step - blend).max())
        assert best <= 1
    top = np.sort(hard.answers, axis=1)
    typical = np.sort(VICTIM.predict(as_images(images.pixels)), axis=1)
    assert MARGINS == (0.25, 0.5)
    assert (top[:, -1] - top[:, -2]).max() < (typical[:, -1] - typical[:, -2]).max()


def test_seeds():
    images = data(VICTIM, wrong=0.05)
    first, again, other = generate(12, images, 3), generate(12, images, 3), generate(12, images, 4)
    np.testing.assert_array_equal(first.arrays["queries"], again.arrays["queries"])
    assert not np.array_equal(first.arrays["queries"], other.arrays["queries"])


def test_a_victim_of_one_label_is_refused():
    victim = Fixed(np.zeros(120, int))
    images = DATA.take(np.flatnonzero(DATA.labels == 0))
    with pytest.raises(DataError, match="nearly all images one label"):
        Negatives().generate(subject(VICTIM).seen_as(victim), images, seed=0)


def test_without_data_it_says_what_to_do():
    with pytest.raises(DataError, match="pass --data"):
        generate(10, None)


def test_many_images_are_asked_in_blocks(monkeypatch):
    monkeypatch.setattr("fp_audit.engine._BLOCK", 7)
    np.testing.assert_allclose(predict_pixels(VICTIM, DATA.pixels), VICTIM.predict(as_images(DATA.pixels)), rtol=1e-5)
