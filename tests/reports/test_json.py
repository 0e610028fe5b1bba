"""The report for programs: keys, counts and numbers as they are."""

import json

import pytest

from fp_audit import __version__
from fp_audit.reports._base import Report
from fp_audit.reports.json import Json
from fp_audit.types import Access, Cost, Evidence, Finding, Skipped, Verdict

P = 0.1 + 0.2
NASTY = "\x1b[31mred\n[bold]\u202e\ud7ff" + '"' * 3


def finding(target="thief/ftal", verdict=Verdict.DERIVED, victim="digits", p=P):
    null = {"n": 14, "mean": 1 / 3, "max": 0.52, "conformal_p": 1 / 15}
    evidence = (
        Evidence("negatives", Access.QUERIES, 0.93, 1e-300, null, 100, "says the same", {"x": [1, 2]}),
        Evidence("sac", Access.QUERIES, 0.5, None, None, 100),
    )
    cost = Cost(432000, 200, 0.8, requests=3, bytes_avoided=9)
    return Finding(target, victim, verdict, "it is", "onnx", None, p, p, evidence, cost)


def report(*findings, skipped=(), victims=("digits",)):
    return Report(victims, findings, skipped, 0.01, Access.QUERIES)


def rendered(*findings, **more):
    return json.loads(Json().render(report(*findings, **more)))


def test_the_keys_are_those_of_the_design():
    got = rendered(finding(), skipped=(Skipped("b", "why"),))
    assert set(got) == {
        *("schema_version", "tool", "victims", "alpha", "depth", "findings", "skipped", "summary"),
    }
    assert (got["schema_version"], got["tool"]) == (1, {"name": "fp-audit", "version": __version__})
    assert (got["victims"], got["alpha"], got["depth"]) == (["digits"], 0.01, "queries")
    one = got["findings"][0]
    assert {
        *("target", "revision", "adapter", "victim", "verdict", "p_value", "q_value", "evidence", "cost"),
    } <= set(one)
    assert {"method", "access", "score", "p_value", "null", "queries", "detail"} <= set(one["evidence"][0])
    assert one["evidence"][0]["access"] == "queries"
    assert one["evidence"][1]["null"] is None
    assert one["cost"] == {
        "bytes_read": 432000,
        "queries": 200,
        "seconds": 0.8,
        "requests": 3,
        "bytes_avoided": 9,
        "examined": None,
    }
    assert got["skipped"] == [{"target": "b", "reason": "why"}]


def test_numbers_are_not_rounded():
    one = rendered(finding())["findings"][0]
    assert one["p_value"] == P
    assert one["evidence"][0]["p_value"] == 1e-300
    assert one["evidence"][0]["null"] == {"n": 14, "mean": 1 / 3, "max": 0.52, "conformal_p": 1 / 15}


def test_targets_are_counted_once_and_findings_by_verdict():
    pair = [finding("a", Verdict.DERIVED), finding("a", Verdict.INDEPENDENT, "other")]
    got = rendered(*pair, finding("b", Verdict.COMMON_ANCESTOR), skipped=(Skipped("c", "why"),))
    assert got["summary"] == {
        "targets": 3,
        "identical": 0,
        "derived": 1,
        "suspected": 0,
        "common-ancestor": 1,
        "independent": 1,
        "inconclusive": 0,
        "skipped": 1,
        "ignored": 0,
    }


def test_an_empty_report():
    got = rendered()
    assert got["findings"] == got["skipped"] == []
    assert set(got["summary"].values()) == {0}


def test_hostile_names_come_back_and_are_no_control_characters():
    text = Json().render(report(finding(NASTY), skipped=(Skipped(NASTY, NASTY),)))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.loads(text)["findings"][0]["target"] == NASTY
    assert text.endswith("}\n")


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        Json().render(report(finding(p=float("nan"))))
