"""``fp-audit scan``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp_audit.cli import EXIT_FOUND, EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_NOTHING, _options, _progress, show
from fp_audit.errors import UsageError

if TYPE_CHECKING:
    from fp_audit.audit import Outcome
    from fp_audit.reports._base import Format, Report
    from fp_audit.scanning import ScanOptions
    from fp_audit.types import Skipped

DEPTHS = ("identity", "weights", "queries", "gradients")
FAIL_ON = ("identical", "derived", "suspected", "never")


@click.command("scan", short_help="Scan models for copies and surrogates of registered victims.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--victim", multiple=True, metavar="NAME", help="Compare with this victim only. Repeatable. [default: all]"
)
@click.option(
    "--depth", type=click.Choice(DEPTHS), default="queries", show_default=True, help="How far down the access ladder."
)
@click.option(
    "--alpha", default=0.01, show_default=True, metavar="P", help="False discoveries to accept among `derived`."
)
@click.option(
    "--fail-on",
    type=click.Choice(FAIL_ON),
    default="derived",
    show_default=True,
    help="Exit with 1 from this verdict on.",
)
@click.option(
    "--format", "format_", default="table", show_default=True, metavar="FMT", help="What to print: table or json."
)
@click.option(
    "--output", "outputs", multiple=True, metavar="FMT=PATH", help="Also write a report to a file. Repeatable."
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time. [default: number of cores]")
@click.option(
    "--timeout", default=600.0, show_default=True, metavar="S", help="Seconds that one model may take at each depth."
)
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Most bytes to download for one model.")
@_options.offline
@click.option("--dry-run", is_flag=True, help="List what would be scanned and downloaded; open nothing.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted scan of the same targets.")
@click.option("--strict", is_flag=True, help="Exit with 4 if a target is inconclusive or skipped.")
@_options.cpu_device
@_options.preprocess
def command(
    targets: tuple[str, ...],
    victim: tuple[str, ...],
    fail_on: str,
    format_: str,
    outputs: tuple[str, ...],
    dry_run: bool,
    strict: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Scan TARGETs for surrogates of registered victims.

    A TARGET is a hub repository (org/model[@revision]), an account (org/), a model folder, a folder of models, an .onnx
    file, or a list of targets (list.txt, or - for standard input).
    """
    from fp_audit.scanning import ScanOptions
    from fp_audit.types import Access

    written = [_destination(text) for text in outputs]
    printer = _format(format_)
    options["depth"] = Access[options["depth"].upper()]
    chosen = ScanOptions(**options)
    if dry_run:
        sys.exit(_dry_run(targets, chosen))
    report = _scan(targets, victim, chosen)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    try:
        for kind, path in written:
            path.write_text(kind.render(report), encoding="utf-8")
    finally:  # a full disk does not cost the result
        show(printer.render(report, width=width, colour=terminal))
    sys.exit(_exit_code(report, fail_on, strict=strict))


def _scan(targets: tuple[str, ...], victim: tuple[str, ...], options: ScanOptions) -> Report:
    from fp_audit.reports._base import Report
    from fp_audit.scanning import scan
    from fp_audit.types import Finding, Skipped

    with _progress.shown() as progress:
        total = 0

        def seen(outcome: Outcome | Skipped, done: int, count: int) -> None:
            nonlocal total
            total = done
            progress(f"scanning {count} models", done / count)

        try:
            results = list(scan(targets, victim, options, seen=seen))
        except KeyboardInterrupt:
            click.echo(f"fp-audit: interrupted after {total} models; add --resume to go on", err=True)
            sys.exit(EXIT_INTERRUPTED)
    findings = tuple(item for item in results if isinstance(item, Finding))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    names = tuple(dict.fromkeys(finding.victim for finding in findings)) or victim
    return Report(names, findings, skipped, options.alpha, options.depth)


def _destination(text: str) -> tuple[Format, Path]:
    """Read FMT=PATH, before anything is computed."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--output {text}: expected FMT=PATH, for example json=report.json")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--output {text}: the folder {folder} does not exist")
    if Path(path).is_dir() or not os.access(Path(path) if Path(path).exists() else folder, os.W_OK):
        raise UsageError(f"--output {text}: cannot be written as a file")
    return _format(name), Path(path)


def _format(name: str) -> Format:
    from fp_audit import plugins

    made: Format = plugins.load("reports", name)()
    return made


def _exit_code(report: Report, fail_on: str, *, strict: bool) -> int:
    counts = report.counts()
    serious = FAIL_ON[: FAIL_ON.index(fail_on) + 1] if fail_on != "never" else ()
    if any(counts[verdict] for verdict in serious):
        return EXIT_FOUND
    if not report.findings:
        return EXIT_NOTHING
    if strict and (counts["inconclusive"] or counts["skipped"]):
        return EXIT_INCOMPLETE
    return 0


def _dry_run(targets: tuple[str, ...], options: ScanOptions) -> int:
    from fp_audit.reports._text import printable
    from fp_audit.targets import Located, locate

    total = models = 0
    for item in locate(targets, options.sources):
        if isinstance(item, Located):
            missing = item.source.missing_bytes(item.artifact)
            total, models = total + missing, models + 1
            click.echo(f"{printable(item.artifact.target)}  {item.artifact.adapter}  {missing:,} bytes to download")
        else:
            click.echo(f"{printable(item.target)}  skipped: {printable(item.reason)}")
    click.echo(f"{models} models, at most {total:,} bytes to download; nothing was opened")
    return 0 if models else EXIT_NOTHING
