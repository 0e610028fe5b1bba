"""The tables of RemovalNet and CSRP for a victim of ours: what removal attacks leave of every score.

Run ``python -m benchmarks.removal --dataset mnist --data DIR --out DIR`` where the data folder holds ``train.parquet``
and ``test.parquet``. The zoo of ``benchmarks.methods`` is used (victim and independents are made if they are missing);
surrogates and the register are kept under ``--out`` and found again. Thresholds come from ``--references`` trained
independents alone, those of LOD and LAD from the third of them that has the victim's architecture; the zoo's five
independents are neither used for them nor for generation. Similarities: larger is more alike; LOD and LAD are
distances: smaller is more alike. A star: on the victim's side of the threshold (one-tailed 99 %).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import zoo
from fp_audit import audit, calibrate, victims
from fp_audit import data as labelled_images
from fp_audit.attacking import OpenVictim, open_victim, run_attacks, staged
from fp_audit.attacks._options import from_specs
from fp_audit.attacks._provenance import Provenance
from fp_audit.engine import top1
from fp_audit.errors import FpAuditError
from fp_audit.registration import Plan, register
from fp_audit.runners import local
from fp_audit.sandbox import Limits
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate
from fp_audit.types import Access, Evidence, Skipped

ATTACKS = {
    "FT(.5)": "fine-tune:mode=ft:share=0.5:epochs=3",
    "FT(.8)": "fine-tune:mode=ft:share=0.8:epochs=3",
    "WP(.1)": "prune:rate=0.1:epochs=2",
    "WP(.5)": "prune:rate=0.5:epochs=2",
    "WP(.8)": "prune:rate=0.8:epochs=2",
    "int8": "quantise:mode=static",
    "distillation": "distill:epochs=6",
    "RemovalNet paper": "removalnet",
    "RemovalNet code": "removalnet:preset=code",
    "RDG": "rdg",
    "CSRP": "csrp",
    "CSRP + FT": "csrp:mode=data-limited",
}

METHODS = "deepjudge,zest:images=32:masks=200,modeldiff,ipguard,negatives,negatives-logits,sac"
VARIANTS = ("vce", "rce", "rce-gm", "rce-lt")

REMOVAL = ("lod", "lad", "zest l2", "zest cosine", "modeldiff", "ipguard")
"""The six metrics of RemovalNet's table 1."""
MATCHING = ("ipguard", "cem", *VARIANTS, "negatives", "negatives-logits", "sac")
"""The rates of CSRP's tables, and below them those that the paper does not have."""

DISTANCES = ("lod", "lad")


def main() -> None:
    """Make what is missing and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=zoo.DATASETS, default="mnist")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="where zoo, surrogates and register are kept")
    parser.add_argument("--references", type=int, default=12, help="independents trained for the thresholds")
    parser.add_argument("--seen", type=int, default=300_000, help="images that the victim is shown in training")
    parser.add_argument("--cem", default="", help="cem with its options, to register it too: cem:epsilon=0.1")
    parser.add_argument(
        "--variants", default="", help="more rows, comma-separated: removalnet:learning_rate=0.1,removalnet:layer=..."
    )
    parser.add_argument(
        "--race", action="store_true", help="time RemovalNet against Knockoff of equal fidelity instead"
    )
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    os.environ["FP_AUDIT_HOME"] = str(given.out.absolute() / "home")
    made = zoo.make(given.out / given.dataset, given.dataset, given.data, seen=given.seen, stolen=False)
    if given.race:
        race(made, given.device)
        return
    attacks = ATTACKS | {spec: spec for spec in given.variants.split(",") if spec}
    folder = stolen(attacks, made, given)
    names = registered(made, given)
    test = labelled_images.load(str(given.data / "test.parquet")).take(np.arange(2000))
    found = {**examined(folder, names), **examined(made.suspects / "other", names)}
    titles = {slug(name): name for name in attacks}
    scores = {"victim": own(names)} | {titles.get(target, target): found[target] for target in found}
    accuracy = {"victim": right(made.victim, test)}
    accuracy |= {name: kept(folder / slug(name)) for name in attacks if name in scores}
    accuracy |= {name: right(made.suspects / "other" / name, test) for name in zoo.INDEPENDENTS}
    limits = thresholds(names[0])
    print("\nRemovalNet, table 1")
    table(REMOVAL, scores, accuracy, limits)
    print("\nCSRP: matching rates, and the methods that the paper does not have")
    table([name for name in MATCHING if name in scores["victim"]], scores, accuracy, limits)
    (given.out / f"{given.dataset}-removal.json").write_text(json.dumps({"scores": scores, "accuracy": accuracy}))


def slug(name: str) -> str:
    """Name a surrogate's folder."""
    return "".join(char if char.isalnum() else "-" for char in name)


def stolen(attacks: Mapping[str, str], made: zoo.Zoo, given: argparse.Namespace) -> Path:
    """Run every attack whose surrogate is missing, on the thief's half of the images."""
    folder = given.out / f"{given.dataset}-removal"
    target = open_victim(str(made.victim), str(made.thief), device=given.device)
    for name, spec in attacks.items():
        where = folder / slug(name)
        try:
            if not where.exists():
                with staged(where) as out:
                    start = time.monotonic()
                    done = run_attacks(from_specs(spec), target, out)
                    print(f"{name} ({spec}): {time.monotonic() - start:.0f} s, {done.fidelity}", flush=True)
            done = json.loads((where / "provenance.json").read_text())
            print(f"{name}: {done['cost']} {done['surrogate']['facts']}", flush=True)
        except FpAuditError as error:
            print(f"{name}: {error}", flush=True)
    return folder


def race(made: zoo.Zoo, device: str) -> None:
    """Time RemovalNet's 1,000 iterations, and Knockoff with more and more epochs until it agrees as often."""
    target = open_victim(str(made.victim), str(made.thief), device=device)
    removal = attempt("removalnet", target)
    for epochs in (1, 2, 4, 8, 16, 32):
        done = attempt(f"knockoff:epochs={epochs}", target)
        if done.fidelity.agreement >= removal.fidelity.agreement:
            saved = 1 - removal.cost.seconds / done.cost.seconds
            print(f"equal fidelity; RemovalNet saves {saved:.0%} of the time (paper: 50 to 85 %)")
            return
    print("Knockoff did not reach RemovalNet's fidelity")


def attempt(spec: str, target: OpenVictim) -> Provenance:
    """Run an attack into a folder that is thrown away, and print what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        done = run_attacks(from_specs(spec), target, Path(scratch) / "out")
    print(f"{spec}: {done.cost.seconds:.0f} s, {done.cost.queries:,} queries, {done.fidelity}", flush=True)
    return done


def registered(made: zoo.Zoo, given: argparse.Namespace) -> list[str]:
    """Register the victim with all methods, and once more with each other variant of characteristic examples."""
    plans = {f"{given.dataset}-removal": (f"{METHODS},characteristic" + (f",{given.cem}" if given.cem else ""))}
    plans |= {
        f"{given.dataset}-{variant}": f"characteristic:variant={variant}" for variant in VARIANTS if variant != "rce"
    }
    for name, methods in plans.items():
        if name not in victims.names():
            plan = Plan(
                str(made.victim),
                name,
                str(made.owner),
                methods=tuple(methods.split(",")),
                train_references=given.references if name.endswith("-removal") else 0,
                device=given.device,
            )
            register(plan, progress=say())
    return list(plans)


def say():
    """Show progress now and then."""
    last = [0.0]

    def progress(what: str, done: float) -> None:
        if time.monotonic() - last[0] > 30:
            last[0] = time.monotonic()
            print(f"    {what} {done:.0%}", file=sys.stderr, flush=True)

    return progress


def examined(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Score every model of a folder against all registrations: model -> metric -> value."""
    loaded = {victims.folder(name): victims.load(victims.folder(name)) for name in names}
    job = audit.Job(loaded, depth=Access.GRADIENTS, exhaustive=True, limits=Limits(wall_seconds=1800, cpu_seconds=3600))
    found = {}
    for outcome in local.run(list(locate((str(folder),), SourceOptions())), job, jobs=1):
        if isinstance(outcome, Skipped):
            print(f"{outcome.target}: {outcome.reason}")
            continue
        found[outcome.artifact.target] = {
            metric: value
            for name in names
            for item in outcome.evidence[name]
            for metric, value in metrics_of(name, item).items()
        }
    return found


def metrics_of(name: str, item: Evidence) -> dict[str, float]:
    """Return what a piece of evidence says under the names of the tables."""
    if item.method == "deepjudge":
        return {key: value for key, value in item.detail["distances"].items() if key in DISTANCES}
    if item.method == "zest":
        return {f"zest {part}": value for part, value in item.parts.items()}
    if item.method == "characteristic":
        return {variant_of(name): item.score}
    return {item.method: item.score}


def variant_of(name: str) -> str:
    """Return the variant of characteristic examples that a registration holds: its last part, or rce."""
    return next((variant for variant in VARIANTS if name.endswith(f"-{variant}")), "rce")


def own(names: list[str]) -> dict[str, float]:
    """Return the victim's scores against itself."""
    found: dict[str, float] = dict.fromkeys(DISTANCES, 0.0)
    for name in names:
        for method, score in victims.load(victims.folder(name)).facts["own_scores"].items():
            if method == "zest":
                found |= {f"zest {part}": value for part, value in score["parts"].items()}
            elif method == "characteristic":
                found[variant_of(name)] = score["value"]
            elif method != "deepjudge":
                found[method] = score["value"]
    return found


def thresholds(name: str) -> dict[str, float]:
    """Return the one-tailed 99 % limit of a new independent's value by metric, where enough references have it."""
    values: dict[str, list[float]] = {}
    for method, null in victims.load(victims.folder(name)).nulls.items():
        for score, parts in zip(null.scores, null.parts or ({},) * len(null.scores), strict=True):
            item = Evidence(method, Access.QUERIES, score, None, None, 0, parts=parts, detail=distances(parts))
            for metric, value in metrics_of(name, item).items():
                values.setdefault(metric, []).append(value)
    return {
        metric: limit(np.array(found), below=metric in DISTANCES)
        for metric, found in values.items()
        if len(found) >= calibrate.MIN_NULL
    }


def distances(parts: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return DeepJudge's distances from its similarities."""
    from fp_audit.fingerprints.deepjudge import distance_of

    return {"distances": {key: distance_of(key, part) for key, part in parts.items() if key in DISTANCES}}


def limit(values: np.ndarray, *, below: bool) -> float:
    """Return the value that 99 % of new draws stay on the independents' side of, for normal values."""
    reach = stats.t.ppf(0.99, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() - reach if below else values.mean() + reach)


def right(path: Path, test: labelled_images.Labelled) -> float:
    """Return a model's accuracy on the test images."""
    target = open_victim(str(path), test, device="cpu")
    return float((top1(target.model, target.data.pixels)[0] == target.data.labels).mean())


def kept(path: Path) -> float:
    """Return a surrogate's accuracy as it was measured when it was made."""
    return float(json.loads((path / "provenance.json").read_text())["fidelity"]["accuracy"])


def table(metrics: list[str] | tuple[str, ...], scores, accuracy, limits) -> None:
    """Print one row a model."""
    print(f"{'':20}{'accuracy':>9}" + "".join(f"{metric:>17}" for metric in metrics))
    for name, found in scores.items():
        cells = "".join(f"{cell(found.get(metric), limits.get(metric), metric):>17}" for metric in metrics)
        print(f"{name:20}{accuracy.get(name, float('nan')):9.1%}{cells}")
    print(f"{'threshold':29}" + "".join(f"{cell(limits.get(metric), None, metric):>17}" for metric in metrics))


def cell(value: float | None, threshold: float | None, metric: str) -> str:
    """Render a value, with a star on the victim's side of the threshold."""
    if value is None:
        return "-"
    alike = threshold is not None and (value < threshold if metric in DISTANCES else value > threshold)
    return f"{value:.3f}{'*' if alike else ' '}"


if __name__ == "__main__":
    main()
