"""One model against one victim: every method that the access allows, each on the right view of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fp_audit.alignment import align, in_order, open_ended, settle
from fp_audit.answers import Answers, Recorded
from fp_audit.errors import NotApplicable, Unanswered
from fp_audit.fingerprints._base import Method
from fp_audit.methods import restored
from fp_audit.model import HIDDEN, Averaged, BlackBox, Memoised, as_images, cut, memoised
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


CHECKED = 8
"""Probes that a suspect is shown twice to find out whether it answers at random."""

REPEATS = 4
"""Times that a suspect which answers at random is shown each image, unless told otherwise."""

NOISE = 1e-3
"""Change of an answer, as a share of the largest one, that rounding and batching may explain."""


def compare(
    subject: Subject,
    victim: Victim,
    names: Collection[str],
    access: Access,
    *,
    record: bool = False,
    repeats: int = REPEATS,
) -> Comparison:
    """Run some of the victim's methods with at most ``access`` to the suspect.

    Args:
        subject: the suspect.
        victim: the victim, with the fingerprints of ``names``.
        names: methods.
        access: most access that is granted.
        record: write down what the suspect says.
        repeats: times that each image is shown to a suspect that answers at random; its answers are averaged.

    Raises:
        TargetError: the suspect cannot be opened.
    """
    methods = {name: restored(victim.fingerprints[name]) for name in names}
    subject = subject.limited(access)
    if not methods:
        return Comparison({}, {})
    if access < Access.QUERIES:
        return _run(methods, victim, subject, subject)
    opened = memoised(subject.opened())
    before = opened.queries
    settled = settle(opened, victim.probes, victim.preprocess)
    remembered = Memoised.of(settled.model)
    changes = changed_answers(remembered, remembered.fresh, victim, names) if repeats > 1 else 0.0
    steady = Memoised(Averaged(remembered.fresh, repeats)) if changes else remembered
    recorded = Recorded(steady)
    if settled.preprocess is not None:
        subject = subject.prepared(settled.preprocess)
    asked = recorded if record else steady
    shown = settled.model.output if settled.model.output in HIDDEN else None
    view = subject.seen_as(open_ended(cut(asked, shown) if shown else asked, *_classes(victim)))
    aligned, detail = _aligned(view, victim)
    detail["preprocess"] = settled.preprocess.describe() if settled.preprocess else "stated by the model"
    if shown:
        detail["shown"] = shown
    if changes:
        detail["random"] = {"changed": changes, "repeats": repeats}
    done = _run(methods, victim, view, aligned)
    answers = recorded.answers if record else None
    return Comparison(done.scores, done.silent, opened.queries - before, detail, answers)


def changed_answers(model: BlackBox, again: BlackBox, victim: Victim, names: Collection[str]) -> float:
    """Return the share of images whose answer changes beyond rounding when they are shown a second time.

    They are a few probes, and a few queries where there are no probes or only labels are seen: those of probes are too
    sure to change. An answer that is not known (see ``Unanswered``) does not change.

    Args:
        model: asked for all probes, or all queries of one method.
        again: the same, asked for ``CHECKED`` of them.
        victim: has the images.
        names: of the methods that will be run.
    """
    shown = [victim.probes.pixels] if victim.probes is not None else []
    if not shown or model.output == "labels":
        shown += [each for name in names if (each := victim.fingerprints[name].arrays.get("queries")) is not None][:1]
    changed = []
    for pixels in shown:
        images = as_images(pixels)
        try:
            first, second = model.predict(images)[:CHECKED], again.predict(images[:CHECKED])
        except Unanswered:
            continue
        changed.append(np.abs(first - second).max(axis=1) > NOISE * np.abs(first).max())
    return float(np.concatenate(changed).mean()) if changed else 0.0


def _classes(victim: Victim) -> tuple[int, tuple[str, ...] | None]:
    """Return number and names of a victim's classes; 0 if it was never asked."""
    if victim.probes is not None:
        return victim.probes.count, victim.probes.classes
    return victim.facts.get("outputs") or 0, victim.facts.get("classes")


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
