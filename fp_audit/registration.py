"""Registering a victim: fingerprints, independents to judge them against, and what can be told with both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fp_audit import audit, calibrate, data, methods, networks, victims
from fp_audit.alignment import Probes, align, count_outputs, make_probes, settle
from fp_audit.answers import Answers, Replayed
from fp_audit.comparison import compare
from fp_audit.engine import Progress, pick_device, silent, versions
from fp_audit.errors import AccessError, DataError, NotApplicable, TargetError, UsageError, VictimError
from fp_audit.fingerprints import _base
from fp_audit.fingerprints._base import Method
from fp_audit.fresh import Architecture
from fp_audit.metrics import accuracy
from fp_audit.model import HIDDEN, BlackBox, LoadOptions, Memoised, Unprepared, as_images, cut
from fp_audit.preprocess import Preprocess
from fp_audit.runners import local
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject, file_digests
from fp_audit.targets import adapter, locate, locate_one
from fp_audit.types import Access, Artifact, Fingerprint, InputSpec, Null, Pixels, Score, Skipped
from fp_audit.victims import Victim
from fp_audit.workshop import Workshop

LEAST_ACCURACY = 0.4
"""A victim that is right on fewer of its owner's images (above chance) is not the model for these data."""

OWN_BYTES = 8 * 2**20
"""Files of a victim up to which networks of its own architecture are trained: two million float weights."""

RELATED = 1e-3
"""p-value of an exact test at which a reference counts as related to the victim."""


@dataclass(frozen=True)
class Plan:
    """What ``register`` was asked to do."""

    model: str
    name: str
    data: str | None = None
    methods: tuple[str, ...] = ()
    """As ``methods.chosen`` takes them; empty for those that are meant to be used by default."""
    queries: int | None = None
    """Budget of the methods that have an option ``queries``; None for each method's own default."""
    references: tuple[str, ...] = ()
    train_references: int = 0
    siblings: tuple[str, ...] = ()
    """Models that were trained as the victim was, from other seeds."""
    seed: int = 0
    device: str = "auto"
    preprocess: Preprocess | None = None
    offline: bool = False
    apart: tuple[Pixels, ...] = field(default=(), compare=False, repr=False)
    """Further images that trained references must not see: then registrations with other queries share them."""


@dataclass(frozen=True)
class _Row:
    """An independent and its scores."""

    name: str
    kind: str
    """``given`` or ``trained``."""
    scores: Mapping[str, Score]
    accuracy: float | None
    """On the probes; None where its classes could not be aligned."""
    hidden: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """The scores that it gets where it shows less: by what it shows and method."""


@dataclass(frozen=True)
class _Sibling:
    """A model that the owner trained as the victim was."""

    model: BlackBox
    digests: tuple[str, ...]
    """Of its files."""


@dataclass(frozen=True)
class _Opened:
    """The victim, ready to be asked and differentiated."""

    artifact: Artifact
    subject: Subject
    preprocess: Preprocess | None
    labelled: data.Labelled | None = None
    """The owner's images, labels in the order of the victim's outputs."""
    probes: Probes | None = None
    architecture: Architecture | None = None
    """The victim's, where networks like it can be trained here."""
    siblings: tuple[_Sibling, ...] = ()


def register(plan: Plan, *, progress: Progress = silent) -> Victim:
    """Build a victim (see ``build``) and store it in the register.

    Raises:
        VictimError: the name is taken or impossible.
    """
    where = victims.folder(plan.name)
    if where.exists():
        raise VictimError(
            f"a victim called {plan.name!r} exists: remove it with `fp-audit victims remove {plan.name}`, "
            "or choose another name"
        )
    victim = build(plan, progress=progress)
    victims.save(victim, where)
    return victim


def build(plan: Plan, *, progress: Progress = silent) -> Victim:
    """Generate a model's fingerprints and score independents against them.

    Each finished fingerprint and reference is kept in the cache under FP_AUDIT_HOME: after an interruption the
    same call goes on where it stopped.

    Raises:
        UsageError: a path, method or option is wrong, or the data do not fit the model.
        TargetError: the model cannot be opened.
    """
    opened, fingerprints, chosen = _generated(plan, progress)
    victim = Victim(
        name=plan.name,
        source=opened.artifact.target,
        revision=opened.artifact.revision,
        adapter=opened.artifact.adapter,
        probes=opened.probes,
        preprocess=opened.preprocess,
        fingerprints=fingerprints,
        nulls={},
        facts={**_facts(plan, opened), **_outputs(opened, chosen)},
    )
    itself = _own_scores(victim, opened.subject)
    rows = _references(plan, victim, opened, progress)
    about = [{"name": row.name, "kind": row.kind, "accuracy": row.accuracy} for row in rows]
    found = {"own_scores": {name: asdict(score) for name, score in itself.items()}, "references": about}
    return replace(
        victim,
        nulls=_nulls(rows, itself),
        hidden={
            shown: _nulls([replace(row, scores=row.hidden[shown]) for row in rows if shown in row.hidden], itself)
            for shown in HIDDEN
        },
        facts={**victim.facts, **found},
    )


def generate(plan: Plan, *, progress: Progress = silent) -> dict[str, Fingerprint]:
    """Generate a model's fingerprints alone, by method; ``build`` finds them in the cache. Errors as for ``build``."""
    return _generated(plan, progress)[1]


def _generated(plan: Plan, progress: Progress) -> tuple[_Opened, dict[str, Fingerprint], list[Method]]:
    given, siblings = plan.data is not None, bool(plan.siblings)
    chosen = methods.chosen(plan.methods, queries=plan.queries, data=given, siblings=siblings)
    progress("opening the model", 0.0)
    opened = _open(plan)
    if opened.labelled is None:
        chosen = _without_data(plan, opened, chosen, progress)
    return opened, _fingerprints(plan, opened, chosen, progress), chosen


def _open(plan: Plan) -> _Opened:
    located = locate_one(plan.model, SourceOptions(offline=plan.offline))
    artifact = located.source.fetch(located.artifact)
    kind = adapter(artifact.adapter)
    options = LoadOptions(device=pick_device(plan.device), preprocess=plan.preprocess)
    if plan.data is None:
        return _Opened(artifact, Subject.of_artifact(artifact, kind, options), plan.preprocess)
    opened = kind.load(artifact, options)
    size = (opened.spec.height, opened.spec.width) if opened.spec.height and opened.spec.width else None
    labelled = data.load(plan.data, size=size, seed=plan.seed)
    settled = settle(opened, make_probes(labelled, seed=plan.seed))
    model, labelled = _in_order(settled.model, labelled, plan)
    found = settled.preprocess or plan.preprocess
    probes = make_probes(labelled, seed=plan.seed)
    probes = replace(probes, count=model.predict(as_images(probes.pixels[:1])).shape[1])
    probes = replace(probes, accuracy=accuracy(model.predict(as_images(probes.pixels)), probes.labels))
    options = replace(options, preprocess=found)
    subject = Subject.of_artifact(artifact, kind, options).seen_as(Memoised(model))
    architecture = own_architecture(artifact, options, opened.spec, labelled)
    siblings = tuple(_siblings(plan, probes, options))
    return _Opened(artifact, subject, found, labelled, probes, architecture, siblings)


def _siblings(plan: Plan, probes: Probes, options: LoadOptions) -> Iterator[_Sibling]:
    """Open the models that the owner names as siblings of the victim, with the victim's preprocessing.

    Raises:
        UsageError: one of them cannot be asked, or knows another number of classes.
    """
    for located in locate(plan.siblings, SourceOptions(offline=plan.offline)):
        if isinstance(located, Skipped):
            raise UsageError(f"--siblings {located.target}: {located.reason}")
        artifact = located.fetched()
        try:
            model = settle(adapter(artifact.adapter).load(artifact, options), probes, options.preprocess).model
            count = count_outputs(model)
        except (AccessError, TargetError) as error:
            raise UsageError(f"--siblings {artifact.target}: {error}") from None
        if count != probes.count:
            raise UsageError(f"--siblings {artifact.target}: it knows {count} classes, the victim {probes.count}")
        yield _Sibling(model, _digests(artifact))


def _digests(artifact: Artifact) -> tuple[str, ...]:
    """Return what tells one model from another, whatever their files are called: digests, sorted."""
    return tuple(sorted(file.sha256 or "" for file in audit.hashed(artifact).files))


def _without_data(plan: Plan, opened: _Opened, chosen: list[Method], progress: Progress) -> list[Method]:
    """Leave out what was not named and cannot be generated: without images nobody finds out a preprocessing."""
    if plan.methods or all(method.victim_access < Access.QUERIES for method in chosen):
        return chosen
    if Access.QUERIES not in adapter(opened.artifact.adapter).gives:
        progress(f"only files and weights are registered: {opened.artifact.unrun}", 0.0)
        return [method for method in chosen if method.victim_access < Access.QUERIES]
    if not isinstance(opened.subject.opened(), Unprepared):
        return chosen
    progress("only files and weights are registered: the file does not state its preprocessing (--preprocess)", 0.0)
    return [method for method in chosen if method.victim_access < Access.QUERIES]


def own_architecture(
    artifact: Artifact, options: LoadOptions, spec: InputSpec, labelled: data.Labelled
) -> Architecture | None:
    """Return how to build the victim anew, if it is small enough to be trained several times and can be trained."""
    side = max(spec.height or 0, spec.width or 0, *labelled.pixels.shape[2:])
    if sum(file.size for file in artifact.files) > OWN_BYTES or side > networks.MAX_SIDE:
        return None
    architecture = Architecture(artifact.adapter, artifact, options)
    try:
        architecture.fresh(seed=0, sample=labelled.pixels[:2])
    except (AccessError, TargetError, UsageError):
        return None
    return architecture


def _in_order(model: BlackBox, labelled: data.Labelled, plan: Plan) -> tuple[BlackBox, data.Labelled]:
    """Renumber the data's labels in the order of the victim's outputs.

    Raises:
        DataError: the victim does not know these classes.
    """
    probes = make_probes(labelled, seed=plan.seed, accuracy=2 * LEAST_ACCURACY)
    try:
        alignment = align(model, probes)
    except NotApplicable as error:
        raise DataError(
            f"{plan.data} does not fit {plan.model}: {error}. "
            "Pass the data that the model was made for, or --preprocess"
        ) from None
    order = alignment.order
    return model, replace(labelled, labels=order[labelled.labels], classes=model.classes or _renamed(labelled, order))


def _renamed(labelled: data.Labelled, order: np.ndarray) -> tuple[str, ...] | None:
    """Name the victim's outputs after the data's classes, where the two correspond one to one."""
    if labelled.classes is None or sorted(order) != list(range(len(labelled.classes))):
        return None
    return tuple(labelled.classes[i] for i in np.argsort(order))


def _fingerprints(plan: Plan, opened: _Opened, chosen: Sequence[Method], progress: Progress) -> dict[str, Fingerprint]:
    made = {}
    for done, method in enumerate(chosen):
        progress(f"generating {method.name}", done / len(chosen))
        workshop = Workshop(
            device=pick_device(plan.device),
            progress=_within(progress, method.name),
            architecture=opened.architecture,
            given=tuple(sibling.model for sibling in opened.siblings),
        )
        cached = victims.home() / "cache" / "fingerprints" / f"{_key(plan, opened, method)}"
        fingerprint = victims.load_fingerprint(cached)
        if fingerprint is None:
            try:
                fingerprint = method.generate(opened.subject, opened.labelled, seed=plan.seed, workshop=workshop)
            except NotApplicable as error:
                progress(f"{method.name} is left out: {error}", done / len(chosen))
                continue
            victims.save_fingerprint(fingerprint, cached)
        made[method.name] = fingerprint
    progress("fingerprints generated", 1.0)
    if not made:
        raise UsageError("no method could be registered: pass --data, or other --methods")
    return made


def _within(progress: Progress, name: str) -> Progress:
    """Say for which method something is done."""
    return lambda what, done: progress(f"{name}: {what}", done)


def _key(plan: Plan, opened: _Opened, method: Method) -> str:
    """Name a fingerprint by everything that determines it."""
    files = sorted(opened.subject.hashed(file).sha256 or "" for file in opened.artifact.files)
    preprocess = opened.preprocess and opened.preprocess.to_json()
    folder = Path(_base.__file__).parent
    code = [file_digests(path)["sha256"] for path in sorted(folder.glob("*.py"))]
    siblings = sorted(sibling.digests for sibling in opened.siblings) if method.uses_siblings else []
    parts = [
        files,
        siblings,
        opened.labelled and opened.labelled.digest,
        preprocess,
        repr(method),
        plan.seed,
        versions(),
        code,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _own_scores(victim: Victim, subject: Subject) -> dict[str, Score]:
    """Score the victim against its own fingerprints: what an exact copy would get."""
    by_access: dict[Access, list[str]] = {}
    for name in victim.fingerprints:
        by_access.setdefault(methods.rung(name, Access.GRADIENTS), []).append(name)
    scores: dict[str, Score] = {}
    for access, names in by_access.items():
        scores |= compare(subject, victim, names, access).scores
    return scores


def _references(plan: Plan, victim: Victim, opened: _Opened, progress: Progress) -> list[_Row]:
    """Score the independents that were given or are to be trained."""
    given = _given(plan, victim, opened, progress) if plan.references else []
    return given + (_trained(plan, victim, opened, progress) if plan.train_references else [])


def _as_shown(
    victim: Victim, scores: Mapping[str, Score], answers: Answers | None
) -> tuple[Mapping[str, Score], dict[str, dict[str, Score]]]:
    """Divide a reference's scores by what it shows: those of all that it says, and those where it hides something.

    What it does not hide itself is hidden here, and scored once more from what it said. Who shows labels only has no
    scores of the first kind, except by methods that do not ask.
    """
    if answers is None:
        return scores, {}
    asking = audit.methods_for(victim, Access.QUERIES, Access.QUERIES)
    whole = scores
    if answers.output in HIDDEN:
        whole = {name: score for name, score in scores.items() if name not in asking}
    less = HIDDEN[HIDDEN.index(answers.output) :] if answers.output in HIDDEN else HIDDEN
    seen = {shown: Subject.of_model(cut(Replayed(answers), shown)) for shown in less}
    return whole, {
        shown: dict(compare(subject, victim, asking, Access.QUERIES).scores) for shown, subject in seen.items()
    }


def _nulls(rows: Sequence[_Row], itself: Mapping[str, Score]) -> dict[str, Null]:
    """Collect the scores of all references, by method."""
    return {
        method: _null(method, rows, itself) for method in dict.fromkeys(name for row in rows for name in row.scores)
    }


def _null(method: str, rows: Sequence[_Row], itself: Mapping[str, Score]) -> Null:
    scored = [row for row in rows if method in row.scores]
    values = tuple(row.scores[method].value for row in scored)
    trials = itself[method].trials if method in itself else None
    exact = [row.scores[method].p_value for row in scored]
    return Null(
        scores=values,
        names=tuple(row.name for row in scored),
        accuracies=tuple(row.accuracy for row in scored),
        fit=calibrate.goodness_of_fit(values, trials),
        related=any(p is not None and p <= RELATED for p in exact),
        parts=tuple(row.scores[method].parts for row in scored),
    )


def _trained(plan: Plan, victim: Victim, opened: _Opened, progress: Progress) -> list[_Row]:
    if opened.labelled is None or opened.probes is None:
        raise DataError("--train-references needs labelled images: pass --data")
    shown = [
        fingerprint.arrays["queries"] for fingerprint in victim.fingerprints.values() if "queries" in fingerprint.arrays
    ]
    unseen = opened.labelled.without(*shown, *plan.apart, opened.probes.pixels)
    architecture = opened.architecture
    specs = networks.plan(
        plan.train_references,
        unseen,
        opened.probes.count,
        seed=plan.seed,
        purpose="calibration",
        own=architecture is not None,
    )
    asking = [name for name in victim.fingerprints if methods.rung(name, Access.GRADIENTS) >= Access.QUERIES]
    rows = []
    for network in networks.train(
        specs,
        unseen,
        cache=victims.home() / "cache" / "networks",
        device=pick_device(plan.device),
        architecture=architecture,
        progress=progress,
        what="training references",
    ):
        compared = compare(Subject.of_model(network, network.white), victim, asking, Access.GRADIENTS, record=True)
        scores, hidden = _as_shown(victim, compared.scores, compared.answers)
        rows.append(_Row(network.name, "trained", scores, compared.detail.get("probe_accuracy"), hidden))
    return sorted(rows, key=lambda row: row.name)


def _given(plan: Plan, victim: Victim, opened: _Opened, progress: Progress) -> list[_Row]:
    """Score models that the owner vouches for, the way suspects are scored: in the sandbox.

    Raises:
        UsageError: one of them cannot be judged, or is the victim.
    """
    located = list(locate(plan.references, SourceOptions(offline=plan.offline)))
    known = {sibling.digests: "--siblings" for sibling in opened.siblings}
    rows = []
    with TemporaryDirectory() as folder:
        where = Path(folder) / victim.name
        victims.save(victim, where)
        load = LoadOptions(device=pick_device(plan.device))
        job = audit.Job({where: victim}, depth=Access.GRADIENTS, load=load, exhaustive=True, record=True)
        for done, outcome in enumerate(local.run(located, job)):
            progress("scoring the given references", done / len(located))
            if isinstance(outcome, Skipped) or outcome.failure:
                reason = outcome.reason if isinstance(outcome, Skipped) else outcome.failure
                name = outcome.target if isinstance(outcome, Skipped) else outcome.artifact.target
                raise UsageError(f"--references {name}: {reason}. Leave it out or repair it")
            target, digests = outcome.artifact.target, _digests(outcome.artifact)
            if digests in known:
                raise UsageError(f"--references {target}: is also in {known[digests]}; each model counts once")
            known[digests] = f"--references, as {target}"
            found = outcome.evidence[victim.name]
            if any(item.detail.get("identical") for item in found):
                raise UsageError(f"--references {target}: is the victim itself, not an independent model")
            scores = {item.method: Score(item.score, item.p_value, parts=item.parts) for item in found}
            reached = next((item.detail["probe_accuracy"] for item in found if "probe_accuracy" in item.detail), None)
            whole, hidden = _as_shown(victim, scores, outcome.answers.get(victim.name))
            rows.append(_Row(target, "given", whole, reached, hidden))
    return sorted(rows, key=lambda row: row.name)


def _facts(plan: Plan, opened: _Opened) -> dict[str, Any]:
    return {
        "registered": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": plan.seed,
        "device": pick_device(plan.device),
        "versions": versions(),
        "data": data.summary(opened.labelled) if opened.labelled else None,
        "files": [asdict(opened.subject.hashed(file)) for file in opened.artifact.files],
    }


def _outputs(opened: _Opened, chosen: Sequence[Method]) -> dict[str, Any]:
    """Record what suspects are aligned by where there are no probes: the number and names of the victim's outputs."""
    if opened.probes is not None or all(method.victim_access < Access.QUERIES for method in chosen):
        return {}
    model = opened.subject.black_box()
    return {"outputs": count_outputs(model), "classes": model.classes}
