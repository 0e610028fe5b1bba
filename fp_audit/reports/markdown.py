"""The report for a pull request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import p_text, printable, why
from fp_audit.types import Finding, Verdict

_CODES = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]<>!|~&$^#"} | {ord("@"): "&#64;&#8203;"}
"""Characters that mean something to GitHub's Markdown; after ``@`` a space without width, or it calls a person."""

HEAD = "| Verdict | Target | Victim | p | Why: the target … |\n|---|---|---|---|---|\n"


class Markdown(Format):
    """A table for a pull request or a job summary; independents are folded away."""

    name: ClassVar[str] = "markdown"
    summary: ClassVar[str] = "a table for a pull request"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        counts = report.counts()
        found = [f"{number} {verdict}" for verdict, number in counts.items() if number and verdict != "targets"]
        passed = [_finding(finding) for finding in report.findings if finding.verdict == Verdict.INDEPENDENT]
        rows = [_finding(finding) for finding in report.ordered() if finding.verdict != Verdict.INDEPENDENT]
        rows += [_row("skipped", (item.target, "", "", item.reason)) for item in report.skipped]
        parts = [f"### fp-audit: {', '.join(found) or 'nothing found'}\n"]
        parts += [HEAD + "".join(rows)] if rows else []
        if passed:
            parts.append(f"<details><summary>{len(passed)} independent</summary>\n")
            parts.append(HEAD + "".join(passed) + "\n</details>\n")
        parts.append(f"p: chance that an independent model looks this alike. Depth: {report.depth}.\n")
        return "\n".join(parts)


def _finding(finding: Finding) -> str:
    verdict = finding.verdict if finding.ignored is None else f"{finding.verdict} (ignored)"
    return _row(f"**{verdict}**", (finding.target, finding.victim, p_text(finding.p_value), why(finding)))


def _row(verdict: str, cells: Iterable[str]) -> str:
    return " | ".join([f"| {verdict}", *(_harmless(cell) for cell in cells)]) + " |\n"


def _harmless(text: str) -> str:
    """Take the meaning out of a text that a model may have brought."""
    return printable(text).translate(_CODES).replace("www.", "www&#46;").replace("://", "&#58;//")
