import numpy as np
import pytest
import torch
from attack_victims import KINDS, data, tensors, victim
from torch import nn

from fp_audit.attacking import attack
from fp_audit.attacks.fine_tune import last_share
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


class Skipping(nn.Module):
    """Its first layer is near the logits through the shortcut, yet runs first."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        start = self.norm(self.stem(images))
        return self.head((start + self.inner(start)).mean((2, 3)))


INNER = {"inner.0.weight", "inner.0.bias", "inner.1.weight", "inner.1.bias", "inner.3.weight"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, HEAD),
        (0.25, HEAD),
        (0.5, HEAD | {"inner.3.weight"}),
        (0.75, HEAD | INNER),
        (0.9, HEAD | INNER | {"stem.weight", "stem.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_layers_are_counted_as_they_run(share, expected):
    module = Skipping().eval()
    chosen = {id(parameter) for parameter in last_share(module, torch.rand(2, 1, 5, 5), share)}
    assert {name for name, parameter in module.named_parameters() if id(parameter) in chosen} == expected


@pytest.mark.parametrize(("share", "weights"), [(0.4, 2), (0.5, 2), (0.75, 3), (0.8, 3)])
def test_training_the_last_share_changes_nothing_before_it(share, weights, tmp_path):
    names, before, _ = changed("onnx", tmp_path / "out", mode="ft", share=share, epochs=0.2)
    shapes = [(12, 1, 3, 3), (16, 12, 3, 3), (32, 144), (10, 32)][-weights:]
    assert sorted(before[name].shape for name in names) == sorted(shapes + [shape[:1] for shape in shapes])


def test_training_half_the_layers_of_a_residual_network(tmp_path):
    names, before, _ = changed("huggingface", tmp_path / "out", mode="ft", epochs=0.2)
    weights = [name for name, value in before.items() if value.ndim >= 2]
    assert sum(name in names for name in weights) == round(0.5 * len(weights))
    assert not any("running" in name or "num_batches" in name for name in names)


def test_all_layers_are_ftal(tmp_path):
    changed("onnx", tmp_path / "ft", mode="ft", share=1.0, epochs=0.2)
    _, _, ftal = changed("onnx", tmp_path / "ftal", epochs=0.2)
    ft = tensors(tmp_path / "ft")
    assert all(np.array_equal(ft[name], ftal[name]) for name in ft)


def test_it_learns(tmp_path):
    options = {"mode": "rtal", "epochs": 3, "batch": 32, "learning_rate": 0.01}
    fidelity = attack("fine-tune", str(victim("onnx")), data(), tmp_path / "out", options=options).fidelity
    assert fidelity.accuracy > 0.9
    assert fidelity.agreement > 0.9


def test_divergence_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"FTAL diverged at learning_rate=1e\+25: set a smaller one"):
        attack("fine-tune", str(victim("onnx")), data(), tmp_path / "out", options={"learning_rate": 1e25})
    assert list(tmp_path.iterdir()) == []
