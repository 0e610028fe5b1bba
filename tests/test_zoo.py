"""Zoos: what is planned, who has which images, and that all of it is made once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training import train_here

from fixtures import digits
from fp_audit import networks, plugins, zoo
from fp_audit.attacks._options import from_specs
from fp_audit.data import Labelled, load
from fp_audit.errors import DataError, PluginError, UsageError
from fp_audit.networks import OWN
from fp_audit.zoo import ZooOptions, build_zoo

ATTACKS = ("quantise:mode=static:calibration=32", "prune:rate=0.2@2", "extract:architecture=no-such")


@pytest.fixture(scope="module")
def images():
    pixels, labels = digits.digits()
    return Labelled(pixels[:600], labels[:600], digits.CLASSES, "digits")


@pytest.fixture(scope="module")
def made(digit_models, tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    options = ZooOptions(ATTACKS, independents=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "SEEN_IMAGES", 3000)
        patch.setattr(networks, "_train_in_processes", train_here)
        first = build_zoo(str(digit_models.victim), str(digit_models.data), out, options)
        stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        again = build_zoo(str(digit_models.victim), str(digit_models.data), out, options)
    return out, first, again, stamps


def pixels(data):
    return {image.tobytes() for image in data.pixels}


def test_all_holds_every_attack_with_enough_surrogates_each_in_its_own_folder():
    planned = zoo.planned(("all",), seed=4)
    others = set(plugins.names("attacks")) - {"knockoff"}  # on the thief's own images it is extraction
    assert {attack.name for theft in planned for attack in theft.attacks} == others
    assert len({theft.name for theft in planned}) == len(planned) >= 26
    assert {"copy", "extraction-same", "extraction-other", "extraction-probabilities", "adversarial-extraction"} <= {
        theft.kind for theft in planned
    }
    assert {"removalnet", "csrp", "csrp+ft", "rdg", "transfer"} <= {theft.kind for theft in planned}
    assert min(theft.seed for theft in planned) == 4


def test_seeds_are_counted_and_nothing_is_made_twice():
    planned = zoo.planned(("extract:epochs=1@2", "extract:epochs=1", "quick"), seed=7)
    assert [(theft.name, theft.seed) for theft in planned[:2]] == [
        ("extract_epochs=1.seed7", 7),
        ("extract_epochs=1.seed8", 8),
    ]
    assert len(planned) == 2 + len(zoo.QUICK_ATTACKS)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("fine-tune+prune:rate=0.3", "copy"),
        ("disguise", "copy"),
        ("extract", "extraction-same"),
        ("extract:architecture=test_resnet", "extraction-other"),
        ("extract:start=microsoft/resnet-18", "extraction-other"),
        ("extract:answers=probabilities:architecture=test_resnet", "extraction-probabilities"),
        ("extract+quantise", "extraction-same"),
        ("csrp", "csrp"),
        ("csrp:mode=data-limited", "csrp+ft"),
        ("fine-tune+csrp", "csrp+ft"),
        ("removalnet:preset=code", "removalnet"),
        ("adversarial-extract", "adversarial-extraction"),
        ("papernot", "substitute"),
    ],
)
def test_kinds(spec, kind):
    assert zoo.kind_of(from_specs(spec)) == kind


@pytest.mark.parametrize("named", [(), ("extract@0",), ("prune:rate=7",)])
def test_what_cannot_be_planned(named):
    with pytest.raises(UsageError):
        zoo.planned(named, seed=0)


def test_an_unknown_attack():
    with pytest.raises(PluginError, match="no attack called 'extrct'"):
        zoo.planned(("extrct@2",), seed=0)


def test_owner_thief_and_test_share_all_images_and_no_image(images):
    divided = zoo.divide(images, seed=0)
    parts = [divided.owner, divided.thief, divided.test]
    assert [len(part) for part in parts] == [270, 270, 60]
    assert set.union(*map(pixels, parts)) == pixels(images)
    assert not pixels(divided.owner) & pixels(divided.thief)
    assert not pixels(divided.test) & (pixels(divided.owner) | pixels(divided.thief))
    assert zoo.divide(images, seed=0).owner.digest == divided.owner.digest != zoo.divide(images, seed=1).owner.digest
    with pytest.raises(DataError, match="holds 99 images: expected at least 100"):
        zoo.divide(images.take(np.arange(99)), seed=0)


def test_training_sets_hold_all_half_or_none_of_the_victims_images(images):
    divided = zoo.divide(images, seed=0)
    sets, owned = zoo.training_sets(divided, seed=0), pixels(divided.owner)
    assert pixels(sets["same"]) == owned
    assert not pixels(sets["none"]) & owned
    assert len(pixels(sets["half"]) & owned) == len(sets["half"]) // 2
    truth = {image.tobytes(): label for image, label in zip(images.pixels, images.labels, strict=True)}
    for data in sets.values():
        assert all(truth[image.tobytes()] == label for image, label in zip(data.pixels, data.labels, strict=True))


@pytest.mark.parametrize("own", [True, False])
def test_every_training_set_has_its_share_of_all_kinds_of_independents(images, own):
    specs = zoo.independent_specs(24, images, 10, seed=0, own=own)
    assert [len(found) for found in specs.values()] == [8, 8, 8]
    for found in specs.values():
        families = [spec.family for spec in found]
        assert families.count(OWN) in ((2, 3) if own else (0,))
        assert len(set(families)) >= 4
        assert {spec.recipe.optimizer for spec in found} == {"adam", "sgd"}
    seeds = {spec.seed for found in specs.values() for spec in found}
    calibration = networks.plan(24, images, 10, seed=0, purpose="calibration", own=own)
    assert len(seeds) == 24
    assert not seeds & {spec.seed for spec in calibration}


@pytest.mark.parametrize("trained_on", [("same",), ("none", "half")])
def test_independents_are_divided_among_the_training_sets_that_are_asked_for(images, trained_on):
    specs = zoo.independent_specs(24, images, 10, seed=0, own=True, trained_on=trained_on)
    every = [spec for found in zoo.independent_specs(24, images, 10, seed=0, own=True).values() for spec in found]
    assert tuple(specs) == trained_on
    assert {len(found) for found in specs.values()} == {24 // len(trained_on)}
    assert {spec for found in specs.values() for spec in found} == set(every)


@pytest.mark.parametrize("trained_on", [(), ("same", "same"), ("same", "some")])
def test_training_sets_that_make_no_sense_are_refused(trained_on):
    with pytest.raises(UsageError, match="expected some of same, half, none, each once"):
        ZooOptions(trained_on=trained_on)


def test_a_zoo_is_built_and_what_is_not_possible_is_recorded(made, digit_models):
    _, found, _, _ = made
    assert [(item.kind, item.name) for item in found.surrogates] == [
        ("copy", "quantise_mode=static_calibration=32.seed0"),
        ("copy", "prune_rate=0.2.seed0"),
        ("copy", "prune_rate=0.2.seed1"),
    ]
    assert [item.training for item in found.independents] == ["same", "half", "none"]
    assert found.failures.keys() == {"extract_architecture=no-such.seed0"}
    assert "architecture is 'no-such'" in found.failures["extract_architecture=no-such.seed0"]
    assert found.victim_accuracy > 0.8
    for item in found.independents:
        assert item.accuracy > 0.3
        assert 0 < item.agreement <= 1
    thief = zoo.divide(load(str(digit_models.data)), seed=0).thief
    assert {item.provenance["data"]["digest"] for item in found.surrogates} == {thief.digest}


def test_what_is_made_is_kept(made):
    out, first, again, stamps = made
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == stamps
    assert [item.name for item in again.independents] == [item.name for item in first.independents]
    assert [item.accuracy for item in again.independents] == [item.accuracy for item in first.independents]
    assert [item.provenance for item in again.surrogates] == [item.provenance for item in first.surrogates]
    assert load(str(out / "owner.npz")).digest == load(str(again.owner)).digest


def test_a_folder_with_another_zoo_is_refused(made, digit_models):
    out, _, _, _ = made
    with pytest.raises(UsageError, match="holds the zoo of another data set or seed"):
        build_zoo(str(digit_models.victim), str(digit_models.data), out, ZooOptions(ATTACKS, 3, seed=1))


def test_a_thief_with_images_of_his_own_leaves_all_data_to_the_owner(digit_models, images, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "train", lambda *_, **__: [])
    theirs = replace(images, pixels=images.pixels[500:], labels=images.labels[500:])
    np.savez(tmp_path / "thief.npz", images=theirs.pixels, labels=theirs.labels, classes=np.array(theirs.classes))
    options = ZooOptions(("prune",), thief=str(tmp_path / "thief.npz"))
    found = build_zoo(str(digit_models.victim), str(digit_models.data), tmp_path / "out", options)
    assert pixels(load(str(found.owner))) == pixels(load(str(digit_models.data)))
    assert found.surrogates[0].provenance["data"]["images"] == 90
