"""The pictures of an evaluation, as SVG: one panel for each output that is shown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fp_audit.evaluating import COMBINED, EVERY, Cell, Innocent, Model, Row, Setting, counted, roc, scores, strength
from fp_audit.reports._text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found: TypeAlias = Mapping[Setting, Mapping[str, Row]]
"""Setting -> model -> row."""

STRONGEST = 16.0
"""-log10 p beyond which points are drawn at the edge."""

GUIDE = "#888888"

SCALE = np.geomspace(0.001, 0.5)
"""Levels along which the promise is drawn: observed as claimed."""


def rocs(models: Sequence[Model], found: Found, methods: Sequence[str], budget: int, outputs: Sequence[str]) -> str:
    """Draw ROC curves of every method, all kinds of surrogates together."""
    innocent, stolen = _innocent(models), counted(models).get(EVERY, [])
    with _panels(outputs, 4.2) as (figure, panels):
        for output, axes in panels.items():
            for method in _present(methods, found, budget, output):
                rows = found[Setting(method, budget, output)]
                false, true = roc(scores(stolen, rows), scores(innocent, rows))
                axes.plot(false, true, drawstyle="steps-post", **_line(method, methods))
            axes.plot([0, 1], [0, 1], color=GUIDE, linestyle=":", linewidth=1)
            axes.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(-0.02, 1), ylim=(0, 1.02))
        _legend(panels)
        return _svg(figure)


def strengths(models: Sequence[Model], found: Found, budget: int, outputs: Sequence[str], alpha: float) -> str:
    """Draw -log10 p of every model, by kind, independents by training set."""
    groups: dict[str, list[str]] = {}
    for model in sorted(models, key=lambda model: model.role):
        if model.useful:
            kind = f"{model.kind} ({model.training})" if model.training else model.kind
            groups.setdefault(printable(kind, 40), []).append(model.name)
    with _panels(outputs, 1 + 0.25 * len(groups)) as (figure, panels):
        for output, axes in panels.items():
            rows = found[Setting(COMBINED, budget, output)]
            for place, names in enumerate(groups.values()):
                values = [_strength(rows[name]) for name in names]
                axes.plot(values, _spread(place, len(values)), "o", markersize=3, color=_colour(place))
            axes.axvline(strength(alpha), color=GUIDE, linestyle="--", linewidth=1)
            axes.set_yticks(range(len(groups)), list(groups))
            axes.invert_yaxis()
            axes.set_xlabel("-log10 p (at most 16); dashed: detected")
        return _svg(figure)


def distributions(
    models: Sequence[Model], found: Found, methods: Sequence[str], budget: int, outputs: Sequence[str]
) -> str:
    """Draw the scores of independents and surrogates for every method, each on its own range."""
    innocent, stolen = _innocent(models), counted(models).get(EVERY, [])
    with _panels(outputs, 1 + 0.4 * len(methods)) as (figure, panels):
        for output, axes in panels.items():
            shown = _present(methods[1:], found, budget, output)
            for place, method in enumerate(shown):
                rows = found[Setting(method, budget, output)]
                values = np.array([row.score for row in rows.values()])
                low, span = values.min(), max(float(np.ptp(values)), 1e-12)
                for names, offset, colour in ((innocent, -0.2, "C0"), (stolen, 0.2, "C3")):
                    drawn = [(rows[name].score - low) / span for name in names if name in rows]
                    axes.plot(drawn, _spread(place + offset, len(drawn), 0.12), "o", markersize=3, color=colour)
            axes.set_yticks(range(len(shown)), shown)
            axes.invert_yaxis()
            axes.set_xlabel("score, least to largest; blue: independents, red: surrogates")
        return _svg(figure)


def calibrations(innocents: Sequence[Innocent], methods: Sequence[str], budget: int, outputs: Sequence[str]) -> str:
    """Draw the observed share of independents with p at or below each claimed level."""
    with _panels(outputs, 4.2) as (figure, panels):
        for output, axes in panels.items():
            for method in methods:
                wanted = EVERY, Setting(method, budget, output)
                told = [item for item in innocents if (item.training, item.setting) == wanted]
                levels = [item.level for item in told]
                axes.plot(levels, [item.observed.value for item in told], **_line(method, methods))
                if method == COMBINED:
                    low, high = [item.observed.low for item in told], [item.observed.high for item in told]
                    axes.fill_between(levels, low, high, color="black", alpha=0.1, linewidth=0)
            axes.plot(SCALE, SCALE, color=GUIDE, linestyle=":", linewidth=1)
            axes.set(xlabel="claimed level", ylabel="observed share of independents", xscale="log", ylim=(0, 0.6))
            _ticks(axes, (0.001, 0.01, 0.05, 0.1, 0.5))
        _legend(panels)
        return _svg(figure)


def accuracies(models: Sequence[Model], found: Found, budget: int, outputs: Sequence[str], alpha: float) -> str:
    """Draw accuracy against -log10 p of all methods together."""
    kinds = list(dict.fromkeys(model.kind for model in models))
    with _panels(outputs, 4.2) as (figure, panels):
        for output, axes in panels.items():
            rows = found[Setting(COMBINED, budget, output)]
            for place, kind in enumerate(kinds):
                members = [model for model in models if model.kind == kind and model.accuracy is not None]
                points = [(model.accuracy, _strength(rows[model.name])) for model in members]
                marker = "os^Dv"[place // 10 % 5] if members and members[0].role == "surrogate" else "x"
                axes.plot(
                    *zip(*points, strict=True), marker, color=_colour(place), label=printable(kind, 40)
                ) if points else None
            axes.axhline(strength(alpha), color=GUIDE, linestyle="--", linewidth=1)
            axes.set(xlabel="accuracy", ylabel="-log10 p (at most 16); dashed: detected above")
        _legend(panels)
        return _svg(figure)


def budgets(cells: Sequence[Cell], methods: Sequence[str], outputs: Sequence[str]) -> str:
    """Draw TPR at 5 % FPR against the budget for every method."""
    with _panels(outputs, 4.2) as (figure, panels):
        for output, axes in panels.items():
            for method in methods:
                told = [
                    (cell.setting.budget, cell.tpr5.value)
                    for cell in cells
                    if (cell.kind, cell.setting.method, cell.setting.output) == (EVERY, method, output)
                ]
                if told:
                    axes.plot(*zip(*sorted(told), strict=True), marker=".", **_line(method, methods))
            axes.set(xlabel="queries a method", ylabel="TPR at 5 % FPR", xscale="log", ylim=(-0.02, 1.02))
            _ticks(axes, sorted({cell.setting.budget for cell in cells}))
        _legend(panels)
        return _svg(figure)


def _innocent(models: Sequence[Model]) -> list[str]:
    return [model.name for model in models if model.role == "independent"]


def _present(methods: Sequence[str], found: Found, budget: int, output: str) -> list[str]:
    return [method for method in methods if Setting(method, budget, output) in found]


def _strength(row: Row) -> float:
    return min(STRONGEST, strength(1.0 if row.p_value is None else row.p_value))


def _spread(place: float, count: int, reach: float = 0.25) -> list[float]:
    """Place points of one row a little above and below it, so that equal ones are seen."""
    return [place + reach * ((i * 0.618) % 1 - 0.5) for i in range(count)]


def _colour(place: int) -> str:
    return f"C{place % 10}"


def _line(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """Return the look of a method's line: black and thick for all together."""
    if method == COMBINED:
        return {"color": "black", "linewidth": 2.5, "label": method}
    return {"color": _colour(list(methods).index(method)), "linewidth": 1.2, "label": method}


def _ticks(axes: Axes, places: Sequence[float]) -> None:
    """Label a logarithmic axis in plain numbers."""
    axes.minorticks_off()
    axes.set_xticks(places, [f"{place:g}" for place in places])


def _legend(panels: Mapping[str, Axes]) -> None:
    list(panels.values())[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


@contextmanager
def _panels(outputs: Sequence[str], height: float) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """Give a figure with a panel for each output, drawn the same way every time; names are never read as formulas."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"svg.hashsalt": "fp-audit", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context({**look, "text.parse_math": False}):
        figure = Figure(figsize=(12, height), layout="constrained")
        panels = figure.subplots(1, len(outputs), squeeze=False)[0]
        for output, axes in zip(outputs, panels, strict=True):
            axes.set_title(output, fontsize=10)
        yield figure, dict(zip(outputs, panels, strict=True))


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = stream.getvalue()
    return drawn[drawn.index("<svg") :]
