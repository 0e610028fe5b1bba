"""What ``fp-audit stress`` reports: attacks against methods, as a table, as JSON and as a page."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fp_audit import __version__
from fp_audit.calibrate import SUSPECTED
from fp_audit.reports._text import STYLES, p_text, printable, template
from fp_audit.types import Evidence, Finding, Verdict

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1

USEFUL = 0.1
"""A surrogate that has lost more of the victim's accuracy than this is broken, not stolen."""

CAUGHT = (Verdict.IDENTICAL, Verdict.DERIVED)


@dataclass(frozen=True)
class Trial:
    """One attack and what was made of its surrogate."""

    attack: str
    """As it was named: ``NAME:key=value``, a chain joined by ``+``."""
    provenance: Mapping[str, Any] | None = None
    """Content of the surrogate's ``provenance.json``; None if the attack was not possible."""
    finding: Finding | None = None
    """As a scan of the surrogate alone concludes."""
    answers: Finding | None = None
    """The same from its answers alone, as if it were hidden behind an API; None where nothing was asked."""
    failure: str | None = None
    """Why there is no surrogate, or no finding."""

    @property
    def accuracy(self) -> float:
        """Share of held-out images that the surrogate gets right, of its own task if it has another; 0 without one."""
        if self.provenance is None:
            return 0.0
        own = self.provenance["surrogate"]["facts"].get("task_accuracy")
        return float(self.provenance["fidelity"]["accuracy"] if own is None else own)

    @property
    def useful(self) -> bool:
        """Whether the surrogate is worth stealing: within ``USEFUL`` of the victim's accuracy."""
        return self.provenance is not None and self.accuracy >= self.victim_accuracy - USEFUL

    @property
    def victim_accuracy(self) -> float:
        """The victim's, on the same images."""
        return float(self.provenance["fidelity"]["victim_accuracy"]) if self.provenance else 0.0


@dataclass(frozen=True)
class Stress:
    """What came of all attacks."""

    victim: str
    methods: tuple[str, ...]
    alpha: float
    trials: tuple[Trial, ...]
    evasion: Mapping[str, float]
    """By method: AUC with which a detector tells its queries from ordinary images."""
    conclusion: tuple[str, ...]
    """Plain sentences: what goes undetected, and what the owner can do."""


def as_json(stress: Stress) -> str:
    """Render everything, numbers unrounded."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fp-audit", "version": __version__},
        "victim": stress.victim,
        "alpha": stress.alpha,
        "methods": list(stress.methods),
        "trials": [_trial(trial) for trial in stress.trials],
        "evasion": dict(stress.evasion),
        "conclusion": list(stress.conclusion),
    }
    return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def _trial(trial: Trial) -> dict[str, Any]:
    answers = trial.answers
    return {
        "attack": trial.attack,
        "useful": trial.useful,
        "failure": trial.failure,
        "provenance": trial.provenance,
        "finding": asdict(trial.finding) if trial.finding else None,
        "answers_only": {"verdict": answers.verdict, "p_value": answers.p_value} if answers else None,
    }


def as_table(stress: Stress, *, width: int | None = None, colour: bool = False) -> str:
    """Render two tables for a terminal, verdicts and the scores of all methods, then the conclusion."""
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, width=width or 120, force_terminal=colour, no_color=not colour, highlight=False)
    headings = ("VERDICT", "p", "p, ANSWERS ONLY", "ACCURACY", "AGREES", "QUERIES", "SECONDS")
    console.print(_tabled(headings, [(trial, _verdict(trial)) for trial in stress.trials]))
    for trial in stress.trials:
        if trial.failure:
            console.print(Text(f"{printable(trial.attack)}: {printable(trial.failure)}", "magenta"))
    console.print(Text(f"\nScores; those that detect the surrogate alone (p <= {stress.alpha:g}) with a star:"))
    console.print(
        _tabled(stress.methods, [(trial, _scores(trial, stress)) for trial in stress.trials if trial.finding])
    )
    if stress.evasion:
        told = ", ".join(f"{method} {area:.2f}" for method, area in stress.evasion.items())
        console.print(Text(f"\nA detector tells queries from ordinary images with AUC (.5 cannot, 1 always): {told}."))
    console.print(Text("\n" + " ".join(stress.conclusion)))
    return stream.getvalue()


def _tabled(headings: Sequence[str], rows: Sequence[tuple[Trial, list[tuple[str, str]]]]) -> Table:
    """Make a table with an attack in each row."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("ATTACK", overflow="fold", min_width=16)
    for heading in headings:
        left = heading == "VERDICT"
        table.add_column(printable(heading), justify="left" if left else "right", no_wrap=left, overflow="fold")
    for trial, cells in rows:
        name = Text(printable(trial.attack), "" if trial.useful else "dim")
        table.add_row(name, *(Text(text, style) for text, style in cells))
    return table


def _verdict(trial: Trial) -> list[tuple[str, str]]:
    """Return text and style of the cells that say what became of an attack."""
    finding, answers, made = trial.finding, trial.answers, trial.provenance
    cells = [("-", "")] * 2
    if finding:
        cells = [(finding.verdict, STYLES[finding.verdict]), (p_text(finding.p_value), "")]
    cells += [(p_text(answers.p_value), STYLES[answers.verdict]) if answers else ("-", "")]
    if made is None:
        return [*cells, *[("-", "")] * 4]
    fidelity, cost = made["fidelity"], made["cost"]
    numbers = (
        f"{trial.accuracy:.1%}",
        f"{fidelity['agreement']:.1%}",
        f"{cost['queries']:,}",
        f"{cost['seconds']:.0f}",
    )
    return [*cells, *((number, "") for number in numbers)]


def _scores(trial: Trial, stress: Stress) -> list[tuple[str, str]]:
    """Return text and style of an attack's score under each method."""
    found = evidence_of(trial)
    cells = []
    for method in stress.methods:
        item = found.get(method)
        alone = item is not None and item.p_value is not None and item.p_value <= stress.alpha
        text = f"{item.score:.2f}" if item else "-"
        cells.append((text + ("*" if alone else " "), "bold red" if alone else ""))
    return cells


def evidence_of(trial: Trial) -> dict[str, Evidence]:
    """Return the evidence of a trial by method."""
    return {item.method: item for item in trial.finding.evidence} if trial.finding else {}


def as_html(stress: Stress) -> str:
    """Render a self-contained page: conclusion, heat map, fidelity against detection, failures."""
    rows = [
        {"trial": trial, "cells": [_cell(evidence_of(trial).get(method), stress.alpha) for method in stress.methods]}
        for trial in stress.trials
    ]
    return template("stress.html.j2").render(
        stress=stress, rows=rows, plot=_plot(stress), p_text=p_text, printable=printable, version=__version__
    )


def _cell(item: Evidence | None, alpha: float) -> dict[str, str]:
    """Return text, class and tooltip of one cell of the heat map."""
    if item is None:
        return {"text": "-", "kind": "none", "title": "not compared"}
    p = item.p_value
    kind = "none" if p is None else "strong" if p <= alpha else "weak" if p <= SUSPECTED else "nothing"
    return {
        "text": f"{item.score:.2f}",
        "kind": kind,
        "title": f"p = {p_text(p)}; the surrogate {printable(item.statement)}",
    }


AROUND = ((5, 3), (5, -10), (-11, 3), (-11, -10))
"""Where the numbers of points stand, in turn, so that those of neighbours stay apart: offsets in points."""


def _plot(stress: Stress) -> str:
    """Draw fidelity (accuracy) against detection (-log10 p), as SVG; numbers are those of the rows of the heat map."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "fp-audit", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for i, trial in enumerate(stress.trials):
            for finding, marker, colour in ((trial.finding, "o", "#1f4e79"), (trial.answers, "x", "#c0504d")):
                if finding is not None and finding.p_value is not None:
                    point = trial.accuracy, _strength(finding.p_value)
                    axes.plot(*point, marker, color=colour)
                    axes.annotate(str(i + 1), point, xytext=AROUND[i % 4], textcoords="offset points", color=colour)
        axes.axhline(_strength(stress.alpha), color="#888888", linestyle="--", linewidth=1)
        axes.set_xlabel("accuracy of the surrogate")
        axes.set_ylabel("detection: -log10 p (at most 16)")
        axes.set_title("dots: all that a scan sees; crosses: answers only; dashed: detected above", fontsize=9)
        axes.margins(x=0.1, y=0.1)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = stream.getvalue()
    return drawn[drawn.index("<svg") :]


def _strength(p: float) -> float:
    return min(16.0, -math.log10(max(p, 1e-300)))
