"""The report for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import ClassVar

from fp_audit import __version__
from fp_audit.reports._base import Format, Report, plain

SCHEMA_VERSION = 1


class Json(Format):
    """One JSON object, ``schema_version`` 1. Numbers are not rounded."""

    name: ClassVar[str] = "json"
    summary: ClassVar[str] = "one JSON object, for programs"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        content = {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "fp-audit", "version": __version__},
            "victims": list(report.victims),
            "alpha": report.alpha,
            "depth": str(report.depth),
            "findings": [plain(finding) for finding in report.findings],
            "skipped": [asdict(item) for item in report.skipped],
            "summary": dict(report.counts()),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
