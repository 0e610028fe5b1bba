"""Every method on a zoo whose history is known: time, queries, bytes, and the score of each model.

Run ``python -m benchmarks.methods --dataset mnist --data DIR --out DIR`` where the data folder holds
``train.parquet`` and ``test.parquet``. Registers the victim with all methods (``--methods`` for some), scores five
surrogates and five independents in the sandbox as a scan at ``--depth gradients`` would, and prints the tables.
Independents of the zoo are neither used for calibration nor for generation. Nothing was tuned on them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

from benchmarks import zoo
from fp_audit import audit, calibrate, victims
from fp_audit.metrics import auc
from fp_audit.registration import Plan, register
from fp_audit.runners import local
from fp_audit.sandbox import Limits
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate
from fp_audit.types import Access, Skipped

MODELS = [*(f"thief/{name}" for name in zoo.SURROGATES), *(f"other/{name}" for name in zoo.INDEPENDENTS)]


class Clock:
    """Sums up the seconds between two changes of the activity, by method."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._what, self._since, self._said = "", time.monotonic(), 0.0

    def __call__(self, what: str, done: float) -> None:
        """Take note of progress, and show it now and then."""
        now = time.monotonic()
        if self._what:
            self.seconds[self._what] = self.seconds.get(self._what, 0.0) + now - self._since
        if what.startswith("generating "):
            self._what = what.removeprefix("generating ")
        elif ": " not in what:
            self._what = what
        self._since = now
        if now - self._said > 20:
            self._said = now
            print(f"    {what} {done:.0%}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="where the zoo and the register are kept")
    parser.add_argument("--methods", default="all", help="as for fp-audit register")
    parser.add_argument("--references", type=int, default=12, help="independents trained for calibration")
    parser.add_argument("--seen", type=int, default=300_000, help="images that the victim is shown in training")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    os.environ["FP_AUDIT_HOME"] = str(given.out.absolute() / "home")
    made = zoo.make(given.out / given.dataset, given.dataset, given.data, seen=given.seen)
    clock, start = Clock(), time.monotonic()
    name = given.dataset
    if name in victims.names():
        victims.remove(name)
    plan = Plan(
        str(made.victim),
        name,
        str(made.owner),
        methods=tuple(given.methods.split(",")),
        train_references=given.references,
        device=given.device,
    )
    victim = register(plan, progress=clock)
    print(f"registered in {time.monotonic() - start:.0f} s, {given.references} references; seconds by activity:")
    print("  " + ", ".join(f"{what} {seconds:.1f}" for what, seconds in clock.seconds.items()))
    found = examined(made, victim)
    show(victim, found, clock)
    (given.out / f"{name}.json").write_text(json.dumps(found, indent=1))


def examined(made: zoo.Zoo, victim: victims.Victim) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Score every model with every method: model -> method -> (score, p)."""
    job = audit.Job(
        {victims.folder(victim.name): victim},
        depth=Access.GRADIENTS,
        exhaustive=True,
        limits=Limits(wall_seconds=1800, cpu_seconds=3600),
    )
    found = {}
    for outcome in local.run(list(locate((str(made.suspects),), SourceOptions())), job, jobs=1):
        assert not isinstance(outcome, Skipped), outcome
        assert outcome.failure is None, outcome.failure
        target = outcome.artifact.target
        found[target] = {item.method: (item.score, item.p_value) for item in outcome.evidence[victim.name]}
        for item in outcome.evidence[victim.name]:
            extra = {key: item.detail[key] for key in ("votes", "copy", "t_test_p", "surrogate") if key in item.detail}
            if extra:
                print(f"  {target}: {item.method}: {extra}")
    return found


def show(victim: victims.Victim, found: dict[str, dict[str, tuple[float, float | None]]], clock: Clock) -> None:
    """Print scores and p-values, one row a method."""
    folder = victims.folder(victim.name)
    print(f"\n{'method':18}{'gen. s':>8}{'queries':>9}{'KB':>8}{'victim':>8}", end="")
    print("".join(f"{model.partition('/')[2][:11]:>12}" for model in MODELS) + f"{'AUC':>7}")
    for method in victim.fingerprints:
        own = victim.facts["own_scores"].get(method, {})
        size = (folder / f"{method}.safetensors").stat().st_size / 1024
        scores = [found[model].get(method, (float("nan"), None))[0] for model in MODELS]
        half = len(zoo.SURROGATES)
        row = f"{method:18}{clock.seconds.get(method, 0.0):8.1f}{own.get('queries', 0):9,}{size:8,.0f}"
        row += f"{own.get('value', float('nan')):8.3f}" + "".join(f"{score:12.3f}" for score in scores)
        complete = not any(map(math.isnan, scores))
        print(row + (f"{auc(scores[:half], scores[half:]):7.2f}" if complete else f"{'-':>7}"))
    print(f"\np-values ({len(next(iter(victim.nulls.values())).scores) if victim.nulls else 0} references)")
    for method in [*victim.fingerprints, "combined"]:
        print(f"{method:51}" + "".join(f"{_p(found[model], method):>12}" for model in MODELS))


def _p(scores: dict[str, tuple[float, float | None]], method: str) -> str:
    if method == "combined":
        voting = [p for _, p in scores.values() if p is not None]
        return f"{calibrate.combine(voting):.1e}" if voting else "-"
    p = scores.get(method, (0.0, None))[1]
    return "-" if p is None else f"{p:.1e}"


if __name__ == "__main__":
    main()
