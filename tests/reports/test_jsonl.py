"""The report for programs that read line by line."""

import json

import pytest
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.reports.json import Json
from fp_audit.reports.jsonl import JsonLines


def test_a_line_for_each_finding_and_skipped_target():
    given = everything()
    lines = [json.loads(line) for line in JsonLines().render(given).splitlines()]
    whole = json.loads(Json().render(given))
    assert [line for line in lines if line.pop("type") == "finding"] == whole["findings"]
    assert lines[len(given.findings) :] == whole["skipped"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_on_their_line_and_come_back(name):
    text = JsonLines().render(hostile(name))
    assert text.isascii()
    assert [json.loads(line)["target"] for line in text.splitlines()] == [name] * 3


def test_nothing_found_is_no_line():
    assert JsonLines().render(report()) == ""


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        JsonLines().render(report(finding(p=float("nan"))))
