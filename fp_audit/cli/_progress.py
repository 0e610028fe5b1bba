"""Progress on stderr: a bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_audit.cli import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from fp_audit.engine import Progress

QUIET_SECONDS = 10.0
"""Off a terminal, the same activity is reported no more often than this."""


@contextmanager
def shown() -> Iterator[Progress]:
    """Give a ``Progress`` that shows what is being done."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _Lines()


@contextmanager
def resumable(out: Path) -> Iterator[Progress]:
    """Do the same for work that is kept in ``out``; after an interruption say that it is, and exit."""
    try:
        with shown() as progress:
            yield progress
    except KeyboardInterrupt:
        click.echo(f"fp-audit: interrupted; the same command goes on with what is in {out}", err=True)
        sys.exit(EXIT_INTERRUPTED)


class _Lines:
    """One line when the activity changes, then one now and then."""

    def __init__(self) -> None:
        self._what, self._time = "", 0.0

    def __call__(self, what: str, done: float) -> None:
        now = time.monotonic()
        if what != self._what or now - self._time >= QUIET_SECONDS:
            self._what, self._time = what, now
            print(f"{what} {done:.0%}" if done else what, file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def progress(what: str, done: float) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)  # type: ignore[arg-type]
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield progress
