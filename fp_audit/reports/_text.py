"""How verdicts, p-values and names are written for a person."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from fp_audit.types import Finding, Verdict

if TYPE_CHECKING:
    from jinja2 import Template

STYLES = {
    Verdict.IDENTICAL: "bold red",
    Verdict.DERIVED: "bold red",
    Verdict.SUSPECTED: "yellow",
    Verdict.COMMON_ANCESTOR: "yellow",
    Verdict.INDEPENDENT: "green",
    Verdict.INCONCLUSIVE: "magenta",
}
"""How verdicts look on a terminal."""


def template(name: str, finalize: Callable[[Any], Any] | None = None, **filters: Callable[..., Any]) -> Template:
    """Open a page of this folder as a jinja2 template that escapes all it is given.

    Args:
        name: of the file.
        finalize: seen by every value before it is shown.
        filters: further filters, by name.
    """
    from jinja2 import Environment

    text = resources.files("fp_audit.reports").joinpath(name).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=finalize)
    environment.filters |= filters
    return environment.from_string(text)


def escaped(text: str) -> str:
    """Make a name or a message from a model harmless: one line, no character that a terminal, XML or UTF-8 minds."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def printable(text: str, limit: int = 300) -> str:
    """Make a name or a message from a model harmless for a person: one line, no control characters, an end."""
    shown = escaped(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def why(finding: Finding) -> str:
    """Say what a verdict rests on, what the card says instead, and why it does not count if it does not."""
    said = grounds(finding)
    return said if finding.ignored is None else f"(ignored: {finding.ignored}) {said}"


def grounds(finding: Finding) -> str:
    """Say what a verdict rests on, and what the model's card says instead."""
    return finding.reason if finding.declared is None else f"{finding.reason}; it {finding.declared}"


def p_text(p: float | None) -> str:
    """Write a p-value for a person."""
    if p is None:
        return "-"
    return "<1e-16" if p < 1e-16 else f"{p:.2g}"
