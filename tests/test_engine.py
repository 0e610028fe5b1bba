"""Training: what is shown, that many at once are as good as one by one, how many images fit."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from fp_audit import engine
from fp_audit.engine import Recipe, batch_size, fit, fit_many, predict_network, top1
from fp_audit.families import build
from fp_audit.model import as_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (96, 3, 12, 10), dtype=np.uint8)
LABELS = RNG.integers(0, 5, 96)


def drawn(make, seed):
    torch.manual_seed(seed)
    return make()


def one_by_one_and_together(make, recipe, targets=LABELS, seeds=(3, 4, 5)):
    """Train the same networks twice: each alone on its row of the targets, and all at once."""
    alone = [drawn(make, seed) for seed in seeds]
    together = deepcopy(alone)
    rows = np.broadcast_to(targets, (len(seeds), len(PIXELS)))
    steps = [
        fit(network, PIXELS, row.copy(), recipe, seed=seed)
        for network, row, seed in zip(alone, rows, seeds, strict=True)
    ]
    assert fit_many(together, PIXELS, targets, recipe, seeds=seeds) == steps[0]
    return alone, together


def assert_equal_states(first, second, atol):
    for one, other in zip(first, second, strict=True):
        states = one.state_dict(), other.state_dict()
        for name in states[0]:
            torch.testing.assert_close(states[1][name], states[0][name], atol=atol, rtol=1e-4, msg=name)


class Recorder(nn.Module):
    """Answers at random and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.head, self.shown = nn.Linear(3, 5), []

    def forward(self, images):
        self.shown.append(images.detach().clone())
        return self.head(images.mean((2, 3)))


@pytest.mark.parametrize(
    ("optimizer", "rate", "atol"),
    [("sgd", 0.01, 1e-6), ("adam", 0.001, 1e-4)],  # Adam divides by gradients, however small
)
def test_many_at_once_are_trained_as_each_alone(optimizer, rate, atol):
    recipe = Recipe(epochs=2, batch=32, optimizer=optimizer, learning_rate=rate, shift=0.1, flip=True)
    alone, together = one_by_one_and_together(lambda: build("lenet", 4, 5, (3, 12, 10)), recipe)
    assert_equal_states(alone, together, atol=atol)
    assert not any(network.training for network in together)


@pytest.mark.parametrize("family", ["plain", "residual", "depthwise"])
def test_moving_statistics_move_in_each_of_many(family):
    recipe = Recipe(epochs=1, batch=32, learning_rate=0.01, shift=0.1)
    alone, together = one_by_one_and_together(lambda: build(family, 4, 5, (3, 12, 10)), recipe)
    assert_equal_states(alone, together, atol=1e-5)
    norm = next(layer for layer in together[1].modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 3


def test_each_of_many_may_have_labels_of_its_own():
    targets = RNG.integers(0, 5, (3, 96))
    recipe = Recipe(epochs=1, batch=32, learning_rate=0.05)
    alone, together = one_by_one_and_together(lambda: build("lenet", 4, 5, (3, 12, 10)), recipe, targets)
    assert_equal_states(alone, together, atol=1e-5)


def test_frozen_weights_stay_and_constants_can_be_read():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sides", torch.tensor([6, 5]))
            self.frozen, self.head = nn.Linear(90, 8), nn.Linear(8, 5)
            self.frozen.requires_grad_(False)

        def forward(self, images):
            small = nn.functional.adaptive_avg_pool2d(images, self.sides.tolist())  # no stacked tensor can do this
            return self.head(self.frozen(small.flatten(1)).relu())

    recipe = Recipe(epochs=1, batch=32, learning_rate=0.05)
    alone, together = one_by_one_and_together(Half, recipe)
    assert_equal_states(alone, together, atol=1e-6)
    assert torch.equal(together[0].frozen.weight, drawn(Half, 3).frozen.weight)


def test_dropout_differs_between_many():
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(360, 16), nn.Dropout(0.5), nn.Linear(16, 5))

    twins = [drawn(make, 1), drawn(make, 1)]
    fit_many(twins, PIXELS, LABELS, Recipe(epochs=1, batch=32, learning_rate=0.1), seeds=(7, 7))
    assert not torch.equal(twins[0][1].weight, twins[1][1].weight)


def test_a_seed_gives_the_same_weights_and_leaves_torchs_generator_alone():
    recipe = Recipe(epochs=1, batch=32, shift=0.1, flip=True, learning_rate=0.01)
    networks = [drawn(lambda: build("plain", 4, 5, (3, 12, 10)), 1) for _ in range(3)]
    state = torch.get_rng_state()
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        fit(network, PIXELS, LABELS, recipe, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [network.state_dict()["1.0.weight"] for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("shift", "flip"), [(0.0, False), (0.2, False), (0.0, True), (0.2, True)])
def test_what_is_shown_is_a_shifted_or_flipped_image(shift, flip):
    recorder, reach = Recorder(), round(shift * 10)
    fit(recorder, PIXELS, LABELS, Recipe(epochs=1, batch=32, shift=shift, flip=flip), seed=0)
    edges = [(0, 0), (0, 0), (reach, reach), (reach, reach)]
    padded = as_images(np.pad(PIXELS, edges, mode="edge"))
    found, mirrored = [], 0
    for image in torch.cat(recorder.shown).numpy():
        for top, left, turn in np.ndindex(2 * reach + 1, 2 * reach + 1, 2 if flip else 1):
            view = padded[:, :, top : top + 12, left : left + 10][:, :, :, :: -1 if turn else 1]
            same = (view == image).all(axis=(1, 2, 3)).nonzero()[0]
            if len(same):
                found.append(same[0])
                mirrored += turn
                break
    assert sorted(found) == list(range(96))  # one epoch: each image once
    assert flip == (20 < mirrored < 76)


def test_progress_rises_to_the_end():
    told = []
    network = build("lenet", 4, 5, (3, 12, 10))
    fit(network, PIXELS, LABELS, Recipe(epochs=8, batch=32), seed=0, progress=lambda what, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) == 4  # steps 0, 10, 20 of 24, and the end


@pytest.mark.parametrize("count", [0, 1, 7, 96])
def test_answers_do_not_depend_on_the_batches(count, monkeypatch):
    network = build("plain", 4, 5, (3, 12, 10)).eval()
    whole = network(torch.from_numpy(as_images(PIXELS)))[:count].detach().numpy()
    monkeypatch.setattr(engine, "_CPU_BYTES", 100_000)
    answers = predict_network(network, as_images(PIXELS[:count]))
    assert answers.shape == (count, 5)
    np.testing.assert_allclose(answers, whole, atol=1e-6)


def test_labels_are_asked_in_blocks(monkeypatch):
    class Counting:
        asked = ()

        def predict(self, images):
            self.asked += (len(images),)
            return images[:, :, 0, 0]

    monkeypatch.setattr(engine, "_BLOCK", 40)
    model = Counting()
    labels, classes = top1(model, PIXELS)
    assert model.asked == (40, 40, 16)
    assert classes == 3
    np.testing.assert_array_equal(labels, PIXELS[:, :, 0, 0].argmax(axis=1))


def test_what_autograd_holds_of_an_image_is_counted(monkeypatch):
    class Squares(nn.Module):
        """Holds its input and its output, once each however often they are used."""

        def forward(self, images):
            squares = images.square()
            return (squares.square() + squares.square()).flatten(1)

    monkeypatch.setattr(engine, "_CPU_BYTES", 100 * 2 * 3 * 8 * 8 * 4)
    assert batch_size(Squares(), (3, 8, 8), "cpu", gradients=True) == 100


def test_large_networks_get_fewer_images():
    sizes = [
        batch_size(build("residual", width, 5, (3, 32, 32)).eval(), (3, 32, 32), "cpu", gradients=True)
        for width in (4, 16, 64)
    ]
    assert 512 >= sizes[0] > sizes[1] > sizes[2] >= 1
    assert batch_size(build("lenet", 2, 5, (1, 8, 8)).eval(), (1, 8, 8), "cpu", gradients=False) == 512
