"""``fp-audit stress``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from fp_audit.cli import EXIT_NOTHING, _options, _progress, show


@click.command("stress", short_help="Attack a registered victim and see which thefts are detected.")
@click.argument("name")
@click.option("--data", required=True, metavar="DATA", help=_options.DATA_HELP)
@click.option(
    "--attacks",
    default="quick",
    show_default=True,
    metavar="quick|all|a,b",
    callback=_options.names,
    help="Attacks as `fp-audit attacks` lists them, with options: prune:rate=0.7,extract; chains: prune+quantise.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the surrogates, stress.json and stress.html. [default: stress-NAME]",
)
@click.option("--model", metavar="MODEL", help="The victim's model, if it is no longer where it was registered.")
@click.option(
    "--depth",
    default="queries",
    show_default=True,
    type=click.Choice(["weights", "queries", "gradients"]),
    help="How deep surrogates are examined.",
)
@click.option("--alpha", default=0.01, show_default=True, type=float, help="Level at which a surrogate is detected.")
@_options.seed
@_options.device
def command(name: str, data: str, out: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Attack the registered victim NAME, scan every surrogate, and say which thefts its fingerprints survive.

    DATA are the thief's images. Surrogates are kept in --out: after an interruption the same command goes on.
    """
    from fp_audit.reports import _stress
    from fp_audit.stressing import StressOptions, stress
    from fp_audit.types import Access

    options["depth"] = Access[options["depth"].upper()]
    chosen = StressOptions(**options)
    out = out or Path(f"stress-{name}")
    with _progress.resumable(out) as progress:
        found = stress(name, data, out, chosen, progress=progress)
    terminal = sys.stdout.isatty()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "stress.json").write_text(_stress.as_json(found), encoding="utf-8")
        (out / "stress.html").write_text(_stress.as_html(found), encoding="utf-8")
    finally:  # a full disk does not cost the result
        width = shutil.get_terminal_size().columns if terminal else None
        show(_stress.as_table(found, width=width, colour=terminal))
    click.echo(f"{out / 'stress.html'} and {out / 'stress.json'} hold the details.", err=True)
    sys.exit(0 if any(trial.finding for trial in found.trials) else EXIT_NOTHING)
