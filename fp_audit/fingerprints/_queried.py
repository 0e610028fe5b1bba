"""Methods that are a query set, a representation and a distance, and compositions of other such parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.errors import UsageError
from fp_audit.fingerprints._base import Method, versus
from fp_audit.fingerprints._queries import predict_pixels
from fp_audit.fingerprints._representations import DISTANCES, REPRESENTATIONS
from fp_audit.model import as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Pixels, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop


@dataclass(frozen=True)
class Queries:
    """A query set."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Queried(Method):
    """Shows one query set to victim and suspect, reads both alike and compares.

    Subclasses make the queries; ``representation`` and ``distance`` name entries of ``_representations``.
    """

    query_set: ClassVar[str | None] = None
    """What compositions call these queries; None if another method makes the same ones."""
    representation: ClassVar[str] = "labels"
    distance: ClassVar[str] = "hamming"
    suspect_access: ClassVar[Access] = Access.QUERIES

    @abstractmethod
    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        """Make the query set; see ``Method.generate``."""

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        queries, model = self._queries(victim, data, rng, workshop), victim.black_box()
        read = REPRESENTATIONS[self.representation].read(predict_pixels(model, queries.pixels), model.output)
        facts = {"queries": len(queries.pixels), **queries.facts}
        return Fingerprint(self.name, {}, {"queries": queries.pixels, self.representation: read}, facts)

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        queries, model = fingerprint.arrays["queries"], suspect.black_box()
        read = REPRESENTATIONS[self.representation].read(model.predict(as_images(queries)), model.output)
        distance = DISTANCES[self.distance]
        value = distance.similarity(read, fingerprint.arrays[self.representation])
        return Score(value, queries=len(queries), trials=len(queries) if distance.rate else None)


def composed(
    source: type[Queried] | None, queries: str, representation: str, distance: str, *, known: Sequence[str]
) -> type[Queried]:
    """Make the method that shows the queries of ``source`` and reads and compares the answers another way.

    Args:
        source: makes the queries; its options are the composition's.
        queries: what they are called.
        representation: name in ``REPRESENTATIONS``.
        distance: name in ``DISTANCES``.
        known: names of all query sets, for a message.

    Raises:
        UsageError: a part is unknown, or the parts do not fit.
    """
    name = f"{queries}+{representation}+{distance}"
    parts = {"queries": (queries, known), "representation": (representation, REPRESENTATIONS)}
    for what, (given, allowed) in {**parts, "distance": (distance, DISTANCES)}.items():
        if given not in allowed:
            raise UsageError(f"{name!r}: no {what} {given!r}; expected one of {', '.join(allowed)}")
    if representation not in DISTANCES[distance].fits:
        fitting = ", ".join(DISTANCES[distance].fits)
        raise UsageError(f"{name!r}: {distance} does not compare {representation}; it compares {fitting}")
    if source is None:
        raise UsageError(f"{name!r}: nothing makes the queries {queries!r}")
    form = ".0%" if DISTANCES[distance].rate else ".3f"

    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        del detail
        alike = f"answers the {queries} queries like the victim ({representation}, {distance}): {score:{form}}"
        return alike + versus(null, form)

    return type(
        source.__name__ + representation.title() + distance.title(),
        (source,),
        {
            "__module__": source.__module__,
            "__doc__": f"{queries} queries, {representation}, {distance}. Source of the queries: {source.paper}.",
            "name": name,
            "summary": f"{representation} on the queries of {source.name}, compared by {distance}",
            "query_set": None,
            "representation": representation,
            "distance": distance,
            "aligned": REPRESENTATIONS[representation].aligned,
            "votes": 1,
            "scatter": source.scatter if DISTANCES[distance].rate else Scatter(0.01),
            "suspect_gain": None,
            "unaligned_gain": False,
            "explain": staticmethod(explain),
            "judge": Method.judge,
            "_generate": Queried._generate,
            "_compare": Queried._compare,
        },
    )
