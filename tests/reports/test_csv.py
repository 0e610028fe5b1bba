"""The report for a spreadsheet: RFC 4180, and nothing that a spreadsheet computes."""

import csv
import io

import pytest
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.reports.csv import HEADINGS, Csv


def rows(given):
    return list(csv.DictReader(io.StringIO(Csv().render(given), newline=""), strict=True))


def test_one_row_a_finding_then_the_skipped():
    given = everything()
    got = rows(given)
    assert [row["target"] for row in got] == [item.target for item in (*given.findings, *given.skipped)]
    assert [row["verdict"] for row in got] == [*(item.verdict for item in given.findings), "skipped"]
    assert all(tuple(row) == HEADINGS for row in got)
    assert got[-1]["reason"] == "truncated"
    assert got[6]["ignored"] == "licensed until 2027"


def test_numbers_are_not_rounded_and_absent_ones_are_empty():
    one, other = rows(report(finding(p=0.1 + 0.2), finding(p=None)))
    assert float(one["p_value"]) == 0.1 + 0.2
    assert (one["bytes_read"], one["queries"], one["seconds"]) == ("432000", "200", "1234.5678")
    assert other["p_value"] == other["q_value"] == other["revision"] == ""


def test_lines_end_as_the_rfc_says():
    text = Csv().render(everything())
    assert text.count("\r\n") == text.count("\n") == len(everything().findings) + 2
    assert text.endswith("\r\n")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_one_cell_and_no_formula(name):
    got = rows(hostile(name))
    assert len(got) == 3
    for row in got:
        assert len(row) == len(HEADINGS)
        for value in row.values():
            assert not value.lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("name", ["=1", "+1", "-1", "@A", " =1", "＝1"])
def test_a_formula_gets_a_mark_in_front(name):
    assert rows(report(finding(name)))[0]["target"] == f"'{name}"


@pytest.mark.parametrize("name", ["a=1", "org/model-1", "'=1", 'quo"te, comma'])
def test_other_names_stay(name):
    assert rows(report(finding(name)))[0]["target"] == name
