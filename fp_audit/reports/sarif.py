"""The report for code scanning."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, ClassVar
from urllib.parse import quote

from fp_audit import __version__
from fp_audit.reports._base import Format, Report, plain
from fp_audit.reports._text import escaped, grounds, p_text
from fp_audit.types import Finding, Skipped, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

RULES = {
    Verdict.IDENTICAL: ("error", "The model is a copy of a registered model."),
    Verdict.DERIVED: ("error", "The model is derived from a registered model."),
    Verdict.SUSPECTED: ("warning", "The model may be derived from a registered model."),
    Verdict.COMMON_ANCESTOR: ("warning", "The model and a registered model share an ancestor."),
    Verdict.INCONCLUSIVE: ("note", "The model could not be judged."),
}
"""Verdict -> level and meaning. An independent model is no result: code scanning would show it as an alert."""


class Sarif(Format):
    """SARIF 2.1.0 (OASIS): a rule for each verdict, a result for each finding that is not ``independent``.

    Ignored findings are suppressed results; skipped targets are notifications of the run. The artifact of a result is
    the target as it was named.
    """

    name: ClassVar[str] = "sarif"
    summary: ClassVar[str] = "SARIF 2.1.0, for code scanning"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        driver = {
            "name": "fp-audit",
            "version": __version__,
            "rules": [_rule(verdict) for verdict in RULES],
        }
        run = {
            "tool": {"driver": driver},
            "invocations": [
                {
                    "executionSuccessful": True,
                    "toolExecutionNotifications": [_notification(item) for item in report.skipped],
                }
            ],
            "results": [_result(finding) for finding in report.ordered() if finding.verdict in RULES],
            "properties": {"victims": list(report.victims), "alpha": report.alpha, "depth": str(report.depth)},
        }
        content = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _rule(verdict: Verdict) -> dict[str, Any]:
    level, meaning = RULES[verdict]
    return {
        "id": str(verdict),
        "shortDescription": {"text": meaning},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": ["security"]},
    }


def _result(finding: Finding) -> dict[str, Any]:
    about = f"{finding.target} against {finding.victim}: {finding.verdict} (p {p_text(finding.p_value)})"
    result = {
        "ruleId": str(finding.verdict),
        "ruleIndex": list(RULES).index(finding.verdict),
        "level": RULES[finding.verdict][0],
        "message": {"text": escaped(f"{about}: {grounds(finding)}")},
        "locations": [_location(finding.target)],
        "partialFingerprints": {"targetAndVictim/v1": _digest(finding.target, finding.victim)},
        "properties": plain(finding),
    }
    if finding.ignored is not None:
        result["suppressions"] = [{"kind": "external", "justification": escaped(finding.ignored)}]
    return result


def _location(target: str) -> dict[str, Any]:
    """Point at a target; a name is no URI: everything but ``/`` is quoted, and ``//`` in front would name a host."""
    uri = re.sub("^//+", "/", quote(target, safe="/", errors="backslashreplace"))
    return {
        "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}},
        "logicalLocations": [{"fullyQualifiedName": escaped(target), "kind": "module"}],
    }


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _notification(item: Skipped) -> dict[str, Any]:
    return {
        "level": "warning",
        "message": {"text": escaped(f"{item.target} was skipped: {item.reason}")},
        "locations": [_location(item.target)],
    }
