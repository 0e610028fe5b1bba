"""The report for programs that read line by line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import ClassVar

from fp_audit.reports._base import Format, Report, plain


class JsonLines(Format):
    """One JSON object a line: findings (as in the format ``json``), then skipped targets; ``type`` tells which."""

    name: ClassVar[str] = "jsonl"
    summary: ClassVar[str] = "one JSON object a line for each finding and each skipped target"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        lines = [{"type": "finding", **plain(finding)} for finding in report.findings]
        lines += [{"type": "skipped", **asdict(item)} for item in report.skipped]
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
