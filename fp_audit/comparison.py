"""One model against one victim: every method that the access allows, each on the right view of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fp_audit import plugins
from fp_audit.alignment import align, settle
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._base import Method
from fp_audit.model import Counted, Memoised
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Score
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


def method_of(fingerprint: Fingerprint) -> Method:
    """Return the method that made a fingerprint, with the options that it was made with."""
    options = {key: value for key, value in fingerprint.options.items() if key != "seed"}
    method: Method = plugins.load("fingerprints", fingerprint.method)(**options)
    return method


def compare(subject: Subject, victim: Victim, access: Access) -> Comparison:
    """Run the victim's methods that need exactly ``access`` of the suspect.

    Raises:
        TargetError: the suspect cannot be opened.
    """
    methods = {name: method_of(fingerprint) for name, fingerprint in victim.fingerprints.items()}
    methods = {name: method for name, method in methods.items() if method.suspect_access == access}
    if not methods:
        return Comparison({}, {})
    if access < Access.QUERIES:
        return _run(methods, victim, subject, subject, "")
    settled = settle(subject.opened(), victim.probes, victim.preprocess)
    counted = Counted(settled.model)
    view = subject.seen_as(Memoised(counted))
    detail: dict[str, Any] = {
        "preprocess": settled.preprocess.describe() if settled.preprocess else "stated by the model"
    }
    aligned, why = None, "the victim was registered without data"
    if victim.probes is not None:
        try:
            alignment = align(view.black_box(), victim.probes)
            aligned = subject.seen_as(alignment.model)
            detail |= {"classes_aligned_by": alignment.how, "probe_accuracy": alignment.accuracy}
        except NotApplicable as error:
            why = str(error)
    done = _run(methods, victim, view, aligned, why)
    return Comparison(done.scores, done.silent, settled.queries + counted.queries, detail)


def _run(
    methods: Mapping[str, Method], victim: Victim, plain: Subject, aligned: Subject | None, why: str
) -> Comparison:
    scores: dict[str, Score] = {}
    silent: dict[str, str] = {}
    for name, method in methods.items():
        view = aligned if method.aligned else plain
        if view is None:
            silent[name] = why
            continue
        try:
            scores[name] = method.compare(victim.fingerprints[name], view)
        except NotApplicable as error:
            silent[name] = str(error)
    return Comparison(scores, silent)
