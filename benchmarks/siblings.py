"""Is an innocent model ever nearer to a victim than to its siblings? Each sibling in turn is taken for the victim.

Run ``python -m benchmarks.siblings --dataset mnist --data DIR --out DIR`` with the folders of ``benchmarks.verdicts``:
what is there is not made again. Whoever is taken for the victim chooses the queries; all innocent models of the zoo
are compared with it and with the others. Beside it: what ``strange`` says of the victim, and of one among networks
that were trained by another recipe.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtr

from benchmarks import zoo
from fp_audit.attacking import open_victim
from fp_audit.evaluating import share
from fp_audit.fingerprints.siblings import (
    VARIED,
    Array,
    all_logits,
    features,
    images_and_blends,
    information,
    nearer,
    passed_on,
    strange,
)
from fp_audit.networks import OWN
from fp_audit.types import OutputKind
from fp_audit.workshop import Workshop
from fp_audit.zoo import Independent, ZooOptions, build_zoo

BUDGETS = (25, 100, 400)
LEVELS = (0.05, 0.01)
SHOWN: tuple[OutputKind, ...] = ("logits", "labels")


def main() -> None:
    """Make what is missing and print how often innocent models are accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("mnist", zoo.RESNET), default="mnist")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="the folder of benchmarks.verdicts")
    parser.add_argument("--siblings", type=int, default=16)
    parser.add_argument("--seen", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("FP_AUDIT_HOME", str(given.out.absolute() / "home"))
    home = given.out / given.dataset
    made = zoo.make_victim(home, given.dataset, given.data, seen=given.seen)
    paths = zoo.make_siblings(home, given.dataset, given.data, given.siblings, seen=given.seen)
    options = ZooOptions(("disguise",), seed=given.seed, thief=str(made.thief), trained_on=("same",))
    built = build_zoo(str(made.victim), str(made.owner), given.out / f"{given.dataset}-verdicts", options)
    preprocess = built.victim.opening.preprocess
    kin = (open_victim(str(path), str(made.owner), preprocess=preprocess) for path in paths)
    family = [built.victim.model, *(sibling.model for sibling in kin)]
    images, pixels = images_and_blends(built.victim.data, np.random.default_rng(0))
    answers = all_logits(family, pixels)
    print(f"the victim among its {len(paths)} siblings: {strange(answers, images.labels) or 'is one of them'}")
    refused = [strange(first(answers[1:], i), images.labels) for i in range(len(paths))]
    print(f"siblings that do not pass for one among the others: {sum(map(bool, refused))} of {len(paths)}")
    innocents = built.independents
    own = [item.network for item in innocents if item.network.name.startswith(OWN)]
    if own:
        alike = np.concatenate([answers[:1], all_logits(own, pixels)])
        print(f"the victim among {len(own)} networks of another recipe: {strange(alike, images.labels) or 'passes'}")
    others = Workshop().independents(built.victim.data, VARIED, seed=1, alike=False)
    known = Known(answers[1:], all_logits(others, pixels), features(others, pixels))
    measured(known, all_logits([item.network for item in innocents], pixels), innocents)


@dataclass(frozen=True)
class Known:
    """What there is beside the innocent models of the zoo, at N candidates."""

    siblings: Array
    """R x N x K."""
    varied: Array
    """Of innocent networks that are not scored, J x N x K."""
    features: Array
    """Theirs, N x D."""


def first(models: Array, i: int) -> Array:
    """Put the ``i``-th of M models first."""
    return np.concatenate([models[[i]], np.delete(models, i, axis=0)])


def measured(known: Known, theirs: Array, innocents: Sequence[Independent]) -> None:
    """Print the scores of innocent models by their answers, I x N x K, each sibling in turn being the victim."""
    for budget in BUDGETS:
        for shown in SHOWN:
            scores = np.array(list(scored(known, theirs, budget, shown)))
            p_values = stdtr(len(known.siblings) - 2, -scores)
            rates = (share(int((p_values <= level).sum()), scores.size) for level in LEVELS)
            told = ", ".join(
                f"p <= {level}: {rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})"
                for level, rate in zip(LEVELS, rates, strict=True)
            )
            print(f"{budget:4} queries, {shown:6}: {scores.size} scores, deviation {scores.std():.2f}; {told}")
    by_model = scores.mean(axis=0)
    for item, mean in zip(innocents, by_model, strict=True):
        print(f"  {item.name:28} {item.accuracy:.1%} right, mean score {mean:5.2f}")


def scored(known: Known, theirs: Array, budget: int, shown: OutputKind) -> Iterator[list[float]]:
    """Yield the scores of all innocent models, I, for each sibling that is taken for the victim."""
    for i in range(len(known.siblings)):
        models = first(known.siblings, i)
        chosen = np.argsort(-information(models, known.varied), kind="stable")[:budget]
        compared, varied = passed_on(models, known.features, chosen), known.varied[:, chosen]
        yield [nearer(each[chosen].astype(np.float32), shown, compared, varied) for each in theirs]


if __name__ == "__main__":
    main()
