"""``fp-audit compare``."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from fp_audit.cli import EXIT_FOUND, EXIT_NOTHING, _options, _progress, show


@click.command("compare", short_help="Tell whether model B is derived from model A.")
@click.argument("a")
@click.argument("b")
@click.option("--data", metavar="DATA", help=_options.DATA_HELP + " Without it only files and weights are compared.")
@_options.references
@click.option(
    "--train-references",
    default=8,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="With --data: train N independents to judge answers against.",
)
@_options.base
@_options.cpu_device
@_options.preprocess
@_options.offline
def command(
    a: str,
    b: str,
    data: str | None,
    references: tuple[str, ...],
    train_references: int,
    **options: Any,  # noqa: ANN401
) -> None:
    """Tell whether B is derived from A. Nothing is registered; exit code 1 if it is derived or identical."""
    from fp_audit import plugins
    from fp_audit.reports._base import Report
    from fp_audit.scanning import ScanOptions, compare
    from fp_audit.types import Finding, Skipped, Verdict

    chosen = ScanOptions(**options)
    with _progress.shown() as progress:
        results = list(
            compare(a, b, data, chosen, references=references, train_references=train_references, progress=progress)
        )
    findings = tuple(item for item in results if isinstance(item, Finding))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    report = Report((a,), findings, skipped, chosen.alpha, chosen.depth)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    show(plugins.load("reports", "table")().render(report, width=width, colour=terminal))
    if any(finding.verdict in (Verdict.IDENTICAL, Verdict.DERIVED) for finding in findings):
        sys.exit(EXIT_FOUND)
    sys.exit(0 if findings else EXIT_NOTHING)
