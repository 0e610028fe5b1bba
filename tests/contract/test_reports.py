"""What every report format must do. New formats are picked up by themselves."""

import time

import pytest
from sample_reports import HOSTILE, everything, finding, hostile, report

from fp_audit import plugins
from fp_audit.reports._base import Format
from fp_audit.types import Verdict

FORMATS = plugins.names("reports")

each = pytest.mark.parametrize("name", FORMATS)


def rendered(name, given):
    return plugins.load("reports", name)().render(given)


@each
def test_it_says_what_it_is(name):
    kind = plugins.load("reports", name)
    assert issubclass(kind, Format)
    assert kind.name == name
    assert kind.summary
    assert not kind.summary.endswith(".")


@each
@pytest.mark.parametrize("nasty", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_harmless(name, nasty):
    text = rendered(name, hostile(nasty))
    assert all(char.isprintable() or char in "\n\r" for char in text)
    assert text.encode()


@each
def test_an_empty_report_is_one(name):
    text = rendered(name, report())
    assert text == "" or text.endswith("\n")


@each
def test_every_found_target_is_named(name):
    given = everything()
    text = rendered(name, given)
    assert text.endswith("\n")
    for item in given.findings:
        assert item.target in text or (name == "sarif" and item.verdict == Verdict.INDEPENDENT)
    assert all(item.target in text and item.reason in text for item in given.skipped)


@each
def test_what_is_ignored_says_why(name):
    assert "licensed by contract" in rendered(name, report(finding(ignored="licensed by contract")))


@each
def test_hundreds_of_findings_are_no_burden(name):
    several = [finding(f"org/model-{place}", list(Verdict)[place % 6]) for place in range(400)]
    start = time.process_time()
    rendered(name, report(*several))
    assert time.process_time() - start < 5


@each
def test_width_and_colour_are_for_terminals(name):
    made = plugins.load("reports", name)()
    assert "thief/ftal" in made.render(report(finding()), width=200, colour=True)
