"""Who is scored in an evaluation: the models of a zoo that was built here, or a folder that somebody else filled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from fp_audit.errors import UsageError
from fp_audit.evaluating import APART, Model
from fp_audit.networks import Network
from fp_audit.reports._stress import Trial
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import Located, locate, locate_one
from fp_audit.types import Skipped
from fp_audit.zoo import Surrogate, Zoo

TRUTH = "truth.json"
"""Says what the models of a folder are: ``{name: {"kind": ...}}``, names as a scan of the folder lists them."""

INDEPENDENT = "independent"
"""How the kinds of innocent models begin."""

Source: TypeAlias = Located | Network
"""Where a model is: in files, to be opened in the sandbox, or in memory."""


@dataclass(frozen=True)
class Cast:
    """The models to be scored, and what they are."""

    owner: str
    """The owner's images, as DATA."""
    models: dict[str, Model]
    sources: dict[str, Source]
    accuracy: float | None
    """The victim's on test images; None if there are none."""
    failures: dict[str, str] = field(default_factory=dict)
    """Model that is left out -> why."""


def built(made: Zoo) -> Cast:
    """Take the models of a zoo that was built here."""
    models = {item.name: _stolen(item) for item in made.surrogates} | {
        item.name: Model(item.name, "independent", INDEPENDENT, item.training, item.accuracy, item.agreement)
        for item in made.independents
    }
    sources: dict[str, Source] = {
        item.name: _named(locate_one(str(item.folder), SourceOptions(offline=True)), item.name)
        for item in made.surrogates
    }
    sources |= {item.name: item.network for item in made.independents}
    return Cast(str(made.owner), models, sources, made.victim_accuracy, dict(made.failures))


def _named(located: Located, name: str) -> Located:
    return replace(located, artifact=replace(located.artifact, target=name))


def _stolen(made: Surrogate) -> Model:
    """Describe a surrogate that was made here."""
    trial, told = Trial(made.name, made.provenance), made.provenance
    agreement = None if made.kind in APART else told["fidelity"]["agreement"]
    cost = told["cost"]
    return Model(
        made.name,
        "surrogate",
        made.kind,
        accuracy=trial.accuracy,
        agreement=agreement,
        useful=trial.useful,
        queries=cost["queries"],
        seconds=cost["seconds"],
    )


def foreign(folder: Path, data: str) -> Cast:
    """Find the models that somebody else made, and what they are.

    Raises:
        UsageError: there is no ``truth.json``, or it does not tell surrogates and independents of this folder.
    """
    truth = _truth(folder / TRUTH)
    found = list(locate([str(folder)], SourceOptions(offline=True)))
    failures = {item.target: item.reason for item in found if isinstance(item, Skipped)}
    sources = {item.artifact.target: item for item in found if isinstance(item, Located)}
    for name in truth:
        if name not in sources and name not in failures:
            known = ", ".join(sorted(sources)[:5]) or "none"
            raise UsageError(f"{folder / TRUTH}: there is no model {name!r} in {folder}; found: {known}")
    failures |= dict.fromkeys(sources.keys() - truth.keys(), f"{TRUTH} does not name it")
    models = {name: _described(name, truth[name]) for name in sources if name in truth}
    for role in ("independent", "surrogate"):
        if role not in [model.role for model in models.values()]:
            raise UsageError(f"{folder / TRUTH}: names no {role} that can be opened; expected at least one")
    return Cast(data, models, {name: sources[name] for name in models}, None, failures)


def _truth(path: Path) -> dict[str, dict[str, str]]:
    """Read ``{name: {"kind": ..., "training": ...}}``.

    Raises:
        UsageError: it is missing or something else.
    """
    expected = 'expected {"NAME": {"kind": "..."}}, NAME as `fp-audit scan` lists the model'
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): {"kind": str(about["kind"]), "training": str(about.get("training", ""))}
            for name, about in truth.items()
        }
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {expected}") from None
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({type(error).__name__}: {error}); {expected}") from None


def _described(name: str, truth: Mapping[str, str]) -> Model:
    innocent = truth["kind"].startswith(INDEPENDENT)
    return Model(name, "independent" if innocent else "surrogate", truth["kind"], truth["training"])


def measured(model: Model, reached: float | None, least: float) -> Model:
    """Describe a model whose accuracy nobody knows by that on the victim's probes; ``least`` makes it useful."""
    if model.accuracy is not None:
        return model
    useful = model.role == "independent" or model.kind in APART or (reached is not None and reached >= least)
    return replace(model, accuracy=reached, useful=useful)
