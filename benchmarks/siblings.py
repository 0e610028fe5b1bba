"""Is an innocent model ever nearer to a victim than to its siblings? Each sibling in turn is taken for the victim.

Run ``python -m benchmarks.siblings --dataset mnist --data DIR --out DIR`` with the folders of ``benchmarks.verdicts``:
what is there is not made again. Queries are chosen, and changed, for whoever is taken for the victim; all innocent
models of the zoo are compared with it and with the others. Beside it: what ``strange`` says of the victim, and of one
among networks that were trained by another recipe.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtr

from benchmarks import zoo
from fp_audit.evaluating import share
from fp_audit.fingerprints.siblings import (
    FLOOR,
    VARIED,
    Array,
    answered,
    candidates,
    information,
    nearer,
    outstanding,
    strange,
)
from fp_audit.model import LoadOptions
from fp_audit.networks import OWN
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.types import OutputKind, Pixels
from fp_audit.workshop import Workshop
from fp_audit.zoo import ZooOptions, build_zoo

BUDGETS = (25, 100)
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
    family = [opened(path, built.victim.opening) for path in (made.victim, *paths)]
    images, pixels = candidates(built.victim.data, np.random.default_rng(0))
    answers = answered([each.black_box() for each in family], pixels)
    print(f"the victim among its {len(paths)} siblings: {strange(answers, images.labels) or 'is one of them'}")
    refused = [strange(first(answers[1:], i), images.labels) for i in range(len(paths))]
    print(f"siblings that do not pass for one among the others: {sum(map(bool, refused))} of {len(paths)}")
    innocents = [item.network for item in built.independents]
    own = [network for network in innocents if network.name.startswith(OWN)]
    if own:
        others = np.concatenate([answers[:1], answered(own, pixels)])
        print(f"the victim among {len(own)} networks of another recipe: {strange(others, images.labels) or 'passes'}")
    varied = Workshop().independents(built.victim.data, VARIED, seed=1, alike=False)
    for budget in BUDGETS:
        scores = []
        for i in range(len(paths)):
            order = [i, *(j for j in range(len(paths)) if j != i)]
            kin = [family[1 + j] for j in order]
            queries = changed(kin, answers[1:][order], pixels, budget)
            models, others = answered([each.black_box() for each in kin], queries), answered(varied, queries)
            theirs = answered(innocents, queries).astype(np.float32)
            scores.append([[nearer(each, shown, models, others) for each in theirs] for shown in SHOWN])
        report(budget, np.array(scores))
    for item, mean in zip(built.independents, np.mean(scores, axis=(0, 1)), strict=True):
        print(f"  {item.name:28} {item.accuracy:.1%} right, mean score {mean:5.2f}")


def opened(path: Path, options: LoadOptions) -> Subject:
    """Open a model as the victim is opened."""
    located = locate_one(str(path), SourceOptions())
    artifact = located.source.fetch(located.artifact)
    return Subject.of_artifact(artifact, adapter(artifact.adapter), options)


def first(models: Array, i: int) -> Array:
    """Put the ``i``-th of M models first."""
    return np.concatenate([models[[i]], np.delete(models, i, axis=0)])


def changed(family: Sequence[Subject], answers: Array, pixels: Pixels, budget: int) -> Pixels:
    """Choose queries for the first of some models, by their answers at all pixels, and change them."""
    best = np.argsort(-information(answers), kind="stable")[:budget]
    least = FLOOR * float(answers[1:].var(axis=0, ddof=1).mean())
    return outstanding(pixels[best], [each.white_box().module for each in family], least, Workshop())


def report(budget: int, scores: Array) -> None:
    """Print how often innocent models are accused, by R x 2 x J scores: siblings, what is shown, innocent models."""
    for k, shown in enumerate(SHOWN):
        found = scores[:, k]
        p_values = stdtr(len(found) - 2, -found)
        rates = (share(int((p_values <= level).sum()), found.size) for level in LEVELS)
        told = ", ".join(
            f"p <= {level}: {rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})"
            for level, rate in zip(LEVELS, rates, strict=True)
        )
        print(f"{budget:4} queries, {shown:6}: {found.size} scores, {found.mean():.2f} +- {found.std():.2f}; {told}")


if __name__ == "__main__":
    main()
