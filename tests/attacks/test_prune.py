import numpy as np
import pytest
import torch
from attack_victims import KINDS, data, tensors, victim
from torch import nn
from torch.nn.utils import prune as reference

from fp_audit.attacking import attack
from fp_audit.attacks.prune import Prune, Pruner, gradually, planned
from fp_audit.errors import UsageError


def weights(path):
    return [value for value in tensors(path).values() if value.ndim >= 2]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_prunes_what_torch_prunes(rate):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(40, 5))
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(40, 5))
    theirs.load_state_dict(ours.state_dict())
    chosen = [layer.weight for layer in ours]
    count = int(rate * sum(weight.numel() for weight in chosen))
    Pruner(chosen).choose(count)
    reference.global_unstructured([(layer, "weight") for layer in theirs], reference.L1Unstructured, amount=count)
    for ours_layer, theirs_layer in zip(ours, theirs, strict=True):
        assert torch.equal(ours_layer.weight, theirs_layer.weight)
        assert torch.equal(ours_layer.bias, theirs_layer.bias)


def test_of_equal_weights_exactly_as_many_go():
    weight = nn.Parameter(torch.ones(10, 10))
    Pruner([weight]).choose(37)
    assert (weight == 0).sum() == 37


@pytest.mark.parametrize("epochs", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_share_that_was_asked_for_is_zero(kind, epochs, tmp_path):
    options = {"rate": 0.6, "epochs": epochs}
    facts = attack("prune", str(victim(kind)), data(), tmp_path / "out", options=options).surrogate["facts"]
    values = np.concatenate([weight.ravel() for weight in weights(tmp_path / "out")])
    assert facts == {"weights": len(values), "pruned": int(0.6 * len(values))}
    assert (values == 0).sum() == int(0.6 * len(values))


def test_without_training_the_other_weights_stay(tmp_path):
    attack("prune", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.3})
    for before, after in zip(weights(victim("onnx")), weights(tmp_path / "out"), strict=True):
        assert np.array_equal(after[after != 0], before[after != 0])


def test_a_rate_of_zero_is_a_copy(tmp_path):
    provenance = attack("prune", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.0})
    before, after = tensors(victim("onnx")), tensors(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert provenance.fidelity.agreement == 1.0
    assert provenance.cost.steps == 0


def test_the_schedule_is_cubic():
    assert [planned(step, 100, 1000) for step in (0, 15, 30, 45, 60, 75, 100)] == [0, 488, 784, 936, 992, 1000, 1000]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_what_was_pruned_stays_pruned_and_the_rate_is_reached(steps):
    generator, zeros = torch.Generator().manual_seed(0), []
    weight = nn.Parameter(torch.randn(20, 20, generator=generator))
    after_step, gone = gradually(Pruner([weight]), 300, steps), torch.zeros(20, 20, dtype=torch.bool)
    for _ in range(steps):
        with torch.no_grad():
            weight += 0.1 * torch.randn(20, 20, generator=generator)
        after_step()
        assert (weight[gone] == 0).all()
        gone = weight == 0
        zeros.append(int(gone.sum()))
    assert zeros[-1] == 300
    assert len(set(zeros)) >= min(20, steps // 2)


@pytest.mark.parametrize("kind", ["huggingface", "onnx"])
def test_pruned_step_by_step_exactly_the_share_that_was_asked_for_is_zero(kind, tmp_path):
    options = {"rate": 0.7, "schedule": "iterative", "epochs": 2, "batch": 64, "learning_rate": 0.02}
    provenance = attack("prune", str(victim(kind)), data(), tmp_path / "out", options=options)
    values = np.concatenate([weight.ravel() for weight in weights(tmp_path / "out")])
    assert (values == 0).sum() == int(0.7 * len(values))
    assert provenance.fidelity.accuracy > 0.9


def test_step_by_step_without_steps_is_refused():
    with pytest.raises(UsageError, match=r"epochs is 0.0: expected more than 0 for schedule=iterative"):
        Prune(schedule="iterative")
