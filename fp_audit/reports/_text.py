"""How verdicts, p-values and names are written for a person."""

from __future__ import annotations

from fp_audit.types import Verdict

STYLES = {
    Verdict.IDENTICAL: "bold red",
    Verdict.DERIVED: "bold red",
    Verdict.SUSPECTED: "yellow",
    Verdict.COMMON_ANCESTOR: "yellow",
    Verdict.INDEPENDENT: "green",
    Verdict.INCONCLUSIVE: "magenta",
}
"""How verdicts look on a terminal."""


def printable(text: str) -> str:
    """Make a name or a message from a model harmless for a terminal: one line, no control characters, no end."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return shown if len(shown) <= 300 else shown[:297] + "..."


def p_text(p: float | None) -> str:
    """Write a p-value for a person."""
    if p is None:
        return "-"
    return "<1e-16" if p < 1e-16 else f"{p:.2g}"
