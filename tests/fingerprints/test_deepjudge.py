"""DeepJudge: six metrics against a script, test cases and their promises, layers under other names, the vote."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from contract.test_methods import SHAPE, Tiny, data, network, subject
from scipy import stats
from torch import nn

from fp_audit import methods
from fp_audit.errors import NotApplicable, UnsupportedModel, UsageError
from fp_audit.fingerprints import deepjudge
from fp_audit.fingerprints.deepjudge import DeepJudge, most_certain, strength, threshold
from fp_audit.model import LabelOnly, as_images
from fp_audit.subject import Subject
from fp_audit.types import Fingerprint, Null, Score

FAST = {"queries": 12, "seeds": 4, "neuron_steps": 40, "cases": 20, "sample": 100, "batch": 16}


def convolutional(seed=0, channels=6, classes=5):
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * channels, classes),
    )
    with torch.no_grad():
        made[6].weight.mul_(8)
        made[6].bias.sub_(made(torch.rand(256, *SHAPE)).mean(dim=0))
    return made.eval()


class Renamed(Tiny):
    """The same network under other names, with its activations counted twice, as a container does."""

    def layers(self):
        return tuple(f"/{kind}_{name}" for name in super().layers() for kind in ("node", "copy"))

    def activate(self, images, layer):
        return self.module[: int(layer.split("_")[1]) + 1](images)


class Unasked(Tiny):
    """A suspect whose answers nobody may read."""

    def predict(self, images):
        raise AssertionError("it was asked")


VICTIM = Tiny(convolutional())
DATA = data(VICTIM)


def generate(seed=0, victim=VICTIM, **options):
    return DeepJudge(**{**FAST, **options}).generate(subject(victim), DATA, seed=seed)


KEPT = generate()


def compare(suspect, kept=KEPT):
    return DeepJudge().compare(kept, suspect)


def opened(module):
    return Subject.of_model(Tiny(module), Tiny(module))


def blurred(amount, seed=9):
    module, generator = deepcopy(VICTIM.module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + amount * torch.randn(parameter.shape, generator=generator))
    return module


def probabilities(model, pixels):
    logits = model.predict(as_images(pixels)).astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


# Seeds


def test_seeds_are_ranked_as_a_loop_ranks_them():
    answers = VICTIM.predict(as_images(DATA.pixels))
    rows = []
    for i, z in enumerate(answers.astype(float)):
        p = np.exp(z) / np.exp(z).sum()
        if max(range(5), key=lambda j: z[j]) == DATA.labels[i]:
            rows.append((-sum(v * v for v in p), i))
    wanted = [i for _, i in sorted(rows)]
    assert most_certain(answers, "logits", DATA.labels).tolist() == wanted
    assert most_certain(probabilities(VICTIM, DATA.pixels), "probabilities", DATA.labels).tolist() == wanted


def test_certainties_that_a_float32_cannot_tell_apart_are_ranked():
    answers = np.array([[20.0, 0.0], [25.0, 0.0], [0.0, 22.0], [30.0, 0.0]], np.float32)
    assert most_certain(answers, "logits", np.array([0, 0, 1, 1])).tolist() == [1, 2, 0]


def test_a_victim_without_a_correct_answer_is_said():
    wrong = DATA.__class__(DATA.pixels, (VICTIM.predict(as_images(DATA.pixels)).argmax(axis=1) + 1) % 5, None, "wrong")
    with pytest.raises(NotApplicable, match="classifies none of 100 images correctly"):
        DeepJudge(**FAST).generate(subject(VICTIM), wrong, seed=0)


# Black-box test cases


@pytest.mark.parametrize(
    ("shape", "attack", "wanted"),
    [
        ((1, 28, 28), "pgd", (0.1, 0.025, 10)),
        ((3, 32, 32), "pgd", (0.03, 0.0075, 10)),
        ((3, 64, 64), "pgd", (0.03, 0.0075, 10)),
        ((3, 224, 224), "pgd", (0.01, 0.0025, 10)),
        ((1, 28, 28), "cw", (0.1, 0.00025, 1000)),
    ],
)
def test_the_strength_is_that_of_table_8(shape, attack, wanted):
    assert strength(shape, DeepJudge(attack=attack).options) == pytest.approx(wanted)


def test_the_strength_can_be_stated():
    assert strength((3, 32, 32), DeepJudge(epsilon=0.2, step=0.01, steps=40).options) == (0.2, 0.01, 40)


def seeds_of(kept):
    """The seed of each test case: the image of the data that is nearest."""
    far = np.abs(kept.arrays["queries"][:, None].astype(int) - DATA.pixels[None].astype(int)).max(axis=(2, 3, 4))
    return far.argmin(axis=1), far.min(axis=1)


@pytest.mark.parametrize("epsilon", [0.03, 0.1])
@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_test_cases_stay_within_epsilon_of_their_seeds(attack, epsilon):
    made = generate(attack=attack, epsilon=epsilon, step=0.09)
    seed, far = seeds_of(made)
    assert far.max() <= 255 * epsilon + 0.5
    assert far.min() > 0
    np.testing.assert_array_equal(made.arrays["labels"], DATA.labels[seed])
    assert made.facts["epsilon"] == epsilon


def test_cw_makes_test_cases_too():
    made = generate(attack="cw", steps=30, cw_rate=0.02)
    assert made.facts["robustness"] < 1
    assert compare(subject(VICTIM), made).value == pytest.approx(1, abs=1e-6)


def test_only_what_fools_the_victim_is_kept_if_there_is_enough():
    made = generate(epsilon=0.15)
    assert made.facts["robustness"] == 0
    assert 12 <= made.facts["tried"] <= 100
    seed, _ = seeds_of(made)
    ranked = most_certain(VICTIM.predict(as_images(DATA.pixels)), "logits", DATA.labels).tolist()
    places = [ranked.index(i) for i in seed]
    assert places == sorted(places)


def test_what_does_not_fool_the_victim_fills_up():
    made = generate(epsilon=0.004)
    correct = (VICTIM.predict(as_images(made.arrays["queries"])).argmax(axis=1) == made.arrays["labels"]).mean()
    assert made.facts["robustness"] == correct > 0.2
    assert len(made.arrays["queries"]) == 12


def test_the_papers_seeds_are_the_first_whatever_comes_of_them():
    made = generate(fooling=False)
    assert made.facts["tried"] == made.facts["queries"] == 12
    first, _ = seeds_of(made)
    sample = np.random.default_rng(0).permutation(len(DATA))[:100]
    ranked = sample[most_certain(VICTIM.predict(as_images(DATA.pixels[sample])), "logits", DATA.labels[sample])]
    np.testing.assert_array_equal(first, ranked[:12])


@pytest.mark.parametrize("queries", [1, 7, 500])
def test_the_budget_is_respected(queries):
    made = generate(queries=queries)
    assert 0 < len(made.arrays["queries"]) == len(made.arrays["labels"]) == made.facts["queries"] <= queries


# White-box test cases


def test_white_box_test_cases_exceed_the_sample():
    sample = DATA.pixels[np.random.default_rng(0).permutation(len(DATA))[:100]]
    assert [about["name"] for about in KEPT.facts["layers"]] == ["1", "4"]
    for place, about in enumerate(KEPT.facts["layers"]):
        highest = VICTIM.activations(as_images(sample), about["name"]).mean(axis=(2, 3)).max(axis=0)
        images, neurons = KEPT.arrays[f"neurons.{place}"], KEPT.arrays[f"index.{place}"]
        found = VICTIM.activations(as_images(images), about["name"]).mean(axis=(2, 3))
        np.testing.assert_allclose(KEPT.arrays[f"responses.{place}"], found, atol=1e-6)
        assert images.dtype == np.uint8
        assert 0 < len(images) == about["cases"] <= 20
        assert all(found[i, j] > highest[j] for i, j in enumerate(neurons))
        assert about["shape"] == [6 * (place + 1), 4 // (place + 1), 4 // (place + 1)]


def test_dead_neurons_are_left_out():
    module = deepcopy(VICTIM.module)
    with torch.no_grad():
        module[0].bias[2] = -100
    made = generate(victim=Tiny(module), layers="1")
    assert 2 not in made.arrays["index.0"]
    assert len(made.arrays["index.0"])


def test_a_dead_layer_is_left_out():
    module = deepcopy(VICTIM.module)
    with torch.no_grad():
        module[3].bias.fill_(-100)
    made = generate(victim=Tiny(module), layers="4|1")
    assert [about["name"] for about in made.facts["layers"]] == ["1"]


def test_every_neuron_once():
    made = generate(cases=0, layers="0")
    assert len(set(made.arrays["index.0"].tolist())) == len(made.arrays["index.0"]) <= 6


def test_unknown_layers_are_refused():
    with pytest.raises(UsageError, match=r"layers names 'conv9'; expected one of 7, such as 0, 1, 2, 3, 4"):
        generate(layers="1|conv9")


def test_a_network_without_a_layer_to_look_at_has_black_box_test_cases():
    module = nn.Sequential(nn.Flatten(0, -1), nn.Unflatten(0, (-1, 16)), nn.Linear(16, 5))
    made = generate(victim=Tiny(nn.Sequential(module)))
    assert made.facts["layers"] == []
    assert set(compare(opened(nn.Sequential(module)), made).parts) == {"robd", "jsd"}


# The six similarities


def by_hand(kept, suspect):
    """All six, test case by test case."""
    queries, labels = kept.arrays["queries"], kept.arrays["labels"]
    p, q = probabilities(VICTIM, queries), probabilities(suspect, queries)
    rob = [np.mean([row.argmax() == y for row, y in zip(side, labels, strict=True)]) for side in (p, q)]
    m = (p + q) / 2
    found = {
        "robd": 1 - abs(rob[0] - rob[1]),
        "jsd": 1 - np.mean(np.sum(p * np.log(p / m) + q * np.log(q / m), axis=1) / 2) / np.log(2),
    }
    rows = {"nod": [], "nad": [], "lod": [], "lad": []}
    for place, about in enumerate(kept.facts["layers"]):
        images, neurons = as_images(kept.arrays[f"neurons.{place}"]), kept.arrays[f"index.{place}"]
        a, b = (np.float64(model.activations(images, about["name"]).mean(axis=(2, 3))) for model in (VICTIM, suspect))
        on = []
        for side in (a, b):
            scaled = (side - side.min(axis=0)) / np.maximum(side.max(axis=0) - side.min(axis=0), 1e-12)
            on.append(scaled > 0.5)
        own = [(i, j) for i, j in enumerate(neurons)]
        rows["nod"].append(sum(abs(a[at] - b[at]) for at in own) / sum(a[at] for at in own))
        rows["nad"].append(sum(on[0][at] != on[1][at] for at in own) / len(own))
        norms = [np.linalg.norm(u - v) for u, v in zip(a, b, strict=True)]
        rows["lod"].append(sum(norms) / sum(np.linalg.norm(u) for u in a))
        rows["lad"].append((on[0] != on[1]).mean())
    return found | {key: 1 - np.mean(value) for key, value in rows.items()}


@pytest.mark.parametrize("module", [blurred(0.1), blurred(0.5), convolutional(3)], ids=["near", "far", "other"])
def test_the_similarities_are_those_of_a_script(module):
    score = compare(opened(module))
    wanted = by_hand(KEPT, Tiny(module))
    assert dict(score.parts) == pytest.approx(wanted, abs=1e-5)
    assert score.value == pytest.approx(np.mean(list(wanted.values())), abs=1e-5)
    assert score.queries == 12
    assert score.trials is None


def test_the_victim_is_like_itself_in_all_six():
    score = compare(subject(VICTIM))
    assert dict(score.parts) == pytest.approx(dict.fromkeys(("robd", "jsd", "nod", "nad", "lod", "lad"), 1), abs=1e-6)


def test_the_nearer_the_more_alike():
    near, far, other = (compare(opened(module)).value for module in (blurred(0.02), blurred(0.3), convolutional(3)))
    assert 1 > near > far > other


def test_distances_are_shown_as_they_are():
    score = compare(opened(blurred(0.3)))
    shown = score.detail["distances"]
    assert shown["jsd"] == pytest.approx((1 - score.parts["jsd"]) * np.log(2))
    assert shown["robd"] == pytest.approx(1 - score.parts["robd"])
    layers = score.detail["layers"]
    assert {name: about["as"] for name, about in layers.items()} == {"1": "1", "4": "4"}
    assert shown["nad"] == pytest.approx(np.mean([about["nad"] for about in layers.values()]))


def test_answers_alone_give_the_black_box_similarities():
    model = Tiny(blurred(0.3))
    closed = compare(Subject.of_model(model))
    assert dict(closed.parts) == {key: compare(opened(model.module)).parts[key] for key in ("robd", "jsd")}
    assert closed.value == pytest.approx(np.mean(list(closed.parts.values())))
    assert 0 <= compare(Subject.of_model(LabelOnly(model))).parts["jsd"] < 1


def test_a_suspect_that_cannot_be_opened_after_all_is_judged_by_its_answers():
    def refuse(_):
        raise UnsupportedModel("it has the operator Odd")

    score = compare(Subject(black_box=lambda: VICTIM, white_box=refuse))
    assert set(score.parts) == {"robd", "jsd"}
    assert score.detail["not_opened"] == "it has the operator Odd"


def test_classes_that_are_others_leave_the_white_box_similarities():
    module = deepcopy(VICTIM.module)
    module[6] = nn.Linear(48, 3)
    score = compare(Subject.of_model(Unasked(module), Tiny(module)).unaligned())
    assert dict(score.parts) == pytest.approx(dict.fromkeys(("nod", "nad", "lod", "lad"), 1), abs=1e-6)
    assert score.queries == 0


def test_other_classes_and_other_layers_leave_nothing():
    suspect = Tiny(convolutional(1, channels=4, classes=3))
    with pytest.raises(NotApplicable, match="has no layer like those of the victim"):
        compare(Subject.of_model(suspect, suspect).unaligned())


def test_layers_are_found_under_other_names():
    other = Renamed(VICTIM.module)
    score = compare(Subject.of_model(other, other))
    assert score.value == pytest.approx(1, abs=1e-6)
    assert [about["as"].split("_")[1] for about in score.detail["layers"].values()] == ["1", "4"]


def test_a_layer_without_counterpart_does_not_count():
    torch.manual_seed(0)
    module = deepcopy(VICTIM.module)
    module[3], module[6] = nn.Conv2d(6, 9, 3, padding=1), nn.Linear(36, 5)
    score = compare(opened(module))
    assert list(score.detail["layers"]) == ["1"]
    assert score.parts["nod"] == pytest.approx(1, abs=1e-6)


def test_activation_distances_forget_the_scale_of_a_channel():
    """Scaling a channel and undoing it in the next layer changes no answer."""
    module = deepcopy(VICTIM.module)
    scale = torch.linspace(0.2, 4, 6)
    with torch.no_grad():
        module[0].weight.mul_(scale[:, None, None, None])
        module[0].bias.mul_(scale)
        module[3].weight.div_(scale[None, :, None, None])
    parts = compare(opened(module)).parts
    assert parts["nad"] == parts["lad"] == 1
    assert parts["jsd"] == pytest.approx(1, abs=1e-6)
    assert parts["nod"] < 0.9


# The vote


@pytest.mark.parametrize("alpha", [0.9, 0.6])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_the_threshold_is_that_of_scipy(count, alpha):
    sample = np.random.default_rng(count).normal(0.8, 0.05, count)
    low, _ = stats.t.interval(0.98, count - 1, loc=sample.mean(), scale=stats.sem(sample))
    assert threshold(sample.tolist(), alpha) == pytest.approx(alpha * low)


def test_threshold_golden_value():
    assert threshold([0.7, 0.8, 0.9], 0.9) == pytest.approx(0.9 * (0.8 - 6.964557 * 0.1 / 3**0.5), abs=1e-6)


def null(*parts):
    return Null((0.0,) * len(parts), tuple("abcdefgh"[: len(parts)]), parts=parts)


INDEPENDENTS = null(*(compare(opened(convolutional(seed))).parts for seed in range(10, 16)))
ALL = ("robd", "jsd", "nod", "nad", "lod", "lad")


def judged(score, against):
    return DeepJudge().judge(KEPT, score, against)


def test_the_victim_passes_every_test_and_an_independent_few():
    own = judged(compare(subject(VICTIM)), INDEPENDENTS)
    assert set(own["votes"]) == set(own["thresholds"]) == set(ALL)
    assert own["copy"] is True
    assert not judged(compare(opened(convolutional(99))), INDEPENDENTS)["copy"]
    json.dumps(own)


def test_thresholds_are_in_units_of_the_distances():
    score = compare(subject(VICTIM))
    thresholds = judged(score, INDEPENDENTS)["thresholds"]
    jsd = [(1 - parts["jsd"]) * np.log(2) for parts in INDEPENDENTS.parts]
    lod = [1 - parts["lod"] for parts in INDEPENDENTS.parts]
    assert thresholds["jsd"] == pytest.approx(threshold(jsd, 0.9))
    assert thresholds["lod"] == pytest.approx(threshold(lod, 0.6))


def votes(*distances, against):
    parts = dict(zip(ALL, (1 - d for d in distances), strict=False))
    return judged(Score(0.0, parts=parts), against)


def test_more_than_half_of_the_possible_votes_decide():
    against = null(*(dict.fromkeys(ALL, 1 - d) for d in (0.5, 0.5, 0.5)))
    assert votes(0.1, 0.1, 0.1, 0.4, 0.4, 0.4, against=against)["copy"] is False
    assert votes(0.1, 0.1, 0.1, 0.1, 0.4, 0.4, against=against)["copy"] is True
    assert votes(0.44, 0.44, 0.31, 0.31, 0.31, 0.31, against=against)["votes"] == {
        "robd": True,
        "jsd": True,
        "nod": False,
        "nad": False,
        "lod": False,
        "lad": False,
    }


def test_a_metric_that_fewer_than_two_independents_have_does_not_vote():
    one = dict.fromkeys(ALL, 0.5)
    some = {"robd": 0.5, "jsd": 0.5}
    assert set(votes(0, 0, 0, 0, 0, 0, against=null(one, some, some))["votes"]) == {"robd", "jsd"}
    assert votes(0, 0, 0, 0, 0, 0, against=null(one)) == {}
    assert judged(compare(subject(VICTIM)), None) == {}
    assert set(votes(0, 0, against=null(one, one))["votes"]) == {"robd", "jsd"}


# Words


def test_it_says_how_many_tests_are_passed():
    detail = {"distances": {"robd": 0.021, "jsd": 0.5}, "votes": {"robd": True, "jsd": False}}
    text = DeepJudge.explain(0.7, detail, {"mean": 0.1, "max": 0.2})
    assert text == "passes 1 of 2 of DeepJudge's tests for a copy (RobD 0.02, JSD 0.50)"
    del detail["votes"]
    text = DeepJudge.explain(0.7, detail, {"mean": 0.1, "max": 0.2})
    assert text.startswith(
        "resembles the victim to 0.70 in DeepJudge's tests (RobD 0.02, JSD 0.50) (independents: 0.10"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "deepfool"}, "attack is 'deepfool'; expected pgd, fgsm or cw"),
        ({"m": 0.5}, "m is 0.5; expected 1 or more"),
        ({"queries": 0}, "queries is 0; expected 1 or more"),
        ({"epsilon": -0.1}, "epsilon is -0.1; expected 0 or more"),
        ({"cases": -1}, "cases is -1; expected 0 or more"),
        ({"neuron_steps": -1}, "neuron_steps is -1; expected 0 or more"),
        ({"sample": 0}, "sample is 0; expected 1 or more"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DeepJudge(**options)


# Seeds of randomness, storage, compositions


def test_seeds():
    first, again, other = generate(3), generate(3), generate(4)
    assert all(np.array_equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    assert not np.array_equal(first.arrays["queries"], other.arrays["queries"])


def test_what_was_stored_as_json_compares_alike():
    stored = Fingerprint(KEPT.method, KEPT.options, KEPT.arrays, json.loads(json.dumps(KEPT.facts)))
    other = Renamed(blurred(0.2))
    assert compare(Subject.of_model(other, other), stored) == compare(Subject.of_model(other, other))


def test_compositions_show_the_black_box_test_cases():
    kind = methods.kind("adversarial+labels+hamming")
    made = kind(**FAST).generate(subject(VICTIM), DATA, seed=0)
    np.testing.assert_array_equal(made.arrays["queries"], KEPT.arrays["queries"])
    assert kind().compare(made, subject(VICTIM)).value == 1
    assert kind.most_access() == kind.suspect_access


def test_a_dense_network_is_judged_too():
    victim = Tiny(network(0))
    made = DeepJudge(**FAST).generate(subject(victim), data(victim), seed=0)
    assert [about["name"] for about in made.facts["layers"]] == ["2"]
    assert compare(subject(victim), made).value == pytest.approx(1, abs=1e-6)


def test_progress_is_told():
    from fp_audit.workshop import Workshop

    told = []
    made = Workshop(progress=lambda what, share: told.append(what))
    DeepJudge(**FAST).generate(subject(VICTIM), DATA, seed=0, workshop=made)
    assert {*told} == {"making adversarial examples", "exciting neurons of 1", "exciting neurons of 4"}


def test_every_metric_has_a_name_and_a_share():
    assert set(deepjudge.ALPHA) == set(deepjudge.SHOWN) == set(ALL)
