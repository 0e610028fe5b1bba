"""Files of answers: what is claimed, what is read, what is refused, and what a scan makes of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from builders import pixels

from fp_audit import Skipped, scan
from fp_audit.answers import digests
from fp_audit.errors import CorruptModel, Unanswered, UnsupportedModel
from fp_audit.loading import load
from fp_audit.model import LoadOptions, as_images
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import Located, adapter, locate, locate_one
from fp_audit_adapters import answers as module
from fp_audit_adapters.answers import read_answers

PIXELS = pixels(4, 8, channels=1)
NAMES = [f"{name}.png" for name in digests(PIXELS)]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def opened(path):
    (located,) = locate([str(path)], SourceOptions())
    assert located.artifact.adapter == "answers"
    return adapter("answers").load(located.artifact, LoadOptions())


def answered(path, count=4):
    return opened(path).predict(as_images(PIXELS[:count]))


class TestForms:
    def test_names(self, tmp_path):
        labels = ("dog", "cat", " dog ", "eel")
        path = written(
            tmp_path / "a.jsonl", [{"image": name, "label": label} for name, label in zip(NAMES, labels, strict=True)]
        )
        model = opened(path)
        assert (model.output, model.classes) == ("labels", ("cat", "dog", "eel"))
        np.testing.assert_array_equal(answered(path), np.eye(3)[[1, 0, 1, 2]])

    def test_indices(self, tmp_path):
        path = written(
            tmp_path / "a.jsonl",
            [{"image": name, "label": label} for name, label in zip(NAMES, (3, 0, 3, 1), strict=True)],
        )
        assert opened(path).classes is None
        np.testing.assert_array_equal(answered(path), np.eye(4)[[3, 0, 3, 1]])

    def test_top(self, tmp_path):
        path = written(
            tmp_path / "a.jsonl",
            [
                {"image": NAMES[0], "top": {"cat": 0.5, "ant": 0.25, "emu": 0.1}},
                {"image": NAMES[1], "top": {"dog": 1}},
            ],
        )
        assert (opened(path).output, opened(path).classes) == ("topk", ("ant", "cat", "dog", "emu"))
        np.testing.assert_allclose(answered(path, 2), [[0.25, 0.5, 0, 0.1], [0, 0, 1, 0]])

    def test_the_likelier_of_two_is_a_label_unless_there_are_no_others(self, tmp_path):
        """Independents are judged by their three likeliest."""
        lines = [{"image": name, "top": {"cat": 0.5, other: 0.25}} for name, other in zip(NAMES, "aabb", strict=False)]
        assert opened(written(tmp_path / "a.jsonl", lines)).output == "labels"
        lines = [{"image": name, "top": {"cat": 0.75, "dog": 0.25}} for name in NAMES]
        assert opened(written(tmp_path / "b.jsonl", lines)).output == "topk"

    def test_a_single_class_is_a_label(self, tmp_path):
        path = written(tmp_path / "a.jsonl", [{"image": name, "top": {"cat": 0.5}} for name in NAMES])
        assert opened(path).output == "labels"

    @pytest.mark.parametrize("kind", ["probabilities", "logits"])
    def test_all_classes(self, tmp_path, kind):
        path = written(
            tmp_path / "a.jsonl", [{"image": NAMES[0], kind: [0.5, 0.25, 0.25]}, {"image": NAMES[1], kind: [0, 1, 0]}]
        )
        assert (opened(path).output, opened(path).classes) == (kind, None)
        np.testing.assert_array_equal(answered(path, 2), [[0.5, 0.25, 0.25], [0, 1, 0]])

    def test_objects_are_read_by_name_or_by_index(self, tmp_path):
        by_name = written(
            tmp_path / "a.jsonl",
            [{"image": NAMES[0], "logits": {"b": -1, "a": 2}}, {"image": NAMES[1], "logits": {"a": 3, "b": 4}}],
        )
        assert opened(by_name).classes == ("a", "b")
        np.testing.assert_array_equal(answered(by_name, 2), [[2, -1], [3, 4]])
        by_index = written(tmp_path / "b.jsonl", [{"image": NAMES[0], "top": {"10": 0.5, "2": 0.25}}])
        assert opened(by_index).classes is None
        assert answered(by_index, 1)[0].nonzero()[0].tolist() == [2, 10]

    def test_paths_other_keys_blank_lines_and_a_byte_order_mark(self, tmp_path):
        path = tmp_path / "a.jsonl"
        lines = ["", json.dumps({"image": f"out\\{NAMES[0]}", "label": 1, "ms": 12}), "", "  "]
        path.write_text("\ufeff" + "\r\n".join([*lines, json.dumps({"image": f"out/{NAMES[1][:-4]}", "label": 0})]))
        np.testing.assert_array_equal(answered(path, 2), [[0, 1], [1, 0]])

    def test_several_answers_to_one_image_are_averaged(self, tmp_path):
        lines = [{"image": NAMES[0], "label": label} for label in ("a", "b", "a", "a")]
        np.testing.assert_array_equal(answered(written(tmp_path / "a.jsonl", lines), 1), [[0.75, 0.25]])

    def test_images_without_an_answer(self, tmp_path):
        path = written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}, {"image": "cat.png", "label": 0}])
        with pytest.raises(Unanswered, match="3 of 4 images have no answer"):
            answered(path)


def line(**answer):
    return json.dumps({"image": NAMES[0], **answer})


WRONG = {
    "nothing": ("", "no line answers an image"),
    "no query image": (json.dumps({"image": "cat.png", "label": 1}), "32 hexadecimal digits"),
    "text": ("zero", "line 1: not JSON: Expecting value at character 1"),
    "no object": ("[1, 2]", "expected an object"),
    "no image": ('{"label": 1}', '"image", the name of a query image, found null'),
    "an image that is a number": ('{"image": 7, "label": 1}', "found 7"),
    "no answer": (line(), "found nothing"),
    "another key": (line(guess=3), '"guess"'),
    "two answers": (line(label=3, top={"a": 1}), 'found "label", "top"'),
    "NaN": ('{"image": "x", "logits": [1, NaN]}', "found NaN"),
    "infinity": ('{"image": "x", "logits": [1, 1e999]}', "expected finite numbers, found Infinity"),
    "a huge integer": ('{"image": "x", "logits": [1, 1' + "0" * 400 + "]}", "expected finite numbers, found 1000"),
    "digits without end": ('{"image": "x", "logits": [1, 1' + "0" * 5000 + "]}", "line 1: "),
    "a boolean": (line(label=True), "found true"),
    "a negative index": (line(label=-1), "found -1"),
    "a far index": (line(label=10**9), "found 1000000000"),
    "a far index as a key": (line(top={"99999999": 1}), "found 99999999"),
    "no name": (line(label=" "), "expected a name or an index"),
    "a list as label": (line(label=["cat"]), r'found \["cat"\]'),
    "a list as top": (line(top=[0.5]), "expected an object such as"),
    "text as probability": (line(top={"cat": "80 %"}), 'found "80 %"'),
    "per cent": (line(top={"cat": 80}), "expected numbers from 0 to 1, found 80"),
    "no probability": (line(probabilities=[0, 0]), "above 0"),
    "no class": (line(top={}), "found {}"),
    "nested": ('{"image": "x", "logits": ' + "[" * 10**5, "nested too deeply"),
    "mixed kinds": (
        line(label=1) + "\n" + line(top={"1": 1}),
        'line 2: answers with "top", earlier lines with "label"',
    ),
    "names and numbers": (line(label=1) + "\n\n" + line(label="cat"), "line 3: earlier lines name classes"),
    "unequal lengths": (
        line(logits=[1, 2]) + "\n" + line(logits=[1, 2, 3]),
        "line 2: .* of 3 classes; .* same 2 classes",
    ),
    "other names": (line(logits={"a": 1}) + "\n" + line(logits={"b": 1}), "line 2: .* same 1 classes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, case):
    text, says = WRONG[case]
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(CorruptModel, match=says) as caught:
        opened(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


class TestLimits:
    def test_not_utf_8(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(line(label=1).encode() + b"\n\xff\xfe")
        with pytest.raises(CorruptModel, match="line 2: not text in UTF-8"):
            read_answers(tmp_path / "a.jsonl")

    def test_a_line_without_end(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"image": "' + b"a" * 3 * 2**20)
        with pytest.raises(CorruptModel, match="line 1: longer than"):
            read_answers(tmp_path / "a.jsonl")

    def test_a_huge_file(self, tmp_path):
        with (tmp_path / "a.jsonl").open("wb") as stream:
            stream.truncate(2**40)
        with pytest.raises(CorruptModel, match="has 1,099,511,627,776 bytes"):
            read_answers(tmp_path / "a.jsonl")

    @pytest.mark.parametrize(
        ("limit", "value", "says"),
        [
            ("MAX_LINES", 3, "line 4: one more than"),
            ("MAX_CLASSES", 2, "more than the 2"),
            ("MAX_VALUES", 8, "too many"),
        ],
    )
    def test_lines_classes_and_values(self, tmp_path, monkeypatch, limit, value, says):
        monkeypatch.setattr(module, limit, value)
        lines = [{"image": name, "label": label} for name, label in zip(NAMES, "abca", strict=True)]
        with pytest.raises(CorruptModel, match=says):
            read_answers(written(tmp_path / "a.jsonl", lines))


class TestClaims:
    def test_found_in_folders_by_their_first_line(self, tmp_path):
        (tmp_path / "in" / "api").mkdir(parents=True)
        written(tmp_path / "in" / "api" / "answers.jsonl", [{"image": NAMES[0], "label": 1}])
        written(tmp_path / "in" / "log.jsonl", [{"epoch": 1}])
        written(tmp_path / "in" / "images.jsonl", [{"image": "cat.jpg", "label": 1}])
        (tmp_path / "in" / "empty.jsonl").write_text("")
        (located,) = locate([str(tmp_path / "in")], SourceOptions())
        assert located.artifact.target == "api/answers.jsonl"

    def test_whatever_the_user_names_is_answers(self, tmp_path):
        written(tmp_path / "log.jsonl", [{"epoch": 1}])
        with pytest.raises(CorruptModel, match='line 1: expected "image"'):
            opened(tmp_path / "log.jsonl")

    def test_a_missing_file_is_no_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (skipped,) = locate(["api/answers.jsonl"], SourceOptions())
        assert skipped == Skipped("api/answers.jsonl", "api/answers.jsonl: no such file or folder")

    def test_lists_name_them(self, tmp_path):
        written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}])
        (tmp_path / "list.txt").write_text("a.jsonl\n")
        (located,) = locate([str(tmp_path / "list.txt")], SourceOptions())
        assert located.artifact.adapter == "answers"

    def test_a_pickle_beside_them_is_still_reported(self, tmp_path):
        written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}])
        (tmp_path / "model.pt").write_bytes(b"pickle")
        found = list(locate([str(tmp_path)], SourceOptions()))
        assert {item.artifact.adapter for item in found if isinstance(item, Located)} == {"answers", "pickles"}

    def test_a_random_preprocessing_beside_them_is_not_put_in_front(self, tmp_path):
        written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}])
        (tmp_path / "augmentation.json").write_text("{}")
        np.testing.assert_array_equal(answered(tmp_path / "a.jsonl", 1), [[0, 1]])

    def test_they_are_no_model(self, tmp_path):
        path = written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}])
        with pytest.raises(UnsupportedModel, match="holds what a model answered"):
            load(str(path))
        (located,) = locate([str(path)], SourceOptions())
        for open_ in (adapter("answers").tensors, lambda item: adapter("answers").load_white(item, LoadOptions())):
            with pytest.raises(UnsupportedModel, match="not the model"):
                open_(located.artifact)

    def test_a_model_beside_them_is_the_one_model(self, tmp_path, digit_models):
        written(tmp_path / "a.jsonl", [{"image": NAMES[0], "label": 1}])
        shutil.copy(digit_models.stranger, tmp_path / "model.onnx")
        assert locate_one(str(tmp_path), SourceOptions()).artifact.adapter == "onnx"


def test_hostile_files_are_skipped_with_a_reason(registered, tmp_path):
    for position, (text, _) in enumerate((WRONG["nested"], WRONG["NaN"], WRONG["text"], WRONG["nothing"])):
        (tmp_path / f"{position}.jsonl").write_text(text)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    found = list(scan(paths, "owner"))
    assert [item.target for item in found] == paths
    assert all(isinstance(item, Skipped) for item in found)
    assert "nested too deeply" in found[0].reason
