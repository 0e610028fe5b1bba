"""CEM: its equations against loops and closed forms, the search against torch's own Adam, and its promises."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, subject
from scipy.special import softmax
from torch import nn

from fixtures.digits import digits
from fp_audit import networks
from fp_audit.data import Labelled
from fp_audit.engine import Recipe, fit, silent
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.families import build
from fp_audit.fingerprints import cem
from fp_audit.fingerprints._conferrable import (
    Sides,
    conferrability,
    conferrable_loss,
    cross_entropy,
    drawn,
    ensemble,
    ensemble_output,
    mean_prediction,
)
from fp_audit.fingerprints.cem import (
    THRESHOLDS,
    Cem,
    decision_threshold,
    enough,
    mean_answer,
    movable,
    portion,
    promising,
    round_robin,
    split,
    whole_levels,
)
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Fingerprint, Score
from fp_audit.workshop import Workshop

SHIFT = 0.06
"""By how much later than the victim and its surrogates the independents below change their minds."""

LEFT_RIGHT = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4)


def planes(shift=0.0, sharp=40.0):
    """Make a linear network of three classes: 1 is bright (mean over .5), 2 is brighter on the left (by .1), else 0."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[1].weight.copy_(sharp * torch.stack([0 * LEFT_RIGHT, torch.ones(16) / 16, LEFT_RIGHT / 8]))
        module[1].bias.copy_(-sharp * torch.tensor([0.0, 0.5 + shift, 0.1 + shift]))
    return module.eval()


class Shelf:
    """A workshop whose networks are finished; it remembers what they were to be trained on."""

    progress = staticmethod(silent)

    def __init__(self, shift=SHIFT):
        self.shift, self.seen, self.made = shift, {}, {}

    def surrogates(self, victim, data, count, *, seed, alike):
        assert alike
        victim.predict(as_images(data.pixels[:1]))
        return self._keep("surrogates", data, seed, [planes(sharp=30.0 + 5 * i) for i in range(count)])

    def independents(self, data, count, *, seed, alike):
        assert alike
        return self._keep("independents", data, seed, [planes(self.shift, 30.0 + 5 * i) for i in range(count)])

    def _keep(self, what, data, seed, modules):
        self.seen[what], self.made[what] = (data, seed), [Tiny(module) for module in modules]
        return self.made[what]


VICTIM = Tiny(planes())
FAST = {"queries": 12, "surrogates": 3, "independents": 3, "epsilon": 0.05, "steps": 60, "learning_rate": 0.002}
WEIGHTS = {"beta": 0.1, "gamma": 0.1}


def images(count=300, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, *SHAPE)).astype(np.uint8)


def labelled(count=600):
    pixels = images(count)
    return Labelled(pixels, VICTIM.predict(as_images(pixels)).argmax(axis=1), None, "planes")


DATA = labelled()


def generate(seed=0, shelf=None, data=DATA, **options):
    method = Cem(**{**FAST, **WEIGHTS, **options})
    return method.generate(subject(VICTIM), data, seed=seed, workshop=shelf or Shelf())


def rows(n, seed, k=4):
    return torch.softmax(2 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)), dim=1)


# Equations


def test_members_answer_with_probabilities():
    modules = [planes(sharp=sharp) for sharp in (10.0, 20.0, 30.0)]
    x = torch.from_numpy(as_images(images(7)))
    got = ensemble(modules, together=False)(x)
    assert got.shape == (3, 7, 3)
    for m, module in enumerate(modules):
        logits = x.flatten(1).numpy() @ module[1].weight.numpy().T + module[1].bias.numpy()
        np.testing.assert_allclose(got[m], softmax(logits, axis=1), atol=1e-5)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("family", ["lenet", "residual"])
def test_members_together_are_members_one_by_one(family):
    modules = []
    for seed in range(3):
        torch.manual_seed(seed)
        module = build(family, 4, 5, (1, 8, 8)).train()
        module(torch.rand(20, 1, 8, 8))  # its own moving statistics
        modules.append(module.eval())
    gradients = []
    for together in (False, True):
        x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(9)).requires_grad_(True)
        answers = ensemble(modules, together=together)(x)
        gradients.append((answers.detach(), torch.autograd.grad(answers[..., 0].square().sum(), x)[0]))
        torch.testing.assert_close(ensemble(modules, together=together)(x, [2, 0]), answers[[2, 0]])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_a_step_follows_few_networks_and_not_always_the_same():
    rng = np.random.default_rng(0)
    steps = [drawn(18, 6, rng) for _ in range(30)]
    assert all(len(set(step)) == 6 and set(step) <= set(range(18)) for step in steps)
    assert set().union(*steps) == set(range(18))
    assert drawn(18, 0, rng) is drawn(6, 6, rng) is None


def test_mean_prediction_without_dropout_is_the_mean():
    members = torch.stack([rows(5, seed) for seed in range(6)])
    got = mean_prediction(members, 0.0, torch.Generator())
    np.testing.assert_allclose(got, members.numpy().mean(axis=0), rtol=1e-6)


def test_dropout_takes_single_entries_and_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    one = mean_prediction(torch.ones(1, 400, 50), 0.3, generator)
    np.testing.assert_allclose(one.unique(), [0, 1 / 0.7], rtol=1e-6)
    assert one.mean().item() == pytest.approx(1, abs=0.02)
    assert (one == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert (one == 0).float().mean(dim=1).min() > 0
    many = mean_prediction(torch.full((4000, 2, 3), 0.25), 0.3, generator)
    np.testing.assert_allclose(many, 0.25, atol=0.01)
    again = mean_prediction(torch.ones(1, 400, 50), 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(again, one)


def test_the_ensemble_output_is_that_of_a_loop():
    surr, ref = rows(9, 0), rows(9, 1)
    for n, (s, r) in enumerate(zip(surr.tolist(), ref.tolist(), strict=True)):
        wanted = np.exp([a * (1 - b) for a, b in zip(s, r, strict=True)])
        np.testing.assert_allclose(ensemble_output(surr, ref)[n], wanted / wanted.sum(), rtol=1e-5)


def test_ensemble_output_golden_value():
    got = ensemble_output(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    np.testing.assert_allclose(got, [[0.7310586, 0.2689414]], rtol=1e-6)


def test_the_loss_is_that_of_a_loop():
    first, now, surr, ref = (rows(8, seed).double() for seed in range(4))
    got = conferrable_loss(first, now, surr, ref, (0.7, 0.3, 0.2))
    for n in range(8):
        exponentials = [np.exp(s * (1 - r)) for s, r in zip(surr[n].tolist(), ref[n].tolist(), strict=True)]
        confer = -np.log(max(exponentials) / sum(exponentials))
        moved = -sum(p * np.log(q) for p, q in zip(first[n].tolist(), now[n].tolist(), strict=True))
        apart = -sum(p * np.log(q) for p, q in zip(now[n].tolist(), surr[n].tolist(), strict=True))
        assert got[n].item() == pytest.approx(0.7 * confer - 0.3 * moved + 0.2 * apart, rel=1e-9)


def test_loss_golden_values():
    first, now = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    surr, ref = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    for weights, wanted in {(1.0, 0, 0): 0.3132617, (0, 1.0, 0): -0.6931472, (0, 0, 1.0): 8.0590478}.items():
        assert conferrable_loss(first, now, surr, ref, weights).item() == pytest.approx(wanted, rel=1e-6)


def test_a_dropped_class_does_not_make_the_loss_infinite():
    certain = torch.tensor([[1.0, 0.0]])
    assert cross_entropy(certain.flip(1), certain).item() == pytest.approx(-np.log(1e-7), rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.5, 0.2)])
def test_every_term_has_the_gradient_of_finite_differences(weights):
    """The main term too: a port had it detached. And both arguments of the last one."""
    x = torch.from_numpy(as_images(images(4))).double().requires_grad_(True)
    victim, *others = (planes(shift, 4.0).double() for shift in (0.0, 0.02, 0.1))
    surr, ref = (ensemble([module], together=False) for module in others)
    first = victim(x.detach().flip(0)).softmax(dim=1).detach()

    def loss(z):
        return conferrable_loss(first, victim(z).softmax(dim=1), surr(z)[0], ref(z)[0], weights)

    assert torch.autograd.gradcheck(loss, (x,))
    assert (torch.autograd.grad(loss(x).sum(), x)[0].abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_every_network_has_its_say_in_the_gradient():
    now, surr, ref = (rows(3, seed).requires_grad_(True) for seed in range(3))
    loss = conferrable_loss(rows(3, 5), now, surr, ref, (1.0, 1.0, 1.0)).sum()
    assert all((gradient.abs().sum(dim=1) > 1e-3).all() for gradient in torch.autograd.grad(loss, [now, surr, ref]))
    last = conferrable_loss(rows(3, 5), now, surr, ref, (0.0, 0.0, 1.0)).sum()
    assert all(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(last, [now, surr]))


def test_conferrability_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    surrogates, independents = rng.integers(3, size=(6, 40)), rng.integers(3, size=(4, 40))
    target = rng.integers(3, size=40)
    got = conferrability(*map(torch.from_numpy, (surrogates, independents, target)))
    for n in range(40):
        stolen = sum(label == target[n] for label in surrogates[:, n]) / 6
        innocent = sum(label == target[n] for label in independents[:, n]) / 4
        assert got[n].item() == pytest.approx(stolen * (1 - innocent), abs=1e-6)


@pytest.mark.parametrize(
    ("stolen", "innocent", "wanted"), [([1, 1], [0, 2], 1.0), ([1, 1], [1, 1], 0.0), ([0, 1], [1, 0], 0.25)]
)
def test_conferrability_golden_values(stolen, innocent, wanted):
    columns = (torch.tensor(labels)[:, None] for labels in (stolen, innocent))
    assert conferrability(*columns, torch.tensor([1])).tolist() == [wanted]


# Parts


def test_movable_is_what_algebra_says():
    """A linear model is crossed within the ball if and only if its lead is less than epsilon times the slope's L1."""
    pixels = images(400, seed=3, low=60, high=190)
    module, epsilon = planes(), 0.02
    weight, bias = module[1].weight.detach().double(), module[1].bias.detach().double()
    logits = torch.from_numpy(pixels / 255.0).flatten(1) @ weight.T + bias
    labels = logits.argmax(dim=1)
    radius = np.floor(255 * epsilon) / 255
    wanted = []
    for z, i in zip(logits, labels.tolist(), strict=True):
        runner = z.clone().index_fill(0, torch.tensor(i), -np.inf).argmax().item()
        room = radius * (weight[i] - weight[runner]).abs().sum() - (z[i] - z[runner])
        wanted.append(room.item())
    clear = np.abs(wanted) > 0.05
    got = movable(module, pixels, labels.numpy(), epsilon)
    np.testing.assert_array_equal(got[clear], np.array(wanted)[clear] > 0)
    assert 0 < got.sum() < 400


def test_the_batch_is_one_image_at_a_time():
    shelf = Shelf()
    members = [planes(), planes(sharp=20.0)], [planes(SHIFT), planes(2 * SHIFT)]
    sides = Sides(VICTIM.module, *(ensemble(group, together=False) for group in members))
    method = Cem(**{**FAST, **WEIGHTS, "dropout": 0.0, "early": False, "steps": 25})
    found = method._search(sides, pixels := images(6, seed=5), np.random.default_rng(0), shelf.progress)
    start = torch.from_numpy(as_images(pixels))
    for n in range(6):
        x0 = start[n : n + 1]
        x = x0.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=0.002)
        first = VICTIM.module(x0).softmax(dim=1).detach()
        for _ in range(25):
            optimizer.zero_grad()
            surr, ref = (torch.stack([m(x).softmax(dim=1) for m in group]).mean(dim=0) for group in members)
            me = (surr * (1 - ref)).softmax(dim=1)
            now = VICTIM.module(x).softmax(dim=1)
            loss = -me.max().log() + 0.1 * (first * now.log()).sum() - 0.1 * (now * surr.log()).sum()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                x.copy_(x.clamp(x0 - 12 / 255, x0 + 12 / 255).clamp(0, 1))
        wanted = 255 * x.detach().numpy()[0]
        assert np.abs(found.pixels[n] - wanted).max() < 0.6
        assert np.abs(wanted - pixels[n]).max() > 2


def test_epsilon_is_rounded_down_to_grey_levels():
    for epsilon, levels in {0.025: 6, 0.05: 12, 8 / 255: 8, 0.15: 38, 1 / 255: 1}.items():
        assert whole_levels(epsilon) == pytest.approx(levels / 255)
        assert round(255 * whole_levels(epsilon)) <= 255 * epsilon + 1e-6


def test_the_decision_threshold_is_table_1():
    for epsilon, threshold in THRESHOLDS.items():
        assert decision_threshold(epsilon) == threshold
    assert decision_threshold(0.0175) == pytest.approx(0.69)
    assert decision_threshold(0.004) == 0.63
    assert decision_threshold(0.5) == 0.87


def test_the_split_leaves_no_image_to_both():
    data = Labelled(np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(200), None, "numbered")
    for asked, size in ((10, 40), (60, 60), (1000, 100)):
        local, seeds = split(data, asked, np.random.default_rng(0))
        assert len(seeds) == size
        assert sorted([*local.labels, *seeds.labels]) == list(range(200))


def test_turns_are_those_of_queues():
    rng = np.random.default_rng(1)
    groups, values = rng.integers(4, size=50), rng.random(50)
    queues = [deque(sorted(np.flatnonzero(groups == g), key=lambda n: -values[n])) for g in range(4)]
    turns = []
    while any(queues):
        turns.append([queue.popleft() for queue in queues if queue])
    got = round_robin(groups, values).tolist()
    for turn in turns:
        assert set(got[: len(turn)]) == set(turn)
        got = got[len(turn) :]
    assert round_robin(np.zeros(0, int), np.zeros(0)).tolist() == []


def test_promising_seeds_are_right_and_lean_towards_conferrable():
    labels = np.array([0, 0, 1, 2, 0])
    answers = np.eye(3)[[0, 0, 1, 0, 0]]  # the fourth is a mistake
    surr = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0, 0.7, 0.3], [1, 0, 0], [0.5, 0.5, 0]])
    ref = np.array([[0.9, 0.0, 0], [0.9, 0.1, 0], [0, 1.0, 0.0], [0, 0, 1], [0.1, 0.9, 0]])
    assert promising(answers, labels, surr, ref).tolist() == [1, 2, 0, 4]


def test_mean_answers_are_probabilities():
    members = [Tiny(planes(sharp=sharp)) for sharp in (10.0, 40.0)]
    pixels = images(5)
    wanted = sum(softmax(member.predict(as_images(pixels)), axis=1) for member in members) / 2
    np.testing.assert_allclose(mean_answer(members, pixels), wanted, atol=1e-6)


def test_enough_is_a_balanced_budget_or_twice_of_it():
    assert not enough(np.array([0] * 7), 2, 4)
    assert enough(np.array([0] * 8), 2, 4)
    assert enough(np.array([0, 1, 0, 1]), 2, 4)
    assert not enough(np.array([0, 0, 0, 1]), 2, 4)
    assert enough(np.array([5, 7, 9]), 1000, 3)


def test_a_portion_of_the_progress():
    told = []
    portion(lambda what, share: told.append((what, share)), 0.5, 0.25)("work", 0.4)
    assert told == [("work", pytest.approx(0.6))]


# The whole


@dataclass(frozen=True)
class Watched(Workshop):
    """A workshop that lets others see what it made."""

    made: dict = field(default_factory=dict)

    def surrogates(self, *args, **options):
        self.made["surrogates"] = super().surrogates(*args, **options)
        return self.made["surrogates"]

    def independents(self, *args, **options):
        self.made["independents"] = super().independents(*args, **options)
        return self.made["independents"]


@pytest.fixture(scope="module")
def kept():
    shelf = Shelf()
    return generate(shelf=shelf), shelf


def test_what_is_kept_is_conferrable_as_uint8(kept):
    fingerprint, shelf = kept
    queries, key = fingerprint.arrays["queries"], fingerprint.arrays["labels"]
    assert queries.dtype == np.uint8
    assert len(queries) == fingerprint.facts["queries"] == 12
    for member in shelf.made["surrogates"]:
        assert (member.predict(as_images(queries)).argmax(axis=1) == key).all()
    for member in shelf.made["independents"]:
        assert (member.predict(as_images(queries)).argmax(axis=1) != key).all()
    assert fingerprint.facts["conferrability"] == 1
    assert Cem().compare(fingerprint, subject(VICTIM)).value == 1
    assert Cem().compare(fingerprint, subject(Tiny(planes(SHIFT)))).value == 0


def test_what_is_kept_lies_between_the_boundaries(kept):
    queries = as_images(kept[0].arrays["queries"]).reshape(-1, 16)
    bright, left = queries.mean(axis=1) - 0.5, queries @ LEFT_RIGHT.numpy() / 8 - 0.1
    lead = np.where(kept[0].arrays["labels"] == 1, bright, left)
    assert (lead > 0).all()
    assert (lead < SHIFT).all()


def test_what_is_kept_is_adversarial_and_near_a_seed_that_no_network_saw(kept):
    fingerprint, shelf = kept
    queries, key = fingerprint.arrays["queries"].astype(int), fingerprint.arrays["labels"]
    apart = np.abs(queries[:, None] - DATA.pixels[None]).max(axis=(2, 3, 4))
    seeds = apart.argmin(axis=1)
    assert apart.min(axis=1).max() <= 12  # .05 in grey levels
    assert (DATA.labels[seeds] != key).all()
    for data, _ in shelf.seen.values():
        assert not (data.pixels[:, None] == DATA.pixels[seeds][None]).all(axis=(2, 3, 4)).any()


def test_the_key_is_balanced(kept):
    counts = np.bincount(kept[0].arrays["labels"], minlength=3)
    assert counts[0] == 0  # nothing is conferrable there: independents change their minds later, not earlier
    assert counts[1] == counts[2] == 6
    assert kept[0].facts["targets"] == {"1": 6, "2": 6}


def test_facts_add_up(kept):
    facts = kept[0].facts
    assert facts["queries"] <= facts["kept"] <= facts["tried"] <= facts["seeds"]
    assert facts["threshold"] == 0.95
    assert facts["tried"] <= cem.TRIES * 12


def test_networks_start_from_different_seeds_and_know_the_victims_classes():
    shelf = Shelf()
    low = DATA.take(np.flatnonzero(DATA.labels < 2))
    generate(shelf=shelf, data=low, queries=4)
    (stolen, first), (innocent, second) = shelf.seen["surrogates"], shelf.seen["independents"]
    assert first != second
    assert len(stolen.classes) == len(innocent.classes) == 3
    np.testing.assert_array_equal(stolen.pixels, innocent.pixels)


def test_the_victim_is_left_as_it_was():
    victim = Tiny(planes())
    Cem(**{**FAST, **WEIGHTS}).generate(subject(victim), DATA, seed=0, workshop=Shelf())
    assert all(parameter.requires_grad for parameter in victim.module.parameters())
    assert all(parameter.grad is None for parameter in victim.module.parameters())


def test_early_only_saves_steps():
    calls, stolen = {}, ensemble([planes()], together=False)
    for early in (True, False):
        calls[early] = 0

        def counting(x, chosen=None, early=early):
            calls[early] += len(x) * x.requires_grad  # looks at what is there already are cheap
            return stolen(x, chosen)

        sides = Sides(VICTIM.module, counting, ensemble([planes(SHIFT)], together=False))
        method = Cem(**{**FAST, **WEIGHTS, "early": early})
        found = method._search(sides, DATA.pixels[:100], np.random.default_rng(0), silent)
        assert len(found.at_least(0.95)) > 5
    assert calls[True] < calls[False]


@pytest.mark.parametrize("queries", [1, 5, 40])
def test_the_budget_is_respected(queries):
    fingerprint = generate(queries=queries)
    assert len(fingerprint.arrays["queries"]) == len(fingerprint.arrays["labels"]) <= queries


def test_seeds():
    first, again, other = generate(3), generate(3), generate(4)
    np.testing.assert_array_equal(first.arrays["queries"], again.arrays["queries"])
    assert not np.array_equal(first.arrays["queries"], other.arrays["queries"])


def test_nothing_conferrable_is_said():
    with pytest.raises(NotApplicable, match=r"only 0 of \d+ images became conferrable \(the best to 0.00; 0.95 is"):
        generate(shelf=Shelf(shift=0.0))


def test_a_search_without_hope_is_given_up():
    with pytest.raises(NotApplicable, match=r"only 0 of 8 images became conferrable"):
        generate(shelf=Shelf(shift=0.0), batch=4)


def test_a_victim_that_is_never_right_is_said():
    wrong = Labelled(DATA.pixels, (DATA.labels + 1) % 3, None, "wrong")
    with pytest.raises(NotApplicable, match="only 0 of 0 images"):
        generate(data=wrong)


@pytest.mark.parametrize(("value", "surrogate"), [(0.9, True), (0.75, True), (0.74, False)])
def test_the_papers_judgement(value, surrogate):
    fingerprint = Fingerprint("cem", {"epsilon": 0.025}, {})
    judged = Cem().judge(fingerprint, Score(value, queries=100), None)
    assert judged == {"caeacc": value, "threshold": 0.75, "surrogate": surrogate}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.001}, "epsilon is 0.001; expected 1/255"),
        ({"dropout": 1.0}, "dropout is 1.0; expected at least 0 and less than 1"),
        ({"conferrability": 0.0}, "conferrability is 0.0; expected more than 0"),
        ({"surrogates": 0}, "surrogates is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=f"cem: {message}"):
        Cem(**options)


def test_digits(tmp_path, monkeypatch):
    """Train a victim, three surrogates and three independents on real images, and look at what they say."""
    monkeypatch.setattr(networks, "SEEN_IMAGES", 8000)
    in_this_process = lambda workers, **_: ThreadPoolExecutor(1)  # noqa: E731
    monkeypatch.setattr(networks, "ProcessPoolExecutor", in_this_process)
    pixels, labels = digits()
    data = Labelled(pixels[:900], labels[:900], None, "digits")
    torch.manual_seed(0)
    module = build("lenet", 8, 10, (1, 8, 8))
    fit(module, data.pixels, data.labels, Recipe(epochs=5, batch=64, optimizer="adam", learning_rate=0.003), seed=0)
    victim = Tiny(module)
    options = {**FAST, **WEIGHTS, "epsilon": 0.3, "steps": 150, "learning_rate": 0.01, "queries": 10}
    workshop = Watched(cache=tmp_path)
    # the digits are easy: networks that never met agree on most of what they get wrong
    fingerprint = Cem(**options, conferrability=0.3).generate(subject(victim), data, seed=0, workshop=workshop)
    wanted = fingerprint.arrays["labels"]
    said = {
        name: np.stack([n.predict(as_images(fingerprint.arrays["queries"])).argmax(axis=1) == wanted for n in made])
        for name, made in workshop.made.items()
    }
    rates = {name: agreed.mean(axis=0) for name, agreed in said.items()}
    conferred = rates["surrogates"] * (1 - rates["independents"])
    assert conferred.min() >= 0.3
    assert fingerprint.facts["conferrability"] == pytest.approx(conferred.mean(), abs=1e-6)
    for name, agreed in said.items():
        scores = [Cem().compare(fingerprint, Subject.of_model(network)).value for network in workshop.made[name]]
        assert len(scores) == 3
        assert scores == pytest.approx(agreed.mean(axis=1))
    assert said["surrogates"].mean() > said["independents"].mean() + 0.2
