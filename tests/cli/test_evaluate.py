"""``fp-audit evaluate``."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from pyarrow import parquet
from training import train_here

ATTACKS = "quantise:mode=static:calibration=32,prune:rate=0.3,prune:rate=0.99,extract:architecture=no-such"
SMALL = ("--references", "4", "--independents", "3", "--methods", "negatives,sac", "--budgets", "10,20")
OUTPUTS = {"logits", "probabilities", "top-3", "top-1"}

KINDS = {"int8": "copy", "pruned": "copy, pruned", "resnet": "independent", "other": "independent, same architecture"}


class Page(HTMLParser):
    """Collects what a page loads from elsewhere, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere, self.headings, self._in = [], [], None

    def handle_starttag(self, tag, attrs):
        self._in = tag
        self.elsewhere += [value for name, value in attrs if name in ("src", "href") and value.startswith("http")]

    def handle_data(self, data):
        if self._in == "h2" and data.strip():
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def evaluated(digit_models, tmp_path_factory):
    """The folder of an evaluation that is finished but for its reports; its tests share a register and its cache."""
    from fp_audit.scoring import EvaluationOptions, evaluate

    out = tmp_path_factory.mktemp("evaluated") / "out"
    options = EvaluationOptions(
        tuple(ATTACKS.split(",")), independents=3, references=4, methods=("negatives", "sac"), budgets=(10, 20)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FP_AUDIT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("fp_audit.networks.SEEN_IMAGES", 2000)
        patch.setattr("fp_audit.networks._train_in_processes", train_here)
        evaluate(str(digit_models.stranger), str(digit_models.data), out, options)
        yield out


def evaluate(invoke, digit_models, out, *more, attacks=ATTACKS, data=None):
    data = data or digit_models.data
    return invoke("evaluate", digit_models.stranger, "--data", data, "--out", out, "--attacks", attacks, *SMALL, *more)


@pytest.fixture
def models(evaluated, digit_models, tmp_path):
    """Surrogates and independents of the model, with a ``truth.json``."""
    folder = tmp_path / "models"
    made = evaluated / "surrogates"
    for name, source in {
        "int8": made / "quantise_mode=static_calibration=32.seed0",
        "pruned": made / "prune_rate=0.3.seed0",
        "unnamed": made / "prune_rate=0.3.seed0",
        "resnet": digit_models.victim,
        "other": digit_models.models / "other" / "same-architecture",
    }.items():
        shutil.copytree(source, folder / name)
    (folder / "truth.json").write_text(json.dumps({name: {"kind": kind} for name, kind in KINDS.items()}))
    return folder


def test_interrupted_is_130(evaluated, digit_models, invoke, monkeypatch):
    from fp_audit import judging

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "every", interrupted)
    result = evaluate(invoke, digit_models, evaluated)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


def test_it_goes_on_and_makes_a_table_a_page_json_and_parquet(evaluated, digit_models, invoke):
    made = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()}
    result = evaluate(invoke, digit_models, evaluated)
    assert result.exit_code == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "asking" not in result.stderr

    shown = re.findall(r"^(logits|top-1), 20 queries a method: AUC", result.stdout, re.MULTILINE)
    assert shown == ["logits", "top-1"]
    assert "of the independents are called derived" in result.stdout
    assert "Broken rather than stolen, not counted: prune_rate=0.99.seed0" in result.stdout
    assert "extract_architecture=no-such.seed0: architecture is 'no-such'" in result.stdout
    assert "With 3 independents TPR at 1 % FPR is TPR above the largest score of an independent." in result.stdout

    page = Page()
    page.feed((evaluated / "evaluation.html").read_text())
    assert page.elsewhere == []
    assert any("ROC" in heading for heading in page.headings)
    assert (evaluated / "evaluation.html").read_text().count("<svg") == 6

    check_json(json.loads((evaluated / "evaluation.json").read_text()))
    check_rows(parquet.read_table(io.BytesIO((evaluated / "evaluation.parquet").read_bytes())).to_pylist())


def test_what_more_references_buy(evaluated, digit_models, invoke, monkeypatch):
    from fp_audit import judging

    monkeypatch.setattr(judging, "REFERENCES", (2,))
    result = evaluate(invoke, digit_models, evaluated)
    assert "logits, surrogates detected and independents called derived, by number of references: 2: " in result.stdout
    found = json.loads((evaluated / "evaluation.json").read_text())
    shares = {(gain["references"], gain["output"]): gain["detected"]["value"] for gain in found["references"]}
    assert {size for size, _ in shares} == {2, 4}
    assert all(shares[2, output] == 0 for output in OUTPUTS)  # too few for a p-value
    whole = {
        cell["output"]: cell["detected"]["value"]
        for cell in found["kinds"]
        if (cell["kind"], cell["method"], cell["budget"]) == ("all", "combined", 20)
    }
    assert {output: shares[4, output] for output in OUTPUTS} == whole


def check_json(found):
    assert found["schema_version"] == 1
    roles = {model["name"]: (model["role"], model["useful"]) for model in found["models"]}
    assert roles["prune_rate=0.99.seed0"] == ("surrogate", False)
    assert sum(role == "independent" for role, _ in roles.values()) == 3
    cell = next(
        cell
        for cell in found["kinds"]
        if (cell["kind"], cell["method"], cell["budget"], cell["output"]) == ("all", "combined", 20, "logits")
    )
    assert cell["surrogates"] == 2
    assert cell["independents"] == 3
    assert cell["auc"]["low"] <= cell["auc"]["value"] == 1
    levels = {item["level"] for item in found["independents"]}
    assert {0.01, 0.5} <= levels
    assert found["registering_seconds"].keys() == {"10", "20"}
    assert found["failures"].keys() == {"extract_architecture=no-such.seed0"}


def check_rows(rows):
    assert {row["output"] for row in rows} == OUTPUTS
    assert {row["method"] for row in rows} == {"combined", "joint", "negatives", "sac"}
    assert {row["budget"] for row in rows} == {10, 20}
    broken = [row["method"] for row in rows if not row["useful"]]
    assert len(rows) - len(broken) == 5 * 4 * 2 * 4
    assert set(broken) == {"combined", "sac"}
    assert {row["queries"] for row in rows if row["method"] == "negatives"} == {10, 20}
    by_label = {
        (row["model"], row["method"], row["output"]): row["score"]
        for row in rows
        if row["budget"] == 20 and row["role"] == "surrogate"
    }
    assert (
        by_label["prune_rate=0.3.seed0", "negatives", "logits"]
        == by_label["prune_rate=0.3.seed0", "negatives", "top-1"]
    )
    assert by_label["prune_rate=0.3.seed0", "sac", "logits"] != by_label["prune_rate=0.3.seed0", "sac", "top-1"]
    assert all(0 < row["p_value"] <= 1 for row in rows)
    for row in rows:
        if row["method"] == "combined":
            assert row["score"] == pytest.approx(-np.log10(row["p_value"]))


def test_models_that_somebody_else_made(evaluated, digit_models, models, invoke, tmp_path):
    out = tmp_path / "out"
    result = evaluate(invoke, digit_models, out, "--zoo", models, data=evaluated / "owner.npz")
    assert result.exit_code == 0, result.stderr
    found = json.loads((out / "evaluation.json").read_text())
    assert {model["name"]: model["kind"] for model in found["models"]} == KINDS
    assert found["failures"] == {"unnamed": "truth.json does not name it"}
    assert not (out / "surrogates").exists()
    areas = {
        cell["kind"]: cell["auc"]["value"]
        for cell in found["kinds"]
        if (cell["method"], cell["budget"], cell["output"]) == ("negatives", 20, "top-1")
    }
    assert areas == {"all": 1, "copy": 1, "copy, pruned": 1}
    assert all(0.5 < model["accuracy"] <= 1 for model in found["models"])


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (None, "truth.json: no such file; expected"),
        ("[1]", "truth.json: cannot be read"),
        ('{"int8": "copy"}', "truth.json: cannot be read"),
        ('{"int9": {"kind": "copy"}}', "there is no model 'int9'"),
        ('{"int8": {"kind": "copy"}}', "names no independent"),
        ('{"other": {"kind": "independent"}}', "names no surrogate"),
    ],
)
def test_truths_that_tell_nothing(digit_models, models, invoke, tmp_path, truth, says):
    (models / "truth.json").unlink()
    if truth:
        (models / "truth.json").write_text(truth)
    result = evaluate(invoke, digit_models, tmp_path / "out", "--zoo", models)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--budgets", "ten"), "expected numbers, such as 10,100"),
        (("--budgets", "0"), "--budgets: expected"),
        (("--budgets", ","), "--budgets: expected"),
        (("--references", "3"), "expected at least 4"),
        (("--independents", "2"), "expected at least 3"),
        (("--alpha", "1"), "--alpha 1.0"),
        (("--methods", "weights"), "only methods that ask the suspect"),
        (("--methods", "negative"), "no method called 'negative'"),
        (("--attacks", "prun"), "no attack called 'prun'"),
        (("--attacks", ","), "--attacks names none"),
        (("--zoo", "nowhere"), "does not exist"),
    ],
)
def test_wrong_options(digit_models, invoke, tmp_path, options, says):
    result = evaluate(invoke, digit_models, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_names_from_a_truth_file_do_no_harm_on_the_page():
    from fp_audit.evaluating import COMBINED, Model, Row, Setting, cells, innocents
    from fp_audit.reports import _evaluation

    hostile = "<script>alert(1)</script>$\\frac{\x1b[31m"
    models = (Model(hostile, "surrogate", hostile), Model("i", "independent", "independent", accuracy=0.9))
    rows = tuple(
        Row(model.name, Setting(COMBINED, 10, output), score, 10**-score, 10)
        for output in ("logits", "top-1")
        for model, score in zip(models, (3.0, 0.5), strict=True)
    )
    evaluation = _evaluation.Evaluation(
        hostile,
        None,
        0.01,
        {},
        models,
        rows,
        tuple(cells(models, rows, 0.01)),
        tuple(innocents(models, rows)),
        (),
        {hostile: hostile},
        {10: 1.0},
        {},
    )
    assert "<script" not in _evaluation.as_html(evaluation)
    assert "\x1b" not in _evaluation.as_html(evaluation)
    assert "\x1b" not in _evaluation.as_table(evaluation)
    assert json.loads(_evaluation.as_json(evaluation))["failures"] == {hostile: hostile}
