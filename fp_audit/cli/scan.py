"""``fp-audit scan``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp_audit import plugins
from fp_audit.cli import (
    EXIT_FOUND,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_NOTHING,
    _github,
    _options,
    _policy,
    _progress,
    show,
)
from fp_audit.errors import UsageError

if TYPE_CHECKING:
    from fp_audit.audit import Outcome
    from fp_audit.policy import Policy
    from fp_audit.reports._base import Format, Report
    from fp_audit.scanning import ScanOptions
    from fp_audit.sources._ranged import Tally
    from fp_audit.targets import Located
    from fp_audit.types import Access, Skipped, Verdict

BUNDLE = "bundle"
"""What ``--output`` calls the bundle of evidence, which is no report but holds one."""

DEPTHS = ("identity", "weights", "queries", "gradients")
FAIL_ON = ("identical", "derived", "suspected", "never")
ENGINES = ("local", "ray")


@click.command(
    "scan",
    cls=_policy.Configured,
    short_help="Scan models for copies and surrogates of registered victims.",
    context_settings={"auto_envvar_prefix": "FP_AUDIT"},
)
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
    "--format",
    "format_",
    default="table",
    show_default=True,
    metavar="FMT",
    envvar="FP_AUDIT_FORMAT",
    help=f"What to print: {', '.join(plugins.names('reports'))}.",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FMT=PATH",
    envvar="FP_AUDIT_OUTPUT",
    help="Also write a report to a file. bundle=PATH.zip writes all evidence, for `fp-audit verify-bundle`; it holds "
    "the query images: keep it confidential. Repeatable.",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time. [default: number of cores]")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Times to show each image to a model that answers at random.",
)
@click.option(
    "--timeout", default=600.0, show_default=True, metavar="S", help="Seconds that one model may take at each depth."
)
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Most bytes to download for one model.")
@_options.offline
@click.option("--dry-run", is_flag=True, help="List what would be scanned and downloaded; open nothing.")
@click.option(
    "--resume",
    is_flag=True,
    help="Take over what earlier scans, interrupted or not, found out about the same content with the same victims and "
    "options.",
)
@click.option("--stream", is_flag=True, help="Delete what was downloaded for a model when it has been examined.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="Who examines: this machine, or a Ray cluster (needs fp-audit[ray]).",
)
@click.option("--strict", is_flag=True, help="Exit with 4 if a target is inconclusive or skipped.")
@click.option(
    "--baseline",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Findings that are let pass: only others fail.",
)
@click.option("--update-baseline", is_flag=True, help="Write what is found to the baseline.")
@_options.base
@_options.cpu_device
@_options.preprocess
@click.pass_obj
def command(
    policy: Policy,
    /,
    targets: tuple[str, ...],
    victim: tuple[str, ...],
    fail_on: str,
    format_: str,
    outputs: tuple[str, ...],
    dry_run: bool,
    strict: bool,
    baseline: Path | None,
    update_baseline: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Scan TARGETs for surrogates of registered victims.

    A TARGET is a hub repository (org/model[@revision]), an account (org/), a model folder, a folder of models, an .onnx
    file, what a remote API answered (answers.jsonl, see `fp-audit queries`), or a list of targets (list.txt, or - for
    standard input).

    Options have defaults in fp-audit.toml, or in [tool.fp-audit] of pyproject.toml, and in FP_AUDIT_* variables; the
    file also lists findings to ignore.
    """
    from fp_audit.scanning import ScanOptions
    from fp_audit.types import Access

    _policy.check_place(policy, targets)
    written = [_destination(text) for text in outputs]
    printer = _format(format_)
    options["depth"] = Access[options["depth"].upper()]
    chosen = ScanOptions(**options, record=any(kind is None for kind, _ in written))
    known = _policy.baseline_of(baseline, update=update_baseline)
    if dry_run:
        sys.exit(_dry_run(targets, chosen))
    bare, outcomes = _scan(targets, victim, chosen)
    bare = replace(bare, serious=_serious(fail_on))
    report = _policy.settled(bare, outcomes, policy, known, update=baseline if update_baseline else None)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    try:
        for kind, path in written:
            if kind is None:
                _write_bundle(path, bare, outcomes)  # what is ignored is no evidence
            else:
                path.write_text(kind.render(report), encoding="utf-8")
    finally:  # a full disk does not cost the result
        text = printer.render(report, width=width, colour=terminal)
        show(_github.harmless(text) if _github.on() else text)
    if _github.on():
        _github.announce(report)
    sys.exit(_exit_code(report, strict=strict))


def _scan(targets: tuple[str, ...], victim: tuple[str, ...], options: ScanOptions) -> tuple[Report, list[Outcome]]:
    from fp_audit import victims
    from fp_audit.audit import Outcome
    from fp_audit.reports._base import Report
    from fp_audit.scanning import scan
    from fp_audit.types import Finding, Skipped

    outcomes: list[Outcome] = []
    with _progress.shown() as progress:
        tally = _progress.Tally(options.alpha)

        def seen(outcome: Outcome | Skipped, done: int, count: int) -> None:
            tally.add(outcome)
            progress("scanning", done / count, tally.note(count))
            if isinstance(outcome, Outcome):  # evidence is in the findings; answers are needed for a bundle only
                outcomes.append(outcome if options.record else replace(outcome, evidence={}, silent={}))

        try:
            results = list(scan(targets, victim, options, seen=seen))
        except KeyboardInterrupt:
            click.echo(f"fp-audit: interrupted after {len(outcomes)} models; add --resume to go on", err=True)
            sys.exit(EXIT_INTERRUPTED)
    findings = tuple(item for item in results if isinstance(item, Finding))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    names = tuple(dict.fromkeys(victim)) or tuple(victims.names())
    return Report(names, findings, skipped, options.alpha, options.depth), outcomes


def _write_bundle(path: Path, report: Report, outcomes: list[Outcome]) -> None:
    from fp_audit import bundle

    digest = bundle.write(path, report, outcomes, command=shlex.join(["fp-audit", *sys.argv[1:]]))
    click.echo(f"{path}: sha256 {digest}; keep it confidential, and have this digest time-stamped", err=True)


def _destination(text: str) -> tuple[Format | None, Path]:
    """Read FMT=PATH, before anything is computed; the bundle has no format."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--output {text}: expected FMT=PATH, for example json=report.json")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--output {text}: the folder {folder} does not exist")
    if Path(path).is_dir() or not os.access(Path(path) if Path(path).exists() else folder, os.W_OK):
        raise UsageError(f"--output {text}: cannot be written as a file")
    return None if name == BUNDLE else _format(name), Path(path)


def _format(name: str) -> Format:
    made: Format = plugins.load("reports", name)()
    return made


def _serious(fail_on: str) -> tuple[Verdict, ...]:
    from fp_audit.types import Verdict

    return tuple(map(Verdict, FAIL_ON[: FAIL_ON.index(fail_on) + 1])) if fail_on != "never" else ()


def _exit_code(report: Report, *, strict: bool) -> int:
    if any(report.fails(finding) for finding in report.findings):
        return EXIT_FOUND
    if not report.findings:
        return EXIT_NOTHING
    open_ = [finding for finding in report.findings if finding.verdict == "inconclusive" and finding.ignored is None]
    return EXIT_INCOMPLETE if strict and (open_ or report.skipped) else 0


def _dry_run(targets: tuple[str, ...], options: ScanOptions) -> int:
    from fp_audit.reports._text import printable
    from fp_audit.targets import locate
    from fp_audit.types import Skipped

    total = requests = asked = models = 0
    for item in locate(targets, options.sources):
        if isinstance(item, Skipped):
            click.echo(f"{printable(item.target)}  skipped: {printable(item.reason)}")
            continue
        first, whole = _needs(item, options.depth)
        total, requests, models = (
            total + first.bytes + whole.bytes,
            requests + first.requests + whole.requests,
            models + 1,
        )
        asked += item.source.spent(item.artifact).requests
        in_parts = (
            f"; first up to {first.bytes:,} in {first.requests}, to see if it is needed" if first.requests else ""
        )
        told = f"{whole.bytes:,} bytes to download in {whole.requests} requests{in_parts}"
        click.echo(f"{printable(item.artifact.target)}  {item.artifact.adapter}  {told}")
    listed = f" after {asked:,} requests to list them" if asked else ""
    click.echo(
        f"{models} models, at most {total:,} bytes to download in {requests:,} requests; nothing was opened{listed}"
    )
    return 0 if models else EXIT_NOTHING


def _needs(item: Located, depth: Access) -> tuple[Tally, Tally]:
    """Return what a scan may read of a model in parts, and what a download takes; of its hashes alone, nothing."""
    from fp_audit.sources._ranged import Tally
    from fp_audit.targets import only_hashes
    from fp_audit.types import Access

    if depth < Access.WEIGHTS or only_hashes(item.artifact):
        return Tally(), Tally()
    source, artifact = item.source, item.artifact
    return source.in_parts(artifact), Tally(source.missing_requests(artifact), source.missing_bytes(artifact))
