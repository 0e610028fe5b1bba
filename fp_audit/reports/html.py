"""The report for a person who wants to look closer: a page."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any, ClassVar

from fp_audit import __version__
from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import p_text, printable, template, why
from fp_audit.types import Evidence, Verdict

COLOURS = {
    Verdict.IDENTICAL: "bad",
    Verdict.DERIVED: "bad",
    Verdict.SUSPECTED: "doubt",
    Verdict.COMMON_ANCESTOR: "doubt",
    Verdict.INDEPENDENT: "good",
    Verdict.INCONCLUSIVE: "none",
}
"""Verdict -> class of its mark."""


class Html(Format):
    """One file that needs no network: a table that sorts and filters, with the evidence of each finding to unfold.

    Everything that a model may have brought is escaped by the template, and the page's own policy lets no script run
    but the one in it.
    """

    name: ClassVar[str] = "html"
    summary: ClassVar[str] = "a page with sortable findings and their evidence, for a browser"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        script = _file("report.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = template("report.html.j2", printable=printable, p_text=p_text, why=why, plot=plot)
        return (
            page.render(
                report=report,
                counts={key: number for key, number in report.counts().items() if number and key != "targets"},
                order=list(Verdict),
                colours=COLOURS,
                script=script,
                digest=digest,
                version=__version__,
            )
            + "\n"
        )


def _file(name: str) -> str:
    return resources.files("fp_audit.reports").joinpath(name).read_text(encoding="utf-8")


def plot(item: Evidence) -> dict[str, Any] | None:
    """Lay a score and its null on one axis: places in percent of the width, and the ends of the axis.

    The axis goes from 0 to 1, and further where a score or null does. None without a null.
    """
    if item.null is None or not {"mean", "max"} <= item.null.keys():
        return None
    mean, most = float(item.null["mean"]), float(item.null["max"])
    low, high = min(0.0, item.score, mean), max(1.0, item.score, most)
    score, start, end = (round(100 * (value - low) / (high - low), 1) for value in (item.score, mean, most))
    return {"score": score, "mean": start, "span": round(max(0.0, end - start), 1), "low": low, "high": high}
