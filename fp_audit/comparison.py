"""One model against one victim: every method that the access allows, each on the right view of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp_audit.alignment import align, in_order, settle
from fp_audit.answers import Answers, Recorded
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._base import Method
from fp_audit.methods import restored
from fp_audit.model import Counted, Memoised
from fp_audit.subject import Subject
from fp_audit.types import Access, Score
from fp_audit.victims import Victim


@dataclass(frozen=True)
class Comparison:
    """What the methods of one access found."""

    scores: Mapping[str, Score]
    """By method."""
    silent: Mapping[str, str]
    """Method -> why it has nothing to say."""
    queries: int = 0
    """Images that the model was really asked; methods that share queries share answers."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What was found out about the model: preprocessing, class alignment."""
    answers: Answers | None = None
    """All that the model said, in its own class order, where that was to be recorded."""


def compare(
    subject: Subject, victim: Victim, names: Collection[str], access: Access, *, record: bool = False
) -> Comparison:
    """Run some of the victim's methods with at most ``access`` to the suspect.

    Args:
        subject: the suspect.
        victim: the victim, with the fingerprints of ``names``.
        names: methods.
        access: most access that is granted.
        record: write down what the suspect says.

    Raises:
        TargetError: the suspect cannot be opened.
    """
    methods = {name: restored(victim.fingerprints[name]) for name in names}
    subject = subject.limited(access)
    if not methods:
        return Comparison({}, {})
    if access < Access.QUERIES:
        return _run(methods, victim, subject, subject)
    settled = settle(subject.opened(), victim.probes, victim.preprocess)
    recorded = Recorded(settled.model)
    counted = Counted(recorded if record else settled.model)
    if settled.preprocess is not None:
        subject = subject.prepared(settled.preprocess)
    view = subject.seen_as(Memoised(counted))
    aligned, detail = _aligned(view, victim)
    detail["preprocess"] = settled.preprocess.describe() if settled.preprocess else "stated by the model"
    done = _run(methods, victim, view, aligned)
    queries, answers = settled.queries + counted.queries, recorded.answers if record else None
    return Comparison(done.scores, done.silent, queries, detail, answers)


def _aligned(view: Subject, victim: Victim) -> tuple[Subject | str, dict[str, Any]]:
    """Bring a suspect's classes into the victim's order; return the view, or why that is impossible, and how.

    Without probes the order cannot be checked: names, or else the order of the file, are believed.
    """
    try:
        if victim.probes is None:
            assumed = in_order(view.black_box(), victim.facts.get("outputs"), victim.facts.get("classes"))
            return view.seen_as(assumed), {"classes_aligned_by": "unchecked order"}
        alignment = align(view.black_box(), victim.probes)
    except NotApplicable as error:
        return str(error), {}
    found = {"classes_aligned_by": alignment.how, "probe_accuracy": alignment.accuracy}
    return view.seen_as(alignment.model), found


def _run(methods: Mapping[str, Method], victim: Victim, plain: Subject, aligned: Subject | str) -> Comparison:
    scores: dict[str, Score] = {}
    silent: dict[str, str] = {}
    for name, method in methods.items():
        view = aligned if method.aligned else plain
        if isinstance(view, str) and method.unaligned_gain and plain.can_be_differentiated():
            view = plain.unaligned()
        if isinstance(view, str):
            silent[name] = view
            continue
        try:
            scores[name] = method.compare(victim.fingerprints[name], view)
        except NotApplicable as error:
            silent[name] = str(error)
    return Comparison(scores, silent)
