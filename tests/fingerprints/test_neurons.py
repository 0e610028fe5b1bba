"""Neurons: which axis counts them, which layers are looked at, and the ascent against one pair at a time."""

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network
from torch import nn

from fp_audit.fingerprints import _neurons
from fp_audit.fingerprints._neurons import (
    ascend,
    chosen_layers,
    counterpart,
    counterparts,
    excite,
    layer_shapes,
    neuron_axis,
    pairs,
    place_of,
    responses,
    responses_of,
    width,
)
from fp_audit.model import as_images

RNG = np.random.default_rng(0)


def convolutional(seed=0, channels=6, classes=5):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * channels, classes),
    )


VICTIM = Tiny(convolutional())
DATA = data(VICTIM)
START = torch.from_numpy(as_images(DATA.pixels[:12]))


class Renamed(Tiny):
    """The same network under other names, with a layer that has no row for each image."""

    def layers(self):
        return ("odd", *(f"/node_{name}" for name in super().layers()))

    def activate(self, images, layer):
        if layer == "odd":
            return torch.zeros(3 * len(images), 4)
        return self.module[: int(layer.removeprefix("/node_")) + 1](images)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 10), 1),
        ((2, 64, 28, 28), 1),
        ((2, 14, 14, 96), 3),
        ((2, 8, 8, 8), 1),
        ((2, 3, 5, 7), 1),
        ((2, 12, 197, 197), 1),
        ((2, 197, 192), 2),
        ((2, 16, 16), 2),
        ((2, 4, 3, 5, 5), 1),
    ],
)
def test_which_axis_counts_the_neurons(shape, axis):
    assert neuron_axis(shape) == axis
    assert width(shape[1:]) == shape[axis]
    assert responses(np.zeros(shape)).shape == responses(torch.zeros(shape)).shape == (2, shape[axis])


def test_a_neuron_of_a_convolution_is_a_channel():
    """The known fault: averaging over channels gives one value a row of pixels instead of one a channel."""
    maps = RNG.normal(size=(3, 4, 5, 7)).astype(np.float32)
    wanted = [[np.mean([maps[n, c, h, w] for h in range(5) for w in range(7)]) for c in range(4)] for n in range(3)]
    np.testing.assert_allclose(responses(maps), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(responses(torch.from_numpy(maps)), wanted, rtol=1e-4, atol=1e-6)


def test_a_neuron_of_tokens_is_a_dimension():
    tokens = RNG.normal(size=(2, 5, 3))
    wanted = [[np.mean([tokens[n, t, d] for t in range(5)]) for d in range(3)] for n in range(2)]
    np.testing.assert_allclose(responses(tokens), wanted)


def test_a_neuron_of_a_dense_layer_is_a_unit():
    units = RNG.normal(size=(2, 5))
    np.testing.assert_array_equal(responses(units), units)


def test_channels_may_come_last():
    maps = RNG.normal(size=(2, 4, 4, 3))
    np.testing.assert_allclose(responses(maps)[1, 2], maps[1, :, :, 2].mean())


def test_responses_do_not_depend_on_how_many_images_are_held(monkeypatch):
    whole = responses_of(VICTIM, DATA.pixels[:11], "1")
    monkeypatch.setattr(_neurons, "HELD", 4 * 6 * 16)
    np.testing.assert_allclose(responses_of(VICTIM, DATA.pixels[:11], "1"), whole, atol=1e-6)
    assert whole.shape == (11, 6)


def test_layers_without_a_row_for_each_image_are_passed_over():
    shapes = layer_shapes(Renamed(VICTIM.module), DATA.pixels)
    assert list(shapes) == [f"/node_{i}" for i in range(7)]
    assert shapes["/node_1"] == (6, 4, 4)
    assert shapes["/node_6"] == (5,)


def shapes_of(*rows):
    return dict(rows)


LENET = shapes_of(
    ("norm", (1, 28, 28)),
    ("conv1", (6, 28, 28)),
    ("relu1", (6, 28, 28)),
    ("pool1", (6, 14, 14)),
    ("conv2", (16, 10, 10)),
    ("relu2", (16, 10, 10)),
    ("pool2", (16, 5, 5)),
    ("fc1", (120,)),
    ("relu3", (120,)),
    ("fc2", (10,)),
)
RESNET = shapes_of(
    *((name, (16, 32, 32)) for name in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "block")),
    *((name, (32, 16, 16)) for name in ("conv3", "bn3", "act3")),
    ("pool", (32,)),
    ("head", (10,)),
)
VIT = shapes_of(
    ("patch", (192, 14, 14)),
    ("norm1", (197, 192)),
    ("qkv", (197, 576)),
    ("proj", (197, 192)),
    ("mlp", (197, 768)),
    ("head", (10,)),
)


@pytest.mark.parametrize(
    ("shapes", "channels", "wanted"),
    [
        (LENET, 1, ["relu1", "relu2"]),
        (RESNET, 3, ["act1", "act3"]),
        (VIT, 3, ["patch", "qkv"]),
        (shapes_of(("flat", (16,)), ("fc1", (8,)), ("act", (8,)), ("head", (5,))), 1, ["act"]),
        (shapes_of(("flat", (16,)), ("head", (5,))), 1, ["flat"]),
        (shapes_of(("head", (5,))), 1, []),
        ({}, 1, []),
    ],
)
def test_layers_near_the_input_are_chosen(shapes, channels, wanted):
    assert chosen_layers(shapes, channels) == wanted


def test_the_place_of_a_layer_among_those_of_its_shape():
    assert [place_of(RESNET, name) for name in ("conv1", "conv2", "block")] == [0, 0.5, 1]
    assert place_of(LENET, "pool1") == 0


def test_counterparts_have_the_shape_and_stand_near_the_place():
    many = {f"n{i}": (16, 32, 32) for i in range(13)} | {"other": (8, 32, 32)}
    assert counterparts(many, [16, 32, 32], 0.0) == ["n0", "n1", "n2", "n3", "n4"]
    assert counterparts(many, (16, 32, 32), 0.5) == ["n4", "n5", "n6", "n7", "n8"]
    assert counterparts(many, (16, 32, 32), 1.0) == ["n8", "n9", "n10", "n11", "n12"]
    assert counterparts(many, (8, 32, 32), 0.7) == ["other"]
    assert counterparts(many, (8, 16, 16), 0.0) == []


def about(layer):
    shapes = layer_shapes(VICTIM, DATA.pixels)
    return {"name": layer, "shape": list(shapes[layer]), "place": place_of(shapes, layer)}


@pytest.mark.parametrize("layer", ["0", "1", "2", "4", "5"])
def test_a_counterpart_is_found_under_another_name(layer):
    pixels, other = DATA.pixels[:9], Renamed(VICTIM.module)
    ours = responses_of(VICTIM, pixels, layer)
    name, theirs = counterpart(other, about(layer), pixels, ours, lambda: layer_shapes(other, pixels))
    assert name == f"/node_{layer}"
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_a_counterpart_of_that_name_is_taken_without_looking_further():
    ours = responses_of(VICTIM, DATA.pixels[:5], "1")
    other = Tiny(convolutional(1))
    name, theirs = counterpart(other, about("1"), DATA.pixels[:5], ours, None)
    assert name == "1"
    np.testing.assert_allclose(theirs, responses_of(other, DATA.pixels[:5], "1"))


def test_a_layer_of_that_name_and_another_width_is_no_counterpart():
    ours, other = responses_of(VICTIM, DATA.pixels[:5], "1"), Tiny(convolutional(1, channels=4))
    assert counterpart(other, about("1"), DATA.pixels[:5], ours, lambda: layer_shapes(other, DATA.pixels)) is None


def test_pairs_take_neurons_and_seeds_in_turn():
    neurons, seeds = pairs(np.array([7, 3, 5]), 4, 8)
    assert neurons.tolist() == [7, 3, 5, 7, 3, 5, 7, 3]
    assert seeds.tolist() == [0, 1, 2, 1, 2, 3, 2, 3]


@pytest.mark.parametrize(("live", "seeds", "count"), [(4, 4, 16), (6, 3, 100), (1, 5, 9), (9, 2, 4)])
def test_no_pair_comes_twice(live, seeds, count):
    found = list(zip(*pairs(np.arange(live), seeds, count), strict=True))
    assert len(set(found)) == len(found) == min(count, live * seeds)


def own_response(images, layer, neurons):
    with torch.no_grad():
        return responses(VICTIM.activate(images, layer))[torch.arange(len(images)), neurons]


@pytest.mark.parametrize("layer", ["1", "4", "5", "6"])
def test_the_ascent_is_one_pair_at_a_time(layer):
    neurons = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    thresholds = 2 * own_response(START, layer, neurons).abs() + 0.1
    got = ascend(VICTIM, layer, START, neurons, thresholds, steps=25, learning_rate=0.05, in_flight=5)
    for n in range(12):
        x = START[n : n + 1].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=0.05)
        best, idle, taken = -np.inf, 0, 0
        while True:
            response = VICTIM.activate(x, layer)[0, neurons[n]].mean()
            gained = response.item() > best + 1e-3 * thresholds[n].item()
            best, idle = (response.item(), 0) if gained else (best, idle + 1)
            if response > thresholds[n] or idle >= 20 or taken == 25:
                break
            optimizer.zero_grad()
            (-response).backward()
            optimizer.step()
            taken += 1
            with torch.no_grad():
                x.clamp_(0, 1)
        assert got.done[n] == (response > thresholds[n])
        assert got.steps[n] == taken
        np.testing.assert_allclose(got.images[n : n + 1], x.detach(), atol=1e-3)


def test_each_pair_excites_its_own_neuron():
    neurons = torch.arange(12) % 5
    before = own_response(START, "6", neurons)
    got = ascend(VICTIM, "6", START, neurons, before + 0.05, steps=100, learning_rate=0.05)
    after = own_response(got.images, "6", neurons)
    assert torch.equal(got.done, after > before + 0.05)
    assert got.done.sum() >= 8
    assert got.steps.min() >= 1


def test_a_linear_unit_ends_in_the_corner_of_the_box_and_is_given_up():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([torch.linspace(-1, 1, 16), torch.ones(16)]))
    neurons = torch.arange(12) % 2
    got = ascend(Tiny(module), "1", START, neurons, torch.full((12,), 99.0), steps=1000, learning_rate=0.1)
    corners = (module[1].weight.detach() > 0).float().reshape(2, *SHAPE)
    np.testing.assert_allclose(got.images, corners[neurons], atol=1e-5)
    assert not got.done.any()
    assert (got.steps < 60).all()


def test_what_is_reached_already_is_left_alone():
    neurons = torch.zeros(12, dtype=torch.long)
    got = ascend(VICTIM, "6", START, neurons, own_response(START, "6", neurons) - 1, steps=9, learning_rate=0.1)
    assert torch.equal(got.images, START)
    assert got.done.all()
    assert (got.steps == 0).all()


@pytest.mark.parametrize("layer", ["1", "4"])
def test_excited_images_exceed_all_data_after_rounding(layer):
    highest = responses_of(VICTIM, DATA.pixels, layer).max(axis=0)
    live = np.flatnonzero(highest > 0)
    neurons, seeds = pairs(live, 5, 20)
    made = excite(VICTIM, layer, DATA.pixels[seeds], neurons, highest, 1.2, steps=150, learning_rate=0.05, in_flight=8)
    assert made.pixels.dtype == np.uint8
    assert 0 < len(made.pixels) == len(made.neurons) <= 20
    np.testing.assert_allclose(made.responses, responses_of(VICTIM, made.pixels, layer), atol=1e-6)
    own = made.responses[np.arange(len(made.neurons)), made.neurons]
    assert (own > highest[made.neurons]).all()
    assert made.reached == (own > np.float32(1.2) * highest[made.neurons]).sum()


def test_images_that_excite_nothing_are_left_out():
    highest = np.full(6, 1e6, np.float32)
    made = excite(VICTIM, "1", DATA.pixels[:4], np.arange(4), highest, 3.0, steps=5, learning_rate=0.1, in_flight=8)
    assert made.pixels.shape == (0, *SHAPE)
    assert made.reached == 0


def test_a_dense_network_is_excited_too():
    white = Tiny(network(0))
    highest = responses_of(white, DATA.pixels, "2").max(axis=0)
    neurons, seeds = pairs(np.flatnonzero(highest > 0), 3, 10)
    made = excite(white, "2", DATA.pixels[seeds], neurons, highest, 1.1, steps=99, learning_rate=0.05, in_flight=99)
    assert len(made.neurons) > 2
    assert {*made.neurons} <= {*neurons}
