"""Judging what models said: again and again, as if they showed less, or as if there were fewer references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from fp_audit import audit
from fp_audit.answers import Answers, Replayed
from fp_audit.comparison import Comparison, compare
from fp_audit.engine import Progress
from fp_audit.evaluating import COMBINED, EVERY, Gain, Model, Rate, Row, Setting, counted, share, strength
from fp_audit.model import BlackBox, Wrapper, as_probabilities, cut
from fp_audit.subject import Subject
from fp_audit.types import Access, Evidence, Images, Null, OutputKind, Outputs
from fp_audit.victims import Victim

REFERENCES = (8, 16, 32)
"""Numbers of references whose worth is measured, beside all that there are."""


@dataclass(frozen=True)
class Told:
    """What one model said."""

    answers: Mapping[str, Sequence[Answers]]
    """By name of the victim: all that it said, several times over if it answers at random."""
    seconds: float


class _Drawn(Replayed):
    """Says again what was written down of a model that answers at random, one recording after another."""

    def __init__(self, drawn: Sequence[Answers]) -> None:
        super().__init__(drawn[0])
        self._turns = cycle([Replayed(answers) for answers in drawn])

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return next(self._turns).predict(images)


class _Probabilities(Wrapper):
    """Shows all probabilities and no logits."""

    @property
    def output(self) -> OutputKind:
        """Always ``probabilities``."""
        return "probabilities"

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return as_probabilities(self._model.predict(images), self._model.output)


SHOWN: Mapping[str, Callable[[BlackBox], BlackBox]] = {
    "logits": lambda model: model,
    "probabilities": _Probabilities,
    "top-3": lambda model: cut(model, "topk"),
    "top-1": lambda model: cut(model, "labels"),
}
"""What an API shows of a model, by name; ``logits`` is all that the model says."""


def every(
    told: Mapping[str, Told], registered: Collection[Victim], progress: Progress
) -> tuple[list[Row], dict[str, float | None]]:
    """Judge what every model said, for every budget and output; return also accuracies on the victim's probes."""
    rows: list[Row] = []
    reached: dict[str, float | None] = {}
    for done, (name, said) in enumerate(told.items()):
        progress(f"judging {len(told)} models", done / len(told))
        for victim in registered:
            for output, shown in SHOWN.items():
                view = shown(_Drawn(said.answers[victim.name]))
                found, accuracy = judged(name, view, victim, output)
                rows += found
                reached.setdefault(name, accuracy)
    progress(f"judging {len(told)} models", 1.0)
    return rows, reached


def judged(name: str, model: BlackBox, victim: Victim, output: str) -> tuple[list[Row], float | None]:
    """Judge a model as a scan of it alone would.

    Returns:
        The score of each method that has something to say and of all together, and the accuracy on the probes.
    """
    compared = _compared(model, victim)
    evidence = _evidence(compared, victim)
    p = _p(evidence)
    budget = victim.facts["budget"]
    rows = [
        Row(name, Setting(item.method, budget, output), item.score, item.p_value, item.queries) for item in evidence
    ]
    rows.append(Row(name, Setting(COMBINED, budget, output), strength(p), p, compared.queries))
    return rows, compared.detail.get("probe_accuracy")


def _compared(model: BlackBox, victim: Victim) -> Comparison:
    return compare(Subject.of_model(model), victim, voting(victim), Access.QUERIES)


def _evidence(compared: Comparison, victim: Victim) -> tuple[Evidence, ...]:
    return audit.evidence_of(compared.scores, victim, dict.fromkeys(compared.scores, compared.detail), Access.QUERIES)


def _p(evidence: Sequence[Evidence]) -> float:
    """Return the p-value of all methods together, 1 if none has one."""
    p = audit.combined(evidence)
    return 1.0 if p is None else p


def gains(models: Sequence[Model], told: Mapping[str, Told], victim: Victim, alpha: float) -> Iterator[Gain]:
    """Judge all again as if the victim had been registered with fewer references.

    Args:
        models: of the zoo.
        told: what each said.
        victim: its nulls are cut to some of its references, drawn at random: they are sorted by architecture.
        alpha: level at which a model is called derived.
    """
    references = sorted({name for null in victim.nulls.values() for name in null.names})
    drawn = [references[i] for i in np.random.default_rng(0).permutation(len(references))]
    positives = counted(models).get(EVERY, [])
    negatives = [model.name for model in models if model.role == "independent"]
    compared = {
        output: {name: _compared(shown(_Drawn(said.answers[victim.name])), victim) for name, said in told.items()}
        for output, shown in SHOWN.items()
    }
    for size in (*(size for size in REFERENCES if size < len(drawn)), len(drawn)):
        seen = fewer(victim, drawn[:size])
        for output, found in compared.items():
            p_values = {name: _p(_evidence(comparison, seen)) for name, comparison in found.items()}
            yield Gain(size, output, *(_caught(p_values, names, alpha) for names in (positives, negatives)))


def _caught(p_values: Mapping[str, float], names: Sequence[str], alpha: float) -> Rate | None:
    return share(sum(p_values[name] <= alpha for name in names), len(names)) if names else None


def fewer(victim: Victim, references: Collection[str]) -> Victim:
    """Return the victim as if it had been registered with these of its references only."""
    hidden = {
        shown: {name: _cut(null, references) for name, null in nulls.items()} for shown, nulls in victim.hidden.items()
    }
    return replace(victim, nulls={name: _cut(null, references) for name, null in victim.nulls.items()}, hidden=hidden)


def _cut(null: Null, references: Collection[str]) -> Null:
    kept = [i for i, name in enumerate(null.names) if name in references]
    return replace(
        null,
        scores=tuple(null.scores[i] for i in kept),
        names=tuple(null.names[i] for i in kept),
        accuracies=tuple(null.accuracies[i] for i in kept),
        parts=tuple(null.parts[i] for i in kept),
    )


def voting(victim: Victim) -> list[str]:
    """Name the victim's methods that ask the suspect."""
    return audit.methods_for(victim, Access.QUERIES, Access.QUERIES)
