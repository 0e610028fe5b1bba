import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_victims import SIZE, data, digits, tensors, victim
from torch import nn
from torch.nn.functional import cross_entropy

from fp_audit.attacking import attack, open_victim
from fp_audit.attacks._cut import cut_at
from fp_audit.attacks._options import build
from fp_audit.attacks._removal import PRESETS, Removal, Targets, least_like, reversed_features, shuffled
from fp_audit.engine import batches
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one
from fp_audit.types import InputSpec
from fp_audit_adapters._torch import TorchModel

PAPER, CODE = PRESETS["paper"], PRESETS["code"]
STAGE = "resnet.encoder.stages.1"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def algorithm_2(answers, labels, lambdas):
    """Both loops of the paper's Alg. 2; the line search ends at the first lambda that keeps the label."""
    result = answers.clone()
    for i in range(len(answers)):
        farthest, index = 0.0, i
        for j in range(len(answers)):
            distance = torch.linalg.vector_norm(answers[i] - answers[j]).item()
            if farthest < distance:
                farthest, index = distance, j
        for share in lambdas:
            mixed = share * answers[i] + (1 - share) * answers[index]
            if mixed.argmax() == labels[i]:
                result[i] = mixed
                break
    return result


@pytest.mark.parametrize("own_labels", [True, False])
@pytest.mark.parametrize("lambdas", [PAPER.lambdas, CODE.lambdas])
def test_interpolated_logits_are_those_of_the_double_loop(lambdas, own_labels):
    answers = 5 * torch.randn(40, 6, generator=generator())
    labels = answers.argmax(dim=1) if own_labels else torch.randint(6, (40,), generator=generator(1))
    ours = least_like(answers, labels, lambdas)
    torch.testing.assert_close(ours, algorithm_2(answers, labels, lambdas))
    assert not torch.equal(ours, answers)
    if own_labels:
        assert torch.equal(ours.argmax(dim=1), labels)


def test_interpolated_logits_of_two_images():
    found = least_like(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]), PAPER.lambdas)
    torch.testing.assert_close(found, torch.tensor([[1.4, 1.2], [1.2, 1.6]]))


def test_equal_answers_stay():
    answers = torch.ones(4, 3)
    assert torch.equal(least_like(answers, torch.zeros(4, dtype=torch.long), PAPER.lambdas), answers)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 1.0])
def test_shuffling_moves_whole_channels_and_not_too_many(ratio):
    features = torch.arange(50 * 20).reshape(50, 20, 1, 1).expand(50, 20, 2, 2) + torch.zeros(50, 20, 2, 2)
    moved = shuffled(features, ratio, generator())
    assert torch.equal(moved.sort(dim=1).values, features)
    assert torch.equal(moved, moved[..., :1, :1].expand_as(moved))
    changed = (moved != features).any(dim=(2, 3)).sum(dim=1)
    assert changed.max() <= math.ceil(ratio * 20)
    assert (changed.max() > 0) == (ratio > 0)
    if ratio:
        assert len({tuple((row != same).flatten().tolist()) for row, same in zip(moved, features, strict=True)}) > 1


def test_shuffling_is_that_of_one_image_at_a_time():
    features, drawing = torch.randn(6, 30, 3, generator=generator()), generator(1)
    expected, draws = features.clone(), torch.rand(6, 30, generator=generator(1))
    for i, draw in enumerate(draws):
        chosen = draw.argsort()[:3]
        expected[i][chosen.sort().values] = features[i][chosen]
    assert torch.equal(shuffled(features, 0.1, drawing), expected)


def test_the_ascent_is_algorithm_1_one_image_at_a_time():
    torch.manual_seed(0)
    rest, plan = nn.Sequential(nn.Flatten(), nn.Linear(24, 5)), replace(PAPER, shuffle=0.0, inner_rate=0.3)
    origin, labels = torch.randn(7, 6, 2, 2), torch.randint(5, (7,))
    found = reversed_features(rest, origin, labels, plan, generator())
    for i in range(7):
        z = origin[i : i + 1]
        for _ in range(10):
            z = z.detach().requires_grad_()
            apart = (z - origin[i : i + 1]).square().sum()
            loss = cross_entropy(rest(z), labels[i : i + 1]) - torch.sqrt(1 + apart).log()
            z = z - 0.3 * torch.autograd.grad(loss, z)[0]
        torch.testing.assert_close(found[i], z[0].detach())
    before, after = (cross_entropy(rest(z), labels).item() for z in (origin, found))
    assert after < before
    assert not found.requires_grad


def test_the_ascent_of_the_code_takes_signed_steps_from_noise():
    rest = nn.Sequential(nn.Flatten(), nn.Linear(24, 5))
    origin = torch.randn(7, 6, 2, 2, generator=generator())
    plan = replace(CODE, shuffle=0.0, inner_steps=1)
    found = reversed_features(rest, origin, torch.zeros(7, dtype=torch.long), plan, generator(3))
    start = origin + torch.rand(origin.shape, generator=generator(3)).tan()
    torch.testing.assert_close((found - start).abs(), torch.full_like(start, 0.01), rtol=0, atol=1e-6)


def test_where_nothing_can_be_moved_nothing_explodes():
    rest = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    for plan in (PAPER, replace(CODE, noise=False)):
        found = reversed_features(rest, torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), plan, generator())
        assert found.abs().max() < 1


class Scattered(nn.Module):
    """A network with a skip connection, a function that works in place, and BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.inner, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, images):
        start = self.act(self.norm(self.stem(images)))
        return self.head((start + self.inner(start)).mean(dim=(2, 3)))


def scattered():
    torch.manual_seed(0)
    spec = InputSpec(channels=1, height=8, width=8)
    preprocess = Preprocess(mean=(0.5,), std=(0.5,))
    return TorchModel(Scattered(), preprocess=preprocess, spec=spec, classes=None, adapter="none", recipe={})


@contextmanager
def noted(layer):
    found = []
    handle = layer.register_forward_hook(lambda *call: found.append(call[2].clone()))
    yield found
    handle.remove()


@pytest.mark.parametrize("layer", ["stem", "norm", "act"])
def test_both_parts_of_a_cut_are_the_network(layer):
    model, images = scattered(), torch.rand(5, 1, 8, 8, generator=generator())
    cut, network = cut_at(model, layer, images[:2]), model.network
    with noted(network.get_submodule(layer)) as outputs:
        logits = network(2 * images - 1)
    features, answers = cut.read(model.module, images)
    torch.testing.assert_close(features, outputs[0])
    torch.testing.assert_close(answers, logits)
    other = torch.randn(5, 6, 6, 6, generator=generator(1)).requires_grad_()
    after = {
        "stem": lambda z: network.act(network.norm(z)),
        "norm": lambda z: network.act(z.clone()),
        "act": lambda z: z,
    }
    start = after[layer](other)
    expected = network.head((start + network.inner(start)).mean(dim=(2, 3)))
    found = cut.rest(model.module, other)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value.square().sum(), other)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_layer_beside_a_skip_connection_is_refused():
    images = torch.rand(2, 1, 8, 8, generator=generator())
    with pytest.raises(UsageError, match="do not follow from layer 'inner' alone"):
        cut_at(scattered(), "inner", images)
    with pytest.raises(UsageError, match="no layer called 'nonsense'"):
        cut_at(scattered(), "nonsense", images)
    assert cut_at(scattered(), "auto", images).layer == "act"


def test_a_random_network_cannot_be_cut():
    model = scattered()
    model.network.stem.forward = lambda values: torch.rand(len(values), 6, 6, 6)
    with pytest.raises(UnsupportedModel, match="nothing random"):
        cut_at(model, "auto", torch.rand(2, 1, 8, 8))


def from_timm(name):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **({"img_size": 64} if "vit" in name else {}))
    spec = InputSpec(channels=3, height=64, width=64)
    return TorchModel(network, preprocess=Preprocess(), spec=spec, classes=None, adapter="none", recipe={})


def from_victim(kind):
    target = open_victim(str(victim(kind)), data())
    return target.adapter.load_white(target.artifact, target.opening)


@pytest.mark.parametrize(
    ("make", "name", "layer"),
    [
        (from_victim, "huggingface", STAGE),
        (from_victim, "onnx", "node_max_pool2d_1"),
        (from_timm, "test_resnet", "layer4"),
        (from_timm, "test_vit", "norm"),
        (from_timm, "test_convnext", "norm_pre"),
    ],
)
def test_networks_are_cut_at_their_last_feature_map_or_tokens(make, name, layer):
    white = make(name)
    images = torch.rand(9, white.spec.channels, white.spec.height or SIZE, white.spec.width or SIZE)
    cut = cut_at(white, "auto", images[:2])
    assert cut.layer == layer
    with torch.no_grad():
        features, logits = cut.read(white.module, images)
        torch.testing.assert_close(features, white.activate(images, cut.layer))
        torch.testing.assert_close(logits, white.module(images))
        torch.testing.assert_close(cut.rest(white.module, features), logits)
        torch.testing.assert_close(cut.rest(white.module, features.flip(0)), logits.flip(0))


@pytest.mark.parametrize("plan", [PAPER, CODE])
def test_losses_are_those_of_the_formulas(plan):
    model, images = scattered(), torch.rand(5, 1, 8, 8, generator=generator())
    cut, before = cut_at(model, "act", images[:2]), model.network.norm.running_mean.clone()
    targets = Targets(torch.tensor([0, 1, 2, 3, 0]), torch.randn(5, 4), torch.randn(5, 6, 6, 6))
    found = Removal(model.module, scattered().module, cut, plan).losses(images, targets)
    assert not torch.equal(model.network.norm.running_mean, before)
    assert not any(layer.training for layer in model.network.modules())
    model.network.norm.train()
    with noted(model.network.act) as outputs:
        answers = model.network(2 * images - 1)
    wanted, given = ((values / plan.temperature).softmax(dim=1) for values in (targets.logits, answers))
    divergence = plan.temperature**2 * (wanted * (wanted / given).log()).sum() / 5
    apart = (outputs[0] - targets.features).flatten(1).square()
    torch.testing.assert_close(found.cross_entropy, cross_entropy(answers, targets.labels))
    torch.testing.assert_close(found.divergence, divergence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.layer, apart.mean() if plan is CODE else apart.sum(dim=1).sqrt().mean())


def test_weights_of_the_losses():
    assert PAPER.weights == pytest.approx((0.2, 0.8, 2.0))
    assert CODE.weights == pytest.approx((0.6, 0.2, 2.0))


def test_targets_start_from_the_victim_or_from_the_surrogate():
    images, victim_model, student = torch.rand(5, 1, 8, 8, generator=generator()), scattered(), scattered()
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator()))
    cut, still = cut_at(student, "act", images[:2]), {"inner_steps": 0, "noise": False}
    for preset, source in ((PAPER, victim_model), (CODE, student)):
        plan = replace(preset, **still)
        found = Removal(student.module, victim_model.module, cut, plan).targets(images, generator())
        with torch.no_grad():
            answers = source.module(images)
            assert torch.equal(found.labels, victim_model.module(images).argmax(dim=1))
            assert torch.equal(found.features, source.activate(images, "act"))
        answers = answers.softmax(dim=1) if plan.probabilities else answers
        torch.testing.assert_close(found.logits, algorithm_2(answers, found.labels, plan.lambdas))


def test_batches_are_of_one_size_and_pass_over_all():
    found = list(batches(10, 3, 7, generator()))
    assert [len(batch) for batch in found] == [3] * 7
    assert len(set(torch.cat(found[:3]).tolist())) == 9
    assert [len(batch) for batch in batches(5, 128, 3, generator())] == [5] * 3


def opened(path, provenance):
    located = locate_one(str(path), SourceOptions())
    known = provenance.surrogate["preprocess"] or provenance.victim["preprocess"]
    options = LoadOptions(preprocess=Preprocess.from_json(known) if known else None)
    return adapter(located.artifact.adapter).load_white(located.artifact, options)


def moved(out, provenance, layer):
    """How far activations and logits are from the victim's, relative to the victim's."""
    images = as_images(digits().pixels[:200])
    theirs, ours = (opened(path, provenance) for path in (victim("huggingface"), out))
    before, after = ([m.activations(images, layer), m.predict(images)] for m in (theirs, ours))
    return [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(before, after, strict=True)]


def test_it_moves_activations_and_logits_but_keeps_accuracy(tmp_path):
    options = {"iterations": 40, "batch": 64}
    removed = attack("removalnet", str(victim("huggingface")), data(), tmp_path / "removed", options=options)
    plain = attack("fine-tune", str(victim("huggingface")), data(), tmp_path / "tuned", options={"epochs": 4.0})
    assert removed.fidelity.accuracy > removed.fidelity.victim_accuracy - 0.05
    assert removed.surrogate["facts"]["layer"] == STAGE
    assert removed.surrogate["facts"]["layer_shape"] == [32, 2, 2]
    far, near = moved(tmp_path / "removed", removed, STAGE), moved(tmp_path / "tuned", plain, STAGE)
    assert all(value > 3 * other for value, other in zip(far, near, strict=True))
    before, after = tensors(victim("huggingface")), tensors(tmp_path / "removed")
    statistics = [name for name in before if name.endswith("running_mean")]
    assert statistics
    assert all(not np.array_equal(before[name], after[name]) for name in statistics)


def test_the_code_preset_runs_with_few_images_at_a_given_layer(tmp_path):
    options = {"preset": "code", "iterations": 3, "images": 40, "layer": "node_relu"}
    told = attack("removalnet", str(victim("onnx")), data(), tmp_path / "out", options=options)
    facts = told.surrogate["facts"]
    assert facts["images"] == 40
    assert facts["layer"] == "node_relu"
    assert set(facts["losses"]) == {"cross_entropy", "divergence", "layer"}
    assert all(math.isfinite(value) for value in facts["losses"].values())
    assert told.cost.steps == 3
    assert told.options["temperature"] == 20.0


def test_divergence_is_said_in_one_line(tmp_path):
    options = {"iterations": 20, "learning_rate": 1e20}
    with pytest.raises(UsageError, match="diverged at learning_rate=1e\\+20: set a smaller one"):
        attack("removalnet", str(victim("onnx")), data(), tmp_path / "out", options=options)


def test_options_overrule_the_preset_one_by_one():
    made = build("removalnet", {"preset": "code", "temperature": "4", "schedule": "constant"}).options
    assert (made["temperature"], made["schedule"], made["gamma"], made["inner_steps"]) == (4.0, "constant", 0.6, 20)
    made = build("removalnet", {"shuffle": 0.5}).options
    assert (made["shuffle"], made["alpha"], made["learning_rate"]) == (0.5, 0.2, 0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0: expected 1 or more"),
        ({"batch": 1}, "batch is 1"),
        ({"images": 1}, "images is 1"),
        ({"alpha": 1.5}, r"alpha is 1.5: expected a weight in \[0, 1\]"),
        ({"alpha": -0.5, "preset": "code"}, "alpha is -0.5: expected 0 or more"),
        ({"gamma": 0.5}, "gamma is 0.5: expected no value: only preset=code has it"),
        ({"gamma": -2, "preset": "code"}, "gamma is -2"),
        ({"beta": -2}, "beta is -2"),
        ({"inner_steps": -2}, "inner_steps is -2"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"shuffle": 1.1}, "shuffle is 1.1"),
        ({"schedule": "linear"}, "schedule is linear"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build("removalnet", options)
