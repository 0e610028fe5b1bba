"""``fp-audit register``."""

from __future__ import annotations

from typing import Any

import click

from fp_audit.cli import _options, _progress


@click.command("register", short_help="Register a model that you own.")
@click.argument("model")
@click.option("--name", required=True, help="What the victim is called from now on.")
@click.option("--data", metavar="DATA", help=_options.DATA_HELP)
@click.option(
    "--methods",
    metavar="a,b|all",
    callback=_options.names,
    help="Methods to register, as `fp-audit methods` lists them, with options: negatives,zest:masks=200. "
    "[default: those marked * there]",
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    help="Query images of each method that has this option. [default: the method's]",
)
@_options.references
@click.option(
    "--train-references",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Train N small independent models on the data.",
)
@_options.siblings
@_options.seed
@_options.device
@_options.preprocess
@_options.offline
def command(**options: Any) -> None:  # noqa: ANN401
    """Register MODEL (a hub id, a model folder or an .onnx file) as a victim.

    Its fingerprints are generated and judged against independent models: some that you name (--references), some
    that are trained here on your data (--train-references). Without independents only the weights can be judged.
    Interrupted, the same command goes on where it stopped.
    """
    from fp_audit import victims
    from fp_audit.ability import abilities
    from fp_audit.registration import Plan, register

    with _progress.shown() as progress:
        victim = register(Plan(**options), progress=progress)
    accuracy = f", right on {victim.probes.accuracy:.0%} of the probe images" if victim.probes else ""
    click.echo(f"registered {victim.name}: {victim.source} ({victim.adapter}{accuracy})")
    if victim.preprocess is not None:
        click.echo(f"images are preprocessed as: {victim.preprocess.describe()}")
    show_abilities(abilities(victim), victim.nulls)
    click.echo(f"commitment {victims.describe(victim.name)['commitment']}")
    click.echo(
        "Publish this number or have it time-stamped now, before any dispute: "
        "it shows later that the evidence was not made up."
    )


def show_abilities(rows: Any, nulls: Any) -> None:  # noqa: ANN401
    """Print what each method can tell."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("METHOD", "QUERIES", "INDEPENDENTS", "WHAT IT CAN AND CANNOT TELL"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "METHOD")
    for row in rows:
        count = len(nulls[row.method].scores) if row.method in nulls else 0
        table.add_row(row.method, str(row.queries or "-"), str(count or "-"), row.statement)
    Console(highlight=False).print(table)
