from dataclasses import replace

import numpy as np
import pytest
from attack_victims import data, digits, task_for, tensors, victim
from builders import pixels
from PIL import Image

from fp_audit.attacking import attack
from fp_audit.attacks import knockoff
from fp_audit.attacks._options import build
from fp_audit.attacks.knockoff import fitted, transferred
from fp_audit.data import load
from fp_audit.errors import DataError
from fp_audit.model import Counted

FAST = {"epochs": 0.2, "batch": 32}


def others(path, count=40, size=24):
    np.savez(path, images=pixels(count, size), labels=np.arange(count) % 3)
    return str(path)


class Recorded(Counted):
    def predict(self, images):
        self.shown = np.rint(images * 255).astype(np.uint8)
        return super().predict(images)


def test_images_of_another_data_set_are_shown_and_no_others(tmp_path):
    where, task = others(tmp_path / "others.npz"), task_for("onnx")
    model = Recorded(task.victim.black_box())
    made = build("knockoff", {**FAST, "transfer": where, "queries": 30})
    surrogate = made.run(replace(task, victim=task.victim.seen_as(model)), tmp_path / "out")
    known = {image.tobytes() for image in transferred(where, (1, 16, 16), 0).pixels}
    assert surrogate.queries == 30
    assert {image.tobytes() for image in model.shown} <= known
    assert len({image.tobytes() for image in model.shown}) == 30
    assert set(surrogate.facts) == {"transfer"}


def test_without_another_data_set_the_thiefs_images_are_shown(tmp_path):
    provenance = attack("knockoff", str(victim("onnx")), data(), tmp_path / "out", options={**FAST, "queries": 100})
    assert provenance.cost.queries == 100
    assert provenance.surrogate["facts"] == {}


def test_it_is_extraction_of_probabilities(tmp_path):
    task = task_for("onnx")
    build("knockoff", FAST).run(task, tmp_path / "knockoff")
    build("extract", {**FAST, "answers": "probabilities"}).run(task, tmp_path / "extract")
    first, second = tensors(tmp_path / "knockoff"), tensors(tmp_path / "extract")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_victim_is_learned_from_noisy_neighbours_of_its_images(tmp_path):
    """A stand-in for another domain: digits with their colours turned round."""
    np.savez(tmp_path / "others.npz", images=255 - digits().pixels, labels=digits().labels)
    options = {"epochs": 8, "batch": 32, "learning_rate": 0.01, "shift": 0.0, "transfer": str(tmp_path / "others.npz")}
    provenance = attack("knockoff", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.agreement > 0.3  # chance is .1


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("side", [12, 40])
def test_images_are_brought_to_size_as_pillow_does(channels, wanted, side, monkeypatch):
    monkeypatch.setattr(knockoff, "BLOCK", 3)
    images = pixels(8, side, channels=channels)
    found = fitted(images, (wanted, 20, 20))
    for image, ours in zip(images, found, strict=True):
        picture = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
        picture = picture.resize((20, 20), Image.Resampling.BILINEAR).convert("L" if wanted == 1 else "RGB")
        theirs = np.asarray(picture, int)
        theirs = theirs[None] if wanted == 1 else theirs.transpose(2, 0, 1)
        assert np.abs(ours - theirs).max() <= 2


def test_images_of_the_right_shape_stay():
    assert np.array_equal(fitted(digits().pixels, (1, 16, 16)), digits().pixels)
    assert len(load(data())) == len(digits())


def test_data_that_are_not_there_are_refused(tmp_path):
    options = {"transfer": str(tmp_path / "none.npz")}
    with pytest.raises(DataError, match="no such file"):
        attack("knockoff", str(victim("onnx")), data(), tmp_path / "out", options=options)
