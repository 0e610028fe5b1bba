"""``fp-audit victims``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fp_audit.errors import VictimError


@click.group("victims", short_help="List, show, remove, export or import registered victims.")
def command() -> None:
    """List, show, remove, export or import registered victims."""


@command.command("list")
def list_() -> None:
    """List the registered victims."""
    from fp_audit import victims

    for name in victims.names():
        try:
            about = victims.describe(name)
        except VictimError as error:
            click.echo(f"{name}  {error}")
            continue
        methods = ", ".join(about["fingerprints"])
        click.echo(f"{name}  {about['source']}  {about['adapter']}  {methods}  {about['facts']['registered']}")
    if not victims.names():
        click.echo(f"no victim is registered under {victims.home()}", err=True)


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is stored, except arrays.")
def show(name: str, as_json: bool) -> None:
    """Show what is registered for NAME, and what each method can tell."""
    from fp_audit import victims

    if as_json:
        click.echo(json.dumps(victims.describe(name), indent=1))
        return
    from fp_audit.ability import abilities
    from fp_audit.cli.register import show_abilities

    victim = victims.load(victims.folder(name))
    click.echo(f"{victim.name}: {victim.source} ({victim.adapter}), registered {victim.facts['registered']}")
    show_abilities(abilities(victim), victim.nulls)
    click.echo(f"commitment {victims.describe(name).get('commitment', 'none: registered by an older version')}")


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Delete the fingerprints of NAME."""
    from fp_audit import victims

    victims.remove(name)
    click.echo(f"removed {name}")


@command.command("export")
@click.argument("name")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Archive to write."
)
def export(name: str, out: Path) -> None:
    """Write the victim NAME to one archive, with which others can scan without its owner's model and images.

    It holds the query images and the victim's weight matrices: keep it confidential.
    """
    from fp_audit import exporting, victims

    digest = exporting.write(name, out)
    click.echo(f"{out}: sha256 {digest}, commitment {victims.describe(name)['commitment']}")
    click.echo("it holds the query images and the victim's weights: keep it confidential", err=True)


@command.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Overwrite a registered victim of the same name.")
def import_(file: Path, replace: bool) -> None:
    """Register the victim in FILE, an archive of `fp-audit victims export`, after a check of every digest.

    It holds the query images and the victim's weight matrices: keep it confidential.
    """
    from fp_audit import exporting, victims

    victim = exporting.read(file, replace=replace)
    click.echo(f"{victim.name}: registered {victim.facts['registered']}")
    click.echo(f"commitment {victims.describe(victim.name)['commitment']}: compare it with what its owner published")
