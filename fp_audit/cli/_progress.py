"""Progress on stderr: a bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from fp_audit.cli import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from fp_audit.audit import Outcome
    from fp_audit.types import Skipped

QUIET_SECONDS = 10.0
"""Off a terminal, the same activity is reported no more often than this."""


class Shown(Protocol):
    """An ``engine.Progress`` that also shows a note on how things stand."""

    def __call__(self, what: str, done: float, note: str = "") -> None:
        """Show the activity, the share of it that is done, and the note."""


class Tally:
    """Counts models by what they look like so far: uncorrected p-values, ended by a question mark.

    Args:
        alpha: p up to which a model looks derived.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._counts: Counter[str] = Counter()
        self._start, self._taken_over = time.monotonic(), 0

    def add(self, outcome: Outcome | Skipped) -> None:
        """Count one more."""
        from fp_audit.audit import Outcome, p_values

        if not isinstance(outcome, Outcome):
            self._counts["skipped"] += 1
            return
        self._taken_over += outcome.cost.examined is not None
        voting = [p for p in p_values(outcome).values() if p is not None]
        if voting and min(voting) <= self._alpha:
            self._counts["derived?"] += 1
        else:
            self._counts["independent?" if voting and not outcome.failure else "inconclusive"] += 1

    def note(self, count: int) -> str:
        """Say how things stand, and how long it will take.

        Args:
            count: models listed so far.
        """
        done = self._counts.total()
        examined = done - self._taken_over
        parts = [f"{self._counts[name]} {name}" for name in _TALLIED if self._counts[name]]
        if self._taken_over:
            parts.append(f"{self._taken_over} from earlier scans")
        left = (time.monotonic() - self._start) / examined * (count - done) if examined else 0.0
        ahead = f", {timedelta(seconds=round(left))} left" if left >= 1 else ""
        return f"{done} of {count} models: {', '.join(parts)}{ahead}"


_TALLIED = ("derived?", "independent?", "inconclusive", "skipped")


@contextmanager
def shown() -> Iterator[Shown]:
    """Give a ``Progress`` that shows what is being done."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _Lines()


@contextmanager
def resumable(out: Path) -> Iterator[Shown]:
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

    def __call__(self, what: str, done: float, note: str = "") -> None:
        now = time.monotonic()
        if what != self._what or now - self._time >= QUIET_SECONDS:
            self._what, self._time = what, now
            share = f" {done:.0%}" if done else ""
            print(f"{what}{share}" + (f"; {note}" if note else ""), file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Shown]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    what, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (what, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def progress(what: str, done: float, note: str = "") -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)  # type: ignore[arg-type]
                tasks[what] = bar.add_task(what, total=1.0, note=note)
            bar.update(tasks[what], completed=done, note=note)  # type: ignore[arg-type]

        yield progress
