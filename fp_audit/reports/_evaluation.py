"""What ``fp-audit evaluate`` reports: how often verdicts are right, as a table, JSON, parquet and a page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp_audit import __version__
from fp_audit.evaluating import APART, COMBINED, EVERY, Cell, Gain, Innocent, Model, Rate, Row, Setting, by_setting
from fp_audit.reports import _plots
from fp_audit.reports._text import p_text, printable, template

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1

USUAL_BUDGET = 100
"""What is shown first, where it was evaluated."""

FIRST = ("logits", "top-1")
"""Outputs that are shown first: all that a model says, and the least."""

FEW = 100
"""Independents below which 1 % of them is none."""


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation."""

    victim: str
    accuracy: float | None
    """The victim's on test images; None for models made elsewhere."""
    alpha: float
    options: Mapping[str, Any]
    models: tuple[Model, ...]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    innocents: tuple[Innocent, ...]
    gains: tuple[Gain, ...]
    failures: Mapping[str, str]
    """Model that is left out -> why."""
    registering: Mapping[int, float]
    """Budget -> seconds to register the victim with all methods."""
    asking: Mapping[str, float]
    """Model -> seconds to ask it the queries of all budgets."""

    @property
    def methods(self) -> list[str]:
        """All methods that scored something, the combined one first."""
        found = dict.fromkeys(row.setting.method for row in self.rows)
        return [COMBINED, *(method for method in found if method != COMBINED)]

    @property
    def budgets(self) -> list[int]:
        """In ascending order."""
        return sorted(self.registering)

    @property
    def budget(self) -> int:
        """The one that is shown first."""
        return USUAL_BUDGET if USUAL_BUDGET in self.registering else self.budgets[-1]

    @property
    def outputs(self) -> list[str]:
        """What models show, most first."""
        return list(dict.fromkeys(row.setting.output for row in self.rows))

    @property
    def kinds(self) -> list[str]:
        """Of surrogates, all together first."""
        return list(dict.fromkeys(cell.kind for cell in self.cells))

    @property
    def independents(self) -> list[Model]:
        """The innocent models."""
        return [model for model in self.models if model.role == "independent"]

    @cached_property
    def found(self) -> Mapping[Setting, Mapping[str, Row]]:
        """Rows by setting and model."""
        return by_setting(self.rows)

    @cached_property
    def by_kind(self) -> Mapping[tuple[str, Setting], Cell]:
        """Cells by kind and setting."""
        return {(cell.kind, cell.setting): cell for cell in self.cells}

    def cell(self, kind: str, method: str, budget: int, output: str) -> Cell | None:
        """Return a cell; None where the method says nothing."""
        return self.by_kind.get((kind, Setting(method, budget, output)))

    def wrongly(self, output: str, training: str = EVERY, budget: int | None = None) -> Innocent | None:
        """Return how many independents are called ``derived``."""
        setting = Setting(COMBINED, budget or self.budget, output)
        wanted = (training, setting, self.alpha)
        return next((item for item in self.innocents if (item.training, item.setting, item.level) == wanted), None)


def save(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.json``, ``.parquet`` and ``.html`` into a folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(as_json(evaluation), encoding="utf-8")
    (folder / "evaluation.parquet").write_bytes(as_parquet(evaluation))
    (folder / "evaluation.html").write_text(as_html(evaluation), encoding="utf-8")


def as_json(evaluation: Evaluation) -> str:
    """Render everything but the single scores, numbers unrounded."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fp-audit", "version": __version__},
        "victim": evaluation.victim,
        "victim_accuracy": evaluation.accuracy,
        "alpha": evaluation.alpha,
        "options": dict(evaluation.options),
        "conclusion": conclusion(evaluation),
        "models": [
            {**asdict(model), "asking_seconds": evaluation.asking.get(model.name)} for model in evaluation.models
        ],
        "kinds": [{"kind": cell.kind, **cell.setting._asdict(), **_without_setting(cell)} for cell in evaluation.cells],
        "independents": [{**item.setting._asdict(), **_without_setting(item)} for item in evaluation.innocents],
        "references": [asdict(gain) for gain in evaluation.gains],
        "failures": dict(evaluation.failures),
        "registering_seconds": {str(budget): seconds for budget, seconds in evaluation.registering.items()},
    }
    return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def _without_setting(item: Cell | Innocent) -> dict[str, Any]:
    return {key: value for key, value in asdict(item).items() if key not in ("setting", "kind")}


def as_parquet(evaluation: Evaluation) -> bytes:
    """Render every single score as a parquet file, one row a model and setting."""
    import pyarrow
    from pyarrow import parquet

    models = {model.name: model for model in evaluation.models}
    rows = [
        {
            "model": row.model,
            "role": models[row.model].role,
            "kind": models[row.model].kind,
            "training": models[row.model].training,
            "useful": models[row.model].useful,
            **row.setting._asdict(),
            "score": row.score,
            "p_value": row.p_value,
            "queries": row.queries,
            "accuracy": models[row.model].accuracy,
            "agreement": models[row.model].agreement,
        }
        for row in evaluation.rows
    ]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def conclusion(evaluation: Evaluation) -> list[str]:
    """Say in plain sentences how well all methods together do, and what was left out."""
    budget, independents = evaluation.budget, len(evaluation.independents)
    said = []
    for output in FIRST:
        cell = evaluation.cell(EVERY, COMBINED, budget, output)
        wrong = evaluation.wrongly(output)
        if cell and cell.detected and wrong:
            said.append(
                f"{output}, {budget} queries a method, {cell.surrogates} surrogates and {independents} independents: "
                f"AUC {between(cell.auc)}, TPR {between(cell.tpr5)} at 5 % FPR and {between(cell.tpr1)} at 1 %; "
                f"{between(cell.detected)} of the surrogates are detected at level {evaluation.alpha:g}, "
                f"and {between(wrong.observed)} of the independents are called derived."
            )
    said += _references(evaluation)
    if independents < FEW:
        said.append(
            f"With {independents} independents TPR at 1 % FPR is TPR above the largest score of an independent."
        )
    broken = [model for model in evaluation.models if not model.useful]
    if broken:
        named = ", ".join(f"{printable(model.name)} ({accuracy_text(model)})" for model in broken)
        said.append(f"Broken rather than stolen, not counted: {named}.")
    apart = [printable(model.name) for model in evaluation.models if model.kind in APART and model.useful]
    if apart:
        said.append(f"Another task, counted apart: {', '.join(apart)}.")
    if evaluation.failures:
        named = "; ".join(f"{printable(name)}: {printable(why)}" for name, why in evaluation.failures.items())
        said.append(f"Left out: {named}.")
    return said


def _references(evaluation: Evaluation) -> list[str]:
    """Say what more references buy, where their number was varied."""
    said = []
    for output in FIRST:
        found = [gain for gain in evaluation.gains if gain.output == output and gain.detected and gain.accused]
        if len(found) > 1:
            rows = "; ".join(
                f"{gain.references}: {short(gain.detected.value)} and {short(gain.accused.value)}"
                for gain in found
                if gain.detected and gain.accused
            )
            said.append(
                f"{output}, surrogates detected and independents called derived, by number of references: {rows}."
            )
    return said


def between(rate: Rate) -> str:
    """Write a rate with its interval."""
    return f"{short(rate.value)} ({short(rate.low)} to {short(rate.high)})"


def short(value: float) -> str:
    """Write a number in [0, 1] with two digits."""
    return f"{value:.2f}".removeprefix("0")


def accuracy_text(model: Model) -> str:
    """Write a model's accuracy."""
    return "-" if model.accuracy is None else f"{model.accuracy:.1%}"


def as_table(evaluation: Evaluation, *, width: int | None = None, colour: bool = False) -> str:
    """Render kinds against methods at the usual budget, and the conclusion, for a terminal.

    Args:
        evaluation: what came of it.
        width: columns to use; None for as many as needed.
        colour: emit colour codes.
    """
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, width=width or 1000, force_terminal=colour, no_color=not colour, highlight=False)
    for output in (output for output in FIRST if output in evaluation.outputs):
        title = f"{output}, {evaluation.budget} queries a method: AUC, TPR at 5 % FPR, TPR at 1 % FPR, share with p <= "
        console.print(Text(f"{title}{evaluation.alpha:g}", "bold"))
        console.print(_tabled(evaluation, output))
        console.print()
    for sentence in conclusion(evaluation):
        console.print(Text(sentence))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def _tabled(evaluation: Evaluation, output: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("KIND", overflow="fold", min_width=12)
    table.add_column("N", justify="right")
    methods = [method for method in evaluation.methods if evaluation.cell(EVERY, method, evaluation.budget, output)]
    for method in methods:
        table.add_column(printable(method), overflow="fold")
    for kind in evaluation.kinds:
        cells = [evaluation.cell(kind, method, evaluation.budget, output) for method in methods]
        count = next(str(cell.surrogates) for cell in cells if cell)
        table.add_row(printable(kind), count, *(four(cell) for cell in cells))
    return table


def four(cell: Cell | None) -> str:
    """Write AUC, both TPR and the share that is detected."""
    if cell is None:
        return "-"
    rates = (cell.auc, cell.tpr5, cell.tpr1, cell.detected)
    return " ".join("-" if rate is None else short(rate.value) for rate in rates)


def as_html(evaluation: Evaluation) -> str:
    """Render a self-contained page."""
    outputs = [output for output in FIRST if output in evaluation.outputs]
    return template("evaluation.html.j2").render(
        evaluation=evaluation,
        conclusion=conclusion(evaluation),
        first=outputs,
        plots=_drawn(evaluation, outputs),
        combined=COMBINED,
        queries=_queries(evaluation),
        seconds=_mean(list(evaluation.asking.values())),
        p_of=lambda model, output: _p_of(evaluation, model, output),
        accuracy_text=accuracy_text,
        between=between,
        short=short,
        p_text=p_text,
        printable=printable,
        version=__version__,
    )


def _drawn(evaluation: Evaluation, outputs: Sequence[str]) -> dict[str, str]:
    """Draw the pictures of the page: title -> SVG."""
    budget, methods, found = evaluation.budget, evaluation.methods, evaluation.found
    models, alpha = evaluation.models, evaluation.alpha
    return {
        f"ROC curves, all kinds, {budget} queries a method": _plots.rocs(models, found, methods, budget, outputs),
        "Strength of the evidence, all methods together": _plots.strengths(models, found, budget, outputs, alpha),
        "Scores of each method": _plots.distributions(models, found, methods, budget, outputs),
        "Claimed and observed rates of false accusations": _plots.calibrations(
            evaluation.innocents, methods, budget, outputs
        ),
        "Accuracy that is kept against detection": _plots.accuracies(models, found, budget, outputs, alpha),
        "What queries buy: TPR at 5 % FPR, all kinds": _plots.budgets(evaluation.cells, methods, outputs),
    }


def _queries(evaluation: Evaluation) -> dict[str, list[int | None]]:
    """Return how many images each method shows to a suspect that shows everything, by budget; the most over models."""
    return {
        method: [_most(evaluation.found.get(Setting(method, budget, "logits"), {})) for budget in evaluation.budgets]
        for method in evaluation.methods
    }


def _most(rows: Mapping[str, Row]) -> int | None:
    return max((row.queries for row in rows.values()), default=None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _p_of(evaluation: Evaluation, model: Model, output: str) -> float | None:
    row = evaluation.found.get(Setting(COMBINED, evaluation.budget, output), {}).get(model.name)
    return row.p_value if row else None
