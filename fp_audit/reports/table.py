"""The report for a person at a terminal."""

from __future__ import annotations

import io
from typing import ClassVar

from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import STYLES, p_text, printable, why


class Table(Format):
    """A table, most serious findings first, with the reason for each in plain words."""

    name: ClassVar[str] = "table"
    summary: ClassVar[str] = "a table for a person"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        stream = io.StringIO()
        console = Console(file=stream, width=width or 120, force_terminal=colour, no_color=not colour, highlight=False)
        several = len(report.victims) > 1
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        for heading in ("VERDICT", "TARGET", *(["VICTIM"] if several else []), "p"):
            table.add_column(heading, no_wrap=heading in ("VERDICT", "p"), overflow="fold")
        table.add_column("WHY: the target ...", ratio=1, overflow="fold")
        for finding in report.ordered():
            row = [Text(finding.verdict, STYLES[finding.verdict]), Text(printable(finding.target))]
            row += [Text(printable(finding.victim))] if several else []
            table.add_row(*row, Text(p_text(finding.p_value)), Text(printable(why(finding))))
        for item in report.skipped:
            row = [Text("skipped", "magenta"), Text(printable(item.target)), *([Text("")] if several else [])]
            table.add_row(*row, Text("-"), Text(printable(item.reason)))
        console.print(table)
        console.print(Text("\n" + _summary(report)))
        return stream.getvalue()


def _summary(report: Report) -> str:
    counts = report.counts()
    found = [f"{number} {verdict}" for verdict, number in counts.items() if number and verdict != "targets"]
    models = f"{counts['targets']} target{'s' if counts['targets'] != 1 else ''}"
    against = f"against {printable(', '.join(report.victims))}"
    return (
        f"{models} {against}: {', '.join(found) or 'nothing found'}. "
        f"p: chance that an independent model looks this alike; derived: at most {report.alpha:g} expected false "
        f"among those called so. Depth: {report.depth}."
    )
