"""The report for continuous integration, against the schema of Jenkins' xunit plugin.

``junit-10.xsd`` is that plugin's (MIT, the notice is in the file), which pytest also tests with.
"""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import xmlschema
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit.reports.junit import JUnit
from fp_audit.types import Verdict

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit-10.xsd"))


def parsed(given):
    text = JUnit().render(given)
    SCHEMA.validate(text)
    return ElementTree.fromstring(text.encode())


def test_what_fails_the_scan_fails_its_test():
    root = parsed(everything())
    outcome = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert {name for name, tags in outcome.items() if "failure" in tags} == {"t-identical", "hub/model"}
    assert {name for name, tags in outcome.items() if "skipped" in tags} == {
        *("let/go", "t-inconclusive", "no/p", "broken"),
    }
    failure = next(root.iter("failure"))
    assert failure.get("type") == "identical"
    assert "negatives (p <1e-16): says the same on 93%" in failure.text


def test_there_is_a_suite_for_each_victim_and_its_counts_are_right():
    suites = list(parsed(everything()).iter("testsuite"))
    assert [suite.get("name") for suite in suites] == ["derived from digits", "derived from faces", "not judged"]
    for suite in suites:
        assert int(suite.get("tests")) == len(suite)
        assert int(suite.get("failures")) == len(list(suite.iter("failure")))
        assert int(suite.get("skipped")) == len(list(suite.iter("skipped")))


def test_the_level_is_that_of_the_scan():
    import dataclasses

    given = dataclasses.replace(report(finding(verdict=Verdict.SUSPECTED)), serious=(Verdict.SUSPECTED,))
    assert len(list(parsed(given).iter("failure"))) == 1


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_attributes(name):
    root = parsed(hostile(name))
    assert len(list(root.iter("testcase"))) == 3
    assert {element.tag for element in root.iter()} <= {
        *("testsuites", "testsuite", "testcase", "failure", "skipped"),
    }


def test_an_empty_report():
    assert len(parsed(report())) == 0
