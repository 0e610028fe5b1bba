import numpy as np
import pytest
import torch
from attack_victims import Scaled, data, digits, tensors, victim
from torch import nn
from torch.nn.utils import prune as reference

from fp_audit.attacking import attack
from fp_audit.attacks.prune_channels import PruneChannels, convolutions, silencer, smallest, smallest_of_all
from fp_audit.engine import Recipe, fit
from fp_audit.errors import UnsupportedModel, UsageError

IMAGES = torch.rand(3, 1, 8, 8)


def silenced(weight):
    return (weight.reshape(len(weight), -1) == 0).all(axis=1)


def convolution_weights(path):
    return {name: value for name, value in tensors(path).items() if value.ndim == 4}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_silences_the_channels_that_torch_prunes(rate):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 20, 3)
    mask = smallest(layer.weight.detach().abs().flatten(1).sum(1), int(rate * 20))
    reference.ln_structured(layer, "weight", amount=int(rate * 20), n=1, dim=0)
    assert torch.equal(mask, ~layer.weight_mask.flatten(1).any(1))


def test_the_answers_are_those_of_the_smaller_network():
    torch.manual_seed(0)
    full = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    ).eval()
    nn.init.normal_(full[1].bias)
    keep = torch.tensor([1, 2, 5])
    small = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    ).eval()
    with torch.no_grad():
        for name, value in full.state_dict().items():
            cut = value[keep] if name[0] in "01" and value.ndim else value[:, keep] if name == "3.weight" else value
            small.state_dict()[name].copy_(cut)
    found = convolutions(full, IMAGES)
    assert [len(layer.weight) for layer in found] == [4, 6]
    assert [len(layer.vectors) for layer in found] == [1, 3]
    gone = torch.tensor([True, False, False, True, True, False])
    silencer(found, [torch.zeros(4, dtype=torch.bool), gone])()
    torch.testing.assert_close(full(IMAGES), small(IMAGES))


def test_a_bias_and_a_normalisation_that_are_separate_operations_belong_to_the_convolution():
    class Spelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(1, 6, 3, bias=False), nn.Linear(6, 5)
            self.bias, self.scale = nn.Parameter(torch.rand(1, 6, 1, 1)), nn.Parameter(torch.rand(6))
            self.shift, self.later = nn.Parameter(torch.rand(6, 1, 1)), nn.Parameter(torch.rand(6, 1, 1))

        def forward(self, images):
            x = (self.convolution(images) + self.bias) * self.scale.view(1, 6, 1, 1) + self.shift
            return self.head((x.relu() + self.later).mean((2, 3)))

    module = Spelled()
    (found,) = convolutions(module, IMAGES)
    assert {id(vector) for vector in found.vectors} == {id(module.bias), id(module.scale), id(module.shift)}


def test_a_convolution_that_makes_the_logits_stays():
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [layer.weight.shape for layer in convolutions(module, IMAGES)] == [(6, 1, 3, 3)]


def test_over_all_layers_one_channel_of_each_stays():
    small, large = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([5.0, 4.0, 1.0, 6.0])
    first, second = smallest_of_all([small, large], 3)
    assert first.tolist() == [True, True, False]
    assert second.tolist() == [False, False, True, False]
    first, second = smallest_of_all([small, large], 7)
    assert (int(first.sum()), int(second.sum())) == (2, 3)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("epochs", [0.0, 0.2])
def test_exactly_the_share_that_was_asked_for_is_silent(scope, epochs, tmp_path):
    options = {"rate": 0.3, "epochs": epochs, "scope": scope}
    provenance = attack("prune-channels", str(victim("huggingface")), data(), tmp_path / "out", options=options)
    found = convolution_weights(tmp_path / "out")
    counts = [int(silenced(value).sum()) for value in found.values()]
    channels = sum(map(len, found.values()))
    assert provenance.surrogate["facts"] == {"channels": channels, "silenced": sum(counts)}
    each = [int(0.3 * len(value)) for value in found.values()]
    assert sum(counts) == (int(0.3 * channels) if scope == "global" else sum(each))
    assert (counts == each) == (scope == "layer")


def test_biases_of_an_onnx_victim_go_with_their_channels(tmp_path):
    attack("prune-channels", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.5})
    after = tensors(tmp_path / "out")
    masks = {len(value): silenced(value) for value in convolution_weights(tmp_path / "out").values()}
    assert {size: int(mask.sum()) for size, mask in masks.items()} == {12: 6, 16: 8}
    for size, mask in masks.items():
        bias = next(value for value in after.values() if value.shape == (size,))
        assert (bias[mask] == 0).all()
        assert (bias[~mask] != 0).all()


def test_a_rate_of_zero_is_a_copy(tmp_path):
    attack("prune-channels", str(victim("onnx")), data(), tmp_path / "out", options={"rate": 0.0})
    before, after = tensors(victim("onnx")), tensors(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_network_without_convolutions_is_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(
        Scaled(network),
        digits().pixels,
        digits().labels,
        Recipe(epochs=2, optimizer="adam", learning_rate=0.01),
        seed=0,
    )
    torch.onnx.export(network, (torch.zeros(2, 1, 16, 16),), tmp_path / "m.onnx", dynamo=True, verbose=False)
    with pytest.raises(UnsupportedModel, match="no convolution to prune"):
        attack("prune-channels", str(tmp_path / "m.onnx"), data(), tmp_path / "out")


def test_the_rate_is_checked():
    with pytest.raises(UsageError, match=r"rate is 1: expected a share in \[0, 1\)"):
        PruneChannels(rate=1)
