"""Are the suspect's hidden units the victim's in another order? A test that no permutation or rescaling evades.

A hidden unit is a row of one tensor and a column of another (of many, in a residual stream). Each tensor of the
victim is aligned with a tensor of the suspect by itself (``_units.align``), which gives every unit a counterpart;
then two tensors that share a unit are asked whether they name the same counterpart. The idea is Zhu et al.'s MATCH
statistic ("Independence Tests for Language Models", ICML 2025), who match the rows of a gate and an up projection.

What its p-value is worth. No test that ignores the order of units can be exact by relabelling them: a statistic
that does not change under relabelling tells nothing apart that relabelling mixes. (Fixed points, in ``weights``, are
exact because they do not ignore it.) Worse, networks trained apart on the same data come to resemble each other up to
a permutation (Li et al., "Convergent Learning", 2016; Ainsworth et al., "Git Re-Basin", ICLR 2023), so that two
alignments may agree by more than chance. So the null hypothesis is granted much: *in independent models, two tensors
name the same counterpart of a unit with probability at most one half, whatever they name for others*. Then the number
of agreements among n units is stochastically at most Binomial(n, 1/2), and its upper tail is a conservative p-value:
the sign test. Under chance alone the probability is 1/n; ``benchmarks/lineage.py`` measures it on networks trained
apart. A link is chosen among L that a tensor has: its p-value is multiplied by L (Bonferroni). Tensors of a victim
that resemble one another (an average kept beside the weights, clones of one layer) would agree for that reason; only
the first of them is used.

Some units of every convolution are aligned first, and more only where two tensors agree about some of these: most
models are independent, and for them this look is two to three times as quick. It can only make a p-value larger. Of
copies of random networks that were permuted and cut down it overlooked none that the full alignment finds; of copies
with noise of twice the size of the weights, the most that the full alignment bears, it overlooked some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fp_audit.fingerprints._units import UNITS, Indices, Tensor, align

Array = NDArray[np.generic]

GRANTED = 0.5
"""Probability of an agreement that is granted to independent models."""

MIN_UNITS = 8
"""Shortest axis whose units are compared."""

COUNTERPARTS = 2
"""Tensors of the suspect, of the same shape and of a smaller one each, that one is aligned with; the best is kept."""

LEAST_KEPT = 0.25
"""Share of an axis that pruning may leave."""

RESEMBLING = 0.5
"""Absolute cosine from which two tensors of the victim are not counted twice."""

GLANCED = 256
LEAST_GLANCED = 32
"""So many units of a tensor are aligned first that with their kernel positions they make 256 rows; at least 32, at most
``UNITS``. A unit of a plain matrix has few values: all are needed."""

SHOWN = 0.125
"""Share of these units that two tensors must agree on before more are aligned."""

MOST_TENSORS = 48
MOST_VALUES = 2**27
"""Tensors of the victim that are aligned, evenly spread over it, and their values all together."""


@dataclass(frozen=True)
class Relabelled:
    """What the alignment of one tensor of the victim found."""

    p_value: float
    cosine: float
    """Of the aligned, balanced tensors."""
    agreed: int
    units: int
    """Of its best link."""


UNLINKED = Relabelled(1.0, 0.0, 0, 0)
"""Of a tensor that has no counterpart by shape, or shares no axis with another."""


def relabelled(ours: Sequence[Array], theirs: Sequence[Array], rng: np.random.Generator) -> dict[int, Relabelled]:
    """Compare all tensors of two models up to the order and scale of their units.

    Args:
        ours: the victim's tensors, of two or more axes.
        theirs: the suspect's.
        rng: breaks ties.

    Returns:
        By index in ``ours``, for the tensors that are looked at: at most ``MOST_TENSORS``, chosen by the victim alone.
    """
    chosen = _affordable(ours, _distinct(ours))
    pairs = _pairs(ours, chosen, theirs)
    aligned = _alignments(pairs, rng, glanced=True)
    links = _links(aligned)
    if any(agreed >= SHOWN * units for _, _, agreed, units in links):
        aligned |= _alignments({i: pair for i, pair in pairs.items() if pair.has_more}, rng, glanced=False)
        links = _links(aligned)
    counts = Counter(i for pair in links for i in pair[:2])
    best = dict.fromkeys(chosen, UNLINKED)
    for first, second, agreed, units in links:
        for index in (first, second):
            p = min(1.0, counts[index] * sign_test(agreed, units))
            if p < best[index].p_value or not best[index].units:
                best[index] = Relabelled(p, aligned[index].cosine, agreed, units)
    return best


def sign_test(agreed: int, units: int) -> float:
    """Return P(Binomial(``units``, ``GRANTED``) >= ``agreed``), at least the smallest positive float."""
    from scipy.special import bdtrc

    return float(max(bdtrc(agreed - 1, units, GRANTED), np.finfo(float).tiny)) if agreed else 1.0


@dataclass(frozen=True)
class _Aligned:
    """The best counterpart of a tensor."""

    cosine: float
    axes: tuple[tuple[int, int, Indices, tuple[int, int]], ...]
    """Of rows and columns: length in the victim, length in the suspect, counterparts, and which axis of which
    tensor."""


@dataclass(frozen=True)
class _Pair:
    """A tensor of the victim, and those of the suspect that may be its copy, by place and whether it is transposed."""

    ours: Tensor
    theirs: Mapping[tuple[int, bool], Tensor]

    @property
    def first_units(self) -> int:
        """Units that are aligned first."""
        positions: int = self.ours.blocks.shape[2]
        return min(UNITS, max(LEAST_GLANCED, GLANCED // positions))

    @property
    def has_more(self) -> bool:
        """Whether there are units that are not among these."""
        longest: int = max(self.ours.blocks.shape[:2])
        return self.first_units < min(UNITS, longest)


def _pairs(ours: Sequence[Array], chosen: Sequence[int], theirs: Sequence[Array]) -> dict[int, _Pair]:
    """Find the candidates by shape; keep those whose values are distributed most alike."""
    prepared: dict[tuple[int, bool], Tensor] = {}

    def tensor(index: int, *, turned: bool) -> Tensor:
        if (index, turned) not in prepared:
            value = theirs[index]
            prepared[index, turned] = Tensor(value.T if turned else value)
        return prepared[index, turned]

    found, usable = {}, [(place, value) for place, value in enumerate(theirs) if _finite(value)]
    for index in chosen:
        fitting = [
            (place, turned)
            for place, value in usable
            for turned in ((False, True) if value.ndim == 2 else (False,))
            if _fits(ours[index].shape, value.shape[::-1] if turned else value.shape)
        ]
        if fitting:
            a = Tensor(ours[index])
            found[index] = _Pair(a, _likeliest(a, {at: tensor(at[0], turned=at[1]) for at in fitting}))
    return found


def _likeliest(a: Tensor, candidates: Mapping[tuple[int, bool], Tensor]) -> dict[tuple[int, bool], Tensor]:
    def distance(at: tuple[int, bool]) -> float:
        return float(np.abs(a.signature - candidates[at].signature).mean())

    whole = {at for at, b in candidates.items() if b.blocks.shape == a.blocks.shape}
    nearest = [_first(sorted(some, key=distance)) for some in (whole, candidates.keys() - whole)]
    return {at: candidates[at] for at in sorted(candidates) if at[0] in {*nearest[0], *nearest[1]}}


def _first(candidates: Sequence[tuple[int, bool]]) -> list[int]:
    """Name the first ``COUNTERPARTS`` tensors."""
    return list(dict.fromkeys(place for place, _ in candidates))[:COUNTERPARTS]


def _alignments(pairs: Mapping[int, _Pair], rng: np.random.Generator, *, glanced: bool) -> dict[int, _Aligned]:
    """Align each tensor with each candidate, the first units only or ``UNITS``; keep the best."""
    found = {}
    for index, pair in pairs.items():
        units = pair.first_units if glanced else UNITS
        tried = [(at, align(pair.ours, theirs, rng, units)) for at, theirs in pair.theirs.items()]
        (place, turned), best = max(tried, key=lambda item: item[1].cosine)
        length, left = pair.ours.blocks.shape, pair.theirs[place, turned].blocks.shape
        rows = (length[0], left[0], best.rows, (place, int(turned)))
        columns = (length[1], left[1], best.columns, (place, 1 - int(turned)))
        found[index] = _Aligned(best.cosine, (rows, columns))
    return found


def _links(aligned: Mapping[int, _Aligned]) -> list[tuple[int, int, int, int]]:
    """Compare the counterparts that two tensors name for the units of axes of one length: i, k, agreements, units."""
    axes = [(index, *axis) for index, item in aligned.items() for axis in item.axes if axis[0] >= MIN_UNITS]
    links = []
    for place, (i, length, left, match, axis) in enumerate(axes):
        for k, other_length, other_left, other_match, other_axis in axes[place + 1 :]:
            if i != k and axis != other_axis and (length, left) == (other_length, other_left):
                both = (match >= 0) & (other_match >= 0)
                links.append((i, k, int((match == other_match)[both].sum()), int(both.sum())))
    return links


def _fits(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether a tensor can be another after whole rows or columns were cut out."""
    if len(ours) != len(theirs) or ours[2:] != theirs[2:]:
        return False
    return all(max(1, LEAST_KEPT * have) <= left <= have for have, left in zip(ours[:2], theirs[:2], strict=True))


def _distinct(tensors: Sequence[Array]) -> list[int]:
    """Return the indices of tensors with enough units, without those that resemble an earlier one of their shape."""
    kept: dict[tuple[int, ...], list[tuple[int, NDArray[np.float32]]]] = {}
    for index, tensor in enumerate(tensors):
        if max(tensor.shape[:2]) < MIN_UNITS or not _finite(tensor):
            continue
        flat = np.asarray(tensor, np.float32).ravel()
        flat = flat / max(float(np.linalg.norm(flat)), 1e-30)
        earlier = kept.setdefault(tensor.shape, [])
        if all(abs(float(flat @ other)) < RESEMBLING for _, other in earlier):
            earlier.append((index, flat))
    return sorted(index for group in kept.values() for index, _ in group)


def _finite(tensor: Array) -> bool:
    return bool(np.isfinite(np.asarray(tensor, np.float32)).all())


def _affordable(tensors: Sequence[Array], indices: Sequence[int]) -> list[int]:
    """Thin out evenly until at most ``MOST_TENSORS`` with at most ``MOST_VALUES`` values are left."""
    for step in range(1, len(indices) + 1):
        chosen = list(indices[::step])
        if len(chosen) <= MOST_TENSORS and sum(tensors[index].size for index in chosen) <= MOST_VALUES:
            return chosen
    return []
