"""``fp-audit verify-bundle``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_audit.cli import EXIT_FOUND

if TYPE_CHECKING:
    from fp_audit.verifying import Check, Commitment, Verification

MOST = 20
"""Differences of one finding that are shown."""


@click.command("verify-bundle", short_help="Recompute the verdicts of a bundle of evidence.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--commitment",
    "published",
    multiple=True,
    metavar="HEX",
    help="A commitment as it was published before the dispute: the bundle must hold its victim. Repeatable.",
)
def command(bundle: Path, published: tuple[str, ...]) -> None:
    """Recompute every verdict of BUNDLE, written by `fp-audit scan --output bundle=PATH`, without the suspects.

    Exit codes: 0 everything is confirmed, 1 something differs or could not be compared (the texts of another version),
    2 the file is unusable.
    """
    from fp_audit.verifying import verify

    found = verify(bundle, published)
    for check in found.checks:
        _show_check(check)
    for commitment in found.commitments:
        click.echo(_said_of(commitment, asked=bool(published)))
    for difference in found.differences:
        click.echo(_printable(f"DIFFERS: {difference}"))
    click.echo(_conclusion(found))
    sys.exit(0 if found.confirmed and found.texts else EXIT_FOUND)


def _show_check(check: Check) -> None:
    from fp_audit.reports._text import p_text

    finding = check.finding
    word = "DIFFERS" if check.differences else "same"
    about = f"{finding.target} against {finding.victim}: {finding.verdict}, p = {p_text(finding.p_value)}"
    click.echo(_printable(f"{word}  {about}"))
    click.echo(_printable(f"    computed anew: {', '.join(check.computed) or 'no score'}"))
    if check.taken:
        click.echo(_printable(f"    scores taken as recorded: {', '.join(check.taken)}"))
    for difference in check.differences[:MOST]:
        click.echo(_printable(f"    {difference}"))
    if len(check.differences) > MOST:
        click.echo(f"    and {len(check.differences) - MOST} more")


def _said_of(commitment: Commitment, *, asked: bool) -> str:
    if commitment.value is None:
        return f"{commitment.victim}: no commitment; nothing shows that it was registered before the dispute"
    how = "as published" if commitment.published else "compare it with the published one (--commitment)"
    if asked and not commitment.published:
        how = "none of those given"
    return _printable(f"{commitment.victim}: commitment {commitment.value} of {commitment.registered}: {how}")


def _conclusion(found: Verification) -> str:
    from fp_audit import __version__

    if not found.confirmed:
        return "NOT CONFIRMED: see what differs"
    taken = f"; scores of {', '.join(found.believed)} were taken as recorded" if found.believed else ""
    at = f" at level {found.alpha:g}{taken}"
    if found.texts:
        return _printable(f"confirmed: all that the bundle says follows from what it holds,{at}")
    return _printable(
        f"verdicts confirmed by fp-audit {__version__},{at}. NOT COMPARED: summary.html and reasons, written by "
        f"{found.version}; they may say anything. Install that version to compare them"
    )


def _printable(text: str) -> str:
    from fp_audit.reports._text import printable

    return printable(text, 1000)
