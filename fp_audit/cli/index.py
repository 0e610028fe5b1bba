"""``fp-audit index``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_audit.cli import EXIT_NOTHING, _options, _progress
from fp_audit.errors import UsageError

if TYPE_CHECKING:
    from fp_audit.index import Index
    from fp_audit.indexing import Neighbours
    from fp_audit.types import Skipped

NO_EVIDENCE = "A sketch is a pre-filter, not evidence: run `fp-audit scan` on what is similar."

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("index", short_help="Sketch many models, and find those that are like a victim.")
def command() -> None:
    """Keep two kilobytes of each of many models, and find in seconds those that should be scanned.

    A sketch is a pre-filter, not evidence: only `fp-audit scan` judges. Models that were trained on a victim's answers
    share no weights with it and are not found this way.
    """


@command.command("build")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--out", type=_FILE, metavar="FILE", help="The index. [default: index.sqlite3 in FP_AUDIT_HOME]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time. [default: number of cores]")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="Seconds that one model may take.")
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Most bytes to download for one model.")
@_options.offline
def build(
    targets: tuple[str, ...], out: Path | None, jobs: int | None, timeout: float, max_bytes: int | None, offline: bool
) -> None:
    """Sketch the models that the targets name and add them to the index; what it knows is not opened again."""
    from fp_audit import index, indexing
    from fp_audit.sources._base import SourceOptions
    from fp_audit.types import Skipped

    path = out or index.default_path()
    added = known = skipped = 0
    options = SourceOptions(offline, max_bytes)
    with index.Index(path, create=True) as opened, _progress.resumable(path) as progress:

        def seen(done: int, count: int) -> None:
            progress(f"sketching {count} models", done / count)

        for item in indexing.build(targets, opened, options, jobs=jobs, timeout=timeout, seen=seen):
            if isinstance(item, Skipped):
                skipped += 1
                _skipped(item)
            else:
                added, known = added + item[1], known + (not item[1])
        click.echo(f"{added} models added, {known} known, {skipped} skipped; {len(opened)} models in {path}")
    sys.exit(0 if added or known else EXIT_NOTHING)


@command.command("search")
@click.argument("targets", nargs=-1, metavar="MODEL...")
@click.option("--victims", "all_victims", is_flag=True, help="Look for what is like any registered victim.")
@click.option("--victim", multiple=True, metavar="NAME", help="Look for what is like this victim. Repeatable.")
@click.option("--index", "path", type=_FILE, metavar="FILE", help="[default: index.sqlite3 in FP_AUDIT_HOME]")
@click.option("--count", default=10, show_default=True, type=click.IntRange(min=1), help="Nearest models to show.")
@click.option("--hits", is_flag=True, help="Print nothing but similar models, one a line, for `fp-audit scan -`.")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="Seconds that one MODEL may take.")
@_options.offline
def search(
    targets: tuple[str, ...],
    all_victims: bool,
    victim: tuple[str, ...],
    path: Path | None,
    count: int,
    hits: bool,
    timeout: float,
    offline: bool,
) -> None:
    """Show the models of the index that are most like MODEL, or like registered victims.

    A sketch is a pre-filter, not evidence: the exit code is 0 whatever is found (3: nothing could be looked for).
    """
    if bool(targets) == (all_victims or bool(victim)):
        raise UsageError("index search: expected either MODEL... or --victims (--victim NAME)")
    from fp_audit import index, indexing
    from fp_audit.sources._base import SourceOptions

    with index.Index(path or index.default_path()) as opened:
        count = len(opened) if hits else count
        if targets:
            results = indexing.search(targets, opened, SourceOptions(offline), count=count, timeout=timeout)
        else:
            results = indexing.search_victims(victim, opened, count=count)
        found = _hits(results) if hits else _show(results, opened)
    if not hits:
        click.echo(NO_EVIDENCE)
    sys.exit(0 if found else EXIT_NOTHING)


def _show(results: Iterable[Neighbours | Skipped], index: Index) -> bool:
    """Print the neighbours of each model; tell whether any model was looked for."""
    from fp_audit.reports._text import printable
    from fp_audit.types import Skipped

    looked = False
    for item in results:
        if isinstance(item, Skipped):
            _skipped(item)
            continue
        looked = True
        click.echo(f"{printable(item.name)}: nearest of {len(index)} models")
        for near in item.near:
            said = "similar: scan it" if near.similar else "like any other"
            name = printable(near.place.name)
            click.echo(f"  {near.similarity:5.2f}  {near.shared:4.0%} of shapes  {said:16}  {name}")
    return looked


def _hits(results: Iterable[Neighbours | Skipped]) -> bool:
    """Print the addresses of all similar models once; tell whether any model was looked for."""
    from fp_audit.reports._text import escaped
    from fp_audit.types import Skipped

    looked, said = False, set()
    for item in results:
        if isinstance(item, Skipped):
            _skipped(item)
            continue
        looked = True
        for near in item.near:
            address = near.place.address
            if near.similar and address not in said:
                said.add(address)
                click.echo(escaped(address))
    return looked


def _skipped(item: Skipped) -> None:
    from fp_audit.reports._text import printable

    click.echo(f"{printable(item.target)}  skipped: {printable(item.reason)}", err=True)
