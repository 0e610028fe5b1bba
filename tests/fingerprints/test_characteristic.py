"""Characteristic examples: the DCT against scipy, the descent against algebra, and what is promised of the queries."""

from collections import Counter

import numpy as np
import pytest
import scipy.fft
import torch
from contract.test_methods import SHAPE, Tiny, data, network, subject
from torch import nn

import fp_audit
from fixtures import digits
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints.characteristic import (
    ROUNDS,
    VARIANTS,
    Characteristic,
    balanced_targets,
    dct_matrix,
    driven,
    filtered,
    high_pass,
    image_shape,
    reached,
)
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import InputSpec
from fp_audit.workshop import Workshop


def fresh():
    """A network of which every class can be reached from noise."""
    return network(5, hidden=32)


VICTIM = Tiny(fresh())
FAST = {"queries": 12, "steps": 80, "step": 0.03, "confidence": 0.9, "draws": 3}

each = pytest.mark.parametrize("variant", VARIANTS)


def generate(variant="rce", seed=0, victim=VICTIM, given=None, workshop=None, **options):
    method = Characteristic(variant=variant, **{**FAST, **options})
    return method.generate(subject(victim), given, seed=seed, workshop=workshop)


def probabilities(model, pixels):
    answers = np.asarray(model.predict(as_images(pixels)), np.float64)
    return np.exp(answers) / np.exp(answers).sum(axis=1, keepdims=True)


# The high-pass


def test_a_dct_of_two_values():
    np.testing.assert_allclose(dct_matrix(2, torch.zeros(1)), np.array([[1, 1], [1, -1]]) / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 28])
def test_the_matrix_is_scipys_dct(size):
    matrix = dct_matrix(size, torch.zeros(1, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(matrix, scipy.fft.dct(np.eye(size), axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 3, 6, 9), (1, 1, 28, 28)])
@pytest.mark.parametrize("mask", [1, 2, 5])
def test_the_high_pass_is_scipys(shape, mask):
    images = np.random.default_rng(0).random(shape)
    spectrum = scipy.fft.dctn(images, axes=(2, 3), norm="ortho")
    spectrum[:, :, :mask, :mask] = 0
    wanted = scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(high_pass(torch.from_numpy(images), mask), wanted, atol=1e-12)


def test_the_high_pass_is_a_projection_and_so_is_its_gradient():
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    once, other = high_pass(x, 3), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    np.testing.assert_allclose(high_pass(once, 3).detach(), once.detach(), atol=1e-12)
    gradient = torch.autograd.grad((once * other).sum(), x)[0]
    np.testing.assert_allclose(gradient, high_pass(other, 3), atol=1e-12)


def test_what_is_shown_lies_around_grey_in_the_box():
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filtered(x, 0), x)
    shown = filtered(x, 2)
    assert shown.min() >= 0
    assert shown.max() <= 1
    gentle = filtered(0.4 + 0.2 * x, 2)
    np.testing.assert_allclose(gentle.mean(dim=(2, 3)), 0.5, atol=1e-6)
    np.testing.assert_allclose(filtered(torch.full((1, 1, 8, 8), 0.9), 1), 0.5, atol=1e-6)


# Targets and shapes


@pytest.mark.parametrize(("count", "classes"), [(100, 10), (12, 5), (3, 7), (7, 2), (1, 1)])
def test_targets_are_balanced(count, classes):
    goal = balanced_targets(count, classes, np.random.default_rng(0))
    counts = np.bincount(goal, minlength=classes)
    assert len(goal) == count
    assert len(counts) == classes
    assert counts.max() - counts.min() <= 1


def test_targets_are_in_random_order_and_so_are_the_classes_left_over():
    many = [balanced_targets(7, 5, np.random.default_rng(seed)) for seed in range(60)]
    assert len({tuple(goal) for goal in many}) > 50
    twice = Counter(label for goal in many for label, count in Counter(goal.tolist()).items() if count == 2)
    assert set(twice) == set(range(5))


def test_image_shapes():
    assert image_shape(InputSpec(3, 20, 24), 32) == (3, 20, 24)
    assert image_shape(InputSpec(1, None, None), 16) == (1, 16, 16)


def test_a_victim_of_any_size_gets_images_of_the_side_that_was_chosen():
    class Channels(nn.Module):
        """The logits are ten times the channels' means."""

        def forward(self, images):
            return 10 * images.mean(dim=(2, 3))

    victim = Tiny(Channels())
    victim.spec = InputSpec(3, None, None)
    found = generate(victim=victim, side=10, queries=6)
    assert found.arrays["queries"].shape == (6, 3, 10, 10)
    brightest = found.arrays["queries"].mean(axis=(2, 3)).argmax(axis=1)
    np.testing.assert_array_equal(brightest, found.arrays["labels"])
    assert Characteristic().options["side"] == 32


# The descent


def linear(weight, bias=(0.0, 0.0)):
    """Two classes: a linear network whose logits are ``weight @ x + bias``."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)))
        module[1].bias.copy_(torch.tensor(bias))
    return module.eval()


def drive(module, start, goal, **options):
    defaults = {"delta": 0.0, "draws": 1, "mask": 0, "confidence": 0.9, "epsilon": 1.0, "step": 0.01, "steps": 200}
    generator = torch.Generator().manual_seed(0)
    return driven(module, start, torch.tensor(goal), generator, **{**defaults, "batch": 4, **options})


def test_a_linear_network_is_crossed_where_algebra_says():
    """The sign of the gradient is the sign of the difference of the rows: the number of steps follows."""
    slope = np.linspace(-1, 1, 16)
    found = drive(linear([slope, -slope]), torch.full((2, *SHAPE), 0.5), [0, 1])
    wanted = np.log(9.0)  # a probability of .9 is a difference of logits of log(.9 / .1)
    per_step = 2 * 0.01 * np.abs(slope).sum()
    steps = int(np.ceil(wanted / per_step))
    assert found.done.all()
    assert abs(found.steps - steps).max() <= 1  # rounding to uint8 may shift it by one
    for image, sign, taken in zip(found.images, (1, -1), found.steps.tolist(), strict=True):
        np.testing.assert_allclose(image.flatten(), 0.5 + sign * 0.01 * taken * np.sign(slope), atol=1e-5)


@pytest.mark.parametrize("mask", [0, 1, 2])
def test_the_batch_is_a_loop_over_images(mask):
    """Against one image at a time, written in numpy; the softmax of two logits is a sigmoid."""
    rng = np.random.default_rng(1)
    weight, start, goal = rng.normal(size=(2, 16)), rng.random((7, *SHAPE)).astype(np.float32), rng.integers(0, 2, 7)
    got = drive(linear(weight), torch.from_numpy(start), goal, mask=mask, confidence=0.95, batch=3, step=0.02)
    assert got.done.all()
    assert got.steps.max() > 5
    for n in range(7):
        x, slope = start[n, 0].astype(np.float64), (weight[goal[n]] - weight[1 - goal[n]]).reshape(4, 4)
        taken = 0
        while True:
            seen, inside = x, np.ones((4, 4))
            if mask:
                spectrum = scipy.fft.dctn(x, norm="ortho")
                spectrum[:mask, :mask] = 0
                raw = scipy.fft.idctn(spectrum, norm="ortho") + 0.5
                seen, inside = raw.clip(0, 1), (raw >= 0) & (raw <= 1)
            if 1 / (1 + np.exp(-(slope * np.rint(255 * seen) / 255).sum())) >= 0.95:
                break
            ascent = slope * inside
            if mask:
                spectrum = scipy.fft.dctn(ascent, norm="ortho")
                spectrum[:mask, :mask] = 0
                ascent = scipy.fft.idctn(spectrum, norm="ortho")
            x, taken = (x + 0.02 * np.sign(ascent)).clip(0, 1), taken + 1
        assert taken == int(got.steps[n])
        np.testing.assert_allclose(got.images[n, 0], x, atol=1e-5)


def test_a_large_perturbation_changes_the_way_and_a_seed_repeats_it():
    module, start = fresh(), torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    goal = [0, 1, 2, 3, 4, 0]
    plain, noisy, again = (drive(module, start, goal, delta=delta, steps=30).images for delta in (0.0, 0.5, 0.5))
    assert torch.equal(noisy, again)
    assert not torch.equal(plain, noisy)
    averaged = drive(module, start, goal, delta=0.5, draws=4, steps=30).images
    assert not torch.equal(averaged, noisy)


def test_no_pixel_leaves_the_ball_or_the_box():
    start = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    goal = [0, 1, 2, 3, 4, 0, 1, 2]
    free = drive(fresh(), start, goal, confidence=0.9999, step=0.05).images
    assert free.min() >= 0
    assert free.max() <= 1
    assert ((free == 0) | (free == 1)).any()
    near = drive(fresh(), start, goal, confidence=0.9999, step=0.05, epsilon=0.1).images
    assert float((near - start).abs().max()) <= 0.1 + 1e-6
    assert near.min() >= 0
    assert near.max() <= 1


def test_reached_means_after_rounding():
    """Class 1 from .5 on; 127.4 / 255 is rounded to 127, below, and both others to 128."""
    steep = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        steep[1].weight.copy_(torch.tensor([[0.0], [1000.0]]))
        steep[1].bias.copy_(torch.tensor([0.0, -500.0]))
    images = torch.tensor([127.4, 127.6, 128.4]).reshape(3, 1, 1, 1) / 255
    assert steep(images).argmax(dim=1).tolist() == [0, 1, 1]
    ones = torch.ones(3, dtype=torch.long)
    assert reached(steep, images, ones, 0.0).tolist() == [False, True, True]
    confidence = float(torch.sigmoid(torch.tensor(1000 * 128 / 255 - 500)))
    assert reached(steep, images, ones, confidence - 1e-3).tolist() == [False, True, True]
    assert reached(steep, images, ones, confidence + 1e-3).tolist() == [False, False, False]
    assert steep(images[2:]).softmax(dim=1)[0, 1].item() > confidence + 1e-3


# The queries


@each
def test_kept_images_are_in_their_class_after_rounding(variant):
    found = generate(variant)
    queries, labels = found.arrays["queries"], found.arrays["labels"]
    assert queries.dtype == np.uint8
    assert queries.shape == (12, *SHAPE)
    shown = probabilities(VICTIM, queries)
    np.testing.assert_array_equal(shown.argmax(axis=1), labels)
    assert found.facts["probability"] == pytest.approx(shown.max(axis=1).mean(), rel=1e-5)
    assert Characteristic().compare(found, subject(VICTIM)).value == 1


@each
def test_classes_are_balanced(variant):
    found = generate(variant, queries=13)
    if found.facts["tried"] == 13:  # nothing had to be replaced
        counts = np.bincount(found.arrays["labels"], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert set(found.arrays["labels"]) == set(range(5))


def test_images_that_never_get_sure_are_kept_if_they_are_in_their_class():
    unsure = fresh()
    with torch.no_grad():
        unsure[3].weight.mul_(0.05)
        unsure[3].bias.mul_(0.05)
    found = generate(victim=Tiny(unsure), steps=30)
    assert len(found.arrays["queries"]) == 12
    assert 0.2 < found.facts["probability"] < 0.9
    np.testing.assert_array_equal(
        probabilities(Tiny(unsure), found.arrays["queries"]).argmax(1), found.arrays["labels"]
    )


@each
def test_seeds(variant):
    one, again, other = generate(variant, 3), generate(variant, 3), generate(variant, 4)
    np.testing.assert_array_equal(one.arrays["queries"], again.arrays["queries"])
    assert not np.array_equal(one.arrays["queries"], other.arrays["queries"])


@each
def test_data_are_not_looked_at(variant):
    without, given = generate(variant), generate(variant, given=data(VICTIM))
    np.testing.assert_array_equal(without.arrays["queries"], given.arrays["queries"])
    assert without.facts == given.facts


@each
def test_facts(variant):
    facts = generate(variant).facts
    assert facts["variant"] == variant
    assert facts["mask"] == (1 if variant == "rce-lt" else 0)
    assert facts["queries"] == 12 <= facts["tried"] <= 12 * ROUNDS
    assert 0 <= facts["unmoved"] <= facts["tried"]
    assert facts["classes"] == 5


@pytest.mark.parametrize(("mask", "used"), [(0, 2), (1, 1), (3, 3)])
def test_the_default_mask_is_a_quarter(mask, used):
    wide = nn.Sequential(nn.Flatten(), nn.Linear(96, 3)).eval()
    victim = Tiny(wide)
    victim.spec = InputSpec(1, 8, 12)
    assert generate("rce-lt", victim=victim, mask=mask, confidence=0.4).facts["mask"] == used


def test_filtered_queries_have_grey_instead_of_low_frequencies():
    queries = generate("rce-lt", mask=2, confidence=0.5).arrays["queries"]
    inside = queries[((queries > 0) & (queries < 255)).all(axis=(1, 2, 3))]
    assert len(inside) > 0
    low = scipy.fft.dctn(inside / 255 - 0.5, axes=(2, 3), norm="ortho")[:, :, :2, :2]
    assert np.abs(low).max() <= 0.5 / 255 * 4  # rounding alone: half a level in each of 16 pixels
    plain = generate("rce", confidence=0.5).arrays["queries"]
    assert np.abs(scipy.fft.dctn(plain / 255 - 0.5, axes=(2, 3), norm="ortho")[:, :, :2, :2]).max() > 0.2


def test_noise_that_is_in_its_class_already_is_counted():
    usual = fresh()
    with torch.no_grad():
        usual[3].bias[0] += 5
    found = generate(victim=Tiny(usual), queries=10)
    assert found.facts["unmoved"] == Counter(found.arrays["labels"].tolist())[0]
    assert len(found.arrays["queries"]) == 10


def test_a_class_that_cannot_be_reached_is_replaced_by_others():
    lame = fresh()
    with torch.no_grad():
        lame[3].bias[2] = -1e6
    found = generate(victim=Tiny(lame), queries=20)
    assert 2 not in found.arrays["labels"]
    assert len(found.arrays["queries"]) > 16
    assert found.facts["classes"] == 4
    assert 20 < found.facts["tried"] <= 20 * ROUNDS


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_the_budget_is_respected(queries):
    found = generate(queries=queries)
    assert len(found.arrays["queries"]) == len(found.arrays["labels"]) <= queries
    assert found.facts["tried"] <= ROUNDS * queries


def test_more_confidence_asks_for_more_probability():
    low, high = (generate(confidence=confidence).facts["probability"] for confidence in (0.0, 0.99))
    assert high > 0.95
    assert low < high


def test_a_victim_that_cannot_be_moved_is_said():
    stuck = fresh()
    with torch.no_grad():
        stuck[3].bias.copy_(torch.tensor([0.0, 0.0, 1e6, 0.0, 0.0]))
    with pytest.raises(
        NotApplicable, match=r"only \d+ of \d+ noise images \(1 classes\) could be driven .* allow more"
    ):
        generate(victim=Tiny(stuck), steps=2)


def test_constant_answers_are_said():
    module = fresh()
    with torch.no_grad():
        module[3].weight.zero_()
        module[3].bias.zero_()
    with pytest.raises(NotApplicable):
        generate(victim=Tiny(module))


@each
def test_the_victim_is_left_as_it_was(variant):
    victim = Tiny(fresh())
    before = {name: value.copy() for name, value in victim.tensors().items()}
    generate(variant, victim=victim, delta=0.1)
    assert all(np.array_equal(victim.tensors()[name], value) for name, value in before.items())


def test_the_victim_is_left_as_it_was_after_an_interruption():
    victim, told = Tiny(fresh()), []
    before = {name: value.copy() for name, value in victim.tensors().items()}

    def interrupted(what, share):
        told.append((what, share))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(victim=victim, delta=0.1, confidence=0.9999, workshop=Workshop(progress=interrupted))
    assert told[0][0] == "driving noise into the victim's classes"
    assert all(np.array_equal(victim.tensors()[name], value) for name, value in before.items())


def test_slightly_changed_weights_match_and_other_networks_do_not():
    found = generate(queries=40, confidence=0.99, steps=300)
    close, source = fresh(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in close.parameters():
            value.add_(0.03 * value.std() * torch.randn(value.shape, generator=source))
    method = Characteristic()
    assert method.compare(found, subject(Tiny(close))).value > 0.9
    assert max(method.compare(found, subject(Tiny(network(seed, 32)))).value for seed in range(5)) < 0.6


# ONNX


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    digits.write_onnx(path, seed=3, epochs=3)
    return fp_audit.load(str(path), preprocess="0..1", device="cpu")


@pytest.mark.parametrize("variant", ["rce", "rce-gm", "rce-lt"])
def test_an_onnx_victim(onnx_model, variant):
    before = {name: value.copy() for name, value in onnx_model.tensors().items()}
    victim = Subject.of_model(onnx_model, onnx_model)
    method = Characteristic(queries=20, variant=variant, draws=3, steps=30, step=0.04)
    found = method.generate(victim, None, seed=0)
    assert found.arrays["queries"].shape == (20, 1, 8, 8)
    assert found.facts["classes"] >= 8
    assert found.facts["mask"] == (2 if variant == "rce-lt" else 0)
    assert method.compare(found, victim).value == 1
    after = onnx_model.tensors()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "rce_gm"}, "variant is 'rce_gm'; expected vce, rce, rce-gm, rce-lt"),
        ({"queries": 0}, "queries is 0; expected 1 or more"),
        ({"delta": -0.1}, "delta is -0.1; expected 0 or more"),
        ({"delta": float("nan")}, "delta is nan; expected 0 or more"),
        ({"draws": 0}, "draws is 0; expected 1 or more"),
        ({"mask": -1}, "mask is -1; expected 0 or more"),
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"batch": 0}, "batch is 0; expected 1 or more"),
        ({"side": 0}, "side is 0; expected 1 or more"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0 and at most 1"),
        ({"step": 1.5}, "step is 1.5; expected more than 0 and at most 1"),
        ({"confidence": 1.0}, "confidence is 1.0; expected 0 or more and less than 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError) as caught:
        Characteristic(**options)
    assert str(caught.value) == f"characteristic: {message}"


def test_a_mask_as_large_as_the_image_is_refused():
    with pytest.raises(UsageError, match="mask is 4; expected less than the image's shorter side, 4"):
        generate("rce-lt", mask=4)
