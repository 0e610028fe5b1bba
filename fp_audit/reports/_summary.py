"""The first page of a bundle of evidence, for readers who have to decide something and train no networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fp_audit.calibrate import MIN_NULL, SUSPECTED
from fp_audit.reports._base import ORDER
from fp_audit.reports._text import p_text, printable, template
from fp_audit.types import Verdict

LONGEST = 2000
"""Characters of a text that the page shows."""

MEANINGS = {
    Verdict.IDENTICAL: "The examined model holds exactly what the registered model holds.",
    Verdict.DERIVED: "By the evidence below the examined model was made from the registered model: by copying it and "
    "changing the copy, or by training on its answers. Independent models hardly ever resemble it this much.",
    Verdict.SUSPECTED: "The examined model resembles the registered model more than independent models usually do, but "
    "not so much that chance can be ruled out. This alone proves nothing.",
    Verdict.COMMON_ANCESTOR: "The examined model and the registered model seem to go back to a third model. "
    "This is no sign that one was made from the other.",
    Verdict.INDEPENDENT: "Nothing was found that an independent model would not show as well. "
    "This does not prove that the model is independent: some ways of copying leave little trace.",
    Verdict.INCONCLUSIVE: "The examined model could not be judged.",
}
"""The verdicts in words."""


def as_html(
    about: Mapping[str, Any],
    report: Mapping[str, Any],
    registered: Mapping[str, Mapping[str, Any]],
    does: Mapping[str, str],
) -> str:
    """Render a page that needs nothing else and can be printed.

    Args:
        about: the manifest of the bundle.
        report: the report of the scan, as JSON values.
        registered: by victim, content of its ``victim.json``.
        does: by method, what it looks at.
    """
    return template("summary.html.j2", _harmless).render(
        about=about,
        alpha=report["alpha"],
        comparisons=len(report["findings"]),
        does=does,
        independents={name: _independents(item) for name, item in registered.items()},
        meanings=MEANINGS,
        min_null=MIN_NULL,
        odds=_odds,
        p_text=p_text,
        registered=registered,
        report=report,
        sign=lambda p: p_text(p) if p_text(p).startswith("<") else f"= {p_text(p)}",
        suspects=_suspects(about["suspects"], report["findings"]),
        suspected=SUSPECTED,
    )


def _suspects(suspects: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each suspect its findings, the most serious first."""

    def serious(item: Mapping[str, Any]) -> int:
        return ORDER.index(Verdict(item["verdict"]))

    grouped = [
        {
            **about,
            "findings": sorted(
                (
                    item
                    for item in findings
                    if (item["target"], item["revision"]) == (about["target"], about["revision"])
                ),
                key=serious,
            ),
        }
        for about in suspects
    ]
    return sorted((item for item in grouped if item["findings"]), key=lambda item: serious(item["findings"][0]))


def _harmless(value: Any) -> Any:  # noqa: ANN401
    """Take control characters out of all that is shown, and the rest of what has no end."""
    return printable(value, LONGEST) if type(value) is str else value


def _independents(registered: Mapping[str, Any]) -> str:
    """Say how many independent models there are and where they come from."""
    kinds = [item["kind"] for item in registered["facts"].get("references", ())]
    if not kinds:
        return "none"
    named = {"given": "chosen by the owner", "trained": "trained on the owner's images for this purpose"}
    parts = [f"{kinds.count(kind)} {named.get(kind, kind)}" for kind in dict.fromkeys(kinds)]
    return ", ".join(parts)


def _odds(p: float) -> str:
    """Say a p-value as a share of models."""
    if p >= 1.0:
        return "all"
    return f"about 1 in {1 / p:,.0f}" if p >= 1e-9 else "fewer than 1 in 1,000,000,000"
