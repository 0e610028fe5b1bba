import numpy as np
import pytest
from attack_victims import KINDS, data, tensors, victim

from fp_audit.attacking import attack
from fp_audit.errors import UsageError


def changed(kind, out, **options):
    attack("fine-tune", str(victim(kind)), data(), out, options=options)
    before, after = tensors(victim(kind)), tensors(out)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}, before, after


@pytest.mark.parametrize("mode", ["ftll", "rtll"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_the_last_layer_changes_nothing_else(kind, mode, tmp_path):
    names, before, _ = changed(kind, tmp_path / "out", mode=mode, epochs=0.2)
    assert sorted(before[name].shape for name in names) in ([(10,), (10, 32)], [(10,), (10, 96)])


@pytest.mark.parametrize("mode", ["ftal", "rtal"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_all_layers_changes_all(kind, mode, tmp_path):
    names, before, _ = changed(kind, tmp_path / "out", mode=mode, epochs=0.2)
    still = set(before) - names
    assert all(name.endswith("num_batches_tracked") or not before[name].any() for name in still)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_last_layer_is_drawn_as_torch_draws_it(kind, tmp_path):
    names, before, after = changed(kind, tmp_path / "out", mode="rtll", epochs=0.01, learning_rate=1e-9)
    weight = next(name for name in names if before[name].ndim == 2)
    bias = next(name for name in names if before[name].ndim == 1)
    bound = after[weight].shape[1] ** -0.5
    assert abs(after[weight]).max() <= bound * 1.001
    assert after[weight].std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(after[bias]).max() <= bound * 1.001
    assert abs(np.corrcoef(before[weight].ravel(), after[weight].ravel())[0, 1]) < 0.2


def test_it_learns(tmp_path):
    options = {"mode": "rtal", "epochs": 3, "batch": 32, "learning_rate": 0.01}
    fidelity = attack("fine-tune", str(victim("onnx")), data(), tmp_path / "out", options=options).fidelity
    assert fidelity.accuracy > 0.9
    assert fidelity.agreement > 0.9


def test_divergence_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"FTAL diverged at learning_rate=1e\+25: set a smaller one"):
        attack("fine-tune", str(victim("onnx")), data(), tmp_path / "out", options={"learning_rate": 1e25})
    assert list(tmp_path.iterdir()) == []
