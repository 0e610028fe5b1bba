"""``fp-audit attack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fp_audit.cli import _options, _progress


@click.command("attack", short_help="Make a surrogate of a model, as a thief would.")
@click.argument("name")
@click.argument("model")
@click.option("--data", required=True, metavar="DATA", help=_options.DATA_HELP)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the surrogate; must not exist.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the attack. Repeatable; see `fp-audit attacks`.",
)
@click.option(
    "--chain",
    metavar="NAME,...",
    help="Attacks that follow NAME, each on the surrogate of the one before: fine-tune:epochs=2,quantise.",
)
@_options.seed
@_options.device
@_options.preprocess
def command(
    name: str,
    model: str,
    data: str,
    out: Path,
    settings: tuple[str, ...],
    chain: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Run the attack NAME on MODEL and save the surrogate as an ordinary model folder with a provenance.json."""
    from fp_audit import plugins
    from fp_audit.attacking import attack
    from fp_audit.attacks._options import options_of

    chosen = options_of(plugins.load("attacks", name), settings)
    with _progress.shown() as progress:
        after = chain.split(",") if chain else ()
        done = attack(name, model, data, out, options=chosen, chain=after, progress=progress, **options)
    fidelity = done.fidelity
    click.echo(f"{out}: {done.surrogate['adapter']} model made by {done.attack}")
    click.echo(
        f"accuracy {fidelity.accuracy:.1%} (victim {fidelity.victim_accuracy:.1%}), "
        f"agrees with the victim on {fidelity.agreement:.1%} of {fidelity.images} held-out images; "
        f"{done.cost.queries:,} queries, {done.cost.steps:,} steps, {done.cost.seconds:.0f} s"
    )
