"""How verdicts, p-values and names are written for a person."""

from __future__ import annotations

from fp_audit.types import Finding, Verdict

STYLES = {
    Verdict.IDENTICAL: "bold red",
    Verdict.DERIVED: "bold red",
    Verdict.SUSPECTED: "yellow",
    Verdict.COMMON_ANCESTOR: "yellow",
    Verdict.INDEPENDENT: "green",
    Verdict.INCONCLUSIVE: "magenta",
}
"""How verdicts look on a terminal."""


def escaped(text: str) -> str:
    """Make a name or a message from a model harmless: one line, no character that a terminal, XML or UTF-8 minds."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def printable(text: str, limit: int = 300) -> str:
    """Make a name or a message from a model harmless for a person: one line, no control characters, an end."""
    shown = escaped(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def why(finding: Finding) -> str:
    """Say what a verdict rests on, and why it does not count if it does not."""
    return finding.reason if finding.ignored is None else f"(ignored: {finding.ignored}) {finding.reason}"


def p_text(p: float | None) -> str:
    """Write a p-value for a person."""
    if p is None:
        return "-"
    return "<1e-16" if p < 1e-16 else f"{p:.2g}"
