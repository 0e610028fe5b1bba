"""Registering: what is stored, what is refused, what is never done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fp_audit
from fp_audit import Plan, ScanOptions, abilities, audit, plugins, register, scan, victims
from fp_audit.answers import digests
from fp_audit.comparison import compare
from fp_audit.errors import DataError, PluginError, TargetError, UsageError, VictimError
from fp_audit.model import LoadOptions, as_images, cut
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.types import Access, InputSpec

METHODS = {name for name in plugins.names("fingerprints") if plugins.load("fingerprints", name).default}
QUICK = ("identity", "weights")


def cached(home):
    """Every file of the cache with the time it was written."""
    return {path.relative_to(home): path.stat().st_mtime_ns for path in (home / "cache").rglob("*") if path.is_file()}


def relabelled(models, path, change):
    with np.load(models.data) as arrays:
        held = dict(arrays)
    np.savez(path, **change(held))
    return str(path)


def test_everything_is_stored(registered):
    where = victims.folder("owner")
    about = json.loads((where / "victim.json").read_text())
    assert set(about["fingerprints"]) == METHODS
    assert {path.name for path in where.iterdir()} == {"victim.json", *about["digests"]}
    for name, digest in about["digests"].items():
        assert hashlib.sha256((where / name).read_bytes()).hexdigest() == digest
    facts = about["facts"]
    assert facts["seed"] == 0
    assert {"fp-audit", "torch", "onnxruntime", "transformers", "timm", "numpy"} <= set(facts["versions"])
    assert facts["data"]["images"] == 500
    weights = next(file for file in facts["files"] if file["path"] == "model.safetensors")
    assert weights["sha256"] == hashlib.sha256((registered.victim / "model.safetensors").read_bytes()).hexdigest()
    assert [row["kind"] for row in facts["references"]] == ["trained"] * 8
    assert all(row["accuracy"] > 0.5 for row in facts["references"]), facts["references"]


def test_nulls_lie_below_the_victim_itself(registered):
    victim = victims.load(victims.folder("owner"))
    assert {"negatives", "negatives-logits", "sac", "ipguard"} <= set(victim.nulls)
    for name, null in victim.nulls.items():
        assert len(null.scores) == len(set(null.names)) == 8
        assert max(null.scores) < victim.facts["own_scores"][name]["value"]
    assert victim.probes.classes[0] == "zero"
    assert victim.probes.accuracy > 0.9


def test_references_are_scored_again_behind_labels_and_top_three(registered):
    victim = victims.load(victims.folder("owner"))
    assert set(victim.hidden) == {"topk", "labels"}
    for nulls in victim.hidden.values():
        assert set(nulls) == {"negatives", "negatives-logits", "sac", "ipguard", "characteristic"}
        assert nulls["negatives"] == victim.nulls["negatives"]
        assert nulls["sac"].names == victim.nulls["sac"].names
        assert nulls["sac"].scores != victim.nulls["sac"].scores
    assert victim.hidden["topk"]["sac"].scores != victim.hidden["labels"]["sac"].scores


@pytest.mark.parametrize(("shown", "methods"), [("labels", {"negatives", "sac"}), ("topk", {"sac"})])
def test_a_suspect_that_hides_something_is_judged_against_references_that_do(registered, shown, methods):
    victim = victims.load(victims.folder("owner"))
    located = locate_one(str(registered.victim), SourceOptions())
    model = adapter(located.artifact.adapter).load(located.source.fetch(located.artifact), LoadOptions())
    compared = compare(Subject.of_model(cut(model, shown)), victim, methods, Access.QUERIES)
    about = dict.fromkeys(compared.scores, compared.detail)
    found = {item.method: item for item in audit.evidence_of(compared.scores, victim, about, Access.QUERIES)}
    assert set(found) - {audit.JOINT} == set(methods)
    for name in methods:
        assert found[name].null["mean"] == pytest.approx(np.mean(victim.hidden[shown][name].scores))
        assert found[name].p_value < 0.05


def test_abilities_name_every_method(registered):
    rows = {row.method: row for row in abilities(victims.load(victims.folder("owner")))}
    assert set(rows) == METHODS
    assert rows["negatives"].threshold is not None
    assert rows["negatives"].queries == 100
    assert "a test of its own" in rows["weights"].statement


def test_a_damaged_file_is_noticed(home):
    where = victims.folder("owner") / "sac.safetensors"
    where.write_bytes(where.read_bytes()[:-1] + b"!")
    with pytest.raises(VictimError, match="does not match its digest"):
        victims.load(victims.folder("owner"))


def test_a_taken_name_is_refused_before_the_model_is_opened(home):
    with pytest.raises(VictimError, match="'owner' exists"):
        register(Plan("nowhere/at-all", "owner"))


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "x" * 65])
def test_names_that_are_no_names(home, name):
    with pytest.raises(VictimError, match="cannot name a victim"):
        register(Plan("nowhere/at-all", name))


def test_fingerprints_and_references_are_made_once(home, registered):
    before = cached(home)
    again = register(Plan(str(registered.victim), "again", str(registered.data), train_references=8))
    assert cached(home) == before
    first = victims.load(victims.folder("owner"))
    assert again.nulls == first.nulls
    for name, fingerprint in first.fingerprints.items():
        for key, array in fingerprint.arrays.items():
            np.testing.assert_array_equal(again.fingerprints[name].arrays[key], array)


def test_another_seed_is_another_fingerprint(home, registered):
    before = set(cached(home))
    register(Plan(str(registered.victim), "seeded", str(registered.data), methods=("negatives",), seed=5))
    assert len(set(cached(home)) - before) == 2  # one fingerprint: its arrays and its description


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch, registered):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    plan = Plan(str(registered.stranger), "v", str(registered.data), methods=("identity", "negatives", "sac"))

    def interrupt(what, done):
        if what == "generating sac":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register(plan, progress=interrupt)
    assert victims.names() == []
    finished = cached(tmp_path / "home")
    assert len(finished) == 4
    victim = register(plan)
    after = cached(tmp_path / "home")
    assert finished.items() <= after.items()
    assert set(victim.fingerprints) == {"identity", "negatives", "sac"}
    assert not list((tmp_path / "home").rglob(".*"))


def test_an_interrupted_training_keeps_the_references_that_are_done(tmp_path, monkeypatch, registered):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("fp_audit.networks.SEEN_IMAGES", 500)
    stranger, data = str(registered.stranger), str(registered.data)
    plan = Plan(stranger, "v", data, methods=("negatives",), train_references=2)

    def interrupt(what, done):
        if what == "training references" and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        register(plan, progress=interrupt)
    kept = {path for path in cached(tmp_path / "home") if "networks" in path.parts}
    assert {path.suffix for path in kept} == {".safetensors"}
    assert 1 <= len(kept) <= 2
    register(plan)
    assert kept <= set(cached(tmp_path / "home"))
    assert victims.names() == ["v"]


def test_labels_that_the_model_does_not_know(home, registered, tmp_path):
    rng = np.random.default_rng(0)
    data = relabelled(
        registered, tmp_path / "wrong.npz", lambda held: {**held, "labels": rng.permutation(held["labels"])}
    )
    with pytest.raises(DataError, match="does not fit"):
        register(Plan(str(registered.victim), "v", data))


def test_more_classes_than_the_model_has(home, registered, tmp_path):
    data = relabelled(
        registered, tmp_path / "many.npz", lambda held: {"images": held["images"], "labels": held["labels"] + 5}
    )
    with pytest.raises(DataError, match="does not fit"):
        register(Plan(str(registered.victim), "v", data))
    assert "v" not in victims.names()


def test_classes_in_another_order_are_matched(home, registered, tmp_path):
    def rotate(held):
        return {"images": held["images"], "labels": (held["labels"] + 1) % 10}

    data = relabelled(registered, tmp_path / "rotated.npz", rotate)
    victim = register(Plan(str(registered.victim), "v", data, methods=("negatives",)))
    assert victim.probes.accuracy > 0.9


def test_without_data_only_what_needs_none_is_registered(home, registered):
    victim = register(Plan(str(registered.stranger), "v"))
    assert set(victim.fingerprints) == set(QUICK)
    assert victim.probes is None
    assert victim.facts["data"] is None


@pytest.mark.parametrize("method", sorted(METHODS - set(QUICK)))
def test_methods_that_need_data_say_so(home, registered, method):
    with pytest.raises(UsageError, match="data"):
        register(Plan(str(registered.stranger), "v", methods=(method,)))
    assert "v" not in victims.names()


def test_references_cannot_be_trained_without_data(home, registered):
    with pytest.raises(UsageError, match="--data"):
        register(Plan(str(registered.stranger), "v", train_references=2))


def test_an_unknown_method(home, registered):
    with pytest.raises(PluginError, match="no-such"):
        register(Plan(str(registered.stranger), "v", methods=("no-such",)))


def test_a_model_that_is_not_there(home, tmp_path):
    with pytest.raises(TargetError, match="no such file"):
        register(Plan(str(tmp_path / "nothing"), "v"))


def test_several_models_are_not_one_victim(home, registered):
    with pytest.raises(UsageError, match="name one of them"):
        register(Plan(str(registered.models), "v"))


def test_the_victim_is_no_reference(home, registered, tmp_path):
    copy = shutil.copy(registered.stranger, tmp_path / "innocent.onnx")
    with pytest.raises(UsageError, match="is the victim itself"):
        register(Plan(str(registered.stranger), "v", methods=QUICK, references=(str(copy),)))
    assert "v" not in victims.names()


def test_given_references_are_scored_as_suspects_are(home, registered):
    plan = Plan(
        str(registered.stranger),
        "v",
        str(registered.data),
        methods=("negatives", "weights"),
        references=(str(registered.int8),),
    )
    victim = register(plan)
    assert victim.nulls["negatives"].names == (str(registered.int8),)
    assert victim.facts["references"][0]["kind"] == "given"


def test_a_reference_counts_once(home, registered, tmp_path):
    copy = shutil.copy(registered.int8, tmp_path / "copy.onnx")
    given = (str(registered.int8), str(copy))
    with pytest.raises(UsageError, match=r"is also in --references, as .*; each model counts once"):
        register(Plan(str(registered.stranger), "v", methods=QUICK, references=given))


def test_references_that_show_labels_are_nulls_of_suspects_that_do(home, registered, tmp_path):
    """Their scores mean something else than those of logits."""
    plan = Plan(str(registered.victim), "first", str(registered.data), methods=("sac",))
    pixels = register(plan).fingerprints["sac"].arrays["queries"]
    probes = victims.load(victims.folder("first")).probes
    for i in range(4):
        labels = np.random.default_rng(i).integers(10, size=len(pixels))
        shown = [*zip(digests(as_images(pixels)), labels, strict=True)]
        shown += [*zip(digests(as_images(probes.pixels)), probes.labels, strict=True)]
        lines = [json.dumps({"image": f"{name}.png", "label": int(label)}) for name, label in shown]
        (tmp_path / f"{i}.jsonl").write_text("\n".join(lines))
    victim = register(replace(plan, name="v", references=tuple(str(tmp_path / f"{i}.jsonl") for i in range(4))))
    assert "sac" not in victim.nulls
    assert "sac" not in victim.hidden["topk"]
    assert len(victim.hidden["labels"]["sac"].scores) == 4


def test_a_reference_that_cannot_be_opened_is_an_error(home, registered, tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    plan = Plan(str(registered.stranger), "v", methods=QUICK, references=(str(tmp_path / "text.onnx"),))
    with pytest.raises(UsageError, match=r"--references .*text\.onnx"):
        register(plan)


def shifted(source, path):
    """The same ONNX model, for images in -1..1."""
    model = onnx.load(source)
    model.graph.input[0].name = "raw"
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    model.graph.initializer.append(half)
    model.graph.node.insert(0, helper.make_node("Mul", ["raw", "half"], ["halved"]))
    model.graph.node.insert(1, helper.make_node("Add", ["halved", "half"], ["images"]))
    onnx.save(model, path)
    return path


def test_an_onnx_victim_s_preprocessing_is_found_out(home, registered, tmp_path):
    model = shifted(registered.stranger, tmp_path / "shifted.onnx")
    victim = register(Plan(str(model), "v", str(registered.data), methods=("negatives",)))
    assert victim.preprocess == NAMED["-1..1"]
    assert victims.load(victims.folder("v")).preprocess == NAMED["-1..1"]
    given = Plan(str(model), "w", str(registered.data), methods=("negatives",), preprocess=NAMED["-1..1"])
    assert register(given).preprocess == NAMED["-1..1"]


def test_without_data_an_onnx_victim_has_fingerprints_too(home, registered):
    plan = Plan(str(registered.stranger), "v", methods=("weights", "characteristic:steps=60"), preprocess=NAMED["0..1"])
    victim = register(plan)
    assert victim.facts["outputs"] == 10
    assert victim.probes is None
    (finding,) = scan(str(registered.stranger), victim="v")
    assert finding.verdict == "identical"
    subject = Subject.of_model(fp_audit.load(str(registered.stranger), preprocess="0..1"))
    compared = compare(subject, victim, ["characteristic"], Access.QUERIES)
    assert compared.scores["characteristic"].value == 1
    assert compared.detail["classes_aligned_by"] == "unchecked order"
    five = SimpleNamespace(
        spec=InputSpec(1, 8, 8), classes=None, output="logits", predict=lambda x: np.ones((len(x), 5))
    )
    silent = compare(Subject.of_model(five), victim, ["characteristic"], Access.QUERIES).silent
    assert silent == {"characteristic": "it has 5 classes, the victim has 10"}


def test_what_cannot_be_asked_is_registered_by_its_weights(home, registered):
    said = []
    victim = register(Plan(str(registered.stranger), "v"), progress=lambda what, done: said.append(what))
    assert set(victim.fingerprints) == {"identity", "weights"}
    assert any("--preprocess" in text for text in said)


def test_every_third_reference_is_of_the_victims_architecture(registered):
    about = victims.load(victims.folder("owner")).facts["references"]
    assert sum(row["name"].startswith("own-") for row in about) == 3


def test_parts_have_a_null(home, registered):
    plan = Plan(
        str(registered.victim),
        "judged",
        str(registered.data),
        methods=("deepjudge:queries=20:cases=8:neuron_steps=50", "natural+logits+cosine:queries=20"),
        train_references=6,
    )
    victim = register(plan)
    null = victims.load(victims.folder("judged")).nulls["deepjudge"]
    assert [set(row) >= {"robd", "jsd"} for row in null.parts] == [True] * 6
    assert sum("nod" in row for row in null.parts) == 2  # of the victim's architecture
    assert null == victim.nulls["deepjudge"]
    assert set(victim.facts["own_scores"]["deepjudge"]["parts"]) == {"robd", "jsd", "nod", "nad", "lod", "lad"}
    rows = {row.method: row.statement for row in abilities(victim)}
    assert rows["deepjudge"].startswith("judged in 6 parts; ")
    suspect = str(registered.models / "thief" / "fine-tuned")
    (finding,) = scan(suspect, victim="judged", options=ScanOptions(depth=Access.GRADIENTS))
    evidence = {item.method: item for item in finding.evidence}
    assert set(evidence) == {"deepjudge", "natural+logits+cosine"}
    assert evidence["deepjudge"].access == Access.GRADIENTS
    assert set(evidence["deepjudge"].detail["votes"]) >= {"robd", "jsd", "nod"}
    (shallow,) = scan(suspect, victim="judged")
    parts = {item.method: item.parts for item in shallow.evidence}["deepjudge"]
    assert set(parts) == {"robd", "jsd"}


def test_a_single_related_reference_tells_a_common_ancestor(home, registered, tmp_path):
    """Too few to judge by; enough to know that shared weights convict nobody."""
    (tuned,) = (registered.models / "thief").glob("fine-tuned")
    register(Plan(str(registered.victim), "v", methods=("weights",), references=(str(tuned),)))
    (finding,) = scan([str(registered.int8)], ["v"], ScanOptions(depth=Access.WEIGHTS))
    assert finding.verdict == "common-ancestor"
    assert "weight matrices" in finding.reason
