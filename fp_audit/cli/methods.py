"""``fp-audit methods``."""

from __future__ import annotations

from inspect import signature
from typing import Any

import click

from fp_audit.cli import _plugins


@click.command("methods", short_help="List the fingerprint methods.")
def command() -> None:
    """List the fingerprint methods: source, access, budget, options, what they withstand and miss.

    Methods marked * are registered unless --methods says otherwise.
    """
    from fp_audit.fingerprints._representations import DISTANCES, REPRESENTATIONS
    from fp_audit.methods import query_sets

    _plugins.show("fingerprints", _describe, mark=lambda method: "*" if method.default else "")
    click.echo("\nCompositions: QUERIES+REPRESENTATION+DISTANCE, for example boundary+logits+cosine")
    queries = [f"{name} (of {kind.name})" for name, kind in query_sets().items()]
    click.echo(f"    queries: {', '.join(queries)}")
    click.echo(f"    representations: {', '.join(REPRESENTATIONS)}")
    fits = [f"{name} (of {', '.join(distance.fits)})" for name, distance in DISTANCES.items()]
    click.echo(f"    distances: {'; '.join(fits)}")
    click.echo("Options follow after colons: zest:images=64:masks=200")


def _describe(method: Any) -> list[str]:  # noqa: ANN401
    gain = f" (more with {method.suspect_gain})" if method.suspect_gain else ""
    data = "labelled images" if method.needs_data else "no data"
    budget = f"{method().budget():,} images" if method().budget() else "none: the model is not asked"
    return [
        f"source: {method.paper}",
        f"needs: {method.victim_access} of the victim and {data}; {method.suspect_access} of the suspect{gain}",
        f"budget: {budget}",
        f"options: {_plugins.listed(signature(method).parameters)}",
        f"withstands: {method.withstands}",
        f"misses: {method.misses}",
    ]
