"""What a report format must offer, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from fp_audit.types import Access, Finding, Skipped, Verdict

ORDER = list(Verdict)
"""Verdicts, most serious first."""


@dataclass(frozen=True)
class Report:
    """A whole scan."""

    victims: tuple[str, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    alpha: float
    depth: Access
    serious: tuple[Verdict, ...] = (Verdict.IDENTICAL, Verdict.DERIVED)
    """Verdicts that fail the scan."""

    def counts(self) -> Mapping[str, int]:
        """Return the number of targets, of findings by verdict, of skipped targets, and of ignored findings."""
        by_verdict = {str(verdict): sum(finding.verdict == verdict for finding in self.findings) for verdict in Verdict}
        targets = len({finding.target for finding in self.findings}) + len(self.skipped)
        ignored = sum(finding.ignored is not None for finding in self.findings)
        return {"targets": targets, **by_verdict, "skipped": len(self.skipped), "ignored": ignored}

    def ordered(self) -> list[Finding]:
        """Return the findings, most serious first."""
        return sorted(self.findings, key=lambda finding: ORDER.index(finding.verdict))

    def fails(self, finding: Finding) -> bool:
        """Whether this finding fails the scan."""
        return finding.verdict in self.serious and finding.ignored is None


def plain(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values, numbers unrounded. Programs read them: fields are added, never changed."""
    evidence = [{**asdict(item), "access": str(item.access)} for item in finding.evidence]
    return {**asdict(finding), "verdict": str(finding.verdict), "evidence": evidence}


class Format(ABC):
    """Renders a report as text. Subclasses are final; only the command line writes what they return."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """Return the report as text, ending in a newline.

        Args:
            report: what to show.
            width: characters of the terminal, for formats that fit themselves to it.
            colour: whether escape sequences for colours are understood.
        """
