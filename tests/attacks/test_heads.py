import numpy as np
import pytest
import torch
from attack_victims import victim
from builders import hf_folder, timm_folder

from fp_audit.attacks._heads import with_classes
from fp_audit.errors import UnsupportedModel
from fp_audit.model import LoadOptions
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

SAMPLE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def opened(path, classes, seed=0, preprocess=None):
    located = locate_one(str(path), SourceOptions())
    kind, options = adapter(located.artifact.adapter), LoadOptions(preprocess=preprocess)
    return (
        kind,
        kind.load_white(located.artifact, options),
        with_classes(kind, located.artifact, options, SAMPLE, classes=classes, seed=seed),
    )


@pytest.mark.parametrize("classes", [3, 12])
@pytest.mark.parametrize(
    ("write", "about", "layers"),
    [
        (hf_folder, {"kind": "resnet"}, 1),
        (hf_folder, {"kind": "vit"}, 1),
        (hf_folder, {"kind": "pvt"}, 1),
        (hf_folder, {"kind": "deit-teacher"}, 2),
        (timm_folder, {"architecture": "test_resnet"}, 1),
        (timm_folder, {"architecture": "test_vit"}, 1),
    ],
)
def test_only_the_last_layer_is_another(write, about, layers, classes, tmp_path):
    kind, model, changed = opened(write(tmp_path / "model", **about), classes)
    before, after = model.tensors(), changed.tensors()
    others = {name for name in before if before[name].shape != after[name].shape}
    assert before.keys() == after.keys()
    assert len(others) == 2 * layers
    assert all(after[name].shape == (classes, *before[name].shape[1:]) for name in others)
    assert all(np.array_equal(before[name], after[name]) for name in before.keys() - others)
    assert changed.module(SAMPLE).shape == (2, classes)
    assert changed.classes is None
    kind.save(changed, tmp_path / "saved")
    _, again, _ = opened(tmp_path / "saved", classes)
    assert torch.equal(again.module(SAMPLE), changed.module(SAMPLE))


def test_weights_are_uniform_and_follow_from_the_seed(tmp_path):
    path = hf_folder(tmp_path / "model", kind="resnet", options={"hidden_sizes": [8, 16, 16, 100]})
    drawn = [opened(path, 1000, seed)[2].tensors()["classifier.1.weight"] for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert np.abs(drawn[0]).max() == pytest.approx(0.1, rel=1e-3)
    assert drawn[0].std() == pytest.approx(0.1 / 3**0.5, rel=0.01)


def test_a_graph_cannot_get_other_classes():
    with pytest.raises(UnsupportedModel, match="the classes of an ONNX graph are fixed"):
        opened(victim("onnx"), 5, preprocess=Preprocess())
