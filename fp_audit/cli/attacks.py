"""``fp-audit attacks``."""

from __future__ import annotations

import click

from fp_audit.cli import _plugins


@click.command("attacks", short_help="List the attacks.")
def command() -> None:
    """List the attacks: source, access, cost, what they keep of the victim, options for --set."""
    _plugins.show(
        "attacks",
        lambda attack: [
            f"source: {attack.paper}",
            f"access: {attack.victim_access} of the victim" + (", true labels" if attack.needs_labels else ""),
            f"cost: {attack.cost}",
            f"keeps: {attack.keeps}",
            f"options: {_plugins.listed(attack.parameters())}",
        ],
    )
