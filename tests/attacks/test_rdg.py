import numpy as np
import pytest
from attack_victims import data, tensors, victim

from fp_audit.attacking import attack
from fp_audit.attacks._options import build
from fp_audit.augmentation import Rdg, stated
from fp_audit.errors import UsageError
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate_one


def made(out, **options):
    provenance = attack("rdg", str(victim("onnx")), data(), out, options=options)
    return provenance, stated(locate_one(str(out), SourceOptions()).artifact)


def test_without_data_the_weights_are_the_victim_s(tmp_path):
    provenance, found = made(tmp_path / "out", grids=5, limit=0.4)
    assert found == Rdg(5, 0.4)
    assert provenance.cost.steps == 0
    before, after = tensors(victim("onnx")), tensors(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_usual_distortion_is_that_of_the_authors_code(tmp_path):
    provenance, found = made(tmp_path / "out")
    assert found == Rdg(26, 0.33)
    assert 0.6 < provenance.fidelity.agreement < 1.0


def test_without_distortion_nothing_is_lost(tmp_path):
    provenance, _ = made(tmp_path / "out", limit=0.0)
    assert provenance.fidelity.agreement == 1.0


def test_training_behind_it_gains_accuracy(tmp_path):
    free, _ = made(tmp_path / "free", limit=0.9)
    limited, _ = made(tmp_path / "limited", limit=0.9, mode="data-limited", epochs=4.0, learning_rate=0.01)
    assert limited.cost.steps == round(4 * 1438 / 128)
    assert limited.fidelity.accuracy > free.fidelity.accuracy + 0.05


@pytest.mark.parametrize("options", [{"grids": 0}, {"grids": 10**6}, {"limit": -0.1}, {"limit": 1.1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        build("rdg", options)
