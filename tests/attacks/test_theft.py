import numpy as np
import pytest
from attack_victims import digits, task_for

from fp_audit import engine
from fp_audit.attacks._theft import ask, drawn, last_hidden, tempered
from fp_audit.model import Counted, as_images, as_probabilities

LOGITS = np.random.default_rng(0).normal(0, 4, (20, 6)).astype(np.float32)


def by_hand(row, temperature):
    raised = [float(p) ** (1 / temperature) for p in row]
    return [value / sum(raised) for value in raised]


def test_golden():
    assert tempered(np.array([[0.8, 0.2]], np.float32), "probabilities", 2.0).tolist()[0] == pytest.approx(
        [2 / 3, 1 / 3]
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_logits_and_probabilities_give_the_same_soft_labels(temperature):
    shown = as_probabilities(LOGITS, "logits")
    expected = [by_hand(row, temperature) for row in shown.astype(np.float64)]
    assert np.allclose(tempered(LOGITS, "logits", temperature), expected, atol=1e-5)
    assert np.allclose(tempered(shown, "probabilities", temperature), expected, atol=1e-5)


def test_what_is_hidden_stays_hidden():
    shown = np.array([[0.5, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], np.float32)
    soft = tempered(shown, "topk", 2.0)
    assert (soft[shown == 0] == 0).all()
    assert soft.sum(axis=1) == pytest.approx(1.0)
    assert soft[1].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("answers", ["labels", "probabilities"])
def test_every_image_is_asked_once(answers, monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK", 7)
    model, pixels = Counted(task_for("onnx").victim.black_box()), digits().pixels[:30]
    targets, classes = ask(model, pixels, answers)
    expected = as_probabilities(model.predict(as_images(pixels)), model.output)
    assert model.queries == 60
    assert classes == 10
    if answers == "labels":
        assert np.array_equal(targets, expected.argmax(axis=1))
    else:
        assert np.allclose(targets, expected, atol=1e-6)


def test_images_are_drawn_without_replacement():
    chosen = drawn(digits(), 100, seed=1)
    places = [np.flatnonzero((digits().pixels == image).all(axis=(1, 2, 3)))[0] for image in chosen.pixels]
    assert len(chosen) == 100
    assert places == sorted(places)
    assert len(drawn(digits(), 0, seed=1)) == len(drawn(digits(), 10**6, seed=1)) == len(digits())
    assert not np.array_equal(chosen.pixels, drawn(digits(), 100, seed=2).pixels)


@pytest.mark.parametrize(("kind", "width"), [("huggingface", 32), ("onnx", 32)])
def test_the_last_hidden_layer_is_found(kind, width):
    white = task_for(kind).copy_of_victim()
    found = white.activations(as_images(digits().pixels[:3]), last_hidden(white, digits().pixels))
    assert found.reshape(3, -1).shape[1] == width
