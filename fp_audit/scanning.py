"""Scans as a caller asks for them: targets and victims in, findings and skipped targets out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from fp_audit import __version__, audit, victims
from fp_audit.answers import Answers
from fp_audit.audit import Job, Outcome
from fp_audit.comparison import REPEATS
from fp_audit.engine import Progress, pick_device, silent
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions
from fp_audit.preprocess import Preprocess
from fp_audit.sandbox import Limits
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import Located, locate
from fp_audit.types import Access, Artifact, Cost, Evidence, File, Finding, Skipped
from fp_audit.victims import Victim

_Key: TypeAlias = tuple[str, str | None]

OutcomeSeen = Callable[[Outcome | Skipped, int, int], None]
"""Told each outcome, how many are done, and how many there are."""


@dataclass(frozen=True)
class ScanOptions:
    """How targets are scanned; the fields are the options of ``fp-audit scan``."""

    depth: Access = Access.QUERIES
    alpha: float = 0.01
    jobs: int | None = None
    """Models at a time; None for as many as there are cores."""
    timeout: float = 600.0
    """Wall seconds that one model may take at each access."""
    max_bytes: int | None = None
    """Most bytes to download for one model."""
    offline: bool = False
    device: str = "cpu"
    preprocess: Preprocess | None = None
    resume: bool = False
    repeats: int = REPEATS
    """Times that each image is shown to a model that answers at random; 1: do not look whether it does."""
    record: bool = False
    """Run every method on every model, and bring back what it said: ``seen`` finds it in ``Outcome.answers``."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: expected a number between 0 and 1")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected at least 1")
        if self.repeats < 1:
            raise UsageError(f"--repeats {self.repeats}: expected at least 1")
        if not 0 < self.timeout < inf:
            raise UsageError(f"--timeout {self.timeout:g}: expected seconds above 0")

    @property
    def sources(self) -> SourceOptions:
        """What sources are told."""
        return SourceOptions(self.offline, self.max_bytes)


def scan(
    targets: str | Sequence[str],
    victim: str | Sequence[str] = (),
    options: ScanOptions | None = None,
    *,
    seen: OutcomeSeen = lambda *_: None,
) -> Iterator[Finding | Skipped]:
    """Scan models for surrogates of registered victims.

    Verdicts are corrected for the number of models and victims, so they come out when all models have been examined;
    ``seen`` is told of each as it is done.

    Args:
        targets: hub ids, folders, ``.onnx`` files, lists.
        victim: names in the register; all of them by default.
        options: depth, level, limits.
        seen: progress.

    Yields:
        A ``Finding`` for each model and victim, then a ``Skipped`` for each target that could not be judged.

    Raises:
        UsageError: no such victim, or an option is wrong.
    """
    options = options or ScanOptions()
    wanted = (victim,) if isinstance(victim, str) else tuple(victim)
    loaded = {victims.folder(item.name): item for item in victims.load_named(wanted)}
    located = list(locate([targets] if isinstance(targets, str) else targets, options.sources))
    journal = _Journal.of(located, loaded, options)
    yield from _judged(located, loaded, options, journal, seen)
    journal.forget()


def compare(
    a: str,
    b: str,
    data: str | None = None,
    options: ScanOptions | None = None,
    *,
    references: Sequence[str] = (),
    train_references: int = 8,
    progress: Progress = silent,
) -> Iterator[Finding | Skipped]:
    """Tell whether ``b`` is derived from ``a``, storing nothing but cached fingerprints and references.

    Without data only files and weights are compared. With data all methods are, against independents that are
    given or trained.
    """
    from fp_audit import registration  # imports torch, which a scan of ONNX files does without

    options = options or ScanOptions()
    plan = registration.Plan(
        model=a,
        name="a",
        data=data,
        references=tuple(references),
        train_references=train_references if data else 0,
        device=options.device,
        preprocess=options.preprocess,
        offline=options.offline,
    )
    victim = registration.build(plan, progress=progress)
    located = list(locate([b], options.sources))
    with TemporaryDirectory() as folder:
        where = Path(folder) / victim.source.replace("/", "_")
        victims.save(victim, where)
        yield from _judged(located, {where: victim}, options, _Journal(None), lambda *_: None)


def _judged(
    located: Sequence[Located | Skipped],
    loaded: Mapping[Path, Victim],
    options: ScanOptions,
    journal: _Journal,
    seen: OutcomeSeen,
) -> Iterator[Finding | Skipped]:
    load = LoadOptions(device=pick_device(options.device), preprocess=options.preprocess)
    limits = Limits(wall_seconds=options.timeout, cpu_seconds=4 * ceil(options.timeout))
    job = Job(loaded, options.depth, options.alpha, load, limits, options.record, options.record, options.repeats)
    outcomes = [outcome for outcome in map(journal.recall, located) if outcome is not None]
    for done, outcome in enumerate(outcomes, 1):
        seen(outcome, done, len(located))
    pending = [item for item in located if journal.recall(item) is None]
    for outcome in audit.run(pending, job, jobs=options.jobs):
        journal.note(outcome)
        outcomes.append(outcome)
        seen(outcome, len(outcomes), len(located))
    place: dict[_Key, int] = {}
    for index, item in enumerate(located):
        target, revision = _key(item)
        place |= {(target, revision): index, (target, None): index}  # what is skipped on the way has no revision
    outcomes.sort(key=lambda outcome: place[_key(outcome)])
    sources = {victim.name: victim.source for victim in loaded.values()}
    yield from audit.conclude([item for item in outcomes if isinstance(item, Outcome)], options.alpha, sources)
    yield from (item for item in outcomes if isinstance(item, Skipped))


def _key(item: Located | Outcome | Skipped) -> _Key:
    """Tell models apart: one repository may be scanned at two revisions."""
    return (item.target, None) if isinstance(item, Skipped) else (item.artifact.target, item.artifact.revision)


class _Journal:
    """Outcomes of an unfinished scan, one JSON line each, so that ``--resume`` repeats nothing."""

    def __init__(self, path: Path | None, known: Mapping[_Key, Outcome | Skipped] | None = None) -> None:
        self._path, self._known = path, known or {}

    @classmethod
    def of(cls, located: Sequence[Located | Skipped], loaded: Mapping[Path, Victim], options: ScanOptions) -> _Journal:
        """Open the journal of this very scan: same targets, files, victims and options."""
        facts = [
            [[_key(item), _artifact_key(item)] for item in located],
            [[str(path), victim.facts] for path, victim in loaded.items()],
            [
                int(options.depth),
                options.device,
                options.repeats,
                options.preprocess and options.preprocess.to_json(),
                __version__,
            ],
            options.record,
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        path = victims.home() / "scans" / f"{digest}.jsonl"
        if not options.resume:
            path.unlink(missing_ok=True)
            return cls(path)
        lines = path.read_text().splitlines() if path.exists() else []
        outcomes = [outcome for outcome in map(_outcome_from_line, lines) if outcome is not None]
        return cls(path, {_key(outcome): outcome for outcome in outcomes})

    def recall(self, item: Located | Skipped) -> Outcome | Skipped | None:
        """Return what an earlier run found out about a model, where its files are now; a skipped one is tried again."""
        if isinstance(item, Skipped):
            return item
        found = self._known.get(_key(item))
        if isinstance(found, Outcome):
            return replace(found, artifact=replace(found.artifact, root=item.artifact.root))
        return found

    def note(self, outcome: Outcome | Skipped) -> None:
        """Append an outcome; what was skipped is left out, so that it is tried again."""
        if self._path is not None and isinstance(outcome, Outcome):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as stream:
                stream.write(json.dumps(_outcome_to_json(outcome)) + "\n")

    def forget(self) -> None:
        """Delete the journal: the scan is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _artifact_key(item: Located | Skipped) -> Any:  # noqa: ANN401
    return (
        None if isinstance(item, Skipped) else [item.artifact.revision, [asdict(file) for file in item.artifact.files]]
    )


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    answers = {victim: said.to_json() for victim, said in outcome.answers.items()}
    whole = asdict(replace(outcome, answers={}))
    return {**whole, "artifact": {**whole["artifact"], "root": None}, "answers": answers}


def _outcome_from_line(line: str) -> Outcome | None:
    """Restore an outcome; None for the half line that an interruption may leave."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    artifact = Artifact(**{**data["artifact"], "files": tuple(File(**file) for file in data["artifact"]["files"])})
    evidence = {
        victim: tuple(Evidence(**{**item, "access": Access(item["access"])}) for item in items)
        for victim, items in data["evidence"].items()
    }
    answers = {victim: Answers.from_json(said) for victim, said in data["answers"].items()}
    return Outcome(artifact, evidence, data["silent"], data["failure"], Cost(**data["cost"]), answers)
