"""What a report format must offer, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fp_audit.types import Access, Finding, Skipped, Verdict


@dataclass(frozen=True)
class Report:
    """A whole scan."""

    victims: tuple[str, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    alpha: float
    depth: Access

    def counts(self) -> Mapping[str, int]:
        """Return the number of targets, of findings by verdict, and of skipped targets."""
        by_verdict = {str(verdict): sum(finding.verdict == verdict for finding in self.findings) for verdict in Verdict}
        targets = len({finding.target for finding in self.findings}) + len(self.skipped)
        return {"targets": targets, **by_verdict, "skipped": len(self.skipped)}


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
