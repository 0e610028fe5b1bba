"""The driver: for every target and every victim, cheapest access first, until the verdict is decided.

identity (hashes of a listing, in this process) < weights (headers and a few rows where they lie, then all tensors) <
queries (answers): everything that opens a suspect happens in a sandboxed child; this process reads listings, JSON,
headers, the numbers of an excerpt, and scores. ``examine`` is the unit of work, ``runners`` run many of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fp_audit import calibrate, excerpt, plugins
from fp_audit.answers import Answers
from fp_audit.comparison import REPEATS, Comparison, compare
from fp_audit.declared import contradiction
from fp_audit.errors import NotApplicable, SandboxCrash, TargetError, UnsafeModel
from fp_audit.methods import kind, restored, rung
from fp_audit.model import LoadOptions
from fp_audit.sandbox import Child, Limits, Sandbox
from fp_audit.subject import Subject
from fp_audit.targets import Located, adapter, only_hashes
from fp_audit.types import Access, Artifact, Cost, Evidence, Finding, Score, Skipped, Verdict
from fp_audit.victims import Victim
from fp_audit.worker import TASK, comparison_from_json, request

JOINT = "joint"
"""What stands for the method in evidence of several methods taken together: see ``calibrate.joint``."""

BASE_FILES = "base_files"
"""Detail of evidence: files that equal the base model's, and prove nothing."""

LADDER = (Access.WEIGHTS, Access.QUERIES, Access.GRADIENTS)

PAIRS = 10**7
"""(Model, victim) pairs that no scan exceeds: p <= alpha / PAIRS is decided whatever the other models show. It is not
the number of the scan at hand, so that what is found out about a model does not depend on what else was scanned."""


@dataclass(frozen=True)
class Job:
    """What a scan does with each model."""

    victims: Mapping[Path, Victim]
    """By the folder that a child reads them from."""
    depth: Access = Access.QUERIES
    alpha: float = 0.01
    load: LoadOptions = field(default_factory=LoadOptions)
    limits: Limits = field(default_factory=Limits)
    exhaustive: bool = False
    """Go down the whole ladder even when the verdict is decided (for the nulls of a victim)."""
    record: bool = False
    """Bring back what each model said."""
    digests: bool = False
    """Bring back the digests of each model's files, taken before it is opened."""
    repeats: int = REPEATS
    """Times that each image is shown to a model that answers at random."""
    base: Artifact | None = None
    """The model that victims and suspects may both have been made from, on this disk, with the digests of its files."""

    @property
    def bound(self) -> float:
        """The p-value that decides about a victim, whatever other models and victims show."""
        return self.alpha / PAIRS


@dataclass(frozen=True)
class Outcome:
    """What was found out about one model, before it is judged among the others."""

    artifact: Artifact
    evidence: Mapping[str, tuple[Evidence, ...]]
    """By victim."""
    silent: Mapping[str, Mapping[str, str]]
    """Victim -> method -> why it did not vote."""
    failure: str | None
    """Why the ladder was left before its end."""
    cost: Cost
    answers: Mapping[str, Answers] = field(default_factory=dict)
    """By victim, all that the model said to its queries, in its own class order, where ``Job.record`` asks for it."""


IMPORTED = ("scipy.optimize", "scipy.special")
"""What methods and the alignment of classes import where they need it."""


@cache
def preload(adapter_name: str, access: Access) -> tuple[str, ...]:
    """Name what a child needs for this access and those below, our own modules included.

    What the server has imported no child imports again.
    """
    opener = adapter(adapter_name)
    libraries = (name for step in LADDER if step <= access for name in opener.preload.get(step, ()))
    methods = plugins.load_all("fingerprints").values()
    ours = {method.__module__ for method in methods if Access.IDENTITY < method.suspect_access <= access}
    return tuple(dict.fromkeys((*libraries, *IMPORTED, type(opener).__module__, *sorted(ours), "fp_audit.worker")))


def lowest(adapter_name: str, job: Job) -> Access | None:
    """Return the access at the bottom of the ladder for models of this adapter; None if no child is needed."""
    gives = adapter(adapter_name).gives
    allowed = [step for step in LADDER if step <= job.depth]
    used = (step for victim in job.victims.values() for step in allowed if methods_for(victim, step, job.depth, gives))
    return max(used, default=None)


def examine(item: Located, job: Job, sandbox: Sandbox) -> Outcome | Skipped:
    """Take one model down the ladder against all victims.

    Args:
        item: the model.
        job: what to do.
        sandbox: opens it, in one child for all rungs.
    """
    with ExitStack() as held:
        state = _State(item, item.artifact, dict.fromkeys(job.victims, ()), {path: {} for path in job.victims}, held)
        held.callback(lambda: item.source.release(state.artifact))
        return _examined(item, job, sandbox, state)


def _examined(item: Located, job: Job, sandbox: Sandbox, state: _State) -> Outcome | Skipped:
    start = time.monotonic()
    try:
        if job.digests:
            state.artifact = hashed(item.artifact)
        subject = Subject.of_artifact(state.artifact, adapter(item.artifact.adapter), job.load)
        shared = subject.shared(job.base) if job.base else ()
        own = Subject(files=tuple(file for file in subject.files() if file.path not in shared), root=item.artifact.root)
        for path, victim in job.victims.items():
            names = methods_for(victim, Access.IDENTITY, job.depth, state.gives)
            found = compare(own, victim, names, Access.IDENTITY)
            detail = {**found.detail, **({BASE_FILES: list(shared)} if shared else {})}
            state.add(path, victim, replace(found, detail=detail), Access.IDENTITY)
        if only_hashes(item.artifact) and not state.decided(job, all):
            raise UnsafeModel(adapter(item.artifact.adapter).lacking(item.artifact))
        for access in LADDER:
            wanted = state.undecided(job, access)
            if wanted and access == Access.WEIGHTS and not job.exhaustive and job.base is None:
                state.glance(job, wanted)
                wanted = state.undecided(job, access)
            if wanted:
                if not state.opened:
                    state.fetch()
                state.descend(job, sandbox, access, wanted)
    except TargetError as error:
        if state.opened or state.decided(job, any):
            state.failure = str(error)
        else:
            return Skipped(item.artifact.target, str(error))
    return state.outcome(job, time.monotonic() - start - state.waited)


@dataclass
class _State:
    """What is known about one model while it is examined."""

    item: Located
    artifact: Artifact
    evidence: dict[Path, tuple[Evidence, ...]]
    silent: dict[Path, dict[str, str]]
    held: ExitStack
    """Ends the child."""
    child: Child | None = None
    waited: float = 0.0
    """Seconds until a child could be had."""
    opened: bool = False
    """Whether a child has read the model: before that a failure means that nothing was examined."""
    failure: str | None = None
    queries: int = 0
    answers: dict[str, Answers] = field(default_factory=dict)

    @property
    def gives(self) -> Collection[Access]:
        """The accesses that the model's files can give."""
        return adapter(self.artifact.adapter).gives

    def add(self, path: Path, victim: Victim, comparison: Comparison, access: Access) -> None:
        about = dict.fromkeys(comparison.scores, comparison.detail)
        self.evidence[path] += evidence_of(comparison.scores, victim, about, access)
        self.silent[path] |= comparison.silent
        self.queries += comparison.queries
        if comparison.answers:
            before = self.answers.get(victim.name)
            self.answers[victim.name] = before.joined(comparison.answers) if before else comparison.answers

    def decided(self, job: Job, how_many: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether ``all`` or ``any`` of the victims are decided."""
        return how_many(_decided(found, job.bound) for found in self.evidence.values())

    def undecided(self, job: Job, access: Access) -> dict[Path, list[str]]:
        """Return, for each victim that is not decided, its methods of this access."""
        if access > job.depth:
            return {}
        open_ = {
            path: victim
            for path, victim in job.victims.items()
            if job.exhaustive or not _decided(self.evidence[path], job.bound)
        }
        wanted = {
            path: [name for name in methods_for(victim, access, job.depth, self.gives) if name not in self.silent[path]]
            for path, victim in open_.items()
        }
        return {path: methods for path, methods in wanted.items() if methods}

    def glance(self, job: Job, wanted: dict[Path, list[str]]) -> None:
        """Judge weights without a download, as far as headers and an excerpt decide; the rest stays open.

        With references that are related to the victim shared weights convict nobody: then nothing is read.
        """
        files = self.item.source.parts(self.artifact)
        if files is None:
            return
        seen = excerpt.Excerpt(files)
        for path, names in wanted.items():
            victim, null = job.victims[path], job.victims[path].null(excerpt.METHOD)
            if excerpt.METHOD not in names or (null is not None and null.related):
                continue
            try:
                score = seen.compare(victim.fingerprints[excerpt.METHOD], job.bound / (len(self.evidence[path]) + 1))
            except NotApplicable as error:
                self.silent[path][excerpt.METHOD] = str(error)
            except TargetError:
                return  # the download meets the same error, or reads what could not be read in parts
            else:
                if score is not None:
                    self.evidence[path] += (excerpt.evidence(score),)

    def fetch(self) -> None:
        """Make the files local."""
        self.artifact = replace(self.item, artifact=self.artifact).fetched()

    def descend(self, job: Job, sandbox: Sandbox, access: Access, wanted: dict[Path, list[str]]) -> None:
        """Compare in the child."""
        child = self.child or self._start(job, sandbox)
        answer = child.call(
            request(self.artifact, job.load, access, wanted, record=job.record, repeats=job.repeats, base=job.base)
        )
        self.opened = True
        try:
            for path in wanted:
                self.add(path, job.victims[path], comparison_from_json(answer[str(path)]), access)
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxCrash(f"the process that had it open sent a malformed answer ({error})") from None

    def _start(self, job: Job, sandbox: Sandbox) -> Child:
        """Fork the child that opens the model, for all rungs: model, victims and answers stay in its memory."""
        modules = preload(self.artifact.adapter, lowest(self.artifact.adapter, job) or job.depth)
        readable, asked = [*self.artifact.local_files(), *job.victims], time.monotonic()
        if job.base is not None:
            modules = (*modules, *preload(job.base.adapter, Access.WEIGHTS))
            readable += job.base.local_files()
        child = sandbox.child(TASK, modules, readable=readable, gpu=job.load.device != "cpu")
        self.child, self.waited = self.held.enter_context(child), time.monotonic() - asked
        return child

    def outcome(self, job: Job, seconds: float) -> Outcome:
        size = sum(file.size for file in self.artifact.files)
        spent = self.item.source.spent(self.artifact)
        local = self.artifact.root is not None
        read = max(size, spent.bytes) if local else spent.bytes
        avoided = 0 if local else max(0, size - spent.bytes)
        cost = Cost(read, self.queries, seconds, requests=spent.requests, bytes_avoided=avoided)
        return Outcome(
            hashed(self.artifact) if job.digests else self.artifact,
            {job.victims[path].name: found for path, found in self.evidence.items()},
            {job.victims[path].name: why for path, why in self.silent.items()},
            self.failure,
            cost,
            self.answers,
        )


def hashed(artifact: Artifact) -> Artifact:
    """Return the artifact with the digests of all its files, as far as they are on this machine."""
    subject = Subject(files=artifact.files, root=artifact.root)
    return replace(artifact, files=tuple(subject.hashed(file) for file in artifact.files))


def methods_for(victim: Victim, access: Access, depth: Access, gives: Collection[Access] = tuple(Access)) -> list[str]:
    """Name the victim's methods that run with ``access`` when ``depth`` is allowed and that ``gives`` suffices for."""
    possible = [name for name, made in victim.fingerprints.items() if restored(made).suspect_access in gives]
    return [name for name in possible if rung(name, depth) == access]


def _decided(evidence: tuple[Evidence, ...], bound: float) -> bool:
    votes = sum(_votes(item) for item in evidence)
    return any(
        item.detail.get("identical")
        or "base" in item.detail
        or (item.p_value is not None and item.p_value <= bound * _votes(item) / votes)
        for item in evidence
    )


def evidence_of(
    scores: Mapping[str, Score], victim: Victim, about: Mapping[str, Mapping[str, Any]], access: Access
) -> tuple[Evidence, ...]:
    """Judge the scores of one suspect against the victim's nulls, those that ask the suspect also taken together.

    Args:
        scores: by method.
        victim: has the nulls.
        about: by method, what was found out about the suspect when it was compared: see ``Comparison.detail``.
        access: with which the methods were run.
    """
    alone = tuple(_alone(name, score, victim, about[name], access) for name, score in scores.items())
    return (*alone, *_together(scores, victim, about, access)) if access >= Access.QUERIES else alone


def _together(
    scores: Mapping[str, Score], victim: Victim, about: Mapping[str, Mapping[str, Any]], access: Access
) -> Iterator[Evidence]:
    """Judge scores of several methods at once, if they can be."""
    nulls = {name: victim.null(name, about[name].get("shown")) for name in scores}
    judged = {
        name: calibrate.Judged(scores[name], null, restored(victim.fingerprints[name]).scatter)
        for name, null in nulls.items()
        if null is not None
    }
    names = [name for name, item in judged.items() if item.by_null]
    accuracy = about[names[0]].get("probe_accuracy") if names else None
    if found := calibrate.joint([judged[name] for name in names], accuracy=accuracy):
        value, p, null_about = found
        yield Evidence(
            method=JOINT,
            access=access,
            score=value,
            p_value=p,
            null=null_about,
            queries=0,
            statement=f"is by {value:.2f} standard deviations more like the victim than independents are, on average "
            f"over {len(names)} methods (the nearest of {null_about['n']} independents: {null_about['max']:.2f})",
            detail={"methods": names},
        )


def _alone(name: str, score: Score, victim: Victim, detail: Mapping[str, Any], access: Access) -> Evidence:
    """Judge one score against the victim's null."""
    fingerprint, null = victim.fingerprints[name], victim.null(name, detail.get("shown"))
    method = restored(fingerprint)
    accuracy = detail.get("probe_accuracy")
    p, about = calibrate.p_value(score, null, scatter=method.scatter, accuracy=accuracy)
    extra: dict[str, Any] = {"identical": True} if score.identical else {}
    if about and about.get("exact_p", 1.0) <= calibrate.SUSPECTED:
        extra["related"] = True
    found = {**score.detail, **method.judge(fingerprint, score, null)}
    return Evidence(
        method=name,
        access=access,
        score=score.value,
        p_value=p,
        null=about,
        queries=score.queries,
        statement=method.explain(score.value, found, about),
        parts=score.parts,
        detail={**found, **detail, **extra},
    )


def conclude(outcomes: Iterable[Outcome], alpha: float, sources: Mapping[str, str] | None = None) -> list[Finding]:
    """Judge all outcomes of a scan together: combined p-values, q-values, verdicts; arguments as for ``judged``."""
    held = list(outcomes)
    return list(judged(held, [p_values(outcome) for outcome in held], alpha, sources or {}))


def judged(
    outcomes: Iterable[Outcome],
    p_of: Sequence[Mapping[str, float | None]],
    alpha: float,
    sources: Mapping[str, str],
) -> Iterator[Finding]:
    """Judge outcomes whose p-values are known, one after the other: only one of them needs to be in memory.

    Args:
        outcomes: of a scan.
        p_of: ``p_values`` of each.
        alpha: share of false discoveries to accept among ``derived``.
        sources: by victim, what it was registered from; what cards declare is held against it.
    """
    tested = [p for each in p_of for p in each.values() if p is not None]
    q_values = iter(calibrate.q_values(tested) if tested else [])
    for outcome, each in zip(outcomes, p_of, strict=True):
        for victim, p in each.items():
            found = _finding(outcome, victim, p, next(q_values) if p is not None else None, alpha)
            yield _declared(found, outcome, sources)


def p_values(outcome: Outcome) -> dict[str, float | None]:
    """Return the combined p-value of a model for each victim, not corrected for others; None where nothing voted."""
    return {victim: combined(found) for victim, found in outcome.evidence.items()}


def combined(evidence: Sequence[Evidence]) -> float | None:
    """Return the p-value of all methods together, each with its votes, the joint test with one; None if none votes."""
    voting = [item.p_value for item in evidence if item.p_value is not None for _ in range(_votes(item))]
    return calibrate.combine(voting) if voting else None


def _votes(item: Evidence) -> int:
    return 1 if item.method == JOINT else kind(item.method).votes


def _finding(outcome: Outcome, victim: str, p: float | None, q: float | None, alpha: float) -> Finding:
    evidence = outcome.evidence[victim]
    verdict = calibrate.verdict(p, q, alpha)
    if any(item.detail.get("identical") for item in evidence):
        verdict = Verdict.IDENTICAL
    elif verdict not in (Verdict.DERIVED, Verdict.IDENTICAL) and any(item.detail.get("related") for item in evidence):
        verdict = Verdict.COMMON_ANCESTOR
    elif verdict == Verdict.INDEPENDENT and outcome.failure:
        verdict = Verdict.INCONCLUSIVE
    artifact, reason = outcome.artifact, _reason(verdict, evidence, outcome.silent[victim], outcome.failure)
    return Finding(
        target=artifact.target,
        victim=victim,
        verdict=verdict,
        reason=reason + _at_random(evidence) + _unrun(artifact, verdict),
        adapter=artifact.adapter,
        revision=artifact.revision,
        p_value=p,
        q_value=q,
        evidence=evidence,
        cost=outcome.cost,
    )


def _declared(finding: Finding, outcome: Outcome, sources: Mapping[str, str]) -> Finding:
    """Say where the model's card tells another story."""
    told = contradiction(finding.verdict, finding.target, outcome.artifact.declared, sources.get(finding.victim))
    return replace(finding, declared=told)


def _reason(verdict: Verdict, evidence: Sequence[Evidence], silent: Mapping[str, str], failure: str | None) -> str:
    """Say in one sentence what the verdict rests on."""
    voting = sorted((item for item in evidence if item.p_value is not None), key=lambda item: item.p_value or 0.0)
    if verdict == Verdict.IDENTICAL:
        return next(item.statement for item in evidence if item.detail.get("identical"))
    if failure and verdict == Verdict.INCONCLUSIVE:
        return f"could not be examined to the end: {failure}"
    related = next((item.statement for item in evidence if item.detail.get("related")), "")
    if not voting and related and verdict == Verdict.COMMON_ANCESTOR:
        return related
    if not voting:
        return next(iter(silent.values()), "no method with a null could be applied at this depth")
    if verdict == Verdict.INDEPENDENT and not any(item.access >= Access.QUERIES for item in voting):
        return f"{voting[0].statement}; whether it learned from the victim's answers was not judged"
    return voting[0].statement


def _unrun(artifact: Artifact, verdict: Verdict) -> str:
    """Say why a model was not asked, where it cannot be and its weights settled nothing."""
    settled = verdict in (Verdict.IDENTICAL, Verdict.DERIVED)
    return "" if artifact.unrun is None or settled else f" (only its weights were read: {artifact.unrun})"


def _at_random(evidence: Sequence[Evidence]) -> str:
    """Say that a suspect answers at random, if it does: honest models rarely do, some thefts hide behind it."""
    found = next((item.detail["random"] for item in evidence if "random" in item.detail), None)
    if found is None:
        return ""
    return (
        f". It answers at random ({found['changed']:.0%} of answers change when an image is shown again): "
        f"every image was shown {found['repeats']} times"
    )
