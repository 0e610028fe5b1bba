"""Evaluate: a zoo scored with every method, at several budgets and outputs, and what the scores say of the verdicts.

Each model is asked once, surrogates in the sandbox, and what it says is written down in ``out/answers``. All outputs
are then judged from these answers: as they are, as probabilities, cut to the largest three and to the label alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fp_audit import calibrate, judging, methods, plugins, registration, victims
from fp_audit.answers import Answers
from fp_audit.audit import Job, Outcome
from fp_audit.casting import Source, built, foreign, measured
from fp_audit.comparison import compare
from fp_audit.engine import Progress, pick_device, silent
from fp_audit.errors import UsageError
from fp_audit.evaluating import LEVELS, cells, innocents
from fp_audit.judging import Told
from fp_audit.methods import rung
from fp_audit.model import LoadOptions
from fp_audit.networks import Network
from fp_audit.registration import Plan
from fp_audit.reports._evaluation import USUAL_BUDGET, Evaluation
from fp_audit.reports._stress import USEFUL
from fp_audit.runners import local
from fp_audit.sandbox import Limits
from fp_audit.subject import Subject, file_digests
from fp_audit.targets import Located
from fp_audit.types import Access, Fingerprint, Skipped
from fp_audit.victims import Victim
from fp_audit.zoo import ALL, TRAININGS, Zoo, ZooOptions, build_zoo

BUDGETS = (10, 25, 50, 100, 400)

PATIENT = Limits(wall_seconds=1800, cpu_seconds=3600)
"""For models that are asked all budgets in one go."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated; the fields are the options of ``fp-audit evaluate``."""

    attacks: tuple[str, ...] = (ALL,)
    """See ``zoo.ZooOptions``."""
    independents: int = 24
    references: int = 12
    """Independents that the victim is registered with; none of them is scored."""
    methods: tuple[str, ...] = ()
    """As ``register`` takes them; empty for those that it uses by default and that ask the model."""
    budgets: tuple[int, ...] = BUDGETS
    alpha: float = 0.01
    seed: int = 0
    device: str = "auto"
    thief: str | None = None
    """See ``zoo.ZooOptions``."""
    trained_on: tuple[str, ...] = TRAININGS
    """See ``zoo.ZooOptions``."""
    siblings: tuple[str, ...] = ()
    """See ``registration.Plan``."""
    zoo: Path | None = None
    """Folder of models that somebody else made, with a ``truth.json``; None: they are made here."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: expected a number between 0 and 1")
        if self.references < calibrate.MIN_NULL:
            raise UsageError(f"--references {self.references}: expected at least {calibrate.MIN_NULL}")
        if not self.budgets or min(self.budgets) < 1:
            raise UsageError("--budgets: expected numbers of queries, such as 10,100")


def evaluate(
    model: str, data: str, out: Path, options: EvaluationOptions | None = None, *, progress: Progress = silent
) -> Evaluation:
    """Build a zoo around a model, register the model at every budget, and score the zoo with every method.

    Everything is kept in ``out``: a second call, also after an interruption, makes and asks only what is missing.

    Args:
        model: the victim: hub id, model folder or ``.onnx`` file.
        data: labelled images; see ``zoo`` for how owner and thief share them. With ``options.zoo`` all are the owner's.
        out: folder; it is made if it does not exist.
        options: which models, methods, budgets.
        progress: told what is being done.

    Raises:
        UsageError: an option, the data or ``truth.json`` make no sense, or ``out`` holds the zoo of something else.
        TargetError: the model cannot be opened.
    """
    options = options or EvaluationOptions()
    specs = _asking(options.methods, siblings=bool(options.siblings))
    cast = foreign(options.zoo, data) if options.zoo else built(_zoo(model, data, out, options, progress))
    registered = _registered(model, cast.owner, out / "victims", specs, options, progress)
    told, failures = _asked(cast.sources, registered, out / "answers", options, progress)
    rows, reached = judging.every(told, registered.values(), progress)
    least = min(victim.probes.accuracy for victim in registered.values() if victim.probes) - USEFUL
    models = [measured(found, reached[name], least) for name, found in cast.models.items() if name in told]
    progress("computing statistics", 0.0)
    return Evaluation(
        victim=model,
        accuracy=cast.accuracy,
        alpha=options.alpha,
        options=_stated(options, specs),
        models=tuple(models),
        rows=tuple(rows),
        cells=tuple(cells(models, rows, options.alpha)),
        innocents=tuple(innocents(models, rows, sorted({*LEVELS, options.alpha}))),
        gains=tuple(judging.gains(models, told, _usual(registered.values()), options.alpha)),
        failures={**cast.failures, **failures},
        registering={victim.facts["budget"]: victim.facts["seconds"] for victim in registered.values()},
        asking={name: item.seconds for name, item in told.items()},
    )


def _usual(registered: Collection[Victim]) -> Victim:
    """Return the registration whose results are shown first."""
    budgets = {victim.facts["budget"]: victim for victim in registered}
    return budgets.get(USUAL_BUDGET) or budgets[max(budgets)]


def _stated(options: EvaluationOptions, specs: Sequence[str]) -> dict[str, Any]:
    """Return the options as JSON values."""
    return {**asdict(options), "methods": list(specs), "zoo": options.zoo and str(options.zoo)}


def _asking(named: Sequence[str], *, siblings: bool = False) -> tuple[str, ...]:
    """Return the methods that are evaluated: those that are named, or those in use by default that ask the model.

    Raises:
        UsageError: one of those named never asks the model.
    """
    if not named:
        every = plugins.names("fingerprints")
        return tuple(name for name in every if methods.by_default(name, siblings=siblings) and _asks(name))
    silent_ones = [spec for spec in named if spec != methods.ALL and not _asks(spec.partition(":")[0])]
    if silent_ones:
        raise UsageError(f"--methods {silent_ones[0]}: only methods that ask the suspect are evaluated")
    return tuple(named)


def _asks(name: str) -> bool:
    return rung(name, Access.QUERIES) == Access.QUERIES


def _zoo(model: str, data: str, out: Path, options: EvaluationOptions, progress: Progress) -> Zoo:
    wanted = ZooOptions(
        options.attacks, options.independents, options.seed, options.device, options.thief, options.trained_on
    )
    return build_zoo(model, data, out, wanted, progress=progress)


def _registered(
    model: str, owner: str, folder: Path, specs: Sequence[str], options: EvaluationOptions, progress: Progress
) -> dict[Path, Victim]:
    """Register the victim once a budget, all with the same references, which see the queries of none."""
    plans = {
        budget: Plan(
            model,
            f"budget-{budget}",
            owner,
            methods=tuple(specs),
            queries=budget,
            train_references=options.references,
            siblings=options.siblings,
            seed=options.seed,
            device=options.device,
        )
        for budget in sorted(set(options.budgets))
    }
    fingerprints = {
        budget: registration.generate(plan, progress=_titled(f"budget {budget}", progress))
        for budget, plan in plans.items()
    }
    every = [fingerprint for made in fingerprints.values() for fingerprint in made.values()]
    shown = tuple(fingerprint.arrays["queries"] for fingerprint in every if "queries" in fingerprint.arrays)
    state = [digest(every), _code(), options.references, options.seed]
    found = {}
    for budget, plan in plans.items():
        where = folder / f"{plan.name}-{_hash([budget, *state])}"
        if not where.exists():
            start = time.monotonic()
            victim = registration.build(replace(plan, apart=shown), progress=_titled(f"budget {budget}", progress))
            facts = {**victim.facts, "budget": budget, "seconds": time.monotonic() - start}
            victims.save(replace(victim, facts=facts), where)
        found[where.absolute()] = victims.load(where)
    return found


def _titled(title: str, progress: Progress) -> Progress:
    return lambda what, done: progress(f"{title}: {what}", done)


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def digest(fingerprints: Sequence[Fingerprint]) -> str:
    """Name fingerprints by all that is in them."""
    state = hashlib.sha256()
    for fingerprint in fingerprints:
        state.update(repr((fingerprint.method, fingerprint.options)).encode())
        for name, array in sorted(fingerprint.arrays.items()):
            state.update(repr((name, array.shape, array.dtype.str)).encode())
            state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def _code() -> list[str]:
    """Return digests of the code that registrations depend on, so that none of another version is taken for one."""
    folder = Path(methods.__file__).parent
    return [file_digests(path)["sha256"] for path in sorted([*folder.glob("*.py"), *folder.glob("fingerprints/*.py")])]


def _asked(
    sources: Mapping[str, Source],
    registered: Mapping[Path, Victim],
    folder: Path,
    options: EvaluationOptions,
    progress: Progress,
) -> tuple[dict[str, Told], dict[str, str]]:
    """Ask every model that was not asked before; return what each said, and why some could not be asked."""
    every = [fingerprint for victim in registered.values() for fingerprint in victim.fingerprints.values()]
    where = folder / digest(every)
    paths = {name: where / f"{_file_name(source)}.json" for name, source in sources.items()}
    told = {name: found for name, path in paths.items() if (found := _read(path)) is not None}
    failures: dict[str, str] = {}
    missing = {name: source for name, source in sources.items() if name not in told}
    for name, said in _answering(missing, registered, options):
        if isinstance(said, Told):
            told[name] = said
            _write(paths[name], said)
        else:
            failures[name] = said
        done = len(told) + len(failures)
        progress(f"asking {len(sources)} models", done / len(sources))
    return {name: told[name] for name in sources if name in told}, failures


def _answering(
    sources: Mapping[str, Source], registered: Mapping[Path, Victim], options: EvaluationOptions
) -> Iterator[tuple[str, Told | str]]:
    """Ask models, those in files in the sandbox; yield what each said, or why it cannot be asked."""
    for name, source in sources.items():
        if isinstance(source, Network):
            yield name, _ask(source, registered.values())
    files = {name: source for name, source in sources.items() if isinstance(source, Located)}
    load = LoadOptions(device=pick_device(options.device))
    job = Job(registered, depth=Access.QUERIES, load=load, limits=PATIENT, exhaustive=True, record=True)
    for outcome in local.run(list(files.values()), job):
        if isinstance(outcome, Skipped):
            yield outcome.target, outcome.reason
        elif outcome.failure:
            yield outcome.artifact.target, outcome.failure
        else:
            yield outcome.artifact.target, _several(outcome, job, files[outcome.artifact.target])


def _several(outcome: Outcome, job: Job, source: Located) -> Told | str:
    """Ask a model that answers at random as often as a scan does, and keep each answer: a scan sees them one by one."""
    outcomes = [outcome]
    if any("random" in item.detail for found in outcome.evidence.values() for item in found):
        again = [next(local.run([source], replace(job, repeats=1))) for _ in range(job.repeats)]
        outcomes = [found for found in again if isinstance(found, Outcome) and not found.failure]
        if len(outcomes) < job.repeats:
            return "it answers at random, and could not be asked several times"
    answers = {name: [found.answers[name] for found in outcomes] for name in outcome.answers}
    return Told(answers, sum(found.cost.seconds for found in outcomes))


def _ask(network: Network, registered: Collection[Victim]) -> Told:
    start = time.monotonic()
    answers = {}
    for victim in registered:
        found = compare(Subject.of_model(network), victim, judging.voting(victim), Access.QUERIES, record=True)
        if found.answers:
            answers[victim.name] = [found.answers]
    return Told(answers, time.monotonic() - start)


def _file_name(source: Source) -> str:
    """Name a model by its content."""
    if isinstance(source, Located):
        subject = Subject(files=source.artifact.files, root=source.artifact.root)
        return _hash([[file.path, subject.hashed(file).sha256] for file in source.artifact.files])
    state = hashlib.sha256(source.name.encode())
    for name, tensor in source.module.state_dict().items():
        state.update(name.encode() + tensor.cpu().numpy().tobytes())
    return state.hexdigest()[:16]


def _read(path: Path) -> Told | None:
    """Read what ``_write`` wrote; None if that is not there, or damaged: then the model is asked again."""
    try:
        found = json.loads(path.read_text())
        answers = {name: [Answers.from_json(said) for said in drawn] for name, drawn in found["answers"].items()}
        return Told(answers, float(found["seconds"]))
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def _write(path: Path, told: Told) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = {name: [said.to_json() for said in drawn] for name, drawn in told.answers.items()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"seconds": told.seconds, "answers": answers}))
    partial.replace(path)
