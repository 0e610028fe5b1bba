"""How a suspect's preprocessing and its order of classes are found out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import pixels

from fp_audit.alignment import Probes, align, make_probes, settle
from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.model import Unprepared, as_images
from fp_audit.preprocess import NAMED, Preprocess, affine_map, candidates, parse
from fp_audit.types import InputSpec

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
SIZE = 4


def labelled(count=240, channels=3, seed=0):
    """Images near one of six random prototypes, the prototype as label."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(99).integers(40, 216, (6, channels, SIZE, SIZE))
    labels = np.arange(count) % 6
    noisy = prototypes[labels] + rng.integers(-4, 5, (count, channels, SIZE, SIZE))
    return Labelled(np.clip(noisy, 0, 255).astype(np.uint8), labels, NAMES, "toy")


PROBES = make_probes(labelled(), seed=0)


class Prototypes(Unprepared):
    """A network that wants ``wanted``: minus the distance to each prototype, in random waves."""

    def __init__(self, wanted, *, channels=3, order=range(6), classes=None, spoil=None):
        self.wanted, self.channels, self.order, self.names, self.spoil = wanted, channels, list(order), classes, spoil
        self.tried = []

    @property
    def spec(self):
        return InputSpec(self.channels, SIZE, SIZE)

    def with_preprocess(self, preprocess):
        self.tried.append(preprocess)
        return _Prepared(self, preprocess)


class _Prepared:
    output = "logits"

    def __init__(self, network, preprocess):
        self.network, self.preprocess, self.spec = network, preprocess, network.spec
        self.classes = network.names
        self.asked = 0

    def predict(self, images):
        self.asked += len(images)
        channels = self.network.channels
        prototypes = np.random.default_rng(99).integers(40, 216, (6, channels, SIZE, SIZE)) / 255
        known = affine_map(self.network.wanted, (SIZE, SIZE), channels, channels)(prototypes.astype(np.float32))
        fed = affine_map(self.preprocess, (SIZE, SIZE), channels, channels)(images)
        waves = np.random.default_rng(7).normal(size=(known[0].size, 128)) * 0.5
        seen, wanted = (np.cos(((x - known.mean()) / known.std()).reshape(len(x), -1) @ waves) for x in (fed, known))
        distance = ((seen[:, None] - wanted[None]) ** 2).mean(axis=2)
        answers = (-9 * distance[:, self.network.order]).astype(np.float32)
        return answers if self.network.spoil is None else np.full_like(answers, self.network.spoil)


def prepared(**more):
    return Prototypes(Preprocess(), **more).with_preprocess(Preprocess())


@pytest.mark.parametrize("preprocess", candidates(3), ids=Preprocess.describe)
def test_each_convention_is_found(preprocess):
    found = settle(Prototypes(preprocess), PROBES)
    assert found.preprocess == preprocess
    assert found.preprocess == preprocess


@pytest.mark.parametrize("preprocess", candidates(1), ids=Preprocess.describe)
def test_each_convention_of_grey_images_is_found(preprocess):
    probes = make_probes(labelled(channels=1), seed=0)
    assert settle(Prototypes(preprocess, channels=1), probes).preprocess == preprocess


def test_conventions_are_found_for_permuted_classes():
    assert settle(Prototypes(NAMED["caffe"], order=[3, 0, 4, 5, 1, 2]), PROBES).preprocess == NAMED["caffe"]


def test_the_victims_own_preprocessing_is_taken_at_once():
    own = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    network = Prototypes(own)
    found = settle(network, PROBES, own)
    assert (found.preprocess, network.tried) == (own, [own])


def test_the_victims_own_preprocessing_is_left_where_it_does_not_fit():
    wrong = parse("caffe")
    found = settle(Prototypes(NAMED["0..1"]), PROBES, wrong)
    assert found.preprocess == NAMED["0..1"]


def test_a_prepared_model_is_not_asked():
    model = prepared()
    found = settle(model, None)
    assert (found.model, found.preprocess, model.asked) == (model, None, 0)


def test_without_probes_the_user_is_told_what_to_pass():
    with pytest.raises(UsageError, match="--data"):
        settle(Prototypes(Preprocess()), None)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_answers_that_are_no_numbers_do_not_crash(spoil):
    settled = settle(Prototypes(Preprocess(), spoil=spoil), PROBES, Preprocess())
    assert settled.preprocess in candidates(3)
    with pytest.raises(NotApplicable, match="another task"):
        align(settled.model, PROBES)


def test_settling_a_model_of_too_few_classes_does_not_crash():
    settled = settle(Prototypes(Preprocess(), order=[0, 1]), PROBES)
    with pytest.raises(NotApplicable, match="it has 2 classes, the victim has 6"):
        align(settled.model, PROBES)


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_aligned_by_name(seed):
    order = np.random.default_rng(seed).permutation(6)
    names = tuple(f" {NAMES[i].upper()} " for i in order)
    found = align(prepared(order=order, classes=names), PROBES)
    assert (found.how, found.accuracy) == ("names", 1.0)
    np.testing.assert_array_equal(order[found.order], np.arange(6))
    assert found.model.classes == NAMES
    np.testing.assert_array_equal(found.model.predict(as_images(PROBES.pixels)).argmax(axis=1), PROBES.labels)


def test_names_may_be_a_part_of_the_suspects():
    order = [5, 0, 1, 2, 3, 4, 0]
    found = align(prepared(order=order, classes=("fox", "ant", "bee", "cat", "dog", "eel", "gnu")), PROBES)
    assert found.how == "names"
    assert found.order.tolist() == [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("classes", [None, ("x",) * 6, ("ant", "bee", "cat", "dog", "eel", "gnu")])
@pytest.mark.parametrize("seed", range(3))
def test_classes_are_aligned_by_predictions(seed, classes):
    order = np.random.default_rng(seed).permutation(6)
    found = align(prepared(order=order, classes=classes), PROBES)
    assert found.how == "predictions"
    np.testing.assert_array_equal(order[found.order], np.arange(6))
    assert found.accuracy == 1.0


def test_classes_in_order_are_left_so():
    found = align(prepared(), PROBES)
    assert (found.how, found.order.tolist(), found.accuracy) == ("order", list(range(6)), 1.0)


def test_another_task_is_not_applicable():
    shuffled = replace(PROBES, labels=np.random.default_rng(0).permutation(PROBES.labels))
    with pytest.raises(NotApplicable, match="another task"):
        align(prepared(), shuffled)


def test_a_weak_victim_asks_less_of_a_suspect():
    noisy = PROBES.labels.copy()
    noisy[::2] = (noisy[::2] + 1) % 6
    probes = replace(PROBES, labels=noisy)
    assert align(prepared(), replace(probes, accuracy=0.6)).accuracy == 0.5
    with pytest.raises(NotApplicable):
        align(prepared(), replace(probes, accuracy=1.0))


def test_probes_are_four_a_class_and_at_least_64():
    assert len(PROBES.labels) == 64
    assert sorted(np.bincount(PROBES.labels)) == [10, 10, 11, 11, 11, 11]
    many = Labelled(pixels(900, 4), np.arange(900) % 90, None, "many")
    counts = np.bincount(make_probes(many, seed=1).labels)
    assert counts.tolist() == [4] * 90
    huge = Labelled(pixels(900, 4), np.arange(900) % 150, None, "huge")
    assert len(make_probes(huge, seed=1).labels) == 400


def test_probes_of_rare_classes_are_all_taken():
    data = Labelled(pixels(200, 4), np.r_[np.zeros(195), np.ones(5)].astype(int), None, "rare")
    assert np.bincount(make_probes(data, seed=0).labels).tolist() == [59, 5]


def test_probes_follow_their_seed_and_keep_images_with_labels():
    data = labelled()
    first, again, other = make_probes(data, seed=3), make_probes(data, seed=3), make_probes(data, seed=4)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
    for image, label in zip(first.pixels, first.labels, strict=True):
        where = np.flatnonzero((data.pixels == image).all(axis=(1, 2, 3)))
        assert data.labels[where[0]] == label


def test_few_images_are_all_probes():
    data = labelled(12)
    probes = make_probes(data, seed=0)
    assert isinstance(probes, Probes)
    assert len(probes.labels) == 12
    assert (probes.count, probes.classes, probes.accuracy) == (6, NAMES, 1.0)


class Scaled(Unprepared):
    """A linear network without a bias: its labels are the same for any positive scale of its input."""

    def __init__(self, weights, flip=()):
        self._weights, self._flip = weights, flip

    @property
    def spec(self):
        return InputSpec(1, 4, 4)

    def with_preprocess(self, preprocess):
        def predict(images):
            fitted = affine_map(preprocess, (4, 4), 1, 1)
            answers = (fitted(images).reshape(len(images), -1) @ self._weights).astype(np.float32)
            if fitted.gain.max() < 100:
                for index in self._flip:
                    answers[index] = -answers[index]
            return answers

        return SimpleNamespace(spec=self.spec, classes=None, output="logits", predict=predict)


def test_a_scale_that_only_makes_the_model_surer_is_not_preferred():
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 1.0, (16, 5)).astype(np.float32)
    pixels = rng.integers(0, 256, (200, 1, 4, 4)).astype(np.uint8)
    labels = (pixels.reshape(200, -1) @ weights).argmax(axis=1)
    labels[:20] = rng.integers(0, 5, 20)
    probes = Probes(pixels, labels, None, 5, 0.9)
    one_better_when_huge = Scaled(weights, flip=(100,))
    assert settle(one_better_when_huge, probes).preprocess != NAMED["0..255"]
    easy = Probes(pixels[20:], labels[20:], None, 5, 1.0)
    assert settle(Scaled(40 * weights), easy).preprocess != NAMED["0..255"]
