"""Stress: attacks a registered victim, scans what came of it, and says which thefts its fingerprints survive."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fp_audit import audit, calibrate, plugins, victims
from fp_audit.attacking import OpenVictim, obtained, open_victim, slug, spelt_out, told_under
from fp_audit.attacks._base import Attack
from fp_audit.attacks._options import from_specs
from fp_audit.audit import Job, Outcome
from fp_audit.engine import Progress, pick_device, silent
from fp_audit.errors import FpAuditError, UsageError
from fp_audit.evasion import evasion
from fp_audit.methods import kind
from fp_audit.model import LoadOptions
from fp_audit.reports._stress import CAUGHT, Stress, Trial
from fp_audit.runners import local
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import Located, locate
from fp_audit.types import Access, Skipped
from fp_audit.victims import Victim

ALL, QUICK = "all", "quick"

QUICK_ATTACKS = (
    "fine-tune:epochs=2",
    "fine-tune:mode=rtal:epochs=2",
    "prune:rate=0.5:epochs=1",
    "quantise:mode=static",
    "prune:rate=0.3:epochs=1+quantise:mode=static",
    "csrp",
    "extract:epochs=10",
    "removalnet:iterations=100",
)
"""What ``quick`` stands for: the usual thefts, each short."""

FEW_REFERENCES, MANY_QUERIES = 12, 400
"""What an owner is advised to go up to."""


@dataclass(frozen=True)
class StressOptions:
    """How a victim is stressed; the fields are the options of ``fp-audit stress``."""

    attacks: tuple[str, ...] = (QUICK,)
    """``quick``, ``all`` or attacks as ``NAME:key=value``, chains joined by ``+``."""
    model: str | None = None
    """The victim's model, where it is no longer where it was registered."""
    depth: Access = Access.QUERIES
    alpha: float = 0.01
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: expected a number between 0 and 1")


def stress(
    name: str, data: str, out: Path, options: StressOptions | None = None, *, progress: Progress = silent
) -> Stress:
    """Attack the victim called ``name`` and scan every surrogate with all of its fingerprints.

    Surrogates stay in ``out/surrogates``: a second call, also after an interruption, makes only those that are missing.

    Args:
        name: of a registered victim.
        data: the thief's labelled images, see ``data.load``.
        out: folder for the surrogates; it is made if it does not exist.
        options: which attacks, how deep the scan goes, at which level it is judged.
        progress: told what is being done.

    Raises:
        VictimError: there is no such victim.
        UsageError: an attack or option makes no sense, the model has changed since it was registered, or ``out``
            holds surrogates of other images, seeds or models.
    """
    options = options or StressOptions()
    specs = chosen(options.attacks)
    (victim,) = victims.load_named((name,))
    progress("opening the victim", 0.0)
    target = _opened(victim, data, options)
    trials = _attacked(specs, target, out / "surrogates", options, progress)
    progress(f"scanning {len(trials)} surrogates", 0.0)
    trials = _scanned(trials, victim, out / "surrogates", options, progress)
    told = evasion(
        victim.fingerprints, target.data.pixels, seed=options.seed, device=target.opening.device, progress=progress
    )
    return Stress(
        name, tuple(victim.fingerprints), options.alpha, trials, told, conclusion(victim, trials, options.alpha)
    )


def chosen(named: Sequence[str]) -> dict[str, list[Attack]]:
    """Return what is named, ``quick`` and ``all`` spelt out: spec -> attacks, one after another.

    Raises:
        PluginError: there is no such attack.
        UsageError: an option is wrong, or nothing is named.
    """
    specs = spelt_out(named, {QUICK: QUICK_ATTACKS, ALL: plugins.names("attacks")})
    return {spec: from_specs(spec) for spec in dict.fromkeys(specs)}


def _opened(victim: Victim, data: str, options: StressOptions) -> OpenVictim:
    """Open the victim's model, which must be the one that was registered."""
    where = options.model or victim.source + (f"@{victim.revision}" if victim.revision else "")
    try:
        target = open_victim(where, data, seed=options.seed, device=options.device, preprocess=victim.preprocess)
    except FpAuditError as error:
        raise UsageError(f"{victim.name}: {error}. Name its model with --model if it has moved") from error
    if sorted(map(str, target.sha256.values())) != sorted(file["sha256"] for file in victim.facts["files"]):
        raise UsageError(f"{where} is not the model that was registered as {victim.name!r}: its files have changed")
    return target


def _attacked(
    specs: Mapping[str, Sequence[Attack]], target: OpenVictim, folder: Path, options: StressOptions, progress: Progress
) -> tuple[Trial, ...]:
    """Make the surrogates that are missing, one after another."""
    trials, spent = [], 0.0
    for i, (spec, attacks) in enumerate(specs.items()):
        left = f", about {_minutes(spent / i * (len(specs) - i))} left" if spent else ""
        title, start = f"attack {i + 1} of {len(specs)}{left}: {spec}", time.monotonic()
        where = folder / slug(spec)
        progress(title, i / len(specs))
        try:
            told = told_under(title, i, len(specs), progress)
            trials.append(Trial(spec, obtained(attacks, target, where, seed=options.seed, progress=told)))
        except FpAuditError as error:
            if where.exists():
                raise
            trials.append(Trial(spec, failure=str(error)))
        spent += time.monotonic() - start
    return tuple(trials)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _scanned(
    trials: Sequence[Trial], victim: Victim, folder: Path, options: StressOptions, progress: Progress
) -> tuple[Trial, ...]:
    """Scan all surrogates with all methods."""
    where = {str(folder / slug(trial.attack)): trial.attack for trial in trials if trial.provenance}
    located = list(locate(list(where), SourceOptions(offline=True)))
    names = {item.artifact.target: where[item.artifact.listing or ""] for item in located if isinstance(item, Located)}
    job = Job(
        {victims.folder(victim.name): victim},
        depth=options.depth,
        alpha=options.alpha,
        load=LoadOptions(device=pick_device(options.device)),
        exhaustive=True,
    )
    outcomes: dict[str, Outcome | Skipped] = {}
    for outcome in local.run(located, job):
        target = outcome.artifact.target if isinstance(outcome, Outcome) else outcome.target
        outcomes[names.get(target, where.get(target, target))] = outcome
        progress(f"scanning {len(where)} surrogates", len(outcomes) / len(where))
    return tuple(_judged(trial, outcomes.get(trial.attack), options.alpha) for trial in trials)


def _judged(trial: Trial, outcome: Outcome | Skipped | None, alpha: float) -> Trial:
    if outcome is None:
        return trial
    if isinstance(outcome, Skipped):
        return replace(trial, failure=f"its surrogate cannot be scanned: {outcome.reason}")
    (name,) = outcome.evidence
    asked = tuple(item for item in outcome.evidence[name] if item.access >= Access.QUERIES)
    (finding,) = audit.conclude([outcome], alpha)
    answers = audit.conclude([replace(outcome, evidence={name: asked})], alpha)[0] if asked else None
    return replace(trial, finding=finding, answers=answers)


def conclusion(victim: Victim, trials: Sequence[Trial], alpha: float) -> tuple[str, ...]:
    """Say in plain sentences which attacks go undetected, and what the owner can do."""
    useful = [trial for trial in trials if trial.useful and trial.finding]
    missed = [trial for trial in useful if trial.finding and trial.finding.verdict not in CAUGHT]
    hidden = [
        trial for trial in useful if trial not in missed and not (trial.answers and trial.answers.verdict in CAUGHT)
    ]
    said = [
        f"{len(useful) - len(missed)} of {len(useful)} surrogates that stay useful are detected at level {alpha:g}."
    ]
    if missed:
        said.append(f"Undetected: {', '.join(trial.attack for trial in missed)}.")
    if hidden:
        named = ", ".join(trial.attack for trial in hidden)
        said.append(f"Detected by files or weights only, not behind an API: {named}.")
    broken = [trial for trial in trials if trial.provenance and not trial.useful]
    if broken:
        named = ", ".join(f"{trial.attack} ({trial.accuracy:.0%})" for trial in broken)
        said.append(f"Broken rather than stolen, not counted: {named}.")
    failed = [trial.attack for trial in trials if trial.failure]
    if failed:
        said.append(f"Not tried to the end: {', '.join(failed)}.")
    return (*said, *(advice(victim) if missed or hidden else ()))


def advice(victim: Victim) -> list[str]:
    """Say what an owner can register otherwise so that more is detected."""
    said = []
    fewest = min((len(null.scores) for null in victim.nulls.values()), default=0)
    if fewest < calibrate.MIN_NULL:
        said.append("Answers do not vote yet: register again with --train-references 12.")
    elif fewest < FEW_REFERENCES:
        said.append(f"More references sharpen every p-value: there are {fewest}; register with 12 or more.")
    budgets = [
        fingerprint.options["queries"]
        for fingerprint in victim.fingerprints.values()
        if "queries" in fingerprint.options
    ]
    if budgets and max(budgets) < MANY_QUERIES:
        said.append(
            f"More queries tell finer differences: register with --queries {MANY_QUERIES} (now {max(budgets)})."
        )
    absent = [name for name in plugins.names("fingerprints") if name not in victim.fingerprints and name != "natural"]
    if absent:
        described = ", ".join(f"{name} (withstands {kind(name).withstands})" for name in absent)
        said.append(f"Methods that are not registered: {described}.")
    return said
