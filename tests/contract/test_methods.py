"""What every method must do. New methods are picked up by themselves."""

import inspect
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from training import train_here

from fp_audit import networks, plugins
from fp_audit.answers import Recorded, Replayed
from fp_audit.data import Labelled
from fp_audit.errors import AccessError, DataError, NotApplicable, TargetError, UsageError
from fp_audit.fingerprints._base import Method
from fp_audit.model import Counted
from fp_audit.subject import Subject
from fp_audit.types import Access, File, Fingerprint, InputSpec
from fp_audit.workshop import Workshop

SHAPE, CLASSES = (1, 4, 4), 5


class Tiny:
    """A network from images in [0, 1] to logits."""

    output, classes = "logits", None

    def __init__(self, module):
        self.module = module.eval()
        self.spec = InputSpec(*SHAPE)

    def predict(self, images):
        with torch.no_grad():
            return self.module(torch.from_numpy(np.ascontiguousarray(images))).numpy()

    def layers(self):
        return tuple(name for name, _ in self.module.named_children())

    def activations(self, images, layer):
        with torch.no_grad():
            return self.activate(torch.from_numpy(np.ascontiguousarray(images)), layer).numpy()

    def activate(self, images, layer):
        return self.module[: self.layers().index(layer) + 1](images)

    def tensors(self):
        return {name: value.numpy() for name, value in self.module.state_dict().items()}


def network(seed=0, hidden=16, classes=CLASSES):
    torch.manual_seed(seed)
    body = [nn.Flatten(), nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    made = nn.Sequential(*body)
    with torch.no_grad():
        made[1].weight.mul_(4)
        made[1].bias.copy_(-made[1].weight.sum(dim=1) / 2)
        made[3].weight.mul_(4)
        made[3].bias.sub_(made(torch.rand(256, *SHAPE)).mean(dim=0))
    return made.eval()


def data(model, count=120, wrong=0.2, seed=0):
    """Random images with the model's own labels, a share of them changed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    labels = model.predict(pixels.astype(np.float32) / np.float32(255)).argmax(axis=1)
    spoilt = rng.permutation(count)[: round(wrong * count)]
    labels[spoilt] = (labels[spoilt] + 1) % CLASSES
    return Labelled(pixels, labels, None, "random")


def subject(model):
    """View a model with every access; its file is a fake one."""
    files = (File("model.bin", 7, sha256="0f" * 32),)
    return Subject(files=files, tensors=model.tensors, black_box=lambda: model, white_box=lambda _: model)


METHODS = plugins.names("fingerprints")
BUDGET = 12
FAST = {
    "queries": BUDGET,
    "steps": 60,
    "batch": 32,
    "surrogates": 3,
    "independents": 4,
    "networks": 4,
    "images": 4,
    "masks": 8,
    "points": 6,
    "views": 8,
    "seeds": 4,
}
EASIER = {"cem": {"epsilon": 0.5, "conferrability": 0.3, "learning_rate": 0.05}}
"""What a method needs to find anything in random images."""

VICTIM = Tiny(network(0))
DATA = data(VICTIM)


def family(count=8, spread=0.3):
    """Siblings of the victim, all one network but for noise in the last layer, and images labelled by that network."""
    torch.manual_seed(1)
    own, *others = spread * torch.randn(count + 1, CLASSES, 16)
    common, *siblings = (varied(change - own) for change in (torch.zeros_like(own), *others))
    return tuple(siblings), data(common)


def varied(change):
    module = network(0)
    with torch.no_grad():
        module[3].weight.add_(change)
    return Tiny(module)


SIBLINGS, THEIRS = family()


each = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Networks that methods train need not be good here, and are trained in this process: others start slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "SEEN_IMAGES", 8000)
        patch.setattr(networks, "_train_in_processes", train_here)
        yield


def made(name):
    kind = plugins.load("fingerprints", name)
    fast = {key: FAST[key] for key in inspect.signature(kind).parameters if key in FAST}
    return kind(**fast, **EASIER.get(name, {}))


def fingerprint(name, seed=0):
    return generated(name, subject(VICTIM), seed=seed)


def generated(name, victim, seed=0):
    images = THEIRS if name == "siblings" else DATA
    return made(name).generate(victim, images, seed=seed, workshop=Workshop(given=SIBLINGS))


kept = cache(fingerprint)


def equal(a, b):
    return set(a.arrays) == set(b.arrays) and all(np.array_equal(a.arrays[key], b.arrays[key]) for key in a.arrays)


@each
def test_it_says_what_it_is(name):
    kind = plugins.load("fingerprints", name)
    assert issubclass(kind, Method)
    assert kind.name == name
    for text in (kind.summary, kind.paper, kind.withstands, kind.misses):
        assert text
        assert "\n" not in text
    assert isinstance(kind.victim_access, Access)
    assert isinstance(kind.suspect_access, Access)
    assert kind.suspect_gain is None or kind.suspect_gain > kind.suspect_access
    assert min(kind.scatter.least, kind.scatter.expected, kind.scatter.degrees) >= 0
    assert bool(kind.scatter.expected) == bool(kind.scatter.degrees)


@each
def test_its_docstring_names_the_source(name):
    kind = plugins.load("fingerprints", name)
    assert kind.__doc__
    assert "Source" in kind.__doc__ or kind.paper.startswith("none")


@each
def test_options_are_recorded(name):
    method = made(name)
    assert set(method.options) == set(inspect.signature(type(method)).parameters)
    assert kept(name).options == {**method.options, "seed": 0}
    assert kept(name).method == name
    assert all(f"{key}={value}" in repr(method) for key, value in method.options.items())


@each
def test_the_fingerprint_can_be_stored(name):
    found = kept(name)
    json.dumps([dict(found.options), dict(found.facts)], allow_nan=False)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in found.arrays.values())
    if "queries" in found.arrays:
        assert found.arrays["queries"].dtype == np.uint8
        assert found.arrays["queries"].ndim == 4
        assert len(found.arrays["queries"]) <= BUDGET or "queries" not in found.options


@each
def test_the_same_seed_gives_the_same_fingerprint(name):
    assert equal(fingerprint(name), kept(name))


@each
def test_the_victim_itself_has_the_top_score(name):
    score = made(name).compare(kept(name), subject(VICTIM))
    assert score.value == pytest.approx(1, abs=1e-5) or (name == "siblings" and score.value > 4)
    assert score.p_value is None or score.p_value < 1e-6
    for seed in range(1, 4):
        other = Tiny(network(seed))
        unlike = made(name).compare(
            kept(name), Subject(tensors=other.tensors, black_box=lambda m=other: m, files=other_files())
        )
        assert unlike.value < score.value
        assert not unlike.identical
        assert unlike.p_value is None or unlike.p_value > 0.01


def other_files():
    return tuple(replace(file, sha256="a1" * 32) for file in subject(VICTIM).files())


@each
def test_scores_are_honest_about_their_queries(name):
    counted = Counted(VICTIM)
    score = made(name).compare(kept(name), subject(VICTIM).seen_as(counted))
    assert score.queries == counted.queries
    assert score.trials in (None, counted.queries)


@each
def test_another_methods_fingerprint_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} was given a fingerprint of other"):
        made(name).compare(Fingerprint("other", {}, {}), subject(VICTIM))


@each
def test_undeclared_access_is_refused(name):
    kind = plugins.load("fingerprints", name)
    seen = []

    class Spy(Subject):
        def limited(self, access):
            seen.append(access)
            return super().limited(access)

    spied = vars(subject(VICTIM))
    spy = Spy(**{key.removeprefix("_"): value for key, value in spied.items()})
    made(name).compare(generated(name, spy), spy)
    assert seen == [kind.victim_access, kind.most_access()]
    method = made(name)
    for access, use in ((kind.victim_access, "_generate"), (kind.most_access(), "_compare")):
        greedy = type(
            f"Greedy{use}", (kind,), {use: lambda self, first, second, *rest, a=access: reach(first, second, a)}
        )
        made_greedy = greedy(**method.options)
        given = (subject(VICTIM), DATA) if use == "_generate" else (kept(name), subject(VICTIM))
        seed = {"seed": 0} if use == "_generate" else {}
        with pytest.raises(AccessError):
            getattr(made_greedy, use.removeprefix("_"))(*given, **seed)


def reach(first, second, access):
    """Ask for the access above the declared one; nothing lies above gradients."""
    view = first if isinstance(first, Subject) else second
    above = {Access.IDENTITY: view.tensors, Access.WEIGHTS: view.black_box, Access.QUERIES: view.white_box}
    if access not in above:
        raise AccessError("nothing lies above")
    return above[access]()


@each
def test_a_model_that_offers_less_is_refused(name):
    with pytest.raises(AccessError, match="does not offer"):
        made(name).generate(Subject(), DATA, seed=0)
    with pytest.raises(AccessError, match="does not offer"):
        made(name).compare(kept(name), Subject())


@each
def test_data_are_asked_for_only_where_they_are_needed(name):
    if made(name).needs_data:
        with pytest.raises(DataError, match=f"{name} needs labelled images"):
            made(name).generate(subject(VICTIM), None, seed=0)
    else:
        assert equal(made(name).generate(subject(VICTIM), None, seed=0), kept(name))


@each
def test_it_explains_itself_in_a_sentence(name):
    method, null = made(name), {"n": 5, "mean": 0.25, "max": 0.5, "conformal_p": 1 / 6}
    for model in (VICTIM, Tiny(network(5))):
        score = method.compare(kept(name), subject(model))
        for given in (None, null):
            text = method.explain(score.value, score.detail, given)
            assert isinstance(text, str)
            assert len(text.split()) >= 4
            assert "\n" not in text
            assert text[0].islower()
            assert not text.endswith(".")
        json.dumps(dict(score.detail), allow_nan=False)


ASKING = [name for name in METHODS if plugins.load("fingerprints", name).suspect_access >= Access.QUERIES]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ASKING)
def test_answers_that_are_no_numbers_are_a_corrupt_model(name):
    broken = Tiny(network(0))
    broken.predict = lambda images: np.full((len(images), 5), np.nan, np.float32)
    with pytest.raises((TargetError, NotApplicable)):
        made(name).compare(kept(name), subject(broken))


REMOTE = [name for name in ASKING if plugins.load("fingerprints", name).suspect_access == Access.QUERIES]


@pytest.mark.parametrize("name", REMOTE)
def test_what_it_shows_is_fixed_and_can_be_written_to_files(name):
    shown = []
    for model in (VICTIM, Tiny(network(5))):
        recorded = Recorded(model)
        score = made(name).compare(kept(name), Subject.of_model(recorded))
        shown.append(set(recorded.answers.rows))
        again = made(name).compare(kept(name), Subject.of_model(Replayed(recorded.answers)))
        assert again.value == pytest.approx(score.value, abs=1e-5)
    assert shown[0] == shown[1]
