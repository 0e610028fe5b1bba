"""``fp-audit evaluate``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from fp_audit.cli import _options, _progress, show


def _budgets(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in value.split(",") if text.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected numbers, such as 10,100", ctx, param) from None


@click.command("evaluate", short_help="Measure how often verdicts on known models are right.")
@click.argument("model")
@click.option("--data", required=True, metavar="DATA", help=_options.DATA_HELP)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the zoo, evaluation.json, evaluation.parquet and evaluation.html.",
)
@click.option("--thief", metavar="DATA", help="The thief's images. [default: half of --data]")
@click.option(
    "--attacks",
    default="all",
    show_default=True,
    metavar="quick|all|a,b",
    callback=_options.names,
    help="Attacks as `fp-audit attacks` lists them, with options: prune:rate=0.7; chains: prune+quantise; "
    "with several seeds: extract@3.",
)
@click.option("--independents", default=24, show_default=True, help="Innocent models to train and score.")
@click.option(
    "--trained-on",
    default="same,half,none",
    show_default=True,
    metavar="a,b",
    callback=_options.names,
    help="How much of the victim's training images the innocent models have seen; they are divided evenly.",
)
@click.option("--references", default=12, show_default=True, help="Innocent models that the victim is registered with.")
@click.option(
    "--methods",
    default="",
    metavar="a,b",
    callback=_options.names,
    help="Methods as `fp-audit methods` lists them. [default: those that register uses and that ask the model]",
)
@click.option(
    "--budgets",
    default="10,25,50,100,400",
    show_default=True,
    metavar="N,N",
    callback=_budgets,
    help="Queries a method.",
)
@click.option("--alpha", default=0.01, show_default=True, type=float, help="Level at which a model is called derived.")
@click.option(
    "--zoo",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Score the models of this folder, which somebody else made, instead; its truth.json says what they are: "
    '{"NAME": {"kind": "..."}}, with kinds of innocent models beginning with "independent".',
)
@_options.siblings
@_options.seed
@_options.device
def command(model: str, data: str, out: Path, **options: Any) -> None:  # noqa: ANN401
    """Measure how often verdicts about MODEL are right, on stolen and innocent models whose history is known.

    DATA are labelled images. Half of them are the owner's, who should have trained MODEL on them; the thief attacks it
    with the other half, unless --thief names his own. Everything is kept in --out: after an interruption the same
    command goes on.
    """
    from fp_audit.reports import _evaluation
    from fp_audit.scoring import EvaluationOptions, evaluate

    chosen = EvaluationOptions(**options)
    with _progress.resumable(out) as progress:
        found = evaluate(model, data, out, chosen, progress=progress)
    terminal = sys.stdout.isatty()
    try:
        _evaluation.save(found, out)
    finally:  # a full disk does not cost the result
        width = shutil.get_terminal_size().columns if terminal else None
        show(_evaluation.as_table(found, width=width, colour=terminal))
    click.echo(f"{out / 'evaluation.html'}, .json and .parquet hold the details.", err=True)
