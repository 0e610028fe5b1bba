"""What GitHub Actions shows of a scan: annotations, and the summary of the job.

Workflow commands are read from stdout and stderr alike; ours go to stderr, so that a report on stdout stays whole.
Source of the rules: GitHub, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fp_audit.reports._base import Report
    from fp_audit.types import Finding

SHOWN = 10
"""Annotations of one level that GitHub shows for a step."""

SUMMARY_BYTES = 2**20
"""Size from which GitHub refuses the summary of a step."""


def on() -> bool:
    """Whether this is a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def harmless(text: str) -> str:
    """Take the meaning out of lines that a name has made look like workflow commands."""
    return re.sub(r"^(\s*)(::|##\[)", r"\1\\\2", text, flags=re.MULTILINE)


def announce(report: Report) -> None:
    """Print annotations to stderr, and append the Markdown report to the summary of the job."""
    shown: dict[str, int] = {}
    for level, title, message in _annotations(report):
        shown[level] = shown.get(level, 0) + 1
        if shown[level] <= SHOWN:
            click.echo(f"::{level} title={_property(title)}::{_data(message)}", err=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _summarise(Path(summary), report)


def _annotations(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield level, title and message, the most serious finding first."""
    from fp_audit.reports._text import p_text, printable, why
    from fp_audit.types import Verdict

    for finding in report.ordered():
        if finding.verdict != Verdict.INDEPENDENT:
            pair = f"{printable(finding.target)} against {printable(finding.victim)}"
            said = f"{pair}: {finding.verdict} (p {p_text(finding.p_value)}): {printable(why(finding))}"
            yield _level(report, finding), f"fp-audit: {finding.verdict}", said
    for item in report.skipped:
        yield "warning", "fp-audit: skipped", f"{printable(item.target)} was skipped: {printable(item.reason)}"


def _level(report: Report, finding: Finding) -> str:
    if report.fails(finding):
        return "error"
    return "warning" if finding.ignored is None else "notice"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _summarise(path: Path, report: Report) -> None:
    """Append to the file of the summary, in whole lines and no more than GitHub takes."""
    from fp_audit import plugins

    left = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0) - 100
    lines = []
    for line in plugins.load("reports", "markdown")().render(report).splitlines(keepends=True):
        left -= len(line.encode())
        if left < 0:
            lines.append("\n… cut: GitHub takes no more. Write a report with --output.\n")
            break
        lines.append(line)
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" + "".join(lines))
