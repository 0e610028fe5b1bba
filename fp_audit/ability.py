"""What the methods of a registered victim can and cannot tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fp_audit import calibrate, methods
from fp_audit.types import Access, Null, Scatter, Score
from fp_audit.victims import Victim


@dataclass(frozen=True)
class Ability:
    """What one method can tell about a victim."""

    method: str
    access: Access
    queries: int
    own_score: float | None
    """What an exact copy gets."""
    null: Null | None
    threshold: float | None
    """Score from which one suspect alone is ``derived``; None if no score is."""
    statement: str


def abilities(victim: Victim, alpha: float = 0.01) -> list[Ability]:
    """Say what each of a victim's methods can and cannot tell, at level ``alpha`` for a single suspect."""
    return [_ability(victim, name, alpha) for name in victim.fingerprints]


def _ability(victim: Victim, name: str, alpha: float) -> Ability:
    method = methods.restored(victim.fingerprints[name])
    own = victim.facts["own_scores"].get(name)
    null = victim.nulls.get(name)
    queries = own["queries"] if own else 0
    threshold = None
    if method.suspect_access < Access.QUERIES:
        alone = "has a test of its own, needs no independents"
        statement = f"{alone}. Withstands {method.withstands}. Misses {method.misses}"
    elif null is None or len(null.scores) < calibrate.MIN_NULL:
        needed = f"{calibrate.MIN_NULL} independents or more (--references, --train-references)"
        statement = f"shown, but does not vote: needs {needed}"
    elif own["parts"]:
        p, _ = calibrate.p_value(Score(**own), null, scatter=method.scatter)
        if p is None:
            statement = "shown, but does not vote: too few independents offer what it compares"
        else:
            verdict = f"a copy has p = {p:.1g}" if p <= alpha else "too close to independents: cannot tell a copy"
            statement = f"judged in {len(own['parts'])} parts; {verdict}. Misses {method.misses}"
    else:
        threshold = _threshold(own["value"], null, own["trials"], method.scatter, alpha)
        statement = f"independents reach {max(null.scores):.2f}; "
        if threshold is None:
            statement += "too close to a copy: cannot tell one from the other"
        else:
            statement += f"derived from {threshold:.2f} on (a copy has {own['value']:.2f}). Misses {method.misses}"
    return Ability(name, method.suspect_access, queries, own and own["value"], null, threshold, statement)


def _threshold(own: float, null: Null, trials: int | None, scatter: Scatter, alpha: float) -> float | None:
    """Find the smallest score with p <= alpha by bisection between the null's mean and an exact copy's score."""
    sample = np.asarray(null.scores)
    low, high = float(sample.mean()), own
    if not calibrate.scatters(sample, trials, scatter):
        return None
    if calibrate.parametric_p(high, sample, trials=trials, scatter=scatter) > alpha:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        p = calibrate.parametric_p(middle, sample, trials=trials, scatter=scatter)
        low, high = (low, middle) if p <= alpha else (middle, high)
    return high
