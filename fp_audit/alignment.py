"""Probes: a few labelled images that tell how a suspect wants its input and what its outputs mean.

A file need not say how it was preprocessed or what its classes are called. Both are found out on the victim's
probes, before any method compares anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, Unanswered, UsageError
from fp_audit.metrics import accuracy
from fp_audit.model import HIDDEN, BlackBox, Memoised, Reordered, Unprepared, Widened, as_images, as_probabilities
from fp_audit.preprocess import Preprocess, candidates
from fp_audit.types import Images, Outputs, Pixels

ENOUGH = 0.5
"""Share of the victim's probe accuracy above its chance level that an aligned suspect must reach."""

NEARLY = 0.9
"""Share of the victim's probe accuracy at which the victim's own preprocessing and class order are taken at once."""

CLEARLY_BETTER = 0.1
"""Gain in probe accuracy for which a permutation of the classes is preferred to the order of the file."""


SURER = 0.05
"""Nats of mean log-likelihood that a network gains by being fed values far larger than it was trained on."""

BLANK_SIDE = 32
"""Pixels a side of the image that finds out how many outputs a model of any size has."""


@dataclass(frozen=True)
class Probes:
    """Labelled images of the victim's task, in the victim's class order."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    labels: NDArray[np.int64]
    """N, true labels."""
    classes: tuple[str, ...] | None
    count: int
    """Number of the victim's classes."""
    accuracy: float
    """The victim's own on these probes."""


def make_probes(data: Labelled, *, seed: int, accuracy: float = 1.0) -> Probes:
    """Draw probes from labelled images: four a class, but 64 to 400, as evenly over the classes as they come.

    Args:
        data: images of the victim's task.
        seed: of the draw.
        accuracy: the victim's on such images; 1 while it is not known.
    """
    count = data.class_count
    order = np.random.default_rng(seed).permutation(len(data))
    rank = np.empty(len(order), np.int64)
    for label in range(count):
        members = order[data.labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = np.sort(order[np.argsort(rank[order], kind="stable")][: int(np.clip(4 * count, 64, 400))])
    return Probes(data.pixels[chosen], data.labels[chosen], data.classes, count, accuracy)


def settle(opened: BlackBox | Unprepared, probes: Probes | None, known: Preprocess | None = None) -> Settled:
    """Find out how a model wants its images, if its file does not say so.

    The usual conventions are tried on the probes; of those that are as accurate as the best, within one standard error,
    the one under which the true labels are likeliest is taken. A network without normalisation is about as accurate,
    and surer of itself, on values 255 times too large: values above 1 must make up for ``SURER``.

    Args:
        opened: a model, possibly unprepared.
        probes: labelled images of its task.
        known: the convention of the victim, tried first and taken if it does nearly as well as on the victim.

    Without probes the victim's convention is believed.

    Raises:
        UsageError: it is unprepared and there are neither probes nor a known convention.
    """
    if not isinstance(opened, Unprepared):
        return Settled(opened, None)
    if probes is None and known is not None:
        return Settled(opened.with_preprocess(known), known)
    if probes is None:
        raise UsageError("the file does not say how images are preprocessed: pass --data to find out, or --preprocess")
    images = as_images(probes.pixels)
    if known is not None:
        model = Memoised.of(opened.with_preprocess(known))
        if _fit(model, images, probes)[0] >= NEARLY * probes.accuracy:
            return Settled(model, known)
    tried = [
        (preprocess, Memoised.of(opened.with_preprocess(preprocess))) for preprocess in candidates(opened.spec.channels)
    ]
    fits = [_fit(model, images, probes) for _, model in tried]
    best = max(reached for reached, _ in fits)
    enough = best - np.sqrt(best * (1.0 - best) / len(images))

    def rank(i: int) -> tuple[bool, float]:
        reached, likely = fits[i]
        return reached >= enough, float(np.nan_to_num(likely, nan=-np.inf)) - SURER * (tried[i][0].scale > 1.0)

    preprocess, model = tried[max(range(len(tried)), key=rank)]
    return Settled(model, preprocess)


def _fit(model: BlackBox, images: Images, probes: Probes) -> tuple[float, float]:
    """Return accuracy and mean log-likelihood of the true labels, after the best assignment of classes."""
    answers = model.predict(images)
    if answers.shape[1] < probes.count:
        return 0.0, 0.0
    order, _ = _order(model, answers, probes)
    likely = as_probabilities(answers, model.output)[:, order][np.arange(len(images)), probes.labels]
    return accuracy(answers[:, order], probes.labels), float(np.log(np.maximum(likely, 1e-7)).mean())


@dataclass(frozen=True)
class Settled:
    """A model that can be asked, and what was found out to make it so."""

    model: BlackBox
    preprocess: Preprocess | None
    """None where the file states it."""


@dataclass(frozen=True)
class Alignment:
    """How a suspect's classes correspond to the victim's."""

    model: BlackBox
    """The suspect, its classes in the victim's order."""
    order: NDArray[np.intp]
    """The suspect's column for each class of the victim."""
    how: str
    """``order``, ``names``, ``predictions``, or ``names, unchecked``."""
    accuracy: float | None
    """On the probes, after aligning; None where the probes have no answers."""


def align(suspect: BlackBox, probes: Probes) -> Alignment:
    """Bring a suspect's classes into the victim's order: by name, else by assignment on the probes' predictions.

    Without answers to the probes, names that are the victim's are believed.

    Raises:
        NotApplicable: the suspect has fewer classes than the victim, or knows nothing of the victim's task.
    """
    try:
        answers = suspect.predict(as_images(probes.pixels))
    except Unanswered as error:
        return _unchecked(suspect, probes, error)
    if answers.shape[1] < probes.count:
        raise NotApplicable(f"it has {answers.shape[1]} classes, the victim has {probes.count}")
    order, how = _order(suspect, answers, probes)
    reached = accuracy(answers[:, order], probes.labels)
    chance = 1.0 / probes.count
    if reached < chance + ENOUGH * (probes.accuracy - chance):
        raise NotApplicable(
            f"it is right on {reached:.0%} of the victim's probe images (the victim on {probes.accuracy:.0%}): "
            "another task, or its classes or preprocessing could not be found out"
        )
    return Alignment(Reordered(suspect, order, probes.classes), order, how, reached)


def _unchecked(suspect: BlackBox, probes: Probes, error: Unanswered) -> Alignment:
    """Align by name alone, for the reason that ``error`` states."""
    named = _by_name(suspect.classes, probes.classes)
    if named is None:
        raise NotApplicable(
            f"its classes are not named like the victim's, and cannot be matched on the labelled images: {error}"
        )
    return Alignment(Reordered(suspect, named, probes.classes), named, "names, unchecked", None)


def open_ended(suspect: BlackBox, count: int, classes: Sequence[str] | None) -> BlackBox:
    """Give a suspect that shows labels or top-k answers the victim's classes that it has not shown.

    Where every name that it uses is the victim's, the others are added by name, else as many columns as are missing.

    Args:
        suspect: the model.
        count: number of the victim's classes.
        classes: their names, if it has any.
    """
    if suspect.output not in HIDDEN:
        return suspect
    ours = {_key(name) for name in suspect.classes or ()}
    unseen = tuple(name for name in classes or () if _key(name) not in ours)
    if suspect.classes and classes and ours <= set(map(_key, classes)):
        return Widened(suspect, len(suspect.classes) + len(unseen), (*suspect.classes, *unseen))
    return Widened(suspect, count, suspect.classes)


def count_outputs(model: BlackBox) -> int:
    """Ask a model one black image and count its outputs."""
    spec = model.spec
    blank = np.zeros((1, spec.channels, spec.height or BLANK_SIDE, spec.width or BLANK_SIDE), np.float32)
    return int(model.predict(blank).shape[1])


def in_order(suspect: BlackBox, count: int | None, classes: Sequence[str] | None) -> BlackBox:
    """Believe that a suspect's classes are the victim's, by name or else in the order of its outputs.

    Args:
        suspect: the model.
        count: number of the victim's outputs; None if it was never asked.
        classes: their names, if it has any.

    Raises:
        NotApplicable: the suspect has another number of outputs, or the victim was never asked.
    """
    if count is None:
        raise NotApplicable("the victim was registered without data and was never asked")
    if (outputs := count_outputs(suspect)) != count:
        raise NotApplicable(f"it has {outputs} classes, the victim has {count}")
    named = _by_name(suspect.classes, tuple(classes) if classes else None)
    return suspect if named is None else Reordered(suspect, named, tuple(classes or ()))


def _order(suspect: BlackBox, answers: Outputs, probes: Probes) -> tuple[NDArray[np.intp], str]:
    """Return, for each class of the victim, the suspect's column, and how that was found."""
    named = _by_name(suspect.classes, probes.classes)
    if named is not None:
        return named, "names"
    straight = np.arange(probes.count)
    as_it_is = accuracy(answers[:, straight], probes.labels)
    if as_it_is >= NEARLY * probes.accuracy:
        return straight, "order"
    assigned = _by_predictions(as_probabilities(answers, suspect.output), probes)
    gain = accuracy(answers[:, assigned], probes.labels) - as_it_is
    return (assigned, "predictions") if gain > CLEARLY_BETTER else (straight, "order")


def _by_name(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> NDArray[np.intp] | None:
    if not ours or not theirs:
        return None
    where = {_key(name): index for index, name in enumerate(ours)}
    wanted = [_key(name) for name in theirs]
    if len(where) < len(ours) or not set(wanted) <= set(where):
        return None
    return np.array([where[name] for name in wanted], np.intp)


def _key(name: str) -> str:
    return name.strip().lower()


def _by_predictions(probabilities: Outputs, probes: Probes) -> NDArray[np.intp]:
    """Assign columns to classes so that the mean probability of the true class is largest (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    mass = np.zeros((probes.count, probabilities.shape[1]))
    np.add.at(mass, probes.labels, np.nan_to_num(probabilities))
    rows, columns = linear_sum_assignment(mass, maximize=True)
    return np.asarray(columns[np.argsort(rows)], np.intp)
