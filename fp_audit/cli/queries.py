"""``fp-audit queries``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fp_audit.cli import _options, _progress


@click.command("queries", short_help="Write a victim's query images, to be shown to a remote API.")
@click.argument("name")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="New folder for the PNG files."
)
@click.option(
    "--methods",
    metavar="a,b",
    callback=_options.names,
    help="Methods to ask. [default: all of NAME that can be asked]",
)
@click.option("--decoys", type=click.IntRange(min=0), default=0, metavar="N", help="Mix in N further images of --data.")
@click.option("--data", metavar="DATA", help=_options.DATA_HELP)
@_options.seed
def command(name: str, out: Path, **options: Any) -> None:  # noqa: ANN401
    """Write the images that a suspect must be shown to be compared with the victim NAME.

    Collect the answers of a remote API as README.txt in the folder says; `fp-audit scan answers.jsonl` judges them.
    """
    from fp_audit.querying import README, write_queries

    with _progress.shown() as progress:
        found = write_queries(name, out, progress=progress, **options)
    decoys = f" and {found.decoys} decoys" if found.decoys else ""
    click.echo(f"{found.images} images in {out}, {found.matching} of them to match classes{decoys}")
    for method, count in found.methods.items():
        click.echo(f"  {method}: {count} images")
    for method, reason in found.silent.items():
        click.echo(f"  {method} {reason}")
    click.echo(f"{out / README} says how to collect answers; then: fp-audit scan answers.jsonl --victim {name}")
