from dataclasses import replace

import numpy as np
import pytest
from attack_victims import data, tensors, victim

from fp_audit.attacking import attack, open_victim, run_attacks
from fp_audit.attacks._options import build

FAST = {"epochs": 0.2, "batch": 32, "steps": 2}


class Asked:
    """The victim, with a note of every image that it was shown."""

    def __init__(self, model):
        self._model, self.images = model, []
        self.spec, self.classes, self.output = model.spec, model.classes, model.output

    def predict(self, images):
        self.images.append(images)
        return self._model.predict(images)


def test_it_learns_the_victims_labels(tmp_path):
    options = {"epochs": 6, "batch": 32, "learning_rate": 0.01, "shift": 0.0, "steps": 2, "step_size": 0.0}
    provenance = attack("adversarial-extract", str(victim("onnx")), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.agreement > 0.85
    assert provenance.surrogate["adapter"] == "onnx"


@pytest.mark.parametrize(("budget", "expected"), [(50, 50), (0, 1438)])
def test_the_victim_sees_natural_images_only_and_no_more_than_the_budget(budget, expected, tmp_path):
    target = open_victim(str(victim("onnx")), data())
    asked = Asked(target.model)
    made = build("adversarial-extract", {**FAST, "queries": budget})
    provenance = run_attacks([made], replace(target, model=asked), tmp_path / "out")
    assert provenance.cost.queries == expected
    shown = np.concatenate(asked.images)[:expected]
    natural = {image.tobytes() for image in target.data.pixels}
    assert all(np.rint(255 * image).astype(np.uint8).tobytes() in natural for image in shown)
    np.testing.assert_allclose(shown, np.rint(255 * shown) / 255, atol=1e-6)


def test_the_adversary_changes_what_is_learned(tmp_path):
    attack("adversarial-extract", str(victim("onnx")), data(), tmp_path / "small", options=FAST)
    attack("adversarial-extract", str(victim("onnx")), data(), tmp_path / "large", options={**FAST, "epsilon": 0.3})
    small, large = tensors(tmp_path / "small"), tensors(tmp_path / "large")
    assert any(not np.array_equal(small[name], large[name]) for name in small)
