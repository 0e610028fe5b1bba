"""The report for continuous integration that shows tests."""

from __future__ import annotations

from typing import ClassVar
from xml.etree import ElementTree

from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import escaped, grounds, p_text
from fp_audit.types import Finding, Skipped, Verdict


class JUnit(Format):
    """JUnit XML as Jenkins and GitLab read it: a suite for each victim, a test case for each target.

    What fails the scan is a failure. What could not be judged, and what is ignored, is skipped: a test that passed
    would say too much. Skipped targets have a suite of their own.
    """

    name: ClassVar[str] = "junit"
    summary: ClassVar[str] = "JUnit XML: what fails the scan is a failed test"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        root = ElementTree.Element("testsuites", name="fp-audit")
        for victim in dict.fromkeys(finding.victim for finding in report.findings):
            cases = [_case(finding, report) for finding in report.findings if finding.victim == victim]
            root.append(_suite(f"derived from {escaped(victim)}", cases))
        if report.skipped:
            root.append(_suite("not judged", [_skipped(item) for item in report.skipped]))
        ElementTree.indent(root)
        return "<?xml version='1.0' encoding='utf-8'?>\n" + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, cases: list[ElementTree.Element]) -> ElementTree.Element:
    """Wrap test cases and count them."""
    failures, skipped = (str(sum(case.find(tag) is not None for case in cases)) for tag in ("failure", "skipped"))
    suite = ElementTree.Element(
        "testsuite", name=name, tests=str(len(cases)), failures=failures, errors="0", skipped=skipped
    )
    suite.extend(cases)
    return suite


def _case(finding: Finding, report: Report) -> ElementTree.Element:
    seconds = f"{finding.cost.seconds:.3f}"
    case = ElementTree.Element(
        "testcase", name=escaped(finding.target), classname=escaped(finding.victim), time=seconds
    )
    said = f"{finding.verdict} (p {p_text(finding.p_value)}): {escaped(grounds(finding))}"
    if report.fails(finding):
        failure = ElementTree.SubElement(case, "failure", type=str(finding.verdict), message=said)
        failure.text = "\n".join(_evidence(finding))
    elif finding.ignored is not None:
        ElementTree.SubElement(case, "skipped", message=f"ignored: {escaped(finding.ignored)}; {said}")
    elif finding.verdict == Verdict.INCONCLUSIVE:
        ElementTree.SubElement(case, "skipped", message=said)
    else:
        ElementTree.SubElement(case, "system-out").text = said
    return case


def _evidence(finding: Finding) -> list[str]:
    return [f"{item.method} (p {p_text(item.p_value)}): {escaped(item.statement)}" for item in finding.evidence]


def _skipped(item: Skipped) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=escaped(item.target), classname="skipped")
    ElementTree.SubElement(case, "skipped", message=escaped(item.reason))
    return case
