"""Scans as a caller asks for them: targets and victims in, findings and skipped targets out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from operator import itemgetter
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TypeAlias

from fp_audit import audit, results, victims
from fp_audit.audit import Job, Outcome
from fp_audit.comparison import REPEATS
from fp_audit.engine import Progress, pick_device, silent
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions
from fp_audit.preprocess import Preprocess
from fp_audit.results import Results
from fp_audit.runners import runner
from fp_audit.sandbox import Limits
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import Located, fetched, locate
from fp_audit.types import Access, Artifact, Finding, Skipped
from fp_audit.victims import Victim

_Key: TypeAlias = tuple[str, str | None]

OutcomeSeen = Callable[[Outcome | Skipped, int, int], None]
"""Told each outcome, how many are done, and how many have been listed so far."""


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
    """Take over what earlier scans found out about the same content in the same way (see ``results``)."""
    stream: bool = False
    """Delete what was downloaded for a model when it has been examined."""
    engine: str = "local"
    """Who runs it: the cores of this machine (``local``), or a cluster (``ray``)."""
    repeats: int = REPEATS
    """Times that each image is shown to a model that answers at random; 1: do not look whether it does."""
    base: str | None = None
    """What victims and suspects may both have been made from: then only what the victims changed in it counts."""
    record: bool = False
    """Run every method on every model, and bring back what it said: ``seen`` finds it in ``Outcome.answers``."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: expected a number between 0 and 1")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected at least 1")
        if self.repeats < 1:
            raise UsageError(f"--repeats {self.repeats}: expected at least 1")
        runner(self.engine)
        if not 0 < self.timeout < inf:
            raise UsageError(f"--timeout {self.timeout:g}: expected seconds above 0")

    @property
    def sources(self) -> SourceOptions:
        """What sources are told."""
        return SourceOptions(self.offline, self.max_bytes, self.stream)


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
    located = locate([targets] if isinstance(targets, str) else targets, options.sources)
    job = _job(loaded, options)
    with results.opened(job, recalling=options.resume) as kept:
        yield from _judged(located, job, options, kept, seen)


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
    with TemporaryDirectory() as folder:
        where = Path(folder) / victim.source.replace("/", "_")
        victims.save(victim, where)
        job = _job({where: victim}, options)
        yield from _judged(locate([b], options.sources), job, options, Results(None), lambda *_: None)


def _job(loaded: Mapping[Path, Victim], options: ScanOptions) -> Job:
    load = LoadOptions(device=pick_device(options.device), preprocess=options.preprocess)
    limits = Limits(wall_seconds=options.timeout, cpu_seconds=4 * ceil(options.timeout))
    return Job(
        victims=loaded,
        depth=options.depth,
        alpha=options.alpha,
        load=load,
        limits=limits,
        exhaustive=options.record,
        record=options.record,
        digests=options.record or options.depth > Access.IDENTITY,
        repeats=options.repeats,
        base=None if options.base is None else audit.hashed(fetched(options.base, options.sources)),
    )


def _judged(
    located: Iterable[Located | Skipped], job: Job, options: ScanOptions, results: Results, seen: OutcomeSeen
) -> Iterator[Finding | Skipped]:
    """Examine models as they are found, and judge them together when all have been."""
    listing = _Ahead(located)
    held = _Held(results, lambda outcome, done: seen(outcome, done, listing.count))
    for outcome in runner(options.engine)(held.pending(listing), job, jobs=options.jobs):
        held.take(outcome)
    sources = {victim.name: victim.source for victim in job.victims.values()}
    yield from audit.judged(held.outcomes(), held.p_values(), options.alpha, sources)
    yield from held.skipped()


class _Ahead:
    """Lists models in a thread of its own, so that they are counted while the first of them are examined."""

    def __init__(self, located: Iterable[Located | Skipped]) -> None:
        self._located, self._stopped = located, False
        self._found: SimpleQueue[Located | Skipped | BaseException | None] = SimpleQueue()
        self.count = 0
        """Models listed so far."""

    def __iter__(self) -> Iterator[Located | Skipped]:
        Thread(target=self._list, daemon=True).start()
        try:
            while (item := self._found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stopped = True

    def _list(self) -> None:
        try:
            for item in self._located:
                if self._stopped:
                    return
                self.count += 1
                self._found.put(item)
        except BaseException as error:  # it is raised where the scan was asked for
            self._found.put(error)
        self._found.put(None)


class _Held:
    """What was found out so far, in little memory: compressed outcomes, which come out in the order of the listing.

    Args:
        results: earlier ones, and where new ones are kept.
        seen: told of each outcome and how many there are.
    """

    def __init__(self, results: Results, seen: Callable[[Outcome | Skipped, int], None]) -> None:
        self._results, self._seen = results, seen
        self._place: dict[_Key, int] = {}
        self._open: dict[_Key, Artifact] = {}
        self._outcomes: dict[int, tuple[bytes, Path | None, dict[str, float | None]]] = {}
        self._skipped: list[tuple[int, Skipped]] = []

    def pending(self, listing: Iterable[Located | Skipped]) -> Iterator[Located | Skipped]:
        """Pass on the models that must be examined."""
        for index, item in enumerate(listing):
            target, revision = key = _key(item)
            self._place |= {key: index, (target, None): index}  # what is skipped on the way has no revision
            known = self._results.recall(item.artifact) if isinstance(item, Located) else None
            if known is not None:
                self._add(known, results.pack(known))
                continue
            if isinstance(item, Located):
                self._open[target, revision] = item.artifact
            yield item

    def take(self, outcome: Outcome | Skipped) -> None:
        """Keep what was just found out, on disk too."""
        listed = self._open.pop(_key(outcome), None)
        packed = results.pack(outcome) if isinstance(outcome, Outcome) else b""
        if isinstance(outcome, Outcome) and listed is not None:
            self._results.note(listed, outcome, packed)
        self._add(outcome, packed)

    def _add(self, outcome: Outcome | Skipped, packed: bytes) -> None:
        place = self._place[_key(outcome)]
        if isinstance(outcome, Outcome):
            self._outcomes[place] = packed, outcome.artifact.root, audit.p_values(outcome)
        else:
            self._skipped.append((place, outcome))
        self._seen(outcome, len(self._outcomes) + len(self._skipped))

    def outcomes(self) -> Iterator[Outcome]:
        """Restore the outcomes one after the other."""
        for _, (packed, root, _) in sorted(self._outcomes.items()):
            outcome = results.unpack(packed)
            yield replace(outcome, artifact=replace(outcome.artifact, root=root))

    def p_values(self) -> list[dict[str, float | None]]:
        """Return ``audit.p_values`` of each."""
        return [p_values for _, (_, _, p_values) in sorted(self._outcomes.items())]

    def skipped(self) -> Iterator[Skipped]:
        """Return what could not be examined."""
        return (item for _, item in sorted(self._skipped, key=itemgetter(0)))


def _key(item: Located | Outcome | Skipped) -> _Key:
    """Tell models apart: one repository may be scanned at two revisions."""
    return (item.target, None) if isinstance(item, Skipped) else (item.artifact.target, item.artifact.revision)
