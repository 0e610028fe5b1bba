"""How often verdicts are right: the tables of detection and of false accusations for a victim of ours or of others.

Run ``python -m benchmarks.verdicts --dataset mnist --data DIR --out DIR`` where the data folder holds
``train.parquet`` and ``test.parquet``. The victim is trained on the owner's half of the training images, the thief has
the other half, and all independents, scored ones and references, are trained on the owner's. With
``--victim cifar10-resnet20.onnx`` a network that somebody else trained (on all training images) is the victim: the
thief then has the test images. Everything is kept under ``--out``, also what ``fp-audit evaluate`` reports.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import zoo
from fp_audit.cli import _progress
from fp_audit.evaluating import COMBINED, EVERY, Cell, Rate, Setting, detected
from fp_audit.reports import _evaluation
from fp_audit.reports._evaluation import Evaluation
from fp_audit.scoring import EvaluationOptions, evaluate
from fp_audit.zoo import OTHER

CHEAP = (
    "quantise:mode=static",
    "quantise:mode=fp16",
    "disguise",
    "rdg",
    "csrp",
    "fine-tune:mode=ftll:epochs=3",
    "fine-tune:mode=ftal:epochs=3",
    "fine-tune:mode=rtal:epochs=3",
    "prune:rate=0.3:epochs=1",
    "prune:rate=0.6:epochs=2",
    "prune:rate=0.8:epochs=4",
    "prune-channels:rate=0.2:epochs=2",
    "fine-tune:epochs=3+csrp",
)
NEAR = ":epsilon=0.0078:steps=3:step_size=0.004"
"""Of adversarial training that leaves a network of little capacity some accuracy: with the usual 8/255 that of the
CIFAR-10 victim falls from 75 % to 50 %."""
ATTACKS = {
    "mnist": (
        *CHEAP,
        "csrp:mode=data-limited@4",
        "removalnet@4",
        "removalnet:preset=code",
        "extract@3",
        f"extract:architecture=test_resnet{OTHER}@3",
        f"extract:architecture=test_efficientnet{OTHER}@2",
        "extract:answers=probabilities@2",
        "extract-mix",
        "distill",
        "adversarial-tune",
        "adversarial-extract:epochs=8@2",
    ),
    zoo.RESNET: (
        *CHEAP,
        "csrp:mode=data-limited@2",
        "extract:epochs=12@2",
        f"extract:architecture=test_resnet{OTHER}@4",
        "removalnet@2",
        "extract:answers=probabilities:epochs=12",
        "distill:epochs=6",
        "extract-mix:epochs=12",
        "removalnet:preset=code",
        "rdg@2",
        "prune:rate=0.6:epochs=2@2",
        f"adversarial-tune:epochs=2{NEAR}",
        f"adversarial-extract:queries=20000:epochs=14{NEAR}@2",
    ),
}
OF_OTHERS = (*CHEAP, "csrp:mode=data-limited", "removalnet")
"""Against a victim that saw all training images: those that a thief with few images can afford."""

METHODS = "negatives,negatives-logits,sac,characteristic,ipguard,siblings"
OUTPUTS = ("logits", "top-1")
REMOVED = ("removalnet", "csrp", "csrp+ft")
"""Kinds that are published as undetectable."""


def main() -> None:
    """Make what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=tuple(ATTACKS), default="mnist")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="where victim, zoo and register are kept")
    parser.add_argument("--victim", help="a victim that somebody else trained on the training images")
    parser.add_argument("--independents", type=int, default=24)
    parser.add_argument("--references", type=int, default=12)
    parser.add_argument("--siblings", type=int, default=16, help="networks trained as our victim was")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budgets", default="25,100,400")
    parser.add_argument("--seen", type=int, default=300_000, help="images that the victim is shown in training")
    parser.add_argument("--seed", type=int, default=0, help="of the zoo and of the references; the victim stays")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    os.environ.setdefault("FP_AUDIT_HOME", str(given.out.absolute() / "home"))
    home = given.out / given.dataset
    made = zoo.make_victim(home, given.dataset, given.data, seen=given.seen)
    victim, thief = given.victim or str(made.victim), str(given.data / "test.parquet" if given.victim else made.thief)
    siblings = (
        () if given.victim else zoo.make_siblings(home, given.dataset, given.data, given.siblings, seen=given.seen)
    )
    out = given.out / f"{given.dataset}-{'of-others' if given.victim else 'verdicts'}"
    options = EvaluationOptions(
        attacks=OF_OTHERS if given.victim else ATTACKS[given.dataset],
        independents=given.independents,
        references=given.references,
        methods=tuple(given.methods.split(",")),
        budgets=tuple(int(budget) for budget in given.budgets.split(",")),
        siblings=tuple(map(str, siblings)),
        seed=given.seed,
        device=given.device,
        thief=thief,
        trained_on=("same",),
    )
    with _progress.resumable(out) as progress:
        found = evaluate(victim, str(made.owner), out, options, progress=progress)
    show(found)
    _evaluation.save(found, out)


def show(found: Evaluation) -> None:
    """Print what is asked of verdicts, then every method and kind."""
    surrogates = [model for model in found.models if model.role == "surrogate"]
    useful = [model for model in surrogates if model.useful]
    broken = ", ".join(f"{model.name} ({model.accuracy:.1%})" for model in surrogates if not model.useful)
    print(f"victim {found.accuracy:.1%}; {len(useful)} surrogates, {len(found.independents)} independents")
    print(f"broken, not counted: {broken or 'none'}; left out: {dict(found.failures) or 'none'}")
    print(f"independents: {', '.join(f'{model.accuracy:.1%}' for model in found.independents)} right")
    for output in OUTPUTS:
        print(f"\n{output}")
        for kind in found.kinds:
            for budget in found.budgets:
                if cell := found.cell(kind, COMBINED, budget, output):
                    print(f"  {kind:26} {budget:4} queries  {told(cell)}")
        for budget in found.budgets:
            print(f"  {' + '.join(REMOVED):26} {budget:4} queries  detected {removed(found, budget, output)}")
        print(f"  methods alone, all kinds, {found.budget} queries")
        for method in found.methods:
            if cell := found.cell(EVERY, method, found.budget, output):
                print(f"    {method:24} {told(cell)}")
    print(f"\nindependents called derived at {found.alpha}, by output: " + accused(found))
    for gain in found.gains:
        if gain.output in OUTPUTS:
            print(f"{gain.references} references, {gain.output}: detected {rate(gain.detected)}")
    least = sorted(lowest(found))
    print(f"least p of each independent: {', '.join(f'{p:.2g}' for p in least)}")


def told(cell: Cell) -> str:
    """Write a cell."""
    return (
        f"n {cell.surrogates:2}  AUC {rate(cell.auc)}  TPR@5% {rate(cell.tpr5)}  TPR@1% {rate(cell.tpr1)}  "
        f"detected {rate(cell.detected)}"
    )


def rate(value: Rate | None) -> str:
    """Write a number with its interval."""
    return "-" if value is None else f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def removed(found: Evaluation, budget: int, output: str) -> str:
    """Write which share of the kinds that are published as undetectable is called derived."""
    names = [model.name for model in found.models if model.useful and model.kind in REMOVED]
    return rate(detected(names, found.found[Setting(COMBINED, budget, output)], found.alpha))


def accused(found: Evaluation) -> str:
    """Write the worst share of accused independents over all budgets."""
    worst = {output: max(_accused(found, output), key=lambda item: item.value) for output in found.outputs}
    return ", ".join(f"{output} {rate(item)}" for output, item in worst.items())


def _accused(found: Evaluation, output: str) -> Sequence[Rate]:
    known = (found.wrongly(output, budget=budget) for budget in found.budgets)
    return [item.observed for item in known if item]


def lowest(found: Evaluation) -> Iterable[float]:
    """Return the least combined p-value of each independent, over all budgets and outputs."""
    for model in found.independents:
        rows = (row for setting, row in found.found.items() if setting.method == COMBINED)
        yield min(row[model.name].p_value or 1.0 for row in rows)


if __name__ == "__main__":
    main()
