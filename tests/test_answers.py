"""What was written down is said again."""

import numpy as np
import pytest

from fp_audit.answers import Answers, Recorded, Replayed, digests
from fp_audit.errors import NotApplicable
from fp_audit.model import as_images
from fp_audit.types import InputSpec


class Linear:
    """A model with three classes."""

    spec, classes, output = InputSpec(1, None, None), ("a", "b", "c"), "logits"

    def predict(self, images):
        return images.reshape(len(images), -1)[:, :3].astype(np.float32)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)


def test_images_are_known_by_their_pixels(pixels):
    assert digests(pixels) == digests(as_images(pixels))
    assert len(set(digests(pixels))) == 5
    assert digests(pixels.reshape(5, 1, 2, 8)) != digests(pixels)


def test_what_was_recorded_is_replayed_through_json(pixels):
    model = Recorded(Linear())
    said = model.predict(as_images(pixels))
    replayed = Replayed(Answers.from_json(model.answers.to_json()))
    assert (replayed.output, replayed.classes) == ("logits", ("a", "b", "c"))
    np.testing.assert_array_equal(replayed.predict(as_images(pixels[::-1])), said[::-1])


def test_images_that_were_never_shown_have_no_answer(pixels):
    model = Recorded(Linear())
    model.predict(as_images(pixels[:3]))
    with pytest.raises(NotApplicable, match="2 of 5 images have no answer"):
        Replayed(model.answers).predict(as_images(pixels))


def test_what_is_shown_to_several_victims_is_joined(pixels):
    parts = []
    for part in (pixels[:2], pixels[2:]):
        model = Recorded(Linear())
        model.predict(as_images(part))
        parts.append(model.answers)
    joined = Replayed(parts[0].joined(parts[1]))
    np.testing.assert_array_equal(joined.predict(as_images(pixels)), Linear().predict(as_images(pixels)))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"output": "guesses", "classes": None, "images": [], "values": ""},
        {"output": "logits", "classes": None, "images": ["a", "b"], "values": "AAAA"},
        {"output": "logits", "classes": None, "images": ["a"], "values": "not base64"},
    ],
)
def test_other_json_is_refused(data):
    with pytest.raises(ValueError, match="not recorded answers"):
        Answers.from_json(data)
