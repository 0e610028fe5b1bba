"""Bundles of evidence: what is recorded is judged again to the same verdicts, and what was changed is found out."""

from __future__ import annotations

import base64
import json
import zipfile
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from fp_audit import ScanOptions, __version__, archive, bundle, plugins, scan, verifying, victims
from fp_audit.audit import JOINT, Outcome
from fp_audit.errors import BundleError
from fp_audit.reports._base import Report
from fp_audit.types import Access, Evidence, Finding, Fingerprint, Null, Skipped
from fp_audit.verifying import verify

ASKING = ("negatives", "negatives-logits", "sac")
COMMAND = "fp-audit scan models"


def bundled(path, targets, wanted, options=None):
    """Scan and write the bundle, as the command line does; return the findings."""
    options = options or ScanOptions(record=True, jobs=1)
    seen = []
    results = list(scan([str(target) for target in targets], wanted, options, seen=lambda item, *_: seen.append(item)))
    findings = tuple(item for item in results if isinstance(item, Finding))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    report = Report(tuple(dict.fromkeys(item.victim for item in findings)), findings, skipped, 0.01, options.depth)
    bundle.write(path, report, [item for item in seen if isinstance(item, Outcome)], command=COMMAND)
    return findings


@dataclass(frozen=True)
class Bundled:
    path: Path
    findings: tuple[Finding, ...]


@pytest.fixture(scope="module")
def asked(registered, tmp_path_factory):
    """A surrogate and a stranger against the victim that only asks."""
    path = tmp_path_factory.mktemp("asked") / "asked.zip"
    return Bundled(path, bundled(path, (registered.int8, registered.stranger, "nothing"), "asked"))


@pytest.fixture(scope="module")
def both(registered, tmp_path_factory):
    """A copy and a stranger, of the victim's architecture, against both victims."""
    path = tmp_path_factory.mktemp("both") / "both.zip"
    targets = (registered.models / "thief" / "renamed", registered.models / "other" / "same-architecture")
    return Bundled(path, bundled(path, targets, ("owner", "asked")))


def content(path):
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


def changed(found, to, member, change, *, sealed=True):
    """Copy a bundle with one member changed; ``sealed`` with the digests in the manifest brought up to date."""
    members = content(found.path)
    if member.endswith(".json"):
        data = json.loads(members[member])
        change(data)
        members[member] = json.dumps(data).encode()
    else:
        members[member] = change(members[member])
    if not sealed:
        with zipfile.ZipFile(to / "changed.zip", "w") as target:
            for name, text in members.items():
                target.writestr(name, text)
        return to / "changed.zip"
    manifest = json.loads(members.pop(archive.MANIFEST))
    assert set(manifest.pop("members")) == set(members)
    archive.pack(to / "changed.zip", members, manifest)
    return to / "changed.zip"


def differences(path, published=()):
    found = verify(path, published)
    assert not found.confirmed
    return [*found.differences, *(text for check in found.checks for text in check.differences)]


class TestWriting:
    def test_all_that_is_needed_is_there_and_no_weights(self, both):
        names = set(content(both.path))
        assert {"report.json", "summary.html", "manifest.json", "answers/1.json", "answers/2.json"} <= names
        for method in ASKING:
            assert f"victims/asked/{method}.safetensors" in names
        assert {"victims/owner/victim.json", "victims/owner/probes.safetensors"} <= names
        assert not {name for name in names if "weights" in name or "identity" in name}

    def test_the_manifest_says_what_was_done(self, registered, both):
        manifest = json.loads(content(both.path)["manifest.json"])
        assert manifest["command"] == COMMAND
        assert {"python", "fp-audit", "numpy", "torch"} <= set(manifest["versions"])
        files = {file["path"]: file for file in manifest["suspects"][0]["files"]}
        weights = registered.models / "thief" / "renamed" / "model.safetensors"
        assert files["model.safetensors"]["sha256"] == sha256(weights.read_bytes()).hexdigest()
        owner = manifest["victims"]["owner"]
        assert owner["commitment"] == victims.describe("owner")["commitment"]
        assert len(set(owner["queries"]["negatives"])) == len(owner["queries"]["negatives"]) == 100
        members = content(both.path)
        assert {name: item["sha256"] for name, item in manifest["members"].items()} == {
            name: sha256(data).hexdigest() for name, data in members.items() if name != "manifest.json"
        }

    def test_a_decided_model_is_examined_to_the_end(self, both):
        (copy,) = (item for item in both.findings if item.verdict == "identical")
        assert copy.victim == "owner"
        assert {item.method for item in copy.evidence} - {JOINT} == set(victims.describe("owner")["fingerprints"])

    @pytest.mark.parametrize(("depth", "hashed"), [(Access.IDENTITY, False), (Access.QUERIES, True)])
    def test_a_scan_without_a_bundle_brings_no_answers_and_hashes_what_it_opens(self, home, registered, depth, hashed):
        seen = []
        options = ScanOptions(depth=depth)
        list(scan(str(registered.int8), "asked", options, seen=lambda item, *_: seen.append(item)))
        assert not seen[0].answers
        assert all((file.sha256 is not None) == hashed for file in seen[0].artifact.files)

    def test_a_resumed_scan_makes_the_same_bundle(self, home, registered, tmp_path):
        options = ScanOptions(record=True, jobs=1)

        def interrupt(outcome, done, count):
            raise KeyboardInterrupt

        targets = [str(registered.int8), str(registered.stranger)]
        with pytest.raises(KeyboardInterrupt):
            list(scan(targets, "asked", options, seen=interrupt))
        first = bundled(tmp_path / "a.zip", targets, "asked", replace(options, resume=True))
        second = bundled(tmp_path / "b.zip", targets, "asked", options)
        assert [item.p_value for item in first] == [item.p_value for item in second]
        a, b = content(tmp_path / "a.zip"), content(tmp_path / "b.zip")
        assert [name for name in a if a[name] != b[name]] in (
            ["report.json", "manifest.json"],  # seconds
            ["report.json", "summary.html", "manifest.json"],  # another minute
        )
        assert json.loads(a["manifest.json"])["suspects"] == json.loads(b["manifest.json"])["suspects"]

    def test_the_summary_is_for_people(self, asked):
        page = content(asked.path)["summary.html"].decode()
        for words in ("derived", "independent", "Signature", "Commitment", "verify-bundle", "Not examined", COMMAND):
            assert words in page
        assert victims.describe("asked")["commitment"] in page
        assert "<script" not in page
        assert "http" not in page


class TestConfirmed:
    def test_answers_alone_give_the_same_verdicts(self, asked):
        found = verify(asked.path)
        assert found.confirmed, (found.differences, found.checks)
        assert [check.finding.verdict for check in found.checks] == ["derived", "independent"]
        for check, finding in zip(found.checks, asked.findings, strict=True):
            assert (check.computed, check.taken) == ((*ASKING, JOINT), ())
            assert check.finding.p_value == pytest.approx(finding.p_value, rel=1e-9)
            assert check.finding.target == finding.target

    def test_weights_are_taken_as_recorded_and_files_are_compared_anew(self, both):
        found = verify(both.path)
        assert found.confirmed, (found.differences, found.checks)
        (copy,) = (check for check in found.checks if check.finding.verdict == "identical")
        assert copy.taken == ("weights",)
        assert copy.computed[0] == "identity"
        assert {check.taken for check in found.checks if check.finding.victim == "asked"} == {()}

    def test_the_register_is_not_needed(self, asked, tmp_path, monkeypatch):
        monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "empty"))
        assert verify(asked.path).confirmed

    def test_a_model_that_answers_at_random(self, registered, tmp_path):
        from fp_audit import attack

        attack("csrp", str(registered.victim), str(registered.data), tmp_path / "csrp")
        bundled(tmp_path / "b.zip", [tmp_path / "csrp"], ("owner", "asked"))
        found = verify(tmp_path / "b.zip")
        assert found.confirmed, (found.differences, found.checks)
        assert len(found.checks) == 2

    def test_a_score_that_is_taken_as_recorded_has_the_p_value_of_its_null(self, home):
        """Only methods that ask nothing have a chance of their own; others cannot claim one."""
        honest = victims.load(victims.folder("asked"))
        similar = tuple({"robd": 0.5 + i / 100} for i in range(8))
        null = Null(tuple(part["robd"] for part in similar), tuple("abcdefgh"), None, False, (None,) * 8, similar)
        made = Fingerprint("deepjudge", {}, {})
        owner = replace(honest, fingerprints={"deepjudge": made}, nulls={"deepjudge": null})
        detail = {"distances": {"robd": 0.45}}
        claimed = Evidence("deepjudge", Access.GRADIENTS, 0.55, 1e-30, None, 8, "", detail, {"robd": 0.55})
        (again,) = verifying._taken([claimed], owner, Access.GRADIENTS)
        assert 0.1 < again.p_value < 0.9
        assert again.null["n"] == 8
        assert (again.score, again.parts) == (claimed.score, claimed.parts)

    def test_without_the_queries(self, registered, tmp_path):
        options = ScanOptions(record=True, depth=Access.WEIGHTS)
        bundled(tmp_path / "b.zip", [registered.int8], "owner", options)
        (check,) = verify(tmp_path / "b.zip").checks
        assert (check.computed, check.taken, check.differences) == (("identity",), ("weights",), ())

    def test_nothing_was_found(self, home, tmp_path):
        bundled(tmp_path / "b.zip", ["nothing"], "asked")
        found = verify(tmp_path / "b.zip")
        assert found.confirmed
        assert found.checks == ()

    def test_a_suspect_that_failed(self, registered, tmp_path):
        (tmp_path / "text.onnx").write_text("text")
        bundled(tmp_path / "b.zip", [registered.int8, tmp_path / "text.onnx"], "asked")
        assert verify(tmp_path / "b.zip").confirmed


def first(report):
    return report["findings"][0]


def of_method(finding, name):
    return next(item for item in finding["evidence"] if item["method"] == name)


def set_answer(said):
    """Swap the answers to two queries of the last method."""
    images = said["asked"]["images"]
    images[-2:] = images[:-3:-1]


CHANGES = {
    "p-value": ("report.json", lambda data: first(data).update(p_value=1e-9), "p_value: the bundle says 1e-09"),
    "q-value": ("report.json", lambda data: first(data).update(q_value=0.5), "q_value"),
    "verdict": ("report.json", lambda data: first(data).update(verdict="independent"), 'says "independent"'),
    "score": ("report.json", lambda data: of_method(first(data), "sac").update(score=0.5), "evidence.sac.score"),
    "one p": ("report.json", lambda data: of_method(first(data), "sac").update(p_value=0.5), "evidence.sac.p_value"),
    "reason": ("report.json", lambda data: first(data).update(reason="is a thief"), "is a thief"),
    "target": ("report.json", lambda data: first(data).update(target="honest"), "honest"),
    "counts": ("report.json", lambda data: data["summary"].update(derived=2), "report.json.summary.derived"),
    "evidence": ("report.json", lambda data: first(data)["evidence"].pop(0), "evidence of negatives-logits, sac"),
    "alpha": ("report.json", lambda data: data.update(alpha=1e-12), 'computed anew it is "suspected"'),
    "finding": ("report.json", lambda data: data["findings"].append(first(data)), "3 findings, and answers for 2"),
    "null": ("victims/asked/victim.json", lambda data: data["nulls"]["sac"]["scores"].__setitem__(0, 0.99), "max"),
    "date": ("victims/asked/victim.json", lambda data: data["facts"].update(registered="2001-01-01"), "committed to"),
    "answers": ("answers/1.json", set_answer, "evidence.sac.score"),
    "no answers": ("answers/1.json", lambda data: data.clear(), "sac: it should have been run"),
    "queries": ("manifest.json", lambda data: data["victims"]["asked"]["queries"]["sac"].pop(), "queries.sac"),
    "files": ("manifest.json", lambda data: data["suspects"][0]["files"][0].update(sha256="00"), "summary.html"),
    "suspects": ("manifest.json", lambda data: data.update(suspects=[]), "2 findings, and answers for 0"),
    "command": ("manifest.json", lambda data: data.update(command="rm -rf /"), "summary.html"),
    "summary": ("summary.html", lambda page: page.replace(b"derived", b"identical"), "summary.html does not say"),
}


class TestChanged:
    @pytest.mark.parametrize("name", ["p-value", "null", "answers", "summary"])
    def test_the_manifest_tells_what_was_changed(self, asked, tmp_path, name):
        member, change, _ = CHANGES[name]
        with pytest.raises(BundleError, match=f"{member} does not match its sha256"):
            verify(changed(asked, tmp_path, member, change, sealed=False))

    @pytest.mark.parametrize("name", list(CHANGES))
    def test_what_was_changed_with_care_does_not_follow(self, asked, tmp_path, name):
        member, change, says = CHANGES[name]
        assert says in "\n".join(differences(changed(asked, tmp_path, member, change)))

    def test_a_method_that_speaks_for_the_suspect_cannot_be_left_out(self, both, tmp_path):
        """Not even one whose score is not computed anew."""

        def without_weights(report):
            for finding in report["findings"]:
                finding["evidence"] = [item for item in finding["evidence"] if item["method"] != "weights"]

        path = changed(both, tmp_path, "report.json", without_weights)
        assert "weights: it should have been run, and nothing is recorded" in differences(path)

    def test_silence_where_answers_should_be_is_not_believed(self, asked, tmp_path):
        path = changed(asked, tmp_path, "answers/1.json", lambda said: said.clear())

        def hush(manifest):
            manifest["suspects"][0]["silent"]["asked"] = dict.fromkeys(ASKING, "it has another number of classes")

        (tmp_path / "again").mkdir()
        again = changed(replace(asked, path=path), tmp_path / "again", "manifest.json", hush)
        assert "sac: it should have been run" in "\n".join(differences(again))

    def test_a_query_method_cannot_pass_as_one_that_is_taken_as_recorded(self, asked, tmp_path):
        def pass_off(report):
            of_method(first(report), "sac").update(access="weights", null=None, p_value=1e-30)

        assert "evidence.sac.p_value" in "\n".join(differences(changed(asked, tmp_path, "report.json", pass_off)))

    def test_another_file_is_not_identical(self, both, tmp_path):
        def disown(manifest):
            for file in manifest["suspects"][0]["files"]:
                file["sha256"] = file["git_oid"] = "00"

        path = changed(both, tmp_path, "manifest.json", disown)
        assert "evidence.identity.score" in "\n".join(differences(path))

    def test_another_version_may_put_it_otherwise(self, asked, tmp_path):
        members = content(asked.path)
        manifest, report = (json.loads(members.pop(name)) for name in ("manifest.json", "report.json"))
        del manifest["members"]
        manifest["tool"]["version"] = report["tool"]["version"] = "0.0.1"
        first(report)["reason"] = "in other words"
        members["report.json"] = json.dumps(report).encode()
        archive.pack(tmp_path / "older.zip", members, manifest)
        found = verify(tmp_path / "older.zip")
        assert found.confirmed, (found.differences, found.checks)
        assert found.version == "0.0.1" != __version__
        assert not found.texts


class TestMalformed:
    @pytest.mark.parametrize("alpha", [0.0, 1.0, 7.0, "0.01", None])
    def test_levels(self, asked, tmp_path, alpha):
        path = changed(asked, tmp_path, "report.json", lambda report: report.update(alpha=alpha))
        with pytest.raises(BundleError, match="expected a number between 0 and 1"):
            verify(path)

    def test_arrays_that_are_none(self, asked, tmp_path):
        members = content(asked.path)
        name = next(name for name in members if name.endswith("sac.safetensors"))
        manifest = json.loads(members.pop("manifest.json"))
        del manifest["members"]
        about = json.loads(members["victims/asked/victim.json"])
        members[name] = b"garbage"
        about["digests"]["sac.safetensors"] = sha256(b"garbage").hexdigest()
        members["victims/asked/victim.json"] = json.dumps(about).encode()
        archive.pack(tmp_path / "garbage.zip", members, manifest)
        with pytest.raises(BundleError, match=r"sac\.safetensors is damaged"):
            verify(tmp_path / "garbage.zip")

    @pytest.mark.parametrize(
        ("member", "change"),
        [
            ("report.json", lambda data: data.clear()),
            ("report.json", lambda data: data.update(findings=[])),
            ("report.json", lambda data: data.update(depth="soul")),
            ("report.json", lambda data: first(data).update(evidence=[1])),
            ("report.json", lambda data: of_method(first(data), "sac").update(method="no-such")),
            ("answers/1.json", lambda data: data["asked"].update(images=[])),
            ("answers/1.json", lambda data: data.update(asked=7)),
            ("answers/1.json", lambda data: data["asked"].update(output="guesses")),
            ("victims/asked/victim.json", lambda data: data.update(schema_version=1)),
            ("victims/asked/victim.json", lambda data: data.pop("facts")),
            ("victims/asked/victim.json", lambda data: data["digests"].update({"sac.safetensors": "00"})),
            ("victims/asked/victim.json", lambda data: data["nulls"]["sac"].update(scores="many")),
            ("victims/asked/victim.json", lambda data: data["fingerprints"]["sac"]["options"].update(soul=1)),
            ("victims/asked/sac.safetensors", lambda _: b"\xff" * 100),
            ("summary.html", lambda _: b"\xff\xfe"),
        ],
    )
    def test_members(self, asked, tmp_path, member, change):
        with pytest.raises(BundleError) as caught:
            verify(changed(asked, tmp_path, member, change))
        assert "\n" not in str(caught.value)
        assert "register" not in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("schema_version", 99),
            ("victims", {"../x": {}}),
            ("victims", {"nobody": {}}),
            ("victims", 7),
            ("suspects", [{}, {}]),
            ("tool", None),
        ],
    )
    def test_manifests(self, asked, tmp_path, key, value):
        with pytest.raises(BundleError):
            verify(changed(asked, tmp_path, "manifest.json", lambda data: data.update({key: value})))

    def test_answers_that_are_no_numbers(self, asked, tmp_path):
        def spoil(said):
            size = len(base64.b64decode(said["asked"]["values"])) // 4
            said["asked"]["values"] = base64.b64encode(np.full(size, np.nan, "<f4").tobytes()).decode()

        assert "NaN" in "\n".join(differences(changed(asked, tmp_path, "answers/1.json", spoil)))


class TestCommitment:
    def test_it_binds_arrays_options_nulls_and_time(self, home):
        about = victims.describe("asked")
        committed = about["commitment"]
        assert committed == victims.commitment(about)
        assert len(committed) == 64
        for change in (
            lambda data: data["digests"].update({"sac.safetensors": "00"}),
            lambda data: data["fingerprints"]["sac"]["options"].update(box=0.3),
            lambda data: data["nulls"]["sac"]["scores"].pop(),
            lambda data: data["facts"].update(registered="2001-01-01"),
            lambda data: data["facts"]["files"][0].update(sha256="00"),
        ):
            data = json.loads(json.dumps(about))
            change(data)
            assert victims.commitment(data) != committed

    def test_anybody_can_compute_it(self, home):
        about = json.loads((victims.folder("asked") / "victim.json").read_text())
        committed = about.pop("commitment")
        plain = json.dumps(about, sort_keys=True, separators=(",", ":"))
        assert sha256(plain.encode()).hexdigest() == committed

    def test_the_published_one_must_be_a_victims(self, both):
        values = [victims.describe(name)["commitment"] for name in ("owner", "asked")]
        found = verify(both.path, [values[0].upper() + "\n", values[1]])
        assert found.confirmed
        assert {item.victim: item.published for item in found.commitments} == {"owner": True, "asked": True}
        assert "not what was committed to" in "\n".join(differences(both.path, [values[0], "00"]))

    def test_an_honest_victim_speaks_for_no_other(self, both):
        """Of two victims that are judged each needs its own; one that is only packed with them vouches for none."""
        published = victims.describe("owner")["commitment"]
        assert "against asked is not what was committed to" in "\n".join(differences(both.path, [published]))
        assert {item.victim: item.published for item in verify(both.path, [published]).commitments} == {
            "owner": True,
            "asked": False,
        }

    def test_evidence_that_was_forged_throughout_needs_the_published_one(self, home, registered, tmp_path):
        """Independents that score less make any resemblance look rare; only an earlier commitment tells."""
        committed = victims.describe("asked")["commitment"]
        honest = victims.load(victims.folder("asked"))
        lower = {
            name: replace(null, scores=tuple(score - 0.5 for score in null.scores))
            for name, null in honest.nulls.items()
        }
        victims.remove("asked")
        victims.save(replace(honest, nulls=lower), victims.folder("asked"))
        (finding,) = bundled(tmp_path / "forged.zip", [registered.stranger], "asked")
        assert finding.verdict == "derived"
        assert verify(tmp_path / "forged.zip").confirmed
        assert "not what was committed to" in "\n".join(differences(tmp_path / "forged.zip", [committed]))

    def test_a_victim_without_one(self, home, registered, tmp_path):
        path = victims.folder("asked") / "victim.json"
        about = json.loads(path.read_text())
        del about["commitment"]
        path.write_text(json.dumps(about))
        bundled(tmp_path / "b.zip", [registered.int8], "asked")
        found = verify(tmp_path / "b.zip")
        assert found.confirmed
        assert found.commitments[0].value is None
        assert "registered by an older version" in content(tmp_path / "b.zip")["summary.html"].decode()


def test_every_method_has_a_place(asked):
    """Names of methods and victims are names of members."""
    for name in plugins.names("fingerprints"):
        assert bundle.MEMBER.fullmatch(f"victims/a.b-c_d/{name}.safetensors")
    assert bundle.MEMBER.fullmatch("victims/a/boundary+logits+cosine.safetensors")
    assert not bundle.MEMBER.fullmatch("victims/../x.safetensors")
    assert not bundle.MEMBER.fullmatch("victims/a/../x.safetensors")
    assert not bundle.MEMBER.fullmatch("answers/../x.json")
