"""The report for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import ClassVar

from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import escaped
from fp_audit.types import Finding

HEADINGS = (
    *("target", "revision", "adapter", "victim", "verdict", "ignored", "p_value", "q_value", "reason", "declared"),
    *("bytes_read", "queries", "seconds", "requests", "bytes_avoided"),
)

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What makes a spreadsheet compute a cell, full-width forms included (tabs and line ends are escaped before)."""


class Csv(Format):
    """RFC 4180, one row a finding or skipped target. Text that a spreadsheet would compute gets a ``'`` in front.

    Source of the rule: OWASP, "CSV Injection".
    """

    name: ClassVar[str] = "csv"
    summary: ClassVar[str] = "one row a finding, for a spreadsheet"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(HEADINGS)
        writer.writerows(_row(finding) for finding in report.findings)
        for item in report.skipped:
            known = {"target": item.target, "verdict": "skipped", "reason": item.reason}
            writer.writerow([_cell(known.get(heading)) for heading in HEADINGS])
        return stream.getvalue()


def _row(finding: Finding) -> list[str]:
    known = {**vars(finding), **vars(finding.cost)}
    return [_cell(known[heading]) for heading in HEADINGS]


def _cell(value: str | float | None) -> str:
    """Write a cell: numbers as they are, text on one line and never a formula."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = escaped(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
