"""The bill of materials, against the schema of CycloneDX 1.6 that its library brings."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit import __version__
from fp_audit.reports.cyclonedx import CycloneDx
from fp_audit.types import Verdict

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


def parsed(given):
    text = CycloneDx().render(given)
    assert VALIDATOR.validate_str(text) is None
    content = json.loads(text)
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    return content


def by_name(content):
    return {component["name"]: component for component in content.get("components", ())}


def properties(component):
    return {item["name"]: item["value"] for item in component["properties"]}


def test_every_target_is_one_machine_learning_model():
    given = everything()
    content = parsed(given)
    names = [component["name"] for component in content["components"]]
    assert sorted(names) == sorted({item.target for item in (*given.findings, *given.skipped)})
    assert {component["type"] for component in content["components"]} == {"machine-learning-model"}
    assert content["metadata"]["tools"]["components"][0]["version"] == __version__


def test_the_victim_is_an_ancestor_of_what_was_derived_and_of_nothing_else():
    found = by_name(parsed(everything()))
    inherits = {name for name, component in found.items() if "pedigree" in component}
    assert inherits == {"t-identical", "t-derived", "let/go", "hub/model"}
    pedigree = found["t-derived"]["pedigree"]
    assert [(one["name"], one["type"]) for one in pedigree["ancestors"]] == [("digits", "machine-learning-model")]
    assert pedigree["notes"] == "digits: says the same"


def test_verdicts_by_victim_are_properties():
    found = by_name(parsed(everything()))
    assert properties(found["t-derived"]) == {
        "fp-audit:adapter": "onnx",
        "fp-audit:verdict:digits": "derived",
        "fp-audit:p:digits": "0.004",
        "fp-audit:verdict:faces": "suspected",
        "fp-audit:p:faces": "0.004",
    }
    assert properties(found["let/go"])["fp-audit:ignored:digits"] == "licensed until 2027"
    assert properties(found["broken"]) == {"fp-audit:skipped": "truncated"}


def test_a_model_of_a_hub_has_its_address():
    models = [finding("org/model", revision="ab" * 20), finding("org/model/onnx/m.onnx", revision="ab" * 20)]
    found = by_name(parsed(report(*models, finding("local/model"))))
    assert found["org/model"]["purl"] == f"pkg:huggingface/org/model@{'ab' * 20}"
    assert found["org/model/onnx/m.onnx"]["purl"] == f"pkg:huggingface/org/model@{'ab' * 20}#onnx/m.onnx"
    assert found["org/model"]["version"] == "ab" * 20
    assert "purl" not in found["local/model"]


def test_examined_models_have_a_card_that_names_what_they_inherit():
    found = by_name(parsed(everything()))
    cards = {name: component["modelCard"] for name, component in found.items() if "modelCard" in component}
    assert cards.keys() == found.keys() - {"broken"}
    assert {card["modelParameters"]["task"] for card in cards.values()} == {"image-classification"}
    risks = {name: card["considerations"]["ethicalConsiderations"] for name, card in cards.items() if len(card) > 1}
    assert risks.keys() == {"t-identical", "t-derived", "let/go", "hub/model"}
    assert [risk["name"] for risk in risks["t-derived"]] == ["provenance: derived, registered model digits"]


def test_two_victims_of_one_target_are_two_ancestors():
    content = parsed(report(finding("a", victim="x"), finding("a", Verdict.IDENTICAL, victim="y")))
    (component,) = content["components"]
    assert [one["name"] for one in component["pedigree"]["ancestors"]] == ["x", "y"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_valid(name):
    assert len(parsed(hostile(name))["components"]) == 3


def test_an_empty_report():
    assert by_name(parsed(report())) == {}
