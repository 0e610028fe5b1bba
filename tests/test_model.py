"""Wrappers that count, remember and hide, and the names of targets."""

from pathlib import Path

import numpy as np
import pytest

from fp_audit.model import Counted, LabelOnly, Memoised, Reordered, TopK, as_images, as_probabilities, target_of
from fp_audit.types import InputSpec, Listing

ANSWERS = np.array([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 5.0, 1.0]], np.float32)
IMAGES = np.zeros((2, 1, 2, 2), np.float32)


class Fixed:
    def __init__(self, output="logits"):
        self.spec, self.classes, self.output = InputSpec(1, 2, 2), ("a", "b", "c", "d"), output
        self.calls = []

    def predict(self, images):
        self.calls.append(len(images))
        return ANSWERS[: len(images)].copy()


@pytest.mark.parametrize(
    "wrap", [Counted, Memoised, LabelOnly, lambda m: TopK(m, 2), lambda m: Reordered(m, [0], ("a",))]
)
def test_wrappers_pass_the_rest_through(wrap):
    assert wrap(Fixed()).spec == InputSpec(1, 2, 2)
    assert wrap(Fixed()).classes in (("a", "b", "c", "d"), ("a",))
    assert wrap(Fixed("probabilities")).output in ("probabilities", "topk", "labels")


def test_counted_counts_images():
    model = Counted(Fixed())
    model.predict(IMAGES)
    model.predict(IMAGES[:1])
    assert model.queries == 3
    np.testing.assert_array_equal(model.predict(IMAGES), ANSWERS)


def test_memoised_asks_each_batch_once():
    inner = Fixed()
    model = Memoised(inner)
    np.testing.assert_array_equal(model.predict(IMAGES), model.predict(IMAGES.copy()))
    assert inner.calls == [2]
    model.predict(IMAGES + 1)
    model.predict(IMAGES[:1])
    assert inner.calls == [2, 2, 1]


def test_memoised_tells_shapes_of_equal_bytes_apart():
    inner = Fixed()
    model = Memoised(inner)
    model.predict(IMAGES.reshape(2, 1, 1, 4))
    model.predict(IMAGES)
    model.predict(IMAGES[:, :, ::-1])
    assert inner.calls == [2, 2]


def test_top_k_shows_the_largest_probabilities():
    got = TopK(Fixed(), 2).predict(IMAGES)
    whole = as_probabilities(ANSWERS, "logits")
    assert ((got > 0).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(got[0], whole[0] * [0, 1, 1, 0])
    np.testing.assert_array_equal(got[1], whole[1] * [0, 0, 1, 1])
    assert TopK(Fixed(), 2).output == "topk"


def test_top_k_of_all_classes_hides_nothing_and_of_ties_no_more_than_k():
    np.testing.assert_array_equal(TopK(Fixed(), 4).predict(IMAGES), as_probabilities(ANSWERS, "logits"))
    assert ((TopK(Fixed(), 3).predict(IMAGES) > 0).sum(axis=1) == 3).all()


def test_label_only_shows_one_hot_rows():
    np.testing.assert_array_equal(LabelOnly(Fixed()).predict(IMAGES), [[0, 1, 0, 0], [0, 0, 1, 0]])
    assert LabelOnly(Fixed()).output == "labels"


def test_reordered_shows_the_chosen_columns():
    model = Reordered(Fixed(), (i for i in (2, 0)), ("c", "a"))
    np.testing.assert_array_equal(model.predict(IMAGES), ANSWERS[:, [2, 0]])
    assert model.classes == ("c", "a")
    assert model.predict(IMAGES).flags.c_contiguous


def test_as_probabilities_is_a_stable_softmax():
    wanted = np.exp(ANSWERS) / np.exp(ANSWERS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(as_probabilities(ANSWERS, "logits"), wanted, rtol=1e-6)
    np.testing.assert_allclose(as_probabilities(ANSWERS + 1000, "logits"), wanted, rtol=1e-4)
    assert as_probabilities(ANSWERS, "probabilities") is ANSWERS


def test_as_images_maps_pixels_to_zero_and_one():
    got = as_images(np.array([0, 51, 255], np.uint8))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [0, 0.2, 1])


@pytest.mark.parametrize(
    ("target", "entry", "alone", "revision", "wanted"),
    [
        ("model", ".", True, None, "model"),
        ("model.onnx", "model.onnx", True, None, "model.onnx"),
        ("zoo", "thief/ftal", True, None, "thief/ftal"),
        ("zoo", "thief/ftal/model.onnx", True, None, "thief/ftal"),
        ("zoo", "thief/ftal/model.onnx", False, None, "thief/ftal/model.onnx"),
        ("zoo", "model.onnx", False, None, "model.onnx"),
        ("org/repo", ".", True, "abc", "org/repo"),
        ("org/repo", "onnx/model.onnx", True, "abc", "org/repo/onnx"),
        ("org/repo", "onnx/model.onnx", False, "abc", "org/repo/onnx/model.onnx"),
    ],
)
def test_targets_are_named_as_a_person_would(target, entry, alone, revision, wanted):
    assert target_of(Listing(target, (), Path(), revision), entry, alone) == wanted
