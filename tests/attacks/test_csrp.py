import shutil

import numpy as np
import pytest
import torch
from attack_victims import KINDS, data, digits, tensors, victim

from fp_audit import Plan, ScanOptions, register, scan
from fp_audit.attacking import attack, open_victim, run_attacks
from fp_audit.attacks._options import build
from fp_audit.augmentation import FILE, Csrp, stated
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

KNOWN = NAMED["-1..1"]
LIMITED = {"mode": "data-limited", "sigma": 1.3, "padding": 4, "epochs": 0.5, "batch": 32}


def artifact(path):
    return locate_one(str(path), SourceOptions()).artifact


@pytest.mark.parametrize("kind", KINDS)
def test_without_data_the_surrogate_is_the_victim_behind_csrp(kind, tmp_path):
    provenance = attack("csrp", str(victim(kind)), data(), tmp_path / "out")
    before, after = tensors(victim(kind)), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert stated(artifact(tmp_path / "out")) == Csrp(1.16, 2)
    assert provenance.surrogate["facts"] == {"augmentation": {"kind": "csrp", "sigma": 1.16, "padding": 2}}
    assert (provenance.cost.steps, provenance.cost.queries) == (0, 0)
    assert 0.6 < provenance.fidelity.agreement < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_with_data_all_layers_are_trained(kind, tmp_path):
    provenance = attack("csrp", str(victim(kind)), data(), tmp_path / "out", options=LIMITED)
    before, after = tensors(victim(kind)), tensors(tmp_path / "out")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert all(name.endswith("num_batches_tracked") or not before[name].any() for name in same)
    assert stated(artifact(tmp_path / "out")) == Csrp(1.3, 4)
    assert provenance.cost.steps == round(0.5 * 1438 / 32)


def test_one_step_of_training_by_hand(tmp_path):
    options = LIMITED | {"epochs": 1e-6, "weight_decay": 0.0, "learning_rate": 0.1}
    target = open_victim(str(victim("onnx")), data(), seed=3)
    assert run_attacks([build("csrp", options)], target, tmp_path / "out", seed=3).cost.steps == 1
    held_out = int(0.2 * len(target.data))
    seen = target.data.take(np.sort(np.random.default_rng(3).permutation(len(target.data))[held_out:]))
    chosen = torch.randperm(len(seen), generator=torch.Generator().manual_seed(3))[:32].numpy()
    shown = Csrp(1.3, 4).apply(as_images(seen.pixels[chosen]), np.random.default_rng(3))
    expected = adapter("onnx").load_white(artifact(victim("onnx")), LoadOptions(preprocess=target.opening.preprocess))
    labels = torch.from_numpy(seen.labels[chosen])
    torch.nn.functional.cross_entropy(expected.module(torch.from_numpy(shown)), labels).backward()
    with torch.no_grad():
        for parameter in expected.module.parameters():
            parameter.sub_(0.1 * 1.9 * parameter.grad)  # the first step of Nesterov's momentum .9
    found = tensors(tmp_path / "out")
    for name, value in expected.tensors().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_training_behind_a_strong_csrp_gains_accuracy(tmp_path):
    strong = {"sigma": 1.4, "padding": 6}
    free = attack("csrp", str(victim("onnx")), data(), tmp_path / "free", options=strong)
    options = strong | {"mode": "data-limited", "epochs": 4.0, "learning_rate": 0.01}
    limited = attack("csrp", str(victim("onnx")), data(), tmp_path / "limited", options=options)
    assert limited.fidelity.accuracy > free.fidelity.accuracy + 0.1


def test_a_model_states_one_random_preprocessing(tmp_path):
    attack("csrp", str(victim("onnx")), data(), tmp_path / "first")
    with pytest.raises(UnsupportedModel, match="already"):
        attack("rdg", str(tmp_path / "first"), data(), tmp_path / "second", preprocess=KNOWN)


def test_a_random_surrogate_stays_random_when_it_is_attacked(tmp_path):
    done = attack(
        "csrp", str(victim("onnx")), data(), tmp_path / "out", chain=["fine-tune:mode=ftll:epochs=0.2"], options={}
    )
    assert done.cost.steps > 0
    assert stated(artifact(tmp_path / "out")) == Csrp(1.16, 2)


@pytest.mark.parametrize(
    "options", [{"sigma": 0.5}, {"sigma": 5.0}, {"padding": -1}, {"padding": 10**5}, {"mode": "x"}]
)
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        build("csrp", options)


def test_padding_that_leaves_nothing_of_the_image(tmp_path):
    with pytest.raises(UsageError, match="at most 17 for images of 16 pixels"):
        attack("csrp", str(victim("onnx")), data(), tmp_path / "out", options={"padding": 18})


@pytest.fixture
def owner(tmp_path, monkeypatch):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    register(Plan(str(victim("onnx")), "owner", data(), methods=("negatives-logits",), device="cpu"))


def scores(path):
    (finding,) = scan(str(path), "owner", ScanOptions(jobs=1))
    assert finding.evidence, finding
    return {item.method: item.score for item in finding.evidence}


def test_a_scan_meets_the_random_model(owner, tmp_path):
    attack("csrp", str(victim("onnx")), data(), tmp_path / "models" / "random")
    shutil.copytree(tmp_path / "models" / "random", tmp_path / "plain")
    (tmp_path / "plain" / FILE).unlink()
    first, again = scores(tmp_path / "models"), scores(tmp_path / "models" / "random" / "model.onnx")
    assert scores(tmp_path / "plain")["negatives-logits"] == pytest.approx(1.0, abs=1e-6)
    assert first["negatives-logits"] != again["negatives-logits"]
    assert max(first["negatives-logits"], again["negatives-logits"]) < 0.99


def test_a_random_victim_can_be_registered_and_asked(tmp_path, monkeypatch):
    attack("csrp", str(victim("onnx")), data(), tmp_path / "random")
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    made = register(Plan(str(tmp_path / "random"), "owner", data(), methods=("negatives-logits",), device="cpu"))
    assert made.probes.accuracy < 1
    assert len(digits()) > len(made.fingerprints["negatives-logits"].arrays["queries"]) > 0


@pytest.mark.parametrize("kind", ["onnx", "huggingface"])
@pytest.mark.parametrize(
    "after", ["quantise:mode=static:calibration=32", "disguise:kind=export", "disguise:kind=reshard"]
)
def test_what_comes_after_keeps_the_randomness(kind, after, tmp_path):
    if (kind, after) == ("onnx", "disguise:kind=export"):
        after = "disguise:kind=permute"
    attack("csrp", str(victim(kind)), data(), tmp_path / "out", chain=[after])
    alone, chained = tmp_path / "alone", tmp_path / "out"
    attack("csrp", str(victim(kind)), data(), alone)
    assert (chained / "augmentation.json").read_text() == (alone / "augmentation.json").read_text()
