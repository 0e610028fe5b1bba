import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from attack_victims import data, digits, tensors, victim

from fp_audit.attacking import attack, obtained, open_victim, run_attacks
from fp_audit.attacks._base import NO_LABEL, Attack, Surrogate
from fp_audit.errors import AccessError, DataError, PluginError, UsageError
from fp_audit.preprocess import NAMED
from fp_audit.types import Access


class Recorder(Attack):
    """Hands the victim on, asks it for ten images and remembers what it was given."""

    name = "recorder"
    needs_labels = False
    victim_access = Access.QUERIES
    options: dict = {}  # noqa: RUF012

    def _run(self, task, folder):
        self.task = task
        task.victim.black_box().predict(task.data.pixels[:10] / np.float32(255))
        task.adapter.save(task.copy_of_victim(), folder)
        return Surrogate(task.artifact.adapter, queries=-1)


class Labelled(Recorder):
    needs_labels = True
    victim_access = Access.GRADIENTS


def recorded(kind, tmp_path, **changes):
    made = kind()
    target = replace(open_victim(str(victim("onnx")), data()), **changes)
    return made, target, run_attacks([made], target, tmp_path / "out", seed=3)


def test_an_attack_sees_only_what_it_declares(tmp_path):
    made, _, provenance = recorded(Recorder, tmp_path)
    assert set(made.task.data.labels) == {NO_LABEL}
    assert provenance.cost.queries == 10
    with pytest.raises(AccessError):
        made.task.victim.white_box()


def test_who_holds_the_weights_asks_nobody(tmp_path):
    made, _, provenance = recorded(Labelled, tmp_path)
    assert set(made.task.data.labels) == set(range(10))
    assert provenance.cost.queries == 0


def test_images_for_measuring_are_never_shown(tmp_path):
    made, target, provenance = recorded(Recorder, tmp_path)
    shown = {image.tobytes() for image in made.task.data.pixels}
    assert len(made.task.data) + provenance.fidelity.images == len(target.data)
    assert provenance.fidelity.images == int(0.2 * len(target.data))
    order = np.random.default_rng(3).permutation(len(target.data))[: provenance.fidelity.images]
    assert sum(image.tobytes() in shown for image in target.data.pixels[order]) < 3  # the digits hold a few duplicates


def test_a_copy_agrees_with_the_victim(tmp_path):
    _, _, provenance = recorded(Recorder, tmp_path)
    assert provenance.fidelity.agreement == 1.0
    assert provenance.fidelity.accuracy == provenance.fidelity.victim_accuracy > 0.9


def test_the_written_provenance_is_the_returned_one(tmp_path):
    provenance = attack("prune", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.2}, seed=5)
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert written.pop("schema_version") == 1
    assert written == json.loads(json.dumps(asdict(provenance)))
    assert written["options"]["rate"] == 0.2
    assert written["options"]["batch"] == 128
    assert written["seed"] == 5
    assert written["device"] == "cpu"
    assert written["data"] == {"name": "digits.npz", "digest": digits().digest, "images": 1797}
    assert {"fp-audit", "torch", "onnxruntime", "timm", "transformers"} <= set(written["versions"])
    assert [len(digest) for digest in written["victim"]["sha256"].values()] == [64]
    assert written["victim"]["preprocess"] == json.loads(json.dumps(NAMED["-1..1"].to_json()))


def test_labels_are_brought_into_the_victims_order(tmp_path):
    shift = (digits().labels + 3) % 10
    path = tmp_path / "shifted.npz"
    np.savez(path, images=digits().pixels, labels=shift)
    options = {"mode": "ftll", "epochs": 1}
    provenance = attack("fine-tune", str(victim("onnx")), str(path), tmp_path / "out", options=options)
    assert provenance.fidelity.victim_accuracy > 0.95
    assert provenance.fidelity.agreement > 0.95
    assert provenance.data["digest"] == replace(digits(), labels=shift).digest


def test_an_output_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="exists: name a new or empty folder"):
            attack("prune", str(victim("onnx")), data(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        attack("prune", str(victim("onnx")), data(), tmp_path / "file" / "out")


def test_an_empty_output_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    attack("prune", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.0})
    assert tensors(tmp_path / "out").keys() == tensors(victim("onnx")).keys()


def test_data_of_another_task_are_refused(tmp_path):
    path = tmp_path / "noise.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (300, 16, 16), np.uint8), labels=rng.integers(0, 10, 300))
    with pytest.raises(DataError, match=r"noise.npz does not fit .*onnx"):
        attack("prune", str(victim("onnx")), str(path), tmp_path / "out")


def test_too_few_images_are_refused(tmp_path):
    path = tmp_path / "few.npz"
    np.savez(path, images=digits().pixels[:9], labels=digits().labels[:9])
    with pytest.raises(DataError, match="holds 9 images: expected at least 10"):
        attack("prune", str(victim("onnx")), str(path), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["few.npz"]


def test_pruning_twice_is_pruning_once(tmp_path):
    model = str(victim("onnx"))
    attack("prune", model, data(), tmp_path / "twice", options={"rate": 0.3}, chain=["prune:rate=0.6"])
    attack("prune", model, data(), tmp_path / "once", options={"rate": 0.6})
    twice, once = tensors(tmp_path / "twice"), tensors(tmp_path / "once")
    assert all(np.array_equal(twice[name], once[name]) for name in once)


def test_a_chain_goes_on_from_the_surrogate_before(tmp_path):
    after = ["prune:rate=0.3", "quantise:mode=static:calibration=32"]
    done = attack("extract", str(victim("onnx")), data(), tmp_path / "out", options={"epochs": 0.3}, chain=after)
    assert done.attack == "extract+prune+quantise"
    assert list(done.options) == list(done.surrogate["facts"]) == ["1.extract", "2.prune", "3.quantise"]
    assert done.options["2.prune"]["rate"] == 0.3
    assert done.cost.queries == len(digits()) - done.fidelity.images
    assert done.surrogate["facts"]["3.quantise"]["int8_values"] > 0
    zeros = [np.mean(value == 0) for value in tensors(tmp_path / "out").values() if value.ndim > 1]
    assert max(zeros) >= 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("spec", ["prune:rate", "prune:rate=2", "prun", "prune:rat=1", ""])
def test_a_wrong_chain_is_refused_before_anything_is_done(tmp_path, spec):
    with pytest.raises((UsageError, PluginError)):
        attack("prune", "no-such-model", data(), tmp_path / "out", chain=[spec])


def test_a_surrogate_that_another_run_made_meanwhile_is_taken(tmp_path):
    target, attacks = open_victim(str(victim("onnx")), data()), [Recorder()]
    theirs = obtained(attacks, target, tmp_path / "theirs", seed=3, progress=lambda *_: None)

    def overtaken(what, done):
        if what == "measuring fidelity" and not (tmp_path / "ours").exists():
            shutil.copytree(tmp_path / "theirs", tmp_path / "ours")

    assert obtained(attacks, target, tmp_path / "ours", seed=3, progress=overtaken) == theirs
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "theirs"}
    with pytest.raises(UsageError, match="another model, seed or data set"):
        obtained(attacks, target, tmp_path / "ours", seed=4, progress=overtaken)
