"""What every attack must do, on every kind of victim. New attacks are picked up by themselves."""

import hashlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from attack_victims import KINDS, data, digits, folder, tensors, victim

from fp_audit import plugins
from fp_audit.attacking import DRAW, attack, open_victim, run_attacks
from fp_audit.attacks._options import build
from fp_audit.model import Counted, LoadOptions, as_images
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one
from fp_audit.types import Access

ATTACKS = plugins.names("attacks")
FAST = {"epochs": 0.3, "batch": 32, "calibration": 32, "rounds": 1, "steps": 3, "iterations": 5}
"""Options that make an attack quick, for attacks that have them."""


def fast(name):
    return {key: FAST[key] for key in plugins.load("attacks", name).parameters() if key in FAST}


def hashes(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@cache
def stolen(name, kind, seed=0, attempt=0):
    """Run an attack once: its folder, its provenance, and whether the victim's files are as before."""
    out, before = folder() / f"{name}-{kind}-{seed}-{attempt}", hashes(victim(kind))
    provenance = attack(name, str(victim(kind)), data(), out, options=fast(name), seed=seed)
    return out, provenance, hashes(victim(kind)) == before


def opened(path, known):
    located = locate_one(str(path), SourceOptions())
    model = adapter(located.artifact.adapter).load(located.artifact, LoadOptions(preprocess=known, seed=DRAW))
    return located.artifact.adapter, model


each = pytest.mark.parametrize("name", ATTACKS)
everywhere = pytest.mark.parametrize("kind", KINDS)
normalised = pytest.mark.parametrize("kind", ["huggingface"])
"""Randomness comes from the attack, not from the adapter: a victim with BatchNorm stands for all."""


@each
def test_it_says_what_it_is(name):
    kind = plugins.load("attacks", name)
    assert kind.name == name
    assert kind.summary
    assert kind.paper
    assert kind.cost
    assert kind.keeps
    assert kind.victim_access in (Access.QUERIES, Access.GRADIENTS)
    made = build(name, {})
    assert set(made.options) == set(kind.parameters())
    assert all(str(value) in repr(made) for value in made.options.values())


@each
@everywhere
def test_the_surrogate_opens_with_the_adapter_it_names_and_fidelity_is_true(name, kind):
    out, provenance, _ = stolen(name, kind)
    victim_model = open_victim(str(victim(kind)), data()).model
    stated = provenance.surrogate["preprocess"] or provenance.victim["preprocess"]
    used, model = opened(out, Preprocess.from_json(stated) if stated else None)
    assert used == provenance.surrogate["adapter"]
    order = np.sort(np.random.default_rng(0).permutation(len(digits()))[: provenance.fidelity.images])
    images, truth = as_images(digits().pixels[order]), digits().labels[order]
    theirs, ours = victim_model.predict(images).argmax(axis=1), model.predict(images).argmax(axis=1)
    assert provenance.fidelity.accuracy == pytest.approx((ours == truth).mean(), abs=1e-9)
    assert provenance.fidelity.victim_accuracy == pytest.approx((theirs == truth).mean(), abs=1e-9)
    assert provenance.fidelity.agreement == pytest.approx((ours == theirs).mean(), abs=1e-9)


@each
@everywhere
def test_the_victim_is_untouched(name, kind):
    assert stolen(name, kind)[2]


@each
@normalised
def test_the_same_seed_gives_the_same_surrogate(name, kind):
    first, again = tensors(stolen(name, kind)[0]), tensors(stolen(name, kind, attempt=1)[0])
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[tensor], again[tensor]) for tensor in first)


@each
@normalised
def test_training_depends_on_the_seed(name, kind):
    out, provenance, _ = stolen(name, kind)
    if not provenance.cost.steps:
        pytest.skip("does not train with its default options")
    first, other = tensors(out), tensors(stolen(name, kind, seed=1)[0])
    assert any(not np.array_equal(first[tensor], other[tensor]) for tensor in first)


@each
def test_queries_are_reported_truly(name, tmp_path):
    target = open_victim(str(victim("onnx")), data())
    counted = Counted(target.model)
    provenance = run_attacks([build(name, fast(name))], replace(target, model=counted), tmp_path / "out")
    assert counted.queries == provenance.cost.queries + provenance.fidelity.images


@each
def test_an_interrupted_attack_leaves_nothing_behind(name, tmp_path):
    def interrupt(what, done):
        if what == "measuring fidelity":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(name, str(victim("onnx")), data(), tmp_path / "out", options=fast(name), progress=interrupt)
    assert list(tmp_path.iterdir()) == []
