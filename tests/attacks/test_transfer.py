import json

import numpy as np
import pytest
from attack_victims import KINDS, data, digits, tensors, victim

from fp_audit.attacking import attack
from fp_audit.attacks._base import Task
from fp_audit.attacks.transfer import paired
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one


def transferred(kind, out, **options):
    provenance = attack("transfer", str(victim(kind)), data(), out, options=options)
    artifact = locate_one(str(out), SourceOptions()).artifact
    assert artifact.adapter == kind
    known = provenance.victim["preprocess"]
    options = LoadOptions(preprocess=Preprocess.from_json(known) if known else None)
    return provenance, adapter(kind).load(artifact, options).predict(as_images(digits().pixels[:400]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_surrogate_has_the_classes_of_the_other_task(kind, tmp_path):
    provenance, answers = transferred(kind, tmp_path / "out", epochs=0.2)
    assert answers.shape == (400, 5)
    assert provenance.surrogate["facts"]["classes"] == 5
    assert provenance.surrogate["facts"]["task_images"] == 287
    before, after = tensors(victim(kind)), tensors(tmp_path / "out")
    shapes = {10: sorted(value.shape for value in before.values()), 5: sorted(value.shape for value in after.values())}
    changed = [tuple(5 if size == 10 and 10 in shape[:1] else size for size in shape) for shape in shapes[10]]
    assert sorted(changed) == shapes[5]
    if kind != "onnx":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config.get("num_classes", len(config.get("id2label", ()))) == 5


def test_it_learns_the_merged_classes(tmp_path):
    provenance, answers = transferred("onnx", tmp_path / "out", epochs=4, batch=32)
    truth = paired(10, Task(None, None, None, None, None, 0).draw)[digits().labels[:400]]
    assert provenance.surrogate["facts"]["task_accuracy"] > 0.9
    assert (answers.argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize("classes", [3, 12])
def test_another_data_set_is_learned(classes, tmp_path):
    labels = digits().labels if classes == 12 else digits().labels % classes
    labels = np.where(digits().labels == 9, 11, labels) if classes == 12 else labels
    np.savez(tmp_path / "other.npz", images=255 - digits().pixels, labels=labels)
    options = {"task": str(tmp_path / "other.npz"), "epochs": 5, "batch": 32}
    provenance, answers = transferred("onnx", tmp_path / "out", **options)
    assert answers.shape[1] == classes
    assert provenance.surrogate["facts"]["task_accuracy"] > 0.8


def test_classes_are_merged_in_pairs():
    for classes in (3, 4, 9, 10):
        counts = np.bincount(paired(classes, 0))
        assert len(counts) == (classes + 1) // 2
        assert sorted(counts, reverse=True)[:-1] == [2] * (len(counts) - 1)
    with pytest.raises(UsageError, match="2 classes, too few to merge"):
        paired(2, 0)


def test_no_attack_follows_in_a_chain(tmp_path):
    with pytest.raises(UsageError, match="5 classes, the victim has 10: such an attack must be the last"):
        attack("transfer", str(victim("onnx")), data(), tmp_path / "out", options={"epochs": 0.1}, chain=["prune"])
    assert list(tmp_path.iterdir()) == []
