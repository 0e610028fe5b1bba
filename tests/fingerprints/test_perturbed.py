"""Gradients at perturbed parameters: against deep copies with other weights, and nothing may stay behind."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from builders import hf_folder, timm_folder
from scipy.stats import kstest
from torch import nn

import fp_audit
from fixtures import digits
from fp_audit.engine import device_of
from fp_audit.fingerprints._perturbed import mean_loss, perturbed

DELTA = 0.05


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    """Convolution, BatchNorm with statistics of its own, and a matrix: from 2 x 6 x 6 images to 4 logits."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    made(torch.rand(32, 2, 6, 6))
    return made.eval()


def images(count=5, shape=(2, 6, 6), seed=0):
    return torch.rand(count, *shape, generator=generator(seed))


def first(logits):
    return nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def gradient_at(module, weights, x):
    """Write the weights into a copy of the network, and differentiate that."""
    copy = deepcopy(module)
    with torch.no_grad():
        for name, value in copy.named_parameters():
            value.copy_(weights[name])
    x = x.clone().requires_grad_(True)
    losses = first(copy(x))
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def averaged(module, x, delta=DELTA, draws=1, seed=0, loss=first):
    x = x.clone().requires_grad_(True)
    losses = mean_loss(module, x, loss, delta=delta, draws=draws, generator=generator(seed))
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def test_noise_is_uniform_and_independent():
    module = nn.Linear(300, 100)
    drawn = perturbed(module, DELTA, generator())
    noise = {name: (drawn[name] - value).detach().numpy() for name, value in module.named_parameters()}
    assert set(noise) == {"weight", "bias"}
    assert max(np.abs(value).max() for value in noise.values()) <= DELTA + 1e-6
    assert kstest(noise["weight"].ravel(), "uniform", args=(-DELTA, 2 * DELTA)).pvalue > 0.01
    halves = np.corrcoef(noise["weight"][:50].ravel(), noise["weight"][50:].ravel())[0, 1]
    assert abs(halves) < 0.03


def test_every_draw_differs_and_a_seed_repeats_it():
    module, one = network(), generator(1)
    first_draw, second_draw = perturbed(module, DELTA, one), perturbed(module, DELTA, one)
    again = perturbed(module, DELTA, generator(1))
    for name, value in first_draw.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, second_draw[name])


def test_only_float_parameters_are_drawn():
    module = network()
    module.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    assert set(perturbed(module, DELTA, generator())) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    }
    assert perturbed(module, 0.0, generator()) == {}


def test_a_linear_network_has_the_gradient_of_its_perturbed_row():
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    row = perturbed(module, DELTA, generator())["1.weight"][1]
    _, gradient = averaged(module, images(4, (1, 3, 3)), loss=lambda logits: logits[:, 1])
    for one in gradient:
        np.testing.assert_allclose(one.flatten(), row, rtol=1e-6)


def test_the_mean_of_a_linear_network_is_the_mean_row():
    module, source = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), generator()
    rows = np.mean([perturbed(module, DELTA, source)["1.weight"][1].numpy() for _ in range(7)], axis=0)
    _, gradient = averaged(module, images(4, (1, 3, 3)), draws=7, loss=lambda logits: logits[:, 1])
    np.testing.assert_allclose(gradient[2].flatten(), rows, rtol=1e-5)
    assert np.abs(rows - module[1].weight[1].detach().numpy()).max() < DELTA


@pytest.mark.parametrize("draws", [1, 4])
def test_the_mean_is_that_of_a_loop_over_copies(draws):
    module, x, source = network(), images(), generator(3)
    wanted = [gradient_at(module, perturbed(module, DELTA, source), x) for _ in range(draws)]
    value, gradient = averaged(module, x, draws=draws, seed=3)
    np.testing.assert_allclose(value, np.mean([one[0].numpy() for one in wanted], axis=0), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean([one[1].numpy() for one in wanted], axis=0), rtol=1e-4, atol=1e-7)


def test_without_a_perturbation_it_is_the_networks_own():
    module, x = network(), images()
    value, gradient = averaged(module, x, delta=0.0)
    own, wanted = gradient_at(module, dict(module.named_parameters()), x)
    assert torch.equal(gradient, wanted)
    assert torch.equal(value, own)


def test_gradients_flow_on_to_what_the_images_were_made_of():
    module, x = network(), images().requires_grad_(True)
    losses = mean_loss(module, 1 - 2 * x, first, delta=DELTA, draws=2, generator=generator())
    _, wanted = averaged(module, (1 - 2 * x).detach(), draws=2)
    np.testing.assert_allclose(torch.autograd.grad(losses.sum(), x)[0], -2 * wanted, rtol=1e-6)


def test_a_weight_that_is_used_twice_is_drawn_once():
    shared = nn.Linear(6, 6, bias=False)
    module = nn.Sequential(shared, nn.Tanh(), shared)
    x, weight = torch.rand(3, 6), perturbed(module, DELTA, generator())["0.weight"]
    value, _ = averaged(module, x, loss=lambda z: z[:, 0])
    np.testing.assert_allclose(value, ((x @ weight.T).tanh() @ weight.T)[:, 0], rtol=1e-5)


class Fragile(nn.Module):
    """Breaks in its forward pass."""

    def __init__(self, error):
        super().__init__()
        self.inner, self.error = nn.Linear(4, 2), error

    def forward(self, x):
        self.inner(x)
        raise self.error


def state(module):
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: (id(value), value.detach().clone(), value.requires_grad) for name, value in held.items()}


def unchanged(module, before):
    after = state(module)
    assert set(after) == set(before)
    for name, (identity, value, wanted) in before.items():
        assert after[name][0] == identity
        assert torch.equal(after[name][1], value)
        assert after[name][2] == wanted
    assert all(value.grad is None for value in module.parameters())


def test_the_network_is_left_as_it_was():
    module = network()
    before = state(module)
    averaged(module, images(), draws=3)
    unchanged(module, before)
    assert not module.training


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_the_network_is_left_as_it_was_when_something_breaks(error):
    def breaks(logits):
        raise error

    for module, x, loss in ((Fragile(error), torch.rand(2, 4), first), (network(), images(), breaks)):
        before = state(module)
        with pytest.raises(type(error)):
            averaged(module, x, draws=2, loss=loss)
        unchanged(module, before)


def opened(kind, folder):
    if kind == "onnx":
        digits.write_onnx(folder / "model.onnx", seed=1, epochs=0.3)
        return fp_audit.load(str(folder / "model.onnx"), preprocess="0..1", device="cpu"), (1, 8, 8)
    write = hf_folder if kind == "huggingface" else timm_folder
    return fp_audit.load(str(write(folder / "model")), device="cpu"), (3, 32, 32)


@pytest.mark.parametrize("kind", ["huggingface", "timm", "onnx"])
def test_models_of_every_adapter_can_be_perturbed(kind, tmp_path):
    model, shape = opened(kind, tmp_path)
    module, x = model.module, images(3, shape)
    before = {name: value.copy() for name, value in model.tensors().items()}
    weights = perturbed(module, DELTA, generator(2))
    assert sum(value.numel() for value in weights.values()) > 500
    value, gradient = averaged(module, x, seed=2)
    wanted, slope = gradient_at(module, weights, x)
    np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))
    assert float((gradient - averaged(module, x, delta=0.0)[1]).abs().max()) > 0
    after = model.tensors()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_the_device_is_that_of_any_tensor():
    assert device_of(nn.Flatten()) == torch.device("cpu")
    frozen = nn.Module()
    frozen.register_buffer("codes", torch.zeros(2, device="meta"))
    assert device_of(frozen) == torch.device("meta")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
