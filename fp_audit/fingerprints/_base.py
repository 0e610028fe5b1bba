"""What a method must offer: the algorithm in ``_generate`` and ``_compare``; the checks are here, in final drivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from fp_audit.data import Labelled
from fp_audit.errors import CorruptModel, DataError, UsageError
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Null, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


class Method(ABC):
    """One fingerprint: query set x representation x distance. Subclasses are final and only store their options.

    A score is a similarity: larger means more alike.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``fp-audit methods``."""
    paper: ClassVar[str]
    withstands: ClassVar[str]
    misses: ClassVar[str]
    """What the method is known to survive and not to survive, in plain words."""
    victim_access: ClassVar[Access]
    """Needed to generate."""
    suspect_access: ClassVar[Access]
    """Needed to compare."""
    suspect_gain: ClassVar[Access | None] = None
    """A higher access to the suspect with which the method says more; None if it has no use for one."""
    unaligned_gain: ClassVar[bool] = False
    """Whether, with that access, it also judges suspects whose classes cannot be aligned (``Subject.aligned``)."""
    default: ClassVar[bool] = True
    """Whether it is registered when nobody chooses: not if it trains networks or asks thousands of queries."""
    needs_data: ClassVar[bool]
    aligned: ClassVar[bool]
    """Whether the suspect's classes must be brought into the victim's order first."""
    uses_siblings: ClassVar[bool] = False
    """Whether it compares with models that the owner trained as the victim was: then it is registered by default where
    some are named."""
    votes: ClassVar[int] = 1
    """How often its p-value counts among those of all methods (``audit.combined``)."""
    scatter: ClassVar[Scatter] = Scatter()
    options: Mapping[str, Any]
    """Every option that changes the result, set by the constructor."""

    @classmethod
    @final
    def most_access(cls) -> Access:
        """Return the most access to the suspect that the method has a use for."""
        return cls.suspect_gain or cls.suspect_access

    @final
    def generate(
        self, victim: Subject, data: Labelled | None, *, seed: int, workshop: Workshop | None = None
    ) -> Fingerprint:
        """Build the fingerprint of a victim.

        Args:
            victim: limited here to ``victim_access``.
            data: labelled images of the victim's task; may be None for methods with ``needs_data = False``.
            seed: everything random follows from it.
            workshop: trains networks and shows progress; by default one on the CPU that is silent.

        Raises:
            NotApplicable: the method found nothing to fingerprint this victim by.
            DataError: the method needs data and got none, or the data do not fit.
            AccessError: the victim does not offer ``victim_access``.
        """
        from fp_audit.workshop import Workshop

        if self.needs_data:
            self.required(data)
        view, rng = victim.limited(self.victim_access), np.random.default_rng(seed)
        made = self._generate(view, data, rng, workshop or Workshop())
        queries = made.arrays.get("queries")
        if queries is not None and (queries.dtype != np.uint8 or queries.ndim != 4):
            raise TypeError(f"{self.name}: queries must be uint8 N x C x H x W, got {queries.dtype} {queries.shape}")
        return Fingerprint(self.name, {**self.options, "seed": seed}, made.arrays, made.facts)

    @final
    def compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        """Score a suspect against a fingerprint.

        Raises:
            UsageError: the fingerprint is another method's.
            CorruptModel: the suspect answers with NaN or infinity.
            NotApplicable: the method has nothing to say about this pair.
            AccessError: the suspect does not offer ``suspect_access``.
        """
        if fingerprint.method != self.name:
            raise UsageError(f"{self.name} was given a fingerprint of {fingerprint.method}")
        score = self._compare(fingerprint, suspect.limited(self.most_access()))
        if not np.isfinite([score.value, *score.parts.values()]).all():
            raise CorruptModel("it answers with NaN or infinity")
        return score

    def budget(self) -> int:
        """Return how many images are shown to a suspect at most; with ``suspect_gain`` it may be shown more."""
        return int(self.options.get("queries", 0))

    def judge(self, fingerprint: Fingerprint, score: Score, null: Null | None) -> Mapping[str, Any]:
        """Say what the score means by the rules of the method's own paper (thresholds, votes, tests).

        The verdict does not rest on it: it is added to the evidence. JSON values only; empty for most methods.
        """
        del fingerprint, score, null
        return {}

    @staticmethod
    @abstractmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """Say in plain words what a score means, to follow "the suspect ...".

        Args:
            score: ``Score.value``.
            detail: ``Score.detail``, with what ``judge`` adds.
            null: as in ``Evidence``.
        """

    @final
    def required(self, data: Labelled | None) -> Labelled:
        """Return ``data``, or raise the ``DataError`` that says that this method needs it."""
        if data is None:
            raise DataError(f"{self.name} needs labelled images: pass --data, or leave {self.name} out of --methods")
        return data

    @abstractmethod
    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        """Do the work of ``generate``; ``method`` and ``options`` of the result are filled in by the driver."""

    @abstractmethod
    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        """Do the work of ``compare``."""

    def __repr__(self) -> str:
        """Name the method with every option that changes its result."""
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.options.items())})"


def versus(null: Mapping[str, Any] | None, form: str) -> str:
    """Say what independents reach, to end an explanation; ``form`` formats one score."""
    return (
        f" (independents: {format(null['mean'], form)} on average, {format(null['max'], form)} at most)" if null else ""
    )
