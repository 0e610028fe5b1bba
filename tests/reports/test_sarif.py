"""The report for code scanning, against the object model that Microsoft generated from the SARIF 2.1.0 schema."""

import json
from urllib.parse import unquote, urlsplit

import attr
import pytest
import sarif_om
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit import __version__
from fp_audit.reports.sarif import Sarif
from fp_audit.types import Verdict

CLASSES = {
    "artifactLocation": sarif_om.ArtifactLocation,
    "defaultConfiguration": sarif_om.ReportingConfiguration,
    "driver": sarif_om.ToolComponent,
    "invocations": sarif_om.Invocation,
    "locations": sarif_om.Location,
    "logicalLocations": sarif_om.LogicalLocation,
    "message": sarif_om.Message,
    "physicalLocation": sarif_om.PhysicalLocation,
    "region": sarif_om.Region,
    "results": sarif_om.Result,
    "rules": sarif_om.ReportingDescriptor,
    "runs": sarif_om.Run,
    "shortDescription": sarif_om.MultiformatMessageString,
    "suppressions": sarif_om.Suppression,
    "tool": sarif_om.Tool,
    "toolExecutionNotifications": sarif_om.Notification,
}
"""Property -> what it holds; any other property holds plain values."""

FREE = {"properties", "partialFingerprints"}
"""Properties whose keys the standard leaves to the tool."""


def check(value, kind):
    """Check that an object has only properties that its class in the standard has, and all that it must have."""
    fields = {field.metadata["schema_property_name"]: field for field in attr.fields(kind)}
    assert value.keys() <= fields.keys(), (kind, value.keys() - fields.keys())
    assert {name for name, field in fields.items() if field.default is attr.NOTHING} <= value.keys()
    for name, inner in value.items():
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, dict) and name not in FREE:
                check(item, CLASSES[name])


def parsed(given):
    log = json.loads(Sarif().render(given))
    schema = log.pop("$schema")
    check(log, sarif_om.SarifLog)
    assert schema.endswith("sarif-schema-2.1.0.json")
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    for result in run["results"]:
        assert result["level"] in ("none", "note", "warning", "error")
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert all(item["kind"] in ("inSource", "external") for item in result.get("suppressions", ()))
    return run


def test_a_result_for_each_finding_that_is_not_independent():
    given = everything()
    results = parsed(given)["results"]
    found = [item for item in given.ordered() if item.verdict != Verdict.INDEPENDENT]
    assert [(one["properties"]["target"], one["ruleId"]) for one in results] == [(f.target, f.verdict) for f in found]
    levels = {one["ruleId"]: one["level"] for one in results}
    assert levels == {
        **dict.fromkeys(("identical", "derived"), "error"),
        **dict.fromkeys(("suspected", "common-ancestor"), "warning"),
        "inconclusive": "note",
    }


def test_the_tool_and_the_run_say_what_was_done():
    run = parsed(everything())
    assert (run["tool"]["driver"]["name"], run["tool"]["driver"]["version"]) == ("fp-audit", __version__)
    assert run["properties"] == {"victims": ["digits", "faces"], "alpha": 0.01, "depth": "queries"}


def test_what_is_ignored_is_suppressed_with_its_reason():
    ignored, counted = parsed(report(finding(ignored="licensed"), finding()))["results"]
    assert ignored["suppressions"] == [{"kind": "external", "justification": "licensed"}]
    assert "suppressions" not in counted


def test_what_was_skipped_is_a_notification():
    (notification,) = parsed(everything())["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"] == "broken was skipped: truncated"


def test_one_pair_keeps_its_fingerprint_and_no_two_share_one():
    def fingerprints(*findings):
        return [one["partialFingerprints"]["targetAndVictim/v1"] for one in parsed(report(*findings))["results"]]

    pairs = [finding("a", victim="b"), finding("ab", victim=""), finding("a", victim="c")]
    assert len(set(fingerprints(*pairs))) == 3
    assert fingerprints(finding("a", p=0.1)) == fingerprints(finding("a", Verdict.IDENTICAL))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_a_path_and_no_address(name):
    run = parsed(hostile(name))
    for result in run["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.isascii()
        assert not urlsplit(uri).scheme
        assert not urlsplit(uri).netloc
        assert unquote(uri) == name.replace("\udc80", "\\udc80").replace("//evil.example/x", "/evil.example/x")
        assert result["message"]["text"].isprintable()
