"""``fp-audit queries``, the answers of models that see nothing but the files, and what a scan makes of these."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from fp_audit import audit, victims
from fp_audit.alignment import settle
from fp_audit.answers import digest, digests
from fp_audit.audit import Outcome
from fp_audit.comparison import compare
from fp_audit.model import LabelOnly, LoadOptions, TopK, Wrapper, as_images, as_probabilities
from fp_audit.querying import write_queries
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.types import Access, Artifact, Cost
from fp_audit_adapters.answers import read_answers

SILENT = ("identity", "weights")


@pytest.fixture(scope="module")
def victim(registered):
    return victims.load(victims.folder("owner"))


def asked(victim):
    return set(victim.fingerprints) - set(SILENT)


def queries(victim, *methods):
    """Name the query images of some methods, or of all."""
    return {
        name for method in methods or asked(victim) for name in digests(victim.fingerprints[method].arrays["queries"])
    }


@pytest.fixture(scope="module")
def folder(registered, tmp_path_factory):
    out = tmp_path_factory.mktemp("queries") / "out"
    write_queries("owner", out)
    return out


@pytest.fixture(scope="module")
def suspects(registered, victim):
    """A surrogate and an independent, ready to be asked."""
    return {"thief": opened(registered.int8, victim), "stranger": opened(registered.stranger, victim)}


def opened(path, victim):
    artifact = locate_one(str(path), SourceOptions()).artifact
    return settle(adapter("onnx").load(artifact, LoadOptions()), victim.probes, victim.preprocess).model


@dataclass(frozen=True)
class Api:
    """A remote model as its users see it: files in, JSON out."""

    model: object
    classes: tuple[str, ...] | None

    def name(self, index):
        return self.classes[index] if self.classes else int(index)

    def answer(self, path, form):
        pixels = np.atleast_3d(np.asarray(Image.open(path), np.uint8))
        image = as_images(pixels.transpose(2, 0, 1)[None])
        shown = SHOWN[form](self.model)
        row = as_probabilities(shown.predict(image), shown.output)[0]
        named = {self.name(index): float(row[index]) for index in np.flatnonzero(row)}
        answers = {
            "label": self.name(row.argmax()),
            "top": named,
            "probabilities": {self.name(index): float(value) for index, value in enumerate(row)},
        }
        return {"image": path.name, form: answers[form]}

    def collect(self, folder, form, path):
        lines = [self.answer(image, form) for image in folder.glob("*.png")]
        random.Random(0).shuffle(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


class Shy(Wrapper):
    """Never answers with nine."""

    def predict(self, images):
        answers = self._model.predict(images).copy()
        answers[:, 9] = answers.min()
        return answers


SHOWN = {"label": LabelOnly, "top": lambda model: TopK(model, 3), "probabilities": lambda model: model}


def judged(model, victim):
    """Judge a model that shows its answers itself."""
    found = compare(Subject.of_model(model), victim, sorted(asked(victim)), Access.QUERIES)
    evidence = audit.evidence_of(found.scores, victim, dict.fromkeys(found.scores, found.detail), Access.QUERIES)
    outcome = Outcome(
        Artifact("m", "onnx", (), ".", None), {"owner": evidence}, {"owner": found.silent}, None, Cost(), {}
    )
    (finding,) = audit.conclude([outcome], 0.01)
    return finding


def scanned(invoke, path, *options):
    result = invoke("scan", path, "--victim", "owner", "--format", "json", *options)
    report = json.loads(result.stdout)
    return report["findings"][0] if report["findings"] else report["skipped"][0]


class TestRoundTrip:
    @pytest.mark.parametrize("form", SHOWN)
    @pytest.mark.parametrize(("who", "named"), [("thief", True), ("stranger", False)])
    def test_answers_are_judged_like_the_model(self, victim, folder, suspects, invoke, tmp_path, form, who, named):
        api = Api(suspects[who], victim.probes.classes if named else None)
        found = scanned(invoke, api.collect(folder, form, tmp_path / "answers.jsonl"), "--depth", "gradients")
        expected = judged(SHOWN[form](suspects[who]), victim)
        assert found["verdict"] == expected.verdict
        assert found["verdict"] in ({"derived"} if who == "thief" else {"independent", "suspected"})
        scores = {item["method"]: item["score"] for item in found["evidence"]}
        assert scores == pytest.approx({item.method: item.score for item in expected.evidence}, abs=1e-6)
        assert set(scores) - {audit.JOINT} == asked(victim)
        assert found["adapter"] == "answers"
        by = found["evidence"][0]["detail"]["classes_aligned_by"]
        assert by == ("names" if named else "order")

    @pytest.mark.parametrize("named", [True, False])
    def test_a_class_that_was_never_answered(self, victim, folder, suspects, invoke, tmp_path, named):
        shy = Shy(suspects["thief"])
        api = Api(shy, victim.probes.classes if named else None)
        path = api.collect(folder, "label", tmp_path / "answers.jsonl")
        labels = {json.loads(line)["label"] for line in path.read_text().splitlines()}
        assert len(labels) == 9
        found = scanned(invoke, path)
        assert found["verdict"] == "derived"
        expected = judged(LabelOnly(shy), victim)
        scores = {item["method"]: item["score"] for item in found["evidence"]}
        assert scores == pytest.approx({item.method: item.score for item in expected.evidence}, abs=1e-6)

    def test_other_names_are_matched_on_the_labelled_images(self, victim, folder, suspects, invoke, tmp_path):
        names = ("null", "eins", "zwei", "drei", "vier", "funf", "sechs", "sieben", "acht", "neun")
        path = Api(suspects["thief"], names).collect(folder, "label", tmp_path / "answers.jsonl")
        found = scanned(invoke, path)
        assert found["verdict"] == "derived"
        assert found["evidence"][0]["detail"]["classes_aligned_by"] == "predictions"


class TestMissingAnswers:
    @pytest.fixture
    def leaving_out(self, victim, folder, suspects, tmp_path):
        """Collect the thief's labels, except for some images."""

        def collect(names, classes=victim.probes.classes):
            path = Api(suspects["thief"], classes).collect(folder, "label", tmp_path / "answers.jsonl")
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["image"][:-4] not in names]
            path.write_text("\n".join(kept))
            return path

        return collect

    def test_silence_the_methods_that_need_them(self, victim, folder, leaving_out, invoke):
        missing = sorted(queries(victim, "ipguard") - set(digests(victim.probes.pixels)))[:12]
        found = scanned(invoke, leaving_out(missing))
        assert {item["method"] for item in found["evidence"]} - {audit.JOINT} == asked(victim) - {"ipguard"}
        assert found["verdict"] == "derived"

    def test_say_so_when_nothing_is_left(self, victim, leaving_out, invoke):
        probes = set(digests(victim.probes.pixels))
        found = scanned(invoke, leaving_out(queries(victim) - probes))
        assert found["verdict"] == "inconclusive"
        assert found["reason"].endswith("images have no answer")

    def test_without_labelled_images_equal_names_are_believed(self, victim, leaving_out, invoke):
        probes = set(digests(victim.probes.pixels)) - queries(victim)
        found = scanned(invoke, leaving_out(probes))
        assert found["verdict"] == "derived"
        alone = [item["detail"] for item in found["evidence"] if item["method"] != audit.JOINT]
        assert {detail["classes_aligned_by"] for detail in alone} == {"names, unchecked"}

    def test_without_them_and_without_names_only_unaligned_methods_vote(self, victim, leaving_out, invoke):
        probes = set(digests(victim.probes.pixels)) - queries(victim)
        found = scanned(invoke, leaving_out(probes, None))
        assert {item["method"] for item in found["evidence"]} == {"sac"}


class TestFolder:
    def test_images_are_the_queries_without_loss(self, victim, folder):
        wanted = queries(victim) | set(digests(victim.probes.pixels))
        found = {path.stem: Image.open(path) for path in folder.glob("*.png")}
        assert set(found) == wanted
        assert all(image.mode == "L" and digest(np.asarray(image)[None]) == name for name, image in found.items())
        assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in wanted} | {"README.txt"}
        assert len({path.stat().st_mtime for path in folder.glob("*.png")}) == 1

    def test_the_readme_gives_lines_that_can_be_read(self, victim, folder, tmp_path):
        text = (folder / "README.txt").read_text()
        lines = [line.strip() for line in text.splitlines() if line.startswith("    {")]
        assert len(lines) == 6
        for line in lines:
            assert (folder / json.loads(line)["image"]).exists()
            (tmp_path / "answers.jsonl").write_text(line)
            assert len(read_answers(tmp_path / "answers.jsonl").rows) == 1
        assert "owner" not in text
        assert not [name for name in victim.fingerprints if name in text]

    def test_the_command_says_what_it_wrote(self, registered, invoke, tmp_path):
        result = invoke("queries", "owner", "--out", tmp_path / "out")
        assert result.exit_code == 0, result.stderr
        count = len(list((tmp_path / "out").glob("*.png")))
        assert f"{count} images in {tmp_path / 'out'}, 64 of them to match classes\n" in result.stdout
        assert "  identity needs the model's files\n" in result.stdout
        assert "  weights needs the model's weights\n" in result.stdout
        assert "  ipguard: 100 images\n" in result.stdout
        assert "fp-audit scan answers.jsonl --victim owner" in result.stdout

    def test_some_methods_with_decoys(self, registered, victim, invoke, tmp_path):
        options = ("--methods", "ipguard", "--decoys", "30", "--data", registered.data)
        for out in ("a", "b"):
            result = invoke("queries", "owner", "--out", tmp_path / out, *options)
            assert result.exit_code == 0, result.stderr
        assert "64 of them to match classes and 30 decoys" in result.stdout
        names = {path.stem for path in (tmp_path / "a").glob("*.png")}
        needed = queries(victim, "ipguard") | set(digests(victim.probes.pixels))
        assert len(names - needed) == 30
        assert needed <= names
        assert names == {path.stem for path in (tmp_path / "b").glob("*.png")}
        invoke("queries", "owner", "--out", tmp_path / "c", *options, "--seed", "1")
        assert names != {path.stem for path in (tmp_path / "c").glob("*.png")}

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--methods", "zest"], "owner has no method 'zest'; expected one of"),
            (
                ["--methods", "weights"],
                "no method that can be asked with image files: weights needs the model's weights",
            ),
            (["--decoys", "3"], "--decoys needs --data"),
            (["--decoys", "3000", "--data", "DATA"], "images are no queries; 3000 decoys were asked for"),
            (["--decoys", "3", "--data", "SMALL"], "images are 1 x 4 x 4; decoys must be 1 x 8 x 8"),
        ],
    )
    def test_what_cannot_be_written_leaves_nothing(self, registered, invoke, tmp_path, options, says):
        small = tmp_path / "small.npz"
        np.savez(small, images=np.zeros((3, 4, 4), np.uint8), labels=np.zeros(3, int))
        given = [{"DATA": registered.data, "SMALL": small}.get(option, option) for option in options]
        result = invoke("queries", "owner", "--out", tmp_path / "out", *given)
        assert result.exit_code == 2
        assert says in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["small.npz"]

    def test_a_folder_that_is_not_empty_is_left_alone(self, registered, invoke, tmp_path):
        (tmp_path / "mine").write_text("")
        result = invoke("queries", "owner", "--out", tmp_path)
        assert result.exit_code == 2
        assert "new or empty folder" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_images_that_no_file_can_hold(self, home, victim, invoke, tmp_path, monkeypatch):
        from fp_audit.fingerprints.negatives import Negatives

        def between(self, fingerprint, suspect):
            return suspect.black_box().predict(as_images(fingerprint.arrays["queries"]) * np.float32(0.9))

        monkeypatch.setattr(Negatives, "_compare", between)
        result = invoke("queries", "owner", "--out", tmp_path / "out")
        assert "negatives cannot: it shows images that a PNG file cannot hold" in result.stdout

    def test_a_victim_without_data(self, home, victim, folder, suspects, invoke, tmp_path):
        facts = {**victim.facts, "outputs": 10, "classes": list(victim.probes.classes)}
        blind = replace(victim, probes=None, facts=facts)
        shutil.rmtree(victims.folder("owner"))
        victims.save(blind, victims.folder("owner"))
        assert invoke("queries", "owner", "--out", tmp_path / "out").exit_code == 0
        path = Api(suspects["thief"], victim.probes.classes)
        found = scanned(invoke, path.collect(tmp_path / "out", "label", tmp_path / "answers.jsonl"))
        assert found["verdict"] == "derived", found
        assert {
            item["detail"]["classes_aligned_by"] for item in found["evidence"] if item["method"] != audit.JOINT
        } == {"unchecked order"}
