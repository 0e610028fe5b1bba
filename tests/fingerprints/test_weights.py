"""Weights: the bound by simulation, a slow loop as an oracle, and what must and must not be found."""

from dataclasses import replace
from math import factorial

import numpy as np
import pytest
import torch
from torch import nn

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints.weights import Weights, fixed_points_p
from fp_audit.subject import Subject

PROTOTYPES = np.random.default_rng(5).normal(size=(8, 24)).astype(np.float32)
DATA = Labelled(np.zeros((8, 1, 1, 1), np.uint8), np.arange(8), None, "eight")


def examples(seed, count=512):
    labels = torch.arange(count) % 8
    noise = torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(PROTOTYPES)[labels] + noise, labels


def mlp(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def fit(network, seed, steps=150, rate=0.01):
    inputs, labels = examples(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network


def arrays(network):
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


VICTIM = arrays(fit(mlp(1), 1))


def subject(tensors):
    return Subject(tensors=lambda: tensors)


def compared(ours, theirs, data=DATA, **options):
    method = Weights(**options)
    return method.compare(method.generate(subject(ours), data, seed=0), subject(theirs))


def k_by_loop(a, b):
    """Number of rows of ``a`` whose most correlated row of ``b`` has the same index, one pair at a time."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    found = [max(range(len(b)), key=lambda j: np.corrcoef(row, b[j])[0, 1]) for row in a]
    return sum(i == j for i, j in enumerate(found))


@pytest.mark.parametrize("shape", [(9, 7), (12, 2, 3, 3)])
@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_p_is_one_over_k_factorial(shape, noise):
    rng = np.random.default_rng(3)
    a = rng.normal(size=shape)
    b = a + noise * rng.normal(size=shape)
    assert fixed_points_p(a, b, rows=256, classes=None) == pytest.approx(1 / factorial(k_by_loop(a, b)))


def test_golden_value():
    a = np.random.default_rng(0).normal(size=(12, 6))
    moved = a[[1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert fixed_points_p(a, a, rows=256, classes=None) == pytest.approx(1 / factorial(12))
    assert fixed_points_p(a, moved, rows=256, classes=None) == pytest.approx(1 / factorial(10))
    assert fixed_points_p(a, a, rows=6, classes=None) == pytest.approx(1 / factorial(6))


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_random_relabellings_keep_the_bound(alike):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(1, 8))
    a, b = (rng.normal(size=(10, 8)) + 9 * alike * common for _ in range(2))
    b[:4] = b[:1] + 0.1 * rng.normal(size=(4, 8))
    p = np.array([fixed_points_p(a, b[rng.permutation(10)], rows=256, classes=None) for _ in range(5000)])
    for k in range(2, 6):
        level = 1 / factorial(k)
        assert (p <= level * 1.0001).mean() <= level + 3 * np.sqrt(level / len(p))


def test_networks_trained_apart_are_not_alike():
    p = [compared(arrays(fit(mlp(s), s)), arrays(fit(mlp(s + 50), s + 50))).p_value for s in range(2, 6)]
    assert min(p) > 0.05
    score = compared(VICTIM, arrays(fit(mlp(9), 1)))
    assert score.p_value > 0.05
    assert abs(score.value) < 0.3
    assert "shares none" in Weights.explain(score.value, score.detail, None)


def test_networks_initialised_apart_are_not_alike():
    p = [compared(arrays(mlp(s)), arrays(mlp(s + 100))).p_value for s in range(30)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1


def test_a_copy_is_identical():
    score = compared(VICTIM, {name.upper(): value.copy() for name, value in reversed(VICTIM.items())})
    assert score.identical
    assert score.value == pytest.approx(1)
    assert score.p_value < 1e-12
    known = {"matrices": 3, "matched": 3, "relabelled": 0, "equal": 3, "relative_l2": 0.0, "bits": 0.0, "places": ""}
    assert {key: score.detail[key] for key in known} == known
    assert score.detail["cosine"] == pytest.approx(1)
    assert score.detail["cka"] == pytest.approx(1)
    assert score.detail["direction"]["child"] is None
    assert [layer["name"] for layer in score.detail["layers"]] == ["0.weight", "2.weight", "4.weight"]


def fine_tuned():
    network = mlp(1)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in VICTIM.items()})
    return arrays(fit(network, 77, steps=60))


def per_row(value, make):
    return make(value) if value.ndim == 2 else value


def dequantised(value):
    scale = np.abs(value).max(axis=1, keepdims=True) / 127
    return (np.rint(value / scale) * scale).astype(np.float32)


def scaled(value):
    return value * np.random.default_rng(1).uniform(0.1, 9, (len(value), 1)).astype(np.float32)


def pruned(value):
    return np.where(np.abs(value) > np.quantile(np.abs(value), 0.6), value, 0)


CHANGED = {
    "fine-tuned": fine_tuned,
    "transposed": lambda: {name: per_row(value, lambda v: np.ascontiguousarray(v.T)) for name, value in VICTIM.items()},
    "scaled": lambda: {name: per_row(value, scaled) for name, value in VICTIM.items()},
    "dequantised": lambda: {name: per_row(value, dequantised) for name, value in VICTIM.items()},
    "pruned": lambda: {name: per_row(value, pruned) for name, value in VICTIM.items()},
    "half": lambda: {name: value.astype(np.float16) for name, value in VICTIM.items()},
    "another head": lambda: {**VICTIM, "4.weight": np.random.default_rng(0).normal(size=(5, 32))},
}


@pytest.mark.parametrize("how", CHANGED)
def test_changed_copies_are_found(how):
    score = compared(VICTIM, CHANGED[how]())
    assert score.p_value < 1e-9
    assert score.value > 0.5
    assert not score.identical or how == "transposed"
    assert "row by row" in Weights.explain(score.value, score.detail, None)


def test_shared_constant_tables_alone_are_not_evidence():
    table = np.sin(np.arange(64)[:, None] / 3 ** np.arange(16)).astype(np.float32)
    score = compared({**VICTIM, "positions": table}, {**arrays(mlp(9)), "table": table})
    assert score.p_value > 0.01
    assert score.detail["equal"] == 1


def test_less_than_half_of_the_matrices_is_not_evidence():
    rng = np.random.default_rng(0)
    ours = {str(i): rng.normal(size=(16, 19 + i)) for i in range(5)}
    other = {str(i): rng.normal(size=(16, 19 + i)) for i in range(5)}
    assert compared(ours, {**other, "0": ours["0"], "1": ours["1"]}).p_value > 0.05
    assert compared(ours, {**other, "0": ours["0"], "1": ours["1"], "2": ours["2"]}).p_value < 1e-9


def test_the_median_is_taken_over_all_matrices_of_the_victim():
    rng = np.random.default_rng(0)
    ours = {str(i): rng.normal(size=(16, 9 + i)) for i in range(5)}
    few = {"0": ours["0"], "1": ours["1"]}
    assert compared(ours, few).p_value == 1
    assert compared(ours, few).value == pytest.approx(2 / 5)


def test_of_a_class_head_the_columns_are_compared():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(8, 300))
    similar, apart = ours + 0.5 * rng.normal(size=ours.shape), rng.normal(size=ours.shape)
    for theirs in (similar, apart):
        columns = fixed_points_p(ours.T, theirs.T, rows=256, classes=None)
        assert fixed_points_p(ours, theirs, rows=256, classes=8) == columns
    assert fixed_points_p(ours, similar, rows=256, classes=8) < 1e-12
    assert fixed_points_p(ours, similar[:, rng.permutation(300)], rows=256, classes=8) > 1e-2


def test_several_counterparts_cost_their_number():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 9))
    p = fixed_points_p(a, a + 0.1 * b, rows=256, classes=None)
    alone = compared({"a": a}, {"x": a + 0.1 * b})
    both = compared({"a": a}, {"y": b, "x": a + 0.1 * b})
    assert alone.p_value == pytest.approx(p)
    assert both.p_value == pytest.approx(2 * p)


def permuted(tensors, rng, keep=1.0, most=1.0):
    """Relabel the hidden units of the network, multiply them by factors, and keep a share of them."""
    found = dict(tensors)
    for first, second in (("0", "2"), ("2", "4")):
        size = len(found[f"{first}.weight"])
        order, factors = rng.permutation(size)[: round(keep * size)], most ** rng.uniform(-1, 1, size)
        found[f"{first}.weight"] = (found[f"{first}.weight"] * factors[:, None])[order]
        found[f"{first}.bias"] = (found[f"{first}.bias"] * factors)[order]
        found[f"{second}.weight"] = (found[f"{second}.weight"] / factors)[:, order]
    return found


HIDDEN = {
    "permuted": lambda rng: permuted(VICTIM, rng),
    "permuted and rescaled": lambda rng: permuted(VICTIM, rng, most=8.0),
    "fine-tuned and permuted": lambda rng: permuted(fine_tuned(), rng),
    "a quarter of the units cut out": lambda rng: permuted(VICTIM, rng, keep=0.75),
    "permuted and quantised": lambda rng: {k: per_row(v, dequantised) for k, v in permuted(VICTIM, rng).items()},
}


@pytest.mark.parametrize("how", HIDDEN)
def test_copies_in_another_order_are_found(how):
    score = compared(VICTIM, HIDDEN[how](np.random.default_rng(2)))
    assert score.p_value < 1e-3
    assert score.value > 0.8
    assert score.detail["relabelled"] >= 2
    assert not score.identical
    assert "in another order or scale" in Weights.explain(score.value, score.detail, None)


def test_residual_streams_that_are_permuted_are_found():
    rng = np.random.default_rng(0)
    ours = {
        f"{i}.{side}": rng.normal(size=(48, 32) if side == "up" else (32, 48))
        for i in range(3)
        for side in ("up", "down")
    }
    stream = rng.permutation(32)
    theirs = {}
    for i in range(3):
        inner = rng.permutation(48)
        theirs[f"{i}.up"] = ours[f"{i}.up"][inner][:, stream] + 0.05 * rng.normal(size=(48, 32))
        theirs[f"{i}.down"] = ours[f"{i}.down"][stream][:, inner] + 0.05 * rng.normal(size=(32, 48))
    score = compared(ours, theirs)
    assert score.p_value < 1e-6
    assert score.detail["relabelled"] == 6
    assert score.detail["agreeing"] == 1


def test_a_deep_network_in_another_order_is_judged_by_some_of_its_tensors_and_says_so():
    rng = np.random.default_rng(0)
    ours, other = ({f"{i}.weight": rng.normal(size=(16, 16)) for i in range(60)} for _ in range(2))
    score = compared(ours, other)
    said = Weights.explain(score.value, score.detail, None)
    assert said == "shares none of the victim's 60 weight matrices; 30 of them were looked for in any order"


def test_a_few_copied_blocks_are_found_and_named():
    rng = np.random.default_rng(0)
    ours = {f"body.layers.{i}.{side}.weight": rng.normal(size=(20, 20)) for i in range(9) for side in "qkv"}
    other = {name: rng.normal(size=value.shape) for name, value in ours.items()}
    part = {name: value for name, value in ours.items() if ".3." in name or ".4." in name}
    score = compared(ours, {**other, **part})
    assert score.p_value < 1e-9
    assert score.detail["matched"] == 6
    assert Weights.explain(score.value, score.detail, None).endswith("bit for bit): blocks 3 to 4 of body.layers")


def test_a_table_of_positions_in_a_deep_network_is_not_evidence():
    rng = np.random.default_rng(0)
    ours, theirs = ({str(i): rng.normal(size=(20, 20)) for i in range(20)} for _ in range(2))
    table = {
        "positions": np.sin(np.arange(64)[:, None] / 3 ** np.arange(16)),
        "again": np.cos(np.arange(99 * 8)).reshape(99, 8),
    }
    assert compared({**ours, **table}, {**theirs, **table}).p_value > 0.05


def test_averaged_weights_beside_the_weights_do_not_accuse_others():
    def with_average(seed):
        tensors = arrays(mlp(seed))
        near = {f"ema.{name}": value * 0.99 + 0.01 * arrays(mlp(seed + 1))[name] for name, value in tensors.items()}
        return {**tensors, **near}

    assert min(compared(with_average(s), with_average(s + 50)).p_value for s in range(4)) > 0.05


@pytest.mark.parametrize(
    ("ours", "theirs", "match"),
    [
        ({"a": np.ones((5, 9))}, {"a": np.ones((5, 9))}, "no matrix large enough"),
        ({"a": np.arange(99).reshape(9, 11)}, {"a": np.ones((9, 11))}, "no matrix large enough"),
        ({"a": np.ones((9, 9))}, {"a": np.ones((9, 8))}, "no weight matrix has a shape"),
        ({"a": np.ones((9, 9))}, {}, "no weight matrix has a shape"),
    ],
)
def test_what_cannot_be_compared_is_said(ours, theirs, match):
    with pytest.raises(NotApplicable, match=match):
        compared(ours, theirs)


def test_constant_matrices_match_nothing():
    assert fixed_points_p(np.ones((9, 9)), np.ones((9, 9)), rows=256, classes=None) == 1
    score = compared({"a": np.zeros((9, 9))}, {"a": np.zeros((9, 9))})
    assert score.p_value == 1


def test_weights_that_are_no_numbers_are_no_evidence():
    score = compared(VICTIM, {name: np.full_like(value, np.nan) for name, value in VICTIM.items()})
    assert (score.p_value, score.value) == (1.0, 0.0)


def test_names_stay_with_their_tensors_whatever_the_order_they_were_stored_in():
    ours = {f"layers.{i}.weight": np.random.default_rng(i).normal(size=(20, 20)) for i in range(12)}
    made = Weights().generate(subject(ours), None, seed=0)
    stored = replace(made, arrays=dict(sorted(made.arrays.items())))
    theirs = {"a": ours["layers.2.weight"], "b": ours["layers.10.weight"], "c": ours["layers.11.weight"]}
    score = Weights().compare(stored, subject(theirs))
    assert score.detail["places"] == "block 2 of layers, blocks 10 to 11 of layers"
