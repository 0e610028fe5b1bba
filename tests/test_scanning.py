"""The main job: scanning models whose history is known."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fixtures import digits
from fp_audit import Finding, Plan, ScanOptions, Skipped, audit, compare, register, scan
from fp_audit.calibrate import combine
from fp_audit.errors import UsageError, VictimError
from fp_audit.types import Access, Evidence

SURROGATES = ("thief/fine-tuned", "thief/int8", "thief/reordered")
INDEPENDENTS = ("other/onnx", "other/same-architecture")


@pytest.fixture(scope="module")
def everything(registered):
    """All models against both victims, scanned once: (target, victim) -> finding."""
    results = list(scan(str(registered.models), ("owner", "asked")))
    assert not [item for item in results if isinstance(item, Skipped)]
    return {(item.target, item.victim): item for item in results}


def verdicts(results):
    return {item.target: item.verdict if isinstance(item, Finding) else "skipped" for item in results}


class TestVerdicts:
    def test_every_model_and_victim_has_one_finding(self, everything):
        targets = {*SURROGATES, *INDEPENDENTS, "thief/renamed"}
        assert set(everything) == {(target, victim) for target in targets for victim in ("owner", "asked")}

    def test_a_renamed_copy_is_identical(self, everything):
        finding = everything["thief/renamed", "owner"]
        assert finding.verdict == "identical"
        assert "byte for byte" in finding.reason

    @pytest.mark.parametrize("victim", ["owner", "asked"])
    @pytest.mark.parametrize("target", SURROGATES)
    def test_surrogates_are_derived(self, everything, target, victim):
        finding = everything[target, victim]
        assert finding.verdict == "derived", finding
        assert finding.q_value <= 0.01

    @pytest.mark.parametrize("victim", ["owner", "asked"])
    @pytest.mark.parametrize("target", INDEPENDENTS)
    def test_independents_are_not_derived(self, everything, target, victim):
        assert everything[target, victim].verdict in ("independent", "suspected"), everything[target, victim]

    def test_a_copy_is_derived_where_only_answers_are_compared(self, everything):
        assert everything["thief/renamed", "asked"].verdict == "derived"

    @pytest.mark.parametrize("target", [*SURROGATES, *INDEPENDENTS])
    def test_methods_that_ask_are_also_taken_together(self, everything, target):
        finding = everything[target, "asked"]
        *alone, joint = finding.evidence
        assert joint.method == audit.JOINT
        assert set(joint.detail["methods"]) <= {item.method for item in alone if item.access == Access.QUERIES}
        assert (joint.null["n"], joint.queries) == (8, 0)
        assert (joint.score > joint.null["max"]) == (target in SURROGATES)
        voting = [item.p_value for item in finding.evidence if item.p_value is not None]
        assert joint.p_value in voting
        assert finding.p_value == pytest.approx(combine(voting))

    def test_classes_without_names_are_aligned(self, everything):
        evidence = everything["thief/reordered", "asked"].evidence
        details = [item.detail for item in evidence if item.method != audit.JOINT]
        assert {detail["classes_aligned_by"] for detail in details} == {"predictions"}
        assert all(detail["probe_accuracy"] > 0.9 for detail in details)

    def test_a_decided_model_is_not_asked(self, everything):
        methods = {item.method for item in everything["thief/fine-tuned", "owner"].evidence}
        assert methods <= {"identity", "weights"}

    def test_evidence_states_what_it_rests_on(self, everything):
        for finding in everything.values():
            assert finding.reason
            assert "\n" not in finding.reason
            assert finding.cost.seconds > 0
            for item in finding.evidence:
                assert item.statement
                assert item.access <= Access.QUERIES
        asked = everything["thief/int8", "asked"]
        assert asked.cost.queries >= 100
        assert {item.null["n"] for item in asked.evidence} == {8}


def found_by(method, p):
    return Evidence(method, Access.QUERIES, 1.0, p, None, 0)


def test_siblings_vote_five_times():
    evidence = (found_by("siblings", 0.004), found_by("negatives", 1.0), found_by(audit.JOINT, 0.5))
    assert audit.combined(evidence) == pytest.approx(combine([0.004] * 5 + [1.0, 0.5]))
    assert audit.combined(evidence[1:]) == pytest.approx(combine([1.0, 0.5]))
    assert audit.combined([found_by("negatives", None)]) is None


@pytest.mark.parametrize(("siblings", "negatives", "decided"), [(5e-7, 1, True), (8e-7, 1, False), (1, 1e-7, True)])
def test_a_verdict_is_decided_when_the_votes_of_one_method_outweigh_all_others(siblings, negatives, decided):
    evidence = (found_by("siblings", siblings), found_by("negatives", negatives))
    assert audit._decided(evidence, 7e-7) == decided
    assert audit.combined(evidence) <= 7e-7 or not decided


def test_references_in_files_leave_copies_derived(home, registered, tmp_path):
    """They are compared by files and weights too: that none of them equals the victim must not acquit a copy."""
    for seed in range(4):
        digits.write_huggingface(tmp_path / "innocent" / str(seed), kind="resnet", seed=30 + seed)
    methods, given = ("identity", "weights", "negatives"), (str(tmp_path / "innocent"),)
    register(Plan(str(registered.victim), "given", str(registered.data), methods=methods, references=given))
    found = {item.target: item for item in scan(str(registered.models), "given")}
    for target in SURROGATES:
        assert found[target].verdict == "derived", found[target]
        assert all(item.p_value is None or 0 < item.p_value <= 1 for item in found[target].evidence)
        assert [item.p_value for item in found[target].evidence if item.method == "identity"] == [None]
    assert found["other/same-architecture"].verdict == "independent"


class TestTargets:
    def test_several_victims_of_different_kinds(self, home, registered):
        register(Plan(str(registered.stranger), "stranger"))
        results = list(scan([str(registered.int8), str(registered.stranger)], ("owner", "stranger")))
        found = {(item.target == str(registered.stranger), item.victim): item.verdict for item in results}
        assert found[True, "stranger"] == "identical"
        assert found[False, "owner"] == "derived"
        assert found[True, "owner"] in ("independent", "suspected")
        assert found[False, "stranger"] not in ("identical", "derived")

    def test_all_victims_by_default(self, home, registered):
        results = list(scan(str(registered.int8), options=ScanOptions(depth=Access.IDENTITY)))
        assert {item.victim for item in results} == {"owner", "asked"}

    def test_a_list_and_relative_paths(self, home, registered, monkeypatch):
        monkeypatch.chdir(registered.models)
        listed = registered.root / "list.txt"
        listed.write_text("# suspects\nmodels/thief/int8\n\nmodels/other/onnx/model.onnx\nmodels/none\n")
        found = verdicts(scan("../list.txt", "owner"))
        assert len(found) == 3
        by_name = {("int8" in target, "none" in target): verdict for target, verdict in found.items()}
        assert by_name[True, False] == "derived"
        assert by_name[False, True] == "skipped"
        assert by_name[False, False] in ("independent", "suspected")

    @pytest.mark.parametrize("where", ["thief/int8", "./thief/int8/", "thief/int8/model.onnx"])
    def test_relative_paths(self, home, registered, monkeypatch, where):
        monkeypatch.chdir(registered.models)
        (finding,) = scan(where, "owner", ScanOptions(depth=Access.WEIGHTS))
        assert finding.verdict == "derived"

    def test_the_same_model_twice_is_one_finding(self, home, registered):
        results = list(scan([str(registered.int8)] * 2, "owner", ScanOptions(depth=Access.IDENTITY)))
        assert len(results) == 1

    def test_models_of_one_name_in_two_folders_are_all_scanned(self, home, registered, tmp_path):
        for folder, model in (("first", registered.stranger), ("second", registered.int8)):
            for name in ("a", "b"):
                (tmp_path / folder / name).mkdir(parents=True)
                shutil.copy(model, tmp_path / folder / name)
        targets = [str(tmp_path / "first"), str(tmp_path / "second")]
        results = list(scan(targets, "owner", ScanOptions(depth=Access.WEIGHTS)))
        assert len(results) == 4
        assert [item.verdict for item in results].count("derived") == 2

    def test_nothing_there(self, home, tmp_path):
        (skipped,) = scan(str(tmp_path / "nothing"), "owner")
        assert isinstance(skipped, Skipped)

    def test_an_unknown_victim(self, home, registered):
        with pytest.raises(VictimError, match="nobody"):
            list(scan(str(registered.int8), "nobody"))

    def test_no_victim_at_all(self, tmp_path, monkeypatch, registered):
        monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "empty"))
        with pytest.raises(VictimError, match="register"):
            list(scan(str(registered.int8)))


class TestDepth:
    def test_identity_opens_nothing(self, home, registered, monkeypatch):
        monkeypatch.setattr(audit._State, "descend", None)
        found = verdicts(scan(str(registered.models), "owner", ScanOptions(depth=Access.IDENTITY)))
        assert found["thief/renamed"] == "identical"
        assert found["other/onnx"] not in ("identical", "derived")
        assert found["thief/int8"] not in ("identical", "derived")

    def test_weights_asks_nothing(self, home, registered):
        targets = [str(registered.int8), str(registered.stranger)]
        derived, other = scan(targets, "owner", ScanOptions(depth=Access.WEIGHTS))
        assert derived.verdict == "derived"
        assert other.verdict not in ("identical", "derived")
        assert derived.cost.queries == other.cost.queries == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"alpha": 0.0},
            {"alpha": 1.0},
            {"alpha": float("nan")},
            {"jobs": 0},
            {"timeout": 0.0},
            {"timeout": float("nan")},
            {"timeout": float("inf")},
        ],
    )
    def test_options_that_make_no_sense(self, wrong):
        with pytest.raises(UsageError, match="--"):
            ScanOptions(**wrong)


class TestCompare:
    def test_without_data_weights_are_compared(self, home, registered, tmp_path):
        copy = shutil.copy(registered.stranger, tmp_path / "copy.onnx")
        assert [item.verdict for item in compare(str(registered.stranger), str(copy))] == ["identical"]
        (other,) = compare(str(registered.stranger), str(registered.int8))
        assert other.verdict not in ("identical", "derived")

    def test_with_data_answers_are_compared(self, home, registered):
        (finding,) = compare(str(registered.victim), str(registered.stranger), str(registered.data), train_references=6)
        assert finding.verdict in ("independent", "suspected")
        assert {"identity", "sac", "negatives"} <= {item.method for item in finding.evidence}

    def test_nothing_is_registered(self, home, registered):
        before = sorted((home / "victims").iterdir())
        list(compare(str(registered.stranger), str(registered.int8)))
        assert sorted((home / "victims").iterdir()) == before

    def test_b_that_is_no_model_is_skipped(self, home, registered, tmp_path):
        (tmp_path / "b.onnx").write_text("text")
        (skipped,) = compare(str(registered.stranger), str(tmp_path / "b.onnx"))
        assert isinstance(skipped, Skipped)


class TestResume:
    @pytest.fixture
    def three(self, registered, tmp_path):
        for name in ("a", "b", "c"):
            (tmp_path / "three" / name).mkdir(parents=True)
            shutil.copy(registered.int8, tmp_path / "three" / name)
        return str(tmp_path / "three")

    @pytest.fixture
    def opened(self, monkeypatch):
        """Targets that were examined."""
        targets, real = [], audit.examine

        def examine(item, *arguments):
            targets.append(item.artifact.target)
            return real(item, *arguments)

        monkeypatch.setattr(audit, "examine", examine)
        return targets

    def interrupt(self, three):
        def seen(outcome, done, listed):
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(scan(three, "owner", ScanOptions(depth=Access.WEIGHTS, jobs=1), seen=seen))

    def again(self, three, **options):
        return list(scan(three, "owner", ScanOptions(**{"depth": Access.WEIGHTS, "resume": True, **options})))

    def test_what_is_finished_is_not_opened_again(self, home, three, opened):
        self.interrupt(three)
        opened.clear()
        told = []
        options = ScanOptions(depth=Access.WEIGHTS, resume=True)
        results = list(scan(three, "owner", options, seen=lambda outcome, done, listed: told.append((done, listed))))
        assert len(opened) == 1
        assert [done for done, _ in told] == [1, 2, 3]
        assert told[-1] == (3, 3)
        assert [(item.target, item.verdict) for item in results] == [(name, "derived") for name in "abc"]
        assert [item.cost.examined is None for item in results] == [item.target in opened for item in results]

    def test_a_resumed_scan_finds_what_an_uninterrupted_one_finds(self, home, three):
        self.interrupt(three)
        resumed = self.again(three)
        whole = list(scan(three, "owner", ScanOptions(depth=Access.WEIGHTS)))
        assert [(f.target, f.p_value, f.q_value, f.reason) for f in resumed] == [
            (f.target, f.p_value, f.q_value, f.reason) for f in whole
        ]

    def test_without_resume_everything_is_done_again(self, home, three, opened):
        self.interrupt(three)
        opened.clear()
        list(scan(three, "owner", ScanOptions(depth=Access.WEIGHTS)))
        assert sorted(opened) == ["a", "b", "c"]

    def test_a_later_scan_of_more_models_opens_the_new_ones(self, home, three, opened, registered):
        self.again(three)
        (Path(three) / "d").mkdir()
        shutil.copy(registered.stranger, Path(three) / "d")
        opened.clear()
        assert len(self.again(three)) == 4
        assert opened == ["d"]

    def test_other_content_of_the_same_size_and_date_is_another_model(self, home, three, opened):
        self.again(three)
        opened.clear()
        model = Path(three) / "a" / "model.onnx"
        stat, content = model.stat(), bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(content)
        os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.again(three)
        assert opened == ["a"]

    @pytest.mark.parametrize("other", [{"alpha": 0.02}, {"repeats": 2}, {"record": True}, {"depth": Access.QUERIES}])
    def test_what_was_found_in_another_way_is_not_taken_over(self, home, registered, opened, other):
        self.again(str(registered.int8))
        self.again(str(registered.int8), **other)
        assert len(opened) == 2

    def test_what_was_found_against_another_victim_is_not_taken_over(self, home, registered, opened):
        self.again(str(registered.int8))
        about = json.loads((home / "victims" / "owner" / "victim.json").read_text())
        about["nulls"]["sac"]["scores"][0] += 0.01
        (home / "victims" / "owner" / "victim.json").write_text(json.dumps(about))
        self.again(str(registered.int8))
        assert len(opened) == 2

    def test_what_broke_off_is_tried_again(self, home, registered, opened):
        short = ScanOptions(timeout=0.001, resume=True)
        for _ in range(2):
            list(scan(str(registered.int8), "owner", short))
        assert len(opened) == 2


def greedy(path):
    """A valid model that asks for 40 GB when it is run."""
    size = helper.make_tensor("size", TensorProto.INT64, [2], [100_000, 100_000])
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "size"], ["huge"]),
        helper.make_node("Exp", ["huge"], ["filled"]),
        helper.make_node("ReduceMean", ["filled"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "row"], ["logits"]),
    ]
    row = helper.make_tensor("row", TensorProto.FLOAT, [1, 10], [1.0] * 10)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "greedy", [images], [logits], [size, row])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


class TestTrouble:
    @pytest.mark.skipif(sys.platform != "linux", reason="memory limits are enforced on Linux")
    def test_a_model_that_exhausts_memory_does_not_stop_the_scan(self, home, registered, tmp_path):
        greedy(tmp_path / "greedy.onnx")
        shutil.copy(registered.int8, tmp_path / "int8.onnx")
        results = list(scan(str(tmp_path / "greedy.onnx"), "owner")) + list(scan(str(tmp_path / "int8.onnx"), "owner"))
        found = verdicts(results)
        assert found[str(tmp_path / "int8.onnx")] == "derived"
        assert found[str(tmp_path / "greedy.onnx")] in ("inconclusive", "skipped")
        assert "memory" in results[0].reason

    def test_a_model_that_takes_too_long_is_never_independent(self, home, registered):
        options = ScanOptions(timeout=0.001)
        results = list(scan([str(registered.int8), str(registered.stranger)], "owner", options))
        assert len(results) == 2
        assert set(verdicts(results).values()) <= {"skipped", "inconclusive"}
        assert all("0.001 s" in item.reason for item in results)

    def test_a_child_that_dies_spares_the_others(self, home, registered, monkeypatch):
        from fp_audit.errors import SandboxCrash

        real = audit._State.descend

        def descend(self, *arguments):
            if "onnx/model.onnx" in str(self.artifact.path):
                raise SandboxCrash("was killed by SIGSEGV")
            real(self, *arguments)

        monkeypatch.setattr(audit._State, "descend", descend)
        found = verdicts(scan([str(registered.stranger), str(registered.int8)], "owner"))
        assert sorted(found.values()) == ["derived", "skipped"]

    def test_a_lying_child_is_not_believed(self, home, registered, monkeypatch):
        from fp_audit.sandbox import Child

        monkeypatch.setattr(Child, "call", lambda self, request: {"nonsense": 1})
        (finding,) = scan(str(registered.int8), "owner")
        assert finding.verdict == "inconclusive"
        assert "malformed" in finding.reason

    def test_two_scans_at_once(self, home, registered):
        options = ScanOptions(depth=Access.WEIGHTS, jobs=1)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(lambda path: list(scan(str(path), "owner", options)), path)
                for path in (registered.int8, registered.stranger)
            ]
            (first,), (second,) = (job.result() for job in jobs)
        assert first.verdict == "derived"
        assert second.verdict not in ("derived", "identical")
