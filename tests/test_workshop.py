"""What a method may train: surrogates learn the victim's answers, independents the truth."""

from __future__ import annotations

import numpy as np
import pytest
from training import train_here

from fixtures import digits
from fp_audit import networks
from fp_audit.data import Labelled
from fp_audit.fresh import Architecture
from fp_audit.model import Counted, LoadOptions, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate_one
from fp_audit.types import InputSpec
from fp_audit.workshop import Workshop

COUNT = 2


class Contrary:
    """A victim that names the next digit of each image it knows."""

    spec, classes, output = InputSpec(1, 8, 8), None, "labels"

    def __init__(self, pixels, labels):
        self._answers = {image.tobytes(): (label + 1) % 10 for image, label in zip(pixels, labels, strict=True)}

    def predict(self, images):
        stored = np.rint(images * 255).astype(np.uint8)
        return np.eye(10, dtype=np.float32)[[self._answers[image.tobytes()] for image in stored]]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 12_000)
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(networks, "_train_in_processes", train_here)  # tests/test_networks.py starts enough processes


@pytest.fixture(scope="module")
def data():
    pixels, labels = digits.digits()
    return Labelled(pixels[:600], labels[:600], None, "digits")


def answers(network):
    pixels, _ = digits.digits()
    return network.predict(as_images(pixels[600:1000])).argmax(axis=1)


def test_independents_learn_the_truth_and_surrogates_the_victim(data, tmp_path):
    told, truth = [], digits.digits()[1][600:1000]
    workshop = Workshop(cache=tmp_path / "cache", progress=lambda what, done: told.append(what))
    victim = Counted(Contrary(data.pixels, data.labels))
    independents = workshop.independents(data, COUNT, seed=3, alike=True)
    surrogates = workshop.surrogates(victim, data, COUNT, seed=3, alike=True)
    assert victim.queries == len(data)
    for network in independents:
        assert (answers(network) == truth).mean() > 0.8
    for network in surrogates:
        assert (answers(network) == (truth + 1) % 10).mean() > 0.8
    specs = networks.alike(COUNT, data, 10, seed=3, purpose="surrogate", own=False)
    assert [network.name for network in surrogates] == [spec.name for spec in specs]
    assert not {network.name for network in surrogates} & {network.name for network in independents}
    assert set(told) == {"training 2 independents", "asking the victim", "training 2 surrogates"}


@pytest.mark.parametrize(("alike", "families"), [(True, ["own", "own"]), (False, ["plain", "residual"])])
def test_networks_alike_have_the_victims_architecture_and_others_not(alike, families, data, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 1_200)
    digits.write_onnx(tmp_path / "model.onnx", seed=1, epochs=0.1)
    located = locate_one(str(tmp_path / "model.onnx"), SourceOptions(offline=True))
    workshop = Workshop(architecture=Architecture("onnx", located.artifact, LoadOptions(preprocess=NAMED["0..1"])))
    made = workshop.independents(data, COUNT, seed=0, alike=alike)
    assert [network.name.split("-")[0] for network in made] == families
    assert [network.white is not None for network in made] == [alike] * COUNT
    assert len(list((tmp_path / "home" / "cache" / "networks").iterdir())) == COUNT
