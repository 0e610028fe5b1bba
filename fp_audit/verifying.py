"""A bundle of evidence, judged again without the suspects: from what they said to scores, p-values and verdicts.

What compares answers or digests of files is computed anew. What compared weights, or needed derivatives, is taken as
recorded; its p-value is computed anew from the independents where it was judged against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from fp_audit import __version__, archive, bundle, victims
from fp_audit.answers import Answers, Replayed
from fp_audit.audit import BASE_FILES, JOINT, Outcome, conclude, evidence_of, methods_for
from fp_audit.comparison import compare
from fp_audit.errors import BundleError, FpAuditError, TargetError, VictimError
from fp_audit.methods import rung
from fp_audit.reports._base import Report
from fp_audit.reports.json import Json
from fp_audit.subject import Subject
from fp_audit.targets import adapter
from fp_audit.types import Access, Artifact, Cost, Evidence, File, Finding, Score, Skipped
from fp_audit.victims import Victim

CLOSE = 1e-6
"""Largest difference, absolute or relative, of two numbers that are the same. On one machine they are equal to the last
bit; with other vector instructions (numpy's for Nehalem instead of AVX-512) scores moved by up to 3e-9."""

CLOSE_P = 1e-4
"""Largest relative difference of two p-values that are the same (1e-7 in the same trial): a tail magnifies rounding."""

ANEW = (Access.IDENTITY, Access.QUERIES)
"""What is computed anew: from the digests of files, from answers."""

CIRCUMSTANCES = ("preprocess", "random", BASE_FILES)
"""Details of evidence that answers do not tell, taken as recorded: how the suspect was fed, whether it was steady."""

WORDS = ("declared", "reason", "statement", "tool")
"""Parts that another version of fp-audit writes otherwise."""

_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Check:
    """One finding of a bundle, judged again."""

    finding: Finding
    """As it comes out anew."""
    computed: tuple[str, ...]
    """Methods whose scores were computed anew."""
    taken: tuple[str, ...]
    """Methods whose scores were taken as recorded."""
    differences: tuple[str, ...]
    """Where the bundle says something else; empty if the finding is confirmed."""


@dataclass(frozen=True)
class Commitment:
    """What binds a victim's fingerprints and nulls to a time before the dispute."""

    victim: str
    value: str | None
    """Computed anew; None if the victim was registered without one."""
    registered: str
    published: bool
    """Whether it is one that was published."""


@dataclass(frozen=True)
class Verification:
    """What came of judging a bundle again."""

    checks: tuple[Check, ...]
    commitments: tuple[Commitment, ...]
    differences: tuple[str, ...]
    """What is wrong with the bundle outside its findings."""
    version: str
    """The fp-audit that wrote the bundle."""
    alpha: float
    """The level at which it calls suspects derived."""

    @property
    def texts(self) -> bool:
        """Whether summary and reasons were compared too: only the version that wrote them writes the same ones."""
        return self.version == __version__

    @property
    def believed(self) -> tuple[str, ...]:
        """Methods whose scores were taken as recorded."""
        return tuple(sorted({method for check in self.checks for method in check.taken}))

    @property
    def confirmed(self) -> bool:
        """Whether everything is as the bundle says."""
        return not self.differences and not any(check.differences for check in self.checks)


def verify(path: Path, published: Sequence[str] = ()) -> Verification:
    """Check a bundle and judge it again.

    Args:
        path: the archive.
        published: commitments that were published before the dispute; each must be that of a victim of the bundle, and
            each victim that is judged must have one of them.

    Raises:
        BundleError: it is no bundle, is damaged, or does not match its own manifest.
    """
    with TemporaryDirectory() as folder:
        manifest = archive.unpack(path, Path(folder), bundle.MEMBER)
        try:
            return _verified(_Opened.at(Path(folder), manifest), published)
        except BundleError:
            raise
        except FpAuditError as error:
            raise BundleError(f"the bundle cannot be judged: {error}") from None
        except _MALFORMED as error:
            raise BundleError(f"the bundle is malformed ({type(error).__name__}: {error})") from None
        except FileNotFoundError as error:
            raise BundleError(f"{Path(error.filename).relative_to(folder)} is missing") from None


@dataclass(frozen=True)
class _Opened:
    """A bundle that matches its manifest."""

    manifest: Mapping[str, Any]
    report: Mapping[str, Any]
    said: Sequence[Mapping[str, Any]]
    """Of each suspect, as ``manifest["suspects"]`` lists them."""
    page: str
    folders: Mapping[str, Path]
    victims: Mapping[str, Victim]

    @classmethod
    def at(cls, root: Path, manifest: dict[str, Any]) -> Self:
        """Read what lies under ``root``."""
        if manifest["schema_version"] != bundle.SCHEMA_VERSION:
            raise BundleError(
                f"written in schema {manifest['schema_version']}, expected {bundle.SCHEMA_VERSION}: "
                "use the version of fp-audit that wrote it"
            )
        folders = {name: root / "victims" / victims.check_name(name) for name in manifest["victims"]}
        return cls(
            manifest,
            archive.read_json(root / bundle.REPORT),
            [archive.read_json(root / "answers" / f"{n}.json") for n, _ in enumerate(manifest["suspects"], 1)],
            (root / bundle.SUMMARY).read_text(encoding="utf-8"),
            folders,
            {name: _victim(folder) for name, folder in folders.items()},
        )

    @property
    def depth(self) -> Access:
        """How deep suspects were examined."""
        return Access[self.report["depth"].upper()]

    @property
    def ours(self) -> bool:
        """Whether this version wrote it."""
        return bool(self.manifest["tool"]["version"] == __version__)

    @property
    def ignored(self) -> Collection[str]:
        """Keys that are not compared: costs, which answers do not tell, and words of another version."""
        return ("cost",) if self.ours else ("cost", *WORDS)


@dataclass(frozen=True)
class _Judged:
    """One suspect against one victim, before it is judged among the others."""

    evidence: tuple[Evidence, ...]
    silent: Mapping[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def _victim(folder: Path) -> Victim:
    try:
        return bundle.load_victim(folder)
    except VictimError as error:  # without its advice to register the victim again
        raise BundleError(f"victims/{folder.name} is damaged: {str(error).partition(';')[0]}") from None


def _verified(opened: _Opened, published: Sequence[str]) -> Verification:
    recorded = iter(opened.report["findings"])
    outcomes: list[Outcome] = []
    judged: list[_Judged] = []
    for about, said in zip(opened.manifest["suspects"], opened.said, strict=True):
        against = {name: _judge(opened, name, next(recorded, None), about, said) for name in about["silent"]}
        judged += against.values()
        outcomes.append(_outcome(about, against))
    sources = {name: victim.source for name, victim in opened.victims.items()}
    alpha = opened.report["alpha"]
    if not (isinstance(alpha, float) and 0 < alpha < 1):
        raise BundleError(f"{bundle.REPORT}: alpha is {_short(alpha)}, expected a number between 0 and 1")
    findings = conclude(outcomes, alpha, sources)
    anew = _rendered(opened, findings)
    commitments = tuple(_commitment(name, folder, published) for name, folder in opened.folders.items())
    whole = [*_whole(opened, anew), *_unpublished(commitments, published, {finding.victim for finding in findings})]
    pairs = zip(opened.report["findings"], anew["findings"], strict=False)  # a missing one is told by _whole
    checks = [_check(opened, *row) for row in zip(findings, judged, pairs, strict=False)]
    return Verification(tuple(checks), commitments, tuple(whole), str(opened.manifest["tool"]["version"]), alpha)


def _judge(
    opened: _Opened, name: str, finding: Mapping[str, Any] | None, about: Mapping[str, Any], said: Mapping[str, Any]
) -> _Judged:
    """Judge one suspect anew against the victim ``name``, as far as the bundle tells, one access after the other."""
    if finding is None:
        raise BundleError("report.json lacks findings on models that were examined")
    victim = opened.victims[name]
    shared = {path for item in finding["evidence"] for path in item["detail"].get(BASE_FILES, ())}
    views = {Access.IDENTITY: Subject(files=tuple(file for file in _artifact(about).files if file.path not in shared))}
    if name in said:
        views[Access.QUERIES] = Subject.of_model(Replayed(Answers.from_json(said[name])))
    gives = adapter(about["adapter"]).gives
    recorded: dict[Access, list[Evidence]] = {access: [] for access in Access}
    for item in map(_evidence, finding["evidence"]):
        if item.method != JOINT:  # it follows from the others
            recorded[rung(item.method, opened.depth)].append(item)
    steps = [
        _anew(views.get(access), victim, methods_for(victim, access, opened.depth, gives), access, recorded[access])
        if access in ANEW
        else _Judged(_taken(recorded[access], victim, access))
        for access in Access
    ]
    believed = {method: why for method, why in about["silent"][name].items() if rung(method, opened.depth) not in ANEW}
    evidence = tuple(item for step in steps for item in step.evidence)
    told = believed | {method: why for step in steps for method, why in step.silent.items()}
    silent = {method: told[method] for method in (*about["silent"][name], *told) if method in told}
    seen = {item.method for item in evidence} | set(silent)
    left_out = _left_out(victim, seen, opened.depth, gives, examined=about["failure"] is None)
    computed = tuple(method for step in steps for method in step.computed)
    return _Judged(evidence, silent, computed, (*(text for step in steps for text in step.problems), *left_out))


def _anew(
    view: Subject | None, victim: Victim, names: Sequence[str], access: Access, recorded: Sequence[Evidence]
) -> _Judged:
    """Compute some methods anew; without a view of the suspect nothing that is recorded is believed."""
    if view is None:
        return _Judged(())
    try:
        done = compare(view, victim, names, access)
    except TargetError as error:
        return _Judged((), problems=(f"{access}: what is recorded cannot be judged: {error}",))
    detail = {**done.detail, **_circumstances(recorded)}
    evidence = evidence_of(done.scores, victim, dict.fromkeys(done.scores, detail), access)
    return _Judged(evidence, done.silent, tuple(item.method for item in evidence))


def _circumstances(recorded: Sequence[Evidence]) -> dict[str, Any]:
    """Return what is recorded about the suspect besides its answers."""
    return {key: item.detail[key] for item in recorded for key in CIRCUMSTANCES if key in item.detail}


def _taken(recorded: Sequence[Evidence], victim: Victim, access: Access) -> tuple[Evidence, ...]:
    """Judge scores that are taken as recorded."""
    scores = {item.method: _score(item, victim) for item in recorded}
    return evidence_of(scores, victim, {item.method: item.detail for item in recorded}, access)


def _score(item: Evidence, victim: Victim) -> Score:
    """Return the score that evidence was made from; only methods that do not ask have an exact test of their own."""
    exact = None
    if not bundle.asks(item.method):
        exact = item.null.get("exact_p") if item.null else item.p_value
    own = victim.facts["own_scores"].get(item.method) or {}
    return Score(
        value=item.score,
        p_value=exact,
        identical=item.detail.get("identical") is True,
        queries=item.queries,
        trials=own.get("trials"),
        parts=item.parts,
        detail=item.detail,
    )


def _evidence(item: Mapping[str, Any]) -> Evidence:
    return Evidence(**{**item, "access": Access[item["access"].upper()]})


def _artifact(about: Mapping[str, Any]) -> Artifact:
    files = tuple(File(**file) for file in about["files"])
    stated = about.get("declared")
    declared = None if stated is None else tuple(map(str, stated))
    return Artifact(about["target"], about["adapter"], files, ".", None, about["revision"], declared=declared)


def _outcome(about: Mapping[str, Any], against: Mapping[str, _Judged]) -> Outcome:
    return Outcome(
        _artifact(about),
        {name: item.evidence for name, item in against.items()},
        {name: item.silent for name, item in against.items()},
        about["failure"],
        Cost(),
    )


def _rendered(opened: _Opened, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the report of the findings that came out anew."""
    report = opened.report
    skipped = tuple(Skipped(item["target"], item["reason"]) for item in report["skipped"])
    anew = Report(tuple(report["victims"]), tuple(findings), skipped, report["alpha"], opened.depth)
    rendered: dict[str, Any] = json.loads(Json().render(anew))
    return rendered


def _check(opened: _Opened, finding: Finding, item: _Judged, pair: tuple[Any, Any]) -> Check:
    taken = tuple(evidence.method for evidence in item.evidence if evidence.method not in item.computed)
    return Check(finding, item.computed, taken, (*item.problems, *apart(*pair, opened.ignored)))


def _left_out(
    victim: Victim, seen: Collection[str], depth: Access, gives: Collection[Access], *, examined: bool
) -> Iterator[str]:
    """Name methods of which nothing is recorded: all should be run, up to where a suspect failed."""
    expected = {access: methods_for(victim, access, depth, gives) for access in Access if access <= depth}
    reached = [access for access, names in expected.items() if examined or set(names) & set(seen)]
    for access in reached:
        for method in expected[access]:
            if method not in seen:
                yield f"{method}: it should have been run, and nothing is recorded"


def _whole(opened: _Opened, anew: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a bundle outside its findings."""
    counts = len(opened.report["findings"]), len(anew["findings"])
    if counts[0] != counts[1]:
        yield f"{bundle.REPORT}: {counts[0]} findings, and answers for {counts[1]}"
    yield from apart(opened.report, anew, (*opened.ignored, "findings"), bundle.REPORT)
    for name, folder in opened.folders.items():
        where = f"{archive.MANIFEST}: {name}"
        yield from apart(opened.manifest["victims"][name], bundle.about_victim(folder), (), where)
        about = archive.read_json(folder / "victim.json")
        if about.get("commitment") not in (None, victims.commitment(about)):
            yield f"{name}: its fingerprints, independents or dates are not what was committed to at registration"
    if opened.ours and opened.page != bundle.summary(opened.manifest, opened.report, opened.folders):
        yield f"{bundle.SUMMARY} does not say what the other members say"


def _commitment(name: str, folder: Path, published: Sequence[str]) -> Commitment:
    about = archive.read_json(folder / "victim.json")
    value = victims.commitment(about) if "commitment" in about else None
    return Commitment(name, value, str(about["facts"]["registered"]), value in [_plain(text) for text in published])


def _unpublished(commitments: Sequence[Commitment], published: Sequence[str], judged: Collection[str]) -> Iterator[str]:
    """Name published commitments that no victim has, and victims that were judged and have none of them."""
    found = {item.value for item in commitments}
    for value in map(_plain, published):
        if value not in found:
            yield f"the evidence is not what was committed to: no victim of the bundle has the commitment {value}"
    for item in commitments:
        if published and item.victim in judged and not item.published:
            yield f"the evidence against {item.victim} is not what was committed to: it has another commitment"


def _plain(commitment: str) -> str:
    return commitment.strip().lower()


def apart(recorded: Any, anew: Any, ignored: Collection[str] = (), where: str = "") -> Iterator[str]:  # noqa: ANN401
    """Say where two JSON values differ, numbers by more than rounding.

    Args:
        recorded: one value.
        anew: the other.
        ignored: keys of objects that are left out.
        where: what to call the place.
    """
    if isinstance(recorded, dict) and isinstance(anew, dict):
        for key in dict.fromkeys([*recorded, *anew]):
            if key not in ignored:
                inner = f"{where}.{key}" if where else str(key)
                yield from apart(recorded.get(key), anew.get(key), ignored, inner)
    elif isinstance(recorded, list) and isinstance(anew, list) and len(recorded) == len(anew):
        for i, (one, other) in enumerate(zip(recorded, anew, strict=True)):
            named = other.get("method", i) if isinstance(other, dict) else i
            yield from apart(one, other, ignored, f"{where}.{named}")
    elif not _same(recorded, anew, where):
        yield f"{where}: the bundle says {_short(recorded)}, computed anew it is {_short(anew)}"


def _same(recorded: Any, anew: Any, where: str) -> bool:  # noqa: ANN401
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, anew)):
        return type(recorded) is type(anew) and bool(recorded == anew)
    if "p_value" in where or "q_value" in where or "_p" in where:
        return math.isclose(recorded, anew, rel_tol=CLOSE_P)
    return math.isclose(recorded, anew, rel_tol=CLOSE, abs_tol=CLOSE)


def _short(value: Any) -> str:  # noqa: ANN401
    """Show a value; of evidence only the methods."""
    if isinstance(value, list) and all(isinstance(item, dict) and "method" in item for item in value):
        return "evidence of " + (", ".join(str(item["method"]) for item in value) or "no method")
    return json.dumps(value)[:120]
