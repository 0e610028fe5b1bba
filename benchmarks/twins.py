"""What does a surrogate owe to its victim? Each extraction of the zoo beside its twin, which never saw the victim.

Run ``python -m benchmarks.twins --dataset mnist --data DIR --out DIR`` after ``benchmarks.verdicts`` with the same
options: its surrogates and registrations are used. A twin is the same attack with the same seed, images and network,
but the labels are the true ones: what both have in common, the victim did not teach. No score can tell a surrogate
that is no more like the victim than its twin, and a twin that is called derived is an innocent model accused.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import zoo
from benchmarks.verdicts import ATTACKS, OUTPUTS
from fp_audit import victims
from fp_audit.attacking import PROVENANCE, OpenVictim, obtained, open_victim
from fp_audit.cli import _progress
from fp_audit.data import Labelled
from fp_audit.engine import Progress, top1
from fp_audit.judging import SHOWN, judged
from fp_audit.metrics import auc
from fp_audit.model import BlackBox, Wrapper, one_hot
from fp_audit.types import Images, OutputKind, Outputs
from fp_audit.victims import Victim
from fp_audit.zoo import Theft, ZooOptions, divided, planned

Floats: TypeAlias = NDArray[np.float64]

Pair: TypeAlias = tuple[BlackBox, BlackBox]
"""A surrogate and its twin."""

BY_LABELS = ("extract", "adversarial-extract")
"""Attacks whose only knowledge of the victim is its answers to the thief's images, each asked as it is."""

ALPHA = 0.01


class Truthful(Wrapper):
    """Answers images that it knows with their true labels."""

    def __init__(self, model: BlackBox, known: Labelled) -> None:
        super().__init__(model)
        self._labels = {image.tobytes(): label for image, label in zip(known.pixels, known.labels, strict=True)}
        self._classes = known.class_count

    @property
    def output(self) -> OutputKind:
        """Always ``labels``."""
        return "labels"

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        pixels = np.rint(images * 255).astype(np.uint8)
        return one_hot(np.array([self._labels[image.tobytes()] for image in pixels]), self._classes)


def main() -> None:
    """Make the twins that are missing, and print what each method says of surrogates and twins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=tuple(ATTACKS), default="mnist")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="the folder of benchmarks.verdicts")
    parser.add_argument("--seen", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("FP_AUDIT_HOME", str(given.out.absolute() / "home"))
    made = zoo.make_victim(given.out / given.dataset, given.dataset, given.data, seen=given.seen)
    out = given.out / f"{given.dataset}-verdicts"
    target = open_victim(str(made.victim), str(made.owner), seed=given.seed)
    thief = divided(str(made.victim), target, ZooOptions(seed=given.seed, thief=str(made.thief))).thief
    labels, _ = top1(target.model, thief.pixels)
    print(f"labels that the victim gives to the thief's images: {(labels == thief.labels).mean():.2%} true")
    thefts = [theft for theft in planned(ATTACKS[given.dataset], given.seed) if _by_labels(theft)]
    with _progress.resumable(out) as progress:
        pairs = list(_pairs(thefts, target, thief, out, progress))
    for victim in registered(out / "victims"):
        for output in OUTPUTS:
            show(pairs, victim, output)


def _by_labels(theft: Theft) -> bool:
    (attack, *more) = theft.attacks
    return not more and attack.name in BY_LABELS and attack.options.get("answers", "labels") == "labels"


def _pairs(
    thefts: Iterable[Theft], target: OpenVictim, thief: Labelled, out: Path, progress: Progress
) -> Iterator[tuple[Theft, Pair]]:
    """Yield each surrogate of the zoo and its twin, which is made now if it is missing."""
    truthful = replace(target, model=Truthful(target.model, thief), data=thief, digest=thief.digest)
    for theft in thefts:
        stolen, twin = out / "surrogates" / theft.name, out / "twins" / theft.name
        if stolen.exists():
            obtained(theft.attacks, truthful, twin, seed=theft.seed, progress=progress)
            yield theft, (_opened(stolen, target), _opened(twin, target))


def _opened(folder: Path, target: OpenVictim) -> BlackBox:
    """Open a model that an attack left; one of the victim's kind wants its images as the victim does."""
    alike = json.loads((folder / PROVENANCE).read_text())["surrogate"]["adapter"] == target.adapter.name
    return open_victim(str(folder), target.data, preprocess=target.opening.preprocess if alike else None).model


def registered(folder: Path) -> list[Victim]:
    """Return the latest registration for each budget and choice of methods."""
    found = sorted(map(victims.load, folder.iterdir()), key=lambda victim: str(victim.facts["registered"]))
    latest = {(item.facts["budget"], *sorted(item.fingerprints)): item for item in found}
    return [latest[key] for key in sorted(latest)]


def show(pairs: Sequence[tuple[Theft, Pair]], victim: Victim, output: str) -> None:
    """Print what each method says of surrogates and of their twins."""
    judgements = [(theft.kind, [_rows(model, victim, output) for model in models]) for theft, models in pairs]
    print(
        f"\n{victim.facts['budget']} queries, {output}: score of surrogates and twins, AUC of one against the other, "
    )
    print("p of the mean difference (t test of pairs, one-sided), called derived")
    for kind in sorted({theft.kind for theft, _ in pairs}):
        of_kind = [both for found, both in judgements if found == kind]
        print(f"  {kind}, {len(of_kind)} pairs")
        for method in of_kind[0][0]:
            stolen, twins = (np.array([both[i][method] for both in of_kind], float) for i in (0, 1))
            print(f"    {method:18} {told(stolen, twins)}")


def _rows(model: BlackBox, victim: Victim, output: str) -> dict[str, tuple[float, float]]:
    """Return scores and p-values by method."""
    rows, _ = judged("", SHOWN[output](model), victim, output)
    return {row.setting.method: (row.score, 1.0 if row.p_value is None else row.p_value) for row in rows}


def told(stolen: Floats, twins: Floats) -> str:
    """Write what one method says of n surrogates and their twins: n x 2 each, scores and p-values."""
    ours, theirs = stolen[:, 0], twins[:, 0]
    varied = len(ours) > 1 and np.ptp(ours - theirs) > 0
    p = f"{stats.ttest_rel(ours, theirs, alternative='greater').pvalue:.2g}" if varied else "-"
    accused = " and ".join(f"{int((found[:, 1] <= ALPHA).sum())}" for found in (stolen, twins))
    means = f"{ours.mean():6.3f} {theirs.mean():6.3f}"
    return f"{means}  AUC {auc(ours, theirs):.2f}  p {p:7}  derived {accused} of {len(ours)}"


if __name__ == "__main__":
    main()
