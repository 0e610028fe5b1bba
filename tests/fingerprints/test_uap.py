"""UAP fingerprint: each part against a loop or another library, the whole against torch, and its promises."""

import json
from collections import Counter
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from contract.test_methods import CLASSES, DATA, SHAPE, VICTIM, Tiny, network, subject
from scipy.stats import ttest_ind
from torch import nn

from fp_audit.engine import silent
from fp_audit.errors import DataError, NotApplicable, UsageError
from fp_audit.fingerprints.uap import (
    Uap,
    as_seen,
    ask,
    clusters,
    draw_views,
    fingerprints,
    similarities,
    welch,
    without,
)
from fp_audit.model import Counted, LabelOnly, TopK, as_images, as_probabilities
from fp_audit.types import Null

FAST = {
    "points": 8,
    "fingerprints": 5,
    "views": 20,
    "surrogates": 4,
    "independents": 4,
    "held_out": 3,
    "steps": 20,
    "batch": 64,
    "epochs": 20,
    "learning_rate": 5e-3,
}


class Named(Tiny):
    def __init__(self, module, name):
        super().__init__(module)
        self.name = name


def thief(seed, noise=0.2):
    """The victim with noise on its weights."""
    module, generator = deepcopy(VICTIM.module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(noise * value.std() * torch.randn(value.shape, generator=generator))
    return Named(module, f"thief-{seed}")


def innocent(seed):
    return Named(network(1000 + seed), f"innocent-{seed}")


class Shop:
    """Has networks ready instead of training them, and remembers the images that were given to it."""

    progress = staticmethod(silent)

    def __init__(self):
        self.given = []

    def surrogates(self, victim, data, count, *, seed, alike):
        assert not alike
        assert len(victim.predict(as_images(data.pixels[:1]))[0]) == CLASSES
        self.given.append(data)
        return [thief(i) for i in range(count)]

    def independents(self, data, count, *, seed, alike):
        assert not alike
        self.given.append(data)
        return [innocent(i) for i in range(count)]


@cache
def generate(seed=0, **options):
    return Uap(**{**FAST, **options}).generate(subject(VICTIM), DATA, seed=seed, workshop=Shop())


def compare(model, kept=None, white=False, **options):
    kept = kept or generate(**options)
    view = subject(model) if white else subject(VICTIM).limited(3).seen_as(model)
    return Uap(**{**FAST, **options}).compare(kept, view)


def test_fingerprints_are_in_the_order_of_equation_6():
    answers = np.arange(3 * 2 * 2).reshape(3, 2, 2)
    got = fingerprints(answers, np.array([[0, 2], [1, 1]]))
    assert got.dtype == np.float32
    assert got.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 4, 5, 6, 7]]


def test_the_score_is_that_of_a_loop():
    kept, suspect = generate(), thief(50)
    arrays = kept.arrays
    widths = [arrays[f"encoder_weight{i}"].shape for i in range(3)]
    layers = [nn.Linear(inside, outside) for outside, inside in widths]
    for i, layer in enumerate(layers):
        layer.load_state_dict({k: torch.from_numpy(arrays[f"encoder_{k}{i}"]) for k in ("weight", "bias")})
    encoder = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def embedded(model, view):
        joined = []
        for i in view:
            image = arrays["queries"][i] / np.float32(255)
            moved = np.rint(np.clip(image + arrays["uap"], 0, 1) * 255) / np.float32(255)
            for shown in (image, moved):
                joined += torch.softmax(model.module(torch.from_numpy(shown.astype(np.float32))[None])[0], 0).tolist()
        return encoder(torch.tensor(joined)).detach()

    wanted = [
        float(torch.cosine_similarity(embedded(suspect, view), embedded(VICTIM, view), dim=0))
        for view in arrays["picks"]
    ]
    found = compare(suspect)
    np.testing.assert_allclose(found.detail["similarities"], wanted, atol=1e-4)
    assert found.value == pytest.approx(np.mean(wanted), abs=1e-4)
    assert found.detail["sd"] == pytest.approx(np.std(wanted, ddof=1), abs=1e-4)
    assert len(wanted) == 5


def test_surrogates_are_told_from_independents():
    stolen = [compare(thief(seed)).value for seed in range(50, 58)]
    others = [compare(innocent(seed)).value for seed in range(50, 58)]
    assert min(stolen) > max(others)
    assert np.mean(stolen) > 0.8
    assert np.mean(others) < 0.3


@pytest.mark.parametrize("hide", [LabelOnly, lambda model: TopK(model, 1), lambda model: TopK(model, 3)])
def test_models_that_hide_probabilities(hide):
    assert compare(hide(VICTIM)).value == pytest.approx(1, abs=1e-6)
    stolen = [compare(hide(thief(seed))).value for seed in range(50, 58)]
    others = [compare(hide(innocent(seed))).value for seed in range(50, 58)]
    assert np.mean(stolen) > np.mean(others) + 0.5


def test_a_model_that_answers_with_probabilities_scores_the_same():
    class Soft(Tiny):
        output = "probabilities"

        def predict(self, images):
            return as_probabilities(super().predict(images), "logits")

    model = thief(50)
    assert compare(Soft(model.module)).value == pytest.approx(compare(model).value, abs=1e-6)


@pytest.mark.parametrize(("kind", "k"), [("topk", 1), ("topk", 2), ("labels", 1)])
def test_the_victims_answers_are_hidden_as_a_wrapper_would(kind, k):
    hidden = LabelOnly(VICTIM) if kind == "labels" else TopK(VICTIM, k)
    pattern = generate().arrays["uap"]
    seen = as_seen(ask(VICTIM, DATA.pixels, pattern), kind, k)
    wanted = ask(hidden, DATA.pixels, pattern).astype(float) + 0.01
    np.testing.assert_allclose(seen, wanted / wanted.sum(axis=2, keepdims=True), rtol=1e-6)


def test_nothing_is_hidden_without_need():
    answers = ask(VICTIM, DATA.pixels, generate().arrays["uap"])
    for kind in ("logits", "probabilities"):
        np.testing.assert_array_equal(as_seen(answers, kind, 1), answers)


def test_each_image_is_asked_for_once():
    counted, kept = Counted(VICTIM), generate()
    found = compare(counted)
    assert found.queries == counted.queries == 2 * len(kept.arrays["queries"])
    assert found.queries <= Uap(**FAST).budget() == 2 * 8 * 5
    assert len(np.unique(kept.arrays["queries"], axis=0)) == len(kept.arrays["queries"])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_clusters_are_found(count):
    """Far apart, K-means must find what was put in."""
    rng = np.random.default_rng(0)
    wanted = rng.integers(count, size=200)
    wanted[:count] = range(count)
    points = 100 * rng.normal(size=(count, 3))[wanted] + rng.normal(scale=0.1, size=(200, 3))
    found = clusters(points, count, np.random.default_rng(1))
    assert sorted(np.concatenate(found)) == list(range(200))
    assert sum(len(set(wanted[members])) for members in found) == len(found) == count


def test_clusters_without_members_are_left_out():
    points = np.repeat(np.arange(6.0), 10)[:, None]
    found = clusters(points, 6, np.random.default_rng(0))
    assert all(len(members) for members in found)
    assert sorted(np.concatenate(found)) == list(range(60))


def test_too_few_images_are_said():
    with pytest.raises(DataError, match="tells 6 images apart, and 7 clusters are wanted"):
        clusters(np.repeat(np.arange(6.0), 10)[:, None], 7, np.random.default_rng(0))
    with pytest.raises(DataError, match="pass more images or fewer points"):
        generate(points=121)


def test_views_hold_one_image_of_each_cluster():
    members = [np.arange(100), np.arange(100, 112), np.arange(112, 115), np.array([115])]
    test, train = draw_views(members, 20, 50, np.random.default_rng(0))
    assert test.shape == (20, 4)
    assert train.shape == (50, 4)
    for column, cluster in enumerate(members):
        held, rest = set(test[:, column]), set(train[:, column])
        assert held | rest <= set(cluster)
        assert len(held) == min(20, max(1, len(cluster) // 4))
        assert held == rest if len(cluster) == 1 else not held & rest
        for drawn, pool in ((test[:, column], held), (train[:, column], rest)):
            times = Counter(drawn.tolist()).values()
            assert max(times) - min(times) <= 1, pool
    assert len(set(train[:, 0])) == 50


def test_views_differ_though_images_come_again():
    test, train = draw_views([np.arange(8), np.arange(8, 16), np.arange(16, 24)], 2, 30, np.random.default_rng(0))
    assert len(np.unique(train, axis=0)) > 20
    assert len(test) == 2


def test_no_network_sees_the_images_that_suspects_are_shown():
    shop = Shop()
    kept = Uap(**FAST).generate(subject(VICTIM), DATA, seed=0, workshop=shop)
    shown = {image.tobytes() for image in kept.arrays["queries"]}
    assert len(shop.given) == 2
    for data in shop.given:
        assert not shown & {image.tobytes() for image in data.pixels}
        assert len(data) == len(DATA) - len(shown)
        assert data.classes == tuple("01234")


def test_classes_that_the_data_name_are_kept():
    left = without(DATA, DATA.pixels[:7], classes=9)
    np.testing.assert_array_equal(left.pixels, DATA.pixels[7:])
    np.testing.assert_array_equal(left.labels, DATA.labels[7:])
    assert left.classes == tuple("012345678")


def test_facts():
    kept = generate()
    before, after = (
        VICTIM.predict(as_images(pixels)).argmax(axis=1)
        for pixels in (kept.arrays["queries"], moved(kept.arrays["queries"], kept.arrays["uap"]))
    )
    assert kept.facts["fooled"] == pytest.approx((before != after).mean())
    assert kept.facts["norm"] == pytest.approx(np.linalg.norm(kept.arrays["uap"]))
    assert kept.facts["norm"] <= kept.facts["radius"] * (1 + 1e-5)
    assert kept.facts["clusters"] == kept.arrays["picks"].shape[1] == 8
    assert kept.facts["held_out"].keys() == {"innocent-4", "innocent-5", "innocent-6"}
    for seed, row in zip((4, 5, 6), kept.arrays["held_out"], strict=True):
        np.testing.assert_allclose(row, compare(innocent(seed)).detail["similarities"], atol=1e-6)
        assert kept.facts["held_out"][f"innocent-{seed}"] == pytest.approx(row.mean())


def moved(pixels, pattern):
    return np.rint(np.clip(pixels / 255 + pattern, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_the_t_test_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3 * seed, 1, 20), rng.normal(0, 2, 60)
    wanted = ttest_ind(a, b, equal_var=False, alternative="greater").pvalue
    assert welch(a, b) == pytest.approx(wanted, rel=1e-9)


def test_the_t_test_without_spread():
    assert welch(np.ones(20), np.zeros(5)) == 0
    assert welch(np.zeros(20), np.zeros(5)) == 1
    assert welch(np.ones(20), np.array([0.0, 0.2])) == pytest.approx(0.5 - np.arctan(9) / np.pi)


def test_the_judgement_compares_with_those_held_out():
    method, kept, found = Uap(**FAST), generate(), compare(thief(50))
    judged = method.judge(kept, found, None)
    held_out = kept.arrays["held_out"].ravel()
    wanted = ttest_ind(found.detail["similarities"], held_out, equal_var=False, alternative="greater").pvalue
    assert judged["t_test_p"] == pytest.approx(wanted)
    assert judged["piracy"] is bool(wanted < 0.05)
    assert judged["t_test_against"] == "held out"
    assert judged == method.judge(kept, found, Null((0.1,), ("one",)))
    assert not method.judge(kept, compare(innocent(60)), None)["piracy"]
    json.dumps(judged)


def test_the_judgement_prefers_the_null():
    method, kept, found = Uap(**FAST), generate(), compare(thief(50))
    null = (0.1, -0.3, 0.0, 0.2)
    judged = method.judge(kept, found, Null(null, tuple("abcd")))
    wanted = ttest_ind(found.detail["similarities"], null, equal_var=False, alternative="greater").pvalue
    assert judged["t_test_p"] == pytest.approx(wanted)
    assert judged["t_test_against"] == "null"
    assert "t-test" in method.explain(found.value, {**found.detail, **judged}, None)


def test_equation_5_where_the_suspect_can_be_differentiated():
    kept = generate(subspace=3)
    assert kept.arrays["subspace"].shape == (3, *SHAPE)
    np.testing.assert_allclose(np.square(kept.arrays["subspace"]).sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    assert len(kept.facts["inconsistency"]) == 3
    itself = compare(VICTIM, white=True, subspace=3).detail["inconsistency"]
    assert itself < min(kept.facts["inconsistency"].values())
    assert "inconsistency" not in compare(VICTIM, subspace=3).detail
    assert compare(thief(50), white=True, subspace=3).value == compare(thief(50), subspace=3).value
    assert "inconsistency" not in compare(VICTIM, white=True).detail
    assert "subspace" not in generate().arrays


def test_similarities_are_one_to_itself():
    kept = generate()
    weights = {key.removeprefix("encoder_"): kept.arrays[key] for key in kept.arrays if key.startswith("encoder_")}
    own = kept.arrays["answers"]
    np.testing.assert_allclose(similarities(weights, own, own, kept.arrays["picks"]), 1)


def test_seeds():
    first, again = generate(3), Uap(**FAST).generate(subject(VICTIM), DATA, seed=3, workshop=Shop())
    assert all(np.array_equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    assert first.facts == again.facts
    assert not np.array_equal(first.arrays["uap"], generate(4).arrays["uap"])


def test_a_victim_that_cannot_be_fooled_is_said():
    module = network(0)
    with torch.no_grad():
        module[3].weight.mul_(1e-3)
        module[3].bias.copy_(10 * torch.eye(CLASSES)[0])
    with pytest.raises(NotApplicable, match="changes the label of only 0% of the images; try a larger radius"):
        Uap(**FAST).generate(subject(Tiny(module)), DATA, seed=0, workshop=Shop())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("points", 0),
        ("fingerprints", 1),
        ("views", 0),
        ("surrogates", 0),
        ("independents", 0),
        ("held_out", 0),
        ("radius", 0.0),
        ("fooling", 1.5),
        ("steps", 0),
        ("temperature", -1.0),
        ("epochs", 0),
        ("batch", 1),
        ("learning_rate", 0.0),
        ("subspace", -1),
    ],
)
def test_bad_options_are_refused(option, value):
    with pytest.raises(UsageError, match=f"uap: {option} is {value}; expected "):
        Uap(**{option: value})
