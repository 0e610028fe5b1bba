"""``fp-audit adapters``."""

from __future__ import annotations

import click

from fp_audit.cli import _plugins


@click.command("adapters", short_help="List the kinds of model that can be opened.")
def command() -> None:
    """List the kinds of model that can be opened."""
    _plugins.show("adapters", lambda adapter: [])
