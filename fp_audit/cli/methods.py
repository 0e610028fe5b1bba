"""``fp-audit methods``."""

from __future__ import annotations

import click

from fp_audit.cli import _plugins


@click.command("methods", short_help="List the fingerprint methods.")
def command() -> None:
    """List the fingerprint methods: source, access, options, what they withstand and miss."""
    _plugins.show(
        "fingerprints",
        lambda method: [
            f"source: {method.paper}",
            f"access: {method.victim_access} of the victim, {method.suspect_access} of the suspect",
            f"options: {_plugins.options_of(method)}",
            f"withstands: {method.withstands}",
            f"misses: {method.misses}",
        ],
    )
