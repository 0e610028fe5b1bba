"""Local networks: which are chosen, that they learn what they are told, that none is trained twice."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures import digits
from fp_audit import networks
from fp_audit.data import Labelled
from fp_audit.errors import DataError
from fp_audit.fresh import Architecture
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one


@pytest.fixture(scope="module")
def data():
    pixels, labels = digits.digits()
    return Labelled(pixels[:600], labels[:600], digits.CLASSES, "digits")


@pytest.fixture(scope="module")
def held_out():
    pixels, labels = digits.digits()
    return as_images(pixels[600:1000]), labels[600:1000]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 6_000)


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    folder = tmp_path_factory.mktemp("victim") / "resnet"
    digits.write_huggingface(folder, kind="resnet", seed=1)
    return architecture_of(folder)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("victim") / "model.onnx"
    digits.write_onnx(path, seed=1, epochs=0.1)
    return architecture_of(path, NAMED["0..1"])


def architecture_of(path, preprocess=None):
    located = locate_one(str(path), SourceOptions(offline=True))
    return Architecture(located.artifact.adapter, located.artifact, LoadOptions(preprocess=preprocess))


def chosen(how, count, data, *, seed=0, purpose="independent", own=False):
    return how(count, data, 10, seed=seed, purpose=purpose, own=own)


def accuracy(network, held_out):
    return (network.predict(held_out[0]).argmax(axis=1) == held_out[1]).mean()


def weights(modules):
    return [module.state_dict() for module in modules]


def test_a_dozen_differs_in_everything(data):
    specs = chosen(networks.plan, 12, data)
    assert {spec.family for spec in specs} == {"plain", "residual", "depthwise", "lenet"}
    assert {spec.width for spec in specs} == {16, 24, 32}
    assert {spec.share for spec in specs} == {1.0, 0.7}
    assert {spec.recipe.optimizer for spec in specs} == {"sgd", "adam"}
    assert {spec.recipe.shift for spec in specs} == {0.0, 0.06, 0.1}
    assert not any(spec.recipe.flip for spec in specs)  # a mirrored digit is no digit
    assert len({spec.name for spec in specs}) == 12


def test_photographs_may_be_mirrored(data):
    photographs = replace(data, pixels=data.pixels.repeat(3, axis=1))
    assert any(spec.recipe.flip for spec in chosen(networks.plan, 4, photographs))
    assert all(spec.recipe.flip for spec in chosen(networks.alike, 4, photographs))


def test_every_third_is_of_the_victims_architecture(data):
    specs = chosen(networks.plan, 13, data, own=True)
    assert [i for i, spec in enumerate(specs) if spec.family == networks.OWN] == [0, 3, 6, 9, 12]
    others = [replace(spec, seed=0) for spec in specs if spec.family != networks.OWN]
    assert others == [replace(spec, seed=0) for spec in chosen(networks.plan, 8, data)]


@pytest.mark.parametrize(("own", "family"), [(True, "own"), (False, "lenet")])
def test_an_ensemble_differs_in_its_seeds_only(own, family, data):
    specs = chosen(networks.alike, 6, data, own=own)
    assert len({spec.seed for spec in specs}) == 6
    assert {replace(spec, seed=0) for spec in specs} == {replace(specs[0], seed=0)}
    assert (specs[0].family, specs[0].share) == (family, 1.0)


def test_networks_for_two_purposes_have_no_seed_in_common(data):
    drawn = [
        spec.seed
        for purpose in ("calibration", "independent", "surrogate")
        for seed in (0, 1)
        for spec in chosen(networks.alike, 20, data, seed=seed, purpose=purpose)
    ]
    assert len(set(drawn)) == 120
    assert min(drawn) > 1000  # nobody draws a victim with such a seed
    assert chosen(networks.plan, 3, data) == chosen(networks.plan, 3, data)


def test_they_learn_and_are_not_trained_twice(data, held_out, quick, tmp_path, monkeypatch):
    specs = chosen(networks.plan, 4, data)[2:]
    told = []

    def tell(what, done):
        told.append((what, done))

    first = list(networks.train(specs, data, cache=tmp_path, progress=tell, what="training two"))
    assert {network.name for network in first} == {spec.name for spec in specs}
    assert told == [("training two", 0.0), ("training two", 0.5), ("training two", 1.0)]
    for network in first:
        assert accuracy(network, held_out) > 0.8, network.name
        assert network.classes == digits.CLASSES
        assert (network.spec.channels, network.spec.height, network.spec.width) == (1, 8, 8)
        assert network.white is None
        logits = network.module(torch.from_numpy(held_out[0])).detach().numpy()
        np.testing.assert_allclose(network.predict(held_out[0]), logits, atol=1e-5)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 2

    monkeypatch.delattr(networks, "ProcessPoolExecutor")
    again = {network.name: network for network in networks.train(specs, data, cache=tmp_path)}
    for network in first:
        np.testing.assert_array_equal(again[network.name].predict(held_out[0]), network.predict(held_out[0]))


def test_an_interruption_keeps_what_is_done(data, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 1_200)
    specs = chosen(networks.alike, 2, data)

    def interrupt(what, done):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(networks.train(specs, data, cache=tmp_path, progress=interrupt))
    kept = {path.name for path in tmp_path.iterdir()}
    assert 1 <= len(kept) <= 2
    assert all(name.endswith(".safetensors") for name in kept)


STARTER = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from fp_audit import networks
if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), networks._end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_a_killed_registration_leaves_no_training_behind(tmp_path):
    (tmp_path / "starter.py").write_text(STARTER)
    with subprocess.Popen([sys.executable, str(tmp_path / "starter.py")], stdout=subprocess.PIPE, text=True) as started:
        trainer = int(started.stdout.readline())
        assert runs(trainer)
        started.kill()
    deadline = time.monotonic() + 20
    while runs(trainer) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(trainer)


def runs(pid):
    """Whether a process is there and has not ended."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_the_victims_architecture_is_trained_in_a_process(data, held_out, huggingface, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 3_000)
    specs = chosen(networks.alike, 1, data, own=True)
    (network,) = networks.train(specs, data, cache=tmp_path, architecture=huggingface)
    assert accuracy(network, held_out) > 0.6
    assert network.name.startswith("own-")
    assert network.classes == digits.CLASSES
    assert (network.spec.height, network.spec.width) == (32, 32)
    np.testing.assert_allclose(network.white.predict(held_out[0]), network.predict(held_out[0]), atol=1e-4)
    victim, trained = adapter("huggingface").tensors(huggingface.artifact), network.white.tensors()
    assert victim.keys() == trained.keys()
    matrices = [name for name in victim if victim[name].ndim >= 2 and victim[name].size > 32]
    assert all(abs(np.corrcoef(victim[name].ravel(), trained[name].ravel())[0, 1]) < 0.5 for name in matrices)


@pytest.mark.parametrize("kind", ["onnx", "lenet"])
def test_those_trained_together_are_those_trained_alone(kind, data, held_out, onnx, monkeypatch, tmp_path):
    """What a GPU does with an ensemble, done on the CPU."""
    monkeypatch.setattr(networks, "SEEN_IMAGES", 1_200)
    own = onnx if kind == "onnx" else None
    specs = chosen(networks.alike, 3, data, own=own is not None)
    waiting = {spec: tmp_path / f"{spec.name}.safetensors" for spec in specs}
    assert list(networks._train_together(waiting, data, "cpu", own)) == specs
    for spec, path in waiting.items():
        together = networks._load(spec, path, data, own, "cpu").predict(held_out[0])
        (alone,) = networks._trained([spec], data.pixels, data.labels, own, "cpu")
        expected = alone(torch.from_numpy(held_out[0])).detach().numpy()
        np.testing.assert_allclose(together, expected, atol=0.02)


def test_only_equal_networks_that_see_all_images_are_trained_together(data):
    specs = [*chosen(networks.alike, 3, data), *chosen(networks.plan, 20, data, own=True)]
    groups = networks._groups(specs)
    assert sorted(spec.name for group in groups for spec in group) == sorted(spec.name for spec in specs)
    together = [group for group in groups if len(group) > 1]
    assert all(len({replace(spec, seed=0) for spec in group}) == 1 for group in together)
    assert {spec.share for group in together for spec in group} == {1.0}
    assert sorted(len(group) for group in together if group[0].family in ("own", "lenet")) == [3, 3, 4]


def test_a_seed_gives_the_same_weights(data, monkeypatch):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 1_200)
    first, second = chosen(networks.plan, 2, data)
    runs = [networks._trained([spec], data.pixels, data.labels, None, "cpu")[0] for spec in (first, first, second)]
    one, same, _ = weights(runs)
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_what_determines_a_network_is_its_key(data, huggingface, onnx):
    specs = chosen(networks.plan, 2, data, own=True)
    other = replace(data, labels=(data.labels + 1) % 10)
    keys = [networks._key(spec, told, made) for spec in specs for told in (data, other) for made in (huggingface, onnx)]
    assert len(set(keys)) == 4 + 2  # the victim's architecture does not matter to the others


def test_too_few_images(data, tmp_path):
    few = data.take(np.arange(99))
    with pytest.raises(DataError, match="99 images are too few to train networks on; expected 10 a class"):
        list(networks.train(chosen(networks.plan, 2, few), few, cache=tmp_path))


def test_the_victims_architecture_must_be_given(data):
    with pytest.raises(ValueError, match="need an architecture"):
        networks._trained(chosen(networks.alike, 1, data, own=True), data.pixels, data.labels, None, "cpu")
